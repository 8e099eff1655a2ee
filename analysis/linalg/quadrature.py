"""Stochastic Lanczos quadrature: the spectral density of a symmetric operator by random probes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.linalg.ritz import Matvec
from dlf_dynamics.analysis.linalg.vectors import Form


class Quadrature(NamedTuple):
    """Gauss rules of random probes; their mean over the probes is the spectral density.

    For a probe q, Σ_j weights_j p(nodes_j) = qᵀ p(A) q for polynomials p of degree below twice the
    number of steps. Its expectation is tr p(A) / n, as q is a random unit vector.

    Attributes:
        nodes: ascending; in the units of the operator.
        weights: weights that sum to 1; 0 for nodes that a rule of fewer steps does not have.
        inside: tr QᵀAQ and ‖AQ‖_F², with the basis Q of the first probe, which contains outliers.
        outside: the rest of tr A and ‖A‖_F², estimated by each of the other probes.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    inside: Float[Array, "2"]
    outside: Float[Array, "probes_minus_1 2"]


def slq(
    matvec: Matvec,
    size: int,
    *,
    num_steps: int,
    num_probes: int,
    key: PRNGKeyArray,
    dtype: Any = float,
) -> Quadrature:
    """Stochastic Lanczos quadrature of a symmetric operator (Ubaru, Chen and Saad, 2017).

    Probes are uniform on the unit sphere. Their distribution, and so that of every error, depends
    only on the eigenvalues, not on the basis. Outliers would dominate the spread of n qᵀAq and skew
    it. Therefore trace and Frobenius norm are exact on the Krylov space of the first probe, and the
    other probes, with one more product each, estimate the rest (Meyer, Musco, Musco and Woodruff,
    Hutch++, 2021): in a complement of dimension m with eigenvalues μ_i, the trace has the variance
    2m/(m+2) Σ (μ_i - mean μ)² per probe. Traceable by JAX.

    Args:
        matvec: product with the operator.
        size: order n of the operator.
        num_steps: products per probe; more than n are allowed and add nothing.
        num_probes: random vectors.
        key: PRNG key for the probes.
        dtype: type of the vectors.

    Raises:
        ValueError: when there is no step, or fewer than the three probes that a spread needs.

    >>> matrix = jnp.diag(jnp.array([0.0, 0.0, 0.0, 4.0]))
    >>> rule = slq(
    ...     lambda v: matrix @ v, 4, num_steps=2, num_probes=1000, key=jax.random.key(0)
    ... )
    >>> [round(abs(float(node)), 4) for node in rule.nodes[0]]
    [0.0, 4.0]
    >>> [round(float(weight), 1) for weight in rule.weights.mean(axis=0)]
    [0.7, 0.3]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected at least 1")
    if num_probes < 3:
        raise ValueError(f"num_probes is {num_probes}; expected at least 3, for the error")

    def of_probe(held: Array, probe: tuple[Array, PRNGKeyArray]) -> tuple[Array, tuple]:
        first, key = probe
        vector = jax.random.normal(key, (size,), dtype)
        start = vector / jnp.linalg.norm(vector)
        basis, tridiagonal = _lanczos(matvec, start, num_steps)
        held = jnp.where(first, basis, held)
        rest = Form.flat(size, dtype).unit_outside(start, held)
        product = matvec(rest)
        dimension = size - jnp.sum(jnp.any(held != 0, axis=1))
        outside = dimension * jnp.stack([jnp.vdot(rest, product), jnp.vdot(product, product)])
        # The small matrix is handled in the best available precision.
        diagonal, off_diagonal = (part.astype(jnp.result_type(float)) for part in tridiagonal)
        squares = jnp.sum(diagonal**2) + 2 * jnp.sum(off_diagonal**2) - off_diagonal[-1] ** 2
        inside = jnp.stack([jnp.sum(diagonal), squares])
        return held, (*_gauss(diagonal, off_diagonal), inside, outside)

    keys = jax.random.split(key, num_probes)
    start = jnp.zeros((num_steps, size), dtype)
    _, rules = jax.lax.scan(of_probe, start, (jnp.arange(num_probes) == 0, keys))
    nodes, weights, inside, outside = rules
    return Quadrature(nodes, weights, inside[0], outside[1:])


def _lanczos(
    matvec: Matvec, start: Float[Array, " n"], num_steps: int
) -> tuple[Float[Array, "steps n"], tuple[Float[Array, " steps"], Float[Array, " steps"]]]:
    """The basis; diagonal and off-diagonal of the matrix in it, including the last coupling.

    Every new direction is orthogonalised twice against the whole basis. Where the space of the
    start vector is exhausted the direction is 0, and so is all that follows.
    """
    form = Form.flat(start.size, start.dtype)
    # Rounding leaves up to 40 eps of a product within the space, whatever n (measured).
    negligible = 100 * jnp.finfo(start.dtype).eps

    def extend(
        carry: tuple[Array, Array, Array], step: Int[Array, ""]
    ) -> tuple[Any, tuple[Array, Array]]:
        basis, direction, norm = carry
        basis = basis.at[step].set(direction)
        product = matvec(direction)
        norm = jnp.maximum(norm, jnp.linalg.norm(product))
        rest, _ = form.outside(product, basis)
        length = form.norm(rest)
        exhausted = (length <= negligible * norm) | (step + 1 >= start.size)
        direction = jnp.where(exhausted, 0, rest / jnp.where(exhausted, 1, length))
        return (basis, direction, norm), (
            jnp.vdot(basis[step], product),
            jnp.where(exhausted, 0, length),
        )

    carry = (jnp.zeros((num_steps, start.size), start.dtype), start, jnp.zeros((), start.dtype))
    (basis, _, _), tridiagonal = jax.lax.scan(extend, carry, jnp.arange(num_steps))
    return basis, tridiagonal


def _gauss(
    diagonal: Float[Array, " steps"], off_diagonal: Float[Array, " steps"]
) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    """Nodes and weights of the rule of a tridiagonal matrix (Golub and Welsch, 1969)."""
    inner = off_diagonal[:-1]
    finite = jnp.all(jnp.isfinite(diagonal)) & jnp.all(jnp.isfinite(inner))
    diagonal, inner = jnp.where(finite, diagonal, 0), jnp.where(finite, inner, 0)
    num_nodes = 1 + jnp.sum(inner > 0)
    rule = jnp.arange(len(diagonal)) < num_nodes
    largest = jnp.maximum(jnp.max(jnp.abs(diagonal)), jnp.max(inner, initial=0))
    scale = jnp.where(largest > 0, largest, 1)
    # Eigenvalues lie within 3 (Gershgorin); rows after a breakdown go above, to be distinguishable.
    diagonal, inner = jnp.where(rule, diagonal / scale, 4), inner / scale
    matrix = jnp.diag(diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    nodes = scale * jnp.minimum(values, values[num_nodes - 1])
    weights = jnp.where(rule, vectors[0] ** 2, 0)
    return jnp.where(finite, nodes, jnp.nan), jnp.where(finite, weights, jnp.nan)
