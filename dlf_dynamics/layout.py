"""`Layout`: the form of a pytree of arrays, which converts it to a flat vector and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num, PyTree


@dataclass(frozen=True)
class Layout:
    """Structure, shapes and types of the leaves of a pytree.

    It compares by value, so that functions compiled for a layout serve all trees with that layout.

    Attributes:
        structure: structure of the tree.
        shapes: shapes of the leaves.
        dtypes: names of the types of the leaves.

    >>> layout = Layout.of({"bias": jnp.zeros(2), "count": jnp.int32(3)})
    >>> vector = layout.flatten({"bias": jnp.ones(2), "count": jnp.int32(7)})
    >>> vector.tolist(), int(layout.unflatten(vector)["count"])
    ([1.0, 1.0, 7.0], 7)
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, tree: PyTree) -> Layout:
        """The layout of a pytree of arrays, or of their `jax.ShapeDtypeStruct`s."""
        leaves, structure = jax.tree.flatten(tree)
        # result_type takes ten times as long, and `Recorder` calls this at each record.
        kinds = [x.dtype if isinstance(x, Array) else jnp.result_type(x) for x in leaves]
        return cls(structure, tuple(map(jnp.shape, leaves)), tuple(kind.name for kind in kinds))

    def widened(self) -> Layout:
        """The same layout with float64 in place of float32."""
        dtypes = tuple("float64" if name == "float32" else name for name in self.dtypes)
        return replace(self, dtypes=dtypes)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(map(prod, self.shapes))

    def flatten(self, tree: PyTree) -> Num[Array, " size"]:
        """All numbers of the tree in one vector; integers are exact below 2^24."""
        leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]
        dtype = jnp.result_type(float) if not leaves else jnp.result_type(*leaves)
        return jnp.concatenate([jnp.zeros(0, dtype), *[leaf.astype(dtype) for leaf in leaves]])

    def unflatten(self, vector: Num[Array, "*rows size"]) -> Any:
        """The tree with these numbers, in the types of the layout; rows give leaves with rows."""
        parts, start = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            part = vector[..., start : start + prod(shape)]
            parts.append(part.reshape(*vector.shape[:-1], *shape).astype(dtype))
            start += prod(shape)
        return jax.tree.unflatten(self.structure, parts)

    def describe(self) -> str:
        """The leaves and their places in the vector as text: path, shape and start of each."""
        blank = jax.tree.unflatten(
            self.structure, [jax.ShapeDtypeStruct(shape, float) for shape in self.shapes]
        )
        lines, start = [], 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(blank):
            lines.append(f"{jax.tree_util.keystr(path)} {tuple(leaf.shape)} {start}")
            start += prod(leaf.shape)
        return "\n".join(lines)
