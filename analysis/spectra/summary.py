"""Table, lines and JSON for a spectrum."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int
from rich import box
from rich.table import Table

from dlf_dynamics.analysis.linalg.certificate import STATUSES
from dlf_dynamics.analysis.spectra.density import Density
from dlf_dynamics.analysis.spectra.events import Crossing
from dlf_dynamics.analysis.spectra.infinite_width import InfiniteWidth
from dlf_dynamics.analysis.spectra.ntk import NTKSpectrum
from dlf_dynamics.analysis.spectra.solver import MOST
from dlf_dynamics.analysis.spectra.spectrum import FullBatchReference, Spectrum
from dlf_dynamics.errors import counted
from dlf_dynamics.jsontypes import finite
from dlf_dynamics.run import Run


def as_dict(spectrum: Spectrum) -> dict[str, Any]:
    """The result as JSON values; numbers that are not finite become null."""
    hessian = spectrum.hessian
    centre = hessian.centre.eigenvalues[:, 0]
    content = {
        "run_id": spectrum.source.run_id,
        "run": spectrum.source.state,
        "config": dataclasses.asdict(spectrum.config),
        "threshold": {
            "label": spectrum.label,
            "first": float(spectrum.thresholds[0]),
            "last": float(spectrum.thresholds[-1]),
        },
        "reference": _reference(spectrum.reference),
        "checkpoints": len(hessian.steps),
        "operator": str(hessian.curvature),
        "values": _num_values(spectrum),
        "values_not_converged": int(np.sum(spectrum.unsure)),
        "not_converged": spectrum.not_converged,
        "centres": _has_centres(spectrum),
        "above": _above(spectrum),
        "failed": spectrum.failed,
        "unresolved": spectrum.unresolved,
        "statuses": _statuses(spectrum),
        "failure_probability": spectrum.failure_probability,
        "precision": hessian.precision,
        "matvecs_per_checkpoint_and_point": _mean_products(spectrum),
        "largest_sharpness_at_centres": float(np.nanmax(centre, initial=-np.inf)),
        "largest_ntk_eigenvalue": (
            None if spectrum.ntk is None else float(np.nanmax(spectrum.ntk.eigenvalues[:, 0]))
        ),
        "ntk": None if spectrum.ntk is None else _kernel(spectrum.ntk),
        "infinite_width": _limits(spectrum.infinite_width),
        "densities": {name: _moments(density) for name, density in spectrum.densities.items()},
        "oscillations_known": not spectrum.unwatched,
        "bursts": len(spectrum.bursts),
        "oscillations": [dataclasses.asdict(window) for window in spectrum.oscillations],
        "crossings": [dataclasses.asdict(crossing) for crossing in spectrum.crossings],
    }
    return finite(content)


def _reference(reference: FullBatchReference | None) -> dict[str, Any] | None:
    """Label, first and last value of the reference."""
    if reference is None:
        return None
    first, last = reference.values[[0, -1]].tolist()
    return {"label": reference.label, "first": first, "last": last}


def last_line(spectrum: Spectrum) -> str:
    """The last value at a centre, or an iterate where there is none, and what has crossed."""
    hessian = spectrum.hessian
    at = "centre" if _has_centres(spectrum) else "iterate"
    points = getattr(hessian, at)
    value, sure = float(points.eigenvalues[-1, 0]), bool(points.converged[-1, 0])
    limit = float(spectrum.thresholds[-1])
    told = f"largest eigenvalue at the {at} {value:.4g}{'' if sure else ' (not converged)'}"
    if not spectrum.comparable or not np.isfinite(limit):
        return told
    count = sum(crossing.at == at for crossing in spectrum.crossings)
    return f"{told}, threshold {limit:.4g}, {counted(count, 'crossing')}"


def _kernel(ntk: NTKSpectrum) -> dict[str, list[Any]]:
    """Statistics of the kernel at each step."""
    names = ("steps", "trace", "captured", "effective_rank", "alignment")
    content = {name: getattr(ntk, name).tolist() for name in names}
    return content | {"class_examples": list(ntk.class_examples)}


def _limits(kernels: InfiniteWidth | None) -> dict[str, list[float]] | None:
    """Distance from infinite width at each step, and the eigenvalues of the limits."""
    names = ("steps", "distance", "alignment", "movement", "ntk", "nngp")
    return None if kernels is None else {name: getattr(kernels, name).tolist() for name in names}


def _moments(density: Density) -> dict[str, Any]:
    """Trace and Frobenius norm at each step, with half widths of their 95 % intervals."""
    names = ("steps", "trace", "trace_radius", "frobenius", "frobenius_radius")
    content = {name: getattr(density, name).tolist() for name in names}
    return content | {"num_probes": density.num_probes, "num_steps": density.num_steps}


def _above(spectrum: Spectrum) -> dict[str, Any] | None:
    """Whether all values above a fraction of the threshold were found."""
    if spectrum.config.above is None:
        return None
    missing = spectrum.hessian.incomplete
    values = spectrum.hessian.at_points("eigenvalues")[missing]
    return {
        "fraction": spectrum.config.above,
        "incomplete_steps": spectrum.hessian.steps[missing].tolist(),
        "smallest_there": float(np.nanmin(values, initial=np.inf)),
    }


def _num_values(spectrum: Spectrum) -> int:
    """Eigenvalues at iterates and centres, converged or not."""
    return int(np.sum(np.isfinite(spectrum.hessian.at_points("eigenvalues"))))


def _statuses(spectrum: Spectrum) -> dict[str, int]:
    """Number of eigenvalues of each status, where there are eigenvalues."""
    known = np.isfinite(spectrum.hessian.at_points("eigenvalues"))
    statuses = spectrum.hessian.at_points("status")[known]
    return {name: int(np.sum(statuses == status)) for status, name in enumerate(STATUSES)}


def _has_centres(spectrum: Spectrum) -> bool:
    """Whether centres are known after step 0, which has none."""
    beyond = spectrum.hessian.steps > 0
    values = spectrum.hessian.centre.eigenvalues[beyond]
    return not np.any(beyond) or bool(np.any(np.isfinite(values)))


def _mean_products(spectrum: Spectrum) -> float:
    """Mean number of products, over points that exist."""
    counts = spectrum.hessian.at_points("num_matvecs")
    return float(np.mean(counts[counts > 0])) if np.any(counts) else 0.0


def events_table(spectrum: Spectrum) -> Table:
    """One line for each oscillation, with the crossings of the threshold before and in it."""
    table = Table(
        title="Oscillations, and the centre's crossings of the threshold up to each",
        caption="lag: onset minus crossing, in steps; negative where the oscillation began first. "
        "Crossings are certain but for those marked r (refined) or ? (unresolved)",
        box=box.SIMPLE_HEAD,
    )
    for heading in (
        "",
        "oscillation",
        "burst",
        "max |ΔF|",
        "crossed up",
        "lag",
        "up/down",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    centre = [crossing for crossing in spectrum.crossings if crossing.at == "centre"]
    previous = -1
    for number, window in enumerate(spectrum.oscillations, start=1):
        inside = [c for c in centre if previous < c.step_before <= window.end]
        ups = sum(c.direction == "up" for c in inside)
        first = next((c for c in inside if c.step_after == window.crossed), None)
        burst = f"{window.burst_start}-{window.burst_end}" if window.burst else "-"
        table.add_row(
            str(number),
            f"{window.onset}-{window.end}",
            burst,
            f"{window.max_change:.3g}",
            "-" if first is None else f"{first.step_before}-{first.step_after}{_mark(first)}",
            "-" if first is None else f"{window.onset - first.step_after:+d}",
            f"{ups}/{len(inside) - ups}",
        )
        previous = window.end
    return table


def _mark(crossing: Crossing) -> str:
    return {"certain": "", "refined": " r", "unresolved": " ?"}[crossing.state]


_SATURATED = 1e-6
"""Loss below which a run in float32 is mostly rounding: eight times its machine epsilon."""


def lines(spectrum: Spectrum) -> list[str | Table]:
    """The events as a table, and what they rest on."""
    table = [] if spectrum.unwatched else [events_table(spectrum)]
    return [*table, *closing_lines(spectrum)]


def closing_lines(spectrum: Spectrum) -> list[str]:
    """Operator, convergence, threshold, events and caveats, a line each."""
    hessian = spectrum.hessian
    lines = [
        f"{hessian.curvature} at {counted(len(hessian.steps), 'checkpoint')}, "
        f"{_mean_products(spectrum):.1f} products each at {_points_line(spectrum)}",
        _convergence_line(spectrum),
        threshold_line(spectrum.thresholds, spectrum.label),
        *_reference_lines(spectrum),
        _count_oscillations(spectrum) + "; " + _crossings_line(spectrum),
        *spectrum.source.caution,
    ]
    if hessian.incomplete.any():
        lines.insert(2, _above_line(spectrum))
    if spectrum.failed:
        lines.append(f"failed, the loss is not finite there: steps {spectrum.failed}")
    if spectrum.ntk is not None:
        lines.append(_ntk_line(spectrum.ntk))
    if spectrum.infinite_width is not None:
        lines.append(_limit_line(spectrum.infinite_width))
    return lines + [_density_line(name, density) for name, density in spectrum.densities.items()]


def saturation_lines(run: Run, steps: Int[np.ndarray, " checkpoints"]) -> list[str]:
    """A line on checkpoints whose loss is within the rounding of the run's type."""
    losses = run.scalars.get("loss")
    if run.dtype == "float64" or losses is None:
        return []
    there = np.isin(run.steps, steps) & (np.abs(losses) < _SATURATED)
    if not there.any():
        return []
    return [
        f"saturated: the loss is below {_SATURATED:g} at {counted(int(there.sum()), 'checkpoint')} "
        f"from step {run.steps[there][0]} on; updates in {run.dtype} are mostly rounding there"
    ]


