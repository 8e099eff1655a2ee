"""`Spectrum`: Hessian and NTK spectra of a run with the threshold and the events, and its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.crossings import resolve_crossings
from dlf_dynamics.analysis.curvature import Curvature
from dlf_dynamics.analysis.density import Density, density
from dlf_dynamics.analysis.events import (
    Crossing,
    Oscillation,
    find_oscillations,
    join_crossings,
)
from dlf_dynamics.analysis.hessian import Audit, Eigenvalues, HessianSpectrum, hessian_spectrum
from dlf_dynamics.analysis.infinite_width import InfiniteWidth, check_kernels, infinite_width
from dlf_dynamics.analysis.ntk import NTKSpectrum, ntk_spectrum
from dlf_dynamics.analysis.ritz import Ends
from dlf_dynamics.analysis.stability import instability_threshold, refusal, threshold_label
from dlf_dynamics.analysis.trajectory import POINTS, Solver
from dlf_dynamics.config import SpectrumConfig, span_of
from dlf_dynamics.configfile import in_type, override
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import content_of
from dlf_dynamics.provenance import provenance
from dlf_dynamics.resultfile import (
    Parts,
    Record,
    inside,
    pack,
    unpack,
    unpack_table,
)
from dlf_dynamics.run import Checkpoints, Run

DENSITIES = ("hessian", "ggn", "ntk")

_TABLES: dict[str, type] = {"crossings": Crossing, "oscillations": Oscillation, "audits": Audit}
_NTK_PART, _DENSITY_PART = 500, 10


@dataclass(frozen=True)
class Spectrum:
    """What `dlf-dynamics spectrum` found.

    Attributes:
        run_id: of the run.
        config: as computed: `tol`, `k` and `ntk_examples` are what they came to.
        hessian: extreme eigenvalues.
        ntk: kernel spectrum, or none when it was left out.
        densities: by operator; empty when they were not asked for.
        thresholds: critical eigenvalue of the run's optimizer at each checkpoint.
        label: what the threshold is, or why none is drawn.
        sides: of the largest eigenvalue at each checkpoint, at iterate and centre: 1 surely above
            the threshold, -1 surely below, 0 not known.
        crossings: at iterates and centres, in the order of steps; empty without a threshold.
        oscillations: windows in the order of steps.
        watched: whether the update cosines were recorded, from which oscillations are told.
        infinite_width: kernels at infinite width, or none when they were not asked for.
    """

    run_id: str
    config: SpectrumConfig
    hessian: HessianSpectrum
    ntk: NTKSpectrum | None
    densities: dict[str, Density]
    thresholds: Float[np.ndarray, " checkpoints"]
    label: str
    sides: Int[np.ndarray, "checkpoints points"]
    crossings: list[Crossing]
    oscillations: list[Oscillation]
    watched: bool = True
    infinite_width: InfiniteWidth | None = None

    @property
    def bursts(self) -> list[Oscillation]:
        """The oscillations that are seen in the loss."""
        return [window for window in self.oscillations if window.burst]

    @property
    def not_converged(self) -> int:
        """Checkpoints at which the largest eigenvalue of iterate or centre did not converge."""
        known, fine = self._known, self._stacked("converged")
        return int(np.sum(np.any(known & ~fine, axis=1)))

    @property
    def failed(self) -> list[int]:
        """Steps of the checkpoints at which the loss or its curvature is not finite."""
        return self.hessian.steps[np.isnan(self.hessian.iterate.eigenvalues[:, 0])].tolist()

    @property
    def unresolved(self) -> int:
        """Checkpoints of which it is not known on which side of the threshold they are."""
        if not np.any(np.isfinite(self.thresholds)) or not self.hessian.curvature.has_threshold:
            return 0
        return int(np.sum(np.any(self._known & (self.sides == 0), axis=1)))

    @property
    def _known(self) -> Bool[np.ndarray, "checkpoints points"]:
        """Where there is a value: not at the centre of step 0, nor where the loss failed."""
        return np.isfinite(self._stacked("eigenvalues"))

    def _stacked(self, name: str) -> Shaped[np.ndarray, "checkpoints points"]:
        """Of the largest eigenvalue at each point."""
        return np.stack([getattr(getattr(self.hessian, at), name)[:, 0] for at in POINTS], axis=1)


def default_path(run_path: Path) -> Path:
    """`run.h5` has its spectrum in `run.spectrum.h5`."""
    return run_path.with_suffix(".spectrum.h5")


def compute_spectrum(
    run: Run,
    config: SpectrumConfig | None = None,
    *,
    parts: Parts | None = None,
    progress: Callable[[str, int], None] = lambda what, done: None,
) -> Spectrum:
    """Hessian and NTK spectra, threshold, crossings and oscillations of a run.

    Args:
        run: a recorded run.
        config: what to compute.
        parts: where finished parts are kept, so that an interrupted analysis goes on.
        progress: told `hessian`, `ntk`, `density` or `infinite-width` and how many checkpoints
            are done.

    Raises:
        ConfigError: when no checkpoint is selected, the run has no such class or block, or the
            kernels that are asked for cannot be had.
    """
    config = SpectrumConfig() if config is None else config
    if not run.problem.has_outputs:
        config = replace(config, ntk_examples=0)
    parts = Parts(None) if parts is None else parts
    chosen = select_checkpoints(run, config)
    check_kernels(run, config)
    thresholds = _thresholds(run, chosen)
    hessian = hessian_spectrum(
        run,
        chosen,
        config=config,
        thresholds=thresholds,
        parts=parts,
        progress=lambda done: progress("hessian", done),
    )
    ntk = _ntk(run, config, chosen, parts, progress) if config.ntk_examples else None
    densities = _densities(run, config, chosen, parts, progress) if config.density else {}
    found = _with_events(run, config, hessian, ntk, densities, thresholds)
    if not config.infinite_width:
        return found
    compare = partial(infinite_width, run, chosen, num_examples=config.ntk_examples)
    limits = unpack(InfiniteWidth, parts.get_or_make("infinite-width", lambda: pack(compare())))
    progress("infinite-width", len(chosen))
    return replace(found, infinite_width=limits)


def _ntk(
    run: Run,
    config: SpectrumConfig,
    chosen: Checkpoints,
    parts: Parts,
    progress: Callable[[str, int], None],
) -> NTKSpectrum:
    part = partial(
        ntk_spectrum,
        run,
        num_examples=config.ntk_examples,
        trace_outputs=not config.ntk_full,
        batch_size=config.batch_size,
        seed=config.seed,
        engine=config.ntk_engine,
    )
    told = lambda done: progress("ntk", done)  # noqa: E731
    return _in_parts(NTKSpectrum, part, chosen, _NTK_PART, "ntk", parts, told)


def density_checkpoints(config: SpectrumConfig, chosen: Checkpoints) -> Checkpoints:
    """The chosen checkpoints at which densities are computed."""
    count = min(config.density_checkpoints, len(chosen))
    return np.asarray(chosen)[np.linspace(0, len(chosen) - 1, count).astype(int)]


def _densities(
    run: Run,
    config: SpectrumConfig,
    chosen: Checkpoints,
    parts: Parts,
    progress: Callable[[str, int], None],
) -> dict[str, Density]:
    some, found = density_checkpoints(config, chosen), {}
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
            seed=config.seed,
        )
        start = number * len(some)
        told = lambda done, start=start: progress("density", start + done)  # noqa: E731
        found[name] = _in_parts(Density, part, some, _DENSITY_PART, f"density-{name}", parts, told)
    return found


def _in_parts(
    kind: type[Record],
    compute: Callable[[Checkpoints], Record],
    chosen: Checkpoints,
    length: int,
    name: str,
    parts: Parts,
    progress: Callable[[int], None],
) -> Record:
    """What `compute` gives for all checkpoints, some at a time, each part kept when it is done."""
    found = []
    for start in range(0, len(chosen), length):
        some = chosen[start : start + length]
        arrays = parts.get_or_make(f"{name}-{len(found)}", lambda some=some: pack(compute(some)))
        found.append(unpack(kind, arrays))
        progress(start + len(some))
    return resultfile.concatenate(found)


def select_checkpoints(run: Run, config: SpectrumConfig) -> Checkpoints:
    """Indices of the checkpoints that the configuration asks for.

    Raises:
        ConfigError: when `steps` is not a:b, or nothing is left.
    """
    start, stop = span_of(config.steps, "steps")
    steps = run.checkpoint_steps
    within = np.flatnonzero((steps >= start) & (steps < stop))
    if len(within) == 0:
        there = f"{steps[0]} to {steps[-1]}" if len(steps) else "none"
        raise ConfigError(f"steps {config.steps} holds no checkpoint; the run's are {there}")
    return within[:: config.every]


def _thresholds(run: Run, chosen: Checkpoints) -> Float[np.ndarray, " checkpoints"]:
    """Of the run's optimizer at each checkpoint; NaN where none may be drawn."""
    steps = run.checkpoint_steps[np.asarray(chosen)]
    if refusal(run) is not None:
        return np.full(len(steps), np.nan)
    return instability_threshold(run.dynamics.optimizer, steps)


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
    windows = find_oscillations(run.steps, run.scalars["loss"], run.scalars["update_cosine"])
    return Spectrum(
        run_id=run.run_id,
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
        label=refusal(run) or threshold_label(run, applies=hessian.curvature.has_threshold),
        sides=sides,
        crossings=crossings,
        oscillations=join_crossings(windows, crossings),
        watched=bool(np.any(np.isfinite(run.scalars["update_cosine"]))),
    )


