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
from dlf_dynamics.analysis.checkpoints import density_checkpoints, evenly, select_checkpoints
from dlf_dynamics.analysis.crossings import resolve_crossings
from dlf_dynamics.analysis.curvature import Curvature
from dlf_dynamics.analysis.density import Density, density
from dlf_dynamics.analysis.events import (
    Crossing,
    Oscillation,
    find_oscillations,
    join_crossings,
    why_unwatched,
)
from dlf_dynamics.analysis.hessian import Eigenvalues, HessianSpectrum, hessian_spectrum
from dlf_dynamics.analysis.infinite_width import InfiniteWidth, check_kernels, infinite_width
from dlf_dynamics.analysis.ntk import NTKSpectrum, ntk_spectrum
from dlf_dynamics.analysis.points import POINTS
from dlf_dynamics.analysis.ritz import Ends
from dlf_dynamics.analysis.solver import Solver
from dlf_dynamics.analysis.stability import instability_threshold, refusal, threshold_label
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.configfile import in_type, override
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import content_of
from dlf_dynamics.parts import Parts, in_parts
from dlf_dynamics.provenance import provenance
from dlf_dynamics.reprs import brief
from dlf_dynamics.resultfile import Record, inside, pack, unpack, unpack_table
from dlf_dynamics.run import Checkpoints, Run
from dlf_dynamics.source import Source

DENSITIES = ("hessian", "ggn", "ntk")

_TABLES: dict[str, type] = {"crossings": Crossing, "oscillations": Oscillation}
_NTK_PART, _DENSITY_PART = 500, 10


@dataclass(frozen=True)
class Spectrum:
    """What `dlf-dynamics spectrum` found.

    Attributes:
        source: state of the run that was analysed.
        asked: what was to be computed.
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
        unwatched: why oscillations are not told; empty where they are.
        infinite_width: kernels at infinite width, or none when they were not asked for.
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
    __repr__ = brief

    @property
    def bursts(self) -> list[Oscillation]:
        """The oscillations that are seen in the loss."""
        return [window for window in self.oscillations if window.burst]

    @property
    def not_converged(self) -> int:
        """Checkpoints at which any value, at iterate or centre, did not converge."""
        return int(np.sum(np.any(self.unsure, axis=(1, 2))))

    @property
    def comparable(self) -> bool:
        """Whether there is a threshold, and it applies to the largest eigenvalues found."""
        hessian = self.hessian
        applies = hessian.curvature.has_threshold and hessian.ends.top > 0
        return applies and bool(np.any(np.isfinite(self.thresholds)))

    @property
    def unsure(self) -> Bool[np.ndarray, "checkpoints points k"]:
        """Values that did not converge; not those that there are not."""
        known = np.isfinite(self._at_points("eigenvalues"))
        return known & ~self._at_points("converged")

    @property
    def failure_probability(self) -> float:
        """That any upper bound on the largest eigenvalue at these checkpoints fails, at most."""
        told = np.isfinite(self._at_points("upper_bound"))
        return min(float(np.sum(told)) * self.hessian.failure_probability, 1.0)

    @property
    def failed(self) -> list[int]:
        """Steps of the checkpoints at which the loss or its curvature is not finite."""
        return self.hessian.steps[np.isnan(self.hessian.iterate.eigenvalues[:, 0])].tolist()

    @property
    def unresolved(self) -> int:
        """Checkpoints of which it is not known on which side of the threshold they are."""
        if not self.comparable:
            return 0
        return int(np.sum(np.any(self._known & (self.sides == 0), axis=1)))

    @property
    def _known(self) -> Bool[np.ndarray, "checkpoints points"]:
        """Where there is a value: not at the centre of step 0, nor where the loss failed."""
        return np.isfinite(self._at_points("eigenvalues")[..., 0])

    def _at_points(self, name: str) -> Shaped[np.ndarray, "checkpoints points k"]:
        """What is known of each eigenvalue."""
        found = [getattr(getattr(self.hessian, at), name) for at in POINTS]
        return np.stack(found, axis=1)


def default_path(run_path: Path) -> Path:
    """`run.h5` has its spectrum in `run.spectrum.h5`."""
    return run_path.with_suffix(".spectrum.h5")


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
        parts: where finished parts are kept, so that an interrupted analysis goes on.
        progress: told `hessian`, `ntk`, `density` or `infinite-width` and how many checkpoints
            are done.
        watch: see `hessian_spectrum`.

    Raises:
        ConfigError: when no checkpoint is selected, the run has no such class or block, the kernels
            that are asked for cannot be had, or `above` is given where there is no threshold.
    """
    asked = config = SpectrumConfig() if config is None else config
    if not run.problem.has_outputs:
        config = replace(config, ntk_examples=0)
    parts = Parts(None) if parts is None else parts
    chosen = select_checkpoints(run, config)
    check_kernels(run, config)
    thresholds = _thresholds(run, chosen)
    if config.above is not None and np.all(np.isnan(thresholds)):
        raise ConfigError(
            f"above is {config.above:g}, a fraction of the threshold, and there is none: "
            f"{str(refusal(run)).removeprefix('no threshold: ')}"
        )
    hessian = hessian_spectrum(
        run,
        chosen,
        config=config,
        thresholds=thresholds,
        parts=parts,
        progress=lambda done: progress("hessian", done),
        watch=watch,
    )
    ntk = _ntk(run, config, chosen, parts, progress) if config.ntk_examples else None
    densities = _densities(run, config, chosen, parts, progress) if config.density else {}
    found = replace(_with_events(run, config, hessian, ntk, densities, thresholds), asked=asked)
    if not config.infinite_width:
        return found
    compare = partial(infinite_width, run, chosen, num_examples=config.ntk_examples)
    parse = partial(unpack, InfiniteWidth, lengths={"checkpoints": len(chosen)})
    limits = parts.get_or_make("infinite-width", lambda: pack(compare()), parse)
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
        aligned=evenly(chosen, config.alignment_checkpoints),
    )
    told = lambda done: progress("ntk", done)  # noqa: E731
    return in_parts(NTKSpectrum, part, chosen, _NTK_PART, "ntk", parts, told)


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
            batch_size=config.batch_size,
            max_memory=config.max_memory,
            seed=config.seed,
        )
        start = number * len(some)
        told = lambda done, start=start: progress("density", start + done)  # noqa: E731
        found[name] = in_parts(Density, part, some, _DENSITY_PART, f"density-{name}", parts, told)
    return found


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
    loss, cosine = run.scalars["loss"], run.scalars["update_cosine"]
    unwatched = why_unwatched(run.dynamics.batch_size, cosine)
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
        label=refusal(run) or threshold_label(run, applies=hessian.curvature.has_threshold),
        sides=sides,
        crossings=crossings,
        oscillations=join_crossings(windows, crossings),
        unwatched=unwatched,
    )


