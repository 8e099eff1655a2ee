"""`Spectrum`: Hessian and NTK spectra of a run with the threshold and the events, and its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.spectra.checkpoints import (
    density_checkpoints,
    evenly,
    select_checkpoints,
)
from dlf_dynamics.analysis.spectra.crossings import resolve_crossings
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.density import Density, density
from dlf_dynamics.analysis.spectra.eigenvalues import HessianSpectrum, hessian_spectrum
from dlf_dynamics.analysis.spectra.events import (
    Crossing,
    Oscillation,
    find_oscillations,
    join_crossings,
    why_unwatched,
)
from dlf_dynamics.analysis.spectra.infinite_width import (
    InfiniteWidth,
    check_kernels,
    infinite_width,
)
from dlf_dynamics.analysis.spectra.ntk import NTKSpectrum, ntk_spectrum
from dlf_dynamics.analysis.spectra.points import POINTS
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.analysis.stability.threshold import Threshold
from dlf_dynamics.codec import decode, encode
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.parts import Parts, in_parts
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Checkpoints, Run
from dlf_dynamics.shown import Shown
from dlf_dynamics.source import Source

DENSITIES = ("hessian", "ggn", "ntk")

_NTK_PART, _DENSITY_PART = 500, 10


@dataclass(frozen=True)
class FullBatchReference:
    """The threshold at which a run with mini-batches would lose stability with full batches.

    No crossings of it are reported, as the run's updates are others.

    Attributes:
        values: critical eigenvalue of the full-batch update at each checkpoint.
        label: description of the threshold.
        preconditioned: whether it applies to P^-1 H, with the preconditioner P frozen.
    """

    values: Float[np.ndarray, " checkpoints"]
    label: str
    preconditioned: bool
    __repr__ = brief

    @property
    def short_label(self) -> str:
        """The label for legends."""
        return f"full batch{', P frozen' if self.preconditioned else ''}"


@dataclass(frozen=True)
class Spectrum(Shown):
    """Result of `dlf-dynamics spectrum`.

    Attributes:
        source: state of the run that was analysed.
        asked: settings as requested.
        config: settings as computed, with the values of `tol`, `k` and `ntk_examples` used.
        hessian: extreme eigenvalues.
        ntk: kernel spectrum, or none when it was left out.
        densities: spectral densities by operator; empty when they were not requested.
        thresholds: critical eigenvalue of the run's optimizer at each checkpoint.
        label: description of the threshold, or why there is none.
        sides: side of the threshold of the largest eigenvalue at each checkpoint, at iterate and
            centre: 1 certainly above, -1 certainly below, 0 not known.
        crossings: crossings at iterates and centres, in the order of steps; empty without a
            threshold.
        oscillations: windows of oscillation, in the order of steps.
        unwatched: why oscillations are not reported; empty where they are.
        infinite_width: kernels at infinite width, or none when they were not requested.
        reference: threshold of full-batch updates, for a run with mini-batches; none otherwise, and
            in files before version 4.2.
    """

    source: Source
    asked: SpectrumConfig
    config: SpectrumConfig
    hessian: HessianSpectrum
    ntk: NTKSpectrum | None
    densities: dict[str, Density]
    thresholds: Float[np.ndarray, " checkpoints"]
    label: str
    sides: Int[np.ndarray, "checkpoints points"]
    crossings: list[Crossing]
    oscillations: list[Oscillation]
    unwatched: str = ""
    infinite_width: InfiniteWidth | None = None
    reference: FullBatchReference | None = None
    told_by = "spectrum"
    words = MappingProxyType({"points": POINTS, "sides": {-1: "below", 0: "unknown", 1: "above"}})
    __repr__ = brief

    @property
    def bursts(self) -> list[Oscillation]:
        """The oscillations that are seen in the loss."""
        return [window for window in self.oscillations if window.burst]

    @property
    def not_converged(self) -> int:
        """Number of checkpoints at which any value, at iterate or centre, did not converge."""
        return int(np.sum(np.any(self.unsure, axis=(1, 2))))

    @property
    def comparable(self) -> bool:
        """Whether there is a threshold that applies to the largest eigenvalues found."""
        hessian = self.hessian
        applies = hessian.curvature.has_threshold and hessian.ends.top > 0
        return applies and bool(np.any(np.isfinite(self.thresholds)))

    @property
    def unsure(self) -> Bool[np.ndarray, "checkpoints points k"]:
        """Which existing values did not converge."""
        known = np.isfinite(self.hessian.at_points("eigenvalues"))
        return known & ~self.hessian.at_points("converged")

    @property
    def failure_probability(self) -> float:
        """Bound on the probability that any upper bound on the largest eigenvalue fails."""
        told = np.isfinite(self.hessian.at_points("upper_bound"))
        return min(float(np.sum(told)) * self.hessian.failure_probability, 1.0)

    @property
    def failed(self) -> list[int]:
        """Steps of the checkpoints at which the loss or its curvature is not finite."""
        return self.hessian.steps[np.isnan(self.hessian.iterate.eigenvalues[:, 0])].tolist()

    @property
    def unresolved(self) -> int:
        """Number of checkpoints whose side of the threshold is not known."""
        if not self.comparable:
            return 0
        return int(np.sum(np.any(self.hessian.known & (self.sides == 0), axis=1)))


def compute_spectrum(
    run: Run,
    config: SpectrumConfig | None = None,
    *,
    parts: Parts | None = None,
    progress: Callable[[str, int], None] = lambda what, done: None,
    watch: Callable[[int], None] = lambda matvecs: None,
) -> Spectrum:
    """Hessian and NTK spectra, threshold, crossings and oscillations of a run.

    Args:
        run: a recorded run.
        config: what to compute.
        parts: storage for finished parts, from which an interrupted analysis resumes.
        progress: called with `hessian`, `ntk`, `density` or `infinite-width` and the number of
            checkpoints done.
        watch: see `hessian_spectrum`.

    Raises:
        ConfigError: when no checkpoint is selected, the run has no such class or block, requested
            kernels are not available, or `above` is given where there is no threshold.
    """
    asked = config = SpectrumConfig() if config is None else config
    if not run.problem.has_outputs:
        config = replace(config, ntk_examples=0)
    parts = Parts(None) if parts is None else parts
    chosen = select_checkpoints(run, config)
    check_kernels(run, config)
    thresholds = _thresholds(run, config, chosen)
    ntk = cache(partial(_ntk, run, config, chosen, parts, progress))
    hessian = hessian_spectrum(
        run,
        chosen,
        config=config,
        thresholds=thresholds,
        parts=parts,
        progress=lambda done: progress("hessian", done),
        watch=watch,
        meanwhile=ntk,
    )
    densities = _densities(run, config, chosen, parts, progress) if config.density else {}
    spectrum = replace(
        _with_events(run, config, hessian, ntk(), densities, thresholds), asked=asked
    )
    if not config.infinite_width:
        return spectrum
    compare = partial(infinite_width, run, chosen, num_examples=config.ntk_examples)
    parse = partial(decode, InfiniteWidth, lengths={"checkpoints": len(chosen)})
    limits = parts.get_or_make(f"infinite-width-of-{len(chosen)}", lambda: encode(compare()), parse)
    progress("infinite-width", len(chosen))
    return replace(spectrum, infinite_width=limits)


def _thresholds(
    run: Run, config: SpectrumConfig, chosen: Checkpoints
) -> Float[np.ndarray, " checkpoints"]:
    """Critical eigenvalue at each checkpoint; raises where `above` needs one and there is none."""
    threshold = run_threshold(run)
    thresholds = threshold.at(run.checkpoint_steps[np.asarray(chosen)])
    if config.above is not None and np.all(np.isnan(thresholds)):
        raise ConfigError(
            f"above is {config.above:g}, a fraction of the threshold, and there is none: "
            f"{threshold.reason}"
        )
    return thresholds


def _ntk(
    run: Run,
    config: SpectrumConfig,
    chosen: Checkpoints,
    parts: Parts,
    progress: Callable[[str, int], None],
) -> NTKSpectrum | None:
    if not config.ntk_examples:
        return None
    part = partial(
        ntk_spectrum,
        run,
        num_examples=config.ntk_examples,
        trace_outputs=not config.ntk_full,
        batch_size=config.batch_size,
        seed=config.seed,
        engine=config.ntk_engine,
        aligned=evenly(chosen, config.alignment_checkpoints),
    )
    told = lambda done: progress("ntk", done)  # noqa: E731
    # The checkpoints with an alignment depend on the number of all checkpoints.
    everywhere = len(chosen) <= config.alignment_checkpoints
    name = "ntk" if everywhere else f"ntk-of-{len(chosen)}"
    return in_parts(NTKSpectrum, part, chosen, _NTK_PART, name, parts, told)


def _densities(
    run: Run,
    config: SpectrumConfig,
    chosen: Checkpoints,
    parts: Parts,
    progress: Callable[[str, int], None],
) -> dict[str, Density]:
    some, densities = density_checkpoints(config, chosen), {}
    for number, name in enumerate(DENSITIES):
        if name == "ntk" and not config.ntk_examples:
            continue
        examples = config.ntk_examples if name == "ntk" else None
        part = partial(
            density,
            run,
            operator=name,
            static=config.static,
            num_examples=examples,
            batch_size=config.batch_size,
            max_memory=config.max_memory,
            seed=config.seed,
        )
        start = number * len(some)
        told = lambda done, start=start: progress("density", start + done)  # noqa: E731
        # The chosen checkpoints depend on the number of all checkpoints.
        kept = f"density-{name}-of-{len(chosen)}"
        densities[name] = in_parts(Density, part, some, _DENSITY_PART, kept, parts, told, "sampled")
    return densities


def _with_events(
    run: Run,
    config: SpectrumConfig,
    hessian: HessianSpectrum,
    ntk: NTKSpectrum | None,
    densities: dict[str, Density],
    thresholds: Float[np.ndarray, " checkpoints"],
) -> Spectrum:
    crossings: list[Crossing] = []
    sides = np.zeros((len(hessian.steps), len(POINTS)), int)
    comparable = hessian.curvature.has_threshold and hessian.ends.top > 0
    if comparable and np.any(np.isfinite(thresholds)):
        solver = Solver.from_config(run, config)
        resolved = resolve_crossings(run, solver, hessian, thresholds)
        hessian, crossings, sides = resolved.hessian, resolved.found, resolved.sides
    threshold = run_threshold(run)
    loss, cosine = run.scalars["loss"], run.scalars["update_cosine"]
    unwatched = why_unwatched(run.dynamics.batch_size, cosine, replayed=run.own_updates)
    windows = [] if unwatched else find_oscillations(run.steps, loss, cosine)
    return Spectrum(
        source=run.source,
        asked=config,
        config=replace(
            config,
            k=max(hessian.ends),
            tol=hessian.tol,
            ntk_examples=0 if ntk is None else ntk.num_examples,
        ),
        hessian=hessian,
        ntk=ntk,
        densities=densities,
        thresholds=thresholds,
        label=threshold.label(applies=hessian.curvature.has_threshold),
        sides=sides,
        crossings=crossings,
        oscillations=join_crossings(windows, crossings),
        unwatched=unwatched,
        reference=_reference(threshold, hessian.steps) if comparable else None,
    )


def _reference(
    threshold: Threshold, steps: Int[np.ndarray, " checkpoints"]
) -> FullBatchReference | None:
    """The threshold of full-batch updates, if mini-batches are the only reason for having none."""
    if not threshold.of_full_batch:
        return None
    return FullBatchReference(
        threshold.of_full_batch_at(steps),
        threshold.full_batch_label(steps),
        threshold.preconditioned,
    )


def save_spectrum(spectrum: Spectrum, path: Path) -> None:
    """Writes the spectrum's result file.

    Raises:
        FileError: when it cannot be written.
    """
    resultfile.save(path, "spectrum", spectrum)


def load_spectrum(path: str | Path, run: Run | None = None) -> Spectrum:
    """Reads a spectrum's result file.

    Args:
        path: path of the file.
        run: the run that it must belong to, in its present state; none accepts any.

    Raises:
        FileError: when it cannot be read or is damaged.
        StaleError: when it belongs to another run, or to an earlier state of this one.
    """
    return resultfile.load(path, "spectrum", Spectrum, run)
