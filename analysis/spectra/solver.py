"""`Solver`: what is computed at each checkpoint, and how, as one hashable choice."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from dlf_dynamics.analysis.devices import mesh, rounded_up
from dlf_dynamics.analysis.linalg.chain import Goal
from dlf_dynamics.analysis.linalg.eigensolver import PASS_SIZE, Plan, make_ends
from dlf_dynamics.analysis.linalg.ritz import Ends
from dlf_dynamics.analysis.spectra.curvature import Curvature
from dlf_dynamics.analysis.spectra.float64 import computes_in_float64
from dlf_dynamics.analysis.spectra.points import POINTS
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.run import Run

MOST = 64
"""Largest k to which the search for all eigenvalues above a fraction of the threshold grows."""

_STREAM = 1729
"""Folded into the keys of an analysis, so that they differ from those of the run."""

_SEGMENT_WORK = 10**8
"""Checkpoints times examples times parameters in a segment, roughly: some seconds of work."""

_SEGMENTS = 10, 400
"""Least and largest number of checkpoints in a segment."""

_CHUNK = 25
"""Checkpoints that go through a device in one call of the compiled pass."""


class Solver(NamedTuple):
    """Settings that are the same for all checkpoints, hashable for `jax.jit`.

    Attributes:
        curvature: the operator.
        size: order of the operator.
        goal: how many eigenvalues, how precisely, how certain.
        max_matvecs: products per checkpoint and point at most.
        seed: seed of the random directions.
        segment_length: checkpoints in a segment.
        tracked: whether each checkpoint starts from the one before, without a chain.
        precise: whether eigenvalues and residuals are computed in float64, whatever the run's type.
    """

    curvature: Curvature
    size: int
    goal: Goal
    max_matvecs: int
    seed: int
    segment_length: int
    tracked: bool = False
    precise: bool = True

    @classmethod
    def from_config(cls, run: Run, config: SpectrumConfig) -> Solver:
        """The solver of a configuration, with `k`, `tol` and products for the run."""
        curvature = Curvature.from_config(run, config)
        size = curvature.size(run.num_params)
        ends = make_ends(min(config.k, size), size, config.which)
        tol = config.tol or (1e-6 if run.dtype == "float64" else 1e-3)
        goal = Goal(
            ends, tol, config.failure_probability, config.rank_tolerance, not config.unranked
        )
        work = max(run.problem.num_examples, 1) * run.num_params
        length = int(np.clip(_SEGMENT_WORK // work, *_SEGMENTS))
        precise = config.certificate == "float64" and computes_in_float64(run, curvature)
        most, seed, tracked = config.max_matvecs, config.seed, config.tracked
        return cls(curvature, size, goal, most, seed, length, tracked, precise)

    @property
    def ends(self) -> Ends:
        """Number of eigenvalues at each end."""
        return self.goal.ends

    @property
    def small(self) -> bool:
        """Whether products are so cheap that all can be made in float64."""
        return self.size <= PASS_SIZE

    @property
    def one_pass(self) -> bool:
        """Whether many checkpoints go through one compiled pass."""
        return self.small and not self.tracked

    @property
    def mesh(self) -> Mesh | None:
        """Devices that share the work at one checkpoint; none where one device does it."""
        return None if self.small else mesh()

    def chunk(self, num_points: int) -> int:
        """Checkpoints that go through the compiled pass in one call, with this many points each."""
        both = rounded_up(min(_CHUNK * jax.local_device_count(), self.segment_length))
        return both * len(POINTS) // num_points  # the same compilation whatever the points

    def dtype(self, run: Run) -> np.dtype:
        """Type of eigenvalues and residuals."""
        return np.dtype(float if self.precise else run.dtype)

    def plan(self, run: Run) -> Plan:
        """Plan of the compiled pass."""
        return Plan.of(self.size, self.goal, self.max_matvecs, self.dtype(run))

    def tightened(self, run: Run) -> Solver:
        """The solver at the precision of the numbers, for intervals that hold the threshold."""
        goal = self.goal.tightened(run.dtype)
        goal = goal._replace(tol=min(self.goal.tol, goal.tol))
        return self._replace(goal=goal, max_matvecs=4 * self.max_matvecs)

    def telling(self, threshold: float) -> Solver:
        """The solver that decides on which side of a threshold the largest eigenvalue is."""
        return self._replace(goal=self.goal._replace(threshold=threshold))

    def doubled(self) -> Solver:
        """The solver for twice as many of the largest eigenvalues, up to `MOST`, and products."""
        k = min(2 * self.ends.top, MOST, self.size)
        products = -(-self.max_matvecs * k // self.ends.top)
        return self._replace(goal=self.goal._replace(ends=Ends(k, 0)), max_matvecs=products)

    @property
    def root(self) -> PRNGKeyArray:
        """Key of all random directions."""
        return jax.random.key(self.seed)


@jax.jit
def key_at(root: PRNGKeyArray, step: Any, point: Any) -> PRNGKeyArray:
    """Key of the random directions at a step and point, which only analyses use."""
    # A loop, as each of the three folds would take as long to compile as half a product.
    numbers = jnp.stack([jnp.asarray(n, jnp.uint32) for n in (_STREAM, step, point)])
    fold = lambda key, number: (jax.random.fold_in(key, number), None)  # noqa: E731
    return jax.lax.scan(fold, root, numbers)[0]
