"""`Bifurcations`: the instabilities of a run, and the motion in which they are seen; its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.bifurcation.frozen import FrozenDiagram, frozen_diagrams
from dlf_dynamics.analysis.bifurcation.instabilities import Instability, describe
from dlf_dynamics.analysis.bifurcation.location import locate_crossings
from dlf_dynamics.analysis.bifurcation.motion import Motion, follow, joined
from dlf_dynamics.analysis.events import Crossing, find_oscillations, join_crossings
from dlf_dynamics.analysis.replay import Replay
from dlf_dynamics.analysis.stability import (
    instability_threshold,
    refusal,
    threshold_label,
)
from dlf_dynamics.analysis.trajectory import Solver
from dlf_dynamics.config import BifurcationConfig, SpectrumConfig, span_of
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import damaged
from dlf_dynamics.provenance import provenance
from dlf_dynamics.resultfile import (
    Arrays,
    Parts,
    inside,
    pack,
    pack_table,
    unpack,
    unpack_table,
)
from dlf_dynamics.run import Run


@dataclass(frozen=True)
class Bifurcations:
    """What `dlf-dynamics bifurcations` found.

    Attributes:
        run_id: of the run.
        config: of the analysis.
        label: what the threshold is, or why none is used.
        note: how closely the replay met the checkpoints.
        motion: at every step, and the curvature at some.
        thresholds: at the steps that were looked at; NaN where none may be used.
        crossings: of the threshold at the centres, located.
        instabilities: in the order of steps.
        diagrams: with the loss frozen at some steps.
    """

    run_id: str
    config: BifurcationConfig
    label: str
    note: str
    motion: Motion
    thresholds: np.ndarray
    crossings: list[Crossing]
    instabilities: list[Instability]
    diagrams: list[FrozenDiagram]

    @property
    def not_converged(self) -> int:
        """Steps that were looked at and whose largest eigenvalue did not converge."""
        return int(np.sum(~self.motion.converged & (self.motion.looked_at > 0)))


def default_path(run_path: Path) -> Path:
    """`run.h5` has its bifurcations in `run.bifurcations.h5`."""
    return run_path.with_suffix(".bifurcations.h5")


def span_of_steps(run: Run, config: BifurcationConfig) -> tuple[int, int]:
    """First step to look at, a multiple of `every`, and the step after the last.

    Raises:
        ConfigError: when `steps` is not a:b, or holds no recorded step.
    """
    recorded = run.checkpoint_steps
    first, last = (int(recorded[0]), int(recorded[-1])) if len(recorded) else (0, 0)
    start, stop = span_of(config.steps, "steps")
    start, stop = max(int(start), first), min(stop, last)
    # A multiple of `every`, so that the same steps are looked at whatever the span.
    aligned = max(start - start % config.every, -(-first // config.every) * config.every)
    if stop <= max(start, aligned):
        raise ConfigError(
            f"steps {config.steps} holds no recorded step; the run's are {first} to {last}"
        )
    return aligned, int(stop)


def compute_bifurcations(
    run: Run,
    config: BifurcationConfig | None = None,
    *,
    parts: Parts | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Bifurcations:
    """Crossings, onsets, periods, sizes and kinds of the instabilities of a run.

    Args:
        run: a recorded run.
        config: how to look.
        parts: where finished parts are kept, so that an interrupted analysis goes on.
        progress: told how many steps are done.

    Raises:
        ConfigError: when no recorded step is asked for.
    """
    config = BifurcationConfig() if config is None else config
    if not run.own_updates:
        raise ConfigError(
            f"{run.path} was recorded of mini-batches that are not known, or without its "
            "optimizer; its steps cannot be made again, and nothing is known between checkpoints"
        )
    parts = Parts(None) if parts is None else parts
    start, stop = span_of_steps(run, config)
    replay, solver = Replay(run), _solver(run, config)
    length = max(replay.length // config.every, 1) * config.every
    solver = solver._replace(segment_length=length // config.every)
    pieces = []
    for first in range(start, stop, length):
        last = min(first + length, stop)

        def piece(first: int = first, last: int = last) -> Arrays:
            made = follow(replay, solver, first, last, config.every)
            return made._asdict() | {"deviation": replay.deviation}

        arrays = parts.get_or_make(f"motion-{first}", piece)
        replay.deviation = max(replay.deviation, float(arrays.pop("deviation")))
        pieces.append(Motion(**arrays))
        progress(last - start)
    motion = joined(pieces)
    return _with_events(run, config, replay, solver, motion, parts)


def _solver(run: Run, config: BifurcationConfig) -> Solver:
    settings = SpectrumConfig(
        k=1, tol=config.tol, max_matvecs=config.max_matvecs, seed=config.seed, audit_every=1
    )
    return Solver.from_config(run, settings)


def _with_events(
    run: Run,
    config: BifurcationConfig,
    replay: Replay,
    solver: Solver,
    motion: Motion,
    parts: Parts,
) -> Bifurcations:
    thresholds = np.full(len(motion.looked_at), np.nan)
    crossings: list[Crossing] = []
    if refusal(run) is None:
        thresholds = instability_threshold(run.dynamics.optimizer, motion.looked_at)
        make = lambda: pack_table(Crossing, locate_crossings(replay, solver, motion))  # noqa: E731
        crossings = unpack_table(Crossing, parts.get_or_make("crossings", make))
    windows = find_oscillations(motion.steps, motion.loss, motion.update_cosine)
    found: list[Instability] = []
    for window in join_crossings(windows, crossings):
        made = parts.get_or_make(
            f"instability-{window.onset}",
            lambda window=window: pack_table(
                Instability, [describe(replay, solver, config, motion, window, crossings)]
            ),
        )
        found += unpack_table(Instability, made)
    return Bifurcations(
        run_id=run.run_id,
        config=config,
        label=refusal(run) or threshold_label(run),
        note=replay.note,
        motion=motion,
        thresholds=thresholds,
        crossings=crossings,
        instabilities=found,
        diagrams=_diagrams(replay, solver, config, found, parts),
    )


def _diagrams(
    replay: Replay,
    solver: Solver,
    config: BifurcationConfig,
    events: list[Instability],
    parts: Parts,
) -> list[FrozenDiagram]:
    """At the steps that were asked for; none for a run that has no map that stays the same."""
    run = replay.run
    if config.diagrams == "none" or refusal(run) or run.dynamics.adaptive:
        return []
    if config.diagrams == "auto":
        # The longest oscillation: in its middle the orbit has had time to settle.
        longest = max(events, key=lambda event: event.end - event.onset, default=None)
        steps = [] if longest is None else [(longest.onset + longest.end) // 2]
    else:
        steps = [int(step) for step in config.diagrams.split(",")]
        last = int(run.checkpoint_steps[-1])
        if max(steps) > last:
            raise ConfigError(f"diagrams has step {max(steps)}; the run's are 0 to {last}")
    found: list[FrozenDiagram] = []
    for step in steps:
        make = lambda step=step: _grouped(frozen_diagrams(replay, solver, step))  # noqa: E731
        found += _ungrouped(parts.get_or_make(f"diagrams-{step}", make))
    return found


def _grouped(diagrams: list[FrozenDiagram]) -> Arrays:
    return {
        f"{number}/{name}": array
        for number, diagram in enumerate(diagrams)
        for name, array in pack(diagram).items()
    }


def _ungrouped(arrays: Arrays) -> list[FrozenDiagram]:
    count = len({name.split("/")[0] for name in arrays})
    return [unpack(FrozenDiagram, inside(arrays, str(number))) for number in range(count)]


def save_bifurcations(found: Bifurcations, path: Path) -> None:
    """Writes the result file.

    Raises:
        FileError: when it cannot be written.
    """
    arrays: Arrays = {"threshold": found.thresholds}
    for name, group in (
        ("motion", found.motion._asdict()),
        ("crossings", pack_table(Crossing, found.crossings)),
        ("instabilities", pack_table(Instability, found.instabilities)),
        ("diagrams", _grouped(found.diagrams)),
    ):
        arrays |= {f"{name}/{key}": array for key, array in group.items()}
    settings = {
        "bifurcations": dataclasses.asdict(found.config),
        "label": found.label,
        "note": found.note,
    }
    result = resultfile.Result("bifurcations", found.run_id, settings, provenance(), arrays)
    resultfile.write(path, result)


def load_bifurcations(path: str | Path, run: Run | None = None) -> Bifurcations:
    """Reads a result file.

    Args:
        path: of the file.
        run: the run that it must belong to.

    Raises:
        FileError: when it cannot be read, is damaged or belongs to another run.
    """
    path = Path(path)
    result = resultfile.read(path, "bifurcations")
    if run is not None:
        resultfile.require_run(path, result, run.path, run.run_id)
    try:
        return Bifurcations(
            run_id=result.run_id,
            config=BifurcationConfig(**result.config["bifurcations"]),
            label=result.config["label"],
            note=result.config["note"],
            motion=Motion(**inside(result.arrays, "motion")),
            thresholds=result.arrays["threshold"],
            crossings=unpack_table(Crossing, inside(result.arrays, "crossings")),
            instabilities=unpack_table(Instability, inside(result.arrays, "instabilities")),
            diagrams=_ungrouped(inside(result.arrays, "diagrams")),
        )
    except (KeyError, TypeError) as error:
        raise damaged(path, resultfile.FORMAT, error) from error
