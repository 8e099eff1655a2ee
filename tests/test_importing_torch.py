"""Checkpoints of PyTorch: what follows from them is what PyTorch itself does next."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import Problem, import_checkpoints, torch_rules
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


def adam(**own):
    return lambda p: torch.optim.Adam(p, 0.01, **own)


def adamw(**own):
    return lambda p: torch.optim.AdamW(p, 0.01, **own)


def sgd(**own):
    return lambda p: torch.optim.SGD(p, **{"lr": 0.1, "momentum": 0.9} | own)


def rms(**own):
    return lambda p: torch.optim.RMSprop(p, **{"lr": 0.01, "alpha": 0.9} | own)


BUFFERS = {"exp_avg": "momentum", "momentum_buffer": "momentum", "exp_avg_sq": "square"}
BUFFERS |= {"square_avg": "square", "max_exp_avg_sq": "square"}
SETTINGS = {
    "sgd": sgd(momentum=0),
    "momentum": sgd(),
    "nesterov": sgd(nesterov=True, weight_decay=0.01),
    "dampening": sgd(dampening=0.5, maximize=True),
    "adam": adam(betas=(0.8, 0.99), eps=1e-6),
    "coupled decay": adam(weight_decay=0.01),
    "amsgrad": adam(amsgrad=True, maximize=True),
    "adamw": adamw(weight_decay=0.01),
    "rmsprop": rms(weight_decay=0.01),
    "rmsprop with momentum": rms(momentum=0.9),
    "centered": rms(centered=True),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("step", [1, 30])
def test_the_rules_are_those_of_pytorch(name, step):
    """Each probe is made the state of a real optimizer, which then steps."""
    for place, probe in enumerate(torch_rules._PROBES.values()):
        param = torch.nn.Parameter(torch.tensor([float(probe.param)], dtype=torch.float64))
        optimizer = SETTINGS[name]([param])
        param.grad = torch.ones_like(param)
        optimizer.step()  # makes its state
        for key, value in optimizer.state[param].items():
            if key == "step":
                value.fill_(step)
            elif value is not None:  # the mean of centred RMSprop is 0
                value.fill_(getattr(probe, BUFFERS.get(key, ""), 0.0))
        with torch.no_grad():
            param.fill_(probe.param)
        param.grad = torch.full_like(param, probe.gradient)
        optimizer.step()
        found = torch_rules._of_torch(optimizer.state_dict()["param_groups"][0], step)[place]
        made = param.item() - probe.param
        assert found == pytest.approx(made, rel=1e-8, abs=1e-15 * abs(probe.param))


COUPLED = optax.add_decayed_weights(0.01)
LIKE_RMSPROP = optax.scale_by_rms(decay=0.9, eps=1e-8, eps_in_sqrt=False)
SAME = {
    "nesterov": (sgd(nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "decay": (sgd(weight_decay=0.01), optax.chain(COUPLED, optax.sgd(0.1, momentum=0.9))),
    "maximize": (sgd(maximize=True), optax.chain(optax.scale(-1), optax.sgd(0.1, momentum=0.9))),
    "coupled": (adam(weight_decay=0.01), optax.chain(COUPLED, optax.adam(0.01))),
    "decoupled": (adamw(), optax.adamw(0.01, weight_decay=0.01)),
    "betas": (adam(betas=(0.8, 0.99), eps=1e-6), optax.adam(0.01, 0.8, 0.99, 1e-6)),
    "rmsprop": (
        rms(momentum=0.8),
        optax.chain(LIKE_RMSPROP, optax.trace(0.8), optax.scale(-0.01)),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_optax_transformations_of_the_same_rules_are_taken(name, tmp_path):
    make, rule = SAME[name]
    saved(tmp_path / "3.pt", make)
    found = import_checkpoints([tmp_path], setup(rule), tmp_path / "r.h5", FULL)
    assert found.notes == []


FULL = ImportConfig(full_batch=True)
WRONG = {
    "learning rate": (sgd(), optax.sgd(0.2, momentum=0.9), "rate is 0.1, .* optimizer 0.2 "),
    "momentum": (sgd(), optax.sgd(0.1, momentum=0.8), "momentum 0.9.* a momentum of 1e-6"),
    "none": (
        sgd(momentum=0),
        optax.sgd(0.1, momentum=0.9),
        "a momentum of 1e-6 into the update -?0,",
    ),
    "forgotten": (sgd(), optax.sgd(0.1), "keeps trace, and the problem's does not"),
    "nesterov": (sgd(nesterov=True), optax.sgd(0.1, momentum=0.9), "nesterov.* a gradient of 1e-6"),
    "not nesterov": (sgd(), optax.sgd(0.1, momentum=0.9, nesterov=True), "a gradient of 1e-6"),
    "dampening": (sgd(dampening=0.5), optax.sgd(0.1, momentum=0.9), "dampening 0.5"),
    "decay": (
        sgd(weight_decay=0.01),
        optax.sgd(0.1, momentum=0.9),
        "a parameter of 1 into the update",
    ),
    "maximize": (sgd(maximize=True), optax.sgd(0.1, momentum=0.9), "maximize.* a gradient of 1e-6"),
    "beta1": (adam(), optax.adam(0.01, 0.95), "betas 0.9 and 0.999"),
    "beta2": (adam(), optax.adam(0.01, 0.9, 0.99), "betas 0.9 and 0.999"),
    "eps": (adam(), optax.adam(0.01, eps=1e-7), "eps 1e-08"),
    "eps_root": (adam(), optax.adam(0.01, eps_root=1e-8), "eps 1e-08"),
    "nadam": (adam(), optax.nadam(0.01), "betas 0.9 and 0.999"),
    "decoupled": (
        adam(weight_decay=0.01),
        optax.adamw(0.01, weight_decay=0.01),
        "a parameter of 1",
    ),
    "coupled": (adamw(), optax.chain(COUPLED, optax.adam(0.01)), "decoupled_weight_decay"),
    "decay of optax": (
        adamw(),
        optax.adamw(0.01),
        "the update -0.0001, and .* problem's into -1e-06",
    ),
    "amsgrad": (adam(amsgrad=True), optax.adam(0.01), "keeps max_exp_avg_sq"),
    "alpha": (rms(), optax.rmsprop(0.01, decay=0.99, eps_in_sqrt=False), "alpha 0.9"),
    "eps in the root": (rms(), optax.rmsprop(0.01, decay=0.9), "a mean square of 1e-14"),
    "trace of optax": (
        rms(momentum=0.8),
        optax.rmsprop(0.01, decay=0.9, eps_in_sqrt=False, momentum=0.8),
        "a momentum of 1e-6",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_hyperparameter_that_differs_is_refused(name, tmp_path):
    make, rule, words = WRONG[name]
    saved(tmp_path / "3.pt", make)
    with pytest.raises(ConfigError, match=words) as caught:
        import_checkpoints([tmp_path], setup(rule), tmp_path / "r.h5")
    assert "\n" not in str(caught.value)


def test_a_scheduler_is_held_against_a_schedule(tmp_path):
    def scheduled(early):
        module = network()
        optimizer = sgd()(module.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        folder = tmp_path / f"early-{early}"
        folder.mkdir()
        for step in range(1, 21):
            torch.nn.functional.cross_entropy(
                module(torch.tensor(INPUTS)), torch.tensor(LABELS)
            ).backward()
            optimizer.step()
            content = {"model": module.state_dict(), "optim": optimizer.state_dict()}
            scheduler.step()
            content = content if early else content | {"optim": optimizer.state_dict()}
            if step in (2, 10, 19):
                torch.save(content, folder / f"{step}.pt")
        return folder

    rule = setup(optax.sgd(optax.cosine_decay_schedule(0.1, 20), momentum=0.9))
    late, early = scheduled(early=False), scheduled(early=True)
    assert import_checkpoints([late], rule, tmp_path / "late.h5", FULL).notes == []
    (note,) = import_checkpoints([early], rule, tmp_path / "early.h5", FULL).notes
    assert "those of the updates before them" in note
    for folder in (late, early):
        with pytest.raises(
            ConfigError, match=r"2\.pt .*: its learning rate is 0\.09.* optimizer 0\.1 "
        ):
            import_checkpoints(
                [folder], setup(optax.sgd(0.1, momentum=0.9)), tmp_path / "r.h5", FULL
            )


@pytest.mark.parametrize("named", [True, False])
def test_groups_with_learning_rates_of_their_own(named, tmp_path):
    def make(params):
        optimizer = groups(("bias", "weight"), named=named)(params)
        optimizer.param_groups[1]["lr"] = 0.02
        return optimizer

    saved(tmp_path / "3.pt", make)
    labels = {"0.weight": "w", "2.weight": "w", "0.bias": "b", "2.bias": "b"}
    same = optax.multi_transform({"w": optax.adam(0.02), "b": optax.adam(0.01)}, labels)
    found = import_checkpoints([tmp_path], setup(same), tmp_path / "same.h5", FULL)
    assert len(found.notes) == (0 if named else 1)  # without names there is no state
    for rate in (0.01, 0.02):
        with pytest.raises(ConfigError, match=r"lr 0\.01; .*lr 0\.02"):
            import_checkpoints([tmp_path], setup(optax.adam(rate)), tmp_path / "r.h5", FULL)
    other = optax.multi_transform({"b": optax.adam(0.02), "w": optax.adam(0.01)}, labels)
    if named:
        with pytest.raises(ConfigError, match=r"lr 0\.01; .*lr 0\.02"):
            import_checkpoints([tmp_path], setup(other), tmp_path / "r.h5", FULL)


def test_a_checkpoint_before_the_first_update_has_the_state_that_is_made_then(tmp_path):
    make, rule = OPTIMIZERS["adam"]

    def keep(step, module, optimizer):
        if step in (0, 3):
            content = {"state_dict": module.state_dict(), "global_step": step}
            content["optimizer_states"] = [optimizer.state_dict()]  # as trainers nest them
            torch.save(content, tmp_path / f"{step}.ckpt")

    trained(make, keep)
    assert import_checkpoints([tmp_path], setup(rule), tmp_path / "r.h5", FULL).notes == []
    start, _ = open_run(tmp_path / "r.h5", setup(rule)).recorded(np.arange(2))
    np.testing.assert_array_equal(start.optimizer, 0 * start.optimizer)
    with pytest.raises(ConfigError, match=r"learning rate is 0\.01, and that of .* 0\.02"):
        import_checkpoints([tmp_path], setup(optax.adam(0.02)), tmp_path / "s.h5", FULL)


def test_the_state_of_another_optimizer_is_not_taken_for_adams(tmp_path):
    saved(tmp_path / "3.pt", lambda p: torch.optim.RAdam(p, 0.01))
    found = import_checkpoints([tmp_path], setup(optax.adam(0.01)), tmp_path / "r.h5", FULL)
    assert "without its preconditioner there is no threshold" in found.notes[0]
    assert "is none of PyTorch's SGD, Adam, AdamW and RMSprop" in found.notes[1]
