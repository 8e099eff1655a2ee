"""`import_checkpoints`: makes a run file from checkpoints that another program wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dlf_dynamics.adapters import frozen_in
from dlf_dynamics.checkpoint_files import (
    Tree,
    find_checkpoints,
    number_in_name,
    own_step,
    read_checkpoint,
)
from dlf_dynamics.config import ImportConfig
from dlf_dynamics.errors import ConfigError, UserError, shown
from dlf_dynamics.hyperparameters import hyperparameter_places
from dlf_dynamics.leaves import Name, Wanted, by_name, ends_with, leaves_of, named, words
from dlf_dynamics.loop import Setup
from dlf_dynamics.optimizers import has_mean_squares
from dlf_dynamics.outputs import hold, partial_path
from dlf_dynamics.ranges import MOST_STEPS
from dlf_dynamics.recorder import Recorder
from dlf_dynamics.torch_rules import RuleCheck, rule_of
from dlf_dynamics.torch_state import as_optax, find_torch_state

_EXISTS = "replace it with --overwrite (from Python, overwrite=True), or write elsewhere"
"""Advice about an output file that exists."""

_BOOKKEEPING = {"step", "global_step", "iteration", "num_updates", "epoch", "loss", "accuracy"}
"""Single numbers that programs store beside parameters."""


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        path: name of the run file.
        files: checkpoints, in the order of their steps.
        steps: steps of the checkpoints.
        num_params: number of parameters in each.
        notes: what the checkpoints lack and what follows from it, a line each.
    """

    path: Path
    files: list[Path]
    steps: list[int]
    num_params: int
    notes: list[str] = field(default_factory=list)


def import_checkpoints(
    checkpoints: Sequence[str | Path],
    setup: Setup | tuple[Any, Any, Any],
    output: str | Path,
    config: ImportConfig | None = None,
    *,
    name: str = "the optimizer",
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    read: Callable[[Path], Tree] = read_checkpoint,
) -> Imported:
    """Writes checkpoints into a run file, which all analyses read.

    Parameters are found by their names. Parameters in a checkpoint that the problem's model lacks
    must be ignored explicitly, and the frozen values of the model must equal those in the
    checkpoints: otherwise the checkpoints would belong to another model.

    Args:
        checkpoints: files and folders of orbax, Flax (msgpack), NumPy (npz), safetensors or PyTorch
            (a `state_dict`, or a dictionary that contains one); or folders of them.
        setup: problem, optimizer and parameters, as for `Recorder`; the values of the parameters do
            not matter.
        output: the run file.
        config: what to take, and how.
        name: name of the optimizer, for labels.
        overwrite: whether to replace an existing file.
        progress: called with the number of checkpoints done.
        read: function that reads a checkpoint.

    Raises:
        ConfigError: when a checkpoint does not fit the problem, two have the same step, or a
            library is missing.
        FileError: when a checkpoint cannot be read or the run file cannot be written.
    """
    config, setup = ImportConfig() if config is None else config, Setup(*setup)
    reader = _Reader(setup, config, read)
    numbered = reader.in_order(find_checkpoints(map(Path, checkpoints)))
    contents = reader.read_all(numbered)
    first = next(contents)
    stateful = setup.optimizer is not None and first.opt_state is not None
    files = [path for path, _ in numbered]
    output = _other_than(files, Path(output))
    with hold(output, None if overwrite else _EXISTS) as held:
        partial = partial_path(held.target)  # an existing file stays until everything is read
        recorder = Recorder(
            partial,
            setup.problem,
            optimizer=setup.optimizer,
            config={"checkpoints": [str(path) for path in files], **vars(config)},
            full_batch=config.full_batch,
            stateful=stateful,
            replayed=False,
            fixed_statistics=config.fixed_statistics or first.compared,
            name=name,
        )
        try:
            steps = _record(recorder, chain([first], contents), progress, stateful=stateful)
            held.place(partial)
        finally:
            partial.unlink(missing_ok=True)
    notes = _notes(setup, config, stateful=stateful) + reader.notes
    return Imported(output, files, steps, reader.num_params, notes)


def _other_than(files: Sequence[Path], output: Path) -> Path:
    """The output, which must not be one of the checkpoints.

    Raises:
        ConfigError: when it is one.
    """
    if output.resolve() in {path.resolve() for path in files}:
        raise ConfigError(f"output is {output}, one of the checkpoints; expected another name")
    return output


def _record(
    recorder: Recorder, read: Iterable[_Found], progress: Callable[[int], None], *, stateful: bool
) -> list[int]:
    """Records all checkpoints; returns their steps."""
    steps: list[int] = []
    with recorder:
        for each in read:
            if stateful and each.opt_state is None:
                raise ConfigError(
                    f"{each.path} holds no state of the optimizer, as the first does; expected it "
                    "in all checkpoints or in none"
                )
            recorder.record(each.step, each.params, each.opt_state if stateful else ())
            steps.append(each.step)
            progress(len(steps))
    return steps


