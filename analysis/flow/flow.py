"""`Flow`: the central flow and other theories, held against the replayed steps of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from dlf_dynamics.analysis.flow.errors import TheoryError, counting, errors_of
from dlf_dynamics.analysis.flow.measured import first_step, require_measurable
from dlf_dynamics.analysis.flow.observed import Observed, observe
from dlf_dynamics.analysis.flow.segments import Segment, segment_of
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import find_oscillations
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.codec import decode, encode
from dlf_dynamics.config import FlowConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.parts import Parts
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.shown import Shown
from dlf_dynamics.source import Source
from dlf_dynamics.spans import span_of

_AUTOMATIC = 1000
"""Steps that are compared where none are requested."""

_BEFORE = 100
"""Steps from their start to the onset of the oscillation."""

_LOOKS = 5
"""Looks in a row at which theories may be applied; they start again at the first of them."""


@dataclass(frozen=True)
class Flow(Shown):
    """What `dlf-dynamics flow` found.

    Attributes:
        source: state of the run that was analysed.
        config: settings of the analysis.
        subject: what was trained, in a line.
        label: what the threshold is.
        replay: how closely the replayed steps meet the checkpoints.
        span: first and last step that were compared.
        observed: what the run did.
        segments: what theories predict, one for each start, in the order of steps.
        errors: how far each theory is off, over the looks that count.
    """

    source: Source
    config: FlowConfig
    subject: str
    label: str
    replay: str
    span: tuple[int, ...]
    observed: Observed
    segments: list[Segment]
    errors: list[TheoryError]
    told_by = "flow"
    __repr__ = brief

    @property
    def theories(self) -> list[str]:
        """Names, the central flow first."""
        return list(dict.fromkeys(p.name for s in self.segments for p in s.predictions))

    def measured(self, segment: Segment, name: str) -> np.ndarray:
        """A number of the looks of a segment, by its name in `Observed` or `Look`."""
        return self.observed.column(name)[segment.rows]

    def counts(self, segment: Segment) -> Bool[np.ndarray, " places"]:
        """Which looks of a segment count: those at which all since its start are valid."""
        return counting(self.observed, segment)

    def ahead(self, segment: Segment) -> Float[np.ndarray, " places"]:
        """Steps since the start of a segment."""
        return self.measured(segment, "step") - segment.start


def units(run: Run, config: FlowConfig) -> int:
    """Units of progress of `compute_flow`: each step twice, once measured and once predicted."""
    start, stop = _chosen_span(run, config)
    return 2 * (stop - start)


def compute_flow(
    run: Run,
    config: FlowConfig | None = None,
    *,
    parts: Parts | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Flow:
    """The central flow from the centre of a run, and how far it and other theories are off.

    Args:
        run: a full-batch run of `train` or `Recorder`, its updates ones that can be made again.
        config: which steps, and how the flow is integrated.
        parts: where finished segments are kept, so that an interrupted analysis goes on.
        progress: told how many steps are done, each of which is passed twice.
    """
    config = FlowConfig() if config is None else config
    parts = Parts(None) if parts is None else parts
    start, stop = _chosen_span(run, config)
    replay, length = Replay(run), stop - start
    observed = parts.get_or_make(
        "observed",
        lambda: encode(observe(replay, config, start, stop, lambda at: progress(at - start))),
        partial(decode, Observed),
    )
    replay.deviation = max(replay.deviation, observed.deviation)  # of what was done before, too
    steps, segments = observed.steps, list[Segment]()
    starts = starts_of(observed, config.restart_every)
    for first, last in pairwise([*starts, len(steps) - 1]):
        rows = np.arange(first, last + 1)

        def make(rows: np.ndarray = rows) -> dict:
            after = lambda at: progress(length + at - start)  # noqa: E731
            return encode(segment_of(replay, config, steps[rows], int(rows[0]), after))

        part = f"from-{steps[first]}"
        segments.append(parts.get_or_make(part, make, partial(decode, Segment)))
        progress(length + int(steps[last]) - start)
    return Flow(
        source=run.source,
        config=config,
        subject=run.subject,
        label=run_threshold(run).label(),
        replay=replay.note,
        span=(start, stop - 1),
        observed=observed,
        segments=segments,
        errors=errors_of(observed, segments),
    )


def starts_of(observed: Observed, restart_every: int | None) -> list[int]:
    """Indices of the looks at which the theories start.

    They start at the first look, and again after a break, once they may be applied at a few looks
    in a row: what they said during the break is not held against them. The run alone decides where.

    Args:
        observed: the run.
        restart_every: steps after which they start again in any case; none for never.
    """
    steps, valid, starts = observed.steps, observed.valid, [0]
    for index in range(1, len(steps) - 1):
        again = not valid[index - 1] and np.sum(valid[index : index + _LOOKS]) == _LOOKS
        due = restart_every is not None and steps[index] - steps[starts[-1]] >= restart_every
        if again or due:
            starts.append(index)
    return starts


def _chosen_span(run: Run, config: FlowConfig) -> tuple[int, int]:
    """First step that is compared, and the one after the last.

    Raises:
        ConfigError: when the run cannot be compared with a central flow, or the steps are not
            there.
    """
    _require(run)
    first, last = first_step(run) + 1, Replay(run).last - 1  # those that have a centre
    if config.steps == "auto":
        start, stop = _automatic(run, first, last)
    else:
        start, stop = span_of(config.steps, "steps")
        start, stop = max(int(start), first), int(min(stop, last + 1))
    if last <= first:
        raise ConfigError(
            f"{run.path} is of steps {first - 1} to {last + 1}, too few to compare; expected two "
            "with one before and one after them"
        )
    if stop - start < 2:
        raise ConfigError(
            f"steps {config.steps} holds no two steps with one before and one after them; those "
            f"of {run.path} are {first} to {last}"
        )
    return start, stop


def _require(run: Run) -> None:
    run.require_checkpoints("start from")
    if not run.own_updates:
        raise ConfigError(
            f"{run.path} was recorded without what makes its updates again; expected a run of "
            "train, or one recorded with its optimizer, that one's state and all examples"
        )
    require_measurable(run)


def _automatic(run: Run, first: int, last: int) -> tuple[int, int]:
    """Steps from a little before the longest oscillation; the last steps if there is none."""
    loss, cosine = (np.asarray(run.scalars[name], float) for name in ("loss", "update_cosine"))
    windows = find_oscillations(run.steps, loss, cosine) if len(run.steps) else []
    longest = max(windows, key=lambda window: window.end - window.onset, default=None)
    start = last + 1 - _AUTOMATIC if longest is None else longest.onset - _BEFORE
    start = max(start, first)
    return start, min(start + _AUTOMATIC, last + 1)
