"""`Spectrum`: Hessian and NTK spectra of a run with the threshold and the events, and its file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.events import (
    Crossing,
    Oscillation,
    find_crossings,
    find_oscillations,
    join_crossings,
)
from dlf_dynamics.analysis.hessian import Eigenvalues, HessianSpectrum, hessian_spectrum
from dlf_dynamics.analysis.ntk import NTKSpectrum, ntk_spectrum
from dlf_dynamics.analysis.stability import instability_threshold, refusal, threshold_label
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.hdf5 import damaged
from dlf_dynamics.provenance import provenance
from dlf_dynamics.run import Checkpoints, Run

Event = TypeVar("Event", Crossing, Oscillation)


@dataclass(frozen=True)
class Spectrum:
    """What `dlf-dynamics spectrum` found.

    Attributes:
        run_id: of the run.
        config: as computed: `tol`, `k` and `ntk_examples` are what they came to.
        hessian: top eigenvalues.
        ntk: kernel spectrum, or none when it was left out.
        thresholds: critical eigenvalue of the run's optimizer at each checkpoint.
        label: what the threshold is, or why none is drawn.
        crossings: at iterates and centres, in the order of steps; empty without a threshold.
        oscillations: windows in the order of steps.
    """

    run_id: str
    config: SpectrumConfig
    hessian: HessianSpectrum
    ntk: NTKSpectrum | None
    thresholds: Float[np.ndarray, " checkpoints"]
    label: str
    crossings: list[Crossing]
    oscillations: list[Oscillation]

    @property
    def bursts(self) -> list[Oscillation]:
        """The oscillations that are seen in the loss."""
        return [window for window in self.oscillations if window.burst]

    @property
    def not_converged(self) -> int:
        """Checkpoints at which the largest eigenvalue of iterate or centre did not converge."""
        fine = self.hessian.iterate.converged[:, 0] & self.hessian.centre.converged[:, 0]
        return int(np.sum(~fine & (self.hessian.steps > 0)))


def default_path(run_path: Path) -> Path:
    """`run.h5` has its spectrum in `run.spectrum.h5`."""
    return run_path.with_suffix(".spectrum.h5")


def compute_spectrum(
    run: Run,
    config: SpectrumConfig | None = None,
    *,
    progress: Callable[[str, int], None] = lambda what, done: None,
) -> Spectrum:
    """Hessian and NTK spectra, threshold, crossings and oscillations of a run.

    Args:
        run: a recorded run.
        config: what to compute.
        progress: told `hessian` or `ntk` and how many checkpoints are done.

    Raises:
        ConfigError: when no checkpoint is selected.
    """
    config = SpectrumConfig() if config is None else config
    chosen = select_checkpoints(run, config)
    hessian = hessian_spectrum(
        run,
        chosen,
        k=config.k,
        static=config.static,
        tol=config.tol,
        max_matvecs=config.max_matvecs,
        seed=config.seed,
        progress=lambda done: progress("hessian", done),
    )
    ntk = None
    if config.ntk_examples:
        ntk = ntk_spectrum(
            run,
            chosen,
            num_examples=config.ntk_examples,
            trace_outputs=not config.ntk_full,
            progress=lambda done: progress("ntk", done),
        )
    return _with_events(run, config, hessian, ntk)


def select_checkpoints(run: Run, config: SpectrumConfig) -> Checkpoints:
    """Indices of the checkpoints that the configuration asks for.

    Raises:
        ConfigError: when `steps` is not a:b, or nothing is left.
    """
    span = re.fullmatch(r"(\d*):(\d*)", config.steps)
    if span is None:
        raise ConfigError(f"steps is {config.steps!r}; expected a:b, for example 8000:10500")
    start, stop = int(span[1] or 0), int(span[2] or run.config.steps + 1)
    steps = run.checkpoint_steps
    inside = np.flatnonzero((steps >= start) & (steps < stop))
    if len(inside) == 0:
        there = f"{steps[0]} to {steps[-1]}" if len(steps) else "none"
        raise ConfigError(f"steps {config.steps} holds no checkpoint; the run's are {there}")
    return inside[:: config.every]


def _with_events(
    run: Run, config: SpectrumConfig, hessian: HessianSpectrum, ntk: NTKSpectrum | None
) -> Spectrum:
    rates = run.scalars["learning_rate"][np.searchsorted(run.steps, hessian.steps)]
    reason = refusal(run)
    thresholds = np.full(len(hessian.steps), np.nan)
    crossings: list[Crossing] = []
    if reason is None:
        thresholds = instability_threshold(run.config.optimizer, rates)
    if reason is None and not config.static:
        for at, found in (("iterate", hessian.iterate), ("centre", hessian.centre)):
            crossings += find_crossings(
                hessian.steps,
                found.eigenvalues[:, 0],
                found.residuals[:, 0],
                found.converged[:, 0],
                thresholds,
                at,
            )
    windows = find_oscillations(run.steps, run.scalars["loss"], run.scalars["update_cosine"])
    return Spectrum(
        run_id=run.run_id,
        config=replace(
            config,
            k=hessian.iterate.eigenvalues.shape[1],
            tol=hessian.tol,
            ntk_examples=0 if ntk is None else ntk.num_examples,
        ),
        hessian=hessian,
        ntk=ntk,
        thresholds=thresholds,
        label=reason or threshold_label(run.config.optimizer, static=config.static),
        crossings=sorted(crossings, key=lambda c: (c.step_after, c.at)),
        oscillations=join_crossings(windows, crossings),
    )


def save_spectrum(spectrum: Spectrum, path: Path) -> None:
    """Writes the spectrum's result file.

    Raises:
        FileError: when it cannot be written.
    """
    hessian, ntk = spectrum.hessian, spectrum.ntk
    arrays: dict[str, np.ndarray] = {"step": hessian.steps, "threshold": spectrum.thresholds}
    for at in ("iterate", "centre"):
        for name, array in getattr(hessian, at)._asdict().items():
            arrays[f"hessian/{at}/{name}"] = np.asarray(array)
    if ntk is not None:
        arrays["ntk/eigenvalues"] = ntk.eigenvalues
    for name, kind in (("crossings", Crossing), ("oscillations", Oscillation)):
        events = getattr(spectrum, name)
        for field in dataclasses.fields(kind):
            column = [getattr(event, field.name) for event in events]
            text = field.type == "str"
            arrays[f"{name}/{field.name}"] = np.array(column, dtype="S8" if text else None)
    settings: dict[str, Any] = dataclasses.asdict(spectrum.config)
    settings |= {"label": spectrum.label, "preconditioned": hessian.preconditioned}
    resultfile.write(
        path,
        resultfile.Result("spectrum", spectrum.run_id, settings, provenance(), arrays),
    )


def load_spectrum(path: str | Path, run: Run | None = None) -> Spectrum:
    """Reads a spectrum's result file.

    Args:
        path: of the file.
        run: the run that it must belong to.

    Raises:
        FileError: when it cannot be read, is damaged or belongs to another run.
    """
    path = Path(path)
    result = resultfile.read(path, "spectrum")
    if run is not None and result.run_id != run.run_id:
        raise FileError(
            f"{path} belongs to another run than {run.path}; "
            f"`dlf-dynamics spectrum {run.path}` computes it anew"
        )
    try:
        return _from_result(result)
    except (KeyError, TypeError) as error:
        raise damaged(path, resultfile.FORMAT, error) from error


def _from_result(result: resultfile.Result) -> Spectrum:
    arrays, settings = result.arrays, dict(result.config)
    label, preconditioned = settings.pop("label"), settings.pop("preconditioned")
    config = SpectrumConfig(**settings)
    at = {
        name: Eigenvalues(*(arrays[f"hessian/{name}/{key}"] for key in Eigenvalues._fields))
        for name in ("iterate", "centre")
    }
    hessian = HessianSpectrum(
        arrays["step"], at["iterate"], at["centre"], config.static, preconditioned, settings["tol"]
    )
    ntk = None
    if "ntk/eigenvalues" in arrays:
        ntk = NTKSpectrum(
            arrays["step"], arrays["ntk/eigenvalues"], config.ntk_examples, not config.ntk_full
        )
    return Spectrum(
        run_id=result.run_id,
        config=config,
        hessian=hessian,
        ntk=ntk,
        thresholds=arrays["threshold"],
        label=label,
        crossings=_events(arrays, "crossings", Crossing),
        oscillations=_events(arrays, "oscillations", Oscillation),
    )


def _events(arrays: Any, name: str, kind: type[Event]) -> list[Event]:
    columns = [arrays[f"{name}/{field.name}"].tolist() for field in dataclasses.fields(kind)]
    decode = lambda value: value.decode() if isinstance(value, bytes) else value  # noqa: E731
    rows: Any = zip(*(map(decode, column) for column in columns), strict=True)
    return [kind(*row) for row in rows]
