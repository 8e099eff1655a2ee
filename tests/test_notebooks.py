"""The notebooks run, are what their paired scripts say, and show pictures."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.usefixtures("quick_compilation")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def sources(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_equals_its_paired_script(path):
    notebook = nbformat.read(path, as_version=4)
    assert sources(notebook) == sources(jupytext.read(path.with_suffix(".py")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_holds_pictures_and_no_errors(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]


# What a short version prints. The first burst of the published run starts at step 4,202; gradient
# descent on the squared error comes to its threshold and stays there.
SHORT = {
    "fig4": ({"FIG4_STEPS": "6000"}, r"seen in the loss from  4202"),
    "phase_diagram": (
        {"PHASE_STEPS": "300", "PHASE_SEEDS": "1", "PHASE_PROCESSES": "1"},
        r"12 runs, 12 complete",
    ),
    "bifurcation_diagrams": ({"BIFURCATION_VALUES": "40"}, r"flip at 3\.341930.*supercritical"),
    "edge_of_stability": ({"EDGE_STEPS": "1500"}, r"(0\.9[5-9]|1\.0[0-5])\d* of the threshold"),
}


# Jupyter's client and its transport leave sockets and event loops to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_runs_in_a_short_version(path, monkeypatch):
    settings, expected = SHORT[path.stem]
    for name, value in ({"NPROC": "1"} | settings).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert re.search(expected, printed)
