"""What the Hessian spectrum along a run costs, against nothing but its Hessian products.

The spectrum is taken at iterate and centre of 100 checkpoints, once everything is compiled; the
products are timed one by one, each a call of one compiled function as a user would write it. The
two take turns, and the ratio is the median of the ratios of neighbours.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from dlf_dynamics import PRESETS, train
from dlf_dynamics.analysis import hessian_spectrum
from dlf_dynamics.assembly import random_stream

ROUNDS = 5
PRODUCTS = 500
LARGEST_RATIO = 1.2
MOST_PRODUCTS = 24


@jax.jit
def product(problem, params, vector, step):
    """One Hessian product, all its data as arguments."""
    return jax.jvp(lambda p: jax.grad(problem.objective)(p, step), (params,), (vector,))[1]


def product_pace(run) -> float:
    """Seconds per product."""
    with random_stream(run.config):
        problem, params = run.problem, jax.numpy.asarray(run.parameters([0])[0])
        vector = product(problem, params, params, 0).block_until_ready()
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            vector = product(problem, params, vector / 1e3, 0)
        vector.block_until_ready()
        return (time.perf_counter() - start) / PRODUCTS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("spectrum") / "run.h5"
    return train(replace(PRESETS["published"], steps=10_000), path)


def test_a_spectrum_costs_at_most_a_fifth_more_than_its_products(benchmark, run, capsys):
    checkpoints = np.arange(1, 401, 4)
    found = hessian_spectrum(run, checkpoints)
    products = int(found.iterate.num_matvecs.sum() + found.centre.num_matvecs.sum())
    singles, spectra = [], []

    def spectrum():
        start = time.perf_counter()
        hessian_spectrum(run, checkpoints)
        spectra.append(time.perf_counter() - start)

    benchmark.pedantic(
        spectrum, setup=lambda: singles.append(products * product_pace(run)), rounds=ROUNDS
    )
    ratio = statistics.median(s / p for s, p in zip(spectra, singles, strict=True))
    each = products / (2 * len(checkpoints))
    benchmark.extra_info.update(ratio=round(ratio, 3), products_per_point=round(each, 1))
    with capsys.disabled():
        print(
            f"\nspectrum / its products: {ratio:.2f} ({each:.1f} products at each point, "
            f"{1e6 * statistics.median(singles) / products:.0f} µs each alone)"
        )
    assert each <= MOST_PRODUCTS
    assert ratio <= LARGEST_RATIO
