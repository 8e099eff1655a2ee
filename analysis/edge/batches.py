"""`Batches`: how the mini-batches of a run are drawn, and which ones are analysed."""

from __future__ import annotations

from dataclasses import dataclass

from dlf_dynamics.config import EdgeConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.recorded import RecordedRun
from dlf_dynamics.run import Run

INDEPENDENT, EPOCHS, FULL, UNKNOWN = "independent", "epochs", "full batch", "unknown"
"""How the batches of a run are drawn."""


@dataclass(frozen=True)
class Batches:
    """The batches whose stability is analysed.

    Attributes:
        size: examples in each.
        num_examples: number of examples of which they are drawn.
        sampling: how the run draws its batches: `independent`, `epochs`, `full batch`, or
            `unknown` where they were recorded.
        own: whether the run's batches have that size, as far as is known.
    """

    size: int
    num_examples: int
    sampling: str
    own: bool

    @property
    def is_threshold(self) -> bool:
        """Whether the run draws them as the mean-square threshold has it, independently."""
        return self.own and (self.sampling == INDEPENDENT or self.whole)

    @property
    def whole(self) -> bool:
        """Whether each batch is of all examples, so that it does not matter how it is drawn."""
        return self.size == self.num_examples

    def __str__(self) -> str:
        if self.whole:
            return f"full batch of {self.num_examples}"
        return f"batches of {self.size} of {self.num_examples} drawn independently"

    @property
    def why_reference(self) -> str:
        """Why it is a reference and no threshold of the run; empty where it is one."""
        if self.is_threshold:
            return ""
        if not self.own:
            return f"the run has other batches; this is about {self}"
        if self.sampling == UNKNOWN:
            return "how the run's batches are drawn is not known; it holds if independently"
        return (
            "the run's batches go through the examples in shuffled epochs, which are more stable "
            "than independent draws where both are known"
        )


def batches_of(run: Run, config: EdgeConfig) -> Batches:
    """The batches of a run, or batches of another size that was requested.

    Raises:
        ConfigError: when the run has no examples, or fewer than that, or does not tell how many are
            in a batch.
    """
    number = run.problem.num_examples
    if not run.problem.has_outputs or number == 0:
        raise ConfigError(
            f"the problem of {run.path} has no examples, and batches are drawn of them; expected "
            "Problem(apply, criterion, inputs, targets)"
        )
    size, sampling = _own(run, number)
    asked = config.batch_size
    if asked is not None and asked > number:
        raise ConfigError(f"batch_size is {asked}; expected at most the {number} examples")
    if asked is None and size is None:
        raise ConfigError(
            f"{run.path} was recorded of mini-batches, and does not tell how many examples are in "
            "one; say it with `dlf-dynamics edge --batch-size`"
        )
    chosen = size if asked is None else asked
    assert chosen is not None
    return Batches(chosen, number, sampling, size is None or chosen == size)


def _own(run: Run, number: int) -> tuple[int | None, str]:
    """Examples in a batch of the run, if it tells that, and how they are drawn."""
    if isinstance(run, RecordedRun):
        return (number, FULL) if run.recording.full_batch else (None, UNKNOWN)
    if run.dynamics.batch_size is None:
        return number, FULL
    return run.dynamics.batch_size, run.dynamics.batch_sampling
