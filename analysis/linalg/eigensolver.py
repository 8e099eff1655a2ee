"""Extreme eigenvalues of a symmetric operator, certified from both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dlf_dynamics.analysis.linalg.bounds import Recurrence
from dlf_dynamics.analysis.linalg.certificate import (
    BUDGET,
    STATUSES,
    Certificate,
    Evidence,
    certify,
)
from dlf_dynamics.analysis.linalg.chain import FAILURE_PROBABILITY, Goal
from dlf_dynamics.analysis.linalg.lanczos import Pass, lanczos
from dlf_dynamics.analysis.linalg.ritz import Ends, Matvec, is_lost, rayleigh_ritz
from dlf_dynamics.analysis.linalg.solution import CHAIN_STEPS, solve
from dlf_dynamics.analysis.linalg.vectors import Form, Operator, rounding
from dlf_dynamics.layout import Layout
from dlf_dynamics.operators import check_operator
from dlf_dynamics.reprs import brief

Which = Literal["largest", "smallest", "both"]

PASS_SIZE = 10_000
"""Orders up to which one compiled Lanczos pass is faster than a host loop over products."""

_PASS_STEPS = 64
"""Largest number of steps of the pass, whose whole basis is kept; the host loop continues it."""


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of one operator, largest first, and how far each one can be trusted.

    Attributes:
        eigenvalues: Rayleigh quotients, shape (k,), or (2k,) for both ends.
        eigenvectors: orthonormal, one per row; for a pytree, each leaf has one more axis in front.
        residuals: ‖A v - λ v‖ from fresh products; see `Certificate`, also for the next four.
        intervals: lower and upper end of each, shape (k, 2).
        upper_bound: bound that no eigenvalue exceeds.
        lower_bound: bound that no eigenvalue falls below.
        rank_bounds: bounds on the next eigenvalues beyond the wanted ones.
        status: what is certain about each value, see `certificate.STATUSES`.
        failure_probability: how often each bound may fail.
        orthogonality: largest entry of |V Vᵀ - 1|.
        num_matvecs: number of products, including the fresh ones and those of the chain.
        message: what was done and, if necessary, what to try.
        method: `lanczos` (one compiled pass) or `thick restart` (host loop).
    """

    eigenvalues: Float[np.ndarray, " k"]
    eigenvectors: Float[np.ndarray, "k n"] | PyTree
    residuals: Float[np.ndarray, " k"]
    intervals: Float[np.ndarray, "k 2"]
    upper_bound: float
    lower_bound: float
    rank_bounds: tuple[float, float]
    status: tuple[str, ...]
    failure_probability: float
    orthogonality: float
    num_matvecs: int
    message: str
    method: Literal["lanczos", "thick restart"]
    __repr__ = brief

    @property
    def converged(self) -> Bool[np.ndarray, " k"]:
        """Which values are certified from both sides; the others are Ritz values."""
        return np.array([status == STATUSES[0] for status in self.status])


