"""Whether an optimizer does what its linearised update says: the update is run and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int
from optax import contrib

from dlf_dynamics.analysis.stability.linearised import (
    Hyperparameters,
    Maps,
    as_array,
    as_before,
    critical_curvatures,
    curvature_unit,
    linear_maps,
    spectral_radii,
    state_at,
    with_counts,
)
from dlf_dynamics.optimizers import has_mean_squares, held_preconditioner, hold_mean_squares

_PROBE = {"matrix": np.zeros((4, 2)), "vector": np.zeros(2)}
"""Parameters that the optimizer is tried on; rules may depend on the shape of an array."""

_GRADIENTS = np.array([1e-3, 1e-3, 1.0, 1.0, -30.0, -30.0, 0.0, 0.0, 1e3, 1e3])
"""Their first gradients, with sizes at which clipping or normalisation shows."""

_RESTING = slice(6, 8)
"""Indices of the parameters that start at 0, from which the others deviate."""

_SIDES = np.array([0.98, 1.02])
"""Curvatures of neighbouring parameters, in units of the critical one."""

_UPDATES, _COMPARED = 120, 12
"""Number of updates, and number of first ones that are compared number by number."""

_ACCURACY = 1e-2
"""Relative tolerance: optax computes schedules in float32, where a small rate has few digits."""

_AT_ONCE = 4
"""Runs in one call of the compiled program."""

_GATHERING = (optax.MultiStepsState, optax.ApplyEvery, contrib.SAMState)

_EXPECTED = (
    "expected one that is linear in the gradients, except for the preconditioner of RMSProp or "
    "Adam, and the same for all parameters"
)


_FALLING = 60
"""Updates after which momentum has decayed, and gradients are not yet all rounding."""

_CONSTANT = "steps of a constant size oscillate at any curvature"


class NotTried(ValueError):
    """An update that needs more than gradients, or parameters of a certain form."""


def _refused(reason: str) -> ValueError:
    return ValueError(f"the optimizer's update {reason}; {_EXPECTED}")


@lru_cache(maxsize=256)
def require_linear(optimizer: optax.GradientTransformation) -> None:
    """Requires that the update follows its linear maps while its counts go on.

    The state is then that of a real run, from the first update on.

    Args:
        optimizer: an optax transformation.

    Raises:
        ValueError: unless it does.
    """  # noqa: DOC501
    _require_tried(optimizer)
    nodes = jax.tree.leaves(
        jax.eval_shape(optimizer.init, jnp.zeros(1)), is_leaf=lambda x: isinstance(x, _GATHERING)
    )
    steps = np.arange(2, 2 + _COMPARED)
    maps = linear_maps(optimizer, steps)
    if not np.all(np.isfinite(maps)):
        raise _refused(_reason(optimizer))
    memory = maps[0][:, 1:, 1:]
    jumps = np.max(np.abs(np.diff(memory, axis=0)), initial=0.0) > 0.1
    if jumps or any(isinstance(node, _GATHERING) for node in nodes):
        raise _refused("gathers the gradients of several steps")
    if has_mean_squares(jax.eval_shape(optimizer.init, jnp.zeros(1))):
        _require_root(optimizer)
    curvatures = critical_curvatures(maps)
    known = curvatures[np.isfinite(curvatures)]
    limits = np.full(1, np.min(known, initial=np.inf) if len(known) else 1.0)
    measured = _run(optimizer, np.zeros(1, int), limits, counting=True)
    predicted = _predicted(maps, limits, lambda index: np.array([index]), _COMPARED)
    if not _follows(measured, predicted, optimizer):
        raise _refused(_reason(optimizer))


def require_confirmed(
    optimizer: optax.GradientTransformation,
    steps: Int[np.ndarray, " steps"],
    maps: Maps,
    thresholds: Float[np.ndarray, " steps"],
    hyperparameters: Hyperparameters,
) -> None:
    """Requires that the update itself does what its linearisation says.

    The update is run on quadratics whose curvatures are 2 percent below and above the critical one,
    with gradients of all sizes, each step's counts and the preconditioner frozen. It must follow
    the linear map, decay on one side and grow on the other, and grow at larger curvatures, too.

    Args:
        optimizer: an optax transformation.
        steps: up to 4 steps at which thresholds are wanted.
        maps: maps of the update at these steps.
        thresholds: critical eigenvalues at these steps.
        hyperparameters: hyperparameters in the optimizer's state.

    Raises:
        ValueError: unless it does.
    """  # noqa: DOC501
    finite = np.isfinite(thresholds)
    _require_one_side(maps, thresholds, finite)
    limits = np.where(finite, thresholds, 1.0)
    measured = _run(optimizer, steps, limits, counting=False, hyperparameters=hyperparameters)
    predicted = _predicted(maps, limits, lambda index: np.arange(len(steps)), _UPDATES)
    if not _follows(measured, predicted, optimizer):
        raise _refused(_reason(optimizer))
    grown, foreseen = _growth(measured), _growth(predicted)
    seen = np.abs(np.log(foreseen)) > 0.1  # where so few updates show a trend
    if np.any((np.sign(np.log(grown)) != np.sign(_SIDES - 1))[finite] & seen[finite]):
        raise _refused(_reason(optimizer))


def _require_tried(optimizer: optax.GradientTransformation) -> None:
    """Raises ValueError unless updates can be made of gradients and parameters of any form."""
    try:
        with jax.enable_x64(True):
            for params in (_PROBE, np.zeros(1)):
                jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        reason = _refused(
            f"cannot be made from gradients and parameters of any form alone ({words})"
        )
        raise NotTried(str(reason)) from error


def _require_one_side(
    maps: Maps, thresholds: Float[np.ndarray, " steps"], finite: Bool[np.ndarray, " steps"]
) -> None:
    """Raises ValueError unless all curvatures below the threshold are stable and none above."""
    if np.any(thresholds < 1e-8):
        raise ValueError(
            "the optimizer's update grows at every curvature; expected one that goes downhill, "
            "with a learning rate in it, as from optax.scale_by_learning_rate"
        )
    below, above = np.linspace(0.01, 0.999, 100), np.geomspace(1.001, 10.0, 50)
    for factor in [*below, *above]:
        radii = spectral_radii(maps, np.where(finite, factor * thresholds, 0.0))
        if np.any(((radii > 1 + 1e-9) != (factor > 1)) & finite):
            raise _refused("is stable again at curvatures above the first unstable one")


def _require_root(optimizer: optax.GradientTransformation) -> None:
    """Requires that it divides by the root of the mean square of its next update.

    An update times that root is then proportional to the gradient, however large either is.

    Raises:
        ValueError: unless it does.
    """  # noqa: DOC501
    with jax.enable_x64(True):
        nothing, gradients, answers = jnp.zeros(1), [], []
        for size in (1e9, 1e10, 1e11):
            held = hold_mean_squares(state_at(optimizer, nothing, jnp.int32(2)), size)
            rest, _ = optimizer.update(nothing, held, nothing)
            for part in (0.5, 1.0, 2.0):
                gradients.append(part * size)
                change, after = optimizer.update(jnp.full(1, gradients[-1]), held, nothing)
                root = held_preconditioner(after)
                answers.append(float(jnp.squeeze((jnp.asarray(change) - jnp.asarray(rest)) * root)))
    ratios = np.divide(answers, gradients)
    if answers[0] and np.allclose(answers, answers[0], rtol=1e-2, atol=0):
        raise _refused("clips large gradients")
    if not np.allclose(ratios, ratios[0], rtol=1e-6, atol=0):
        raise _refused(
            "divides by something other than the root of the mean square of its next update, such "
            "as a running maximum"
        )


_Runner = Callable[..., Float[Array, "runs updates params"]]


@lru_cache(maxsize=64)
def _runner(optimizer: optax.GradientTransformation) -> _Runner:
    """Repeated updates, as one compiled program for all steps and curvatures."""
    _, unravel = ravel_pytree(jax.tree.map(jnp.asarray, _PROBE))

    def motion(step: Array, counting: Array, curvatures: Array, numbers: Array | None) -> Array:
        state = state_at(optimizer, _PROBE, step, counting, numbers)
        start = jnp.asarray(_GRADIENTS) / curvatures, state

        def one(carry, _):
            params, state = carry
            change, after = optimizer.update(
                unravel(curvatures * params), hold_mean_squares(state), unravel(params)
            )
            params += ravel_pytree(change)[0].astype(params.dtype)
            return (params, with_counts(as_before(state, after), step, counting)), params

        return jax.lax.scan(one, start, length=_UPDATES)[1]

    return jax.jit(jax.vmap(motion, in_axes=(0, 0, 0, None)))


def _run(
    optimizer: optax.GradientTransformation,
    steps: Int[np.ndarray, " steps"],
    limits: Float[np.ndarray, " steps"],
    *,
    counting: bool,
    hyperparameters: Hyperparameters = None,
) -> Float[np.ndarray, "steps updates sizes sides"]:
    """Deviations of moving parameters from resting ones, in units of the initial deviation."""
    with jax.enable_x64(True):
        one = float(curvature_unit(optimizer, as_array(hyperparameters)))
        curvatures = one * limits[:, None] * np.tile(_SIDES, len(_GRADIENTS) // 2)
        padded = np.resize(np.arange(len(steps)), _AT_ONCE)
        flags = np.full(_AT_ONCE, counting)
        counts = steps[padded].astype(np.int32)
        moved = _runner(optimizer)(counts, flags, curvatures[padded], as_array(hyperparameters))
    moved = np.asarray(moved)[: len(steps)]
    moved = moved - np.tile(moved[..., _RESTING], len(_GRADIENTS) // 2)
    moved *= curvatures[:, None] / np.where(_GRADIENTS == 0, np.inf, _GRADIENTS)
    sizes = moved.reshape(len(steps), _UPDATES, -1, 2)
    return np.delete(sizes, _RESTING.start // 2, axis=2)


def _predicted(
    maps: Maps,
    limits: Float[np.ndarray, " steps"],
    at: Callable[[int], Int[np.ndarray, " steps"]],
    count: int,
) -> Float[np.ndarray, "steps updates 1 sides"]:
    """Deviations predicted by the linear maps; `at` chooses the maps of each update."""
    constant, linear = (part[:, None] for part in maps)
    vectors = np.zeros((len(limits), len(_SIDES), constant.shape[-1]))
    vectors[..., 0] = 1.0
    curvatures = (limits[:, None] * _SIDES)[..., None, None]
    positions = []
    for index in range(count):
        chosen = at(index)
        matrices = constant[chosen] + curvatures * linear[chosen]
        vectors = np.squeeze(matrices @ vectors[..., None], -1)
        positions.append(vectors[..., 0])
    return np.stack(positions, axis=1)[:, :, None]


def _follows(
    measured: Float[np.ndarray, "steps updates sizes sides"],
    predicted: Float[np.ndarray, "steps updates 1 sides"],
    optimizer: optax.GradientTransformation,
) -> bool:
    """Whether the first updates are as predicted, up to the rounding of the state's types."""
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, _PROBE))
    kinds = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    rounding = max([float(jnp.finfo(kind).eps) for kind in kinds], default=0.0)
    foreseen = predicted[:, :_COMPARED]
    largest = np.maximum.accumulate(np.abs(foreseen), axis=1)
    differ = np.abs(measured[:, :_COMPARED] - foreseen)
    return bool(np.all(differ <= max(_ACCURACY, 100 * rounding) * np.maximum(largest, 1.0)))


