"""The examples run, in short versions, and say what they should."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from dlf_dynamics import open_run
from dlf_dynamics.analysis.linalg import eigensolver
from dlf_dynamics.problem import Problem

pytest.importorskip("equinox")
pytest.importorskip("haiku")
pytest.importorskip("flax")

pytestmark = pytest.mark.usefixtures("quick_compilation", "host_loop")

SLOW = pytest.mark.slow
ROOT = Path(__file__).parents[1]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "docs" / "examples").glob("*.py"))}
CIFAR = ROOT.parent / "shared" / "data" / "cifar10_10k.npz"


@pytest.fixture
def host_loop(monkeypatch):
    """The eigensolver that is compiled sooner."""
    monkeypatch.setattr(eigensolver, "PASS_SIZE", 0)


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unjudged(example):
    """The example without the eigenvalues, which take long to be compiled."""
    example.stability = example.sharpness = lambda *args, **options: None
    return example


@pytest.mark.skipif(not CIFAR.exists(), reason="the images are not here")
def test_a_convolution_trains_on_local_images(tmp_path, monkeypatch):
    example, path = unjudged(load("cifar_conv")), tmp_path / "run.h5"
    example.main(path, steps=2, data=CIFAR, examples=2)
    assert open_run(path).checkpoint_steps.tolist() == [0]
    monkeypatch.setenv("CIFAR10", str(CIFAR))
    problem, _, params = example.setup(examples=2)
    assert problem.inputs.shape == (2, 32, 32, 3)
    assert problem.inputs.dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@SLOW
@pytest.mark.skipif(not CIFAR.exists(), reason="the images are not here")
def test_a_convolution_is_judged(tmp_path):
    found = load("cifar_conv").main(tmp_path / "run.h5", steps=2, data=CIFAR, examples=2)
    assert found.converged
    assert found.threshold == pytest.approx(20)


def judge(run, found, last):
    """The run was recorded to its end, and what was found there is certain."""
    assert run.status == "complete"
    assert run.checkpoint_steps[-1] == last
    assert found.converged
    assert found.verdict in ("stable", "unstable")
    assert found.interval[0] <= found.value <= found.interval[1]


@pytest.mark.parametrize(
    "name", ["flax_mlp", "equinox_mlp", "haiku_mlp", pytest.param("transformer", marks=SLOW)]
)
def test_models_of_frameworks_train_in_loops_of_their_own(name, tmp_path):
    example, path = unjudged(load(name)), tmp_path / "run.h5"
    example.main(path, steps=21)
    problem, optimizer, params = example.setup()
    assert isinstance(problem, Problem)
    run = open_run(path, (problem, optimizer, params))
    assert run.checkpoint_steps[-1] == 20
    assert run.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert run.scalars["loss"][-1] < run.scalars["loss"][0]


@SLOW
@pytest.mark.parametrize("name", ["flax_mlp", "equinox_mlp", "haiku_mlp", "transformer"])
def test_they_are_judged(name, tmp_path):
    example, path = load(name), tmp_path / "run.h5"
    found = example.main(path, steps=21)
    judge(open_run(path, example.setup()), found, last=20)
    if name == "transformer":
        assert found.label.endswith("frozen preconditioner")
        # (2 + 2β₁) / ((1 - β₁) η) of Adam.
        assert found.threshold == pytest.approx(38 / 3e-3, rel=1e-6)


def test_a_chain_has_the_threshold_of_its_schedule(tmp_path, capsys):
    example = load("optax_chain")
    found = example.main(tmp_path / "run.h5", steps=51)
    rates = 0.1 * (0.9 * (1 + np.cos(np.pi * np.array([0, 50]) / 500)) / 2 + 0.1)
    # Decay adds 0.001 to every eigenvalue of the Hessian.
    expected = 2 * 1.9 / rates - 1e-3
    assert [f.threshold for f in found] == pytest.approx(expected, rel=1e-6)
    assert capsys.readouterr().out.count("threshold") == 2


def test_a_scan_records_every_step(tmp_path):
    example, path = load("scan_loop"), tmp_path / "run.h5"
    found = example.main(path, steps=40)
    run = open_run(path, example.setup())
    judge(run, found, last=30)
    assert run.steps.tolist() == list(range(40))
    assert np.all(np.diff(run.scalars["loss"]) < 0)


def test_relu_and_smooth_networks_are_compared(tmp_path, capsys):
    example = load("relu_or_smooth")
    example.ACTIVATIONS = ("tanh",)
    table = example.main(tmp_path / "run.h5", steps=12)
    assert len(table["tanh"]) == 6
    assert all(found.converged for found in table["tanh"])
    assert "tanh      loss" in capsys.readouterr().out
    assert open_run(tmp_path / "run.tanh.h5").status == "complete"


def test_a_gpt_learns_the_text_and_has_a_certified_spectrum(tmp_path, monkeypatch):
    example, path = load("gpt"), tmp_path / "run.h5"
    small = {"vocabulary": 61, "layers": 2, "width": 8, "heads": 2}
    options = {"examples": 3, "context": 12, "size": small}
    # It takes long to be compiled, and is as in the other examples.
    monkeypatch.setattr(example, "top_hessian", lambda problem, params, *k, **tol: params)
    after = example.main(path, steps=61, optimizer=optax.adam(0.01), **options)
    problem, none, params = example.setup(**options)
    outputs = jax.jit(problem.apply)(params, problem.inputs)
    assert outputs.shape == (3, 12, 61)
    # A letter is predicted from those up to it, and the next one is what is to be predicted.
    changed = problem.inputs.at[:, 6].add(1) % 61
    difference = np.abs(jax.jit(problem.apply)(params, changed) - outputs).max(axis=(0, 2))
    assert np.all(difference[:6] == 0)
    assert np.all(difference[6:] > 0)
    assert np.array_equal(problem.inputs[:, 1:], problem.targets[:, :-1])
    run = open_run(path, (problem, none, params))
    assert run.checkpoint_steps.tolist() == [0, 50]
    assert run.scalars["loss"][0] == pytest.approx(np.log(61), rel=0.1)
    assert problem.objective(after, 0) < 0.9 * problem.objective(params, 0)


def test_the_gpts_have_the_sizes_that_are_said(monkeypatch):
    example = load("gpt")
    for size, expected in (
        (example.SIZE | {"context": 64}, 10_669_824),
        # GPT-2 small has 124.4 million, 0.1 of them biases and scales that are not here.
        ({"vocabulary": 50_257, "context": 1024, "layers": 12, "width": 768, "heads": 12}, 124.3e6),
    ):
        init, _ = example.gpt(**size)
        shapes = jax.eval_shape(init, jax.random.key(0))
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
        assert count == pytest.approx(expected, rel=1e-3 if isinstance(expected, float) else 0)


@SLOW
def test_the_benchmark_of_large_models_measures_a_small_one(tmp_path):
    script = ROOT / "benchmarks" / "large.py"
    options = ["--sizes", "1e5", "--examples", "2", "--context", "16", "--steps", "2"]
    command = [sys.executable, script, *options, "-o", tmp_path / "large"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = json.loads((tmp_path / "large.json").read_text(encoding="utf-8"))
    assert [row["micro_batches"] for row in rows] == [1, 2]
    assert {row["parameters"] for row in rows} == {103_552}
    assert all(row["status"] == ["converged"] * 3 for row in rows), done.stderr
    np.testing.assert_allclose(*[row["eigenvalues"] for row in rows], rtol=1e-4)
    assert (tmp_path / "large.md").read_text(encoding="utf-8").count("\n| 103,552 |") == 2
    assert "all converged: True" in done.stdout


def test_every_example_is_short_and_says_how_it_is_started():
    assert len(EXAMPLES) == 11
    for name, path in EXAMPLES.items():
        text = path.read_text(encoding="utf-8")
        # The model of the one and the orbit of the other are their own.
        assert len(text.splitlines()) < {"gpt": 110, "closed_orbit": 150}.get(name, 60)
        assert f"python docs/examples/{name}.py" in text


@SLOW
def test_the_orbit_of_a_regression_flips_as_its_multiplier_says():
    example = load("closed_orbit")
    map_ = example.cycle_map()
    (before, stable, shrinks), (after, unstable, grows) = example.main(rates=(0.65, 0.7))
    assert (stable.stability, stable.crossing) == ("stable", "")
    assert (unstable.stability, unstable.crossing) == ("unstable", "flip")
    for rate, found, sizes, orbit in zip(
        (before, after),
        (stable, unstable),
        (shrinks, grows),
        example.orbits(map_, (0.65, 0.7)),
        strict=True,
    ):
        assert found.closed
        assert found.neutral == 0
        dense = np.linalg.eigvals(jax.jacfwd(map_)(orbit, rate))
        largest = dense[np.argmax(np.abs(dense))]
        np.testing.assert_allclose(found.multipliers[0], largest, rtol=1e-9)
        np.testing.assert_allclose(sizes[6] / sizes[5], abs(largest), rtol=1e-3)
    np.testing.assert_allclose(stable.multipliers[0], -0.60266, atol=1e-5)
    np.testing.assert_allclose(unstable.multipliers[0], -1.78509, atol=1e-5)


@SLOW
def test_beyond_the_flip_a_run_returns_after_two_cycles_and_not_after_one(tmp_path):
    example = load("closed_orbit")
    start = np.zeros(9)
    run = example.record(tmp_path / "run.h5", start, example.AFTER, steps=example.CYCLE * 80)
    found = example.pulse_map(run, cycle=78)
    assert not found.closed
    assert found.multipliers.size == 0
    params = run.parameters()[[-1, -1 - example.CYCLE, -1 - 2 * example.CYCLE]]
    assert np.linalg.norm(params[0] - params[1]) > 0.05
    assert np.linalg.norm(params[0] - params[2]) < 1e-9
