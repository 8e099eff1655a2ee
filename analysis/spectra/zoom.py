"""The steps that a figure of a run shows: all of them, and a closer view of some."""

from __future__ import annotations

from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.paper import this_paper
from dlf_dynamics.run import Run

Span = tuple[float, float]

TWO_COLUMNS = 2.6
"""Least width of each of two panels side by side, in inches."""

_CLOSER = 0.7
"""Fraction of the run below which a zoom is worth showing."""


def spans_of(run: Run, spectrum: Spectrum | None, zoom: Span | None) -> list[Span]:
    """Steps of each column.

    Args:
        run: a run that has rows.
        spectrum: its spectrum, with the bursts; or none.
        zoom: first and last step of the second column; none chooses them.

    Raises:
        ConfigError: when the run has none of the steps of the zoom.
    """
    first, last = float(run.steps[0]), float(run.steps[-1])
    closer = default_zoom(run, spectrum) if zoom is None else zoom
    if closer is None:
        return [(first, last)]
    closer = closer[0], min(closer[1], last)
    if not first <= closer[1] or not closer[0] < closer[1]:
        raise ConfigError(f"zoom holds no steps of the run, which has {first:.0f} to {last:.0f}")
    if this_paper().columns(TWO_COLUMNS, 2) == 2:
        return [(first, last), closer]
    return [(first, last) if zoom is None else closer]


def default_zoom(run: Run, spectrum: Spectrum | None) -> Span | None:
    """The second burst, or the only one, with half its length on either side.

    None without bursts, and where it would be nearly the whole run.
    """
    if spectrum is None or not spectrum.bursts:
        return None
    burst = spectrum.bursts[:2][-1]
    margin = (burst.burst_end - burst.burst_start) // 2 + 10
    first, last = int(run.steps[0]), int(run.steps[-1])
    start, end = max(burst.burst_start - margin, first), min(burst.burst_end + margin, last)
    return (start, end) if end - start < _CLOSER * (last - first) else None
