"""Redraws the figures in docs/figures: `make figures`. Takes some ten minutes on two cores.

The gallery of the documentation uses the same table, so it shows what these commands draw.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

HERE = Path(__file__).parent / "figures"

STUDY = """\
preset = "published-updated"
steps = 3000

[grid]
schedule.amplitude = [1, 10, 40, 70]
schedule.period = [50, 200, 800]
model.seed = {from = 0, to = 1}

[measures]
sharpness = true
"""
"""Content of study.toml."""


class Figure(NamedTuple):
    """A figure of the pages.

    Attributes:
        kept: its name in docs/figures.
        drawn: its name where the commands run.
        commands: the commands that draw it.
        about: what it shows.
    """

    kept: str
    drawn: str
    commands: tuple[str, ...]
    about: str


_HEADLINE = "train -o headline.h5"
_SPECTRUM = "spectrum headline.h5 --density --infinite-width"
_TANH = "train --model.activation tanh --steps 15000 -o tanh.h5"
_BIFURCATIONS = "bifurcations tanh.h5 --diagrams 9500"
_FLOW = "flow tanh.h5 --steps 9300:9900"
_PAPER = (
    "plot headline.h5 -o paper.png --width 3.4in --panels loss,sharpness --zoom 8000:10500 "
    "--letters --no-title"
)

FIGURES = (
    Figure(
        "headline",
        "headline",
        (_HEADLINE, _SPECTRUM),
        "The published run: class weights, loss, accuracy, Hessian, NTK, realized edge, and a zoom",
    ),
    Figure(
        "headline.bifurcation",
        "headline.bifurcation",
        (_HEADLINE, _SPECTRUM),
        "Its bifurcation diagram, and its bursts one by one",
    ),
    Figure(
        "density",
        "headline.density",
        (_HEADLINE, _SPECTRUM),
        "Spectral densities of Hessian, GGN and NTK",
    ),
    Figure(
        "kernels",
        "headline.kernels",
        (_HEADLINE, _SPECTRUM),
        "The NTK along the run, and its limit at infinite width",
    ),
    Figure(
        "paper",
        "paper",
        (_HEADLINE, _SPECTRUM, _PAPER),
        "Two panels for a column of a paper, zoomed in on a burst",
    ),
    Figure(
        "instabilities",
        "tanh.instabilities",
        (_TANH, _BIFURCATIONS),
        "Instabilities of a tanh network: onset, period, size, and what theory predicts",
    ),
    Figure(
        "diagrams",
        "tanh.diagrams",
        (_TANH, _BIFURCATIONS),
        "Orbit diagrams and Lyapunov exponents with the loss frozen at a step",
    ),
    Figure(
        "flow",
        "tanh.flow",
        (_TANH, _FLOW),
        "The central flow and other theories compared with an oscillation, and where they apply",
    ),
    Figure(
        "phase-diagram",
        "study.accuracy",
        ("sweep study.toml", "plot study.h5 --format png"),
        "Phase diagram of a study over amplitude and period",
    ),
)

COMMANDS = tuple(dict.fromkeys(command for figure in FIGURES for command in figure.commands))

LARGEST = 500_000
"""Largest size of a file in bytes; larger ones are reduced to a palette of 256 colours."""


def shrink(content: bytes) -> bytes:
    """The same picture in at most `LARGEST` bytes, or in a palette."""
    if len(content) <= LARGEST:
        return content
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def gallery() -> str:
    """Markdown of all figures with the commands below each."""
    parts = []
    for figure in FIGURES:
        lines = "\n".join(f"dlf-dynamics {command}" for command in figure.commands)
        parts += [f"## {figure.about}", "", f"![{figure.about}](figures/{figure.kept}.png)", ""]
        parts += ["```sh", lines, "```", ""]
        if any("study.toml" in command for command in figure.commands):
            parts += ["where `study.toml` says", "", "```toml", STUDY.strip(), "```", ""]
    return "\n".join(parts)


def main() -> None:
    """Runs the commands in a temporary folder, then replaces the figures."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "study.toml").write_text(STUDY)
        for command in COMMANDS:
            program = [sys.executable, "-m", "dlf_dynamics.cli", *command.split()]
            subprocess.run(program, cwd=folder, check=True)
        for figure in FIGURES:
            content = Path(folder, f"{figure.drawn}.png").read_bytes()
            (HERE / f"{figure.kept}.png").write_bytes(shrink(content))


if __name__ == "__main__":
    main()
