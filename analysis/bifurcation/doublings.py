"""`period_doublings`: the branches that begin at flips, and at the flips of those."""

from __future__ import annotations

from typing import Any

from dlf_dynamics.analysis.bifurcation.continuation import Branch, continue_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.switching import switch_branch


def period_doublings(
    map_: Map, branch: Branch, *, until: tuple[float, float], depth: int = 2, **options: Any
) -> list[Branch]:
    """A branch and those of twice its period that begin at its flips, and so on.

    A flip from which no doubled cycle was found starts no branch, but is still marked on the branch
    that it belongs to.

    Args:
        map_: the map.
        branch: cycles of any period.
        until: lowest and highest parameter of interest.
        depth: largest number of doublings of the period.
        options: further options of `continue_cycle`.

    Returns:
        The branch itself first, then those that begin at its flips in their order, each followed by
        its own doubled branches.

    Raises:
        ValueError: as in `continue_cycle`.

    >>> import jax, numpy as np
    >>> jax.config.update("jax_enable_x64", True)
    >>> well = Map(lambda x, rate: x - rate * x * (x**2 - 1))  # gradient descent on (x² - 1)²/4
    >>> minimum = continue_cycle(well, np.array([1.0]), 0.9, 1, until=(0.9, 1.25))
    >>> branches = period_doublings(well, minimum, until=(0.9, 1.25))
    >>> [(one.points.shape[1], round(one.bifurcations[-1].parameter, 6)) for one in branches[:2]]
    [(1, 1.0), (2, 1.236068)]
    """
    branches = [branch]
    if depth < 1:
        return branches
    for flip in branch.bifurcations:
        if flip.kind != "flip" or not flip.converged:
            continue
        doubled = switch_branch(map_, flip)
        if not doubled.converged or not until[0] <= doubled.parameter <= until[1]:
            continue
        following = continue_cycle(map_, doubled, until=until, **options)
        branches += period_doublings(map_, following, until=until, depth=depth - 1, **options)
    return branches
