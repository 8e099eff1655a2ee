"""What a person or a program reads of explained steps: lines, JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from dlf_dynamics.analysis.explanations.explanation import Explanation, Explanations
from dlf_dynamics.analysis.explanations.mode import count_above
from dlf_dynamics.jsontypes import finite


def as_dict(explanations: Explanations) -> dict[str, Any]:
    """Every step with its paragraph, JSON-ready; what is unknown becomes null."""
    return finite(
        {
            "run_id": explanations.source.run_id,
            "run": explanations.source.state,
            "explanations": [_of_step(one) for one in explanations.explanations],
        }
    )


def _of_step(one: Explanation) -> dict[str, Any]:
    mode, pieces, multipliers = one.mode, one.pieces, one.multipliers
    above, more = count_above(mode.directions, size=len(mode.vector))
    names = ("threshold", "label", "failure_probability", "growth")
    motion = ("period", "update_cosine", "amplitude", "projection", "drift", "origin")
    plain = lambda *names: {name: getattr(one, name) for name in names}  # noqa: E731
    return {
        **plain("step", "paragraph"),
        "config": dataclasses.asdict(one.config),
        **plain(*names),
        "directions": _rows(mode.directions),
        "above": above,
        "more_above": more,
        "curvature": mode.curvature,
        "layers": _rows(mode.layers),
        "classes": _rows(mode.classes),
        **plain(*motion),
        "looked": [one.first_looked, one.last_looked],
        "unwatched": one.unwatched,
        "crossings": _rows(one.crossings),
        "events": _rows(one.events),
        "kinks": list(one.kinks),
        "gates": _rows(pieces.gates),
        "changes": _rows(pieces.changes),
        "gate_curvatures": [pieces.curvature_before, pieces.curvature_after],
        "phases": pieces.phases.tolist(),
        "multiplied": multipliers.steps,
        "multipliers": _rows(multipliers.found),
        "along": multipliers.along,
        "stretch": multipliers.stretch,
        "not_told": list(one.not_told),
        "replay": one.note,
    }


def _rows(table: list[Any]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(row) for row in table]


def lines(explanations: Explanations) -> list[str]:
    """The paragraph of each step, and what all of it rests on."""
    told = [one.paragraph for one in explanations.explanations]
    notes = dict.fromkeys(one.note for one in explanations.explanations)
    return [*told, *notes, *explanations.source.caution]
