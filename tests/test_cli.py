"""The command line as a user meets it: commands, one-line errors, signals."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from dlf_dynamics import open_run
from dlf_dynamics.cli import main
from dlf_dynamics.commands import COMMANDS, command_named
from dlf_dynamics.errors import FileError
from dlf_dynamics.outputs import hold
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.resultfile import write_whole
from dlf_dynamics.runwriter import new_file

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = ["--model.widths", "5", "--checkpoint-every", "20", "--schedule.period", "50"]
PROGRAM = [sys.executable, "-m", "dlf_dynamics.cli"]


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run.h5"
    assert main(["train", "--steps", "200", *SMALL, "-o", str(path), "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def spectrum_path(run_path):
    assert main(["spectrum", str(run_path), "--no-figures", "--quiet"]) == 0
    return run_path.with_suffix(".spectrum.h5")


def refused(capsys, *arguments):
    """The one line on stderr of a command that must end with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dlf-dynamics: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_shell_completes_commands_and_their_options(capsys, tmp_path):
    script = tmp_path / "completion"
    assert main(["--tyro-write-completion", "bash", str(script)]) == 0
    lines = """
        source completion
        function=$(complete -p dlf-dynamics | sed "s/.* -F \\([^ ]*\\) .*/\\1/")
        complete_words() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); $function; echo ${COMPREPLY[@]}
        }
        complete_words dlf-dynamics bif
        complete_words dlf-dynamics spectrum --fail
        complete_words dlf-dynamics train --schedule.
    """
    done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("bifurcations", "--failure-probability")
    assert {"--schedule.amplitude", "--schedule.period"} <= set(third.split())
    line = refused(capsys, "--tyro-write-completion", "tcsh", script)
    assert "was given tcsh; expected bash or zsh" in line


