"""The central flow of the headline run with tanh, against numbers known from elsewhere."""

from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics import PRESETS, open_run, train
from dlf_dynamics.analysis.flow.flow import compute_flow
from dlf_dynamics.analysis.flow.segments import CENTRAL_FLOW
from dlf_dynamics.config import FlowConfig

KNOWN = {
    9450: (0.0244, 0.0265),
    9600: (0.0349, 0.0350),
    9700: (0.0462, 0.0454),
    9800: (0.0675, 0.0643),
}
"""Trace of X and energy of the oscillation, of another program, to the digits it gave."""


@pytest.mark.slow
def test_the_flow_from_step_9300_keeps_to_the_run(tmp_path):
    published = PRESETS["published"]
    config = replace(published, model=replace(published.model, activation="tanh"), steps=9850)
    train(config, tmp_path / "run.h5")
    settings = FlowConfig(steps="9300:9801", every=50, theories=False)
    found = compute_flow(open_run(tmp_path / "run.h5"), settings)
    (segment,) = found.segments
    predicted = {name: segment.column(CENTRAL_FLOW, name) for name in ("loss", "energy")}
    measured = {name: found.measured(segment, name) for name in ("loss", "energy")}
    steps = found.measured(segment, "step")
    for step, (trace, energy) in KNOWN.items():
        (place,) = np.flatnonzero(steps == step)
        # What the length of a substep changes: half a per cent of X.
        assert predicted["energy"][place] == pytest.approx(trace, rel=5e-3)
        assert measured["energy"][place] == pytest.approx(energy, abs=5.1e-5)
    late = steps >= 9450
    error = {name: np.abs(predicted[name] / measured[name] - 1)[late] for name in predicted}
    assert np.max(error["loss"]) <= 0.01
    assert error["energy"][0] <= 0.12
    assert np.max(error["energy"][1:]) <= 0.10
    assert np.all(found.counts(segment))
    assert np.all(segment.converged)
    assert np.all(segment.complete)
