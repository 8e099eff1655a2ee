"""Runs that are followed while they are written, against the same analyses of the whole run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import Problem
from dlf_dynamics.analysis.following import awaited, goes_on, latest, states
from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.analysis.spectra.spectrum import compute_spectrum, load_spectrum
from dlf_dynamics.cli import main
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.opening import open_run
from dlf_dynamics.outputs import hold, is_held
from dlf_dynamics.parts import Remembered
from dlf_dynamics.recorder import Recorder

pytestmark = pytest.mark.usefixtures("quick_compilation")

INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)))
PROBLEM = Problem(lambda w, x: jnp.tanh(x @ w), lambda f, y: (f - y) ** 2, INPUTS, jnp.ones(8))
OPTIMIZER = optax.sgd(0.3)
SETUP = PROBLEM, OPTIMIZER, jnp.zeros(3)
CONFIG = SpectrumConfig(every=1, ntk_examples=3, alignment_checkpoints=20)


class Writer:
    """A loop that goes on when it is told to, in a thread of its own."""

    def __init__(self, path):
        self.path, self._more, self._done = path, threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.advance(1)

    def _run(self):
        params, slope = jnp.array([0.5, -0.2, 0.1]), jax.jit(jax.grad(PROBLEM.objective))
        with Recorder(self.path, PROBLEM, optimizer=OPTIMIZER, overwrite=True) as recorder:
            for step in range(60):
                self._more.acquire()
                recorder.record(step, params, OPTIMIZER.init(params), loss=float(step))
                params = params - 0.3 * slope(params, 0)
                while recorder._file is not None and not recorder._file._rows.empty():
                    time.sleep(0.01)
                self._done.release()

    def advance(self, count):
        for _ in range(count):
            self._more.release()
            self._done.acquire()
        time.sleep(0.05)  # the last row is on its way to the file

    def finish(self, left):
        for _ in range(left):
            self._more.release()
        self._thread.join()


def opened(path):
    return lambda: open_run(path, SETUP)


def test_a_run_is_seen_as_it_grows_and_once_more_when_it_has_ended(tmp_path):
    writer, seen = Writer(tmp_path / "run.h5"), []
    for run in states(writer.path, opened(writer.path), least=0.0):
        seen.append((run.status, len(run.checkpoint_steps)))
        if len(seen) == 1:
            writer.advance(20)
        elif len(seen) == 2:
            writer.finish(39)
    assert seen[0] == ("running", 1)
    assert seen[1][0] == "running"
    assert 2 <= seen[1][1] <= 21
    assert seen[-1] == ("complete", 60)


def test_what_is_found_at_last_is_what_is_found_of_the_whole_run(tmp_path):
    path, out = tmp_path / "run.h5", tmp_path / "out.h5"
    writer, looks = Writer(path), []

    def stop():
        """Asked after each look and while nothing happens; lets the loop go on."""
        if len(looks) < 4 and out.exists():
            found = load_spectrum(out).source.checkpoints
            if found not in looks:
                looks.append(found)
                writer.advance(15) if len(looks) < 4 else writer.finish(60 - found)
        return False

    found, run = latest(path, opened(path), analysis_named("spectrum"), CONFIG, out, stop=stop)
    assert looks == [1, 16, 31, 46]
    assert (run.status, found.source) == ("complete", run.source)
    whole = compute_spectrum(open_run(path, SETUP), CONFIG)
    stored = load_spectrum(out, open_run(path, SETUP))
    for name in ("eigenvalues", "intervals", "num_matvecs"):
        expected = getattr(whole.hessian.centre, name)
        np.testing.assert_array_equal(getattr(stored.hessian.centre, name), expected)
    assert stored.ntk is not None
    assert whole.ntk is not None
    np.testing.assert_array_equal(stored.ntk.eigenvalues, whole.ntk.eigenvalues)
    np.testing.assert_array_equal(stored.ntk.alignment, whole.ntk.alignment)
    assert stored.crossings == whole.crossings


def test_what_was_computed_is_not_computed_again(tmp_path):
    parts, made = Remembered(), []

    def make(name, count):
        return lambda: made.append(name) or {"values": np.arange(count)}

    def parse(count):
        def read(arrays):
            from dlf_dynamics.hdf5 import ContentError

            if len(arrays["values"]) != count:
                raise ContentError("another length")
            return arrays["values"]

        return read

    for length in (2, 3):
        parts.next_round(anew=False)
        assert len(parts.get_or_make("full-0", make("full-0", 5), parse(5))) == 5
        assert len(parts.get_or_make("last-0", make("last-0", length), parse(length))) == length
    assert made == ["full-0", "last-0", "last-0"]
    parts.next_round(anew=True)
    parts.get_or_make("full-0", make("full-0", 5), parse(5))
    assert made[3:] == ["full-0"]


def test_a_run_that_went_back_is_another_one(tmp_path):
    writer = Writer(tmp_path / "run.h5")
    first = open_run(writer.path, SETUP)
    writer.advance(5)
    later = open_run(writer.path, SETUP)
    assert goes_on(first, later)
    assert goes_on(later, later)
    assert not goes_on(later, first)
    writer.finish(54)
    other = Writer(tmp_path / "other.h5")
    other.finish(59)
    assert not goes_on(later, open_run(other.path, SETUP))


def test_a_file_is_held_as_long_as_its_writer_lives(tmp_path):
    path = tmp_path / "run.h5"
    assert not is_held(path)
    with hold(path):
        assert is_held(path)
    assert not is_held(path)
    (tmp_path / ".run.h5.lock").write_text("{}")  # of a killed writer
    assert not is_held(path)


def test_only_a_spectrum_follows_and_alone(tmp_path, capsys):
    writer = Writer(tmp_path / "run.h5")
    writer.finish(59)
    for command, options, complaint in (
        ("bifurcations", [], "Unrecognized options: --follow"),
        ("spectrum", ["--resume"], "follow and resume are both given"),
        ("spectrum", ["--distributed"], "follow and distributed are both given"),
    ):
        assert main([command, str(writer.path), "--follow", *options]) == 2
        assert complaint in capsys.readouterr().err


def test_a_run_that_nobody_writes_and_that_has_nothing_is_told(tmp_path, capsys):
    """Its writer was killed before the first checkpoint."""
    path = tmp_path / "run.h5"
    with Recorder(path, PROBLEM, optimizer=None, every=10) as recorder:
        recorder.record(1, jnp.zeros(3), loss=1.0)
    with pytest.raises(ConfigError, match=r"steps : holds no checkpoint; the run's are none"):
        latest(
            path,
            lambda: open_run(path, (PROBLEM, None, jnp.zeros(3))),
            analysis_named("spectrum"),
            CONFIG,
            tmp_path / "out.h5",
            stop=lambda: False,
        )


def test_a_file_that_is_not_there_yet_is_waited_for(small, trained, tmp_path, capsys):
    """Also while it is copied: empty, then the first part of it."""
    path, whole = tmp_path / "run.h5", trained(small).path.read_bytes()

    def come():
        for content in (b"", whole[:5000], whole):
            time.sleep(0.4)
            path.write_bytes(content)

    coming = threading.Thread(target=come)
    coming.start()
    run = awaited(path, lambda: open_run(path))
    coming.join()
    assert run.source == trained(small).source
    assert capsys.readouterr().err == f"waiting for run file {path}; Ctrl-C stops\n"


@pytest.mark.parametrize("command", ["spectrum", "report"])
def test_what_is_no_run_file_and_no_beginning_of_one_is_not_waited_for(
    command, small, trained, tmp_path, capsys
):
    other, folder, damaged = (tmp_path / name for name in ("x.h5", "d.h5", "cut.h5"))
    other.write_text("hello")
    folder.mkdir()
    damaged.write_bytes(trained(small).path.read_bytes()[:5000])
    os.utime(damaged, (0, 0))
    missing = tmp_path / "no" / "run.h5"
    for path, told in (
        (other, "x.h5 is not a dlf-dynamics run file (not HDF5)"),
        (folder, "run file "),
        (damaged, "cut.h5 is damaged: "),
        (missing, "does not exist"),
    ):
        assert main([command, str(path), "--follow"]) == 2
        message = capsys.readouterr().err
        assert told in message
        assert "waiting" not in message


@pytest.mark.parametrize("command", ["spectrum", "report"])
def test_ctrl_c_ends_the_waiting(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert main([command, str(tmp_path / "run.h5"), "--follow"]) == 130
    assert capsys.readouterr().err.startswith("waiting for run file ")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_training_is_followed_to_its_end_and_ctrl_c_leaves_what_was_seen(killed, tmp_path):
    """In processes of their own, as users have them."""
    program = [sys.executable, "-m", "dlf_dynamics.cli"]
    options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    training = subprocess.Popen(
        [*program, "train", "--steps", "40000", "--checkpoint-every", "100", "-o", "run.h5"],
        **options,
    )
    while not (tmp_path / "run.h5").exists():
        assert training.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    following = subprocess.Popen(
        [*program, "spectrum", "run.h5", "--follow", "--no-figures", "--quiet", "--json"], **options
    )
    if killed:
        while not (tmp_path / "run.spectrum.h5").exists():
            assert following.poll() is None
            time.sleep(0.1)
        os.kill(training.pid, signal.SIGSTOP)  # it stays: only the signal can end the following
        os.kill(following.pid, signal.SIGINT)
    out, told = following.communicate(timeout=300)
    if killed:
        os.kill(training.pid, signal.SIGKILL)
    training.communicate(timeout=300)
    found = load_spectrum(tmp_path / "run.spectrum.h5")
    if killed:
        assert following.returncode == 130, told
        assert "stopped following; run.spectrum.h5 is of steps 0 to" in told
        assert found.source.status == "running"
    else:
        assert following.returncode == 0, told
        assert found.source == open_run(tmp_path / "run.h5").source
        assert '"crossings": [' in out


def test_a_report_follows_with_the_settings_of_the_spectrum_beside_it(small, trained, tmp_path):
    path = tmp_path / "run.h5"
    shutil.copyfile(trained(small).path, path)
    options = ["--every", "3", "--ntk-examples", "0", "--quiet", "--no-figures"]
    assert main(["spectrum", str(path), *options]) == 0
    before = load_spectrum(tmp_path / "run.spectrum.h5")
    assert main(["report", str(path), "--follow"]) == 0
    after = load_spectrum(tmp_path / "run.spectrum.h5", open_run(path))
    assert after.asked == before.asked
    assert after.crossings == before.crossings
    assert (tmp_path / "run.report.html").read_text("utf-8").startswith("<!")