def save_spectrum(spectrum: Spectrum, path: Path) -> None:
    """Writes the spectrum's result file.

    Raises:
        FileError: when it cannot be written.
    """
    hessian = spectrum.hessian
    arrays: resultfile.Arrays = {
        "step": hessian.steps,
        "threshold": spectrum.thresholds,
        "side": spectrum.sides,
    }
    for at in POINTS:
        for name, array in getattr(hessian, at)._asdict().items():
            arrays[f"hessian/{at}/{name}"] = np.asarray(array)
    packed: dict[str, Any] = {f"density/{name}": d for name, d in spectrum.densities.items()}
    if spectrum.ntk is not None:
        packed["ntk"] = spectrum.ntk
    if spectrum.infinite_width is not None:
        packed["infinite_width"] = spectrum.infinite_width
    for name, record in packed.items():
        arrays |= {f"{name}/{key}": value for key, value in pack(record).items()}
    tables = vars(spectrum) | {"audits": hessian.audits}
    for name, kind in _TABLES.items():
        table = resultfile.pack_table(kind, tables[name])
        arrays |= {f"{name}/{key}": column for key, column in table.items()}
    settings = {
        "spectrum": dataclasses.asdict(spectrum.config),
        "label": spectrum.label,
        "watched": spectrum.watched,
        "curvature": dataclasses.asdict(hessian.curvature),
        "ends": list(hessian.ends),
    }
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
    if run is not None:
        resultfile.require_run(path, result, run.path, run.run_id)
    with content_of(path, resultfile.FORMAT):
        return _from_result(result)