def top_eigenpairs(
    matvec: Matvec,
    num_params: int,
    k: int,
    *,
    which: Which = "largest",
    tol: float,
    max_matvecs: int,
    key: PRNGKeyArray,
    initial_vectors: Float[Array | np.ndarray, "start n"] | PyTree | None = None,
    certificate_matvec: Callable[[Float[np.ndarray, " n"]], Any] | None = None,
    failure_probability: float = FAILURE_PROBABILITY,
    rank_tolerance: float | None = None,
    tracked: bool = False,
    dtype: Any = float,
    like: PyTree | None = None,
) -> Eigenpairs:
    """The k largest or smallest eigenvalues of a symmetric operator, or k from each end.

    Small operators are handled by one compiled Lanczos pass, others and warm starts by Lanczos with
    thick restarts, whose memory is bounded. A single value per end is bounded by the coefficients
    of its own search; several, and warm starts, by a random chain in the complement of their
    vectors.

    Args:
        matvec: product with the operator, traceable by JAX. A `jax.tree_util.Partial` is compiled
            once for all values of its arguments.
        num_params: order n of the operator.
        k: number of eigenvalues.
        which: end of the spectrum.
        tol: largest residual that counts as converged, relative to the norm of the operator.
        max_matvecs: largest number of products, including the fresh ones and those of the chain.
        key: PRNG key for the random vectors. The bounds hold if it is independent of the operator.
        initial_vectors: eigenvectors of a nearby operator, to start from.
        certificate_matvec: product of the same operator with a float64 vector, in float64, for
            Rayleigh quotients and residuals; it also serves to measure the error of `matvec`.
        failure_probability: failure probability of each bound.
        rank_tolerance: how far beyond the computed eigenvalues a missed one may be, relative to the
            spread of the spectrum; none means 0.03, infinity leaves the chain out.
        tracked: whether a warm start leaves the chain out.
        dtype: type of the vectors, where they are flat.
        like: a pytree of arrays or `jax.ShapeDtypeStruct`s, n numbers in all, whose form the
            vectors have. Where its leaves lie on several devices, so do all vectors; each inner
            product is one exchange between the devices, and no vector is gathered.

    Raises:
        DataError: when leaves of `like` differ in type or lie on different meshes.
        ValueError: when k is not between 1 and n, `max_matvecs` is too small, or the operator is
            not linear, not symmetric or has another shape.

    >>> matrix = jnp.diag(jnp.arange(50.0))
    >>> pairs = top_eigenpairs(
    ...     lambda v: matrix @ v, 50, 2, tol=1e-3, max_matvecs=90, key=jax.random.key(0)
    ... )
    >>> pairs.eigenvalues.round(2).tolist(), pairs.converged.tolist()
    ([49.0, 48.0], [True, True])
    """
    matvec = matvec if isinstance(matvec, Partial) else Partial(matvec)
    goal = Goal(make_ends(k, num_params, which), tol, failure_probability).within(rank_tolerance)
    form = Form.flat(num_params, dtype) if like is None else Form.like(like)
    _check(matvec, num_params, form, goal, max_matvecs)
    spent, alone = 0, initial_vectors is None and certificate_matvec is None
    if num_params <= PASS_SIZE and alone and like is None:
        plan = Plan.of(num_params, goal, max_matvecs, jnp.dtype(dtype))
        evidence, certificate = _by_pass(matvec, key, goal, plan)
        if not worth_going_on(evidence, certificate, max_matvecs):
            return _eigenpairs(matvec, form, key, evidence, certificate, goal, "lanczos")
        spent = int(evidence.num_matvecs)
    evidence = solve(
        Partial(_as_it_is, matvec),
        form,
        goal,
        max_matvecs=max_matvecs,
        spent=spent,
        key=key,
        initial_vectors=initial_vectors,
        certificate_matvec=certificate_matvec,
        tracked=tracked,
    )
    return _eigenpairs(matvec, form, key, evidence, certify(evidence, goal, tracked=tracked), goal)


def make_ends(k: int, num_params: int, which: Which) -> Ends:
    """How many eigenvalues are wanted from each end.

    Raises:
        ValueError: when k is not between 1 and n, or `which` is unknown.
    """
    if not 1 <= k <= num_params:
        raise ValueError(f"k is {k}; expected 1 to {num_params}, the order of the operator")
    choices = {
        "largest": Ends(k, 0),
        "smallest": Ends(0, k),
        "both": Ends(k, min(k, num_params - k)),
    }
    if which not in choices:
        raise ValueError(f"which is {which!r}; expected one of {', '.join(choices)}")
    return choices[which]


