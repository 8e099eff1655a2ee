"""Work shared out over devices, in processes of their own that have more than one."""

import subprocess
import sys

import jax
import numpy as np

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.devices import filled, map_over_devices, one_ahead, rounded_up
from dlf_dynamics.cli import main

THREE = """
import jax
jax.config.update("jax_num_cpu_devices", 3)
import jax.numpy as jnp
from dlf_dynamics import resultfile
from dlf_dynamics.analysis.devices import map_over_devices, rounded_up

@jax.jit
def collatz(numbers, step):
    # While loops of different lengths, and a value that is closed over.
    def steps(n):
        odd = lambda n: jnp.where(n % 2, 3 * n + step, n // 2)
        return jax.lax.while_loop(lambda c: c[0] != 1, lambda c: (odd(c[0]), c[1] + 1), (n, 0))[1]
    return map_over_devices(steps, numbers)

found = collatz(jnp.array([1, 2, 3, 7, 27, 6]), jnp.int32(1))
assert found.tolist() == [0, 1, 7, 16, 111, 8], found
assert len(found.sharding.device_set) == 3
assert [rounded_up(n) for n in (1, 3, 4)] == [3, 3, 6]
try:
    collatz(jnp.arange(1, 5), jnp.int32(1))
except ValueError:
    raise SystemExit(7)
"""


def test_three_devices_take_a_third_each_and_refuse_what_they_cannot_share():
    # The number of steps of the Collatz problem is known for every number.
    assert subprocess.run([sys.executable, "-c", THREE], timeout=100, check=False).returncode == 7


def test_on_one_device_it_is_a_map():
    numbers = np.arange(5.0)
    found = jax.jit(lambda batch: map_over_devices(lambda x: x**2, batch))(numbers)
    np.testing.assert_array_equal(found, numbers**2)
    assert rounded_up(7) == 7


def test_the_number_of_cores_does_not_change_a_bit(tmp_path):
    run = tmp_path / "run.h5"
    small = ["--model.widths", "5", "--checkpoint-every", "9", "--schedule.period", "50"]
    main(["train", "--steps", "80", *small, "-o", str(run), "--quiet"])
    contents = []
    for threads in ("1", "3"):
        output = tmp_path / f"{threads}.h5"
        call = ["spectrum", str(run), "--threads", threads, "-o", str(output), "--density"]
        program = [sys.executable, "-m", "dlf_dynamics.cli", *call, "--no-figures", "--quiet"]
        subprocess.run(program, check=True, timeout=200, stdout=subprocess.DEVNULL)
        contents.append(resultfile.read(output, "spectrum", None))
    one, three = contents
    assert one.config == three.config
    assert len(one.arrays) > 40
    for name, array in one.arrays.items():
        assert np.asarray(array).tobytes() == np.asarray(three.arrays[name]).tobytes(), name


def test_items_come_one_after_the_next_was_begun_and_lists_are_filled_up():
    begun = []

    def begin():
        for i in range(3):
            begun.append(i)
            yield i

    seen = [(item, len(begun)) for item in one_ahead(begin())]
    assert seen == [(0, 2), (1, 3), (2, 3)]
    assert list(one_ahead([])) == []
    assert filled([4, 5], 4) == [4, 5, 5, 5]
