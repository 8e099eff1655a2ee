"""What runs on GitHub asks for the versions that the project names elsewhere."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()


def loaded(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_a_commit_is_checked_by_the_pinned_ruff():
    (ruff,) = loaded(".pre-commit-config.yaml")["repos"]
    assert f"\nruff=={ruff['rev'].removeprefix('v')}\n" in CONSTRAINTS


def test_the_oldest_python_and_jax_that_are_allowed_are_tested():
    matrix = loaded(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert f'requires-python = ">={matrix["python"][0]}"' in PROJECT
    asked = [case["jax"] for case in matrix["include"]]
    (lowest,) = re.findall(r'"jax>=([\d.]+),', PROJECT)
    assert asked == [f"=={lowest}.0", f">={lowest}"]


@pytest.mark.parametrize("name", ["bug", "wrong-number"])
def test_an_issue_has_the_versions(name):
    form = loaded(f".github/ISSUE_TEMPLATE/{name}.yml")
    labels = [part["attributes"]["label"] for part in form["body"]]
    assert "The output of `dlf-dynamics info`" in labels
