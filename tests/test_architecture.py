import ast
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from dlf_dynamics import schema

ROOT = Path(__file__).parents[1]
COMMANDS = sorted((ROOT / "dlf_dynamics" / "commands").glob("*.py"))
CORE = [*sorted((ROOT / "dlf_dynamics").glob("*.py")), *COMMANDS]
ANALYSIS = sorted((ROOT / "analysis").rglob("*.py"))


def imported(tree):
    """Names of the modules that the nodes below import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside_functions(tree):
    """The module without the bodies of its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Pass()]
    return tree


def without_imports_for_type_checkers(tree):
    """The module without what only type checkers see."""
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return tree


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_never_imports_the_analysis(path):
    tree = ast.parse(path.read_text())
    if path in COMMANDS:  # they load it when they are executed
        tree = without_imports_for_type_checkers(outside_functions(tree))
    if path.name == "__init__.py":  # names are loaded on first use
        tree = without_imports_for_type_checkers(tree)
    names = [name for name in imported(tree) if name.startswith("dlf_dynamics.analysis")]
    assert names == []


MATHEMATICS = ("bifurcation", "linalg", "stability", "theories")
"""Folders of the analysis that take a product, a map or an update, and know no run."""

OF_RUNS = {
    f"dlf_dynamics.{name}"
    for name in ("config", "hdf5", "loop", "parts", "recorder", "resultfile", "run", "source")
}


def module_file(name):
    """The file of a module of the project, or none."""
    place = ROOT.joinpath(*name.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file.resolve() for file in files if file.exists()), None)


@cache
def imports_of(path):
    """Modules of the project that a file imports when it is loaded, with their files."""
    tree = outside_functions(without_imports_for_type_checkers(ast.parse(path.read_text())))
    files = {name: module_file(name) for name in imported(tree) if name.startswith("dlf_dynamics.")}
    return {name: file for name, file in files.items() if file is not None}


def loaded_by(path):
    """Modules of the project that are loaded with a file, itself by way of others or not."""
    found, waiting = {}, [path]
    while waiting:
        new = {name: file for name, file in imports_of(waiting.pop()).items() if name not in found}
        found |= new
        waiting += new.values()
    return found


@pytest.mark.parametrize("folder", MATHEMATICS)
def test_the_mathematics_knows_no_run(folder):
    for path in sorted((ROOT / "analysis" / folder).glob("*.py")):
        tree = without_imports_for_type_checkers(ast.parse(path.read_text()))
        assert set(imported(outside_functions(tree))) & OF_RUNS == set(), path
        assert "dlf_dynamics.run" not in loaded_by(path), path


def test_no_two_modules_import_each_other():
    files = [path.resolve() for path in [*CORE, *ANALYSIS]]
    assert [path for path in files if path in loaded_by(path).values()] == []


def test_the_rules_above_can_fail():
    assert "dlf_dynamics.run" in loaded_by(ROOT / "analysis" / "spectra" / "spectrum.py")
    tree = ast.parse("def f():\n  from dlf_dynamics.analysis import ntk\n")
    assert "dlf_dynamics.analysis" in list(imported(tree))
    assert list(imported(outside_functions(tree))) == []


def code_lines(node):
    """Lines of a function, its docstring left out."""
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    lines = node.end_lineno - node.lineno + 1
    return lines - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


@pytest.mark.parametrize("path", [*CORE, *ANALYSIS], ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {f.name: code_lines(f) for f in functions if code_lines(f) > 40} == {}


def test_the_packages_are_the_folders():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = set()
    for folder, _, files in os.walk(ROOT / "dlf_dynamics", followlinks=True):
        if any(name.endswith(".py") for name in files):
            found.add(".".join(Path(folder).relative_to(ROOT).parts))
    assert found == set(project["tool"]["setuptools"]["packages"])


def test_the_folders_beside_the_package_are_linked_into_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package, folder in project["tool"]["setuptools"]["package-dir"].items():
        link = ROOT.joinpath(*package.split("."))
        assert link.resolve() == (ROOT / folder).resolve()


def test_the_file_format_page_holds_the_schema():
    page = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")
    assert schema.table() in page


def test_importing_the_package_does_not_import_jax():
    code = "import dlf_dynamics, dlf_dynamics.config, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
