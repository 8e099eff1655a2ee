"""The wheel: what is in it, and that it works on its own, away from the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def packages():
    """Each package's name and the folder that its files come from."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    moved = setuptools["package-dir"]
    return {name: ROOT / moved.get(name, name.replace(".", "/")) for name in setuptools["packages"]}


def run(*command, cwd, env=None):
    """Standard output of a Python command that must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_of_the_source(folder):
    """What a build needs, elsewhere, so that no earlier build is mixed in and none is left."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    no_caches = shutil.ignore_patterns("__pycache__")
    for name in ("dlf_dynamics", "analysis", "data"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=no_caches)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from the source distribution, as a release is; no network is used."""
    source = copy_of_the_source(tmp_path_factory.mktemp("source"))
    target = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", target, cwd=source)
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_of_every_package(names):
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in packages().items()
        for path in folder.glob("*.py")
    }
    assert expected
    assert expected <= names


def test_the_wheel_holds_the_bundled_data_and_the_mark_of_types(names):
    assert {
        "dlf_dynamics/data/digits.npz",
        "dlf_dynamics/data/sonnets.txt",
        "dlf_dynamics/data/authors_program_fig4.npz",
        "dlf_dynamics/data/published_figures.json",
        "dlf_dynamics/data/README.md",
        "dlf_dynamics/py.typed",
    } <= names


def test_the_wheel_holds_the_page_of_reports(names):
    folder = ROOT / "analysis" / "report"
    parts = {path.name for path in folder.iterdir() if path.suffix in (".html", ".css", ".js")}
    assert len(parts) == 3
    assert {f"dlf_dynamics/analysis/report/{name}" for name in parts} <= names


def test_the_wheel_takes_no_top_level_name_but_its_own(names):
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"dlf_dynamics"}


def test_the_wheel_names_its_licence_and_its_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "dlf-dynamics = dlf_dynamics.cli:main" in entry_points


@pytest.mark.slow
def test_the_wheel_alone_trains_and_computes_spectra(wheel, tmp_path):
    site = tmp_path / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", site, wheel, cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": str(site)}
    where = run("-c", "import dlf_dynamics.data as d; print(d.__file__)", cwd=tmp_path, env=env)
    assert Path(where.strip()).is_relative_to(site)
    digits = "from dlf_dynamics.datasets import digits; print(digits().inputs.shape)"
    assert run("-c", digits, cwd=tmp_path, env=env).strip() == "(1797, 64)"
    command = ("-m", "dlf_dynamics.cli")
    run(*command, "train", "--steps", "10", "-o", "run.h5", cwd=tmp_path, env=env)
    run(*command, "spectrum", "run.h5", cwd=tmp_path, env=env)
    assert (tmp_path / "run.h5").is_file()
    assert (tmp_path / "run.spectrum.h5").is_file()
    run(*command, "report", "run.h5", cwd=tmp_path, env=env)
    assert (tmp_path / "run.report.html").is_file()
