"""Replayed steps against the run's own updates and its recorded checkpoints."""

from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics import OptimizerConfig
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.trained import TrainedRun


@pytest.fixture(params=["gd", "heavy-ball", "adam"])
def run(request, small, trained) -> TrainedRun:
    optimizer = OptimizerConfig(request.param, learning_rate=0.05)
    return trained(replace(small, optimizer=optimizer))


def test_every_step_is_made_again_and_checkpoints_are_met_bit_by_bit(run, by_hand):
    replay = Replay(run)
    found = list(replay.stretches(0, 61))
    params = np.concatenate([stretch.params for stretch in found])
    np.testing.assert_allclose(params, by_hand(run, 61), rtol=0, atol=1e-12)
    assert replay.exact
    assert replay.note == "replayed steps meet the checkpoints bit for bit"
    for step, recorded in zip(run.checkpoint_steps, run.parameters(), strict=True):
        assert params[step].tobytes() == recorded.tobytes()
    updates = np.concatenate([stretch.previous_update for stretch in found])
    np.testing.assert_allclose(updates[1:], np.diff(params, axis=0), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("start", "stop"), [(7, 9), (10, 33), (58, 61), (60, 61)])
@pytest.mark.parametrize("length", [1000, 4])
def test_a_part_of_the_steps_has_the_same_bits(start, stop, length, run):
    replay = Replay(run)
    whole = np.concatenate([stretch.params for stretch in replay.stretches(0, 61)])
    replay.length = length
    part = list(replay.stretches(start, stop))
    assert part[0].first == start
    found = np.concatenate([stretch.params for stretch in part])
    assert found.tobytes() == whole[start:stop].tobytes()


def test_checkpoints_that_are_missed_are_told_and_started_from(small, trained, monkeypatch):
    run = TrainedRun(trained(small).path)
    points = run.points

    def elsewhere(checkpoints, chunk):
        # What another machine might have recorded: from step 14 on a little beside.
        for some in points(checkpoints, chunk):
            yield [
                replace(point, params=point.params * (1 + 1e-9 * (point.step >= 14)))
                for point in some
            ]

    monkeypatch.setattr(run, "points", elsewhere)
    replay = Replay(run)
    found = np.concatenate([stretch.params for stretch in replay.stretches(0, 61)])
    assert not replay.exact
    assert 1e-10 < replay.deviation < 1e-8
    assert "miss the checkpoints by up to" in replay.note
    assert len(found) == 61
    for step in (14, 35, 56):
        index = int(np.searchsorted(run.checkpoint_steps, step))
        ((recorded,),) = elsewhere([index], 1)
        assert found[step].tobytes() == recorded.params.tobytes()
