"""`Curvature`: a symmetric operator of a run, as one hashable choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dlf_dynamics.analysis.devices import SharedProblem, mesh
from dlf_dynamics.analysis.linalg.eigensolver import PASS_SIZE
from dlf_dynamics.analysis.stability.changed import (
    deciding,
    unlike_counted,
    unlike_own,
)
from dlf_dynamics.analysis.stability.linearised import counts_updates
from dlf_dynamics.analysis.stability.threshold import Threshold, threshold_of
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.memory import memory_limit
from dlf_dynamics.microbatches import choose_batch_size
from dlf_dynamics.operators import (
    Matvec,
    block,
    block_indices,
    ggn,
    gradient,
    hessian,
    preconditioned,
    remainder,
)
from dlf_dynamics.optimizers import NO_OPTIMIZER, FlatUpdate, Unmade, preconditioner
from dlf_dynamics.problem import Problem
from dlf_dynamics.recorded import RecordedRun
from dlf_dynamics.run import Run

_OPERATORS = {"hessian": hessian, "ggn": ggn, "remainder": remainder}


def run_threshold(run: Run) -> Threshold:
    """The threshold of a run's optimizer, or why the run's spectrum has none."""
    dynamics = run.dynamics
    if dynamics.optimizer is NO_OPTIMIZER:
        reason = "the run was recorded without its optimizer"
        return Threshold(dynamics.optimizer, run.optimizer_name, reason=reason)
    flat = jax.ShapeDtypeStruct((run.num_params,), run.dtype)
    layout = Layout.of(flat) if dynamics.layout is None else dynamics.layout
    rule, known = dynamics.optimizer, True
    if isinstance(rule, Unmade):
        rule, known = rule.rule, rule.stateful
    threshold = threshold_of(
        FlatUpdate(rule, layout),
        run.optimizer_name,
        batch_size=dynamics.batch_size,
        precision=dynamics.precision,
    )
    if threshold.reason and not threshold.of_full_batch:
        return threshold
    reason = _unlike(run, rule) if known else _unrecorded(rule, adaptive=threshold.preconditioned)
    return replace(threshold, preconditioned=False, reason=reason) if reason else threshold


def _unrecorded(rule: optax.GradientTransformation, *, adaptive: bool) -> str:
    """What the threshold needs of a state that was not recorded, in words; empty for nothing."""
    if adaptive:
        return "the preconditioner is made of the optimizer's state, which was not recorded"
    if names := deciding(rule):
        return (
            f"{' and '.join(names)} may change in the optimizer's state, which was not recorded; "
            "expected an optimizer without optax.inject_hyperparams, or its state"
        )
    return ""


def _unlike(run: Run, rule: optax.GradientTransformation) -> str:
    """How recorded states differ from those that the threshold assumes, in words; empty if not."""
    if not isinstance(
        run, RecordedRun
    ):  # the state of a trained run is changed by its updates alone
        return ""
    steps = run.recorded_steps
    if not counts_updates(rule) and not deciding(rule, tuple(steps.tolist())):
        return ""  # no states need be read
    numbers = run.optimizer_numbers
    told = unlike_own(rule, numbers.own, numbers.hyperparameters, steps)
    return told or unlike_counted(rule, numbers.counts, steps)


@dataclass(frozen=True)
class Curvature:
    """An operator at any state of a run: called with one, it gives its products.

    For an adaptive optimizer it is P^-1/2 A P^-1/2, with P the preconditioner of the next update,
    because the optimizer's threshold applies to that.

    Attributes:
        preconditioned: whether the operator includes the optimizer's preconditioner.
        operator: `hessian`, `ggn` or `remainder` (the Hessian minus the GGN).
        static: whether the loss is the static one instead of that of the step.
        class_label: class whose part of the loss is taken; none takes the whole.
        span: first position of a block of parameters and the position after it; none takes all.
        batch_size: examples that go through the network at a time; none takes all at once.
    """

    preconditioned: bool = False
    operator: str = "hessian"
    static: bool = False
    class_label: int | None = None
    span: tuple[int, int] | None = None
    batch_size: int | None = None

    @classmethod
    def from_config(cls, run: Run, config: SpectrumConfig) -> Curvature:
        """The operator that the configuration describes.

        Raises:
            ConfigError: for a class or a block of parameters that the run does not have.
        """
        classes = run.num_classes
        if config.class_label is not None and not 0 <= config.class_label < classes:
            raise ConfigError(
                f"class_label is {config.class_label}; expected 0 to {classes - 1}, or none"
            )
        span = None
        if config.block:
            indices = block_indices(run.unravel(np.zeros(run.num_params)), config.block)
            # The leaves of a branch of a pytree are neighbours in the flat vector.
            span = (int(indices[0]), int(indices[-1]) + 1)
        curvature = cls(
            run_threshold(run).preconditioned,
            config.operator,
            config.static,
            config.class_label,
            span,
            config.batch_size,
        )
        return curvature._within(run, config) if config.batch_size is None else curvature

    def _within(self, run: Run, config: SpectrumConfig) -> Curvature:
        """The same with as many examples at a time as memory holds."""
        # A certificate in float64 takes twice the memory of a product in float32.
        doubled = config.certificate == "float64" and run.dtype != "float64"
        problem, several = self._chosen(run.dynamics.problem), mesh()
        if several is not None and self.size(run.num_params) > PASS_SIZE:
            count = -(-problem.num_examples // several.size)  # on each device
            problem = problem.take(jnp.arange(count))
        size = choose_batch_size(
            _OPERATORS[self.operator],
            problem,
            run.num_params,
            run.dtype,
            memory_limit(config.max_memory),
            count=config.k * (2 if config.which == "both" else 1),
            scale=2 if doubled else 1,
        )
        return replace(self, batch_size=size)

    @property
    def has_threshold(self) -> bool:
        """Whether the optimizer's threshold applies to its largest eigenvalue."""
        parts = self.class_label is not None or self.span is not None
        return self.operator == "hessian" and not self.static and not parts

    def size(self, num_params: int) -> int:
        """Order of the operator in a network of so many parameters."""
        return num_params if self.span is None else self.span[1] - self.span[0]

    def __str__(self) -> str:
        name = {"hessian": "Hessian", "ggn": "GGN", "remainder": "Hessian less GGN"}[self.operator]
        words = f"{'preconditioned ' if self.preconditioned else ''}{name} of the "
        words += f"{'static' if self.static else 'weighted'} loss"
        if self.class_label is not None:
            words += f", part of class {self.class_label}"
        if self.span is not None:
            words += f", parameters {self.span[0]} to {self.span[1] - 1}"
        return words

    def __call__(
        self,
        dynamics: Dynamics,
        state: State,
        params: Float[Array, " params"],
        shared: SharedProblem | None = None,
    ) -> Matvec:
        """Products with the operator at `params`, with the loss and the preconditioner of `state`.

        Args:
            dynamics: problem and update rule of the run.
            state: state of the run before the update of a step.
            params: parameters at which the operator is taken.
            shared: the problem of the dynamics with its examples on several devices; none where
                there is one device.
        """
        matvec: Matvec
        if shared is None:
            matvec = self._made(dynamics.problem, params, state.step)
        else:
            matvec = partial(shared.product, self._made, (params, state.step))
        if self.preconditioned:
            updated = dynamics.problem_at(state.step)
            grad = gradient(updated, state.params, state.step, batch_size=self.batch_size)
            scale = preconditioner(dynamics.update, state.optimizer_state, grad)
            matvec = preconditioned(matvec, scale)
        if self.span is None:
            return matvec
        return block(matvec, jnp.arange(*self.span), params.size)

    def _made(self, problem: Problem, params: Array, step: Array) -> Matvec:
        make = _OPERATORS[self.operator]
        return make(self._chosen(problem), params, step, batch_size=self.batch_size)

    def _chosen(self, problem: Problem) -> Problem:
        """The problem whose curvature is taken."""
        problem = problem.static() if self.static else problem
        return problem if self.class_label is None else problem.of_class(self.class_label)
