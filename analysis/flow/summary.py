"""What a person or a program reads of the central flow of a run: errors, what counts, JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool
from rich import box
from rich.table import Table

from dlf_dynamics.analysis.flow import validity
from dlf_dynamics.analysis.flow.beside import FLIP, ROD
from dlf_dynamics.analysis.flow.errors import QUANTITIES, TheoryError
from dlf_dynamics.analysis.flow.flow import Flow
from dlf_dynamics.analysis.flow.segments import CENTRAL_FLOW, Segment
from dlf_dynamics.analysis.flow.validity import Look
from dlf_dynamics.analysis.flow.windows import LATER, counting_looks, rules_of, stretches
from dlf_dynamics.errors import counted
from dlf_dynamics.jsontypes import finite

_MOST_WINDOWS = 6
"""Windows of steps that a line lists."""


def as_dict(flow: Flow) -> dict[str, Any]:
    """All that was measured and predicted, JSON-ready; what is unknown becomes null."""
    return finite(
        {
            "run_id": flow.source.run_id,
            "run": flow.source.state,
            "config": dataclasses.asdict(flow.config),
            "threshold": flow.label,
            "replay": flow.replay,
            "steps": list(flow.span),
            "looks": len(flow.observed.looks),
            "counted": int(np.sum(counting_looks(flow))),
            "outside": {name: int(np.sum(chosen)) for name, chosen in rules_of(flow).items()},
            "errors": [dataclasses.asdict(error) for error in flow.errors],
            "observed": _plain(dataclasses.asdict(flow.observed)),
            "segments": [_segment(flow, segment) for segment in flow.segments],
        }
    )


def _segment(flow: Flow, segment: Segment) -> dict[str, Any]:
    """Each field, arrays as lists, and whether looks count."""
    counts = {"counts": flow.counts(segment).tolist()}
    return _plain(dataclasses.asdict(segment)) | counts


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def lines(flow: Flow) -> list[str | Table]:
    """What counts and what does not, how far each theory is off there, and what that rests on."""
    told: list[str | Table] = []
    if np.any(counting_looks(flow)):
        told += [_counted(flow), *_outside(flow), _errors_table(flow)]
        if len(flow.segments) > 1:
            told.append(_ahead_table(flow))
        told += _told(flow)
    else:
        told += [_nothing(flow), *_outside(flow)]
    return [
        *told,
        *_ends(flow),
        *_silent(flow),
        *_solved(flow),
        *_covariance(flow),
        flow.label,
        flow.replay,
        *flow.source.caution,
    ]


def _nothing(flow: Flow) -> str:
    looks = counted(len(flow.observed.looks), "look")
    return (
        f"nothing counts: at none of {looks} in steps {flow.span[0]}-{flow.span[1]} is the run "
        "what the theories describe, from their start on; no error is given"
    )


def _counted(flow: Flow) -> str:
    counts = counting_looks(flow)
    some = f"{int(np.sum(counts))} of {counted(len(counts), 'look')}"
    return f"{some} count, a look every {flow.config.every} steps: {_at(flow, counts)}"


def _at(flow: Flow, chosen: Bool[np.ndarray, " looks"]) -> str:
    """Windows of looks, from the first step of each to its last one."""
    steps = flow.observed.steps
    windows = [
        f"{steps[first]}-{steps[last]}" if last > first else str(steps[first])
        for first, last in stretches(chosen)
    ]
    more = f", ... ({len(windows)} windows)" if len(windows) > _MOST_WINDOWS else ""
    return f"steps {', '.join(windows[:_MOST_WINDOWS])}{more}"


def _outside(flow: Flow) -> Iterator[str]:
    """Looks that do not count, a line for each rule, with the numbers that decide."""
    for name, chosen in rules_of(flow).items():
        looks = counted(int(np.sum(chosen)), "look")
        if name == LATER:
            why = (
                "fit for the theories, but after one that is not, and too few in a row for a new "
                "start; --restart-every starts them again in any case"
            )
        else:
            seen = [flow.observed.looks[index] for index in np.flatnonzero(chosen)]
            why = _DECIDING[name](seen)
        yield f"outside, {name}: {looks}, {_at(flow, chosen)}: {why}"


def _range(values: list[float], digits: str = ".2g") -> str:
    """The least and the largest of those that are known."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "not known"
    low, high = (f"{number:{digits}}" for number in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def _first_steps(looks: list[Look]) -> str:
    return f"fewer than {validity.FIRST_STEPS} steps since the run began"


def _not_finite(looks: list[Look]) -> str:
    return "curvature or forces of the oscillation overflow, or are not known"


def _period(looks: list[Look]) -> str:
    periods = sorted({look.period for look in looks})
    told = " and ".join("irregular" if period < 0 else str(period) for period in periods)
    return f"period {told}; expected 2, or no oscillation"


def _kinks(looks: list[Look]) -> str:
    flips = [look.gate_flips for look in looks]
    if np.any(np.isnan(flips)):
        return "the loss has kinks, and which are crossed is not known of a recorded run"
    return f"{_range(flips, '.2%')} of the gates change side in a step; expected none"


def _lag(looks: list[Look]) -> str:
    still = [
        max(value for value in (look.sharpness_low, look.silent) if np.isfinite(value))
        / look.threshold
        for look in looks
        if np.isfinite(look.sharpness_low) or np.isfinite(look.silent)
    ]
    return (
        f"an eigenvalue is at least {_range(still, '.4f')} of the threshold, which no oscillation "
        "explains; expected at most 1"
    )


def _not_settled(looks: list[Look]) -> str:
    growth = [max(abs(look.growth), look.swing) for look in looks]
    with np.errstate(divide="ignore"):
        shares = np.divide(growth, [look.response for look in looks]).tolist()
        bends = np.divide([look.bend for look in looks], [look.response**2 for look in looks])
    change = [look.change for look in looks]
    return (
        f"in a step the oscillation changes by {_range(change, '.1%')} of itself, and grows or "
        f"dies by {_range(growth, '.1%')}, {_range(shares)} of the rate of its response, which "
        f"changes by {_range(bends.tolist())} of that rate's square; expected at most "
        f"{validity.LARGEST_CHANGE:.0%}, and {validity.LARGEST_GROWTH:.2g} of both"
    )


def _not_small(looks: list[Look]) -> str:
    moving = [look for look in looks if look.oscillating]
    odd, even = ([getattr(look, name) for look in moving] for name in ("odd", "even"))
    still = [look.rest for look in looks if not look.oscillating]
    parts = [f"of the odd force of the oscillation {_range(odd)}, of the even one {_range(even)}"]
    parts = parts if moving else []
    if still:
        parts.append(f"of the force of a deviation that does not oscillate {_range(still)}")
    return (
        f"{' and '.join(parts)} is beyond third derivatives; expected at most "
        f"{validity.LARGEST_REST:.2g}"
    )


def _unresolved(looks: list[Look]) -> str:
    return (
        "the critical eigenvalues are not certified to be apart from the next one, or may be more "
        "than are looked at"
    )


_DECIDING: dict[str, Callable[[list[Look]], str]] = {
    "first steps": _first_steps,
    "not finite": _not_finite,
    "period": _period,
    "kinks": _kinks,
    "lag": _lag,
    "not settled": _not_settled,
    "not small": _not_small,
    "unresolved": _unresolved,
}
"""What decides, of each of `validity.REASONS`."""


def _errors_table(flow: Flow) -> Table:
    """A line for each theory and quantity, over all looks that count."""
    table = Table(
        title="Errors at the looks that count",
        caption="; ".join(f"{name}: {relative}" for name, relative in QUANTITIES.items()),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("theory", "of", "looks", "missing", "median", "largest"):
        table.add_column(heading, justify="left" if heading in ("theory", "of") else "right")
    before = ""
    for error in _whole(flow):
        name = "" if error.theory == before else error.theory
        before = error.theory
        row = (error.quantity, str(error.looks), str(error.missing or "-"))
        table.add_row(name, *row, _percent(error.median), _percent(error.largest))
    return table


def _whole(flow: Flow) -> list[TheoryError]:
    """Errors over all looks, not over those a few steps after the start."""
    last: dict[tuple[str, str], TheoryError] = {}
    for error in flow.errors:
        key = error.theory, error.quantity
        if key not in last or error.ahead_to - error.ahead_from > (
            last[key].ahead_to - last[key].ahead_from
        ):
            last[key] = error
    return list(last.values())


def _ahead_table(flow: Flow) -> Table:
    """Errors of the central flow by the number of steps since it was started."""
    table = Table(
        title=f"Errors of the {CENTRAL_FLOW} by steps since its start, in %: median (largest)",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("steps since", "looks", *QUANTITIES):
        table.add_column(heading, justify="right")
    whole = _whole(flow)
    rows: dict[tuple[int, int], dict[str, TheoryError]] = {}
    for error in flow.errors:
        if error.theory == CENTRAL_FLOW and error not in whole:
            span = error.ahead_from, error.ahead_to
            rows.setdefault(span, {})[error.quantity] = error
    for (first, last), errors in rows.items():
        looks = max(error.looks for error in errors.values())
        cells = [
            f"{_number(errors[name].median)} ({_number(errors[name].largest)})"
            if name in errors
            else "-"
            for name in QUANTITIES
        ]
        table.add_row(f"{first}-{last}", str(looks), *cells)
    return table


def _percent(share: float) -> str:
    return f"{_number(share)} %" if np.isfinite(share) else "-"


def _number(share: float) -> str:
    """The share in per cent."""
    if not np.isfinite(share):
        return "-"
    return f"{100 * share:{'.0f' if 0.995 <= share < 1e4 else '.2g'}}"


def _told(flow: Flow) -> Iterator[str]:
    """What theories use of the run other than its start."""
    if any(name in flow.theories for name in (ROD, FLIP)):
        yield (
            f"{ROD} and {FLIP} use the run's own centre at each look; the other theories use "
            "nothing of the run after their start"
        )


def _ends(flow: Flow) -> Iterator[str]:
    """Flows that ended early, and why."""
    for segment in flow.segments:
        if segment.stopped:
            yield f"the {CENTRAL_FLOW} that starts at step {segment.start} ends: {segment.stopped}"


def _silent(flow: Flow) -> Iterator[str]:
    """Why other theories predict nothing, or where they end, a line for each reason."""
    told: dict[tuple[str, str], list[int]] = {}
    for segment in flow.segments:
        for predicted in segment.predictions:
            if predicted.message and predicted.name != CENTRAL_FLOW:
                told.setdefault((predicted.name, predicted.message), []).append(segment.start)
    for name in flow.theories:
        columns = [segment.column(name, of) for segment in flow.segments for of in QUANTITIES]
        if not np.any(np.isfinite(np.concatenate(columns))) and name not in {n for n, _ in told}:
            yield f"{name}: predicts nothing here"
    for (name, message), starts in told.items():
        which = "" if len(starts) == len(flow.segments) else f", from step {starts[0]}"
        which += f" and {len(starts) - 1} more" * (bool(which) and len(starts) > 1)
        yield f"{name}{which}: {message}"


def _solved(flow: Flow) -> Iterator[str]:
    """Whether the equations of the central flow were solved, and how much of it is certified."""

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(segment, name) for segment in flow.segments])

    goes_on = [np.isfinite(s.column(CENTRAL_FLOW, "loss")) for s in flow.segments]
    known = np.concatenate(goes_on) & np.concatenate([flow.ahead(s) > 0 for s in flow.segments])
    tracked = column("tracked")[known]
    if not len(tracked):
        yield f"the {CENTRAL_FLOW} predicts nothing"
        return
    converged, complete = column("converged")[known], column("complete")[known]
    least, most = int(tracked.min()), int(tracked.max())
    followed = ("" if least == most else f"{least} to ") + counted(most, "direction")
    yield (
        f"{CENTRAL_FLOW}: {followed} followed; all equations solved up to "
        f"{int(np.sum(converged))} of {counted(len(tracked), 'look')}, certified to leave out none "
        f"that is above the threshold shortly before {int(np.sum(complete))}; "
        f"{counted(int(np.sum(column('num_products'))), 'Hessian product')}"
    )


def _covariance(flow: Flow) -> Iterator[str]:
    errors = np.concatenate(
        [
            s.covariance_error[
                flow.counts(s) & (flow.ahead(s) > 0) & flow.measured(s, "oscillating")
            ]
            for s in flow.segments
        ]
    )
    known = errors[np.isfinite(errors)]
    if len(known):
        yield (
            f"covariance in the directions followed: off by {_percent(float(np.median(known)))} "
            f"(median) to {_percent(float(np.max(known)))} of the energy, at "
            f"{counted(len(known), 'look')} that count and oscillate"
        )
