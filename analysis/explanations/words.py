"""The paragraph: what is known of a step in plain words, each claim with its basis."""

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


def paragraph(explanation: Explanation) -> str:
    """All that is known of a step, in one paragraph."""
    told = [
        _side(explanation),
        _iterate(explanation),
        _several(explanation),
        _mode(explanation),
        *_oscillation(explanation),
        _size(explanation),
        *told_of_updates(explanation),
        _conclusion(explanation),
        *[f"Not told: {line}." for line in explanation.not_told],
    ]
    return " ".join(sentence for sentence in told if sentence)


def headline(explanation: Explanation) -> str:
    """The side and the period, in a few words."""
    side = {1: "centre surely above the threshold", -1: "centre surely below the threshold"}
    words = side.get(explanation.mode.first().side, "side of the threshold not decided")
    if not np.isfinite(explanation.threshold):
        words = "no threshold"
    return f"step {explanation.step:,}: {words}; {_motion(explanation)}"


def _motion(explanation: Explanation) -> str:
    if explanation.unwatched:
        return "oscillations not told"
    named = {0: "not oscillating", IRREGULAR: "irregular oscillation"}
    return named.get(explanation.period, f"period {explanation.period}")


def _side(explanation: Explanation) -> str:
    """The side of the threshold on which the centre is."""
    centre, words = explanation.mode.first(), _sharpness(explanation)
    start = f"At the centre of step {explanation.step:,} the {words}"
    if not np.isfinite(centre.value):
        return f"{start} is not finite."
    if not np.isfinite(explanation.threshold):
        why = _why_none(explanation)
        return f"{start} is {_value(centre)}; no side of a threshold is told: {why}."
    limit = f"the threshold {explanation.threshold:.6g} ({explanation.label})"
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
    side = "surely above" if centre.side > 0 else _below(explanation)
    growth = (
        f": by the linearised update there, a deviation along the top eigenvector {grows} by the "
        f"factor {explanation.growth:.4g} a step"
        if np.isfinite(explanation.growth)
        else ""
    )
    return f"{start} is {centre.value:.6g}, {side} {limit}{growth}."


def _sharpness(explanation: Explanation) -> str:
    frozen = "frozen preconditioner" in explanation.label
    return "preconditioned sharpness" if frozen else "sharpness"


def _why_none(explanation: Explanation) -> str:
    if np.isinf(explanation.threshold):
        return "it is infinite, as no curvature makes this update unstable"
    return explanation.label.removeprefix("no threshold: ")


def _value(row: Direction) -> str:
    return f"{row.value:.6g}" + ("" if row.converged else " (not converged)")


def _iterate(explanation: Explanation) -> str:
    """The same at the iterate."""
    row = explanation.mode.first("iterate")
    if not np.isfinite(row.value):
        return "At the iterate itself it is not finite."
    if not np.isfinite(explanation.threshold):
        return f"At the iterate itself it is {_value(row)}."
    words = {1: "surely above", -1: _below(explanation)}.get(row.side, "side not decided")
    return f"At the iterate itself it is {_value(row)}, {words}."


def _below(explanation: Explanation) -> str:
    """`below` rests on an upper bound, which may fail; `above` rests on a product alone."""
    return f"surely below (but for a probability of {explanation.failure_probability:.0e})"


def _several(explanation: Explanation) -> str:
    """How many directions are above."""
    if not np.isfinite(explanation.threshold):
        return ""
    size = len(explanation.mode.vector)
    count, more = count_above(explanation.mode.directions, size=size)
    if count == 0:
        return ""
    along = _along_them(explanation, count)
    if count == 1:
        alone = "whether more are is not decided" if more else "all others are surely below"
        if size == 1:
            return "It is the only direction there is."
        return f"One direction is surely above the threshold there; {alone}."
    name = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    others = "there may be more" if more else "all others are surely below"
    return f"{name} directions are surely above the threshold there; {others}.{along}"


