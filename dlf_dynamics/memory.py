"""How much memory there is, and whether something could ever fit into it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from dlf_dynamics.errors import ConfigError, shown

_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says how much a container may use, in its two versions."""

_SHARE = 0.75
"""Of a device's memory, what an analysis takes by default."""


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


def device_memory() -> int:
    """Bytes that one of JAX's devices has: a GPU's own, or its part of the machine's."""
    import jax

    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    return total_memory() // (jax.local_device_count() if device.platform == "cpu" else 1)


def memory_limit(most: str | None) -> int:
    """Bytes that an analysis may take on a device: as many as are given, or most of what it has.

    Raises:
        ConfigError: when `most` is not a size.
    """
    return int(_SHARE * device_memory()) if most is None else bytes_of(most)


def bytes_of(size: str) -> int:
    """Bytes of a size that a person writes, in powers of 1,000.

    Raises:
        ConfigError: when it is not one.

    >>> bytes_of("4GB"), bytes_of("1.5 MB"), bytes_of("800")
    (4000000000, 1500000, 800)
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([kMGT]?)B?\s*", size, re.ASCII)
    count = int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " ")) if found else 0
    if count < 1:
        raise ConfigError(f"max_memory is {shown(size)}; expected a size such as 4GB or 500MB")
    return count


def bytes_in_words(count: int) -> str:
    """Bytes as a person reads them.

    >>> bytes_in_words(2_400_000_000_000), bytes_in_words(999), bytes_in_words(10**40)
    ('2,400 GB', '9.99e-07 GB', 'more than 1e+18 GB')
    """
    if count >= 10**27:
        return "more than 1e+18 GB"
    return f"{count / 1e9:,.3g} GB" if count < 10**11 else f"{count // 10**9:,} GB"
