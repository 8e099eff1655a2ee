"""`Output`: a file that one process writes at a time and that gets its name when complete."""

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
from typing import TYPE_CHECKING, Any

from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.hdf5 import write_error

if TYPE_CHECKING:
    from filelock import BaseFileLock

EXISTS = "continue it with --resume, replace it with --overwrite, or write elsewhere with -o"
"""Advice about an existing file that can be continued."""

_WAIT_SECONDS = 0.2
"""Time to wait for a lock, in which a writer that is just ending releases it."""

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of a file system without locks."""

_LOCK: dict[str, Any] = {"thread_local": False, "fallback_to_soft": False}
"""Options of the locks, which all threads of a process share."""


class Output:
    """A file that only this process may write until it is released. Use it as a context manager.

    A lock beside the file keeps other writers out; readers need none. The system releases the lock
    of a process however it ends, so nobody ever has to remove one: a killed process leaves a small
    hidden file that locks nothing and that the next writer takes over. The file itself cannot be
    the lock, as new files replace it, and as HDF5 releases its own lock in single-writer mode.

    Attributes:
        path: path of the file, as given.
        target: file to write; if the path is a link, the file that it points to, so that each file
            has one lock.
    """

    def __init__(self, path: Path, remedy: str | None = None) -> None:
        """Takes the lock; see `hold`."""
        self.path = path
        self.target, self._file = _target_and_lock(path)
        self._remedy = remedy
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
        """Releases the file to other writers; may be called repeatedly."""
        # A forked process has the object but not the lock.
        if self._lock is not None and self._lock.is_locked:
            # Removed while held: a process that has it open sees that it has no name, and retries.
            with suppress(OSError):
                self._file.unlink()
            self._lock.release()

    def place(self, partial: Path) -> None:
        """Gives a complete file, written under another name in the folder, its final name.

        Raises:
            FileError: when a file that must not be replaced exists by now.
        """
        if self._remedy is None:
            os.replace(partial, self.target)
            return
        try:
            os.link(partial, self.target)  # unlike renaming, it fails if the file exists
        except FileExistsError:
            raise self._exists() from None
        except OSError:  # not every file system has hard links
            os.replace(partial, self.target)

    def _exists(self) -> FileError:
        return FileError(f"{self.path} exists; {self._remedy}")

    def _taken(self) -> BaseFileLock | None:
        """Takes the lock; None if the file system has no locks.

        Raises:
            FileError: when another process holds it, or the file could not be written anyway.
        """  # noqa: DOC501
        from filelock import FileLock, Timeout  # slow to import, and readers do not need it

        if not self.target.parent.is_dir():
            raise write_error(self.path, FileNotFoundError())
        lock = FileLock(self._file, **_LOCK)
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
        """Raises FileError if the folder takes no files, as in /proc.

        filelock reports a timeout also in this case.
        """  # noqa: DOC501
        try:
            self._file.touch()  # harmless if its owner has just ended: it then locks nothing
        except PermissionError:  # it belongs to another user
            return
        except OSError as error:
            raise write_error(self.path, error) from error


def _target_and_lock(path: Path) -> tuple[Path, Path]:
    """The file of a path, links followed, and the file that locks it."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    return target, target.with_name(f".{target.name}.lock")


def beside(path: Path, suffix: str) -> Path:
    """The name of a file with another suffix.

    Raises:
        ConfigError: when the path has no name, such as the current folder.
    """
    if not path.name:
        raise ConfigError(f"{path} is a folder; expected the name of a file")
    return path.with_suffix(suffix)


def is_held(path: Path) -> bool:
    """Whether a process is writing the file, as far as its lock shows."""
    from filelock import FileLock, Timeout

    _, file = _target_and_lock(path)
    if not file.exists():
        return False
    lock = FileLock(file, **_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # only its owner may try it
        return True
    lock.release()
    return False


def hold(path: Path | Output, remedy: str | None = None) -> Output:
    """Takes the lock of a file; a file that is held already is returned as it is.

    Args:
        path: path of the file.
        remedy: advice for the case that the file exists; None replaces it.

    Raises:
        FileError: when the file exists and there is a remedy, when another process or another part
            of this one is writing it, or when it could not be written.
    """
    return path if isinstance(path, Output) else Output(path, remedy)


@contextmanager
def handed_over(path: Path | Output, remedy: str | None = None) -> Iterator[Output]:
    """Holds a file for the writer made in the block, which then releases it.

    If the block fails, the file is released at once. Arguments and errors are those of `hold`.
    """
    output = hold(path, remedy)
    try:
        yield output
    except BaseException:
        output.release()
        raise


def partial_path(path: Path) -> Path:
    """A temporary name for the file while it is written, unique to this writer."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def _sweep_out(path: Path) -> None:
    """Removes partial files of killed writers; the caller holds the lock."""
    leftover = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    for entry in path.parent.iterdir():
        if leftover.fullmatch(entry.name):
            with suppress(OSError):
                entry.unlink()


def _holder(file: Path) -> str:
    """The process that is named in the file of a lock, in words."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(file.read_text())
        pid, host = int(owner["pid"]), str(owner["host"])
        if host != platform.node():
            return f"process {pid} on {host}"
        return "this process" if pid == os.getpid() else f"process {pid}"
    return "another process"
