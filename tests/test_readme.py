"""What the README shows works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

from dlf_dynamics import commandline

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_examples_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, namespace)
    # The headline run's first burst starts at step 4,202.
    assert "burst_start=4202" in capsys.readouterr().out


def commands():
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("dlf-dynamics ")]


@pytest.mark.parametrize("command", commands())
def test_the_commands_have_valid_options(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commandline.parse(shlex.split(command)[1:]).execute


def test_the_first_screen_has_the_two_commands_and_the_figure():
    first = "\n".join(README.splitlines()[:40])
    assert "make demo" in first
    assert "make test" in first
    assert "dlf-dynamics spectrum run.h5" in first
    assert "docs/figures/instabilities.png" in first
    assert "docs/figures/headline.png" in first


def test_the_files_that_it_links_to_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
