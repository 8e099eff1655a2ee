"""One writer at a time, told by the process that holds the file; real processes, real kills."""

import errno
import json
import os
import platform
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dlf_dynamics.errors import FileError
from dlf_dynamics.outputs import handed_over, hold, partial_path

HOLDER = """
import sys
from pathlib import Path
from dlf_dynamics.outputs import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""

# Takes the file time and again, and looks whether it is alone while it holds it.
RACER = """
import sys
from pathlib import Path
from dlf_dynamics.errors import FileError
from dlf_dynamics.outputs import hold
folder, name = Path(sys.argv[1]), sys.argv[2]
won = broken = 0
print("ready", flush=True)
sys.stdin.readline()
while won < 25:
    try:
        with hold(folder / "run.h5"):
            won += 1
            for _ in range(20):
                (folder / "number").write_text(f"{name} {won}")
                broken += (folder / "number").read_text() != f"{name} {won}"
    except FileError:
        pass
print(broken)
"""

FORKER = """
import os, sys
from pathlib import Path
from dlf_dynamics.outputs import hold
with hold(Path(sys.argv[1])) as output:
    child = os.fork()
    if child == 0:
        output.release()
        os._exit(0)
    os.waitpid(child, 0)
    print("still", flush=True)
    sys.stdin.readline()
    other = os.fork()
    if other == 0:
        sys.stdin.readline()
        os._exit(0)
print("released", flush=True)
os.waitpid(other, 0)
"""


@contextmanager
def started(code, *arguments):
    """A program that talks by lines; it is ended when the block is left."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process):
    return process.stdout.readline().strip()


def tell(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def other(tmp_path):
    """Another process that holds `run.h5` until it is told to end."""
    with started(HOLDER, tmp_path / "run.h5") as process:
        assert heard(process) == "held"
        yield process


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_second_writer_is_refused_with_the_process_that_holds_the_file(tmp_path, other):
    line = rf"run\.h5 is being written by process {other.pid}; wait until it has ended, or write"
    with pytest.raises(FileError, match=line):
        hold(tmp_path / "run.h5")
    tell(other)
    other.wait()
    with hold(tmp_path / "run.h5"):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_killed_process_holds_nothing_and_what_it_left_is_taken_away(tmp_path, other):
    leftover = partial_path(tmp_path / "run.h5")
    leftover.write_bytes(b"half")
    others = tmp_path / "run.h5.notes.partial"
    others.write_bytes(b"of the user")
    other.kill()
    other.wait()
    assert ".run.h5.lock" in names(tmp_path)
    with hold(tmp_path / "run.h5"):
        assert json.loads((tmp_path / ".run.h5.lock").read_text())["pid"] == os.getpid()
    assert names(tmp_path) == [others.name]


def test_a_process_on_another_machine_is_named_with_it(tmp_path):
    with hold(tmp_path / "run.h5"):
        (tmp_path / ".run.h5.lock").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
        with pytest.raises(FileError, match="is being written by process 7 on elsewhere; wait"):
            hold(tmp_path / "run.h5")
        for unreadable in ("", "[]", '{"pid": null}', "\xff"):
            (tmp_path / ".run.h5.lock").write_text(unreadable, encoding="latin-1")
            with pytest.raises(FileError, match="is being written by another process; wait"):
                hold(tmp_path / "run.h5")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="of Linux")
def test_where_there_can_be_no_file_nobody_else_is_writing_it():
    with pytest.raises(FileError, match=r"/proc/run\.h5 cannot be written: No such file"):
        hold(Path("/proc/run.h5"))


def test_threads_of_one_process_keep_each_other_out(tmp_path):
    refused = []

    def try_it():
        try:
            hold(tmp_path / "run.h5").release()
        except FileError as error:
            refused.append(str(error))

    with hold(tmp_path / "run.h5"):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert "is being written by this process" in refused[0]
    try_it()
    assert len(refused) == 1


