"""Options of the command line: finds the command, and tells what is wrong with them in a line."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import make_dataclass
from typing import Annotated, Any

import tyro

from dlf_dynamics.commands import COMMANDS, command_named
from dlf_dynamics.errors import UserError, shortened


def parse(arguments: list[str]) -> Any:
    """The command with its options; tyro's boxed complaints become one line.

    Raises:
        UserError: for options that cannot be parsed.
    """
    if _completes(arguments) and arguments[1:2] not in (["bash"], ["zsh"]):
        found = shortened(" ".join(arguments[1:2]) or "no shell", 80)
        raise UserError(f"{arguments[0]} was given {found}; expected bash or zsh")
    if arguments[:1] != ["train"]:
        return _parsed(arguments)
    from dlf_dynamics.commands.training import Train
    from dlf_dynamics.configfile import unchecked
    from dlf_dynamics.presets import PRESETS

    # What options override is itself told by options: they are parsed for that first.
    command = _parsed(arguments, Train(run=unchecked(PRESETS["published"])))
    return _parsed(arguments, Train(run=command.base()))


def _parsed(arguments: list[str], default: Any = None) -> Any:
    """The command with its options, which override those of `default`."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return _parsed_by_tyro(arguments, default)
    except SystemExit as stop:
        if not stop.code:
            raise
    # Once more without line breaks, of which some would be in the middle of a name.
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint), columns(10_000), contextlib.suppress(SystemExit):
        _parsed_by_tyro(arguments, default)
    raise UserError(_one_line(complaint.getvalue(), arguments[0] if arguments else ""))


def _parsed_by_tyro(arguments: list[str], default: Any) -> Any:
    kinds: Any = None
    for name in COMMANDS:
        # Of the others only the names count, and what they do; to read their options takes longer.
        chosen = _completes(arguments) or name in arguments[:1]
        command = command_named(name) if chosen else _named(name)
        options = {"default": default} if chosen and default is not None else {}
        kind = Annotated[command, tyro.conf.subcommand(name, **options)]
        kinds = kind if kinds is None else kinds | kind
    return tyro.cli(
        kinds,
        args=arguments,
        prog="dlf-dynamics",
        description="Neural-network training as a dynamical system: train with dynamical "
        "loss functions, then compute spectra, thresholds and bifurcations along the run. "
        "`dlf-dynamics COMMAND --help` explains each command.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _completes(arguments: list[str]) -> bool:
    """Whether a script for completion in a shell is asked for, which needs the options of all."""
    return bool(arguments) and arguments[0].startswith("--tyro-")


def _named(name: str) -> type:
    """In the place of a command, a class that has its description alone."""
    command = make_dataclass(name, [])
    command.__doc__ = COMMANDS[name].about
    return command


@contextlib.contextmanager
def columns(width: int) -> Iterator[None]:
    """Lets the terminal seem to be this wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(complaint: str, command: str) -> str:
    """What tyro complains of, and the options of this command that are closest to it."""
    lines = [line.strip("╭╮╰╯│ ") for line in complaint.splitlines()[1:]]
    ruled = re.sub(r"\0?[─-]{9,}\0", "\f", "\0".join(lines)).strip("\f")
    paragraphs = [part.split("\0") for part in ruled.split("\f")]
    body = " ".join(line for line in paragraphs[0] if line)
    body = re.sub(r"^Unrecognized or misplaced options: (.*?) Arguments are .*", _misplaced, body)
    suggested = [part for part in paragraphs if part[0].startswith("Perhaps you meant")]
    close = _closest(body, suggested[0][1:], command) if suggested else []
    told = f"{body.rstrip('. ')}; did you mean {' or '.join(close)}?" if close else body
    for part in paragraphs:
        if part[0].startswith("Available subcommands: "):
            told += f"; commands: {part[0].partition(': ')[2]}"
    told = shortened(told.rstrip(". "), 500)
    return f"{told or 'the options could not be read'} (see --help)"


def _misplaced(found: re.Match[str]) -> str:
    return "Unrecognized options: " + ", ".join(re.split(r" \(applied to [^)]*\) ?", found[1])[:-1])


def _closest(body: str, suggestions: list[str], command: str) -> list[str]:
    """Options of the command by the name that was typed, its group left out; else the first one."""
    options: list[str] = []
    name = ""
    for line in suggestions:
        if line.startswith("-"):
            name = re.findall(r"--[\w.-]+", line)[0]
        elif line == f"in dlf-dynamics {command} --help":
            options.append(name)
    typed = re.search(r"--([\w.-]+)", body)
    same = [o for o in options if typed and o.lstrip("-").rpartition(".")[2] == typed[1]]
    return same or options[:1]
