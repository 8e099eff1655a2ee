"""`Published`: a number or statement to compare with, and how it is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np

PAPER = (
    "M. Ruiz-Garcia, G. Zhang, S. S. Schoenholz, A. J. Liu, *Tilting the playing field: Dynamical "
    "loss functions for machine learning*, ICML 2021, "
    "[arXiv 2102.03793](https://arxiv.org/abs/2102.03793)."
)
"""Source of most pages."""

Numbers = float | Sequence[float] | np.ndarray
"""One number, or several that belong together."""

KnownBy = Literal["text", "program", "digitised", "inferred", "port", "theorem"]

KNOWN_BY: Mapping[KnownBy, str] = {
    "text": "said in the abstract of the paper or in the description of the authors' repository; "
    "we had no access to the rest of the text.",
    "program": "computed by the authors' own program, which we ran unchanged but for one default "
    "that a library changed after the paper (`data/README.md`).",
    "digitised": "read by hand from the published picture, to about 20 steps and 3 % of a value.",
    "inferred": "inferred by us, from a script or from what others write about the paper; it "
    "stands in no text of the authors that we have read.",
    "port": "not published: computed by us, apart from this package, with a port of the authors' "
    "program.",
    "theorem": "proved in the paper, for the linearised updates.",
}
"""Meaning of the words behind published numbers."""

_PICTURE_STEPS, _PICTURE_VALUES = 20.0, 0.03
"""Reading errors of a step and, relative, of a value in a published figure."""


@dataclass(frozen=True)
class Published:
    """A number, several numbers or a statement from the literature.

    Attributes:
        value: the numbers, or the statement in words, which has no error.
        known_by: how we know it, a word of KNOWN_BY.
        error: error of the numbers.
        relative: whether the error, and so the difference from the measured number, is relative.
        form: format specification for the numbers.
    """

    value: float | tuple[float, ...] | str
    known_by: KnownBy
    error: float = 0.0
    relative: bool = False
    form: str = ".4g"

    @property
    def told(self) -> str:
        """The value with its error, and how it is known."""
        if isinstance(self.value, str):
            return f"{self.value} ({self.known_by})"
        error = f"{100 * self.error:g} %" if self.relative else f"{self.error:g}"
        told = self.written(self.value) + (f" ± {error}" if self.error else "")
        return f"{told} ({self.known_by})"

    def written(self, value: Numbers) -> str:
        """Numbers in the form of the published ones."""
        return "; ".join(format(each, self.form) for each in np.atleast_1d(value))

    def difference(self, measured: Numbers) -> str:
        """Measured minus published, relative where the error is relative."""
        assert not isinstance(self.value, str)
        published = np.atleast_1d(self.value)
        apart = np.atleast_1d(measured) - published
        if self.relative:
            return "; ".join(f"{100 * each:+.1f} %" for each in apart / published)
        form = "+.2g" if self.form.endswith("g") else f"+{self.form}"
        return "; ".join(format(each, form) for each in apart)


def digitised(value: float | Sequence[float], *, steps: bool = False) -> Published:
    """Numbers that were read from a published figure, with the reading error.

    Args:
        value: the numbers as read.
        steps: whether they are steps.

    >>> digitised([4203, 5083], steps=True).told
    '4,203; 5,083 ± 20 (digitised)'
    >>> digitised(0.133).difference(0.131)
    '-1.5 %'
    """
    value = tuple(value) if isinstance(value, Sequence) else value
    if steps:
        return Published(value, "digitised", _PICTURE_STEPS, form=",.0f")
    return Published(value, "digitised", _PICTURE_VALUES, relative=True)


def authors_program() -> dict[str, np.ndarray]:
    """What the authors' own program computes in its first 6,000 updates of Fig. 4.

    `data/README.md` says how it was run. The arrays `loss`, `accuracy` and `ntk_max` have one
    number for each update; `hessian_eigenvalues` has three for each of `hessian_step`. Index i is
    the state *after* update i + 1, with the weights of the step that follows: step i + 1 here.
    """
    file = resources.files("dlf_dynamics.data").joinpath("authors_program_fig4.npz")
    with file.open("rb") as opened, np.load(opened) as arrays:
        return dict(arrays)


def published_figure(name: Literal["fig4", "fig4_updated"]) -> dict[str, Any]:
    """Numbers that were read by hand from a published figure, by their names."""
    file = resources.files("dlf_dynamics.data").joinpath("published_figures.json")
    return json.loads(file.read_text("utf-8"))[name]
