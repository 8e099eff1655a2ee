"""What importing 100 checkpoints of 1,006,910 parameters costs, against reading them.

Files that were just written lie in the memory of the system, from which they are read at a few
gigabytes a second, and the run file has to be written, with a checksum for each row. So the import
of files that are no more than their numbers is held against a copy of them that does that alone.
"""

from __future__ import annotations

import itertools
import statistics
import time
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from dlf_dynamics import Problem, import_checkpoints
from dlf_dynamics.checkpoint_files import find_checkpoints, read_checkpoint
from dlf_dynamics.leaves import leaves_of
from dlf_dynamics.losses import cross_entropy

COUNT, ROUNDS = 100, 3
WIDTHS = (784, 900, 330, 10)
LIMITS = {"npz": 1.8, "safetensors": 1.8, "orbax": 1.5}


def make(seed):
    drawn = np.random.default_rng(seed)
    return {
        f"layer{number}": {
            "kernel": drawn.standard_normal(shape).astype(np.float32) / shape[0] ** 0.5,
            "bias": np.zeros(shape[1], np.float32),
        }
        for number, shape in enumerate(itertools.pairwise(WIDTHS))
    }


def apply(params, inputs):
    for layer in list(params.values())[:-1]:
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"])
    last = list(params.values())[-1]
    return inputs @ last["kernel"] + last["bias"]


def write(kind, folder, step, params):
    flat = {f"{a}.{b}": leaf for a, part in params.items() for b, leaf in part.items()}
    if kind == "npz":
        np.savez(folder / f"step_{step}.npz", **flat)
    elif kind == "safetensors":
        save_file(flat, folder / f"step_{step}.safetensors")
    else:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
            writer.save(folder / f"{step}", args=ocp.args.PyTreeSave(params))


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("kind", LIMITS)
def test_importing(kind, benchmark, tmp_path):
    inputs = jax.random.normal(jax.random.key(0), (16, WIDTHS[0]), "float32")
    setup = Problem(apply, cross_entropy, inputs, jnp.arange(16) % 10), None, make(0)
    folder = tmp_path / kind
    folder.mkdir()
    for step in range(COUNT):
        write(kind, folder, step, make(step))

    def read():
        for path in find_checkpoints([folder]):
            read_checkpoint(path)

    def copy():
        with (tmp_path / "copy").open("wb") as file:
            for path in find_checkpoints([folder]):
                for _, leaf in leaves_of(read_checkpoint(path)):
                    crc32(leaf)
                    file.write(leaf)

    def take():
        import_checkpoints([folder], setup, tmp_path / "run.h5", overwrite=True)

    take()  # the loss is compiled
    times = [[timed(work) for work in (read, copy, take)] for _ in range(ROUNDS)]
    reading, copying, taking = (statistics.median(column) for column in zip(*times, strict=True))
    against = reading if kind == "orbax" else copying
    ratio = taking / against
    print(
        f"\nimport of {COUNT} checkpoints ({kind}): {taking:.2f} s, {taking / reading:.2f} of "
        f"reading them ({reading:.2f} s), {taking / copying:.2f} of a copy with checksums"
    )
    benchmark.extra_info.update(ratio=ratio, seconds=taking, reading=reading, copying=copying)
    benchmark.pedantic(take, rounds=1)
    assert ratio <= LIMITS[kind]