def _growth(positions: Float[np.ndarray, "steps updates sizes sides"]) -> np.ndarray:
    """Last third over first third of the updates, of the root mean square of all sizes."""
    third = _UPDATES // 3
    early, late = positions[:, :third], positions[:, -third:]
    return np.sqrt(np.mean(late**2, axis=(1, 2)) / np.mean(early**2, axis=(1, 2)))


def _reason(optimizer: optax.GradientTransformation) -> str:
    """What an update does that does not follow its linearisation, judged by its responses."""
    with jax.enable_x64(True):
        return next(_reasons(optimizer))


def _reasons(optimizer: optax.GradientTransformation) -> Iterator[str]:
    generator = np.random.default_rng(0)
    gradients, others, params = generator.normal(size=(3, 6, len(_GRADIENTS)))
    apart, nudged, at_rest = gradients.copy(), gradients * (1 + 1e-3 * others), 0 * params[0]
    apart[:, 0] *= -3
    first, second = (_answers(optimizer, g, params[0])[:, 1:] for g in (gradients, apart))
    small, large = (
        [_answers(optimizer, scale * g, at_rest)[2:] for g in (gradients, nudged)]
        for scale in (1e-6, 1e3)
    )
    signs = np.array_equal(small[0], small[1]) and np.array_equal(large[0], large[1])
    if _keeps_its_size(optimizer, gradients[0], at_rest):
        yield f"{'takes the signs of the gradients' if signs else 'keeps its size'}: {_CONSTANT}"
    if not np.allclose(first, second, rtol=1e-6, atol=0):
        yield "of one parameter depends on the others"
    if np.any(np.abs(_answers(optimizer, 0 * gradients, at_rest)) > 1e-5):
        yield "moves parameters whose gradient is 0"
    if signs:
        yield "takes the signs of the gradients"
    if np.array_equal(large[0], large[1]):
        yield "clips large gradients"
    larger = _answers(optimizer, 1e6 * gradients, at_rest)[2:]
    if np.allclose(larger, large[0], rtol=0.1, atol=1e-9):
        yield (
            "divides by a measure of the gradients that cannot be frozen: only the mean squares of "
            "RMSProp and Adam can"
        )
    parts = [_answers(optimizer, g, at_rest) for g in (gradients, others, gradients + others)]
    if np.allclose(parts[0] + parts[1], parts[2], rtol=1e-6, atol=1e-9):
        yield "weights gradients by what it has summed up since the start"
    yield "is not linear in the gradients"


