"""Converts the state of a PyTorch optimizer to that of the corresponding optax transformation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.leaves import Name, Wanted, words

_IN_OPTAX = {
    "step": "count",
    "exp_avg": "mu",
    "exp_avg_sq": "nu",
    "square_avg": "nu",
    "momentum_buffer": "trace",
}
"""Names in optax for the arrays that PyTorch's Adam, AdamW, RMSprop and SGD store."""


def find_torch_state(tree: Any) -> tuple[Name, Mapping[str, Any]] | None:
    """The `state_dict` of an optimizer in a checkpoint, with its prefix; None if there is none.

    Raises:
        ConfigError: when there are several.
    """
    optimizers = list(_optimizers(tree))
    if len(optimizers) > 1:
        listed = " and ".join(".".join(name) for name, _ in optimizers)
        raise ConfigError(
            f"it has the states of several optimizers ({listed}); expected one: save the network "
            "with its own, or the parameters alone"
        )
    return optimizers[0] if optimizers else None


def _optimizers(tree: Any, before: Name = ()) -> Iterator[tuple[Name, Mapping[str, Any]]]:
    """The `state_dict`s of optimizers, which trainers store in dictionaries and lists."""
    if isinstance(tree, Mapping):
        if _is_optimizer(tree):
            yield before, tree
            return
        for key, item in tree.items():
            yield from _optimizers(item, before + words(str(key)))
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from _optimizers(item, (*before, str(index)))


def _is_optimizer(tree: Mapping[str, Any]) -> bool:
    """Whether a tree has the form of `torch.optim.Optimizer.state_dict()`."""
    state, groups = tree.get("state"), tree.get("param_groups")
    return (
        isinstance(state, Mapping)
        and isinstance(groups, list)
        and len(groups) > 0
        and all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups)
    )


def updates_made(tree: Any) -> int | None:
    """The count of updates in a checkpoint's optimizer, if it is the same for all parameters."""
    state = find_torch_state(tree)
    kept = state[1]["state"].values() if state else ()
    counts = {float(np.asarray(k["step"])) for k in kept if isinstance(k, Mapping) and "step" in k}
    return int(counts.pop()) if len(counts) == 1 else None


def as_optax(
    torch_state: Mapping[str, Any], names: Sequence[Name], wanted: Wanted, step: int
) -> dict[Name, np.ndarray] | None:
    """The leaves of the optax state by name; None if they cannot be determined.

    PyTorch numbers the parameters in the order in which the optimizer received them, group after
    group, and stores their names only if it received names. Without names there must be only one
    group, made of `module.parameters()`.

    Args:
        torch_state: `state_dict` of the optimizer.
        names: names of the parameters, in the order of the module.
        wanted: form of the optax state.
        step: number of updates made, for optax transformations that count them where PyTorch's do
            not.
    """
    groups = torch_state["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    stored = [words(str(name)) for group in groups for name in group.get("param_names", ())]
    if len(numbers) != len(names) or (len(groups) > 1 and len(stored) != len(numbers)):
        return None
    if not torch_state["state"] and step == 0 and all(map(kind_of, wanted.shapes)):
        kinds = zip(wanted.shapes.items(), wanted.dtypes, strict=True)
        return {
            leaf: np.zeros(shape, dtype) for (leaf, shape), dtype in kinds
        }  # no update was made
    order = stored if len(stored) == len(numbers) else list(names)
    kept: dict[Name, np.ndarray] = {}
    for number, name in zip(numbers, order, strict=True):
        for key, value in torch_state["state"].get(number, {}).items():
            if value is not None and np.size(value):
                kept[(_IN_OPTAX.get(str(key), str(key)), *name)] = np.asarray(value)
    return _taken(kept, names, wanted, step)


def _taken(
    kept: Mapping[Name, np.ndarray], names: Sequence[Name], wanted: Wanted, step: int
) -> dict[Name, np.ndarray] | None:
    """For each leaf of the optax state the array of PyTorch; counts are shared by all parameters.

    Raises:
        ConfigError: when PyTorch stores arrays that the optax transformation does not.
    """
    kinds = {name[0] for name in kept} - {"count"}
    odd = sorted(kinds - {word for leaf in wanted.shapes for word in leaf})
    if odd:
        raise ConfigError(
            f"its optimizer keeps {', '.join(odd)}, and the problem's does not; expected the optax "
            "transformation of the same rule, or None"
        )
    counts = {float(kept.get(("count", *name), step)) for name in names}
    taken: dict[Name, np.ndarray] = {}
    for leaf in wanted.shapes:
        start = _start(leaf)
        if leaf[start:] == ("count",) and len(counts) == 1:
            taken[leaf] = np.asarray(next(iter(counts)))
        elif leaf[start:] in kept:
            taken[leaf] = kept[leaf[start:]]
        else:
            return None
    return taken


def kind_of(leaf: Name) -> str:
    """The kind of a leaf of an optax state among those that PyTorch stores; empty for others.

    >>> kind_of(("0", "mu", "layer", "weight")), kind_of(("1", "scale"))
    ('mu', '')
    """
    return next(iter(leaf[_start(leaf) :]), "")


def _start(leaf: Name) -> int:
    """The index of the word that names the kind of a leaf."""
    return next((n for n, word in enumerate(leaf) if word in _IN_OPTAX.values()), len(leaf))
