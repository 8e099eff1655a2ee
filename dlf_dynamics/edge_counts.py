"""`EdgeCounts`: how many steps of a run raised their own loss, by their realized edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dlf_dynamics.errors import counted


@dataclass(frozen=True)
class EdgeCounts:
    """Numbers of steps by their realized edge ζ, a property of each step, not of stability.

    Attributes:
        evaluated: steps at which ζ was evaluated.
        above: steps with ζ above 1 by more than its rounding error, where that is known: they
            raised their own loss.
        within_rounding: steps at which rounding hides on which side of 1 ζ lies.
        undefined: steps where ζ is undefined, as their update does not go downhill (-gᵀΔ ≤ 0) or
            the loss after it is not finite.
        without_error: steps whose rounding error is unknown; they are counted by ζ alone.

    >>> counts = EdgeCounts.of(np.array([0.5, 1.5, 1.1, np.nan, np.nan]),
    ...                        np.array([0.1, 0.1, 0.2, np.inf, np.nan]))
    >>> counts.evaluated, counts.above, counts.within_rounding, counts.undefined
    (4, 1, 1, 1)
    """

    evaluated: int
    above: int
    within_rounding: int
    undefined: int
    without_error: int = 0

    @classmethod
    def of(
        cls, values: Float[np.ndarray, " steps"], errors: Float[np.ndarray, " steps"]
    ) -> EdgeCounts:
        """Counts recorded steps.

        Args:
            values: ζ of each step, NaN where it is undefined or was not evaluated.
            errors: rounding error of ζ, infinite where ζ is undefined, NaN where it is unknown.
        """
        known = np.isfinite(values)
        away = np.where(known, values, 1.0) - 1.0
        sure = known & (np.abs(away) > np.nan_to_num(errors, nan=0.0, posinf=np.inf))
        return cls(
            evaluated=int(np.count_nonzero(known | np.isinf(errors))),
            above=int(np.count_nonzero(sure & (away > 0))),
            within_rounding=int(np.count_nonzero(known & ~sure)),
            undefined=int(np.count_nonzero(~known & np.isinf(errors))),
            without_error=int(np.count_nonzero(known & np.isnan(errors))),
        )

    @property
    def share_above(self) -> float:
        """Fraction of the evaluated steps with ζ above 1; NaN if none was evaluated."""
        return self.above / self.evaluated if self.evaluated else float("nan")

    def __str__(self) -> str:
        """The counts in one line; empty if no step was evaluated."""
        if not self.evaluated:
            return ""
        line = (
            f"realized edge above 1 at {self.above:,} of {counted(self.evaluated, 'step')} looked "
            f"at ({self.share_above:.1%})"
        )
        for count, what in (
            (self.within_rounding, "within rounding of 1"),
            (self.undefined, "undefined"),
            (self.without_error, "what rounding can do not known"),
        ):
            line += f", {what} at {count:,}" if count else ""
        return line
