"""Checks that the optimizer in a PyTorch checkpoint and an optax transformation update alike.

The updates of a single number from the same gradients, states and counts are compared; those of
PyTorch follow its documentation, with the hyperparameters of the checkpoint. The structure of the
optax transformation need not be known, and none of its hyperparameters are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from dlf_dynamics.errors import ConfigError, one_line
from dlf_dynamics.hyperparameters import is_injected
from dlf_dynamics.leaves import Name, Wanted, named, words
from dlf_dynamics.torch_state import kind_of

_ACCURACY = 1e-4
"""Relative accuracy of the comparison, as learning rates and schedules may be float32."""

Group = Mapping[str, Any]
"""One of an optimizer's `param_groups`."""


class _Probe(NamedTuple):
    """A gradient, a parameter and a state, from which an update is made.

    Attributes:
        gradient: gradient, too small for any usual clipping.
        param: parameter.
        momentum: momentum buffer or running mean of the gradients.
        square: running mean of their squares.
    """

    gradient: Any
    param: Any
    momentum: Any
    square: Any


_PROBES = {
    "a gradient of 1e-6": _Probe(1e-6, 0.0, 0.0, 1.0),
    "a momentum of 1e-6": _Probe(0.0, 0.0, 1e-6, 1.0),
    "a parameter of 1": _Probe(0.0, 1.0, 0.0, 1.0),
    "a gradient of 1e-6 and a mean square of 1e-14": _Probe(1e-6, 0.0, 0.0, 1e-14),
    "a gradient of 1e-12 and a mean square of 1e-24": _Probe(1e-12, 0.0, 0.0, 1e-24),
    "a gradient of 1e-6, a parameter of -2 and a momentum of -3e-6": _Probe(1e-6, -2, -3e-6, 1e-12),
}
"""Each reveals some of the hyperparameters, so that a message can say where updates differ."""

_COLUMNS = _Probe(*(np.array(column, float) for column in zip(*_PROBES.values(), strict=True)))

_NEEDED = {
    "SGD": {"lr", "momentum", "dampening", "weight_decay", "nesterov"},
    "Adam": {"lr", "betas", "eps", "weight_decay", "amsgrad"},
    "RMSprop": {"lr", "alpha", "eps", "weight_decay", "momentum", "centered"},
}
"""Hyperparameters that identify an optimizer of PyTorch; RAdam, for example, has no amsgrad."""

_TOLD_APART = {"maximize", "decoupled_weight_decay"}
"""Hyperparameters that older versions of PyTorch do not store."""

_WITHOUT_EFFECT = {
    *("params", "param_names", "foreach", "fused", "capturable", "differentiable"),
    # Kept by schedulers, which set the hyperparameters themselves.
    *("initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"),
}


def rule_of(group: Group) -> str | None:
    """SGD, Adam or RMSprop, by the hyperparameters of a group; None for another optimizer.

    AdamW is Adam whose weight decay is decoupled.
    """
    stored = group.keys() - _WITHOUT_EFFECT - _TOLD_APART
    rules = [rule for rule, needed in _NEEDED.items() if needed <= stored]
    if len(rules) != 1:
        return None
    values = [np.asarray(group[name]) for name in _NEEDED[rules[0]]]
    whole = all(value.dtype.kind in "biuf" and value.size <= 2 for value in values)
    return rules[0] if whole and np.size(group.get("betas", (0, 0))) == 2 else None


def described(group: Group) -> str:
    """The hyperparameters of a group in words, without those that are 0 or off.

    >>> described({"lr": 1, "nesterov": True, "betas": [0.9, 0.99], "momentum": 0, "foreach": None})
    'betas 0.9 and 0.99, lr 1, nesterov'
    """
    texts = []
    for name in sorted(group.keys() - _WITHOUT_EFFECT):
        values = np.ravel(np.asarray(group[name], object)).tolist()
        if values == [True] and isinstance(values[0], bool):
            texts.append(name)
        elif name == "lr" or any(values):
            texts.append(f"{name} {' and '.join(map(_short, values))}")
    return ", ".join(texts)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