class Plan(NamedTuple):
    """Plan of a compiled pass, hashable for `jax.jit`.

    Attributes:
        num_params: order of the operator.
        goal: what is wanted, without tolerances.
        capacity: largest number of steps of the pass.
        chain_length: largest number of steps of the chain; 0 leaves it out.
        dtype: type of the vectors.
    """

    num_params: int
    goal: Goal
    capacity: int
    chain_length: int
    dtype: Any

    @classmethod
    def of(cls, num_params: int, goal: Goal, max_matvecs: int, dtype: Any) -> Plan:
        """The plan of a pass with so many products at most."""
        count = goal.ends.total
        capacity = min(num_params, max_matvecs - count, max(_PASS_STEPS, 4 * count + 20))
        chained = not goal.alone and goal.ranked
        left = max(max_matvecs - count - capacity, 0)
        length = min(num_params - count, max(left, max_matvecs // 3), CHAIN_STEPS) if chained else 0
        if chained and left < length:
            capacity = max(max_matvecs - count - length, count + 2)
        return cls(num_params, goal.form, min(capacity, num_params), length, dtype)

    def run(self, operator: Operator, key: PRNGKeyArray, tolerances: tuple[Any, Any, Any]) -> Pass:
        """The pass, to be traced."""
        n, goal, capacity, length, dtype = self
        matvec = Form.flat(n, dtype).matvec(operator)
        sizes = {"capacity": capacity, "chain_length": length}
        return lanczos(matvec, n, goal.having(tolerances), **sizes, key=key, dtype=dtype)


def _by_pass(
    matvec: Matvec, key: PRNGKeyArray, goal: Goal, plan: Plan
) -> tuple[Evidence, Certificate]:
    evidence = evidence_of(_one_pass(matvec, key, goal.tolerances, plan=plan), plan)
    return evidence, certify(evidence, goal)


@partial(jax.jit, static_argnames="plan")
def _one_pass(
    matvec: Matvec, key: PRNGKeyArray, tolerances: tuple[Any, Any, Any], *, plan: Plan
) -> Pass:
    return plan.run(lambda: matvec, key, tolerances)


def evidence_of(outcome: Pass, plan: Plan) -> Evidence:
    """Evidence on the host from one pass, or from many with leading axes."""
    arrays: Any = jax.tree.map(np.asarray, outcome)
    chain = Recurrence(arrays.chain_alphas, arrays.chain_betas, arrays.chain_started)
    own = Recurrence(arrays.alphas, arrays.betas, arrays.started)
    return Evidence(
        rayleigh_ritz(arrays.vectors.astype(float), arrays.products.astype(float)),
        plan.num_params,
        own,
        chain if plan.chain_length else None,
        arrays.extent,
        arrays.norm.astype(float),
        arrays.asymmetry.astype(float),
        arrays.whole,
        arrays.num_matvecs,
        None,
        plan.dtype,
        plan.dtype,
    )


def worth_going_on(
    evidence: Evidence, certificate: Certificate, max_matvecs: int
) -> Bool[np.ndarray, "*batch"]:
    """Where a pass left something open that more products may settle."""
    unsettled = np.any(certificate.status == BUDGET, axis=-1)
    count = certificate.status.shape[-1]
    enough = max_matvecs - evidence.num_matvecs >= 4 * count + 4
    hopeless = evidence.whole | is_lost(evidence.asymmetry, evidence.norm, evidence.dtype)
    return unsettled & enough & ~hopeless


def _as_it_is(matvec: Matvec) -> Matvec:
    return matvec


def _multiply(matvec: Matvec, vector: Array) -> Array:
    """A function, since JAX caches the trace of functions, not of `Partial`s."""
    return matvec(vector)


def _check(matvec: Matvec, num_params: int, form: Form, goal: Goal, max_matvecs: int) -> None:
    count = goal.ends.total
    if max_matvecs < 2 * count + 2:
        raise ValueError(
            f"max_matvecs is {max_matvecs}; expected at least {2 * count + 2} for k = {count}"
        )
    if form.num_params != num_params:
        raise ValueError(
            f"num_params is {num_params}; expected {form.num_params}, the numbers in `like`"
        )
    vector = jax.eval_shape(form.zeros)
    product = jax.eval_shape(_multiply, matvec, vector)
    if _described(product) != _described(vector):
        raise ValueError(
            f"the product has {_described(product)}; expected the vector's {_described(vector)}"
        )


def _described(tree: Any) -> str:
    """Shapes and types of an array, or of the leaves of a pytree."""
    leaves = [f"shape {jnp.shape(x)} and type {jnp.result_type(x)}" for x in jax.tree.leaves(tree)]
    structure = jax.tree.structure(tree)
    form = "" if structure == jax.tree.structure(0) else f"the form {structure} with "
    return form + (", ".join(leaves) or "no numbers")


def _of_flat(matvec: Matvec, form: Form) -> Matvec:
    """The product as a function of flat vectors, whatever form the operator's vectors have."""
    layout = Layout.of(jax.eval_shape(form.zeros))
    return lambda vector: layout.flatten(matvec(layout.unflatten(vector)))


def _eigenpairs(
    matvec: Matvec,
    form: Form,
    key: PRNGKeyArray,
    evidence: Evidence,
    certificate: Certificate,
    goal: Goal,
    method: Literal["lanczos", "thick restart"] = "thick restart",
) -> Eigenpairs:
    """Ritz pairs with their certificate and a verdict in words, or what is wrong with products.

    Raises:
        ValueError: when the operator is not linear or not symmetric.
    """
    size = evidence.num_params
    if np.any(evidence.asymmetry > 100 * rounding(size, evidence.dtype) * evidence.norm):
        check_operator(_of_flat(matvec, form), size, key, evidence.dtype)
    pairs, matvecs = evidence.pairs, int(evidence.num_matvecs)
    status = tuple(STATUSES[index] for index in certificate.status.tolist())
    words = {"lanczos": "one Lanczos pass", "thick restart": "Lanczos with thick restarts"}[method]
    good, advice = status.count("converged"), ""
    if "not finite" in status:
        advice = "; the operator gives values that are not finite"
    elif "budget" in status:
        advice = "; allow more products (max_matvecs) or a larger tol"
    for choice in ("unranked", "tracked"):
        if choice in status:
            advice += f"; {status.count(choice)} {choice}, as requested"
    return Eigenpairs(
        pairs.values,
        pairs.vectors,
        certificate.residuals,
        certificate.intervals,
        float(certificate.upper_bound),
        float(certificate.lower_bound),
        (float(certificate.rank_bounds[0]), float(certificate.rank_bounds[1])),
        status,
        goal.failure_probability,
        orthogonality=float(pairs.orthogonality),
        num_matvecs=matvecs,
        message=f"{good} of {len(status)} converged after {matvecs} products of {words}{advice}",
        method=method,
    )