def save_spectrum(spectrum: Spectrum, path: Path) -> None:
    """Writes the spectrum's result file.

    Raises:
        FileError: when it cannot be written.
    """
    hessian = spectrum.hessian
    arrays: resultfile.Arrays = {
        "step": hessian.steps,
        "incomplete": hessian.incomplete,
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
    for name, kind in _TABLES.items():
        table = resultfile.pack_table(kind, getattr(spectrum, name))
        arrays |= {f"{name}/{key}": column for key, column in table.items()}
    settings = {
        "asked": dataclasses.asdict(spectrum.asked),
        "spectrum": dataclasses.asdict(spectrum.config),
        "label": spectrum.label,
        "unwatched": spectrum.unwatched,
        "curvature": dataclasses.asdict(hessian.curvature),
        "ends": list(hessian.ends),
        "precision": hessian.precision,
    }
    resultfile.write(
        path,
        resultfile.Result("spectrum", spectrum.source, settings, provenance(), arrays),
    )


def load_spectrum(path: str | Path, run: Run | None = None) -> Spectrum:
    """Reads a spectrum's result file.

    Args:
        path: of the file.
        run: the run that it must be of, in its present state; none takes any.

    Raises:
        FileError: when it cannot be read or is damaged.
        StaleError: when it is of another run, or of a state that the run is no longer in.
    """
    path = Path(path)
    result = resultfile.read(path, "spectrum", run)
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
        failure_probability=in_type(
            settings["spectrum"]["failure_probability"], float, "failure_probability"
        ),
        precision=in_type(settings["precision"], str, "precision"),
        incomplete=arrays.get("incomplete", np.zeros(len(arrays["step"]), bool)),
    )
    densities = {name: _unpacked(Density, arrays, f"density/{name}") for name in DENSITIES}
    return Spectrum(
        source=result.source,
        asked=override(SpectrumConfig(), settings["asked"]),
        config=override(SpectrumConfig(), settings["spectrum"]),
        hessian=hessian,
        ntk=_unpacked(NTKSpectrum, arrays, "ntk"),
        densities={name: found for name, found in densities.items() if found is not None},
        thresholds=arrays["threshold"],
        label=in_type(settings["label"], str, "label"),
        sides=arrays["side"],
        crossings=unpack_table(Crossing, inside(arrays, "crossings")),
        oscillations=unpack_table(Oscillation, inside(arrays, "oscillations")),
        unwatched=in_type(settings["unwatched"], str, "unwatched"),
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