def _keeps_its_size(
    optimizer: optax.GradientTransformation,
    gradient: Float[np.ndarray, " params"],
    params: Float[np.ndarray, " params"],
) -> bool:
    """Whether steps stay as long as they are while gradients alternate and become 0.

    Steps of Rprop shrink where signs alternate, steps of Adagrad shrink with the gradients, and
    momentum has decayed by then. Gradients that are small from the start must give the same length.
    """
    falling = (-0.5) ** np.arange(_FALLING)[:, None] * gradient
    lengths = [
        np.linalg.norm(_answers(optimizer, scale * falling, params), axis=1) for scale in (1.0, 1e3)
    ]
    first = lengths[0][0]
    return bool(first > 0 and all(np.all(np.abs(kept / first - 1) < 0.5) for kept in lengths))


def _answers(
    optimizer: optax.GradientTransformation,
    gradients: Float[np.ndarray, "updates params"],
    params: Float[np.ndarray, " params"],
) -> Float[np.ndarray, "updates params"]:
    """Updates on a sequence of gradients from the start, with the mean squares kept fixed."""
    _, unravel = ravel_pytree(jax.tree.map(jnp.asarray, _PROBE))
    tree = unravel(jnp.asarray(params))
    state, answers = optimizer.init(tree), []
    for gradient in gradients:
        change, state = optimizer.update(
            unravel(jnp.asarray(gradient)), hold_mean_squares(state), tree
        )
        answers.append(np.asarray(ravel_pytree(change)[0]))
    return np.stack(answers)
