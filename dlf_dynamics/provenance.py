"""Provenance of a file: versions, machine, source revision and command."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax

from dlf_dynamics import __version__

_PACKAGES = ("jax", "jaxlib", "optax", "numpy", "scipy", "h5py")


def provenance() -> str:
    """Provenance as JSON."""
    device = jax.devices()[0]
    return json.dumps(
        {
            "dlf_dynamics": __version__,
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "git_revision": _git_revision(),
            "device": f"{device.platform} ({device.device_kind})",
            "system": f"{platform.system()} {platform.machine()}",
            "x64": jax.numpy.result_type(float).name == "float64",
            "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "created": now(),
        },
        indent=1,
    )


def now() -> str:
    """The time in UTC, to the second (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_revision() -> str | None:
    """Git revision of this package; None if it does not run from a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
