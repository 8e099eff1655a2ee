"""The eigenvalues of a spectrum as a table, with certificates and thresholds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dlf_dynamics.analysis.spectra.points import POINTS
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.frames import frame_of, scope_of
from dlf_dynamics.labels import Field, Group, groups_of
from dlf_dynamics.trees import plain, required

if TYPE_CHECKING:
    from pandas import DataFrame


def eigenvalue_table(spectrum: Spectrum) -> DataFrame:
    """A row for each eigenvalue of each checkpoint, at the iterate and at the centre.

    Each value has its status, residual, interval and bounds, the threshold at the step, and the
    side that the largest value is on. A value that is not `converged` decides nothing; where there
    is no centre, all is NaN.

    Args:
        spectrum: spectrum of a run.

    Raises:
        ConfigError: when pandas is not installed.
    """
    pandas = required("pandas")
    groups = groups_of(spectrum)
    tables = [_at(spectrum, groups, point) for point in POINTS]
    joined = pandas.concat(tables).sort_index(kind="stable").reset_index(drop=True)
    settings = next(group for group in groups if group.path == "hessian/").settings
    told = {"operator": str(spectrum.hessian.curvature)} | settings
    joined.attrs = tables[0].attrs | {"settings": {name: plain(v) for name, v in told.items()}}
    return joined


def _at(spectrum: Spectrum, groups: list[Group], point: str) -> DataFrame:
    whole, hessian, own = (
        next(group for group in groups if group.path == path)
        for path in ("", "hessian/", f"hessian/{point}/")
    )
    index = POINTS.index(point)
    sides = whole.fields["sides"]
    indices = np.full(len(spectrum.thresholds), index)
    fields = {
        "point": Field(
            indices, ("checkpoints",), description=_POINT, words=dict(enumerate(POINTS))
        ),
        **{name: _worded(name, field) for name, field in own.fields.items()},
        "threshold": whole.fields["thresholds"],
        "side": Field(spectrum.sides[:, index], ("checkpoints",), "1", _WORDS["side"], sides.words),
        "incomplete": hessian.fields["incomplete"],
    }
    frame = frame_of(fields, scope_of(groups, own.path), ("checkpoints", "k"))
    frame["side"] = frame["side"].where(frame["k"] == 0)  # it belongs to the largest value
    return frame


def _worded(name: str, field: Field) -> Field:
    """The field with the description of the column instead of that of the array."""
    return replace(field, description=_WORDS.get(name, field.description))


_WORDS = {
    "eigenvalues": "extreme eigenvalues of the operator, descending",
    "intervals": "lower and upper end of an interval that holds the eigenvalue",
    "status": "what is certain of the value; only what is `converged` decides anything",
    "num_matvecs": "products that were made at this checkpoint and point",
    "rank_bounds": "bound on the next eigenvalues beyond those wanted, at this end",
    "side": "of the largest eigenvalue: surely above the threshold, surely below, or unknown",
}
"""Descriptions of columns that differ from those of the arrays."""

_POINT = "iterate θ_t, or centre ¼θ_(t-1) + ½θ_t + ¼θ_(t+1)"
