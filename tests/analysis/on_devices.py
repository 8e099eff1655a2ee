"""A program on eight devices of a CPU, for `test_devices`: prints what it found as JSON."""

import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from dlf_dynamics.adapters import from_nnx
from dlf_dynamics.analysis import devices
from dlf_dynamics.analysis.linalg import krylov
from dlf_dynamics.analysis.linalg.vectors import Form
from dlf_dynamics.analysis.spectra import solver
from dlf_dynamics.analysis.spectra.eigenvalues import hessian_spectrum
from dlf_dynamics.analysis.spectra.oneshot import sharpness, stability, top_hessian
from dlf_dynamics.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SpectrumConfig,
)
from dlf_dynamics.opening import open_run
from dlf_dynamics.problem import Problem
from dlf_dynamics.recorder import Recorder
from dlf_dynamics.training import train

WIDTHS = (8, 16, 16, 4)
SPECS = ((P(None, "model"), P("model")), (P("model", "data"), P("data")), (P("data", None), P()))


def mesh_of(count):
    """Devices in two rows."""
    some = np.array(jax.devices()[:count]).reshape(-1, 2)
    return jax.sharding.Mesh(some, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def network(count):
    """A problem with parameters and examples on so many devices."""
    rng = np.random.default_rng(0)
    params = [
        (rng.standard_normal((a, b)) / a**0.5, 0.1 * rng.standard_normal(b))
        for a, b in itertools.pairwise(WIDTHS)
    ]
    inputs, targets = rng.standard_normal((24, WIDTHS[0])), rng.integers(0, WIDTHS[-1], 24)
    place = lambda array, spec: jnp.asarray(array)  # noqa: E731
    if count > 1:
        mesh = mesh_of(count)
        place = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))  # noqa: E731
    params = [tuple(map(place, layer, specs)) for layer, specs in zip(params, SPECS, strict=True)]
    problem = Problem(
        forward,
        optax.softmax_cross_entropy_with_integer_labels,
        place(inputs, P("data")),
        place(targets, P("data")),
    )
    return problem, params


def forward(params, inputs):
    for weights, biases in params[:-1]:
        inputs = jnp.tanh(inputs @ weights + biases)
    return inputs @ params[-1][0] + params[-1][1]


def scaled(diagonal, vector):
    """Product with a diagonal matrix."""
    return jax.tree.map(jnp.multiply, diagonal, vector)


def top():
    """Eigenvalues of a network on four devices, and of its dense Hessian."""
    problem, params = network(1)
    flat, vector = problem.ravel(params)
    exact = np.linalg.eigvalsh(jax.hessian(flat.objective)(vector, 0))
    problem, params = network(4)
    found = top_hessian(problem, params, tol=1e-8)
    direction = found.direction()
    same = jax.tree.map(
        lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), params, direction
    )
    return {
        "values": found.eigenvalues.tolist(),
        "exact": exact[-1:].tolist(),
        "status": found.status,
        "norm": float(optax.tree.norm(direction)),
        "in place": jax.tree.leaves(same),
    }


def measured():
    """The one-shot functions of a network on one device, on four, on eight."""
    found = []
    for count in (1, 4, 8):
        problem, params = network(count)
        adam = optax.adam(0.1)
        judged = stability(problem, params, adam, opt_state=adam.init(params), tol=1e-8)
        values = top_hessian(problem, params, 3, tol=1e-8).eigenvalues
        in_batches = sharpness(problem, params, batch_size=8, tol=1e-8).value
        found.append([*values, in_batches, judged.value, judged.threshold])
    return found