def _points_line(spectrum: Spectrum) -> str:
    if _has_centres(spectrum):
        return "iterate and centre"
    return "the iterate alone, as the updates about it, and so its centre, are not known"


def _convergence_line(spectrum: Spectrum) -> str:
    """Convergence of all values, whatever their rank."""
    counts, total = _statuses(spectrum), _num_values(spectrum)
    by_choice = [f"{counts[name]} {name}" for name in ("unranked", "tracked") if counts[name]]
    bad = int(np.sum(spectrum.unsure)) - counts["unranked"] - counts["tracked"]
    line = ", ".join([f"{bad} of {total} eigenvalues not converged", *by_choice])
    if spectrum.not_converged:
        line += f", at {counted(spectrum.not_converged, 'checkpoint')}"
    precision = spectrum.hessian.precision
    return line + (
        f"; those that are have an upper bound each, which fail with a probability of "
        f"{spectrum.failure_probability:.1e} in all; computed in {precision}"
    )


def _above_line(spectrum: Spectrum) -> str:
    above = _above(spectrum)
    assert above is not None
    return (
        f"eigenvalues above {above['fraction']:g} of the threshold may be missing at "
        f"{counted(len(above['incomplete_steps']), 'checkpoint')}: of at most {MOST} the smallest "
        f"found there is {above['smallest_there']:.3g}"
    )


