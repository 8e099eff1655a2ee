"""The headline run beside the authors' program, a port of it, and the published pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.analysis.reproduction.page import Comparison, compared
from dlf_dynamics.analysis.reproduction.published import Published, authors_program, digitised
from dlf_dynamics.analysis.reproduction.spiral_study import EXAMPLES
from dlf_dynamics.analysis.spectra.oneshot import sharpness
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.presets import PRESETS, PULSE_STEPS_PUBLISHED
from dlf_dynamics.run import Run

EXACT = 5500
"""Updates for which a run can be compared number by number, before bursts amplify rounding."""

_PULSES = 13
"""Pulses of the whole run; its last steps are static."""

_SETTLED = 100
"""Updates after which F changes slowly, until a burst."""

_CURVATURES = 10
"""Every so many of the points with eigenvalues of the authors' program are compared."""

_KERNEL_READING = 26.0
"""Error of NTK eigenvalues read from the figure, where the program's own are known."""


def _recorded(run: Run, name: str) -> Float[np.ndarray, " updates"]:
    """A scalar as the authors' program records it: index i is the state after update i + 1."""
    return run.scalars[name][1:].astype(np.float64)


def _drawn_changes(loss: Float[np.ndarray, " updates"]) -> tuple[float, float]:
    """Least and largest F(i) - F(i + 1), as the authors' program draws it, up to update `EXACT`."""
    changes = -np.diff(loss[:EXACT])[_SETTLED:]
    return float(changes.min()), float(changes.max())


def _start(loss: Float[np.ndarray, " updates"]) -> float:
    """First index from which the second difference of F exceeds 0.01."""
    return float(_SETTLED + np.argmax(np.abs(np.diff(loss[_SETTLED:EXACT], 2)) > 0.01))


def program_beside(run: Run, spectrum: Spectrum) -> Iterator[Comparison]:
    """Every number of the authors' program that does not depend on rounding."""
    theirs, loss = authors_program(), _recorded(run, "loss")
    count = min(EXACT, len(loss))
    known = theirs["loss"]
    yield _everywhere(f"F after each of the first {count:,} updates", known[:count], loss[:count])
    what = f"correctly classified examples after each of the first {count:,} updates"
    right = [
        _examples(all_of[:count]) for all_of in (theirs["accuracy"], _recorded(run, "accuracy"))
    ]
    yield _everywhere(what, *right)
    assert spectrum.ntk is not None
    steps = spectrum.ntk.steps
    chosen = (steps > 0) & (steps <= count)
    yield _everywhere(
        f"NTK λ_max after every 25th of the first {count:,} updates",
        theirs["ntk_max"][steps[chosen] - 1],
        spectrum.ntk.eigenvalues[chosen, 0],
    )
    steps = theirs["hessian_step"]
    chosen = np.flatnonzero(steps < count)[::_CURVATURES]
    yield _everywhere(
        f"Hessian λ_max at every {_CURVATURES}th point of the program up to there",
        theirs["hessian_eigenvalues"][chosen, 0],
        _sharpness(run, steps[chosen]),
    )
    reached = count == EXACT
    yield compared(
        "first burst: second difference of F above 0.01 from index",
        Published(_start(known), "program", form=",.0f"),
        _start(loss) if reached else None,
    )
    yield compared(
        "first burst: F(i) − F(i + 1), least and largest",
        Published(_drawn_changes(known), "program", form=".6g"),
        _drawn_changes(loss) if reached else None,
    )


def _everywhere(
    what: str, published: Float[np.ndarray, " points"], measured: Float[np.ndarray, " points"]
) -> Comparison:
    """A row of many numbers: the first and the last, and the largest difference of all."""
    ends = Published((float(published[0]), float(published[-1])), "program", form=".6g")
    apart = np.max(np.abs(measured / published - 1))
    return Comparison(
        what,
        ends,
        ends.written((measured[0], measured[-1])),
        (f"at most {apart:.1e}, relative," if apart else "none") + f" at {len(published):,} points",
    )


def _examples(accuracy: Float[np.ndarray, " updates"]) -> Float[np.ndarray, " updates"]:
    """How many examples are classified correctly; the program has its accuracy in float32."""
    return np.round(EXAMPLES * accuracy.astype(np.float64))


def _sharpness(run: Run, indices: Int[np.ndarray, " indices"]) -> Float[np.ndarray, " indices"]:
    """The largest eigenvalue at the authors' indices, which lie one update after checkpoints."""
    checkpoints = np.searchsorted(run.checkpoint_steps, indices)
    values = []
    for points in run.points(checkpoints.tolist(), len(checkpoints)):
        for point in points:
            after = run.dynamics.step(run.state(point))[0].params
            values.append(sharpness(run.problem, after, step=point.step + 1).value)
    return np.array(values)


_PORT = {"start": 4374.0, "change": 0.0347}
"""The first burst with the updated initial values, by a port of the authors' program."""


