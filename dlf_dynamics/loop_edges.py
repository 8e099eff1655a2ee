"""`LoopEdges`: the realized edges of the updates of a custom training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dlf_dynamics.dynamics import EDGE
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.problem import Problem
from dlf_dynamics.realized import Edge, realized


class LoopEdges:
    """The realized edges of a loop's updates, each known once the next parameters are.

    Until then the row of its step, a named tuple with a step and scalars by name, is held back.

    Attributes:
        unknown: values of a row without an evaluated edge, by name; empty if edges are never
            evaluated.
        last: the edge that was evaluated last, and its step.
    """

    def __init__(self, problem: Problem, every: int) -> None:
        self._problem, self._every = problem, every
        self._held: tuple[Any, PyTree] | None = None
        self.unknown: dict[str, Any] = dict.fromkeys(EDGE, jnp.nan) if every else {}
        self.last = self.unknown | ({f"{EDGE[0]}_step": -1} if every else {})

    def due(self, step: int) -> bool:
        """Whether the edge of the update of a step is to be evaluated."""
        return self._every > 0 and step % self._every == 0

    def hold(self, row: Any, params: PyTree) -> None:
        """Holds the row of a step back until its edge is known."""
        self._held = row, params

    def reached(self, step: int, params: PyTree) -> Iterator[Any]:
        """The row held back, with its edge if `step` is the step after it."""
        if self._held is None:
            return
        row, before = self._held
        if row.step == step - 1:
            edge: dict[str, Any] = _edge(self._problem, before, params, row.step)._asdict()
            edge = dict(zip(EDGE, edge.values(), strict=True))
            self.last = edge | {f"{EDGE[0]}_step": row.step}
            row = row._replace(scalars={**row.scalars, **edge})
            self._held = None
            yield row
        yield from self.left()

    def left(self) -> Iterator[Any]:
        """The row held back, if no step follows it."""
        if self._held is not None:
            yield self._held[0]._replace(scalars={**self._held[0].scalars, **self.unknown})
            self._held = None


def require_edges(every: int, *, full_batch: bool) -> None:
    """Refuses to evaluate edges if the loss that the updates are made for is unknown.

    Args:
        every: steps between evaluations.
        full_batch: whether each update uses the problem's whole loss.

    Raises:
        ConfigError: when updates use another loss and `every` is not 0, or it is below 0.
    """
    if every < 0:
        raise ConfigError(f"edge_every is {every}; expected at least 0")
    if every and not full_batch:
        raise ConfigError(
            f"edge_every is {every}, and the loss of the updates is not known (full_batch is "
            "False, or there is no optimizer); expected 0: pass realized_edge and "
            "realized_edge_error to record, as realized_edge(problem.take(batch), ...) gives them"
        )


@jax.jit
def _edge(problem: Problem, before: PyTree, after: PyTree, step: Any) -> Edge:
    layout = Layout.of(before)
    params, flat = layout.flatten(before), problem.flat(layout)
    gradient = jax.grad(flat.objective)(params, step)
    return realized(flat, step, params, layout.flatten(after), gradient)
