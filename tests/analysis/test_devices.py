"""Several devices and several processes, against one device, in programs of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dlf_dynamics.analysis.linalg.certificate import STATUSES

PROGRAM = Path(__file__).with_name("on_devices.py")


def found_on_devices(folder, *parts):
    command = [sys.executable, str(PROGRAM), str(folder), *parts]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def quick_parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return found_on_devices(folder, "devices", "top", "exchanges", "memory")


def test_parameters_on_four_devices_have_the_eigenvalues_of_the_dense_hessian(quick_parts):
    assert quick_parts["devices"] == 8
    found = quick_parts["top"]
    np.testing.assert_allclose(found["values"], found["exact"], rtol=1e-10)
    assert found["status"] == ["converged"]
    assert found["norm"] == pytest.approx(1, rel=1e-12)
    assert all(found["in place"])


def test_a_step_exchanges_each_block_of_inner_products_once_and_gathers_nothing(quick_parts):
    # The norm of the product, overlaps with the last two rows and with all of them, the norm of
    # what is left; where one sweep is not enough, overlaps and norm once more.
    assert quick_parts["exchanges"].pop("all-reduce") <= 6
    assert not any(quick_parts["exchanges"].values())


def test_memory_of_a_device_is_its_part(quick_parts):
    (basis, step), *others = (quick_parts["memory"][count] for count in ("1", "4", "8"))
    assert basis == 21 * 100_000 * 8
    piece = 21 * 4096 * 8  # of the basis, of which inner products are summed
    for count, (part, taken) in zip((4, 8), others, strict=True):
        assert part == basis / count
        assert taken <= 1.05 * step / count + piece


@pytest.mark.slow
def test_measures_are_the_same_on_one_four_and_eight_devices(tmp_path):
    one, *others = found_on_devices(tmp_path, "measured")["measured"]
    for several in others:
        np.testing.assert_allclose(several, one, rtol=1e-9)


@pytest.mark.slow
def test_parameters_of_flax_on_four_devices_are_measured_and_recorded(tmp_path):
    found = found_on_devices(tmp_path, "flax", "recorded")
    alone, there, width = found["flax"]
    assert abs(alone - there) <= width
    assert found["recorded"] is True


@pytest.mark.slow
def test_eigenvalues_along_a_run_are_those_of_one_device(tmp_path):
    tolerances = (1e-12, 1e-5, 1e-12)
    found = found_on_devices(tmp_path, "runs")["runs"]
    for (one, eight), tol in zip(found, tolerances, strict=True):
        np.testing.assert_allclose(eight[0], one[0], rtol=tol)
        assert eight[1] == one[1]


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory):
    """A run of so many parameters that it counts as large, and of 31 examples and 3 classes."""
    path = tmp_path_factory.mktemp("wide") / "run.h5"
    options = "--data.name spiral --data.points-per-class 11 --model.widths 110 100"
    options += " --schedule.name static --steps 4 --checkpoint-every 4"
    program(["train", *options.split(), "-o", str(path)]).communicate()
    return path


def program(arguments, **environment):
    command = [sys.executable, "-m", "dlf_dynamics.cli", *arguments]
    variables = os.environ | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=variables, **pipes)


def eigenvalues(path):
    with h5py.File(path) as file:
        group = file["hessian/iterate"]
        assert np.all(group["status"][...] == STATUSES.index("converged"))
        return group["eigenvalues"][...]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(wide_run, tmp_path):
    settings = ["--k", "2", "--ntk-examples", "5", "--no-figures", "--quiet"]
    alone = program(["spectrum", str(wide_run), "-o", str(tmp_path / "one.h5"), *settings])
    alone.communicate()
    assert alone.returncode == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = ["--devices", "2", "--distributed"]
    both = [
        program(
            ["spectrum", str(wide_run), "-o", str(tmp_path / "two.h5"), *settings, *shared],
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(place),
        )
        for place in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "Hessian of the weighted loss at 2 checkpoints" in outputs[0][0]
    # On a CPU the library that connects the processes prints for itself.
    assert all(line.startswith("[Gloo]") for line in outputs[1][0].splitlines())
    one, two = eigenvalues(tmp_path / "one.h5"), eigenvalues(tmp_path / "two.h5")
    np.testing.assert_allclose(two, one, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--devices", "-1"], "devices is -1; expected at least 0 and at most 4096"),
        (["--distributed"], "the processes did not meet"),
    ],
)
def test_devices_that_are_not_there_are_refused_in_a_line(options, expected, trained, small):
    path = str(trained(small).path)
    process = program(["spectrum", path, *options], JAX_COORDINATOR_ADDRESS="")
    _, error = process.communicate()
    assert process.returncode == 2
    assert len(error.splitlines()) == 1
    assert expected in error
