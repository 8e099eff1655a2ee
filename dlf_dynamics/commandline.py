"""Parses the command line: finds the command, and reports errors in one line."""

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
    """The command with its options; tyro's boxed error messages become one line.

    Raises:
        UserError: for options that cannot be parsed.
    """
    if _completes(arguments) and arguments[1:2] not in (["bash"], ["zsh"]):
        given = shortened(" ".join(arguments[1:2]) or "no shell", 80)
        raise UserError(f"{arguments[0]} was given {given}; expected bash or zsh")
    if arguments[:1] != ["train"]:
        return _parsed(arguments)
    from dlf_dynamics.commands.training import Train
    from dlf_dynamics.configfile import unchecked
    from dlf_dynamics.presets import PRESETS

    # Options also select the configuration that they override, so they are parsed twice.
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
    # Once more on a wide terminal, as line breaks could split a name.
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint), columns(10_000), contextlib.suppress(SystemExit):
        _parsed_by_tyro(arguments, default)
    raise UserError(_one_line(complaint.getvalue(), arguments[0] if arguments else ""))


def _parsed_by_tyro(arguments: list[str], default: Any) -> Any:
    kinds: Any = None
    for name in COMMANDS:
        # For the other commands, name and description suffice; reading their options takes longer.
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
    """Whether a shell-completion script is requested, which needs the options of all commands."""
    return bool(arguments) and arguments[0].startswith("--tyro-")


def _named(name: str) -> type:
    """A class that stands for a command and has only its description."""
    command = make_dataclass(name, [])
    command.__doc__ = COMMANDS[name].about
    return command


@contextlib.contextmanager
def columns(width: int) -> Iterator[None]:
    """Makes the terminal appear to be this wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(complaint: str, command: str) -> str:
    """The error message of tyro on one line, with the closest options of this command."""
    lines = [line.strip("╭╮╰╯│ ") for line in complaint.splitlines()[1:]]
    ruled = re.sub(r"\0?[─-]{9,}\0", "\f", "\0".join(lines)).strip("\f")
    paragraphs = [part.split("\0") for part in ruled.split("\f")]
    body = " ".join(line for line in paragraphs[0] if line)
    body = re.sub(r"^Unrecognized or misplaced options: (.*?) Arguments are .*", _misplaced, body)
    suggested = [part for part in paragraphs if part[0].startswith("Perhaps you meant")]
    close = _closest(body, suggested[0][1:], command) if suggested else []
    line = f"{body.rstrip('. ')}; did you mean {' or '.join(close)}?" if close else body
    for part in paragraphs:
        if part[0].startswith("Available subcommands: "):
            line += f"; commands: {part[0].partition(': ')[2]}"
    line = shortened(line.rstrip(". "), 500)
    return f"{line or 'the options could not be read'} (see --help)"


def _misplaced(match: re.Match[str]) -> str:
    return "Unrecognized options: " + ", ".join(re.split(r" \(applied to [^)]*\) ?", match[1])[:-1])


def _closest(body: str, suggestions: list[str], command: str) -> list[str]:
    """The command's options with the name that was typed, groups ignored; else the first one."""
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
