"""Finds the leaves of a known tree among the named leaves of a checkpoint.

Names are compared by their words: `layers.0.weight`, `['layers'][0].weight` and `layers/0/weight`
are the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dlf_dynamics.errors import ConfigError

Name = tuple[str, ...]

_USUAL = {"params", "model", "state_dict", "model_state_dict", "module", "_orig_mod", "default"}
"""Words that programs put before the names of the trained parameters."""


def words(name: str) -> Name:
    """The words of a name, without the final `value` that nnx and others add."""
    parts = tuple(re.findall(r"\w+", name))
    return parts[:-1] if parts[-1:] == ("value",) and len(parts) > 1 else parts


def named(name: Name) -> str:
    """A name as messages show it."""
    return ".".join(name)


def leaves_of(tree: Any, before: Name = ()) -> Iterator[tuple[Name, np.ndarray]]:
    """The arrays and numbers in nested dictionaries and lists, by name; texts are left out.

    >>> [(named(name), leaf.shape) for name, leaf in leaves_of({"a.b": np.ones(2), "c": [1.0]})]
    [('a.b', (2,)), ('c.0', ())]
    """
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from leaves_of(item, before + tuple(re.findall(r"\w+", str(key))))
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from leaves_of(item, (*before, str(index)))
    else:
        leaf = np.asarray(tree)
        if leaf.dtype.kind not in "OSUmM":
            yield words(".".join(before)), leaf


def by_name(pairs: Iterable[tuple[Name, Any]]) -> dict[Name, Any]:
    """A dictionary of values by name.

    Raises:
        ConfigError: when a name occurs twice.
    """
    values: dict[Name, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ConfigError(
                f"two of its leaves have the name {named(name)}; expected names that differ in "
                "their words"
            )
        values[name] = value
    return values


class Wanted(NamedTuple):
    """A tree whose leaves are looked for in a checkpoint.

    Attributes:
        structure: structure of the tree.
        shapes: shapes of the leaves by name, in their order.
        dtypes: types of the leaves, in the same order.
    """

    structure: Any
    shapes: dict[Name, tuple[int, ...]]
    dtypes: list[np.dtype]

    @classmethod
    def of(cls, tree: PyTree) -> Wanted:
        """The tree whose leaves are arrays or their `jax.ShapeDtypeStruct`s.

        Raises:
            ConfigError: when two leaves have the same name.
        """
        pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
        if not pairs:
            return cls(structure, {}, [])
        names = [words(jax.tree_util.keystr(path)) for path, _ in pairs]
        leaves = by_name(zip(names, (leaf for _, leaf in pairs), strict=True))
        shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
        return cls(structure, shapes, [np.dtype(leaf.dtype) for leaf in leaves.values()])

    def taken(self, leaves: Mapping[Name, np.ndarray], prefix: Name) -> PyTree:
        """The tree, made of the leaves with this prefix.

        Raises:
            ConfigError: when a leaf has another shape, or a type that cannot be converted exactly.
        """
        chosen = []
        for (name, shape), dtype in zip(self.shapes.items(), self.dtypes, strict=True):
            leaf = leaves[prefix + name]
            if leaf.shape != shape:
                raise ConfigError(f"{named(name)} is of shape {leaf.shape}; expected {shape}")
            chosen.append(_in_type(leaf, dtype, name))
        return jax.tree.unflatten(self.structure, chosen)

    def prefixes(self, leaves: Mapping[Name, np.ndarray]) -> list[Name]:
        """Prefixes with which all leaves of the tree are found.

        Raises:
            ConfigError: when the tree has no leaves.
        """
        if not self.shapes:
            raise ConfigError("the problem has no parameters; expected some")
        first = next(iter(self.shapes))
        before = [name[: len(name) - len(first)] for name in leaves if ends_with(name, first)]
        return [p for p in before if all(p + name in leaves for name in self.shapes)]

    def prefix(self, leaves: Mapping[Name, np.ndarray], given: str | None = None) -> Name:
        """The prefix of the leaves of the tree.

        Args:
            leaves: leaves of a checkpoint.
            given: prefix given by the user; None looks for it.

        Raises:
            ConfigError: when leaves are missing, or there are several such trees.
        """
        if given is not None:
            self._require(leaves, words(given))
            return words(given)
        usual = [prefix for prefix in self.prefixes(leaves) if set(prefix) <= _USUAL]
        if () in usual or len(usual) == 1:
            return () if () in usual else usual[0]
        others = usual or self.prefixes(leaves)
        if not others:
            self._require(leaves, self._likely(leaves))
        raise ConfigError(
            f"it has such parameters under {' and '.join(map(named, others))}; expected a "
            "prefix that says which they are"
        )

    def _likely(self, leaves: Mapping[Name, np.ndarray]) -> Name:
        """The prefix with which most of the leaves are found."""
        counts: dict[Name, int] = {(): 0}
        for wanted in self.shapes:
            for name in leaves:
                if ends_with(name, wanted):
                    before = name[: len(name) - len(wanted)]
                    counts[before] = counts.get(before, 0) + 1
        return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))

    def _require(self, leaves: Mapping[Name, np.ndarray], prefix: Name) -> None:
        """Raises ConfigError unless all leaves are found."""
        missing = [named(name) for name in self.shapes if prefix + name not in leaves]
        if missing:
            stored = [named(name) for name in leaves]
            raise ConfigError(
                f"it lacks {_few(missing)} of the problem's parameters"
                f"{' under ' + named(prefix) if prefix else ''}; it has {_few(stored)}"
            )


def ends_with(name: Name, end: Name) -> bool:
    """Whether a name ends with these words."""
    return len(end) <= len(name) and name[len(name) - len(end) :] == end


def _few(names: list[str]) -> str:
    rest = len(names) - 3
    return (", ".join(names[:3]) or "nothing") + (f" and {rest} more" if rest > 0 else "")


def _in_type(leaf: np.ndarray, dtype: np.dtype, name: Name) -> np.ndarray:
    """The leaf in another type, which must hold all its numbers exactly.

    Raises:
        ConfigError: when the type does not.
    """
    # PyTorch stores counts of updates as floating-point numbers; they are whole numbers.
    whole = dtype.kind in "iu" and leaf.ndim == 0 and float(leaf).is_integer()
    counted = dtype.kind == "f" and leaf.dtype.kind in "biu"  # quantised, or something else
    if counted or not (whole or np.can_cast(leaf.dtype, dtype, "safe")):
        raise ConfigError(
            f"{named(name)} is of {leaf.dtype} and the problem's of {dtype}, which cannot hold its "
            f"numbers; expected a problem of parameters in {leaf.dtype}"
        )
    return leaf.astype(dtype, copy=False)
