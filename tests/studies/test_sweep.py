"""Studies: in one process, in several, on a Dask cluster, interrupted, with failures."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from dlf_dynamics.analysis.studies import jobs
from dlf_dynamics.analysis.studies.outcome import Outcome
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.studyfile import read_study
from dlf_dynamics.analysis.studies.sweep import sweep
from dlf_dynamics.cli import main
from dlf_dynamics.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from dlf_dynamics.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("quick_compilation")

BASE = RunConfig(
    data=DataConfig(points_per_class=10),
    model=ModelConfig(widths=(4,), activation="tanh", init="glorot-normal"),
    optimizer=OptimizerConfig(learning_rate=0.2),
    steps=60,
    checkpoint_every=10,
)
STUDY = Study(
    BASE,
    (("schedule.amplitude", (1.0, 20.0)), ("model.seed", (0, 1, 2))),
    measures=Measures(curve_points=3),
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return sweep(STUDY, tmp_path_factory.mktemp("study") / "one.h5", processes=1)


def assert_equal(results, reference):
    """The same outcomes to the bit, but for the time they took."""
    assert results.complete
    assert results.statuses == reference.statuses
    for name, column in reference.columns.items():
        if name != "seconds":
            np.testing.assert_array_equal(results.columns[name], column, err_msg=name)
    np.testing.assert_array_equal(results.curves, reference.curves)


def test_processes_give_what_one_gives(reference, tmp_path):
    told = []
    results = sweep(STUDY, tmp_path / "two.h5", processes=2, progress=told.append)
    assert_equal(results, reference)
    assert told == list(range(7))


def test_runs_trained_together_give_the_same_to_rounding(reference, tmp_path):
    results = sweep(STUDY, tmp_path / "batch.h5", processes=1, batch=4)
    for name in ("loss", "validation_loss", "accuracy", "instabilities"):
        np.testing.assert_allclose(results.columns[name], reference.columns[name], rtol=1e-9)


def test_a_study_that_was_stopped_goes_on_with_what_is_left(reference, tmp_path):
    path, told = tmp_path / "stopped.h5", []
    partial = sweep(
        STUDY, path, processes=1, progress=told.append, stop=lambda: bool(told) and told[-1] >= 2
    )
    assert not partial.complete
    assert partial.done.sum() == 2
    again = []
    assert_equal(sweep(STUDY, path, processes=1, resume=True, progress=again.append), reference)
    assert again == [2, 3, 4, 5, 6]


def test_a_run_that_fails_is_noted_and_the_others_go_on(tmp_path):
    study = Study(BASE, (("batch_size", (5, 31)), ("model.seed", (0, 1))))
    results = sweep(study, tmp_path / "failed.h5", processes=1, batch=2)
    assert results.statuses == ["complete", "complete", "failed", "failed"]
    assert "batch_size is 31; expected at most the number of examples, 30" in results.messages[2]
    assert np.isnan(results.columns["loss"][2:]).all()
    again = sweep(study, tmp_path / "failed.h5", processes=1, resume=True, retry_failed=True)
    assert again.statuses == results.statuses


def test_an_error_that_is_no_users_is_told_in_one_line():
    found = jobs.failed(MemoryError("out of memory\ntrying to allocate"))
    assert (found.status, found.message) == ("failed", "MemoryError: out of memory")


@pytest.mark.slow
def test_a_process_that_is_killed_loses_no_run(reference, tmp_path):
    killed = []

    def kill_one(done):
        if done == 1 and not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    results = sweep(STUDY, tmp_path / "killed.h5", processes=2, progress=kill_one)
    assert killed
    assert_equal(results, reference)


class DeadlyPool:
    """A pool whose processes are killed by the job of run 1, as one that needs too much memory."""

    def __init__(self, *_):
        self.broken = False

    def submit(self, work, job, measures):
        future: Future = Future()
        self.broken |= job.indices == (1,)
        if self.broken:
            future.set_exception(BrokenProcessPool("killed"))
        else:
            future.set_result([Outcome("complete", steps=job.indices[0])])
        return future

    def shutdown(self, **_):
        pass


def test_a_run_whose_process_is_killed_twice_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", DeadlyPool)
    results = sweep(STUDY, tmp_path / "deadly.h5", processes=2)
    assert results.statuses == ["complete", "failed", *["complete"] * 4]
    assert "killed, twice" in results.messages[1]
    assert results.columns["steps"][2:].tolist() == [2, 3, 4, 5]


TOML = """
steps = 60
checkpoint_every = 10
data.points_per_class = 10
model = {widths = [4], activation = "tanh", init = "glorot-normal"}
optimizer.learning_rate = 0.2
[grid]
schedule.amplitude = [1, 20]
model.seed = {from = 0, to = 2}
[measures]
curve_points = 3
"""


def test_a_killed_program_goes_on_with_what_is_left(reference, tmp_path):
    (tmp_path / "study.toml").write_text(TOML)
    command = [sys.executable, "-m", "dlf_dynamics.cli", "sweep", "study.toml", "--processes", "1"]
    program = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    path = tmp_path / "study.h5"
    end = time.monotonic() + 120
    while not (path.exists() and read_study(path).done.any()):
        assert program.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    program.send_signal(signal.SIGKILL)
    program.wait()
    begun = read_study(path)
    assert 0 < begun.done.sum() <= 6
    os.chdir(tmp_path)
    assert main(["sweep", "study.toml", "--resume", "--quiet", "--processes", "1"]) == 0
    found = read_study(path)
    assert_equal(found, reference)
    kept = begun.done
    assert found.columns["seconds"][kept].tolist() == begun.columns["seconds"][kept].tolist()


SLOW = """
    import os, sys, time
    from dlf_dynamics.analysis.studies import histories
    from dlf_dynamics.cli import main

    def compiling(configs, measures, stop):
        os.write(1, b"ready\\n")  # at once, as two processes write into one pipe
        time.sleep(60)

    # Processes of a pool run this file, too, under another name.
    histories.measure = compiling
    if __name__ == "__main__":
        sys.argv[1:] = ["sweep", "study.toml", "--quiet", "--processes", sys.argv[1]]
        sys.exit(main())
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_one_ctrl_c_stops_a_sweep_whatever_its_runs_are_busy_with(processes, tmp_path):
    (tmp_path / "study.toml").write_text(TOML)
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    program = subprocess.Popen(
        [sys.executable, "slow.py", str(processes)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    for _ in range(processes):
        assert program.stdout.readline() == "ready\n"
    os.killpg(program.pid, signal.SIGINT)  # as the terminal does
    begun = time.monotonic()
    # The pipes end when the processes of the pool have, too.
    _, told = program.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert program.returncode == 130
    first, last = told.splitlines()
    assert first == (
        "dlf-dynamics: stopping; runs that do not end within a second are left for --resume; "
        "press Ctrl-C again to stop immediately"
    )
    assert "continue with `dlf-dynamics sweep study.toml --resume`" in last


IDLE = """
    import multiprocessing, os, signal, sys, time
    from pathlib import Path
    from dlf_dynamics.analysis.studies import histories
    from dlf_dynamics.analysis.studies.outcome import Outcome
    from dlf_dynamics.analysis.studies.study import load_study
    from dlf_dynamics.analysis.studies.sweep import sweep

    def measure(configs, measures, stop):
        seed = configs[0].model.seed
        if seed:
            open("busy", "w").write(str(os.getpid()))
            time.sleep(3)
        return [Outcome("complete", steps=seed)]

    def kill_the_idle_one(done):
        if done:
            while not os.path.exists("busy"):
                time.sleep(0.1)
            time.sleep(1)
            busy = int(open("busy").read())
            for process in multiprocessing.active_children():
                if process.pid != busy:
                    os.kill(process.pid, signal.SIGKILL)

    histories.measure = measure
    if __name__ == "__main__":
        study = load_study(Path("two.toml"))
        found = sweep(study, "two.h5", processes=2, progress=kill_the_idle_one)
        print(found.statuses)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_waits_for_work_does_not_hang_the_others(tmp_path):
    (tmp_path / "two.toml").write_text("grid.model.seed = [0, 1]")
    (tmp_path / "idle.py").write_text(textwrap.dedent(IDLE))
    # It holds the lock of the queue of jobs, on which the other one then waits for ever.
    command = [sys.executable, "idle.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.stdout == "['complete', 'complete']\n", found.stderr


# Dask leaves sockets and event loops to the garbage collector.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_gives_the_same_also_when_a_worker_is_killed(reference, tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=60
    )
    killed = []

    def kill_one(done):
        if done == 1 and not killed:
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    with contextlib.closing(cluster):
        results = sweep(
            STUDY, tmp_path / "dask.h5", scheduler=cluster.scheduler_address, progress=kill_one
        )
    assert killed
    assert_equal(results, reference)


def test_a_scheduler_that_does_not_answer_is_refused_in_one_line(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(ConfigError, match="scheduler at 'nowhere' cannot be reached"):
        sweep(STUDY, tmp_path / "dask.h5", scheduler="nowhere")


def test_without_dask_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"--scheduler needs dask\.distributed"):
        sweep(STUDY, tmp_path / "dask.h5", scheduler="tcp://host:8786")


@pytest.mark.parametrize("option", ["processes", "batch"])
def test_numbers_below_zero_are_refused(option, tmp_path):
    with pytest.raises(ConfigError, match=f"{option} is -1; expected at least 0"):
        sweep(STUDY, tmp_path / "study.h5", **{option: -1})


def test_data_that_cannot_be_read_are_told_before_anything_starts(tmp_path):
    broken = tmp_path / "data.npz"
    broken.write_bytes(b"no data")
    study = Study(BASE, (("data.name", ("npz",)), ("data.path", (str(broken),))))
    with pytest.raises(DataError, match=r"data\.npz is not a readable \.npz"):
        sweep(study, tmp_path / "study.h5")
    assert not (tmp_path / "study.h5").exists()
