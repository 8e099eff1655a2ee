"""`Form`: the vectors of an operator, one flat array or a pytree, on one device or on many.

Rows of vectors (a basis) are the same pytree with one more axis in front. Where leaves lie on
several devices, everything stays where it is: an inner product, or a block of them, takes one
exchange of its numbers between the devices, and linear combinations take none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dlf_dynamics.errors import DataError

Vector = PyTree[Float[Array, "..."]]
Rows = PyTree[Float[Array, "rows ..."]]
Operator = Callable[[], Callable[[Vector], Vector]]
"""Makes the matvec during tracing, so that what products share is computed once per call. It is a
`jax.tree_util.Partial`, whose contents are arguments of the compiled programs."""

_COLUMNS = 2**16
"""Numbers of each row that are handled at a time, so that they stay in the cache."""

_EXACT = "highest"
"""Precision of matrix products, in which GPUs may otherwise round float32 to ten bits."""


_TERMS = 2**12
"""Terms of an inner product that are summed in one go. CPUs add them one by one, which lost a sixth
of 6·10⁷ squares in float32 (measured); summed in pieces of this size the error is 67 eps."""

_GROWING = 2**17
"""Number of terms up to which the rounding of sums grows, to 366 eps."""


ALLOWANCE = 10
"""Multiple of the rounding of a product that is allowed for, as terms may cancel in it."""


def rounding(num_params: int, dtype: Any) -> float:
    """Relative rounding of a product and of inner products of n terms, as found in practice."""
    return float(np.finfo(dtype).eps) * (4 + min(num_params, _GROWING) ** 0.5)


@dataclass(frozen=True)
class Form:
    """The form of vectors and where they lie, hashable for `jax.jit`.

    Attributes:
        structure: structure of the pytree.
        shapes: shapes of its leaves.
        dtype: name of the type of all leaves.
        num_params: dimension n of the space.
        mesh: devices; none where all is on one.
        specs: how the leaves are distributed over the mesh.

    >>> form = Form.like({"weights": jnp.zeros((2, 3)), "bias": jnp.zeros(3)})
    >>> ones = jax.tree.map(jnp.ones_like, form.zeros())
    >>> form.num_params, float(form.norm(ones)) ** 2
    (9, 9.0)
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    num_params: int
    mesh: Mesh | None = None
    specs: tuple[PartitionSpec, ...] = ()

    @classmethod
    def flat(cls, num_params: int, dtype: Any, mesh: Mesh | None = None) -> Form:
        """The form of one array, in equal parts on the devices, the last padded with zeros."""
        size = num_params if mesh is None else -(-num_params // mesh.size) * mesh.size
        specs = () if mesh is None else (PartitionSpec(mesh.axis_names),)
        one = jax.tree.structure(0)
        return cls(one, ((size,),), jnp.dtype(dtype).name, num_params, mesh, specs)

    @classmethod
    def like(cls, tree: PyTree) -> Form:
        """The form of a pytree of arrays or `jax.ShapeDtypeStruct`s, located where they are.

        Raises:
            DataError: when leaves differ in type, or lie on different sets of several devices.
        """
        leaves, structure = jax.tree.flatten(tree)
        shapes = tuple(tuple(jnp.shape(leaf)) for leaf in leaves)
        names = sorted({jnp.result_type(leaf).name for leaf in leaves})
        if len(names) != 1 or not jnp.issubdtype(names[0], jnp.floating):
            raise DataError(
                f"leaves have the types {', '.join(names) or 'of nothing'}; expected one "
                "floating-point type"
            )
        where = [getattr(leaf, "sharding", None) for leaf in leaves]
        many = [s for s in where if isinstance(s, NamedSharding) and s.mesh.size > 1]
        meshes: list[Any] = list(dict.fromkeys(sharding.mesh for sharding in many))
        if len(meshes) > 1:
            raise DataError(f"leaves lie on {len(meshes)} meshes of devices; expected one mesh")
        mesh = meshes[0] if meshes else None
        specs = tuple(s.spec if isinstance(s, NamedSharding) else PartitionSpec() for s in where)
        size = sum(map(prod, shapes))
        return cls(structure, shapes, names[0], size, mesh, specs if many else ())

    def zeros(self, *rows: int) -> Any:
        """A vector of zeros, or rows of them."""
        leaves = [jnp.zeros((*rows, *shape), self.dtype) for shape in self.shapes]
        return self.placed(jax.tree.unflatten(self.structure, leaves))

    def random(self, key: PRNGKeyArray, *rows: int) -> Any:
        """Independent normal numbers, the same for any number of devices."""
        if self.is_flat:
            drawn = jax.random.normal(key, (*rows, self.num_params), self.dtype)
            return self.placed(self._filled(drawn))
        keys = jax.random.split(key, len(self.shapes))
        leaves = [
            jax.random.normal(k, (*rows, *shape), self.dtype)
            for k, shape in zip(keys, self.shapes, strict=True)
        ]
        return self.placed(jax.tree.unflatten(self.structure, leaves))

    def inner(self, some: Any, others: Any) -> Array:
        """Inner products of vectors or rows with vectors or rows."""
        if self.mesh is None:
            return self._inner(some, others)
        # Outside `shard_map` there would be an exchange for each leaf.
        axes = self.mesh.axis_names
        return jax.shard_map(
            lambda *parts: jax.lax.psum(self._inner(*parts), axes),
            mesh=self.mesh,
            in_specs=(self._spec(some), self._spec(others)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(some, others)

    def norm(self, vector: Any) -> Array:
        """Euclidean norm."""
        return jnp.sqrt(self.inner(vector, vector))

    def combined(self, coefficients: Array, rows: Any) -> Any:
        """Σ_r c_r (row r), or one such sum for each row of coefficients."""
        return jax.tree.map(
            lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, 1, precision=_EXACT),
            rows,
        )

    def rotated(self, rotation: Float[Array, "rows rows"], basis: Any) -> Any:
        """The basis with its rows rotated in place: no second basis is needed."""
        turned = lambda basis: jax.tree.map(partial(_turned, rotation), basis)  # noqa: E731
        if self.mesh is None:
            return turned(basis)
        spec = self._spec(basis)
        mapped = jax.shard_map(
            turned, mesh=self.mesh, in_specs=(spec,), out_specs=spec, check_vma=False
        )
        return mapped(basis)

    def outside(self, vector: Any, basis: Any, used: Array | None = None) -> tuple[Any, Array]:
        """The part of a vector outside the rows, and its overlaps with them.

        Two sweeps of Gram-Schmidt; twice is enough (Parlett, §6.9).

        Args:
            vector: any vector.
            basis: orthonormal rows.
            used: which rows count; none means all, the rest being 0.
        """
        vector, first = self.swept(vector, basis, used)
        vector, second = self.swept(vector, basis, used)
        return vector, first + second

    def swept(self, vector: Any, basis: Any, used: Array | None = None) -> tuple[Any, Array]:
        """The same with one sweep."""
        overlaps = self.inner(basis, vector)
        overlaps = overlaps if used is None else jnp.where(used, overlaps, 0)
        return jax.tree.map(jnp.subtract, vector, self.combined(overlaps, basis)), overlaps

    def continued(
        self, product: Any, basis: Any, index: Int[Array, ""], used: Array
    ) -> tuple[Any, Array, Array]:
        """The part of a product with one of the rows outside all rows, its overlaps and its norm.

        The components along the row itself and the one before are removed first, which is nearly
        everything in a Krylov chain. One sweep over all rows then suffices, unless it removed more
        than it left (Daniel, Gragg, Kaufman and Stewart, Math. Comp. 30, 1976, 772).

        Args:
            product: product of the operator with the row.
            basis: orthonormal rows.
            index: index of the row.
            used: which of the rows count.
        """
        first, slices = jnp.maximum(index - 1, 0), jax.lax.dynamic_slice_in_dim
        near = jax.tree.map(lambda leaf: slices(leaf, first, 2), basis)
        rest, close = self.swept(product, near, slices(used, first, 2))
        rest, taken = self.swept(rest, basis, used)
        left = self.norm(rest)

        def once_more(rest: Any) -> tuple[Any, Array, Array]:
            rest, again = self.swept(rest, basis, used)
            return rest, again, self.norm(rest)

        kept = lambda rest: (rest, jnp.zeros_like(taken), left)  # noqa: E731
        enough = jnp.linalg.norm(taken) <= left
        rest, again, left = jax.lax.cond(enough, kept, once_more, rest)
        taken = taken + again
        close = close + slices(taken, first, 2)
        return rest, jax.lax.dynamic_update_slice_in_dim(taken, close, first, 0), left

    def less(self, vector: Any, factor: Array, part: Any) -> Any:
        """The vector minus a multiple of another one."""
        return jax.tree.map(jnp.subtract, vector, self.scaled(part, factor))

    def unit_outside(self, vector: Any, basis: Any, used: Array | None = None) -> Any:
        """The part of a vector orthogonal to the rows, normalised; 0 where it is only rounding.

        The arguments are those of `outside`.
        """
        vector, _ = self.outside(self.scaled(vector, 1 / self.norm(vector)), basis, used)
        length = self.norm(vector)
        left = length > rounding(self.num_params, self.dtype)
        vector = self.scaled(vector, jnp.where(left, 1 / jnp.where(left, length, 1), 0))
        # The rest of a vector that lay almost within the rows needs to be orthogonalised again.
        vector, _ = self.outside(vector, basis, used)
        return self.scaled(vector, 1 / jnp.where(left, self.norm(vector), 1))

    def scaled(self, vector: Any, factor: Array) -> Any:
        """The vector times a number."""
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), vector)

    def row(self, rows: Any, index: Int[Array, ""] | int) -> Any:
        """One of the rows."""
        return jax.tree.map(lambda leaf: leaf[index], rows)

    def with_row(self, rows: Any, index: Int[Array, ""] | int, vector: Any) -> Any:
        """The rows with one of them replaced."""
        return jax.tree.map(lambda leaf, new: leaf.at[index].set(new), rows, vector)

    def matvec(self, operator: Operator) -> Callable[[Any], Any]:
        """The operator's products, in the full precision of their type, where the vectors lie."""
        with jax.default_matmul_precision(_EXACT):
            product = operator()

        def matvec(vector: Any) -> Any:
            with jax.default_matmul_precision(_EXACT):
                return self.placed(self._filled(product(self._trimmed(vector))))

        return matvec

    def placed(self, tree: Any) -> Any:
        """A vector or rows, kept where they should lie; a compiler might move them otherwise."""
        if self.mesh is None:
            return tree
        explicit = all(kind == AxisType.Explicit for kind in self.mesh.axis_types)
        put = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
        return jax.tree.map(
            lambda leaf, spec: put(leaf, self._sharding(spec)), tree, self._spec(tree)
        )

    def received(self, tree: Any) -> Any:
        """Vectors or rows from elsewhere, in this type and location."""
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), tree)
        if self.mesh is None:
            return tree
        tree = self._filled(tree)
        return jax.tree.map(
            lambda leaf, spec: jax.device_put(leaf, self._sharding(spec)),
            tree,
            self._spec(tree),
        )

    @property
    def is_flat(self) -> bool:
        """Whether vectors are single arrays of one axis."""
        return self.structure == jax.tree.structure(0) and len(self.shapes[0]) == 1

    def on_host(self, tree: Any) -> np.ndarray:
        """Flat vectors or rows as NumPy arrays without padding, on every host."""
        if self.mesh is not None and isinstance(tree, Array):
            tree = jax.jit(self._trimmed, out_shardings=self._sharding(PartitionSpec()))(tree)
        return np.asarray(tree)

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, spec)

    def _spec(self, tree: Any) -> Any:
        leaves = jax.tree.leaves(tree)
        specs = [
            PartitionSpec(*[None] * (leaf.ndim - len(shape)), *spec)
            for leaf, shape, spec in zip(leaves, self.shapes, self.specs, strict=True)
        ]
        return jax.tree.unflatten(self.structure, specs)

    def _inner(self, some: Any, others: Any) -> Array:
        """Inner products of the parts on one device; copies of a leaf count once altogether."""
        total: Any = 0
        leaves = zip(jax.tree.leaves(some), jax.tree.leaves(others), self.shapes, strict=True)
        for index, (a, b, shape) in enumerate(leaves):
            flat = (leaf.reshape(*leaf.shape[: leaf.ndim - len(shape)], -1) for leaf in (a, b))
            total = total + _inner(*flat) / self._copies(index)
        return total

    def _copies(self, index: int) -> int:
        """Number of devices that hold each number of a leaf."""
        if self.mesh is None:
            return 1
        named = [axis for axis in jax.tree.leaves(tuple(self.specs[index])) if axis is not None]
        return self.mesh.size // prod(self.mesh.shape[axis] for axis in named)

    def _filled(self, tree: Any) -> Any:
        """Padded with zeros, where a flat vector is longer than the dimension of the space."""
        if sum(map(prod, self.shapes)) == self.num_params:
            return tree
        extra = self.shapes[0][0] - tree.shape[-1]
        return jnp.pad(tree, [*[(0, 0)] * (tree.ndim - 1), (0, extra)])

    def _trimmed(self, tree: Any) -> Any:
        if sum(map(prod, self.shapes)) == self.num_params:
            return tree
        return tree[..., : self.num_params]


