"""The command line: finds the command, reads its options, reports the user's errors in a line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from dlf_dynamics import __version__
from dlf_dynamics.commands import COMMANDS, Train
from dlf_dynamics.commands.terminal import fail
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import load_toml, preset
from dlf_dynamics.errors import UserError
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.startup import recorded_config

USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"dlf-dynamics {__version__}")
        return 0
    try:
        return _parse(arguments).execute()
    except UserError as error:
        return fail(str(error), USER_ERROR)
    except KeyboardInterrupt:
        return fail("interrupted; run files keep what was recorded, results were not written", 130)


def _parse(arguments: list[str]) -> Any:
    """The command with its options; tyro's boxed complaints become one line.

    Raises:
        UserError: for options that cannot be parsed.
    """
    base = _base_config(arguments) if arguments[:1] == ["train"] else PRESETS["published"]
    kinds: Any = None
    for name, command in COMMANDS.items():
        options: dict[str, Any] = {"default": Train(run=base)} if command is Train else {}
        kind = Annotated[command, tyro.conf.subcommand(name, **options)]
        kinds = kind if kinds is None else kinds | kind
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kinds,
                args=arguments,
                prog="dlf-dynamics",
                description="Neural-network training as a dynamical system: train with dynamical "
                "loss functions, then compute spectra, thresholds and bifurcations along the run. "
                "`dlf-dynamics COMMAND --help` explains each command.",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(complaint.getvalue())) from None


def _base_config(arguments: list[str]) -> RunConfig:
    """What the options of `train` override: preset, CONFIG.toml, or the run to be resumed."""
    if "--resume" in arguments:
        return recorded_config(Path(_option(arguments, "-o", "--output") or "run.h5"))
    named = _option(arguments, "--preset")
    base = None if named is None else preset(named)
    files = [a for a in arguments[1:] if a.endswith(".toml")]
    if files:
        return load_toml(Path(files[0]), base)
    return base or PRESETS["published"]


def _option(arguments: list[str], *names: str) -> str | None:
    """The value of an option before the options are parsed."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            following = arguments[position + 1 : position + 2]
            return value if equals else next(iter(following), None)
    return None


def _one_line(complaint: str) -> str:
    lines = [line.strip("╭╮╰╯│─ ") for line in complaint.splitlines()]
    titled = " ".join(line for line in lines[1:] if line)
    body = re.split(r" For full helptext| Argument helptext| Perhaps you meant", titled)[0]
    meant = re.search(r"Perhaps you meant:\s*(--[\w.-]+)", titled)
    body = body.rstrip(". ")
    if meant:
        body += f"; did you mean {meant[1]}?"
    return f"{body or 'the options could not be read'} (see --help)"


if __name__ == "__main__":
    sys.exit(main())