def _count_oscillations(spectrum: Spectrum) -> str:
    if spectrum.unwatched:
        return f"oscillations are not reported: {spectrum.unwatched}"
    bursts, windows = len(spectrum.bursts), len(spectrum.oscillations)
    return f"{counted(bursts, 'burst')}, {counted(windows, 'oscillation')}"


def _crossings_line(spectrum: Spectrum) -> str:
    if not spectrum.comparable:
        return "crossings are not known, as there is no threshold to hold these eigenvalues against"
    counts = [_count_crossings(spectrum, at) for at in ("centre", "iterate")]
    unresolved = counted(spectrum.unresolved, "checkpoint")
    return "; ".join([*counts, f"{unresolved} on neither side of the threshold"])


def _count_crossings(spectrum: Spectrum, at: str) -> str:
    states = [crossing.state for crossing in spectrum.crossings if crossing.at == at]
    more = [f"{states.count(s)} {s}" for s in ("refined", "unresolved") if s in states]
    line = f"{counted(len(states), 'crossing')} at {at}s"
    return line + (f" ({', '.join(more)})" if more else "")


def _ntk_line(ntk: NTKSpectrum) -> str:
    """The kernel at the last checkpoint."""
    examples, count = ntk.num_examples, ntk.eigenvalues.shape[1]
    kind = "averaged over outputs" if ntk.trace_outputs else "all outputs"
    return (
        f"NTK of {examples} examples, {kind}: {count} eigenvalues, {np.sum(~ntk.converged)} not "
        f"converged; at step {ntk.steps[-1]} they are {100 * ntk.captured[-1]:.4g}% of the trace "
        f"{ntk.trace[-1]:.4g}, effective rank {ntk.effective_rank[-1]:.3g}; {_alignment(ntk)}"
    )


