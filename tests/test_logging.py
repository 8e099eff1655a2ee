"""The sharpness in loggers, by the code that docs/own/logging.md gives."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlf_dynamics.opening import open_run
from dlf_dynamics.recorder import Recorder

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAGE = (Path(__file__).parents[1] / "docs" / "own" / "logging.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python[^\n]*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """What the page's first block leaves behind."""
    folder = tmp_path_factory.mktemp("logged")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(BLOCKS[0], found)
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    setup = found["problem"], found["optimizer"], found["params"]
    return SimpleNamespace(found=found, setup=setup, events=events, path=folder / "logged.h5")


def test_tensorboard_shows_the_sharpness_of_each_checkpoint(logged):
    run = open_run(logged.path, logged.setup)
    values = {tag: logged.events.Scalars(tag) for tag in logged.events.Tags()["scalars"]}
    assert values.keys() == {
        "loss",
        "sharpness/value",
        "sharpness/upper_bound",
        "sharpness/threshold",
    }
    points = run.recorded(np.arange(5))
    dense = [
        np.linalg.eigvalsh(jax.hessian(run.problem.objective)(p.params, 0))[-1] for p in points
    ]
    for name, events in values.items():
        assert [event.step for event in events] == [0, 50, 100, 150, 200], name
    logs = {name: np.array([event.value for event in events]) for name, events in values.items()}
    np.testing.assert_allclose(logs["sharpness/value"], dense, rtol=0.01)
    assert np.all(logs["sharpness/upper_bound"] * (1 + 1e-6) >= dense)
    np.testing.assert_allclose(logs["sharpness/threshold"], 40, rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], run.scalars["loss"][::50], rtol=1e-6)


class PrunedError(Exception):
    """In the place of Optuna's."""


def test_the_other_loggers_are_given_the_same(logged):
    run = open_run(logged.path, logged.setup)
    (row,) = run.recorded(np.array([0]))
    checkpoint = SimpleNamespace(
        step=row.step, params=run.unravel(row.params), opt_state=logged.found["state"]
    )
    told = []
    trial = SimpleNamespace(report=lambda *args: told.append(args), should_prune=lambda: True)
    names = {name: logged.found[name] for name in ("problem", "optimizer", "stability")}
    names |= {"wandb": SimpleNamespace(log=lambda values, step: told.append((values, step)))}
    names |= {"trial": trial, "optuna": SimpleNamespace(TrialPruned=PrunedError)}
    exec(BLOCKS[1], names)
    names["log"](checkpoint)
    exec(BLOCKS[2], names)
    with pytest.raises(PrunedError):
        names["log"](checkpoint)
    (values, step), (ratio, _) = told
    assert (step, values["threshold"], values["verdict"]) == (0, pytest.approx(40), "stable")
    assert ratio == pytest.approx(values["sharpness"] / 40)


def test_an_error_of_the_function_ends_the_run_with_what_was_recorded(logged, tmp_path):
    problem, _, params = logged.setup
    path, seen = tmp_path / "run.h5", []

    def fail(checkpoint):
        seen.append(checkpoint.step)
        if checkpoint.step == 4:
            raise PrunedError

    def loop():
        with Recorder(path, problem, optimizer=None, every=2, on_record=fail) as recorder:
            for step in range(9):
                recorder.record(step, params, loss=1.0)

    with pytest.raises(PrunedError):
        loop()
    run = open_run(path, (problem, None, params))
    assert (seen, run.status) == ([0, 2, 4], "interrupted")
    assert run.checkpoint_steps.tolist() == [0, 2, 4]
