"""How much memory there is, and whether a computation fits into it."""

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
"""Files in which Linux states the memory limit of a container (cgroups versions 2 and 1)."""

_SHARE = 0.75
"""Share of a device's memory that an analysis uses by default."""


def total_memory() -> int:
    """Largest memory of this process, in bytes: the machine's, or the limit of a container."""
    known = []
    with suppress(AttributeError, ValueError, OSError):  # not every system tells
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # "max" where there is none
            known.append(int(path.read_text()))
    return min((size for size in known if size > 0), default=2**63)


def require_memory(needed: int, what: str, advice: str) -> None:
    """Refuses a computation that needs more memory than there is, before it starts.

    Args:
        needed: lower bound of the memory needed, in bytes.
        what: what needs it, as the subject of a sentence.
        advice: what to do instead.

    Raises:
        ConfigError: when there is less memory.
    """
    available = total_memory()
    if needed > available:
        shortfall = f"at least {bytes_in_words(needed)} of {bytes_in_words(available)} memory"
        raise ConfigError(f"{what} takes {shortfall}; {advice}")


def device_memory() -> int:
    """Memory of one JAX device, in bytes: a GPU's own, or a share of the machine's memory."""
    import jax

    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    return total_memory() // (jax.local_device_count() if device.platform == "cpu" else 1)


def memory_limit(most: str | None) -> int:
    """Memory that an analysis may use on a device, in bytes: as given, or most of the device's.

    Raises:
        ConfigError: when `most` is not a size.
    """
    return int(_SHARE * device_memory()) if most is None else bytes_of(most)


def bytes_of(size: str) -> int:
    """Bytes of a size as people write it, in powers of 1,000.

    Raises:
        ConfigError: when it is not a size.

    >>> bytes_of("4GB"), bytes_of("1.5 MB"), bytes_of("800")
    (4000000000, 1500000, 800)
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([kMGT]?)B?\s*", size, re.ASCII)
    count = int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " ")) if match else 0
    if count < 1:
        raise ConfigError(f"max_memory is {shown(size)}; expected a size such as 4GB or 500MB")
    return count


def bytes_in_words(count: int) -> str:
    """A number of bytes in words.

    >>> bytes_in_words(2_400_000_000_000), bytes_in_words(999), bytes_in_words(10**40)
    ('2,400 GB', '9.99e-07 GB', 'more than 1e+18 GB')
    """
    if count >= 10**27:
        return "more than 1e+18 GB"
    return f"{count / 1e9:,.3g} GB" if count < 10**11 else f"{count // 10**9:,} GB"