class _Found(NamedTuple):
    """What was taken from a checkpoint.

    Attributes:
        path: path of the checkpoint.
        step: number of updates made before it.
        params: parameters of the problem.
        opt_state: state of its optimizer; None if it is not in the checkpoint.
        compared: whether the checkpoint has all frozen values of the model, and they are equal.
    """

    path: Path
    step: int
    params: PyTree
    opt_state: Any
    compared: bool


class _Reader:
    """Takes from each checkpoint what the problem needs, in the same way from all.

    Attributes:
        params: form of the parameters.
    """

    def __init__(self, setup: Setup, config: ImportConfig, read: Callable[[Path], Tree]) -> None:
        self._config, self._content = config, read
        self.params = Wanted.of(setup.params)
        self._frozen = {words(n): v for n, v in frozen_in(setup.problem.apply).items()}
        self._state: Wanted | None = None
        self._rule: RuleCheck | None = None
        if setup.optimizer is not None:
            self._state = Wanted.of(jax.eval_shape(setup.optimizer.init, setup.params))
            self._rule = RuleCheck(setup.optimizer, self.params)

    @property
    def notes(self) -> list[str]:
        """What is not compared of the PyTorch optimizers in the checkpoints."""
        return [] if self._rule is None else self._rule.notes

    @property
    def num_params(self) -> int:
        """Number of parameters in each checkpoint."""
        return sum(map(prod, self.params.shapes.values()))

    def in_order(self, paths: Sequence[Path]) -> list[tuple[Path, int | None]]:
        """The checkpoints in the order of their steps, each with the number in its name.

        Raises:
            ConfigError: when the numbers give no order, and the step of a checkpoint is unknown.
        """
        numbers = [number_in_name(path, self._config.step_pattern) for path in paths]
        numbered = list(zip(paths, numbers, strict=True))
        if len(set(numbers)) < len(paths):
            return sorted(numbered, key=lambda p: self._step(p[0], self._content(p[0]), p[1]))
        return sorted(numbered, key=lambda entry: entry[1] or 0)

    def read_all(self, numbered: Sequence[tuple[Path, int | None]]) -> Iterator[_Found]:
        """Reads one checkpoint after the other.

        Raises:
            ConfigError: when the step of a checkpoint is unknown or does not increase, or it
                belongs to another model.
        """
        before: _Found | None = None
        for path, number in numbered:
            content = self._read(path, number)
            if before is not None and content.step <= before.step:
                raise ConfigError(
                    f"{path} is of step {content.step}, after {before.path} of step {before.step}; "
                    "expected one checkpoint of each step, in the order of the numbers in their "
                    "names: say with step_pattern where these stand"
                )
            before = content
            yield content

    @property
    def _by_name(self) -> bool:
        """Whether the user says that the numbers in names give the steps."""
        return self._config.step_pattern is not None or self._config.steps_per_number > 1

    def _counted(self, state: Any, step: int, *, stated: bool) -> int:
        """The step by the counts in the optimizer's state.

        Args:
            state: state of the optimizer.
            step: step by the checkpoint or its name.
            stated: whether that step was stored or given by the user, and so must be the same.

        Raises:
            ConfigError: when it is not.
        """
        scalars = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        counts = {int(leaf) for leaf in scalars if leaf.ndim == 0 and leaf.dtype.kind in "iu"}
        if len(counts) != 1 or counts == {step}:
            return step
        (count,) = counts
        if stated:
            raise ConfigError(
                f"its step is {step}, and its optimizer has counted {count} updates; expected the "
                "same: say with step_pattern and steps_per_number what the numbers in names count"
            )
        return count

    def _step(self, path: Path, tree: Any, number: int | None) -> int:
        """The step stored in the checkpoint; by its name if it has none or names are to count."""
        step = None if self._by_name else own_step(tree)
        if step is None and number is not None:
            if not self._by_name and isinstance(tree, Mapping) and tree.get("epoch") == number:
                raise ConfigError(
                    f"the number of {path} is its epoch; expected a number of updates: say with "
                    "steps_per_number how many an epoch has"
                )
            step = number * self._config.steps_per_number
        if step is not None and not 0 <= step <= MOST_STEPS:
            raise ConfigError(f"the step of {path} is {shown(step)}; expected 0 to {MOST_STEPS:,}")
        if step is None:
            raise ConfigError(
                f"the step of {path} is not known; expected a number in its name, or a "
                "step_pattern that finds one"
            )
        return step

    def _read(self, path: Path, number: int | None) -> _Found:
        """Reads from a checkpoint what the problem needs.

        Raises:
            ConfigError: when it belongs to another model.
        """
        tree = self._content(path)
        step = self._step(path, tree, number)
        try:
            leaves = by_name(leaves_of(tree))
            prefix = self.params.prefix(leaves, self._config.prefix)
            params = self.params.taken(leaves, prefix)
            _require_finite(params)
            names = [n[len(prefix) :] for n in leaves if n[: len(prefix)] == prefix]
            state, used = self._opt_state(tree, leaves, names, step)
            step = self._counted(state, step, stated=self._by_name or own_step(tree) is not None)
            torch = find_torch_state(tree)
            if self._rule is not None and torch is not None:
                self._rule.require_alike(torch[1], step)
            frozen = self._compared(leaves)
            self._require_nothing_else(leaves, prefix, used | frozen)
        except UserError as error:
            raise ConfigError(f"{path} does not fit the problem: {error}") from error
        compared = bool(self._frozen) and all(
            any(ends_with(name, held) for name in frozen) for held in self._frozen
        )
        return _Found(path, step, params, state, compared)

    def _opt_state(
        self, tree: Any, leaves: Mapping[Name, np.ndarray], names: list[Name], step: int
    ) -> tuple[Any, set[Name]]:
        """The optimizer's state, if the checkpoint has it, and the names of its leaves.

        Args:
            tree: content of the checkpoint.
            leaves: leaves of the content by name.
            names: names of parameters and other leaves, in the order of the checkpoint.
            step: number of updates made.
        """
        torch = find_torch_state(tree)
        used = set() if torch is None else {n for n in leaves if n[: len(torch[0])] == torch[0]}
        if self._state is None:
            return None, used
        if torch is not None:
            ours = [name for name in names if name in self.params.shapes]
            translated = as_optax(torch[1], ours, self._state, step)
            known = all(map(rule_of, torch[1]["param_groups"]))
            if translated is None or not known:
                return None, used
            return self._state.taken(translated, ()), used
        counts = all(dtype.kind in "iu" for dtype in self._state.dtypes)
        if counts and not any(self._state.shapes.values()):  # counts of updates, or nothing
            counts_by_name = dict.fromkeys(self._state.shapes, np.asarray(step))
            return self._state.taken(counts_by_name, ()), set()
        prefixes = self._state.prefixes(leaves)
        if len(prefixes) != 1:
            return None, set()
        used = {name for name in leaves if name[: len(prefixes[0])] == prefixes[0]}
        if self._rule is not None:
            held = {name: leaves[prefixes[0] + name] for name in self._state.shapes}
            self._rule.require_own(held, step)
        return self._state.taken(leaves, prefixes[0]), used

    def _compared(self, leaves: Mapping[Name, np.ndarray]) -> set[Name]:
        """Names of the leaves that the model holds frozen, after checking that they are equal."""
        seen: set[Name] = set()
        for frozen, value in self._frozen.items():
            for name in leaves:
                if ends_with(name, frozen):
                    seen.add(name)
                    if value is not None and not np.array_equal(leaves[name], np.asarray(value)):
                        raise ConfigError(
                            f"{named(name)} is not what the problem's model holds frozen, and the "
                            "model is another one at each checkpoint; expected the same: analyse "
                            "such checkpoints one by one, each with the model adapted to it"
                        )
        return seen

    def _require_nothing_else(
        self, leaves: Mapping[Name, np.ndarray], prefix: Name, used: set[Name]
    ) -> None:
        """Raises ConfigError if the checkpoint has parameters that the problem does not have."""
        taken = {prefix + name for name in self.params.shapes}
        for name, leaf in leaves.items():
            if name in taken or name in used or name[: len(prefix)] != prefix:
                continue
            kept = leaf.ndim == 0 and name[-1] in _BOOKKEEPING and len(name) == 1
            if kept or re.search(self._config.ignore or r"(?!)", named(name)):
                continue
            varied = leaf.size > 1 and np.any(leaf != leaf.ravel()[0])  # equal zeros prove nothing
            if varied and any(np.array_equal(leaf, leaves[other]) for other in taken):
                continue  # tied weights: one tensor under two names
            raise ConfigError(
                f"it has {named(name)}, of shape {leaf.shape}, which the problem's model does not "
                "have; expected a model with it, or an ignore that names it"
            )


def _require_finite(params: PyTree) -> None:
    """Raises ConfigError if a parameter is not finite, as after a training that diverged."""
    for leaf in jax.tree.leaves(params):
        if not np.all(np.isfinite(leaf)):
            raise ConfigError(
                "its parameters are not all finite; expected numbers: leave out what was saved "
                "after the training diverged"
            )


def _notes(setup: Setup, config: ImportConfig, *, stateful: bool) -> list[str]:
    """What the checkpoints lack, and what follows from it."""
    if setup.optimizer is None:
        return ["no optimizer is known: there is no threshold"]
    notes = []
    if not config.full_batch:
        notes.append("mini-batches: there is no threshold (full_batch says otherwise)")
    if not stateful:
        blank = jax.eval_shape(setup.optimizer.init, setup.params)
        lacking = ""
        if has_mean_squares(blank):
            lacking = ": without its preconditioner there is no threshold"
        elif names := list(hyperparameter_places(setup.optimizer.init, setup.params)):
            lacking = f": {' and '.join(names)} may change in it, and then there is no threshold"
        notes.append(f"no state of the optimizer was taken from the checkpoints{lacking}")
    return notes
