"""The documentation: its navigation, its links, and that nothing public is missing in it."""

import ast
import importlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import dlf_dynamics
from dlf_dynamics import PRESETS, analysis, commandline, config
from dlf_dynamics.analysis import bifurcation
from dlf_dynamics.commands import COMMANDS
from dlf_dynamics.registry import ANALYSES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_LINKS = [*PAGES, ROOT / "README.md"]


class _Site(yaml.SafeLoader):
    """Reads mkdocs.yml whatever tags of Python it has."""


_Site.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Site)


def load(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate():
    return load("generate")


def listed(nav):
    for entry in nav:
        for inner in entry.values():
            yield from [inner] if isinstance(inner, str) else listed(inner)


def without_code(text):
    """The text with its blocks of code left out, in which nothing is a heading or a link."""
    text = re.sub(r"^(```+).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda found: found[0].strip("`").replace("[", "("), text)


def anchors(page):
    """As MkDocs makes them of the headings."""
    for heading in re.findall(r"^#+ (.*)$", without_code(page.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading, flags=re.ASCII).strip().lower()
        yield re.sub(r"[-\s]+", "-", plain)


def links(page):
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8")))
    return [link for link in found if "://" not in link]


def test_the_navigation_lists_every_page_once():
    assert sorted(listed(SITE["nav"])) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize("page", WITH_LINKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page, generate):
    made = {(DOCS / path).resolve() for path in generate.MADE}
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() or target in made, link
        assert not anchor or anchor in anchors(target), link


def test_the_rule_above_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading: of `code`\n\n[a](no.md) [b](#a-heading-of-code)\n")
    assert links(page) == ["no.md", "#a-heading-of-code"]
    assert list(anchors(page)) == ["a-heading-of-code"]


def test_every_command_is_in_the_reference():
    page = (DOCS / "reference" / "command-line.md").read_text("utf-8")
    assert "<!-- analyses -->" in page  # of which each has a section
    others = [name for name in COMMANDS if name not in ANALYSES]
    assert re.findall(r"^## dlf-dynamics (\S+)$", page, re.MULTILINE) == others
    assert re.findall(r"^<!-- help: (\S+) -->$", page, re.MULTILINE) == others


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_is_read_whole(generate, command):
    text = generate.help_text(command)
    entries = [entry for group in generate.parse_groups(text).values() for entry in group]
    options = {name for entry, _ in entries for name in re.findall(r"--[\w.-]+", entry)}
    assert options == set(re.findall(r"^  (?:-\w .*)?(--\w[\w.-]*)", text, re.MULTILINE)) | {
        "--help"
    }
    assert all(name and meaning for name, meaning in entries)


def commands():
    """What the pages tell the reader to type, but variables and completions of the shell."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    typed = (re.split(r" [#>] ?", line)[0].strip() for line in lines)
    return sorted({line for line in typed if re.match(r"dlf-dynamics (?!--tyro)[^$]+$", line)})


@pytest.mark.parametrize("command", commands())
def test_commands_have_valid_options(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rings.toml").write_text("steps = 1200\n")
    words = shlex.split(command)[1:]
    if "--resume" not in words or words[0] != "train":  # that would look for the run
        assert commandline.parse(words).execute


def test_every_key_of_the_configuration_is_shown_with_its_meaning(generate):
    page = (DOCS / "reference" / "configuration.md").read_text("utf-8")
    names = re.findall(r"^<!-- configuration: (\S+) -->$", page, re.MULTILINE)
    assert names == [
        "RunConfig",
        "SpectrumConfig",
        "BifurcationConfig",
        "ExplainConfig",
        "EdgeConfig",
        "FlowConfig",
        "ImportConfig",
    ]
    for name in names:
        keys = [key for key, _ in generate.flat(getattr(config, name)())]
        rows = re.findall(
            r"^\| `([\w.]+)` \| .+ \| .+ \| .+ \|$", generate.configuration(name), re.M
        )
        assert sorted(rows) == sorted(keys)
    for name in PRESETS:
        assert f"`{name}`" in generate.presets()


@pytest.mark.parametrize("module", [dlf_dynamics, analysis, bifurcation], ids=lambda m: m.__name__)
def test_every_public_name_is_in_the_reference(module):
    text = "\n".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    patterns = (r"^::: [\w.]*\.(\w+)$", r"`(\w+)`", r"^<!-- configuration: (\w+) -->$")
    shown = {name for pattern in patterns for name in re.findall(pattern, text, re.MULTILINE)}
    public = {name for name in module.__all__ if not name.startswith("__")}
    assert public - shown == set()


def test_the_reference_is_small_enough_to_be_kept():
    """What it names is what users may rely on; the rest of the code may change any day."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    public = set()
    for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        module = ROOT / f"{name.replace('dlf_dynamics.analysis', 'analysis').replace('.', '/')}.py"
        if module.exists():
            body = ast.parse(module.read_text("utf-8")).body
            named = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            public |= {f"{name}.{n.name}" for n in named if not n.name.startswith("_")}
        else:
            parent, _, own = name.rpartition(".")
            assert hasattr(importlib.import_module(parent), own), name
            public.add(name)
    assert 100 < len(public) <= 200


def test_doctests_become_blocks_of_code():
    pytest.importorskip("griffe")
    ready = load("docstrings").ready
    assert ready("Of <w, q>, `a < b`.\n\n>>> 1 + 1  # doctest: +SKIP\n2\n\nMore.") == (
        "Of &lt;w, q>, `a < b`.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore."
    )


@pytest.fixture(scope="module")
def draw():
    return load("draw")


def test_every_figure_of_the_pages_is_drawn_by_make_figures(draw):
    folder = DOCS / "figures"
    assert {f"{figure.kept}.png" for figure in draw.FIGURES} == {p.name for p in folder.iterdir()}
    for path in folder.iterdir():
        assert path.stat().st_size <= draw.LARGEST


def test_the_commands_of_make_figures_make_what_it_takes(draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in draw.COMMANDS:
        assert commandline.parse(shlex.split(command)).execute
    made = {command.split("-o ")[1] for command in draw.COMMANDS if command.startswith("train")}
    sources = {figure.commands[-1].split()[1] for figure in draw.FIGURES}
    assert sources == made | {"study.h5"}
    assert "sweep study.toml" in draw.COMMANDS


def test_the_gallery_shows_every_figure_with_the_commands_below_it(draw, generate):
    page = generate.on_page_markdown((DOCS / "gallery.md").read_text("utf-8"))
    for figure in draw.FIGURES:
        picture = page.index(f"](figures/{figure.kept}.png)")
        for command in figure.commands:
            assert page.index(f"dlf-dynamics {command}\n", picture) - picture < 600
    assert draw.STUDY.strip() in page


def test_a_large_picture_becomes_a_small_one_that_looks_the_same(draw):
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 1), dtype=np.uint8)
    picture, content = Image.fromarray(np.repeat(noise, 3, axis=2)), io.BytesIO()
    picture.save(content, "png", compress_level=0)
    small = draw.shrink(content.getvalue())
    assert len(small) < draw.LARGEST < len(content.getvalue())
    again = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"), float)
    assert np.mean(np.abs(again - np.asarray(picture, float))) < 1
    assert draw.shrink(small) == small
