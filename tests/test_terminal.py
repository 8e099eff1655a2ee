"""Ctrl-C, streams that fail, and text that a terminal would obey, as a user meets them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
from rich.table import Table

from dlf_dynamics.cli import main
from dlf_dynamics.commands.terminal import show
from dlf_dynamics.progress import Stop
from dlf_dynamics.runreader import header_sha256
from dlf_dynamics.streams import printable

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROGRAM = [sys.executable, "-m", "dlf_dynamics.cli"]
TRAIN = ["train", "--model.widths", "5", "--steps", "40", "--checkpoint-every", "20", "--quiet"]


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("terminal") / "run.h5"
    assert main([*TRAIN, "-o", str(path)]) == 0
    return path


def begun(program):
    """A process that runs the program, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


IMPORT = """
    import sys, types
    from dlf_dynamics import cli, streams

    class Slow:
        # What some packages do: whatever happens when a part of them is imported, they go on.
        def find_spec(self, name, path, target=None):
            if name == "dlf_dynamics.commands":
                print("ready", flush=True)
                import time
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    raise ImportError("half imported")

    sys.meta_path.insert(0, Slow())
    sys.exit(cli.main(["info", "run.h5"]))
"""


def test_ctrl_c_while_modules_are_imported_is_one_line():
    process = begun(IMPORT)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert complaint == "dlf-dynamics: interrupted; what was recorded or finished before is kept\n"
    assert process.returncode == 130


EARLY = """
    import os, signal, sys
    from dlf_dynamics import cli

    class Signal:
        def find_spec(self, name, path, target=None):
            if name == "dlf_dynamics.progress":
                os.kill(os.getpid(), signal.SIGINT)

    print("ready", flush=True)
    sys.meta_path.insert(0, Signal())
    sys.exit(cli.main(["info", "run.h5"]))
"""


def test_ctrl_c_at_the_first_import_is_one_line():
    process = begun(EARLY)
    _, complaint = process.communicate(timeout=30)
    assert complaint == "dlf-dynamics: interrupted before it began\n"
    assert process.returncode == 130


REDIRECTED = """
    import contextlib, io, os, signal, sys
    from dlf_dynamics import cli, commandline

    class Signal:
        def find_spec(self, name, path, target=None):
            if name == "wanted_by_tyro":
                os.kill(os.getpid(), signal.SIGINT)

    def parse(*_):
        import wanted_by_tyro

    print("ready", flush=True)
    sys.meta_path.insert(0, Signal())
    commandline._parsed_by_tyro = parse
    sys.exit(cli.main(["info", "run.h5"]))
"""


def test_ctrl_c_while_options_are_parsed_is_one_line():
    process = begun(REDIRECTED)  # what the parser complains of is collected then
    _, complaint = process.communicate(timeout=30)
    assert complaint == "dlf-dynamics: interrupted; what was recorded or finished before is kept\n"
    assert process.returncode == 130


def test_ctrl_c_between_the_handlers_is_one_line(monkeypatch, capsys):
    @contextmanager
    def interrupted(self):
        raise KeyboardInterrupt
        yield

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Stop, "listening", interrupted)
    assert main(["info", "run.h5"]) == 130
    assert capsys.readouterr().err == "dlf-dynamics: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


COMPUTE = """
    import jax
    from dlf_dynamics.progress import Stop

    long = jax.jit(lambda x: jax.lax.while_loop(lambda x: x > 0, lambda x: 0.5 * x + 1, x))
    with Stop().listening():
        print("ready", flush=True)
        long(1.0).block_until_ready()
"""


def test_signals_are_heard_while_compiled_code_computes():
    process = begun(COMPUTE)
    assert process.stderr is not None
    time.sleep(2)  # it has to be compiled
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()  # nothing else would come
    assert line == (
        "dlf-dynamics: stopping after the current chunk; press Ctrl-C again to stop immediately\n"
    )
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert complaint == "dlf-dynamics: interrupted; what was recorded or finished before is kept\n"
    assert process.returncode == 130


def test_the_first_signal_is_a_wish_and_the_second_interrupts(capsys):
    before = signal.getsignal(signal.SIGINT)
    stop = Stop()
    with stop.listening():
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert capsys.readouterr().err.count("stopping after the current chunk") == 1


def piped(command, script, **options):
    """Exit code of the program and all that was on stderr; `script` says where its output goes."""
    return subprocess.run(
        ["bash", "-c", f'"$@" {script}; exit ${{PIPESTATUS[0]}}', "bash", *PROGRAM, *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_a_reader_that_goes_away_is_no_error(run_path):
    for command in (["info", run_path], ["train", "--help"]):
        found = piped(command, "| true")
        assert (found.returncode, found.stderr) == (0, "")


def test_the_exit_code_is_the_verdict_whoever_reads(run_path, tmp_path):
    path = tmp_path / "faulty.h5"
    path.write_bytes(run_path.read_bytes())
    with h5py.File(path, "r+") as file:
        file["parameters/value"][1, 2] = np.nan
    found = piped(["validate", path], "| true")
    assert (found.returncode, found.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_one_line(run_path):
    for command in (["info", run_path], ["--version"], ["--help"]):
        found = piped(command, "> /dev/full")
        line = "dlf-dynamics: what was printed could not be written: No space left on device\n"
        assert (found.returncode, found.stderr) == (2, line)
    assert piped(["info", run_path], "2> /dev/full").returncode == 0


def test_a_run_is_recorded_whatever_its_output_goes_to(tmp_path):
    found = piped([*TRAIN, "-o", tmp_path / "run.h5"], ">&- 2> /dev/full")
    assert (found.returncode, found.stderr) == (0, "")
    assert main(["validate", str(tmp_path / "run.h5")]) == 0


def test_an_encoding_without_some_characters_gets_escapes():
    program = """
        from dlf_dynamics.commands.terminal import show
        from dlf_dynamics.streams import lenient

        with lenient():
            show("2 ± 1")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (found.stdout, found.stderr) == ("2 \\xb1 1\n", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ± η [/b] $x$", "plain ± η [/b] $x$"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\u202eevil\u2028", "\\u202eevil\\u2028"),
        ("\udcff", "\\udcff"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_text_is_shown_and_not_obeyed(text, shown):
    assert printable(text) == shown


def test_markup_of_others_is_text(capsys):
    names = ["sgd [/b]", "[link=https://example.org]here[/link]", ":smile:", "\x1b]0;title\x07"]
    table = Table(title=names[0], caption=names[1], min_width=50)
    table.add_column(names[2])
    table.add_row(names[3])
    show(table, *names)
    printed = capsys.readouterr().out
    for name in names:
        assert printed.count(printable(name)) == 2, name
    assert "\x1b" not in printed


def test_a_complaint_is_one_line_whatever_it_names(capsys, tmp_path):
    assert main(["info", str(tmp_path / "a\nb\x1b[31m[/b].h5")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "a\\nb\\x1b[31m[/b].h5 does not exist" in line


def test_info_shows_the_text_of_a_file(capsys, run_path, tmp_path):
    path = tmp_path / "run.h5"
    path.write_bytes(run_path.read_bytes())
    with h5py.File(path, "r+") as file:
        text = file["provenance"][()].decode()
        del file["provenance"]
        file["provenance"] = text.replace('"argv"', '"\\u001b[2J\\u0007argv"')
        file.attrs["header_sha256"] = header_sha256(file)
    assert main(["info", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "\\x1b[2J\\x07argv" in printed
    assert "\x1b" not in printed
    assert np.all([line.isprintable() for line in printed.splitlines()])
