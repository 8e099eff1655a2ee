"""What is said of the hyperparameters of a PyTorch optimizer, beside an optax transformation.

That the rules are PyTorch's is held in `test_importing_torch`, by PyTorch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.leaves import Wanted
from dlf_dynamics.torch_rules import RuleCheck
from dlf_dynamics.torch_state import as_optax

pytestmark = pytest.mark.usefixtures("quick_compilation")

PARAMS = Wanted.of({"w": np.ones((3, 2)), "b": np.ones(3)})
SGD = {"lr": 0.1, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False}
ADAM = {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0, "amsgrad": False}


def of(*groups):
    """A `state_dict` of one group, or of one for each of `w` and `b`."""
    numbers = [[0, 1]] if len(groups) == 1 else [[0], [1]]
    return {
        "state": {},
        "param_groups": [{"params": n} | g for n, g in zip(numbers, groups, strict=True)],
    }


def notes(optimizer, found, steps=(7,)):
    check = RuleCheck(optimizer, PARAMS)
    for step in steps:
        check.require_alike(found if isinstance(found, dict) else found(step), step)
    return check.notes


def cosine(step):
    return 0.05 * (1 + np.cos(np.pi * step / 1000))


COSINE = optax.cosine_decay_schedule(0.1, 1000)


def test_a_schedule_is_looked_at_with_the_count():
    at = lambda lag: lambda step: of(SGD | {"lr": cosine(step - lag)})  # noqa: E731
    assert notes(optax.sgd(COSINE), at(0), (0, 1, 500, 999)) == []
    (note,) = notes(optax.sgd(COSINE), at(1), (1, 500, 999))
    assert "learning rates in the checkpoints are those of the updates before them" in note
    words = (
        r"learning rate is 0\.0997781, and that of the problem's optimizer 0\.0993844 for b after 5"
    )
    for wrong, match in ((at(20), words), (of(SGD), "is 0.1, and that .* 0.0993844")):
        with pytest.raises(ConfigError, match=match):
            notes(optax.sgd(COSINE), wrong, (50,))


def test_a_rate_that_has_come_to_0_may_be_so_but_for_rounding():
    """LinearLR multiplies, and leaves 5.6e-18 of 0.1; the schedule of optax is 0."""
    linear = optax.sgd(optax.linear_schedule(0.1, 0.0, 10))
    assert notes(linear, of(SGD | {"lr": 5.6e-18}), (10,)) == []
    with pytest.raises(ConfigError, match="learning rate is 1e-06"):
        notes(linear, of(SGD | {"lr": 1e-6}), (10,))


def test_checkpoints_agree_on_whether_the_scheduler_has_made_its_step():
    """PyTorch's rate drops after 10 and 20 updates, that of the problem after 9 and 20."""
    theirs = lambda step: of(SGD | {"lr": 0.1 * 0.1 ** (step // 10)})  # noqa: E731
    drops = optax.piecewise_constant_schedule(0.1, {9: 0.1, 20: 0.1})
    assert len(notes(optax.sgd(drops), theirs, (9,))) == 1
    assert notes(optax.sgd(drops), theirs, (20,)) == []
    with pytest.raises(
        ConfigError, match=r"after 9 updates is that of the update before.* 20 that"
    ):
        notes(optax.sgd(drops), theirs, (9, 20))


def test_cutting_of_gradients_is_no_other_rule():
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
    assert notes(rule, of(ADAM)) == []
    assert notes(optax.inject_hyperparams(optax.adam)(0.01), of(ADAM)) == []
    with pytest.raises(ConfigError, match=r"is 0\.01, and that of the problem's optimizer 0\.02"):
        notes(optax.inject_hyperparams(optax.adam)(0.02), of(ADAM))


def test_groups_without_names_must_each_be_a_rule_of_the_problem():
    rule = optax.multi_transform(
        {"slow": optax.sgd(0.01), "fast": optax.sgd(0.1)}, {"w": "slow", "b": "fast"}
    )
    groups = SGD, SGD | {"lr": 0.01}
    assert notes(rule, of(*groups)) == notes(rule, of(*groups[::-1])) == []
    for one in (optax.sgd(0.1), optax.sgd(0.01)):
        with pytest.raises(ConfigError, match=r"\(lr 0\.1; lr 0\.01\) turns a gradient of 1e-6"):
            notes(one, of(*groups))
    with pytest.raises(ConfigError, match=r"learning rate is 0\.1, and that of .* 0\.01 for w"):
        notes(rule, of(SGD))


def test_groups_with_names_are_compared_parameter_by_parameter():
    rule = optax.multi_transform(
        {"slow": optax.sgd(0.01), "fast": optax.sgd(0.1)}, {"w": "slow", "b": "fast"}
    )
    fast, slow = SGD | {"param_names": ["b"]}, SGD | {"lr": 0.01, "param_names": ["w"]}
    assert notes(rule, of(fast, slow)) == []
    with pytest.raises(
        ConfigError, match=r"the update -1e-08, and the problem's into -1e-07 for b"
    ):
        notes(rule, of(fast | {"param_names": ["w"]}, slow | {"param_names": ["b"]}))


def test_parameters_that_the_optimizer_does_not_have():
    named = of(SGD | {"param_names": ["w"]})
    named["param_groups"][0]["params"] = [0]
    masked = optax.multi_transform(
        {"on": optax.sgd(0.1), "off": optax.set_to_zero()}, {"w": "on", "b": "off"}
    )
    (note,) = notes(masked, named)
    assert "has 1 arrays and the problem 2" in note
    with pytest.raises(ConfigError, match="the update 0, and the problem's into -1e-07 for b"):
        notes(optax.sgd(0.1), named)


def test_what_is_not_compared_is_told_once():
    radam = {name: value for name, value in ADAM.items() if name != "amsgrad"}
    found = lambda step: of(radam | {"lr": 0.01 / step})  # noqa: E731
    (note,) = notes(optax.adam(0.01), found, (1, 2))
    assert note.startswith("the optimizer in the checkpoints is none of PyTorch's SGD, Adam, AdamW")
    assert note.endswith("lr 0.01 at first, and at last betas 0.9 and 0.999, eps 1e-08, lr 0.005")
    (note,) = notes(optax.polyak_sgd(), of(SGD))
    assert "makes no update of gradients alone" in note
    assert note.endswith("this has lr 0.1")
    (note,) = notes(optax.sgd(0.1), of(SGD | {"lr_scale": 0.5, "initial_lr": 1.0}), (1, 2, 3))
    assert note == "not compared are lr_scale in the optimizer of the checkpoints"
    for broken in ({"lr": "0.1"}, {"momentum": [1, 2, 3]}):
        assert "is none of PyTorch's" in notes(optax.sgd(0.1), of(SGD | broken))[0]


def test_older_files_do_not_tell_how_weights_decay():
    decayed = of(ADAM | {"weight_decay": 0.1})
    coupled = optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.01))
    for rule in (coupled, optax.adamw(0.01, weight_decay=0.1)):
        (note,) = notes(rule, decayed)
        assert "do not tell Adam's weight decay from AdamW's" in note
    with pytest.raises(ConfigError, match=r"weight_decay 0\.1\) turns a parameter of 1"):
        notes(optax.adam(0.01), decayed)
    told = of(ADAM | {"weight_decay": 0.1, "decoupled_weight_decay": True})
    with pytest.raises(ConfigError, match="decoupled_weight_decay"):
        notes(coupled, told)


def test_numbers_may_be_arrays():
    held = {name: np.asarray(value) for name, value in SGD.items()}
    assert notes(optax.sgd(jnp.float32(0.1)), of(held)) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_that_is_not_made_yet_is_that_of_the_beginning(dtype):
    params = {"w": np.ones((3, 2), dtype), "b": np.ones(3, dtype)}
    start = optax.adam(0.1).init(params)
    wanted = Wanted.of(start)
    found = as_optax(of(ADAM), [("w",), ("b",)], wanted, 0)
    assert found is not None
    for leaf, other in zip(
        jax.tree.leaves(wanted.taken(found, ())), jax.tree.leaves(start), strict=True
    ):
        np.testing.assert_array_equal(leaf, other)
        assert leaf.dtype == other.dtype
    assert as_optax(of(ADAM), [("w",), ("b",)], wanted, 3) is None