def test_of_several_processes_that_want_a_file_one_has_it_at_a_time(tmp_path):
    with ExitStack() as stack:
        racers = [stack.enter_context(started(RACER, tmp_path, name)) for name in "abc"]
        assert [heard(racer) for racer in racers] == ["ready"] * 3
        for racer in racers:
            tell(racer)
        # Each has had it 25 times, and then nobody else wrote the number.
        assert [heard(racer) for racer in racers] == ["0"] * 3
    assert names(tmp_path) == ["number"]


def test_a_file_that_exists_is_replaced_only_if_that_was_asked_for(tmp_path):
    path = tmp_path / "run.h5"
    path.write_bytes(b"old")
    with pytest.raises(FileError, match=r"run\.h5 exists; think again"):
        hold(path, "think again")
    for remedy, expected in ((None, b"new"), ("think again", b"old")):
        path.unlink()
        with hold(path, remedy) as output:
            path.write_bytes(b"old")  # by a program that knows no locks
            partial = partial_path(path)
            partial.write_bytes(b"new")
            if remedy is None:
                output.place(partial)
            else:
                with pytest.raises(FileError, match=r"run\.h5 exists; think again"):
                    output.place(partial)
        assert path.read_bytes() == expected
    assert hold(path).release() is None  # nothing is held after a refusal


def test_without_hard_links_a_new_file_still_takes_its_name(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", none)
    with hold(tmp_path / "run.h5", "think again") as output:
        partial = partial_path(tmp_path / "run.h5")
        partial.write_bytes(b"new")
        output.place(partial)
    assert (tmp_path / "run.h5").read_bytes() == b"new"


def test_a_link_and_the_file_that_it_names_have_one_lock(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "run.h5").symlink_to(tmp_path / "deep" / "other.h5")
    with hold(tmp_path / "run.h5") as output:
        assert output.target == (tmp_path / "deep" / "other.h5").resolve()
        with pytest.raises(FileError, match=r"other\.h5 is being written by this process"):
            hold(tmp_path / "deep" / "other.h5")


def test_a_file_is_released_when_making_its_writer_fails_and_else_by_the_writer(tmp_path):
    with pytest.raises(ValueError, match="no writer"), handed_over(tmp_path / "run.h5"):
        raise ValueError("no writer")
    with handed_over(tmp_path / "run.h5") as output:
        assert hold(output) is output
    with pytest.raises(FileError, match="is being written by this process"):
        hold(tmp_path / "run.h5")
    output.release()
    output.release()
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_work_goes_on(number, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.warns(UserWarning, match="has no locks: take care that no other program"):
        held = hold(tmp_path / "run.h5")
    with held as output:
        partial = partial_path(tmp_path / "run.h5")
        partial.write_bytes(b"new")
        output.place(partial)
    assert names(tmp_path) == ["run.h5"]


def test_a_file_that_could_not_be_written_is_told_at_once(tmp_path, monkeypatch):
    with pytest.raises(FileError, match=r"cannot be written: directory .*none does not exist"):
        hold(tmp_path / "none" / "run.h5")
    long = tmp_path / ("x" * 254)
    with pytest.raises(FileError, match="cannot be written: File name too long"):
        hold(long)
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are POSIX's")
def test_a_forked_process_holds_nothing_and_releases_nothing(tmp_path):
    with started(FORKER, tmp_path / "run.h5") as process:
        assert heard(process) == "still"
        with pytest.raises(FileError, match=f"is being written by process {process.pid};"):
            hold(tmp_path / "run.h5")
        tell(process)
        assert heard(process) == "released"
        hold(tmp_path / "run.h5").release()  # while the second fork lives
        tell(process)
        assert process.wait() == 0


def test_the_name_of_the_machine_is_kept_with_the_process(tmp_path):
    with hold(tmp_path / "run.h5"):
        found = json.loads((tmp_path / ".run.h5.lock").read_text())
    assert found == {"pid": os.getpid(), "host": platform.node()}
