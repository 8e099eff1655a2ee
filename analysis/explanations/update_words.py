"""Sentences on the updates from a step on: gates, linearised gradients, multipliers."""

from __future__ import annotations

import numpy as np

from dlf_dynamics.analysis.explanations.explanation import Explanation
from dlf_dynamics.analysis.explanations.multipliers import Multiplier

_OF_MODE = 0.5
"""Overlap with the mode from which an eigenvector's multiplier counts as the mode's."""


def told_of_updates(explanation: Explanation) -> list[str]:
    """Sentences on gates, linearised gradients and Jacobians; empty where nothing is known."""
    told = [_gates(explanation)] if explanation.pieces.gates else []
    told += [_change(explanation)] if explanation.pieces.changes else []
    return [*told, _multipliers(explanation)]


def percent(share: float) -> str:
    """The share in per cent; nearly all is not rounded to 100, nor a little to 0.

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


def _gates(explanation: Explanation) -> str:
    """How many flip, in which layers, and the curvature along the mode across them."""
    pieces = explanation.pieces
    by_layer, steps = pieces.gates, len(pieces.phases) - 1
    flips, gates = sum(row.next_step for row in by_layer), sum(row.gates for row in by_layer)
    layers = ", ".join(f"{row.next_step:,} in layer {row.layer}" for row in by_layer)
    words = f"From this step to the next {flips:,} of {gates:,} gates flip"
    words += f" ({layers})" if len(by_layer) > 1 else ""
    if steps > 1:
        away = sum(row.over_period for row in by_layer)
        words += f", and after {steps} steps {away:,} differ from their state at first"
    if flips:
        words += (
            "; with the gates of this step and of the next, the curvature along the mode at the "
            f"centre is {pieces.curvature_before:.4g} and {pieces.curvature_after:.4g}"
        )
    phases = ", ".join(f"{value:.3g}" for value in pieces.phases)
    return f"{words}. The iterates from this step on have the curvatures {phases} along it."


def _change(explanation: Explanation) -> str:
    """Shares of the change of the gradient, about the centre."""
    about = {row.about: row for row in explanation.pieces.changes}
    centre, iterate = about["centre"], about["iterate"]
    if not np.isfinite(centre.linear):
        return ""
    known = np.isfinite(centre.pieces)
    rest = "bends of the loss within the linear piece" if known else "what is not linear"
    rest += " (flipping gates included)" if explanation.kinks and not known else ""
    parts = [f"{percent(centre.within)} to {rest}"]
    if known:
        parts.append(f"{percent(centre.pieces)} to gates that flip")
    words = (
        f"Of the change of this loss's gradient to the next step {percent(centre.linear)} is due "
        f"to the linearised gradient about the centre, {' and '.join(parts)}; about the iterate "
        f"the linearised gradient explains {percent(iterate.linear)}."
    )
    if explanation.period == 0:  # then the step is mostly that of the drift
        return words
    curvatures = [centre.linear_curvature, centre.within_curvature, centre.pieces_curvature]
    told = " + ".join(_number(value, ".3g") for value in curvatures if np.isfinite(value))
    told = told.replace("+ −", "− ")
    return (
        f"{words} Along the step the gradient changes as with the curvature "
        f"{_number(centre.secant, '.4g')} = {told}, in the same order."
    )


def _multipliers(explanation: Explanation) -> str:
    """Leading multipliers of the updates that were made, and what they do to the mode."""
    told, steps = explanation.multipliers, explanation.multipliers.steps
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


def _largest(multipliers: list[Multiplier], steps: int) -> str:
    """The largest multiplier outside of the unit circle, and that of the mode."""
    first, closest = multipliers[0], max(multipliers, key=lambda one: one.overlap)
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