def _inner(a: Float[Array, "*rows n"], b: Float[Array, "*others n"]) -> Array:
    """Inner products of vectors or rows."""
    at_once = partial(jnp.tensordot, axes=(-1, -1), precision=_EXACT)
    size = a.shape[-1]
    if size <= _TERMS:
        return at_once(a, b)

    def in_pieces(a: Array, b: Array) -> Array:
        def piece(i: Array) -> Array:
            cut = partial(
                jax.lax.dynamic_slice_in_dim, start_index=i * _TERMS, slice_size=_TERMS, axis=-1
            )
            return at_once(cut(a), cut(b))

        whole = size // _TERMS
        sums = jnp.sum(jax.lax.map(piece, jnp.arange(whole)), axis=0)
        return sums + at_once(a[..., whole * _TERMS :], b[..., whole * _TERMS :])

    # Accelerators sum pairwise, as in a tree.
    return jax.lax.platform_dependent(a, b, cpu=in_pieces, default=at_once)


def _turned(rotation: Float[Array, "rows rows"], leaf: Float[Array, "rows ..."]) -> Array:
    rotation = rotation.astype(leaf.dtype)
    columns = leaf.reshape(len(leaf), -1)
    whole = columns.shape[1] // _COLUMNS
    turn = partial(jnp.matmul, rotation, precision=_EXACT)

    def some(i: Array, columns: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(columns, i * _COLUMNS, _COLUMNS, axis=1)
        return jax.lax.dynamic_update_slice(columns, turn(part), (0, i * _COLUMNS))

    if whole:
        columns = jax.lax.fori_loop(0, whole, some, columns)
    rest = slice(whole * _COLUMNS, None)
    return columns.at[:, rest].set(turn(columns[:, rest])).reshape(leaf.shape)