def port_beside(run: Run) -> Iterator[Comparison]:
    """The first burst with the updated initial values, which does not depend on rounding."""
    loss = _recorded(run, "loss")
    reached = len(loss) >= EXACT
    yield compared(
        "first burst: second difference of F above 0.01 from index",
        Published(_PORT["start"], "port", form=",.0f"),
        _start(loss) if reached else None,
    )
    yield compared(
        "first burst: largest |F(i) − F(i + 1)|",
        Published(_PORT["change"], "port"),
        max(map(abs, _drawn_changes(loss))) if reached else None,
    )


def bursts_beside(run: Run, spectrum: Spectrum, figure: dict[str, Any]) -> Iterator[Comparison]:
    """Start and end of each burst in a published figure, with those of the nearest burst here."""
    here = {burst.burst_start: burst.burst_end for burst in spectrum.bursts}
    for number, (start, end) in enumerate(figure["bursts"], 1):
        what = f"burst {number}: first and last step"
        read = digitised((start, end), steps=True)
        near = [each for each in here if abs(each - start) < PULSE_STEPS_PUBLISHED / 2]
        nearest = min(near, key=lambda each: abs(each - start), default=None)
        if end >= run.config.steps:
            yield compared(what, read, None)
        elif nearest is None:
            yield Comparison(what, read, "none within half a pulse")
        else:
            yield compared(what, read, (nearest, here[nearest]))


_IN_WORDS = ("first", "second")


def picture_beside(run: Run, spectrum: Spectrum, figure: dict[str, Any]) -> Iterator[Comparison]:
    """The other numbers that were read from a published figure."""
    whole = run.config.steps == PRESETS["published"].steps
    yield compared(
        "number of bursts",
        Published(float(len(figure["bursts"])), "digitised"),
        float(len(spectrum.bursts)) if whole else None,
    )
    for index, word in enumerate(_IN_WORDS):
        if (read := figure.get(f"{word}_burst_dF")) is not None:
            yield compared(
                f"{word} burst: F(i) − F(i + 1), least and largest",
                digitised(read),
                _changes(run, spectrum, index),
            )
    for what, name, measured in _in_the_middle(run, spectrum):
        if name in figure:
            what = f"{what} in the middle of each of the {_PULSES} pulses"
            yield compared(what, digitised(figure[name]), measured if whole else None)
    accuracy = float(run.scalars["accuracy"][-1])
    what = "training accuracy after the last update"
    yield compared(what, digitised(figure["final_accuracy"]), accuracy if whole else None)
    if "ntk_max" in figure:
        yield from _late_spectra(spectrum, figure, whole)


def _changes(run: Run, spectrum: Spectrum, index: int) -> tuple[float, float] | None:
    """Least and largest F(i) - F(i + 1) of a burst that is over before the run ends."""
    if index >= len(spectrum.bursts) or spectrum.bursts[index].end >= run.config.steps - 1:
        return None
    burst = spectrum.bursts[index]
    changes = -np.diff(run.scalars["loss"][burst.onset : burst.end + 1])
    return float(changes.min()), float(changes.max())


def _in_the_middle(
    run: Run, spectrum: Spectrum
) -> Iterator[tuple[str, str, Float[np.ndarray, " pulses"]]]:
    """Quantities in the middle of the run's pulses: words, name in the figure's file, values."""
    middle = ((np.arange(_PULSES) + 0.5) * PULSE_STEPS_PUBLISHED).astype(int)
    middle = middle[middle < run.config.steps]
    yield "F", "mid_pulse_loss", _recorded(run, "loss")[middle]
    yield "training accuracy", "mid_pulse_accuracy", _recorded(run, "accuracy")[middle]
    nearest = np.searchsorted(spectrum.hessian.steps, middle)
    nearest = nearest[nearest < len(spectrum.hessian.steps)]
    curvature = spectrum.hessian.iterate.eigenvalues[nearest, 0]
    yield "Hessian λ_max", "mid_pulse_hessian_max", curvature


def _late_spectra(spectrum: Spectrum, figure: dict[str, Any], whole: bool) -> Iterator[Comparison]:
    """The last curvature, and the kernel along the run."""
    least, largest = figure["hessian_max_at_the_end"]
    last = float(spectrum.hessian.iterate.eigenvalues[-1, 0])
    yield compared(
        "Hessian λ_max at the end",
        Published((least + largest) / 2, "digitised", (largest - least) / 2),
        last if whole else None,
    )
    assert spectrum.ntk is not None
    steps = [int(step) for step in figure["ntk_max"]]
    indices = np.searchsorted(spectrum.ntk.steps, steps)
    yield compared(
        f"NTK λ_max at steps {', '.join(map(str, steps))}",
        Published(tuple(figure["ntk_max"].values()), "digitised", _KERNEL_READING, form=".0f"),
        spectrum.ntk.eigenvalues[indices, 0] if whole else None,
    )
