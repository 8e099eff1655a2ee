"""How much memory there is, and whether something could ever fit into it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dlf_dynamics.errors import ConfigError

_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says how much a container may use, in its two versions."""


def total_memory() -> int:
    """Bytes of memory that this process could have at most: those of the machine, or its limit."""
    known = []
    with suppress(AttributeError, ValueError, OSError):  # not every system tells
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # "max" where there is none
            known.append(int(path.read_text()))
    return min((size for size in known if size > 0), default=2**63)


def require_memory(needed: int, what: str, advice: str) -> None:
    """Refuses what takes more memory than there is, before it is tried.

    Args:
        needed: bytes that it takes at least.
        what: takes them.
        advice: what to do instead.

    Raises:
        ConfigError: when there is less.
    """
    there = total_memory()
    if needed > there:
        found = f"at least {bytes_in_words(needed)} of {bytes_in_words(there)} memory"
        raise ConfigError(f"{what} takes {found}; {advice}")


def bytes_in_words(count: int) -> str:
    """Bytes as a person reads them.

    >>> bytes_in_words(2_400_000_000_000), bytes_in_words(999), bytes_in_words(10**40)
    ('2,400 GB', '9.99e-07 GB', 'more than 1e+18 GB')
    """
    if count >= 10**27:
        return "more than 1e+18 GB"
    return f"{count / 1e9:,.3g} GB" if count < 10**11 else f"{count // 10**9:,} GB"
