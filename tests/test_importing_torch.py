"""Checkpoints of PyTorch: what follows from them is what PyTorch itself does next."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import Problem, import_checkpoints
from dlf_dynamics.checkpoint_files import read_checkpoint
from dlf_dynamics.config import ImportConfig
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.losses import cross_entropy
from dlf_dynamics.opening import open_run

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("quick_compilation")]

INPUTS = np.random.default_rng(0).standard_normal((12, 2))
LABELS = np.arange(12) % 3
STEPS = (0, 3, 20)

# Each with the optax transformation of the same rule.
OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.1), optax.sgd(0.1)),
    "momentum": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.8), optax.sgd(0.1, momentum=0.8)),
    "adam": (lambda p: torch.optim.Adam(p, 0.01), optax.adam(0.01)),
    "adamw": (
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
        optax.adamw(0.01, weight_decay=0.1),
    ),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, 0.01, alpha=0.9),
        optax.rmsprop(0.01, decay=0.9, eps_in_sqrt=False),
    ),
}


def network():
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    return torch.nn.Sequential(*layers).double()


def apply(params, inputs):
    hidden = jnp.tanh(inputs @ params["0.weight"].T + params["0.bias"])
    return hidden @ params["2.weight"].T + params["2.bias"]


def setup(optimizer):
    params = {name: leaf.detach().numpy() for name, leaf in network().named_parameters()}
    problem = Problem(apply, cross_entropy, jnp.asarray(INPUTS), jnp.asarray(LABELS))
    return problem, optimizer, params


def trained(optimizer_of, keep):
    """Trains in PyTorch; `keep` gets step, module and optimizer before each update."""
    module = network()
    optimizer = optimizer_of(module.parameters())
    inputs, labels = torch.tensor(INPUTS), torch.tensor(LABELS)
    for step in range(STEPS[-1] + 2):
        keep(step, module, optimizer)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()


def vector(module):
    """Parameters in the order of their names, as JAX has those of a dictionary."""
    named = sorted(module.named_parameters())
    return np.concatenate([leaf.detach().numpy().ravel() for _, leaf in named])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_update_is_the_one_that_pytorch_makes(name, tmp_path):
    make, rule = OPTIMIZERS[name]
    visited = {}

    def keep(step, module, optimizer):
        visited[step] = vector(module)
        if step in STEPS[1:]:
            content = {"epoch": 7, "model": module.state_dict(), "optim": optimizer.state_dict()}
            torch.save(content, tmp_path / f"step{step}.pt")

    trained(make, keep)
    found = import_checkpoints([tmp_path], setup(rule), tmp_path / "run.h5")
    assert found.steps == list(STEPS[1:])
    run = open_run(tmp_path / "run.h5", setup(rule))
    for row in run.recorded(np.arange(2)):
        np.testing.assert_array_equal(row.params, visited[row.step])
        np.testing.assert_allclose(advanced(run, row), visited[row.step + 1], rtol=0, atol=1e-12)


def advanced(run, row):
    """Parameters after one more full-batch update of the run's optimizer."""
    state = run.dynamics.restored(row)
    slope = jax.grad(run.problem.objective)(state.params, 0)
    change, _ = run.dynamics.update(slope, state.optimizer_state, state.params)
    return state.params + change


def test_a_state_dict_alone_has_parameters_and_no_state(tmp_path):
    module = network()
    wrapped = {f"module.{name}": leaf for name, leaf in module.state_dict().items()}
    torch.save(wrapped, tmp_path / "epoch_4.pth")
    found = import_checkpoints([tmp_path], setup(optax.adam(0.01)), tmp_path / "run.h5")
    assert found.steps == [4]
    assert "no state of the optimizer was taken from the checkpoints" in found.notes[-1]
    (row,) = open_run(tmp_path / "run.h5", setup(optax.adam(0.01))).recorded(np.array([0]))
    np.testing.assert_array_equal(row.params, vector(module))


def saved(path, make):
    """A checkpoint after three updates of an optimizer."""

    def keep(step, module, optimizer):
        if step == 3:
            content = {"model": module.state_dict(), "optim": optimizer.state_dict()}
            torch.save(content, path)

    trained(make, keep)