def _from_result(result: resultfile.Result) -> Spectrum:
    arrays, settings = result.arrays, result.config
    _require_shapes(arrays)
    at = {
        name: Eigenvalues(*(arrays[f"hessian/{name}/{key}"] for key in Eigenvalues._fields))
        for name in POINTS
    }
    hessian = HessianSpectrum(
        arrays["step"],
        **at,
        curvature=resultfile.typed(Curvature, settings["curvature"]),
        ends=resultfile.typed(Ends, dict(zip(Ends._fields, settings["ends"], strict=True))),
        tol=in_type(settings["spectrum"]["tol"], float, "tol"),
        audits=unpack_table(Audit, inside(arrays, "audits")),
    )
    densities = {name: _unpacked(Density, arrays, f"density/{name}") for name in DENSITIES}
    return Spectrum(
        run_id=result.run_id,
        config=override(SpectrumConfig(), settings["spectrum"]),
        hessian=hessian,
        ntk=_unpacked(NTKSpectrum, arrays, "ntk"),
        densities={name: found for name, found in densities.items() if found is not None},
        thresholds=arrays["threshold"],
        label=in_type(settings["label"], str, "label"),
        sides=arrays["side"],
        crossings=unpack_table(Crossing, inside(arrays, "crossings")),
        oscillations=unpack_table(Oscillation, inside(arrays, "oscillations")),
        watched=in_type(settings.get("watched", True), bool, "watched"),
        infinite_width=_unpacked(InfiniteWidth, arrays, "infinite_width"),
    )


def _require_shapes(arrays: resultfile.Arrays) -> None:
    """Raises ContentError unless what is not a record of its own is there and fits together."""
    hints = resultfile.hints
    fields = {"step": hints(HessianSpectrum)["steps"], "side": hints(Spectrum)["sides"]}
    fields["threshold"] = hints(Spectrum)["thresholds"]
    for at in POINTS:
        fields |= {f"hessian/{at}/{name}": hint for name, hint in hints(Eigenvalues).items()}
    resultfile.require_shapes({name: (arrays.get(name), hint) for name, hint in fields.items()})


def _unpacked(kind: type[Record], arrays: resultfile.Arrays, group: str) -> Record | None:
    found = inside(arrays, group)
    return unpack(kind, found) if found else None
