"""Draws the figures in docs/figures again: `make figures`. Takes some ten minutes on two cores."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent / "figures"

COMMANDS = (
    "train -o headline.h5",
    "spectrum headline.h5 --density",
    "train --model.activation tanh --steps 15000 -o tanh.h5",
    "bifurcations tanh.h5 --diagrams 9500",
)

FIGURES = {
    "headline": "headline",
    "headline.bifurcation": "headline.bifurcation",
    "headline.density": "density",
    "tanh.instabilities": "instabilities",
    "tanh.diagrams": "diagrams",
}
"""Names of the figures that the commands draw, and those in the folder."""

LARGEST = 500_000
"""Bytes of a file; larger ones get a palette of 256 colours."""


def shrink(content: bytes) -> bytes:
    """The same picture in at most `LARGEST` bytes, or in a palette."""
    if len(content) <= LARGEST:
        return content
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def main() -> None:
    """Runs the commands in a folder of their own, then replaces the figures."""
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            program = [sys.executable, "-m", "dlf_dynamics.cli", *command.split()]
            subprocess.run(program, cwd=folder, check=True)
        for drawn, kept in FIGURES.items():
            (HERE / f"{kept}.png").write_bytes(shrink(Path(folder, f"{drawn}.png").read_bytes()))


if __name__ == "__main__":
    main()
