"""A run that is killed at any moment, or read while it is written, is a run cut short."""

import multiprocessing
import os
import runpy
import time
from contextlib import suppress
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from dlf_dynamics import pace, runfile, training
from dlf_dynamics.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from dlf_dynamics.errors import FileError
from dlf_dynamics.opening import open_run
from dlf_dynamics.training import resume, train

CONFIG = RunConfig(
    data=DataConfig(points_per_class=200),
    model=ModelConfig(widths=(16,)),
    optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
    steps=6000,
    checkpoint_every=7,
)

# Its children find JAX imported but not yet started, which saves seconds for each.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["dlf_dynamics.training"])


def child(function, *args):
    """A process that calls a function of this file.

    It is found by the file, as a package `tests` may be installed, which hides this folder.
    """
    call = {"CALL": (function.__name__, args)}
    return SERVER.Process(target=runpy.run_path, args=(__file__, call, "child"))


def write_runs(folder):
    """Trains the run into one file after another, and says what should be on file."""
    jax.config.update("jax_enable_x64", True)
    # The programs that an earlier child compiled.
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # Short calls and a record after each, so that there is much to interrupt.
    pace._STRETCH_SECONDS = training._RECORD_SECONDS = 0.005
    with (folder / "log").open("w", buffering=1) as log:
        for k in range(100):
            print("file", folder / f"{k}.h5", file=log)
            train(CONFIG, folder / f"{k}.h5", progress=lambda step: print(step, file=log))


def start(folder):
    folder.mkdir()
    process = child(write_runs, folder)
    process.start()
    return process


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "the writer ended by itself"
        assert time.monotonic() < end, "the writer did not come this far"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("reference") / "run.h5")


def assert_prefix(run, reference):
    """Rows and checkpoints of the run are the first ones of the reference, bit for bit."""
    for name, values in run.scalars.items():
        assert values.tobytes() == reference.scalars[name][: len(values)].tobytes()
    count = len(run.checkpoint_steps)
    assert run.steps.tolist() == list(range(len(run.steps)))
    assert run.checkpoint_steps.tolist() == reference.checkpoint_steps[:count].tolist()
    assert run.parameters().tobytes() == reference.parameters()[:count].tobytes()
    # A checkpoint is never without the row of its loss.
    assert count == 0 or run.checkpoint_steps[-1] < len(run.steps)


def promised(log):
    """The file that was written last, and the number of updates that should be on it."""
    lines = log.read_text().splitlines()
    last = max(k for k, line in enumerate(lines) if line.startswith("file "))
    steps = [int(line) for line in lines[last + 1 :] if line.isdigit()]
    return Path(lines[last].removeprefix("file ")), (steps[-1] if steps else 0)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize("kills", [5, pytest.param(24, marks=pytest.mark.slow)])
def test_a_killed_run_is_a_prefix_of_the_whole_one_and_resumes(kills, tmp_path, reference):
    rng = np.random.default_rng(kills)
    on_file = []
    for k in range(kills):
        folder = tmp_path / str(k)
        process = start(folder)
        try:
            wait_for(lambda folder=folder: (folder / "0.h5").exists(), process)
            if k % 4 == 0:
                # While the program is compiled, or soon after.
                time.sleep(rng.uniform(0, 1))
            else:
                target = rng.integers(1, CONFIG.steps)
                wait_for(lambda log=folder / "log", n=target: promised(log)[1] >= n, process)
                time.sleep(rng.uniform(0, 0.02))
        finally:
            process.kill()
            process.join()
        path, steps = promised(folder / "log")
        if not path.exists():
            # Killed between two runs.
            path, steps = folder / f"{int(path.stem) - 1}.h5", CONFIG.steps
        run = open_run(path)
        assert_prefix(run, reference)
        assert len(run.steps) >= steps
        assert run.status in ("running", "complete")
        on_file.append(len(run.steps))
        if k % 4 == 1:
            resume(path)
            again = open_run(path)
            assert again.status == "complete"
            assert_prefix(again, reference)
            assert len(again.steps) == CONFIG.steps + 1
            assert len(again.checkpoint_steps) == len(reference.checkpoint_steps)
    # The kills came at different moments.
    assert len(set(on_file)) > kills // 2


def test_a_run_is_read_while_it_is_written(tmp_path, reference):
    process = start(tmp_path / "run")
    path = tmp_path / "run" / "0.h5"
    lengths = []
    try:
        wait_for(path.exists, process)
        while not lengths or lengths[-1] <= CONFIG.steps:
            assert process.is_alive()
            run = open_run(path)
            assert_prefix(run, reference)
            lengths.append(len(run.steps))
            assert run.status == "running" or lengths[-1] > CONFIG.steps
    finally:
        process.kill()
        process.join()
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 5


def read_cut_off(path, sizes):
    """Exits with the number of lengths at which the file was read as if it were whole."""
    whole, read = path.read_bytes(), 0
    for size in sizes:
        path.write_bytes(whole[:size])
        with suppress(FileError):
            open_run(path).parameters()
            read += 1
    raise SystemExit(read)


def test_a_killed_run_that_is_then_cut_off_is_refused_at_any_length(tmp_path):
    process = start(tmp_path / "run")
    path, log = tmp_path / "run" / "0.h5", tmp_path / "run" / "log"
    try:
        wait_for(path.exists, process)
        wait_for(lambda: promised(log)[1] >= CONFIG.steps // 2, process)
    finally:
        process.kill()
        process.join()
    with h5py.File(path, "r", swmr=True) as file:
        rows, places = len(file["parameters/step"]), []
        for name in ("parameters/value", "previous_update/value"):
            file[name].id.chunk_iter(places.append)
    ends = [p.byte_offset + p.size for p in places if p.chunk_offset[0] < rows]
    rng = np.random.default_rng(1)
    # Just short of the last row, and anywhere down to the first bytes.
    sizes = [max(ends) - 1, *rng.integers(100, max(ends), 20), *rng.integers(100, 20_000, 20)]
    # In a process of its own: HDF5 would wait for ever for what is missing.
    reader = child(read_cut_off, path, sizes)
    reader.start()
    reader.join(60)
    assert reader.exitcode == 0
    reader.kill()


def test_an_unfinished_file_is_not_there_under_its_name(tmp_path, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runfile, "RunWriter", kill)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path / "run.h5")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match="does not exist"):
        open_run(tmp_path / "run.h5")


if __name__ == "child":
    name, args = globals()["CALL"]
    globals()[name](*args)