def _along_them(explanation: Explanation, count: int) -> str:
    """How far the iterate is from its centre along each of several directions."""
    sizes = [row.projection for row in explanation.mode.directions if row.at == "centre"][:count]
    if count < 2 or not np.all(np.isfinite(sizes)) or not 0 < explanation.amplitude < np.inf:
        return ""
    told = ", ".join(f"{size:.3g}" for size in sizes)
    share = percent(_share_above(explanation))
    return f" Along them the iterate is {told} away from its centre, together {share} of the way."


def _share_above(explanation: Explanation) -> float:
    """Part of the distance from the centre that is along directions surely above the threshold.

    Their eigenvectors are orthogonal.
    """
    count, _ = count_above(explanation.mode.directions)
    sizes = [row.projection for row in explanation.mode.directions if row.at == "centre"][:count]
    if len(sizes) < 2 or not np.all(np.isfinite(sizes)):
        sizes = [explanation.projection]
    whole = explanation.amplitude
    return float(np.linalg.norm(sizes)) / whole if whole > 0 else 0.0


def _mode(explanation: Explanation) -> str:
    """Parameters in which the mode lies, and classes from which its curvature comes."""
    if not explanation.mode.layers:
        return ""
    sure = "" if explanation.mode.first().converged else ", which did not converge,"
    # Leaves of networks that are not of this package have names of their own.
    own = all(" of layer " in row.name for row in explanation.mode.layers)
    where = "in the " if own else "in "
    layers = _shares([(row.name, row.share) for row in explanation.mode.layers], where)
    words = f"The top eigenvector{sure} lies {layers}"
    if explanation.mode.classes:
        named = [
            ("the penalty" if row.label < 0 else f"class {row.label}", row.share)
            for row in explanation.mode.classes
        ]
        words += f"; the curvature along it is {_shares(named, 'from ')}"
    return f"{words}."


def _shares(rows: Sequence[tuple[str, float]], where: str) -> str:
    """The largest shares in words; several small ones are left out."""
    largest = sorted(rows, key=lambda row: -abs(row[1]))
    named = [row for row in largest if abs(row[1]) >= _NAMED][:_MOST] or largest[:1]
    told = [f"{percent(share)} {where}{name}" for name, share in named]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def _event_of(explanation: Explanation) -> Event | None:
    """The oscillation that the step lies in."""
    inside = [event for event in explanation.events if event.onset <= explanation.step <= event.end]
    return inside[0] if inside else None


def _oscillation(explanation: Explanation) -> list[str]:
    """The oscillation in which the step lies, or the ones before and after it."""
    if explanation.unwatched:
        return [f"Oscillations are not told: {explanation.unwatched}."]
    event = _event_of(explanation)
    if event is None:
        return [
            _outside(explanation),
            *[_lag(explanation, e) for e in explanation.events if e.onset > explanation.step],
        ]
    begins = f"{'at' if event.onset_known else 'before'} step {event.onset:,}"
    ends = f"{'ends at' if event.end_known else 'goes on beyond'} step {event.end:,}"
    period = {
        0: "successive updates do not oppose each other here, so that it pauses",
        IRREGULAR: "the motion is irregular here: of period 2, 4 or 8 it is not",
    }.get(explanation.period, f"its period here is {explanation.period}")
    words = f"The step lies in an oscillation that began {begins} and {ends} ({explanation.origin})"
    return [f"{words}; {period}.", _lag(explanation, event)]


def _outside(explanation: Explanation) -> str:
    before = [event for event in explanation.events if event.end < explanation.step]
    after = [event for event in explanation.events if event.onset > explanation.step]
    told = []
    if before:
        gap = counted(explanation.step - before[-1].end, "step")
        told.append(f"the last one ended at step {before[-1].end:,}, {gap} before")
    if after:
        gap = counted(after[0].onset - explanation.step, "step")
        told.append(f"the next one begins at step {after[0].onset:,}, {gap} later")
    if not told:
        told = [
            f"none was seen in steps {explanation.first_looked:,} to {explanation.last_looked:,}"
        ]
    here = ""
    if explanation.period != 0:
        here = "; successive updates oppose each other here, but in too few steps to count"
    return f"The step lies in no oscillation: {' and '.join(told)} ({explanation.origin}){here}."