class RuleCheck:
    """Compares the optimizers in checkpoints with that of the problem."""

    def __init__(self, optimizer: optax.GradientTransformation, params: Wanted) -> None:
        """Prepares to compare.

        Args:
            optimizer: optimizer of the problem.
            params: form of its parameters.
        """
        self._names = list(params.shapes)
        self._updates = _updates_of(optimizer, params)
        self._notes: dict[str, list[str]] = {}
        self._saved: dict[str, int] = {}

    @property
    def notes(self) -> list[str]:
        """What could not be compared so far, and harmless differences."""
        lines = []
        for text, details in self._notes.items():
            last = f" at first, and at last {details[-1]}" if details[0] != details[-1] else ""
            lines.append(f"{text}{details[0]}{last}")
        return lines

    def require_alike(self, optimizer: Mapping[str, Any], step: int) -> None:
        """Requires that the problem's optimizer makes the updates that a checkpoint's would.

        Args:
            optimizer: `state_dict` of a PyTorch optimizer.
            step: number of updates made.

        Raises:
            ConfigError: when it makes other updates.
        """
        groups = optimizer["param_groups"]
        if any(rule_of(group) is None for group in groups):
            self._note(
                "the optimizer in the checkpoints is none of PyTorch's SGD, Adam, AdamW and "
                "RMSprop, and is not compared with the problem's: it has ",
                _all(groups),
            )
            return
        try:
            ours = self._updates(step)
        except Exception as error:
            self._note(
                "the problem's optimizer makes no update of gradients alone "
                f"({one_line(error)}), and is not compared with that in the "
                "checkpoints: this has ",
                _all(groups),
            )
            return
        unlike = _Groups(groups, self._names, step).unlike(ours)
        before = max(step - 1, 0)
        other = _Groups(groups, self._names, before).unlike(self._updates(before))
        if unlike is not None and other is not None:
            raise ConfigError(_complaint(groups, self._names, step, ours, unlike))
        if (unlike is None) != (other is None):  # a schedule is saved before its step, or after
            self._saved["before" if unlike is not None else "after"] = step
        if len(self._saved) > 1:
            raise ConfigError(
                f"its learning rate after {self._saved['before']:,} updates is that of the update "
                f"before, by the schedule of the problem's optimizer, and after "
                f"{self._saved['after']:,} that of the update that follows; expected the same of "
                "all checkpoints"
            )
        if unlike is not None:
            self._note(
                "the learning rates in the checkpoints are those of the updates before them, by "
                "the schedule of the problem's optimizer, as they are when a checkpoint is saved "
                "before the scheduler's step; thresholds are those of the next update"
            )
        self._note_what_is_not_told(groups)

    def require_own(self, state: Mapping[Name, np.ndarray], step: int) -> None:
        """Requires that hyperparameters in an optax state are those of the problem's optimizer.

        `optax.inject_hyperparams` stores them. They do not matter if a schedule sets them.

        Args:
            state: leaves of the state by name.
            step: number of updates made.

        Raises:
            ConfigError: when updates differ.
        """
        given = {name: leaf for name, leaf in state.items() if is_injected(name)}
        given = {name: leaf for name, leaf in given.items() if leaf.dtype.kind == "f"}
        if not given:
            return
        theirs, ours = self._updates(step, given), self._updates(step)
        if not _Same(theirs)(ours):
            array, probe = np.argwhere(~_close(theirs, ours))[0]
            listed = ", ".join(f"{named(name)} {leaf:g}" for name, leaf in given.items())
            raise ConfigError(
                f"its optimizer ({listed}) turns {list(_PROBES)[probe]} into the update "
                f"{theirs[array, probe]:.6g}, and the problem's into {ours[array, probe]:.6g} for "
                f"{named(self._names[array])} after {step:,} updates; expected the same "
                "hyperparameters, by a schedule where they change, or None for the optimizer"
            )

    def _note(self, text: str, detail: str = "") -> None:
        self._notes.setdefault(text, []).append(detail)

    def _note_what_is_not_told(self, groups: Sequence[Group]) -> None:
        odd = sorted({name for group in groups for name in _unknown_in(group)})
        if odd:
            self._note(f"not compared are {', '.join(odd)} in the optimizer of the checkpoints")
        if any(len(_readings(group)) > 1 for group in groups):
            self._note(
                "the checkpoints do not tell Adam's weight decay from AdamW's, as older versions "
                "of PyTorch do not; that of the problem's optimizer is one of the two"
            )
        stored, count = _count(groups), len(self._names)
        if stored != count:
            self._note(
                f"the optimizer in the checkpoints has {stored} arrays and the problem {count}; "
                "thresholds are those of a training of all parameters of the problem"
            )