def _alignment(ntk: NTKSpectrum) -> str:
    """Alignment at the last checkpoint, or why there is none."""
    classes = ntk.class_blocks.shape[1]
    if classes == 1:
        return "no alignment, as there are no labels of several classes"
    examples = "these examples"
    if ntk.class_examples:
        examples = f"{len(ntk.class_examples)} examples drawn evenly from {classes} classes"
    if not np.isfinite(ntk.alignment[-1]):
        return (
            f"alignment with the labels on {examples} undefined, the kernel being 0 or not finite"
        )
    return f"alignment with the labels {ntk.alignment[-1]:.3g} on {examples}"


def _limit_line(kernels: InfiniteWidth) -> str:
    """Distance and alignment at the first and the last checkpoint."""
    distance, alignment = (
        " -> ".join(f"{values[index]:.3g}" for index in (0, -1))
        for values in (kernels.distance, kernels.alignment)
    )
    weights = "" if kernels.normal_weights else ", of normal weights"
    return (
        f"infinite width{weights}: from step {kernels.steps[0]} to {kernels.steps[-1]} the NTK's "
        f"distance from the kernel Θ goes {distance} of ‖Θ‖, their alignment {alignment}; it is "
        f"{kernels.movement[-1]:.3g} of its own norm away from where the run began"
    )


def _density_line(name: str, density: Density) -> str:
    last = -1
    return (
        f"{name} density at {counted(len(density.steps), 'checkpoint')}; at step "
        f"{density.steps[last]} trace {density.trace[last]:.4g} ± "
        f"{density.trace_radius[last]:.2g}, Frobenius norm {density.frobenius[last]:.4g} ± "
        f"{density.frobenius_radius[last]:.2g} "
        f"(95 %, {density.num_probes} probes of {density.num_steps} steps)"
    )


def threshold_line(thresholds: np.ndarray, label: str) -> str:
    """The threshold's value and what it is, or why there is none."""
    known = _range_of(thresholds)
    if not known:
        return f"no threshold: {label.removeprefix('no threshold: ')}"
    return f"threshold {known}: {label}"


def _reference_lines(spectrum: Spectrum) -> list[str]:
    """The threshold of full-batch updates, where the run has none for its mini-batches."""
    reference = spectrum.reference
    known = "" if reference is None else _range_of(reference.values)
    if reference is None or not known:
        return []
    return [f"reference {known}: {reference.label}; nothing is decided against it"]


def _range_of(values: np.ndarray) -> str:
    """The least and the largest finite value, or that there are infinite ones; empty for NaN."""
    finite_values = values[np.isfinite(values)]
    words = []
    if len(finite_values):
        low, high = finite_values.min(), finite_values.max()
        words.append(f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}")
    if np.any(np.isposinf(values)):
        words.append("infinite")
    return " or ".join(words)
