"""Hyperparameters in an optimizer's state: whether they change its threshold."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int, PyTree

from dlf_dynamics.analysis.stability.linearised import Maps, critical_curvatures, linear_maps
from dlf_dynamics.analysis.stability.threshold import threshold_of
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hyperparameters import (
    counts_in,
    hyperparameter_places,
    hyperparameters_in,
    require_form,
)
from dlf_dynamics.optimizers import FlatUpdate

_ACCURACY = 1e-6
"""Relative tolerance of comparisons; hyperparameters may be float32 numbers."""


_CURVATURES = (0.3, 1.0, 1.7)
"""Curvatures at which multipliers are compared, in units of the critical one."""


_TRIED = (0, 2, 10, 100, 1000, 10_000)
"""Steps at which hyperparameters are tried, as a schedule may hide them at one."""


@lru_cache(maxsize=64)
def deciding(
    optimizer: optax.GradientTransformation, steps: tuple[int, ...] = ()
) -> tuple[str, ...]:
    """Names of the hyperparameters in the state that change the linear maps of an optimizer.

    Hyperparameters that a schedule sets at each update do not count, nor do those of the mean
    squares of an adaptive optimizer, which are in its preconditioner.

    Args:
        optimizer: an optax transformation.
        steps: steps to try, besides some that are always tried.
    """
    tried = np.unique([*_TRIED, *steps])
    nothing = jnp.zeros(1)
    named = hyperparameter_places(optimizer.init, nothing)
    if not named:
        return ()
    own = hyperparameters_in(optimizer.init, nothing, optimizer.init(nothing))
    usual = linear_maps(optimizer, tried, own)
    names = []
    for index, name in enumerate(named):
        other = list(own)
        other[index] = 0.5 * own[index] if own[index] else 0.01
        if np.any(_differ(usual, linear_maps(optimizer, tried, tuple(other)))):
            names.append(name)
    return tuple(names)


def required_threshold(update: FlatUpdate, params: PyTree, opt_state: PyTree, step: int) -> float:
    """The critical eigenvalue at the hyperparameters in an optimizer's state.

    Args:
        update: the optimizer.
        params: parameters, of which only the form matters.
        opt_state: state before the update; none where the threshold does not depend on it.
        step: number of updates made before.

    Raises:
        ConfigError: when there is none, or the state is missing or not one of the optimizer's
            after so many updates.
    """
    optimizer, hyperparameters = update.optimizer, None
    if opt_state is not None:
        require_form(optimizer.init, params, opt_state)
        counts = np.array([counts_in(optimizer.init, params, opt_state)], int)
        if unlike := unlike_counted(optimizer, counts, np.array([step])):
            raise ConfigError(f"{unlike}, or another step")
        hyperparameters = hyperparameters_in(optimizer.init, params, opt_state) or None
    known = threshold_of(update, steps=(step,), hyperparameters=hyperparameters)
    threshold = known.required_at(step)
    if opt_state is None and (names := deciding(optimizer, (step,))):
        raise ConfigError(
            "opt_state is missing; expected the optimizer's state before the update, as "
            f"{' and '.join(names)} may change in it (optimizer.init(params) at the start)"
        )
    return threshold


def unlike_own(
    optimizer: optax.GradientTransformation,
    own: dict[str, float],
    recorded: dict[str, Float[np.ndarray, " checkpoints"]],
    steps: Int[np.ndarray, " checkpoints"],
) -> str:
    """Where recorded hyperparameters are not the optimizer's own, in words; empty if nowhere.

    Args:
        optimizer: an optax transformation.
        own: initial hyperparameters, by name.
        recorded: hyperparameters in recorded states, by name.
        steps: steps of the recorded states.
    """
    names: Collection[str] = deciding(optimizer, tuple(steps.tolist()))
    if not own.keys() >= set(names):  # names differ where each array has its own
        names = own.keys()
    for name in names:
        differ = ~np.isclose(recorded[name], own[name], rtol=_ACCURACY, atol=0)
        if np.any(differ):
            first = int(np.argmax(differ))
            return (
                f"{name} is {recorded[name][first]:g} in the optimizer's state of step "
                f"{steps[first]:,} and {own[name]:g} in the problem's optimizer; expected the "
                "same, by a schedule where it changes"
            )
    return ""


def unlike_counted(
    optimizer: optax.GradientTransformation,
    counts: Int[np.ndarray, "checkpoints counts"],
    steps: Int[np.ndarray, " checkpoints"],
) -> str:
    """Where recorded counts differ from the steps and change the update, in words; or empty.

    Args:
        optimizer: an optax transformation.
        counts: counts of updates in recorded states.
        steps: steps of the recorded states.
    """
    checkpoints, columns = np.nonzero(counts != steps[:, None])
    if len(checkpoints) == 0:
        return ""
    counted, made = counts[checkpoints, columns], steps[checkpoints]
    ours, theirs = (linear_maps(optimizer, each) for each in (made, counted))
    differ = _differ(ours, theirs)
    if not np.any(differ):
        return ""
    first = int(np.argmax(differ))
    return (
        f"the optimizer has counted {counted[first]:,} updates at step {made[first]:,}, and its "
        "update changes with the step; expected a state that counts the steps"
    )


def _differ(ours: Maps, theirs: Maps) -> Bool[np.ndarray, " steps"]:
    """Whether maps differ in their multipliers, which do not depend on the units of the state."""
    critical = critical_curvatures(ours)
    scale = np.where(np.isfinite(critical), critical, 1.0)
    one, other = (_power_sums(maps, scale) for maps in (ours, theirs))
    return ~np.all(np.isclose(one, other, rtol=_ACCURACY, atol=_ACCURACY), axis=(1, 2))


def _power_sums(
    maps: Maps, scale: Float[np.ndarray, " steps"]
) -> Float[np.ndarray, "steps curvatures n"]:
    """Sums of the powers 1 to n of the n multipliers at some curvatures, which determine them."""
    constant, linear = (part[:, None] for part in maps)
    curvatures = scale[:, None] * np.array(_CURVATURES)
    matrices = constant + curvatures[..., None, None] * linear
    powers = [np.linalg.matrix_power(matrices, k + 1) for k in range(matrices.shape[-1])]
    return np.stack([np.trace(power, axis1=-2, axis2=-1) for power in powers], axis=-1)