def _all(groups: Sequence[Group]) -> str:
    return "; ".join(dict.fromkeys(map(described, groups)))


def _count(groups: Sequence[Group]) -> int:
    """Number of arrays that an optimizer updates."""
    return sum(len(group["params"]) for group in groups)


def _unknown_in(group: Group) -> set[str]:
    """Names that are not PyTorch's, such as a factor added by the user's program."""
    known = _NEEDED.get(rule_of(group) or "", set()) | _WITHOUT_EFFECT | _TOLD_APART
    return set(group) - known


class _Groups:
    """The updates of the groups of a PyTorch optimizer, and the groups of each parameter."""

    def __init__(self, groups: Sequence[Group], names: Sequence[Name], step: int) -> None:
        made = [[_of_torch(reading, step) for reading in _readings(group)] for group in groups]
        self._made = [*made, [np.zeros(len(_PROBES))]]  # parameters in no group do not move
        groups_of = {
            words(str(name)): [number]
            for number, group in enumerate(groups)
            for name in group.get("param_names", ())
        }
        known = groups_of.keys() & set(names)
        missing = [len(groups)] * (bool(known) or _count(groups) < len(names))
        every = missing if known else [*range(len(groups)), *missing]
        self._chosen = [groups_of.get(name, every) for name in names]
        # If the optimizer may have parameters that the problem lacks, no group is required to move.
        elsewhere = bool(known) or _count(groups) > len(names)
        self._moving = [] if elsewhere else [n for n, g in enumerate(groups) if g["params"]]

    def unlike(self, ours: Float[np.ndarray, "params probes"]) -> tuple[int, np.ndarray] | None:
        """The index of a parameter whose updates differ, with those expected; None if all agree.

        A parameter whose group is unknown must be updated as in one of the groups, and each group
        must update some parameter.
        """
        fits = [[any(map(_Same(row), ways)) for ways in self._made] for row in ours]
        for array, chosen in enumerate(self._chosen):
            if not any(fits[array][group] for group in chosen):
                return array, self._made[chosen[0]][0]
        for group in self._moving:
            if not any(row[group] for row in fits):
                return 0, self._made[group][0]
        return None


def _complaint(
    groups: Sequence[Group],
    names: Sequence[Name],
    step: int,
    ours: Float[np.ndarray, "params probes"],
    unlike: tuple[int, np.ndarray],
) -> str:
    """Where the updates differ, with both numbers."""
    array, theirs = unlike
    updates, name, after = ours[array], named(names[array]), f"after {step:,} updates"
    rates = {float(group["lr"]) for group in groups}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (updates / theirs)[theirs != 0]
    still = np.all(updates[theirs == 0] == 0)
    alike = len(ratios) > 0 and still and _Same(updates)(theirs * ratios[0])
    if alike and len(rates) == 1:
        (rate,) = rates
        return (
            f"its learning rate is {rate:g}, and that of the problem's optimizer "
            f"{ratios[0] * rate:g} for {name} {after}; expected the same, by a schedule where it "
            "changes, or None for the optimizer"
        )
    probe = int(np.argmax(~_close(updates, theirs)))
    return (
        f"its optimizer ({_all(groups)}) turns {list(_PROBES)[probe]} into the update "
        f"{theirs[probe]:.6g}, and the problem's into {updates[probe]:.6g} for {name} {after}; "
        "expected an optax transformation of the same rule with the same hyperparameters, or None"
    )


