"""Sentences on the updates from a step on: gates, linearised gradients, multipliers."""

from __future__ import annotations

import numpy as np

from dlf_dynamics.analysis.explanations.explanation import Explanation
from dlf_dynamics.analysis.explanations.multipliers import Multiplier

_OF_MODE = 0.5
"""Overlap of an eigenvector with the mode from which its multiplier is that of the mode."""


def told_of_updates(found: Explanation) -> list[str]:
    """What gates, linearised gradients and Jacobians tell; empty sentences for nothing."""
    told = [_gates(found)] if found.pieces.gates else []
    told += [_change(found)] if found.pieces.changes else []
    return [*told, _multipliers(found)]


def percent(share: float) -> str:
    """In per cent; nearly all of it is not all of it, and a little is not nothing.

    >>> percent(0.12345), percent(0.0123), percent(0.9996), percent(-0.5), percent(1e-5)
    ('12 %', '1.2 %', 'more than 99.9 %', '−50 %', 'less than 0.1 %')
    """
    value = 100 * share
    if 0 < abs(value) < 0.05:
        return "less than 0.1 %"
    if 99.95 <= value < 100:
        return "more than 99.9 %"
    digits = 0 if 10 <= abs(value) <= 99 else 1
    return _number(value, f".{digits}f") + " %"


def _number(value: float, form: str) -> str:
    text = f"{value:{form}}"
    return f"−{text[1:]}" if text.startswith("-") else text


def _gates(found: Explanation) -> str:
    """How many flip, in which layers, and the curvature along the mode across them."""
    rows, steps = found.pieces.gates, len(found.pieces.phases) - 1
    flips, gates = sum(row.next_step for row in rows), sum(row.gates for row in rows)
    layers = ", ".join(f"{row.next_step:,} in layer {row.layer}" for row in rows)
    words = f"From this step to the next {flips:,} of {gates:,} gates flip"
    words += f" ({layers})" if len(rows) > 1 else ""
    if steps > 1:
        away = sum(row.over_period for row in rows)
        words += f", and after {steps} steps {away:,} are another way than at first"
    if flips:
        words += (
            "; with the gates of the one and of the other, the curvature along the mode at the "
            f"centre is {found.pieces.curvature_before:.4g} and {found.pieces.curvature_after:.4g}"
        )
    phases = ", ".join(f"{value:.3g}" for value in found.pieces.phases)
    return f"{words}. The iterates from this step on have the curvatures {phases} along it."


def _change(found: Explanation) -> str:
    """Shares of the change of the gradient, about the centre."""
    about = {row.about: row for row in found.pieces.changes}
    centre, iterate = about["centre"], about["iterate"]
    if not np.isfinite(centre.linear):
        return ""
    known = np.isfinite(centre.pieces)
    rest = "bends of the loss within the linear piece" if known else "what is not linear"
    rest += " (flipping gates included)" if found.kinks and not known else ""
    parts = [f"{percent(centre.within)} to {rest}"]
    if known:
        parts.append(f"{percent(centre.pieces)} to gates that flip")
    words = (
        f"Of the change of this loss's gradient to the next step {percent(centre.linear)} is due "
        f"to the linearised gradient about the centre, {' and '.join(parts)}; about the iterate "
        f"the linearised gradient explains {percent(iterate.linear)}."
    )
    if found.period == 0:  # then the step is mostly that of the drift
        return words
    curvatures = [centre.linear_curvature, centre.within_curvature, centre.pieces_curvature]
    told = " + ".join(_number(value, ".3g") for value in curvatures if np.isfinite(value))
    told = told.replace("+ −", "− ")
    return (
        f"{words} Along the step the gradient changes as with the curvature "
        f"{_number(centre.secant, '.4g')} = {told}, in the same order."
    )


def _multipliers(found: Explanation) -> str:
    """Leading multipliers of the updates made, and what becomes of the mode."""
    told, steps = found.multipliers, found.multipliers.steps
    if not steps:
        return ""
    over, jacobians = f"these {steps} updates", "their Jacobians at the replayed iterates"
    if steps == 1:
        over, jacobians = "this update", "its Jacobian at the iterate"
    parts = []
    if told.found:
        parts.append(f"Of {over}, by {jacobians}, {_largest(told.found, steps)}")
    along = (
        f"a deviation along the mode is stretched by {told.stretch:.3g} "
        f"(vᵀJv = {_number(told.along, '.3g')})"
    )
    return "; ".join([*parts, along if parts else f"Over {over} {along}"]) + "."


def _largest(found: list[Multiplier], steps: int) -> str:
    """The largest multiplier outside of the unit circle, and that of the mode."""
    first, closest = found[0], max(found, key=lambda one: one.overlap)
    outside = first.modulus > 1
    words = (
        f"the largest multiplier found is {_multiplier(first, steps)}"
        if outside
        else "no multiplier outside of the unit circle was found, but for those near +1"
    )
    if closest.overlap >= _OF_MODE and not (outside and closest is first):
        words += f"; that of the mode is {_multiplier(closest, steps)}"
    return words


def _multiplier(one: Multiplier, steps: int) -> str:
    value = _number(one.real, ".4g")
    if one.imaginary:
        value += f" ± {one.imaginary:.4g}i"
    each = f", {one.modulus ** (1 / steps):.4g} a step" if steps > 1 else ""
    return (
        f"{value}{each} (residual {one.residual:.0e}, overlap of its eigenvector with the mode "
        f"{one.overlap:.2g})"
    )
