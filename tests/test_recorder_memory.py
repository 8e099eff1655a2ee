"""Loops that keep their arrays, give them away or write into them: the same file; wide rows."""

import os

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.opening import open_run

WIDTH = 40_000  # rows have chunks of their own from 32,768 numbers on
RATE, DECAY = 0.1, 0.9
SETUP = (
    Problem.from_loss(lambda params, step: jnp.sum(params["x"] ** 2) / 2),
    optax.sgd(RATE, momentum=DECAY),
)
START = np.linspace(1.0, 2.0, WIDTH)


def compiled_loop(path, donate, steps=12, every=3):
    problem, optimizer = SETUP
    params = {"x": jnp.array(START)}
    state = optimizer.init(params)

    def update(params, state):
        change, state = optimizer.update(jax.grad(problem.objective)(params, 0), state, params)
        return optax.apply_updates(params, change), state

    step_function = jax.jit(update, donate_argnums=donate)
    with Recorder(path, problem, optimizer=optimizer, every=every) as run:
        for step in range(steps):
            run.record(step, params, state)
            params, state = step_function(params, state)


def numpy_loop(path, steps=12, every=3):
    problem, optimizer = SETUP
    x, trace = START.copy(), np.zeros(WIDTH)
    with Recorder(path, problem, optimizer=optimizer, every=every) as run:
        for step in range(steps):
            run.record(step, {"x": x}, (optax.TraceState({"x": trace}), optax.EmptyState()))
            trace *= DECAY
            trace += x
            x -= RATE * trace


def closed_form(steps):
    """x_t and m_t of m' = 0.9 m + x, x' = x - 0.1 m', by the power of its matrix."""
    matrix = np.array([[1 - RATE, -RATE * DECAY], [1, DECAY]])
    factors = [np.linalg.matrix_power(matrix, step)[:, 0] for step in steps]
    return np.array(factors)[:, :, None] * START


@pytest.mark.parametrize("loop", [(), (0, 1), (0,), (1,), "numpy"])
def test_what_a_loop_does_with_its_memory_does_not_change_the_file(loop, tmp_path):
    path = tmp_path / "own.h5"
    if loop == "numpy":
        numpy_loop(path)
    else:
        compiled_loop(path, loop)
    run = open_run(path, (*SETUP, {"x": START}))
    assert run.checkpoint_steps.tolist() == [0, 3, 6, 9]
    params, traces = np.swapaxes(closed_form([0, 3, 6, 9]), 0, 1)
    np.testing.assert_allclose(run.parameters(), params, rtol=1e-14)
    with h5py.File(path) as file:
        np.testing.assert_allclose(file["optimizer/value"], traces, rtol=1e-14)
        updates = file["previous_update/value"][1:]
    before = closed_form([2, 5, 8])[:, 0]
    np.testing.assert_allclose(updates, params[1:] - before, rtol=1e-12)


def keep_then_delete(path):
    """A loop that keeps its arrays twice and deletes the third before it is written."""
    problem, optimizer = SETUP
    params, held = {"x": jnp.array(START)}, []
    state = optimizer.init(params)
    with Recorder(path, problem, optimizer=optimizer) as run:
        for step in range(2):
            run.record(step, params, state)
            params = {"x": params["x"] + 0.0}
        assert run._file
        rows = run._file._rows
        put, rows.put = rows.put, held.append  # the writer is late
        run.record(2, params, state)
        params["x"].delete()
        put(*held)
        rows.put = put


def test_arrays_that_are_suddenly_given_away_are_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="arrays of step 2 were deleted before they were written"):
        keep_then_delete(tmp_path / "own.h5")
    with h5py.File(tmp_path / "own.h5") as file:
        assert file["parameters/step"][:].tolist() == [0, 1]
        assert file["status"][()] != b"complete"


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system has no call for it")
def test_the_memory_of_rows_that_were_written_is_given_back(tmp_path, monkeypatch):
    told = []

    def advise(file, place, size, advice):
        assert advice == os.POSIX_FADV_DONTNEED
        told.append((place, os.pread(file, size, place)))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    compiled_loop(tmp_path / "own.h5", ())
    monkeypatch.undo()
    with h5py.File(tmp_path / "own.h5") as file:
        names = ("parameters/value", "previous_update/value", "optimizer/value")
        rows = [row.tobytes() for name in names for row in np.asarray(file[name])]
    # When it is written, a row is handed over to be written out, and after it to be forgotten.
    calls = {place: [data for at, data in told if at == place] for place, _ in told}
    assert sorted(data[0] for data in calls.values()) == sorted(rows)
    assert all(set(data) == {data[0]} for data in calls.values())
    assert sorted(map(len, calls.values())) == [1] * 3 + [2] * 3 + [3] * 6


def test_a_system_that_cannot_be_advised_writes_the_same(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    compiled_loop(tmp_path / "own.h5", ())
    found = open_run(tmp_path / "own.h5", (*SETUP, {"x": START})).parameters()
    np.testing.assert_allclose(found, closed_form([0, 3, 6, 9])[:, 0], rtol=1e-14)


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="this system has no call for it")
def test_a_system_that_writes_a_part_only_is_asked_again(tmp_path, monkeypatch):
    whole, calls = os.pwrite, []

    def part(file, data, place):
        calls.append(len(data))
        return whole(file, data[:100_001], place)

    monkeypatch.setattr(os, "pwrite", part)
    compiled_loop(tmp_path / "own.h5", ())
    assert len(calls) == 4 * 3 * 4  # 320,000 bytes a row: four calls, three rows, four checkpoints
    found = open_run(tmp_path / "own.h5", (*SETUP, {"x": START})).parameters()
    np.testing.assert_allclose(found, closed_form([0, 3, 6, 9])[:, 0], rtol=1e-14)
