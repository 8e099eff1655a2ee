"""The problem of a recorded run on the command line: how it is named, found and refused."""

import json
import re
import sys
import textwrap

import pytest

from dlf_dynamics.cli import main
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.loop import load_setup
from dlf_dynamics.opening import open_run

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODULE = """
    import jax
    import jax.numpy as jnp
    import optax
    from dlf_dynamics import Problem, Recorder

    INPUTS = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 4.0]])
    TARGETS = jnp.array([0.0, 1.0, 1.5, 3.0])

    def setup(rate=0.1):
        problem = Problem(lambda w, x: x @ w, lambda f, y: (f - y) ** 2, INPUTS, TARGETS)
        return problem, optax.sgd(rate), jnp.zeros(2)

    def other():
        return setup(0.2)

    def failing():
        return {}["missing"]

    def half():
        return setup()[0]

    def train(path, rate=0.1):
        problem, optimizer, params = setup(rate)
        state = optimizer.init(params)
        with Recorder(path, problem, optimizer=optimizer, every=2) as run:
            for step in range(9):
                run.record(step, params, state)
                slope = jax.grad(problem.objective)(params, step)
                change, state = optimizer.update(slope, state, params)
                params = params + change
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A module of the user's own, and the run that it recorded."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "linear_model.py").write_text(textwrap.dedent(MODULE))
    module = load_setup.__globals__["_imported"](str(folder / "linear_model.py"))
    module.train(folder / "own.h5")
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))


# The Hessian of the mean squared error of a linear model, (2/N) XᵀX, is [[2, 3.5], [3.5, 10.5]].
LARGEST = 6.25 + (4.25**2 + 3.5**2) ** 0.5


@pytest.mark.parametrize("name", ["linear_model.py:setup", "linear_model:setup"])
def test_a_spectrum_takes_the_problem_from_a_file_or_a_module(name, capsys):
    assert main(["spectrum", "own.h5", "--problem", name, "--json", "--no-figures", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["largest_sharpness_at_centres"] == pytest.approx(LARGEST, rel=1e-9)
    assert found["threshold"]["first"] == pytest.approx(20, rel=1e-9)
    assert found["oscillations_known"] is False


def test_all_other_commands_take_it_too(capsys, folder, require_schema):
    problem = ["--problem", "linear_model.py:setup"]
    assert main(["spectrum", "own.h5", *problem, "--quiet"]) == 0
    assert main(["plot", "own.h5", *problem, "-o", "again"]) == 0
    assert (folder / "again.png").stat().st_size > 10_000
    assert main(["bifurcations", "own.h5", *problem, "--every", "2", "--quiet"]) == 0
    assert main(["check", "own.h5", *problem, "--every", "2", "--fail-on-crossing"]) == 0
    assert "below" in capsys.readouterr().out
    assert main(["info", "own.h5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    require_schema(told, "run")
    assert told["recording"]["full_batch"] is True
    assert main(["validate", "own.h5"]) == 0
    assert main(["repair", "own.h5"]) == 0
    assert open_run("own.h5", load_setup("linear_model.py:setup")).checkpoint_steps[-1] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            [],
            "recorded in a custom training loop, and does not hold its model; give it with --",
        ),
        (["--problem", "linear_model.py:other"], "2 updates of its optimizer from step 0 do not"),
        (["--problem", "linear_model.py:setups"], "has no function 'setups'; it has"),
        (["--problem", "linear_model.py"], "expected module:function or file.py:function"),
        (["--problem", "linear.py:setup"], "problem file linear.py does not exist"),
        (["--problem", "no_such_module:setup"], "could not be imported: ModuleNotFoundError"),
        (["--problem", "linear_model.py:failing"], "failing failed: KeyError: 'missing'"),
        (["--problem", "linear_model.py:half"], r"returned Problem; expected \(problem, optimizer"),
    ],
)
def test_a_problem_that_cannot_be_used_is_one_line_and_exit_code_2(options, words, capsys):
    assert main(["spectrum", "own.h5", *options, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line), line


def test_a_run_of_train_needs_no_problem_and_a_recording_cannot_be_resumed(capsys):
    assert main(["train", "--resume", "-o", "own.h5"]) == 2
    assert "only a run of `dlf-dynamics train` can do this" in capsys.readouterr().err


def test_a_name_without_a_function_is_refused():
    with pytest.raises(ConfigError, match="problem is 'mymodel'; expected module:function"):
        load_setup("mymodel")
