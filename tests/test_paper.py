"""The paper: its form, its citations and figures, and that other places say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import dlf_dynamics

ROOT = Path(__file__).parents[1]
PAPER = (ROOT / "paper/paper.md").read_text(encoding="utf-8")
_, HEADER, BODY = PAPER.split("---\n", 2)
METADATA = yaml.safe_load(HEADER)
BIBLIOGRAPHY = (ROOT / "paper" / METADATA["bibliography"]).read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

SECTIONS = [  # that the journal asks for, in its order
    "Summary",
    "Statement of need",
    "State of the field",
    "Software design",
    "Research impact statement",
    "AI usage disclosure",
    "Acknowledgements",
    "References",
]
FEWEST_WORDS, MOST_WORDS = 750, 1750
FIELDS = {"title", "author", "year"}

ENTRIES = dict(re.findall(r"^@\w+\{([^,\s]+),\n(.*?)^\}", BIBLIOGRAPHY, re.MULTILINE | re.DOTALL))


def test_it_has_the_sections_that_the_journal_asks_for():
    found = re.findall(r"^# (.+)$", BODY, re.MULTILINE)
    assert [section for section in found if section in SECTIONS] == SECTIONS


def test_its_length_is_what_the_journal_takes():
    words = re.sub(r"\{[^}]*\}|\]\([^)]*\)|\\label|\|", " ", BODY).split()
    assert FEWEST_WORDS <= sum(bool(re.search(r"\w", word)) for word in words) <= MOST_WORDS


def test_each_citation_is_an_entry_and_each_entry_is_cited():
    assert ENTRIES.keys() == set(re.findall(r"@(\w+)", BODY))


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_can_be_found_by_its_readers(key):
    fields = set(re.findall(r"^\s+(\w+)\s*=", ENTRIES[key], re.MULTILINE))
    assert fields >= FIELDS
    assert {"doi", "url"} & fields


def test_papers_that_citation_cff_names_are_cited_by_the_same_titles():
    titles = " ".join(re.sub(r"[{}]", "", BIBLIOGRAPHY).split())
    for reference in CITATION["references"]:
        assert f"title = {' '.join(reference['title'].split())}," in re.sub(r"\s+=", " =", titles)


def test_its_figures_are_those_of_the_documentation():
    figures = re.findall(r"\]\(([^)\s]+\.png)\)", BODY)
    assert figures
    for figure in figures:
        assert (ROOT / "paper" / figure).resolve().is_relative_to(ROOT / "docs/figures")
        assert (ROOT / "paper" / figure).is_file()


def test_tables_and_figures_that_it_points_to_are_there():
    labels = re.findall(r"\\label\{([^}]+)\}", BODY)
    assert len(labels) == len(set(labels))
    assert set(re.findall(r"\\autoref\{([^}]+)\}", BODY)) == set(labels)


def test_it_names_the_version_that_the_project_has():
    assert f"describes version {PROJECT['version']}." in " ".join(BODY.split())
    assert PROJECT["version"] == CITATION["version"] == dlf_dynamics.__version__


def test_the_release_notes_know_version_and_date_of_the_citation():
    assert f"## [{CITATION['version']}] - {CITATION['date-released']}\n" in CHANGELOG


def test_title_licence_and_keywords_are_the_same_everywhere():
    assert METADATA["title"] == CITATION["title"]
    name, subtitle = CITATION["title"].split(": ")
    assert name == PROJECT["name"]
    assert PROJECT["description"].lower().startswith(subtitle)
    assert PROJECT["license"] == CITATION["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert set(PROJECT["keywords"]) == set(CITATION["keywords"]) <= set(METADATA["tags"])


def test_the_number_of_optimizers_with_a_threshold_is_that_of_the_page_about_them():
    page = (ROOT / "docs/concepts/stability.md").read_text(encoding="utf-8")
    table = page.split("### The optimizers of optax")[1]
    rows = re.findall(
        r"^\| `([a-z]\w+)` \| (\S+) \|", table.split("`apply_every`")[0], re.MULTILINE
    )
    known = [name for name, value in rows if value != "none"]
    assert f"{len(known)} of the {len(rows)} optimizers of optax" in " ".join(BODY.split())
