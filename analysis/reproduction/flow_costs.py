"""What a substep of the central flow costs, in time and in products."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from dlf_dynamics.analysis.flow.measured import measured
from dlf_dynamics.analysis.reproduction.edge_runs import EdgeRun
from dlf_dynamics.analysis.reproduction.task import Task
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.theories.central_flow import CERTIFY_EVERY, flow_points
from dlf_dynamics.analysis.theories.rules import averaged
from dlf_dynamics.config import FlowConfig
from dlf_dynamics.problem import Problem
from dlf_dynamics.spans import span_of

_BEFORE, _GRADIENTS = 2, 20
"""Certified solves before the clock starts, so that all is compiled; gradients that are timed."""


@dataclass(frozen=True)
class FlowCost:
    """Cost of a substep, averaged over steps with a certified solve among them.

    Attributes:
        seconds: seconds for a substep.
        gradient: seconds for one gradient of the full-batch loss.
        products: Hessian products in a substep.
        modes: number of directions that are followed.
    """

    seconds: float
    gradient: float
    products: float
    modes: int

    def __str__(self) -> str:
        directions = "1 direction" if self.modes == 1 else f"{self.modes} directions"
        return (
            f"{1000 * self.seconds:.3g} ms, as long as {self.seconds / self.gradient:.0f} "
            f"gradients; {directions}, {self.products:.3g} Hessian products"
        )


def cost_of(task: Task, subject: EdgeRun, config: FlowConfig) -> FlowCost:
    """The cost at the first start of a flow.

    Args:
        task: task that keeps the result.
        subject: the run.
        config: where the flow starts, and how it is integrated.
    """
    of = {"run": subject.run.source.run_id, "config": asdict(config)}
    cost = task.kept(f"cost-{subject.name}", of, partial(_timed, subject, config))
    return FlowCost(**cost)


def _timed(subject: EdgeRun, config: FlowConfig) -> dict[str, Any]:
    run, start = subject.run, int(span_of(config.steps, "steps")[0])
    threshold, problem = run_threshold(run), run.dynamics.problem
    (piece,) = measured(Replay(run), start, start + 1, every=None)
    centre = jax.numpy.asarray(piece.centres[0])
    steps = (_BEFORE + 1) * CERTIFY_EVERY
    points = flow_points(
        problem,
        centre,
        averaged(
            threshold.optimizer,
            range(start, start + steps + 1),
            hyperparameters=threshold.hyperparameters,
        ),
        steps,
        start=start,
        modes=config.modes,
        fraction=config.fraction,
        substeps=config.substeps,
        seed=config.seed,
    )
    for _ in islice(points, _BEFORE * CERTIFY_EVERY):
        pass
    timed = []
    seconds = _seconds(lambda: timed.extend(islice(points, CERTIFY_EVERY)))
    substeps = config.substeps * len(timed)
    return {
        "seconds": seconds / substeps,
        "gradient": _of_a_gradient(problem, centre, start),
        "products": sum(point.num_products for point in timed) / substeps,
        "modes": max(len(point.eigenvalues) for point in timed),
    }


def _of_a_gradient(problem: Problem, params: Array, step: int) -> float:
    make = lambda: _gradient(problem, params, step).block_until_ready()  # noqa: E731
    make()
    return float(np.median([_seconds(make) for _ in range(_GRADIENTS)]))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@jax.jit
def _gradient(problem: Problem, params: Array, step: int) -> Array:
    return jax.grad(problem.objective)(params, step)