def flax_model():
    """A Flax network, its parameters laid on four devices by its user."""
    model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), jnp.tanh)
    apply, params = from_nnx(model)
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((12, 8)), jnp.float32)
    problem = Problem(apply, lambda o, t: jnp.sum((o - 1) ** 2, -1), inputs, jnp.zeros(12))
    alone = sharpness(problem, params)
    where = NamedSharding(mesh_of(4), P())
    last = NamedSharding(mesh_of(4), P("model"))
    laid = jax.tree.map(lambda x: jax.device_put(x, last if x.ndim == 1 else where), params)
    return [alone.value, sharpness(problem, laid).value, alone.interval[1] - alone.interval[0]]


def exchanges():
    """Collective operations of a step of the search whose product needs none."""
    _, params = network(8)
    form = Form.like(params)
    basis = krylov._blank(form, 21)
    operator = Partial(lambda a: a, Partial(scaled, params))
    lowered = krylov._extended.lower(operator, basis, 0, 5, jnp.zeros(()), form=form)
    found = re.findall(r" ([a-z-]+)\(", lowered.compile().as_text())
    names = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {name: found.count(name) for name in names}


def memory():
    """Bytes of a device for a step of the search in a flat space, on one, four, eight devices."""
    taken = {}
    for count in (1, 4, 8):
        some = np.array(jax.devices()[:count])
        mesh = jax.sharding.Mesh(some, ("devices",)) if count > 1 else None
        form = Form.flat(100_000, float, mesh)
        basis = krylov._blank(form, 21)
        operator = Partial(lambda: lambda vector: vector * jnp.arange(vector.size))
        program = krylov._extended.lower(operator, basis, 0, 5, jnp.zeros(()), form=form)
        told = program.compile().memory_analysis()
        assert told is not None
        shard = basis.addressable_shards[0].data.nbytes
        taken[count] = [shard, told.argument_size_in_bytes + told.temp_size_in_bytes]
    return taken


def along_runs(folder):
    """Eigenvalues of runs on one device and on eight, the network counting as large."""
    solver.PASS_SIZE = 0
    config = RunConfig(
        data=DataConfig(name="blobs", points_per_class=9),  # 27 examples
        model=ModelConfig(widths=(5,), activation="tanh", init="glorot-normal"),
        schedule=ScheduleConfig(amplitude=10.0, period=20),
        optimizer=OptimizerConfig(learning_rate=0.3),
        steps=20,
        checkpoint_every=10,
    )
    adam = replace(config, dtype="float32", optimizer=OptimizerConfig("adam", learning_rate=0.01))
    settings = SpectrumConfig(k=2, max_matvecs=90)
    chosen = ((config, settings), (adam, replace(settings, certificate="float32")))
    chosen = (*chosen, (config, replace(settings, operator="ggn", class_label=1, batch_size=2)))
    found = []
    for place, (run_config, how) in enumerate(chosen):
        run = train(run_config, folder / f"{place}.h5")
        everywhere = hessian_spectrum(run, config=how).iterate
        usual, solver.mesh = solver.mesh, lambda: None
        alone = hessian_spectrum(run, config=how).iterate
        solver.mesh = usual
        pair = (alone, everywhere)
        found.append([[p.eigenvalues.tolist(), p.status.tolist()] for p in pair])
    return found


def recorded(folder):
    """Parameters of a loop on four devices, as the run file has them."""
    problem, params = network(4)
    with Recorder(folder / "own.h5", problem, optimizer=optax.sgd(0.1)) as recorder:
        recorder.record(0, params, optax.sgd(0.1).init(params))
    run = open_run(folder / "own.h5", (problem, optax.sgd(0.1), params))
    value = np.array(list(run.parameters()))[0]
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(network(1)[1])])
    return bool(np.array_equal(value, flat))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    folder = Path(sys.argv[1])
    parts = {
        "devices": lambda: getattr(devices.mesh(), "size", 1),
        "top": top,
        "exchanges": exchanges,
        "memory": memory,
        "measured": measured,
        "flax": flax_model,
        "runs": lambda: along_runs(folder),
        "recorded": lambda: recorded(folder),
    }
    print(json.dumps({name: parts[name]() for name in sys.argv[2:]}))
