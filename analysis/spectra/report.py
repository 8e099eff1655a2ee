"""The spectrum of a run in its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table as RichTable

from dlf_dynamics.analysis.linalg.certificate import (
    BUDGET,
    CONVERGED,
    STATUSES,
    TRACKED,
    UNRANKED,
)
from dlf_dynamics.analysis.report.content import (
    Panel,
    Part,
    Series,
    Table,
    Window,
    around,
    table_of,
    told,
)
from dlf_dynamics.analysis.spectra.density import Density
from dlf_dynamics.analysis.spectra.density_plots import (
    DECADES,
    NAMES,
    decade_ticks,
    drawn_as_curves,
    evaluated,
)
from dlf_dynamics.analysis.spectra.eigenvalues import Eigenvalues
from dlf_dynamics.analysis.spectra.events import Crossing
from dlf_dynamics.analysis.spectra.infinite_width import InfiniteWidth
from dlf_dynamics.analysis.spectra.ntk import NTKSpectrum
from dlf_dynamics.analysis.spectra.points import POINTS
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.analysis.style import COLOURS, spans_decades

_COLOURS = {"iterate": COLOURS[4], "centre": COLOURS[0]}
_WHERE = {"iterate": "at the iterate", "centre": "at the 1:2:1 centre"}
_THRESHOLD = COLOURS[5]
_SEPARATE = 6
"""Number of eigenvalues that have a colour each."""

_MARKERS = {UNRANKED: "cross", TRACKED: "y", BUDGET: "x"}


def spectrum_part(spectrum: Spectrum, results: Sequence[str | RichTable]) -> Part:
    """Words and tables, the eigenvalues along the run, densities, and infinite width.

    Args:
        spectrum: result of the analysis.
        results: its lines and tables, first the table of the oscillations.
    """
    part = told("Spectra and oscillations", results)
    tables = [t for t in results if isinstance(t, RichTable)]
    spans = [around(window.onset, window.end) for window in spectrum.oscillations]
    linked = [table_of(t, spans if t.row_count == len(spans) else ()) for t in tables]
    if spectrum.crossings:
        linked.append(_crossings_table(spectrum.crossings))
    hessian = spectrum.hessian
    panels = []
    if hessian.ends.top > 0:
        panels.append(_extreme(spectrum, 0))
    if hessian.ends.bottom > 0:
        panels.append(_extreme(spectrum, -1))
    if max(hessian.ends) > 1:
        panels.append(_all_values(spectrum))
    if spectrum.ntk is not None:
        panels.append(_kernel(spectrum.ntk))
    if spectrum.infinite_width is not None:
        panels += _limits(spectrum.infinite_width)
    panels += [_density(name, density) for name, density in spectrum.densities.items()]
    return replace(
        part,
        tables=linked,
        panels=[panel for panel in panels if panel.series],
        windows=_windows(spectrum),
    )


def _windows(spectrum: Spectrum) -> list[Window]:
    """The oscillations, darker where they are seen in the loss."""
    windows = [Window(window.onset, window.end) for window in spectrum.oscillations]
    return windows + [Window(w.burst_start, w.burst_end, strong=True) for w in spectrum.bursts]


def _crossings_table(crossings: Sequence[Crossing]) -> Table:
    """A row for each crossing of the threshold, with the values on both sides of it."""
    rows = [
        [
            c.direction,
            c.at,
            f"{c.step_before}-{c.step_after}",
            f"{c.value_before:.6g}",
            f"{c.value_after:.6g}",
            f"{c.threshold:.6g}",
            c.state,
        ]
        for c in crossings
    ]
    return Table(
        title="Crossings of the threshold by the largest eigenvalue",
        columns=["direction", "at", "between steps", "before", "after", "threshold", "state"],
        rows=rows,
        caption="certain and refined: the intervals of both values clear the threshold; "
        "unresolved: between the two steps lie others that are on neither side",
        spans=[around(c.step_before, c.step_after, 3.0, 100) for c in crossings],
    )


def _extreme(spectrum: Spectrum, column: int) -> Panel:
    """The largest or the smallest eigenvalue, with its intervals, its bound and the threshold."""
    hessian, series = spectrum.hessian, []
    for at in POINTS:
        solved = getattr(hessian, at)
        series += _values(solved, hessian.steps, column, at)
    shown = [getattr(hessian, at).eigenvalues[:, column] for at in POINTS]
    which = "largest" if column == 0 else "smallest"
    if column == 0:
        series += _bounds(spectrum)
        if spectrum.comparable:
            series.append(
                Series("threshold", hessian.steps, spectrum.thresholds, _THRESHOLD, "line")
            )
            shown.append(spectrum.thresholds)
            series += _crossings(spectrum)
        if (reference := spectrum.reference) is not None:
            name, values = reference.short_label, reference.values
            series.append(Series(name, hessian.steps, values, _THRESHOLD, "line", dash="dashed"))
            shown.append(values)
    title = f"{which} eigenvalue of the {hessian.curvature}"
    return Panel(title, series, spans_decades(*shown))


def _values(solved: Eigenvalues, steps: np.ndarray, column: int, at: str) -> list[Series]:
    """Certified values as points, the others as different marks."""
    values, status = solved.eigenvalues[:, column], solved.status[:, column]
    if not np.any(np.isfinite(values)):
        return []
    fine = solved.converged[:, column]
    intervals = np.where(fine[:, None], solved.intervals[:, column], np.nan)
    series = [
        Series(
            _WHERE[at],
            steps,
            np.where(fine, values, np.nan),
            _COLOURS[at],
            beside={"residual": solved.residuals[:, column]},
            intervals=intervals,
        )
    ]
    for kind, marker in _MARKERS.items():
        bad = (status == kind) & np.isfinite(values)
        if np.any(bad):
            meaning = "not converged" if kind == BUDGET else STATUSES[kind]
            beside = {"residual": solved.residuals[bad, column]}
            name = f"{_WHERE[at]}: {meaning}"
            series.append(
                Series(
                    name,
                    steps[bad],
                    values[bad],
                    _COLOURS[at],
                    "marks",
                    marker=marker,
                    filled=False,
                    beside=beside,
                )
            )
    return series


def _bounds(spectrum: Spectrum) -> list[Series]:
    """Upper bounds on the eigenvalues, at either point."""
    steps, series = spectrum.hessian.steps, []
    for at in POINTS:
        bound = getattr(spectrum.hessian, at).upper_bound
        if np.any(np.isfinite(bound)):
            shown = np.where(np.isfinite(bound), bound, np.nan)
            name = f"upper bound {_WHERE[at]}"
            series.append(Series(name, steps, shown, _COLOURS[at], "cloud", marker="dash"))
    return series


def _crossings(spectrum: Spectrum) -> list[Series]:
    """Crossings at the centres, hollow where unresolved."""
    series = []
    for direction, marker in (("up", "triangle"), ("down", "inverted_triangle")):
        for sure in (True, False):
            chosen = [
                c
                for c in spectrum.crossings
                if (c.direction, c.at, c.state != "unresolved") == (direction, "centre", sure)
            ]
            if chosen:
                chosen.sort(key=lambda c: c.step_before + c.step_after)
                name = f"crossing {direction}" + ("" if sure else ", unresolved")
                series.append(
                    Series(
                        name,
                        np.array([(c.step_before + c.step_after) / 2 for c in chosen]),
                        np.array([c.threshold for c in chosen]),
                        _THRESHOLD,
                        "marks",
                        marker=marker,
                        filled=sure,
                        beside={"between": [f"{c.step_before}-{c.step_after}" for c in chosen]},
                    )
                )
    return series


def _all_values(spectrum: Spectrum) -> Panel:
    """All values at the centres, or at the iterates where these are not known."""
    hessian = spectrum.hessian
    centres = np.any(np.isfinite(hessian.centre.eigenvalues))
    at = "centre" if centres else "iterate"
    solved = getattr(hessian, at)
    series = []
    for rank, values in enumerate(solved.eigenvalues.T[:_SEPARATE]):
        if np.any(np.isfinite(values)):
            status, colour = [STATUSES[s] for s in solved.status[:, rank]], COLOURS[rank]
            beside = {} if set(status) == {STATUSES[CONVERGED]} else {f"status {rank + 1}": status}
            name = f"value {rank + 1}"
            series.append(Series(name, hessian.steps, values, colour, beside=beside))
    series += _others(hessian.steps, solved)
    title = f"all eigenvalues found {_WHERE[at]}"
    return Panel(title, series, spans_decades(solved.eigenvalues))


def _others(steps: np.ndarray, solved: Eigenvalues) -> list[Series]:
    """The values beyond those with a colour each, as one cloud."""
    values = solved.eigenvalues[:, _SEPARATE:]
    checkpoints, ranks = np.nonzero(np.isfinite(values))
    if not len(checkpoints):
        return []
    status = [STATUSES[s] for s in solved.status[:, _SEPARATE:][checkpoints, ranks]]
    beside = {"number": ranks + _SEPARATE + 1, "status": status}
    name, shown = f"values from {_SEPARATE + 1} on", values[checkpoints, ranks]
    return [Series(name, steps[checkpoints], shown, "#888888", "cloud", beside=beside)]


def _kernel(ntk: NTKSpectrum) -> Panel:
    """The largest eigenvalue of the NTK; marks where it did not converge."""
    values, fine = ntk.eigenvalues[:, 0], ntk.converged[:, 0]
    beside = {
        "trace": ntk.trace,
        "effective rank": ntk.effective_rank,
        "alignment": ntk.alignment,
    }
    series = [Series("NTK", ntk.steps, np.where(fine, values, np.nan), COLOURS[0], beside=beside)]
    series += not_converged(ntk.steps, values, fine)
    return Panel("largest eigenvalue of the NTK", series, spans_decades(values))


def not_converged(steps: np.ndarray, values: np.ndarray, fine: np.ndarray) -> list[Series]:
    """The values that did not converge, as crosses, if there are any."""
    bad = ~fine & np.isfinite(values)
    if not np.any(bad):
        return []
    given = "not converged", steps[bad], values[bad], COLOURS[0]
    return [Series(*given, "marks", marker="x", filled=False)]


def _limits(kernels: InfiniteWidth) -> list[Panel]:
    """Distance of the NTK from the kernel at infinite width, and the eigenvalues by rank."""
    ranks = np.arange(1, len(kernels.ntk) + 1)
    eigenvalues = {
        "infinite width, Θ": kernels.ntk,
        f"run, step {kernels.steps[0]}": kernels.eigenvalues[0],
        f"run, step {kernels.steps[-1]}": kernels.eigenvalues[-1],
        "NNGP": kernels.nngp,
    }
    colours = (COLOURS[5], COLOURS[4], COLOURS[0], COLOURS[3])
    distance = [
        Series("‖K−Θ‖ / ‖Θ‖", kernels.steps, kernels.distance, COLOURS[5]),
        Series("‖K−K₀‖ / ‖K₀‖", kernels.steps, kernels.movement, COLOURS[0]),
    ]
    return [
        Panel("distance of the NTK from infinite width", distance),
        Panel(
            "alignment of the NTK with infinite width",
            [Series("alignment", kernels.steps, kernels.alignment, COLOURS[5])],
        ),
        Panel(
            f"eigenvalues of the kernels of {kernels.num_examples} examples",
            [
                Series(name, ranks, values, colour)
                for (name, values), colour in zip(eigenvalues.items(), colours, strict=True)
            ],
            logarithmic=bool(np.any(kernels.ntk > 0)),
            x_label="rank",
        ),
    ]


def _density(name: str, density: Density) -> Panel:
    """The density at a few steps, with bands of one standard error, on an asinh axis."""
    grid, mean, error, linear = evaluated(density)
    x, floor = np.arcsinh(grid / linear), float(np.nanmax(mean)) / 10**DECADES
    series = [
        Series(
            f"step {density.steps[index]}",
            x,
            np.maximum(mean[index], floor),
            COLOURS[number],
            "line",
            beside={"eigenvalue": grid} if number == 0 else {},
            intervals=np.maximum(
                np.stack([mean[index] - error[index], mean[index] + error[index]], axis=1), floor
            ),
            band=True,
        )
        for number, index in enumerate(drawn_as_curves(density))
    ]
    ticks = {float(np.arcsinh(tick / linear)): f"{tick:g}" for tick in decade_ticks(grid, linear)}
    return Panel(
        f"density of the {NAMES[name]}'s {density.size} eigenvalues",
        series,
        logarithmic=True,
        note=f"by stochastic Lanczos quadrature, {density.num_probes} probes of "
        f"{density.num_steps} steps; bands: standard error; what is below "
        f"{floor:.2g} is drawn there",
        x_label="eigenvalue",
        ticks=ticks,
    )