def groups(order, *, named):
    """An Adam with two groups of parameters, weights and biases."""

    def make(params):
        pairs = list(zip(("0.weight", "0.bias", "2.weight", "2.bias"), params, strict=True))
        parts = [[pair for pair in pairs if kind in pair[0]] for kind in order]
        given = parts if named else [[leaf for _, leaf in part] for part in parts]
        return torch.optim.Adam([{"params": part} for part in given], 0.01)

    return make


def test_groups_of_parameters_are_told_apart_by_name_or_not_at_all(tmp_path):
    states = {}
    for title, make in {
        "plain": OPTIMIZERS["adam"][0],
        "named": groups(("bias", "weight"), named=True),
        "nameless": groups(("bias", "weight"), named=False),
    }.items():
        saved(tmp_path / f"{title}_3.pt", make)
        out = tmp_path / f"{title}.h5"
        import_checkpoints([tmp_path / f"{title}_3.pt"], setup(optax.adam(0.01)), out)
        (row,) = open_run(out, setup(optax.adam(0.01))).recorded(np.array([0]))
        states[title] = row.optimizer
    np.testing.assert_allclose(states["named"], states["plain"], rtol=1e-12)
    assert states["nameless"].size == 0


def test_the_optimizer_counts_the_updates_where_names_do_not(tmp_path):
    saved(tmp_path / "best.pt", OPTIMIZERS["adam"][0])
    found = import_checkpoints([tmp_path], setup(optax.adam(0.01)), tmp_path / "run.h5")
    assert found.steps == [3]


@pytest.mark.parametrize("rule", [optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)])
def test_a_state_of_another_rule_is_refused(rule, tmp_path):
    saved(tmp_path / "3.pt", OPTIMIZERS["adam"][0])
    with pytest.raises(ConfigError, match="its optimizer keeps mu, nu, and the problem's does not"):
        import_checkpoints([tmp_path], setup(rule), tmp_path / "r.h5")


def test_the_states_of_two_optimizers_are_refused(tmp_path):
    saved(tmp_path / "3.pt", OPTIMIZERS["adam"][0])
    content = torch.load(tmp_path / "3.pt", weights_only=True)
    torch.save(content | {"other": content["optim"]}, tmp_path / "3.pt")
    with pytest.raises(ConfigError, match=r"states of several optimizers \(optim and other\)"):
        import_checkpoints([tmp_path], setup(optax.adam(0.01)), tmp_path / "r.h5")


def test_running_statistics_and_other_buffers_are_refused(tmp_path):
    module = torch.nn.Sequential(*network(), torch.nn.BatchNorm1d(3).double())
    module(torch.tensor(INPUTS))
    torch.save(module.state_dict(), tmp_path / "3.pt")
    given = setup(None)
    given[2].update({"3.weight": np.ones(3), "3.bias": np.zeros(3)})
    with pytest.raises(ConfigError, match=r"it has 3\.running_mean, of shape \(3,\), which the"):
        import_checkpoints([tmp_path], given, tmp_path / "run.h5")


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"model": network().state_dict(), "extra": Evil()}, tmp_path / "1.pt")
    (tmp_path / "2.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("1.pt", "2.pt"):
        with pytest.raises(
            FileError, match=rf"{name} cannot be read: UnpicklingError: .*[Ww]eights"
        ):
            read_checkpoint(tmp_path / name)


def test_numbers_of_sixteen_bits_are_taken_as_they_are(tmp_path):
    values = torch.linspace(-3, 3, 11)
    content = {"b": values.bfloat16(), "h": values.half(), "t": values[::2]}
    torch.save(content, tmp_path / "1.pt")
    found = read_checkpoint(tmp_path / "1.pt")
    for name, leaf in content.items():
        np.testing.assert_array_equal(found[name].astype(float), leaf.double().numpy())


def test_the_learning_rate_that_the_threshold_does_not_know_is_told(tmp_path):
    saved(tmp_path / "3.pt", OPTIMIZERS["sgd"][0])
    config = ImportConfig(full_batch=True)
    found = import_checkpoints([tmp_path], setup(optax.sgd(0.5)), tmp_path / "run.h5", config)
    assert "learning rate in the checkpoints 0.1: see that it is that of" in found.notes[-1]
