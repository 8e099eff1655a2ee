"""What follows from the declaration of an analysis: shown with a small one that is added."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.config import BifurcationConfig, EdgeConfig, ExplainConfig, FlowConfig
from dlf_dynamics.registry import ANALYSES

DOCS = Path(__file__).parents[2] / "docs"

DECLARED = '''
"""Norms of the parameters along a run."""

import os
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from dlf_dynamics.analysis.pipeline import Analysis, Implementation
from dlf_dynamics.parts import in_parts
from dlf_dynamics.source import Source


@dataclass(frozen=True)
class NormConfig:
    """How norms are taken."""

    order: int = 2
    """Order of the norm."""


@dataclass(frozen=True)
class Values:
    """Norms at checkpoints.

    Attributes:
        steps: number of updates before each checkpoint.
        norms: norm of the parameters at each.
    """

    steps: Int[np.ndarray, " checkpoints"]
    norms: Float[np.ndarray, " checkpoints"]


@dataclass(frozen=True)
class Norms:
    """What was found.

    Attributes:
        source: state of the run.
        config: settings.
        values: norms.
    """

    source: Source
    config: NormConfig
    values: Values


def compute(run, config, *, parts, progress):
    def part(chosen):
        if "ONLY_ONE" in os.environ and chosen[0] > 0:
            raise KeyboardInterrupt
        print("made", chosen[0])
        norms = np.linalg.norm(run.parameters(chosen), config.order, axis=1)
        return Values(run.checkpoint_steps[chosen], norms)

    chosen = range(len(run.checkpoint_steps))
    values = in_parts(Values, part, chosen, 4, "norms", parts, progress)
    return Norms(run.source, config, values)


class Words:
    """The norms in words."""

    @staticmethod
    def lines(norms):
        return [f"largest {norms.values.norms.max():.12g}"]

    @staticmethod
    def as_dict(norms):
        return {"largest": float(norms.values.norms.max())}


class NormsDict(TypedDict):
    """What `norms --json` prints.

    Attributes:
        largest: norm of the parameters
    """

    largest: float


class NormAnalysis(Analysis):
    """Take norms of the parameters.

    They go to RUN.norms.h5.
    """

    name = "norms"
    config = NormConfig

    def implementation(self):
        total = lambda run, config: len(run.checkpoint_steps)
        return Implementation(Norms, compute, total, Words, NormsDict)

    def figures(self, run, found, view):
        figure = Figure()
        figure.subplots().plot(found.values.steps, found.values.norms)
        yield "norms", figure
'''

DRIVER = """
import os, sys
from dlf_dynamics.registry import ANALYSES, Entry

ANALYSES["norms"] = Entry("norms:NormAnalysis", "Take norms of the parameters.")

from dlf_dynamics import cli

sys.path[:0] = [sys.argv[1], "."]
import generate

print("== documentation")
print(generate.analyses(), generate.results())
for line in sys.stdin.read().splitlines():
    print("==", line, flush=True)
    only, _, options = line.rpartition(":")
    os.environ.update({"ONLY_ONE": "1"} if only else {})
    print("exit", cli.main(options.split()), flush=True)
    os.environ.pop("ONLY_ONE", None)
