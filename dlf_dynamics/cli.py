"""The program `dlf-dynamics`: runs a command line and reports the user's errors in one line.

Everything else is imported only once Ctrl-C is handled.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

USER_ERROR = 2
_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    before = signal.signal(signal.SIGINT, _leave)
    from dlf_dynamics import progress, streams

    try:
        with streams.lenient() as out, progress.Interruption().listening():
            code = _main(list(sys.argv[1:] if arguments is None else arguments))
            out.flush()
            if out.fault:
                message = f"what was printed could not be written: {out.fault}"
                code = streams.fail(message, USER_ERROR)
    except KeyboardInterrupt:  # just before the command began, or just after it had ended
        code = streams.fail("interrupted", _INTERRUPTED)
    # The program is ending: there is nothing left for a signal to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN if arguments is None else before)
    if arguments is None and code > 128:  # running computations would crash Python's shutdown
        os._exit(code)
    return code


def _leave(number: int, frame: object) -> None:
    """Ends the process on Ctrl-C before the program's own handlers are in place."""
    try:
        os.write(2, b"dlf-dynamics: interrupted before it began\n")
    finally:
        os._exit(_INTERRUPTED)


def _main(arguments: list[str]) -> int:
    from dlf_dynamics import __version__
    from dlf_dynamics.errors import UserError, shortened
    from dlf_dynamics.streams import fail

    if arguments == ["--version"]:
        print(f"dlf-dynamics {__version__}")
        return 0
    try:
        from dlf_dynamics.commandline import parse

        return parse(arguments).execute()
    except SystemExit as stop:  # the help was printed
        return int(stop.code or 0)
    except UserError as error:
        return fail(str(error), USER_ERROR)
    except MemoryError as error:
        return fail(f"there is not enough memory: {error}", USER_ERROR)
    except RuntimeError as error:  # that of XLA
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return fail(f"there is not enough memory: {str(error).splitlines()[0]}", USER_ERROR)
    except OSError as error:
        name = "" if error.filename is None else f"{shortened(str(error.filename), 200)}: "
        return fail(f"{name}{error.strerror or error}", USER_ERROR)
    except KeyboardInterrupt:
        message = "interrupted; run files keep what was recorded, results were not written"
        return fail(message, _INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