def _lag(explanation: Explanation, event: Event) -> str:
    """The lag behind the crossing, measured and predicted."""
    later = event.onset > explanation.step
    name, begins = ("That one", "begins") if later else ("It", "began")
    looked = f"steps looked at ({explanation.first_looked:,} to {explanation.last_looked:,})"
    if not np.isfinite(explanation.threshold):
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
    elif explanation.kinks:
        predicted = "for a network with kinks none are predicted"
    else:
        predicted = "a prediction could not be made"
    return (
        f"{name} {begins} {lag} after the centres crossed the threshold (step {event.crossed:,}); "
        f"{predicted}."
    )


def _size(explanation: Explanation) -> str:
    """How far the iterate is from its centre, and along what."""
    known = np.isfinite(explanation.projection) and explanation.amplitude > 0
    if explanation.unwatched or not known:
        return ""
    if not _size_known(explanation):
        return "How far the iterate is from its centre is beyond the largest number."
    share = explanation.projection / explanation.amplitude
    words = (
        f"The iterate is {explanation.amplitude:.3g} away from its centre, "
        f"{explanation.projection:.3g} of it ({percent(share)}) along the top eigenvector"
    )
    if explanation.period == 0:
        return (
            f"{words}; the drift is {explanation.drift:.3g} a step, and an oscillation is seen "
            f"from {VISIBLE_RATIO:.2f} of that on."
        )
    event = _event_of(explanation)
    if event is None or not np.isfinite(event.amplitude):
        return f"{words}."
    names = (("flip coefficient", event.flip_amplitude), ("rod equation", event.rod_amplitude))
    predicted = [f"{size:.2g} by the {name}" for name, size in names if np.isfinite(size)]
    told = f"predicted are {' and '.join(predicted)}" if predicted else "nothing is predicted"
    return (
        f"{words}. Of this oscillation the size was measured at step {event.settled:,}: "
        f"{event.amplitude:.2g} along the top eigenvector there; {told}."
    )


def _size_known(explanation: Explanation) -> bool:
    """Whether amplitude and drift are numbers; squares overflow in a run that diverges."""
    return bool(np.isfinite(explanation.amplitude) and np.isfinite(explanation.drift))


def _conclusion(explanation: Explanation) -> str:
    """What follows from all that, and no more."""
    side, oscillating = explanation.mode.first().side, explanation.period != 0
    if not np.isfinite(explanation.threshold) or explanation.unwatched:
        return ""
    if side == 0:
        return "So it is not decided whether the centre is unstable."
    if side > 0 and not _size_known(explanation):
        return "So the centre is unstable."
    if side > 0 and oscillating:
        unstable = "So the centre is unstable, "
        if explanation.projection >= _ALONG * explanation.amplitude:
            return f"{unstable}and the iterates oscillate along its top eigenvector."
        if _share_above(explanation) >= _ALONG:
            return f"{unstable}and the iterates oscillate along the directions that are above."
        return f"{unstable}but the iterates oscillate mostly in other directions."
    if side > 0:
        hidden = explanation.projection < VISIBLE_RATIO * explanation.drift
        seen = "the deviation is still hidden by the drift" if hidden else "no oscillation is seen"
        return f"So the centre is unstable, but {seen}."
    if not oscillating:
        return "So neither is the centre unstable nor do the iterates oscillate at this step."
    return _without_threshold(explanation)


def _without_threshold(explanation: Explanation) -> str:
    """The conclusion for an oscillation about a centre below the threshold."""
    words = "So the iterates oscillate about a centre that is stable by its linearised update"
    event = _event_of(explanation)
    if event is not None and 0 <= event.returned <= explanation.step:
        words += f" (it went below at step {event.returned:,})"
    about = {row.about: row for row in explanation.pieces.changes}
    centre = about.get("centre")
    if centre is None or not np.isfinite(centre.secant):
        return f"{words}."
    if _sharpness(explanation) != "sharpness":  # its threshold is one of other units
        return f"{words}."
    return (
        f"{words}; between this iterate and the next, the curvature along the step is "
        f"{centre.secant:.4g}, beside the threshold {explanation.threshold:.4g}."
    )
