"""MkDocs hooks of this site: they generate reference pages, and provide a folder for examples.

Comments in a page are replaced by what the program says about itself, so that it stays true:
`<!-- help: train -->` by the help of a command, `<!-- analyses -->` by that of the commands of all
analyses with what they print as JSON, `<!-- results -->` by what their result files hold,
`<!-- schemas -->` by the JSON schemas of what is printed, `<!-- gallery -->` by the figures that
draw.py draws, `<!-- notebook: fig4 -->` by a notebook with the output of its cells,
`<!-- configuration: RunConfig -->` by the keys of a configuration, `<!-- presets -->` by the
presets, and `<!-- choices: linalg.eigensolver.Which -->` by the values of types of the analysis.
Examples are executed in an empty folder, which the pages of one build share. Pages without a
Markdown source are generated whole: `MADE`.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import nbformat
from nbconvert import MarkdownExporter

from dlf_dynamics import PRESETS, cli, codec, commandline, config, registry
from dlf_dynamics.analysis.infotypes import INFO
from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.jsontypes import document
from dlf_dynamics.labels import axis_names, descriptions, units_of

WIDTH = 100
"""Width of the printed help in characters; much wider, tyro sets it in two columns."""

_MARKER = re.compile(
    r"^<!-- (help|configuration|presets|choices|analyses|results|schemas|gallery|notebook)"
    r"(?::\s?([\w. -]*?))? -->$",
    re.MULTILINE,
)

_folder, _inside = contextlib.ExitStack(), contextlib.ExitStack()
_path = ""


def on_startup(**_: Any) -> None:
    """Makes executed commands find the program, and small problems use one thread."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("NPROC", "1")


def on_pre_build(**_: Any) -> None:
    """Makes the folder for the files that examples write."""
    global _path
    _path = _folder.enter_context(tempfile.TemporaryDirectory())