def _close(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    # A learning rate that a schedule has reduced to 0 is 0 only up to rounding.
    return np.isclose(one, other, rtol=_ACCURACY, atol=1e-18)


class _Same(NamedTuple):
    """Compares other updates with these."""

    one: np.ndarray

    def __call__(self, other: np.ndarray) -> bool:
        return bool(np.all(_close(self.one, other)))


def _readings(group: Group) -> list[Group]:
    """The possible meanings of a group: Adam and AdamW, if it does not say and they differ."""
    silent = rule_of(group) == "Adam" and "decoupled_weight_decay" not in group
    if not silent or float(group["weight_decay"]) == 0:
        return [group]
    return [{**group, "decoupled_weight_decay": decoupled} for decoupled in (False, True)]


def _of_torch(group: Group, step: int) -> Float[np.ndarray, " probes"]:
    """The update by a rule of PyTorch for each probe, in float64.

    Args:
        group: hyperparameters.
        step: number of updates made before.
    """
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    gradient, param, momentum, square = _COLUMNS
    gradient = -gradient if group.get("maximize") else gradient
    if group.get("decoupled_weight_decay"):
        shrunk = -lr * decay * param
    else:
        shrunk, gradient = 0.0, gradient + decay * param
    made = {"SGD": _sgd, "Adam": _adam, "RMSprop": _rmsprop}[rule_of(group) or ""]
    return shrunk - lr * made(group, gradient, momentum, square, step)


def _sgd(group: Group, gradient: Any, momentum: Any, square: Any, step: int) -> Any:
    """The direction of `torch.optim.SGD` by its documentation, once it has a momentum buffer."""
    beta = float(group["momentum"])
    if beta == 0:
        return gradient
    momentum = beta * momentum + (1 - float(group["dampening"])) * gradient
    return gradient + beta * momentum if group["nesterov"] else momentum


def _adam(group: Group, gradient: Any, momentum: Any, square: Any, step: int) -> Any:
    """The direction of `torch.optim.Adam` and `AdamW` by their documentation.

    With amsgrad, the largest mean square so far is assumed to be the present one.
    """
    first, second = (float(beta) for beta in group["betas"])
    mean = (first * momentum + (1 - first) * gradient) / (1 - first ** (step + 1))
    after = second * square + (1 - second) * gradient**2
    after = np.maximum(square, after) if group["amsgrad"] else after
    return mean / (np.sqrt(after / (1 - second ** (step + 1))) + float(group["eps"]))


def _rmsprop(group: Group, gradient: Any, momentum: Any, square: Any, step: int) -> Any:
    """The direction of `torch.optim.RMSprop`; if centred, from a mean gradient of 0."""
    alpha, beta = float(group["alpha"]), float(group["momentum"])
    mean = (1 - alpha) * gradient if group["centered"] else 0.0
    after = alpha * square + (1 - alpha) * gradient**2 - mean**2
    direction = gradient / (np.sqrt(after) + float(group["eps"]))
    return beta * momentum + direction if beta > 0 else direction


def _updates_of(
    optimizer: optax.GradientTransformation, params: Wanted
) -> Callable[..., Float[np.ndarray, "params probes"]]:
    """The updates by an optax transformation for the probes, as a function of the step.

    The function also takes leaves of the state by name.

    Each array of the parameters is replaced by one number with the same number of axes, so that
    rules that depend on names and axes still work. Leaves of the state that the probes do not give
    have their initial values.
    """

    def one(step: Array, given: Mapping[Name, Array], probe: _Probe) -> Array:
        def filled(value: Any) -> PyTree:
            leaves = [jnp.full((1,) * len(shape), value) for shape in params.shapes.values()]
            return jax.tree.unflatten(params.structure, leaves)

        held = filled(probe.param)
        state = optimizer.init(held)
        kinds = {"mu": probe.momentum, "trace": probe.momentum, "nu": probe.square, "count": step}
        leaves = jax.tree.leaves(state)
        values = [given.get(n, kinds.get(kind_of(n))) for n in Wanted.of(state).shapes]
        state = jax.tree.unflatten(
            jax.tree.structure(state),
            [
                leaf if value is None else jnp.full(leaf.shape, value, _wide(leaf))
                for leaf, value in zip(leaves, values, strict=True)
            ],
        )
        change, _ = optimizer.update(filled(probe.gradient), state, held)
        return jnp.stack([jnp.ravel(leaf)[0] for leaf in jax.tree.leaves(change)])

    compiled = jax.jit(jax.vmap(one, in_axes=(None, None, 0), out_axes=1))

    def updates(
        step: int, given: Mapping[Name, Any] | None = None
    ) -> Float[np.ndarray, "params probes"]:
        with jax.enable_x64(True):
            columns = _Probe(*map(jnp.asarray, _COLUMNS))
            return np.asarray(compiled(jnp.asarray(step, jnp.int64), given or {}, columns), float)

    return updates


def _wide(leaf: Array) -> Any:
    """A 64-bit type of the same kind: optax computes schedules in the precision of their counts."""
    return jnp.int64 if jnp.issubdtype(leaf.dtype, jnp.integer) else jnp.float64
