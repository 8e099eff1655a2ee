"""Lines and JSON for the plane of two parameters of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dlf_dynamics.analysis.instabilities.plane import Plane, PlaneCurve
from dlf_dynamics.errors import counted


def plane_lines(plane: Plane | None) -> list[str]:
    """The curves and their special points, a line each; none without a plane."""
    if plane is None:
        return []
    head = f"plane of {' and '.join(plane.names)}, loss of step {plane.step}"
    if plane.reason:
        return [f"{head}: {plane.reason}"]
    fixed = "stable" if plane.largest < 1 else "unstable"
    count = counted(len(plane.curves), "curve")
    left = f"; {plane.left_out} more not followed" if plane.left_out else ""
    lines = [
        f"{head}: {count}{left}, of the minimum downhill of the run, {plane.distance:.2g} of its "
        f"parameters' length away, which at the run's own values is {fixed} (largest modulus of a "
        f"multiplier {plane.largest:.6g})"
    ]
    lines.extend(_line(curve) for curve in plane.curves)
    return lines


def _line(curve: PlaneCurve) -> str:
    if len(curve.parameters) == 0:
        return f"{curve.kind}: no curve: {curve.message}"
    points = [
        f"{point.label} at ({point.first:.6g}, {point.second:.6g})"
        + ("" if point.converged else ", not converged")
        for point in curve.special
    ]
    special = f"; {', '.join(points)}" if points else ""
    return (
        f"{curve.kind} curve of {counted(len(curve.parameters), 'point')}, residuals at most "
        f"{np.max(curve.residuals):.1e}: {curve.message}{special}"
    )


def plane_dict(plane: Plane | None) -> dict[str, Any] | None:
    """The plane as JSON values."""
    if plane is None:
        return None
    kept = {
        field.name: getattr(plane, field.name)
        for field in dataclasses.fields(plane)
        if field.name != "curves"
    }
    listed = {name: _listed(value) for name, value in kept.items()}
    return listed | {"curves": [_curve_dict(curve) for curve in plane.curves]}


def _curve_dict(curve: PlaneCurve) -> dict[str, Any]:
    fields = {field.name: getattr(curve, field.name) for field in dataclasses.fields(curve)}
    fields["critical"] = np.column_stack([np.real(curve.critical), np.imag(curve.critical)])
    fields["special"] = [dataclasses.asdict(point) for point in curve.special]
    return {name: _listed(value) for name, value in fields.items()}


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
