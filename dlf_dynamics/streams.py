"""Printing: text that comes from files and users, and streams that may fail.

This module must be quick to import, as it is needed before everything else.
"""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from dlf_dynamics.errors import shortened

_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control and format characters, surrogates, line and paragraph separators."""


def printable(text: str) -> str:
    r"""The text on one line, with the characters escaped that a terminal would obey.

    >>> printable("sgd\x1b[2J\n0.1")
    'sgd\\x1b[2J\\n0.1'
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNPRINTABLE else c
        for c in text
    )


def drawable(text: str, most: int = 200) -> str:
    r"""The text as a label of a figure: no formulas, and no line of more characters than `most`.

    >>> drawable(r"two $\frac{$ of a file")
    'two \\$\\frac{\\$ of a file'
    """
    lines = [printable(shortened(line, most)) for line in text.split("\n")]
    return "\n".join(lines).replace("$", r"\$")


def say(line: str) -> None:
    """Prints a line for the user to stderr, so that stdout contains results only."""
    print(printable(line), file=sys.stderr, flush=True)


def fail(line: str, code: int) -> int:
    """Prints an error in a line of bounded length; returns the exit code."""
    say(f"dlf-dynamics: {shortened(line, 1000)}")
    return code


class _Stream:
    """A text stream whose write errors are recorded instead of raised.

    Attributes:
        fault: why the stream failed; None if it did not, or its reader has closed it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.fault: str | None = None
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._excused():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._excused():
            self._stream.flush()

    @contextmanager
    def _excused(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._drop()
        except OSError as error:
            self.fault = error.strerror or str(error)
            self._drop()

    def _drop(self) -> None:
        """Discards remaining and further output; otherwise Python would report an error at exit."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lenient() -> Iterator[_Stream]:
    r"""Keeps standard output and error from raising within the block; yields standard output.

    Characters that their encoding lacks are written as escapes, such as \xb1.
    """
    before = sys.stdout, sys.stderr
    # A stream is None if its file was closed before the program began.
    out, err = (_Stream(stream or io.StringIO()) for stream in before)
    for stream in (out, err):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
