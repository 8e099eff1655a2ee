"""The paragraph: what is known of a step in plain words, each claim with what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlf_dynamics.analysis.explanations.explanation import Explanation
from dlf_dynamics.analysis.explanations.mode import Direction, count_above
from dlf_dynamics.analysis.explanations.surroundings import Event
from dlf_dynamics.analysis.explanations.update_words import percent, told_of_updates
from dlf_dynamics.analysis.instabilities.lag import VISIBLE_RATIO
from dlf_dynamics.analysis.instabilities.periods import IRREGULAR
from dlf_dynamics.errors import counted

_ALONG = 0.5
"""Part of the distance from the centre from which an oscillation counts as along the mode."""

_NAMED = 0.05
"""Shares below this are not named."""

_MOST = 4
"""Shares that are named at most."""

_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


def paragraph(found: Explanation) -> str:
    """All that is known of a step, in one paragraph."""
    told = [
        _side(found),
        _iterate(found),
        _several(found),
        _mode(found),
        *_oscillation(found),
        _size(found),
        *told_of_updates(found),
        _conclusion(found),
        *[f"Not told: {line}." for line in found.not_told],
    ]
    return " ".join(sentence for sentence in told if sentence)


def headline(found: Explanation) -> str:
    """The side and the period, in a few words."""
    side = {1: "centre surely above the threshold", -1: "centre surely below the threshold"}
    words = side.get(found.mode.first().side, "side of the threshold not decided")
    if not np.isfinite(found.threshold):
        words = "no threshold"
    return f"step {found.step:,}: {words}; {_motion(found)}"


def _motion(found: Explanation) -> str:
    if found.unwatched:
        return "oscillations not told"
    named = {0: "not oscillating", IRREGULAR: "irregular oscillation"}
    return named.get(found.period, f"period {found.period}")


def _side(found: Explanation) -> str:
    """On which side of the threshold the centre is."""
    centre, words = found.mode.first(), _sharpness(found)
    start = f"At the centre of step {found.step:,} the {words}"
    if not np.isfinite(centre.value):
        return f"{start} is not finite."
    if not np.isfinite(found.threshold):
        return f"{start} is {_value(centre)}; no side of a threshold is told: {_why_none(found)}."
    limit = f"the threshold {found.threshold:.6g} ({found.label})"
    if centre.side == 0 and not centre.converged:
        return (
            f"{start} did not converge ({centre.value:.6g}, residual {centre.residual:.1e}), so it "
            f"is not decided on which side of {limit} it is."
        )
    if centre.side == 0:
        return (
            f"{start} is between {centre.lower:.10g} and {centre.upper:.10g}, so it is not decided "
            f"on which side of {limit} it is."
        )
    grows = "grows" if centre.side > 0 else "shrinks"
    side = "surely above" if centre.side > 0 else _below(found)
    growth = (
        f": by the linearised update there, a deviation along the top eigenvector {grows} by the "
        f"factor {found.growth:.4g} a step"
        if np.isfinite(found.growth)
        else ""
    )
    return f"{start} is {centre.value:.6g}, {side} {limit}{growth}."


def _sharpness(found: Explanation) -> str:
    return "preconditioned sharpness" if "frozen preconditioner" in found.label else "sharpness"


def _why_none(found: Explanation) -> str:
    if np.isinf(found.threshold):
        return "it is infinite, as no curvature makes this update unstable"
    return found.label.removeprefix("no threshold: ")


def _value(row: Direction) -> str:
    return f"{row.value:.6g}" + ("" if row.converged else " (not converged)")


def _iterate(found: Explanation) -> str:
    """The same at the iterate."""
    row = found.mode.first("iterate")
    if not np.isfinite(row.value):
        return "At the iterate itself it is not finite."
    if not np.isfinite(found.threshold):
        return f"At the iterate itself it is {_value(row)}."
    words = {1: "surely above", -1: _below(found)}.get(row.side, "side not decided")
    return f"At the iterate itself it is {_value(row)}, {words}."


def _below(found: Explanation) -> str:
    """It rests on an upper bound, which may fail; above rests on a product alone."""
    return f"surely below (but for a probability of {found.failure_probability:.0e})"


def _several(found: Explanation) -> str:
    """How many directions are above."""
    if not np.isfinite(found.threshold):
        return ""
    size = len(found.mode.vector)
    count, more = count_above(found.mode.directions, size=size)
    if count == 0:
        return ""
    along = _along_them(found, count)
    if count == 1:
        alone = "whether more are is not decided" if more else "all others are surely below"
        if size == 1:
            return "It is the only direction there is."
        return f"One direction is surely above the threshold there; {alone}."
    name = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    others = "there may be more" if more else "all others are surely below"
    return f"{name} directions are surely above the threshold there; {others}.{along}"


def _along_them(found: Explanation, count: int) -> str:
    """How far the iterate is from its centre along each of several directions."""
    sizes = [row.projection for row in found.mode.directions if row.at == "centre"][:count]
    if count < 2 or not np.all(np.isfinite(sizes)) or not 0 < found.amplitude < np.inf:
        return ""
    told = ", ".join(f"{size:.3g}" for size in sizes)
    share = percent(_share_above(found))
    return f" Along them the iterate is {told} away from its centre, together {share} of the way."


def _share_above(found: Explanation) -> float:
    """Part of the distance from the centre that is along directions surely above the threshold.

    Their eigenvectors are orthogonal.
    """
    count, _ = count_above(found.mode.directions)
    sizes = [row.projection for row in found.mode.directions if row.at == "centre"][:count]
    if len(sizes) < 2 or not np.all(np.isfinite(sizes)):
        sizes = [found.projection]
    return float(np.linalg.norm(sizes)) / found.amplitude if found.amplitude > 0 else 0.0


def _mode(found: Explanation) -> str:
    """Where the mode lies, and of which classes its curvature is."""
    if not found.mode.layers:
        return ""
    sure = "" if found.mode.first().converged else ", which did not converge,"
    # Leaves of networks that are not of this package have names of their own.
    own = all(" of layer " in row.name for row in found.mode.layers)
    where = "in the " if own else "in "
    layers = _shares([(row.name, row.share) for row in found.mode.layers], where)
    words = f"The top eigenvector{sure} lies {layers}"
    if found.mode.classes:
        named = [
            ("the penalty" if row.label < 0 else f"class {row.label}", row.share)
            for row in found.mode.classes
        ]
        words += f"; the curvature along it is {_shares(named, 'from ')}"
    return f"{words}."


def _shares(rows: Sequence[tuple[str, float]], where: str) -> str:
    """The largest shares in words; several small ones are left out."""
    largest = sorted(rows, key=lambda row: -abs(row[1]))
    named = [row for row in largest if abs(row[1]) >= _NAMED][:_MOST] or largest[:1]
    told = [f"{percent(share)} {where}{name}" for name, share in named]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def event_of(found: Explanation) -> Event | None:
    """The oscillation that the step lies in."""
    inside = [event for event in found.events if event.onset <= found.step <= event.end]
    return inside[0] if inside else None


def _oscillation(found: Explanation) -> list[str]:
    """In which oscillation the step lies, or which were and will be near it."""
    if found.unwatched:
        return [f"Oscillations are not told: {found.unwatched}."]
    event = event_of(found)
    if event is None:
        return [_outside(found), *[_lag(found, e) for e in found.events if e.onset > found.step]]
    begins = f"{'at' if event.onset_known else 'before'} step {event.onset:,}"
    ends = f"{'ends at' if event.end_known else 'goes on beyond'} step {event.end:,}"
    period = {
        0: "successive updates do not oppose each other here, so that it pauses",
        IRREGULAR: "the motion is irregular here: of period 2, 4 or 8 it is not",
    }.get(found.period, f"its period here is {found.period}")
    words = f"The step lies in an oscillation that began {begins} and {ends} ({found.origin})"
    return [f"{words}; {period}.", _lag(found, event)]


def _outside(found: Explanation) -> str:
    before = [event for event in found.events if event.end < found.step]
    after = [event for event in found.events if event.onset > found.step]
    told = []
    if before:
        gap = counted(found.step - before[-1].end, "step")
        told.append(f"the last one ended at step {before[-1].end:,}, {gap} before")
    if after:
        gap = counted(after[0].onset - found.step, "step")
        told.append(f"the next one begins at step {after[0].onset:,}, {gap} later")
    if not told:
        told = [f"none was seen in steps {found.first_looked:,} to {found.last_looked:,}"]
    here = (
        ""
        if found.period == 0
        else ("; successive updates oppose each other here, but in too few steps to count")
    )
    return f"The step lies in no oscillation: {' and '.join(told)} ({found.origin}){here}."


def _lag(found: Explanation, event: Event) -> str:
    """The lag behind the crossing, measured and predicted."""
    later = event.onset > found.step
    name, begins = ("That one", "begins") if later else ("It", "began")
    looked = f"steps looked at ({found.first_looked:,} to {found.last_looked:,})"
    if not np.isfinite(found.threshold):
        return ""
    if not event.begin_seen:
        first = (
            f", in which the first is up at step {event.crossed:,}" if event.crossed >= 0 else ""
        )
        return "" if later else f"Crossings before it are not known, but from the {looked}{first}."
    if event.crossed < 0:
        return "" if later else f"No crossing of the threshold belongs to it in the {looked}."
    if event.crossed > event.onset:
        return (
            f"{name} {begins} while the centres were not seen above the threshold: they cross it "
            f"up at step {event.crossed:,}, {counted(event.crossed - event.onset, 'step')} after "
            "the onset."
        )
    lag = counted(event.onset - event.crossed, "step")
    if event.predicted_lag >= 0:
        predicted = f"from the growth of rounding errors {event.predicted_lag:,} are predicted"
    elif found.kinks:
        predicted = "for a network with kinks none are predicted"
    else:
        predicted = "a prediction could not be made"
    return (
        f"{name} {begins} {lag} after the centres crossed the threshold (step {event.crossed:,}); "
        f"{predicted}."
    )


def _size(found: Explanation) -> str:
    """How far the iterate is from its centre, and along what."""
    if found.unwatched or not np.isfinite(found.projection) or not found.amplitude > 0:
        return ""
    if not _size_known(found):
        return "How far the iterate is from its centre is beyond the largest number."
    share = found.projection / found.amplitude
    words = (
        f"The iterate is {found.amplitude:.3g} away from its centre, "
        f"{found.projection:.3g} of it ({percent(share)}) along the top eigenvector"
    )
    if found.period == 0:
        return (
            f"{words}; the drift is {found.drift:.3g} a step, and an oscillation is seen from "
            f"{VISIBLE_RATIO:.2f} of that on."
        )
    event = event_of(found)
    if event is None or not np.isfinite(event.amplitude):
        return f"{words}."
    names = (("flip coefficient", event.flip_amplitude), ("rod equation", event.rod_amplitude))
    predicted = [f"{size:.2g} by the {name}" for name, size in names if np.isfinite(size)]
    known = f"predicted are {' and '.join(predicted)}" if predicted else "nothing is predicted"
    return (
        f"{words}. Of this oscillation the size was measured at step {event.settled:,}: "
        f"{event.amplitude:.2g} along the top eigenvector there; {known}."
    )


def _size_known(found: Explanation) -> bool:
    """Whether amplitude and drift are numbers; squares overflow in a run that diverges."""
    return bool(np.isfinite(found.amplitude) and np.isfinite(found.drift))


def _conclusion(found: Explanation) -> str:
    """What that comes to, and no more."""
    side, oscillating = found.mode.first().side, found.period != 0
    if not np.isfinite(found.threshold) or found.unwatched:
        return ""
    if side == 0:
        return "So it is not decided whether the centre is unstable."
    if side > 0 and not _size_known(found):
        return "So the centre is unstable."
    if side > 0 and oscillating:
        unstable = "So the centre is unstable, "
        if found.projection >= _ALONG * found.amplitude:
            return f"{unstable}and the iterates oscillate along its top eigenvector."
        if _share_above(found) >= _ALONG:
            return f"{unstable}and the iterates oscillate along the directions that are above."
        return f"{unstable}but the iterates oscillate mostly in other directions."
    if side > 0:
        hidden = found.projection < VISIBLE_RATIO * found.drift
        seen = "the deviation is still hidden by the drift" if hidden else "no oscillation is seen"
        return f"So the centre is unstable, but {seen}."
    if not oscillating:
        return "So neither is the centre unstable nor do the iterates oscillate at this step."
    return _without_threshold(found)


def _without_threshold(found: Explanation) -> str:
    """Of an oscillation about a centre that is below."""
    words = "So the iterates oscillate about a centre that is stable by its linearised update"
    event = event_of(found)
    if event is not None and 0 <= event.returned <= found.step:
        words += f" (it went below at step {event.returned:,})"
    about = {row.about: row for row in found.pieces.changes}
    centre = about.get("centre")
    if centre is None or not np.isfinite(centre.secant):
        return f"{words}."
    if _sharpness(found) != "sharpness":  # its threshold is one of other units
        return f"{words}."
    return (
        f"{words}; between this iterate and the next, the curvature along the step is "
        f"{centre.secant:.4g}, beside the threshold {found.threshold:.4g}."
    )