def on_post_build(**_: Any) -> None:
    """Deletes the folder."""
    _folder.close()


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Adds the pages that are generated here."""
    from mkdocs.structure.files import File

    for path, made in MADE.items():
        files.append(File.generated(config, path, content=made()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills the page in, and changes to the folder if it has code to execute."""
    if 'exec="on"' in markdown:
        _inside.enter_context(contextlib.chdir(_path))
    return _MARKER.sub(lambda found: GENERATORS[found[1]](found[2]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leaves the folder."""
    _inside.close()
    return html


def command_help(command: str) -> str:
    """The help of a command as Markdown: usage, description, and a list for each group of options.

    Args:
        command: its name, or empty for the program's own.
    """
    text = help_text(command)
    usage, _, description = re.split(r"^ \S", text, maxsplit=1, flags=re.M)[0].partition("\n")
    parts = ["```text", usage.removeprefix("usage: "), "```", "", *_paragraphs(description), ""]
    for title, entries in parse_groups(text).items():
        if title == "subcommands":
            continue
        parts += [f"**{title}**", ""]
        for name, meaning in entries:
            parts += [f"`{name}`", f":   {_escaped(meaning)}", ""]
    return "\n".join(parts)


def help_text(command: str) -> str:
    """What `dlf-dynamics COMMAND --help` prints."""
    with contextlib.redirect_stdout(printed := io.StringIO()), commandline.columns(WIDTH):
        cli.main([*([command] if command else []), "--help"])
    return printed.getvalue()


def parse_groups(text: str) -> dict[str, list[tuple[str, str]]]:
    """Options with their meaning by the title of their group, without line breaks.

    Raises:
        ValueError: when there is no option.
    """
    _, *parts = re.split(r"^ (\S[^\n]*?) *\n -+ *$", text, flags=re.MULTILINE)
    groups = {title: _entries(rows) for title, rows in zip(parts[::2], parts[1::2], strict=True)}
    if not any(groups.values()):
        raise ValueError(f"no options in the help:\n{text}")
    return groups


def _entries(rows: str) -> list[tuple[str, str]]:
    """Names begin at the margin, with their meanings beside or below them."""
    # Text above the line describes the group.
    lines = re.split(r"^  -+ *$", rows, flags=re.MULTILINE)[-1].splitlines()
    entries: list[tuple[str, str]] = []
    for line in (line[2:].rstrip() for line in lines if line.strip()):
        name, meaning = entries[-1] if entries else ("", "")
        if name.count("{") > name.count("}"):
            entries[-1] = name + line, meaning
        elif line.startswith(" "):
            entries[-1] = name, f"{meaning} {line.strip()}".strip()
        else:
            name, _, meaning = line.partition("  ")
            entries.append((name, meaning.strip()))
    return entries


def configuration(name: str) -> str:
    """Keys, types, defaults and meanings of a configuration, a table for each of its parts."""
    cls = getattr(config, name)
    parts = [_table(cls, "")]
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        part = hints[field.name]
        if dataclasses.is_dataclass(part):
            parts += ["", f"### {field.name}", "", inspect.getdoc(part) or "", ""]
            parts.append(_table(part, f"{field.name}."))
    return "\n".join(parts)


def presets(_: str | None = None) -> str:
    """The keys by which each preset differs from the defaults."""
    rows = ["| preset | keys that differ from the defaults |", "| --- | --- |"]
    plain = dict(flat(config.RunConfig()))
    for name, preset in PRESETS.items():
        changed = [f"`{key} = {v!r}`" for key, v in flat(preset) if v != plain[key]]
        rows.append(f"| `{name}` | {', '.join(changed) or 'none'} |")
    return "\n".join(rows)


def choices(names: str) -> str:
    """Allowed values of some types of the analysis, a row each."""
    rows = ["| type | values |", "| --- | --- |"]
    for name in names.split():
        module, _, kind = name.rpartition(".")
        values = get_args(getattr(importlib.import_module(f"dlf_dynamics.analysis.{module}"), kind))
        rows.append(f"| `{kind}` | {', '.join(f'`{value!r}`' for value in values)} |")
    return "\n".join(rows)


def analyses(_: str | None = None) -> str:
    """Help and JSON of the command of each analysis, a section each."""
    parts = []
    for name in registry.ANALYSES:
        parts += [f"## dlf-dynamics {name}", "", command_help(name), "`--json` prints:", ""]
        parts += ["| key | content |", "| --- | --- |"]
        keys = analysis_named(name).schema()["properties"]
        parts += [f"| `{key}` | {told['description']} |" for key, told in keys.items()]
        parts.append("")
    return "\n".join(parts)


def results(_: str | None = None) -> str:
    """The datasets of the result file of each analysis, a row each."""
    parts = []
    for name in registry.ANALYSES:
        found = analysis_named(name).implementation().result
        parts += [
            f"### Result of {name}",
            "",
            "| dataset | axes | units | content |",
            "| --- | --- | --- | --- |",
        ]
        parts += _datasets(found, "/")
        parts.append(
            "| `/config` | - | JSON | all other fields, with the settings of the analysis |"
        )
        parts.append("")
    return "\n".join(parts)


def schemas(_: str | None = None) -> str:
    """The JSON schema of each command's `--json` output, folded."""
    found = [analysis_named(name).schema() for name in registry.ANALYSES]
    found += [
        document(kind, f"dlf-dynamics info --json of a {name}") for name, kind in INFO.items()
    ]
    parts = []
    for schema in found:
        text = json.dumps(schema, indent=1, ensure_ascii=False)
        parts += [f"## {schema['title']}", "", "```json", text, "```", ""]
    return "\n".join(parts)


def notebook(name: str) -> str:
    """Text, code and output of a notebook of the repository, with its pictures inside."""
    path = Path(__file__).parents[1] / "notebooks" / f"{name}.ipynb"
    read = nbformat.read(path, as_version=4)
    read.metadata.language_info = {"name": "python"}  # not stored by the kernel
    text, resources = MarkdownExporter().from_notebook_node(read)
    for file, picture in resources["outputs"].items():
        data = base64.b64encode(picture).decode()
        text = text.replace(f"({file})", f"(data:image/png;base64,{data})")
    return text


def _datasets(kind: Any, group: str) -> Iterator[str]:
    """A row for each array of a record, then the rows of its nested records."""
    told, later = {name: text.replace("|", "\\|") for name, text in descriptions(kind).items()}, []
    for name, hint in codec.hints(kind).items():
        member, path = codec.member_type(hint), f"{group}{name}"
        if codec.is_array(hint):
            axes = ", ".join(axis_names(hint, len(getattr(hint, "dim_str", "").split())))
            units = units_of(kind, name)
            yield f"| `{path}` | {axes} | {'-' if units == '1' else units} | {told.get(name, '')} |"
        elif codec.is_table(hint):
            meaning = f"{told.get(name, '')} Columns: the fields of `{member.__name__}`."
            yield f"| `{path}/...` | rows | | {meaning} |"
        elif codec.is_grouped(hint):
            several = {list: "/0", dict: "/NAME"}.get(get_origin(hint), "")
            yield f"| `{path}{several}/...` | | | {told.get(name, '')} |"
            later += _datasets(member, f"{path}{several}/")
    yield from later


GENERATORS = {
    "analyses": analyses,
    "results": results,
    "schemas": schemas,
    "gallery": lambda _: _gallery(),
    "notebook": notebook,
    "help": command_help,
    "configuration": configuration,
    "presets": presets,
    "choices": choices,
}


def _gallery() -> str:
    """Figures with their commands, from the script that draws them."""
    return _beside("draw").gallery()


def _beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = {"concepts/burst.html": lambda: _beside("interactive").page()}
"""Pages without a source in Markdown, by their path in the site."""


def _paragraphs(text: str) -> Iterator[str]:
    """The description of a command; its examples become blocks of code."""
    for paragraph in re.split(r"\n{2,}", text.strip("\n")):
        if paragraph.startswith("  "):
            yield "```sh\n" + inspect.cleandoc(paragraph) + "\n```\n"
        else:
            yield _escaped(" ".join(paragraph.split())) + "\n"


def _escaped(text: str) -> str:
    """Options as code, with Markdown markup escaped elsewhere."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([<>*_\[\]|])", r"\\\1", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"(?<![\w-])--\w[\w.-]*\w", r"`\g<0>`", part) for part in parts[::2]]
    return "".join(parts)


def _table(cls: type, prefix: str) -> str:
    hints, default, meanings = get_type_hints(cls), cls(), dict(_field_docstrings(cls))
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        value = getattr(default, field.name)
        shown = "none" if value is None else f"`{_toml(value)}`"
        kind = _kind(hints[field.name])
        meaning = _escaped(meanings[field.name])
        rows.append(f"| `{prefix}{field.name}` | {kind} | {shown} | {meaning} |")
    return "\n".join(rows)


def _field_docstrings(cls: type) -> Iterator[tuple[str, str]]:
    """The strings below the fields of a dataclass."""
    (tree,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(text.value, ast.Constant)
            yield field.target.id, " ".join(str(text.value.value).split())


def _kind(hint: Any) -> str:
    """A type in words, or the choices."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_kind(get_args(hint)[0])}s"
    known = [a for a in get_args(hint) if a is not type(None)]
    if known:
        return f"{_kind(known[0])} or none"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[hint]


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of a configuration and of its parts, with their values."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from flat(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, inner
