"""`Output`: a file that one process writes at a time, and that takes its name when it is whole."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.hdf5 import write_error

if TYPE_CHECKING:
    from filelock import BaseFileLock

EXISTS = "continue it with --resume, replace it with --overwrite, or write elsewhere with -o"
"""What to do about a file that exists and that can be continued."""

_WAIT_SECONDS = 0.2
"""How long a lock is waited for: a writer that is just ending has let it go by then."""

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system answers that has no locks."""


class Output:
    """A file that only this process may write, until it is released. Use it as a context manager.

    A lock beside the file keeps other writers out; readers need none. The system takes the lock
    from a process that ends, however it ends, so nobody ever has to remove one: what a killed
    process leaves is a small hidden file that locks nothing and that the next writer takes over.
    The file itself cannot carry the lock, as new files replace it, and as HDF5 gives up its own
    lock in single-writer mode.

    Attributes:
        path: of the file, as it was given.
        target: the file to write; where the path is a link, what it names, so that each file has
            one lock.
    """

    def __init__(self, path: Path, remedy: str | None = None) -> None:
        """Takes the lock; see `hold`."""
        self.path = path
        self.target = Path(os.path.realpath(path)) if path.is_symlink() else path
        self._remedy = remedy
        self._file = self.target.with_name(f".{self.target.name}.lock")
        self._lock = self._taken()
        if self._lock is not None:
            _sweep_out(self.target)
        if remedy is not None and path.exists():
            self.release()
            raise self._exists()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets others write; may be called again."""
        # A forked process has the object but not the lock.
        if self._lock is not None and self._lock.is_locked:
            # Removed while it is held: who has it open finds that it has no name, and tries anew.
            with suppress(OSError):
                self._file.unlink()
            self._lock.release()

    def place(self, partial: Path) -> None:
        """Gives a whole file, written under another name in the folder, its own name.

        Raises:
            FileError: when there is a file by now that is not to be replaced.
        """
        if self._remedy is None:
            os.replace(partial, self.target)
            return
        try:
            os.link(partial, self.target)  # unlike a renaming, it refuses where there is a file
        except FileExistsError:
            raise self._exists() from None
        except OSError:  # not every file system has hard links
            os.replace(partial, self.target)

    def _exists(self) -> FileError:
        return FileError(f"{self.path} exists; {self._remedy}")

    def _taken(self) -> BaseFileLock | None:
        """The lock; none where the file system has none.

        Raises:
            FileError: when another holds it, or the file could not be written anyway.
        """  # noqa: DOC501
        from filelock import FileLock, Timeout  # slow to import, and readers do not need it

        if not self.target.parent.is_dir():
            raise write_error(self.path, FileNotFoundError())
        lock = FileLock(self._file, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(timeout=_WAIT_SECONDS, poll_interval=_WAIT_SECONDS / 10)
            self._file.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        except Timeout:
            self._require_place()
            raise FileError(
                f"{self.path} is being written by {_holder(self._file)}; wait until it has ended, "
                "or write elsewhere"
            ) from None
        except OSError as error:
            lock.release()
            if error.errno not in _WITHOUT_LOCKS:
                raise write_error(self.path, error) from error
            with suppress(OSError):
                self._file.unlink()
            warnings.warn(
                f"the file system of {self.target.parent} has no locks: take care that no other "
                f"program writes {self.path.name} at the same time",
                stacklevel=2,
            )
            return None
        return lock

    def _require_place(self) -> None:
        """Raises FileError where there can be no lock, and so no file: as in /proc.

        Waiting for a lock ends in the same way as waiting for a folder to take its file.
        """  # noqa: DOC501
        try:
            self._file.touch()  # as a killed process leaves one, should its holder be just gone
        except PermissionError:  # it is that of another user
            return
        except OSError as error:
            raise write_error(self.path, error) from error


def beside(path: Path, suffix: str) -> Path:
    """The name of a file with another suffix.

    Raises:
        ConfigError: when it is none, as that of the folder we are in.
    """
    if not path.name:
        raise ConfigError(f"{path} is a folder; expected the name of a file")
    return path.with_suffix(suffix)


def is_held(path: Path) -> bool:
    """Whether a process writes the file now, as far as its lock can be asked."""
    from filelock import FileLock, Timeout

    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    beside = target.with_name(f".{target.name}.lock")
    if not beside.exists():
        return False
    lock = FileLock(beside, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # it may be asked by its owner alone
        return True
    lock.release()
    return False


def hold(path: Path | Output, remedy: str | None = None) -> Output:
    """Takes the right to write a file; one that is held already is returned as it is.

    Args:
        path: of the file.
        remedy: what to do when the file exists; none replaces it.

    Raises:
        FileError: when the file exists and there is a remedy, when another process or another
            part of this one is writing it, or when it could not be written.
    """
    return path if isinstance(path, Output) else Output(path, remedy)


@contextmanager
def handed_over(path: Path | Output, remedy: str | None = None) -> Iterator[Output]:
    """Holds a file for the writer that the block makes, which releases it.

    It is released at once when the block fails. Arguments and errors are those of `hold`.
    """
    output = hold(path, remedy)
    try:
        yield output
    except BaseException:
        output.release()
        raise


def partial_path(path: Path) -> Path:
    """A name for the file while it is written, which no other writer has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def _sweep_out(path: Path) -> None:
    """Removes what killed writers of the file have left; nobody writes it now."""
    leftover = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    for entry in path.parent.iterdir():
        if leftover.fullmatch(entry.name):
            with suppress(OSError):
                entry.unlink()


def _holder(file: Path) -> str:
    """Who has written their name into a lock's file, in words."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text())
        pid, host = int(found["pid"]), str(found["host"])
        if host != platform.node():
            return f"process {pid} on {host}"
        return "this process" if pid == os.getpid() else f"process {pid}"
    return "another process"