def help_of(*arguments):
    return subprocess.run(
        [*PROGRAM, *arguments, "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_help_does_not_import_jax():
    code = (
        "import sys\nfrom dlf_dynamics.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_help_lists_commands_and_presets():
    overview, train = help_of(), help_of("train")
    assert all(name in overview for name in COMMANDS)
    assert all(name in train for name in PRESETS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_the_first_sentence_of_its_help(name):
    told = inspect.getdoc(command_named(name)) or ""
    assert " ".join(told.split("\n\n")[0].split()) == COMMANDS[name].about


def test_the_list_of_commands_reads_no_files_and_needs_no_arrays():
    code = (
        "import sys\nfrom dlf_dynamics.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('numpy' in sys.modules or 'h5py' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dlf-dynamics 0.")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--schedule.perod", "3"], "did you mean --schedule.period?"),
        (["--frobnicate"], "Unrecognized options: --frobnicate"),
        (["--schedule.period", "x"], "--schedule.period"),
        (["--schedule.name", "circle"], "Expected one of ('triangle', 'static')"),
        (["--schedule.amplitude", "0.5"], "schedule.amplitude is 0.5; expected a number of at"),
        (["--schedule.period", "0"], "schedule.period is 0"),
        (["--optimizer.learning-rate", "0"], "optimizer.learning_rate is 0.0; expected"),
        (["--optimizer.learning-rate", "-1"], "optimizer.learning_rate is -1.0; expected"),
        (["--optimizer.learning-rate", "nan"], "optimizer.learning_rate is nan; expected"),
        (["--preset", "publishd"], "did you mean published?"),
        (["--steps", "0"], "steps is 0"),
        (["--batch-size", "301"], "batch_size is 301; expected at most the number of examples"),
        (["--model.outputs", "2"], "labels go up to 2 but the network has 2 outputs"),
        (["--threads", "-1"], "threads is -1"),
        (["--threads", "4097"], "threads is 4097; expected at least 0 and at most 4096"),
        (["missing.toml"], "configuration missing.toml cannot be read: No such file"),
        (["nosuchfile"], "configuration nosuchfile cannot be read: No such file"),
        (["."], "configuration . cannot be read: Is a directory"),
        (["a.toml", "b.toml"], "Unrecognized options: b.toml"),
        (["--learning-rate", "3"], "--learning-rate, 3; did you mean --optimizer.learning-rate?"),
        (["--seed", "3"], "did you mean --data.seed or --model.seed?"),
        (["--preset=publishd"], "did you mean published?"),
        (["--resume", "--preset", "digits"], "--preset is 'digits'; expected none with --resume"),
        (["c.toml", "--resume"], "CONFIG.toml is 'c.toml'; expected none with --resume"),
        (["--resume"], "run.h5 does not exist"),
        (["--data.name", "npz"], "data.path is None; expected the .npz file"),
        (["--data.name", "npz", "--data.path", "no.npz"], "data file no.npz does not exist"),
    ],
)
def test_train_refuses_bad_options(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, "train", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[schedule]\nperod = 3", "schedule.perod is not a key; did you mean schedule.period?"),
        ("[shedule]\nperiod = 3", "did you mean schedule?"),
        ("steps = 'many'", "steps is 'many'; expected a whole number"),
        ("steps = 1.5", "steps is 1.5; expected a whole number"),
        ("steps = true", "steps is True; expected a whole number"),
        ("schedule = 3", "schedule is 3; expected a table [schedule]"),
        ("[model]\nactivation = 'rely'", "did you mean relu?"),
        ("[model]\nwidths = 3", "model.widths is 3; expected a list"),
        ("preset = 'public'", "preset 'public' is unknown"),
        ("steps = = 3", "is not valid TOML"),
    ],
)
def test_train_refuses_a_bad_toml_file(capsys, tmp_path, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text(content)
    assert expected in refused(capsys, "train", "bad.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


def test_options_override_toml_which_overrides_the_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(
        "preset = 'published'\nsteps = 30\n[model]\nwidths = [4]\n[schedule]\nperiod = 40\n"
    )
    assert main(["train", "c.toml", "--schedule.period", "60", "--quiet"]) == 0
    config = open_run("run.h5").config
    assert (config.steps, config.model.widths, config.schedule.period) == (30, (4,), 60)
    assert (config.prng, config.schedule.counting) == ("legacy", "published")


def test_a_configuration_may_have_any_name_and_stand_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.cfg").write_text("steps = 30\n")
    arguments = ["--model.widths", "4", "--quiet", "my.cfg", "--checkpoint-every=10"]
    assert main(["train", *arguments]) == 0
    config = open_run("run.h5").config
    assert (config.steps, config.model.widths, config.checkpoint_every) == (30, (4,), 10)
    assert config.prng == "modern"  # without a preset in it, a file starts from the defaults


def test_the_output_is_no_configuration_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.toml").write_text("steps = 2")
    options = ["--steps", "30", *SMALL, "--data.name", "npz", "--data.path", "d.toml", "--quiet"]
    np.savez("d", inputs=np.eye(3), labels=np.arange(3))
    (tmp_path / "d.npz").rename("d.toml")
    assert main(["train", "-o", "z.toml", *options]) == 0
    assert open_run("z.toml").config.steps == 30
    assert main(["train", "-o", "z.toml", "--resume", "--steps", "40", "--quiet"]) == 0
    assert open_run("z.toml").config.steps == 40


def test_options_are_checked_with_the_configuration_that_they_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("d", inputs=np.eye(3), labels=np.arange(3))
    (tmp_path / "c").write_text("[data]\nname = 'npz'\npath = 'none.npz'\n")
    arguments = ["--data.path", "d.npz", "--steps", "20", *SMALL, "--quiet"]
    assert main(["train", *arguments, "c"]) == 0
    # Said to be what the published preset has, it is said all the same.
    options = ["--preset", "digits", "--steps", "30", "--schedule.amplitude", "70", "--quiet"]
    assert main(["train", *options, "-o", "digits.h5"]) == 0
    assert open_run("digits.h5").config.schedule.amplitude == 70


def test_nan_in_the_data_is_named(capsys, tmp_path):
    inputs = np.ones((6, 2))
    inputs[3, 1] = np.nan
    path = tmp_path / "bad.npz"
    np.savez(path, inputs=inputs, labels=np.array([0, 1, 0, 1, 0, 1]))
    line = refused(
        capsys, "train", "--data.name", "npz", "--data.path", path, "-o", tmp_path / "run.h5"
    )
    assert "inputs[3, 1] is nan (1 value not finite)" in line
    assert not (tmp_path / "run.h5").exists()


def test_a_class_without_examples_is_refused_unless_it_is_asked_for(capsys, tmp_path):
    data, path = tmp_path / "data.npz", tmp_path / "run.h5"
    np.savez(data, inputs=np.eye(3), labels=np.array([1, 2, 1]))
    options = ["--data.name", "npz", "--data.path", str(data), "-o", str(path), "--quiet"]
    options += ["--steps", "5", *SMALL]
    line = refused(capsys, "train", *options)
    assert "no example has label 0" in line
    assert "or set model.outputs to 3" in line
    assert main(["train", *options, "--model.outputs", "3"]) == 0
    assert open_run(path).scalars["class_weights"].shape == (6, 3)
    (tmp_path / "study.toml").write_text(
        f"steps = 5\n[data]\nname = 'npz'\npath = '{data}'\n[grid]\nmodel.seed = [0, 1]\n"
    )
    capsys.readouterr()
    assert "no example has label 0" in refused(capsys, "sweep", tmp_path / "study.toml", "--quiet")


def test_an_existing_file_is_never_replaced_unasked(capsys, run_path):
    before = run_path.read_bytes()
    assert "exists; continue it with --resume" in refused(capsys, "train", "-o", run_path)
    assert run_path.read_bytes() == before


@pytest.mark.parametrize("command", ["spectrum", "plot", "info", "validate", "repair"])
def test_commands_refuse_missing_foreign_truncated_and_newer_files(
    capsys, tmp_path, run_path, command
):
    missing, foreign = tmp_path / "no.h5", tmp_path / "foreign.h5"
    truncated, newer = tmp_path / "cut.h5", tmp_path / "newer.h5"
    foreign.write_text("this is no HDF5 file")
    truncated.write_bytes(run_path.read_bytes()[:5000])
    newer.write_bytes(run_path.read_bytes())
    with h5py.File(newer, "r+") as file:
        file.attrs["format_version"] = "2.0"
    assert "does not exist" in refused(capsys, command, missing)
    assert "not a dlf-dynamics run file" in refused(capsys, command, foreign)
    assert "damaged" in refused(capsys, command, truncated)
    assert "format version 2.0; this program reads 1.x" in refused(capsys, command, newer)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--steps", "900:"], "steps 900: holds no checkpoint; the run's are 0 to 200"),
        (["--steps", "12"], "steps is '12'; expected a:b"),
        (["--every", "0"], "every is 0; expected at least 1"),
        (["--k", "0"], "k is 0; expected at least 1"),
        (["--k", "100"], "max_matvecs is 200; expected at least 202 for k = 100"),
        (["--tol", "2"], "tol is 2.0; expected a number between 0 and 1"),
        (["--above", "-1"], "above is -1.0; expected a fraction above 0, or none"),
        (["--above", "1", "--which", "both"], "which is 'both'; expected 'largest' where above"),
        (["--class-label", "3"], "class_label is 3; expected 0 to 2, or none"),
        (["--block", "weights"], "no parameters at path 'weights'; expected one of ''"),
        (["--batch-size", "0"], "batch_size is 0; expected at least 1"),
        (["--failure-probability", "1"], "failure_probability is 1.0; expected a number between"),
        (["--rank-tolerance", "0"], "rank_tolerance is 0.0; expected a number above 0"),
        (["--density-checkpoints", "0"], "density_checkpoints is 0; expected at least 1"),
        (["--operator", "jacobian"], "invalid choice"),
        (["--zoom", "5:2"], "zoom is '5:2'; expected a:b with a < b"),
        (["--ntk-example", "3"], "did you mean --ntk-examples?"),
        (["-o", "no/where.h5"], "directory no does not exist"),
        (["--max-memory", "4 gigs"], "max_memory is '4 gigs'; expected a size such as 4GB"),
        (["--max-memory", "1kB"], "one example at a time, and"),
    ],
)
def test_spectrum_refuses_bad_options(capsys, run_path, arguments, expected):
    assert expected in refused(capsys, "spectrum", run_path, *arguments)


def test_an_output_directory_must_exist_and_be_writable(capsys, tmp_path):
    assert "does not exist" in refused(capsys, "train", "-o", tmp_path / "no" / "run.h5")
    assert "is a directory" in refused(capsys, "train", "-o", tmp_path)
    assert len(refused(capsys, "info", tmp_path / ("x" * 5000))) < 1100


def test_a_device_or_a_pipe_is_not_replaced_by_a_result(capsys, run_path, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for command in (
        ["train", "--overwrite", "-o", pipe],
        ["spectrum", run_path, "-o", pipe],
        ["bifurcations", run_path, "-o", pipe],
    ):
        assert "pipe is a device or a pipe; expected the name" in refused(capsys, *command)
    message = "is a device or a pipe; expected the name of a file"
    with pytest.raises(FileError, match=message):
        write_whole(pipe, b"")
    with pytest.raises(FileError, match=message), hold(pipe) as output, new_file(output):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()


def test_spectrum_writes_results_figures_and_a_table(capsys, run_path):
    assert main(["spectrum", str(run_path), "--every", "5", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "threshold 2: critical eigenvalue of gd" in captured.out
    for suffix in (".spectrum.h5", ".png", ".svg", ".bifurcation.png", ".bifurcation.svg"):
        assert run_path.with_suffix(suffix).stat().st_size > 1000
        assert run_path.with_suffix(suffix).name in captured.err


def test_densities_are_told_and_drawn(capsys, run_path):
    options = ["--every", "5", "--density", "--density-checkpoints", "2", "--verify-dense"]
    assert main(["spectrum", str(run_path), *options, "--quiet"]) == 0
    captured = capsys.readouterr()
    told = " ".join(captured.out.split())
    for name in ("hessian", "ggn", "ntk"):
        assert f"{name} density at 2 checkpoints; at step 200 trace" in told
        assert f"dense check of the {name} density" in captured.err
    assert run_path.with_suffix(".density.png").stat().st_size > 1000
    run_path.with_suffix(".density.png").unlink()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_spectrum_that_was_stopped_is_resumed_with_the_same_content(tmp_path, capsys, number):
    train = ["train", *SMALL, "--checkpoint-every", "1", "--steps", "1000", "-o", "run.h5"]
    subprocess.run([*PROGRAM, *train, "--quiet"], cwd=tmp_path, check=True)
    command = ["spectrum", "run.h5", "--no-figures", "--quiet"]
    process = subprocess.Popen([*PROGRAM, *command], cwd=tmp_path, stderr=subprocess.PIPE)
    parts = tmp_path / "run.spectrum.parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("hessian-*.h5"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    finished = {path.name: path.stat().st_mtime_ns for path in parts.glob("hessian-*.h5")}
    assert 1 <= len(finished) < 11
    assert not (tmp_path / "run.spectrum.h5").exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert b"continue with `dlf-dynamics spectrum run.h5 --resume`" in complaint
    path = str(tmp_path / "run.h5")
    line = refused(capsys, "spectrum", path, "--resume", "--k", "2", "--quiet")
    assert "holds parts of other settings; leave --resume out" in line
    assert finished.items() <= {f.name: f.stat().st_mtime_ns for f in parts.iterdir()}.items()
    # By the program again, which has as many devices as there are cores.
    for further in (["--resume"], ["-o", "whole.h5"]):
        subprocess.run([*PROGRAM, *command, *further], cwd=tmp_path, check=True)
        assert not parts.exists()
    whole = tmp_path / "whole.h5"
    with h5py.File(tmp_path / "run.spectrum.h5") as resumed, h5py.File(whole) as expected:
        names = []
        expected.visititems(lambda n, d: names.append(n) if isinstance(d, h5py.Dataset) else None)
        for name in set(names) - {"provenance"}:
            np.testing.assert_array_equal(resumed[name][()], expected[name][()], err_msg=name)


def test_json_alone_is_on_stdout(capsys, run_path):
    assert main(["spectrum", str(run_path), "--json", "--no-figures", "--quiet"]) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content["checkpoints"] == 11
    assert content["threshold"]["first"] == pytest.approx(2.0, rel=1e-9)


def test_verify_dense_prints_the_worst_difference(capsys, run_path):
    arguments = ["spectrum", str(run_path), "--every", "5", "--k", "3", "--verify-dense"]
    assert main([*arguments, "--no-figures", "--quiet"]) == 0
    line = next(
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("dense check of 15")
    )
    assert float(line.split("worst difference ")[1].split()[0]) < 1e-9


def test_plot_draws_from_the_results_without_computing(spectrum_path, run_path, tmp_path):
    stem = tmp_path / "figure"
    assert main(["plot", str(run_path), "-o", str(stem), "--zoom", "50:150"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "figure.png",
        "figure.svg",
        "figure.bifurcation.png",
        "figure.bifurcation.svg",
    }


def test_plot_without_results_draws_the_run_and_says_what_makes_the_rest(
    capsys, tmp_path, run_path
):
    path = tmp_path / "alone.h5"
    path.write_bytes(run_path.read_bytes())
    assert main(["plot", str(path)]) == 0
    told = capsys.readouterr().err
    for analysis in ("spectrum", "bifurcations"):
        assert f"alone.{analysis}.h5, which `dlf-dynamics {analysis} {path}` makes" in told
    assert {p.name for p in tmp_path.iterdir()} == {"alone.h5", "alone.png", "alone.svg"}


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_suffix_of_the_name_is_the_format_of_the_figures(
    suffix, spectrum_path, run_path, tmp_path
):
    assert main(["plot", str(run_path), "-o", str(tmp_path / f"fig.{suffix}")]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"fig.{suffix}", f"fig.bifurcation.{suffix}"}
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF-"}[suffix]
    assert (tmp_path / f"fig.{suffix}").read_bytes().startswith(start)


def test_an_unknown_suffix_is_refused_with_the_choices(run_path, tmp_path, capsys):
    line = refused(capsys, "plot", run_path, "-o", tmp_path / "figure.jpg")
    assert "figure.jpg; expected a name that ends in .png, .svg, .pdf, or has no suffix" in line
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_is_named_must_be_there(run_path, tmp_path, capsys):
    assert (
        main(["plot", str(run_path), "--bifurcations", "none.h5", "-o", str(tmp_path / "f")]) == 2
    )
    assert "none.h5 does not exist" in capsys.readouterr().err


def test_plot_draws_what_it_can_and_then_refuses_the_result_of_another_run(
    spectrum_path, run_path, tmp_path, capsys
):
    other = tmp_path / "other.h5"
    assert main(["train", "--steps", "100", *SMALL, "-o", str(other), "--quiet"]) == 0
    foreign = other.with_suffix(".spectrum.h5")
    foreign.write_bytes(spectrum_path.read_bytes())
    assert main(["plot", str(other)]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))  # a figure of the run without it would mislead


def test_info_tells_status_and_configuration(capsys, run_path, require_schema):
    assert main(["info", str(run_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    require_schema(content, "run")
    assert (content["status"], content["num_params"]) == ("complete", 33)
    assert (content["updates"], content["rows"]) == (200, 201)  # that of the last state, too
    assert content["config"]["schedule"]["period"] == 50
    assert main(["info", str(run_path)]) == 0
    assert "status: complete" in capsys.readouterr().out


def test_validate_names_the_fault(capsys, run_path, tmp_path):
    assert main(["validate", str(run_path)]) == 0
    assert capsys.readouterr().out.endswith("run.h5: valid\n")
    path = tmp_path / "faulty.h5"
    path.write_bytes(run_path.read_bytes())
    with h5py.File(path, "r+") as file:
        file["parameters/value"][3, 2] = np.nan
    assert main(["validate", str(path)]) == 1
    assert "/parameters/value at step" in capsys.readouterr().out


def test_divergence_is_told_with_the_step_and_what_to_try(capsys, tmp_path):
    path = tmp_path / "run.h5"
    arguments = ["--loss.name", "squared-error", "--optimizer.learning-rate", "1000"]
    assert main(["train", "--steps", "500", *SMALL, *arguments, "-o", str(path), "--quiet"]) == 3
    line = capsys.readouterr().err
    step = open_run(path).steps[-1]
    assert line.startswith(f"dlf-dynamics: diverged at step {step}: the loss is ")
    assert "try --optimizer.learning-rate below 1000" in line
    assert line.count("\n") == 1


def started(tmp_path, *arguments):
    """A training process that has begun to record."""
    process = subprocess.Popen(
        [*PROGRAM, "train", *SMALL, "--steps", "3000000", *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_good_file_that_resume_continues(tmp_path, monkeypatch, number):
    process = started(tmp_path)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    run = open_run(tmp_path / "run.h5")
    step = run.resume_point().step
    assert f"interrupted at step {step}; continue with" in complaint
    assert run.status == "interrupted"
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "--steps", str(step + 33), "--quiet"]) == 0
    whole = ["train", *SMALL, "--steps", str(step + 33), "-o", "whole.h5", "--quiet"]
    assert main(whole) == 0
    resumed, uninterrupted = open_run("run.h5"), open_run("whole.h5")
    np.testing.assert_array_equal(resumed.parameters(), uninterrupted.parameters())
    for name, values in uninterrupted.scalars.items():
        np.testing.assert_array_equal(resumed.scalars[name], values, err_msg=name)


def test_resume_refuses_options_that_change_the_run(capsys, run_path):
    line = refused(capsys, "train", "--resume", "-o", run_path, "--schedule.period", "60")
    assert "--resume continues the run as it was configured" in line
    assert "schedule.period" in line


def test_repair_makes_a_killed_run_whole(tmp_path, capsys):
    process = started(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    path = tmp_path / "run.h5"
    assert main(["validate", str(path)]) == 1
    assert "its writer was killed" in capsys.readouterr().out
    assert main(["repair", str(path)]) == 0
    assert main(["validate", str(path)]) == 0


@pytest.mark.parametrize("command", ["spectrum", "plot"])
def test_a_full_disk_is_one_line_and_loses_nothing(run_path, spectrum_path, tmp_path, command):
    for path in (run_path, spectrum_path):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = spectrum_path.read_bytes()
    # The limit is in blocks of 1,024 bytes; neither result nor figure fits into one.
    finished = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *PROGRAM, command, "run.h5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.splitlines()[-1].endswith("cannot be written: File too large")
    assert (tmp_path / spectrum_path.name).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {run_path.name, spectrum_path.name}


@pytest.mark.parametrize("command", ["spectrum .", "spectrum . --follow", "plot /", "report ."])
def test_a_folder_in_the_place_of_a_file_is_one_line(capsys, command):
    assert "is a folder; expected the name of a file" in refused(capsys, *command.split())