"""

COMMANDS = """\
--help
norms --help
only:norms run.h5
norms run.h5 --resume --json
norms run.h5 --order 1 --no-figures -o other.h5
norms run.h5 --order two
norms run.h5 --distributed
info run.norms.h5
validate run.norms.h5
plot run.h5 -o again.svg
report run.h5
"""


@pytest.fixture(scope="module")
def said(small, trained, tmp_path_factory):
    """What the program printed, by the command line; and where."""
    folder = tmp_path_factory.mktemp("norms")
    shutil.copyfile(trained(small).path, folder / "run.h5")
    (folder / "norms.py").write_text(DECLARED)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(DOCS)],
        input=COMMANDS,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = [part.partition("\n") for part in done.stdout.split("== ")[1:]]
    return {line: text for line, _, text in parts}, done.stderr, folder


def test_its_command_is_listed_and_explained(said):
    assert "Take norms of the parameters." in said[0]["--help"]
    explained = said[0]["norms --help"]
    assert "They go to RUN.norms.h5." in explained
    for option, meaning in {
        "--order INT": "Order of the norm.",
        "--resume": "Continue an",
    }.items():
        assert option in explained
        assert meaning in explained


def test_its_pages_are_written(said):
    page = said[0]["documentation"]
    assert "## dlf-dynamics norms" in page
    assert "| `largest` | norm of the parameters |" in page
    assert "| `/values/norms` | checkpoints | - | norm of the parameters at each. |" in page


def test_it_stops_goes_on_and_is_kept(said, small, trained):
    printed, complaints, folder = said
    assert printed["only:norms run.h5"] == "made 0\nexit 130\n"
    assert "continue with `dlf-dynamics norms run.h5 --resume`" in complaints
    resumed = printed["norms run.h5 --resume --json"]
    assert resumed.startswith("made 4\nmade 8\n{")
    expected = np.linalg.norm(trained(small).parameters(), axis=1)
    answer = json.loads(resumed.removeprefix("made 4\nmade 8\n").removesuffix("exit 0\n"))
    assert answer == {"largest": float(expected.max())}
    with h5py.File(folder / "run.norms.h5") as file:
        np.testing.assert_array_equal(file["values/norms"], expected)
        assert json.loads(file["config"][()]) == {"config": {"order": 2}}
    assert not (folder / "run.norms.parts").exists()


def test_its_settings_are_options_and_are_checked(said, small, trained):
    printed, complaints, folder = said
    largest = np.abs(trained(small).parameters()).sum(axis=1).max()
    assert (
        f"largest {largest:.12g}\nexit 0"
        in printed["norms run.h5 --order 1 --no-figures -o other.h5"]
    )
    assert (folder / "other.h5").exists()
    assert printed["norms run.h5 --order two"] == "exit 2\n"
    assert printed["norms run.h5 --distributed"] == "exit 2\n"
    assert "distributed: several processes cannot compute norms together" in complaints


def test_its_file_is_shown_checked_and_drawn(said):
    printed, _, folder = said
    assert "analysis: norms" in printed["info run.norms.h5"]
    assert "valid" in printed["validate run.norms.h5"]
    assert {"run.norms.png", "run.norms.svg", "again.norms.svg"} <= {
        p.name for p in folder.iterdir()
    }


def test_it_is_in_the_report_of_the_run(said, small, trained):
    printed, _, folder = said
    assert printed["report run.h5"] == "exit 0\n"
    largest = np.linalg.norm(trained(small).parameters(), axis=1).max()
    page = (folder / "run.report.html").read_text(encoding="utf-8")
    assert f"<li>largest {largest:.12g}</li>" in page


@pytest.fixture(scope="module")
def found(small, trained, analysed):
    """What each analysis of the registry finds."""
    from dlf_dynamics.analysis.bifurcation import compute_bifurcations
    from dlf_dynamics.analysis.edge.edge import compute_edge
    from dlf_dynamics.analysis.explanations.explanation import explain
    from dlf_dynamics.analysis.flow.flow import compute_flow

    config = BifurcationConfig(diagrams="none")
    return {
        "spectrum": analysed(small),
        "bifurcations": compute_bifurcations(trained(small), config),
        "explain": explain(trained(small), ExplainConfig(step=30)),
        "edge": compute_edge(trained(small), EdgeConfig(checkpoints=1)),
        "flow": compute_flow(trained(small), FlowConfig(steps="50:54", every=2, theories=False)),
    }


@pytest.mark.parametrize("name", ANALYSES)
def test_every_key_of_the_json_is_documented(name, found):
    analysis = analysis_named(name)
    assert list(analysis.as_dict(found[name])) == analysis.schema()["required"]
