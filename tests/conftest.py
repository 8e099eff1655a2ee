"""All tests compute in float64, on one thread; both are chosen before JAX computes anything."""

import os
from pathlib import Path

# Compiled programs are kept: most of the time goes into compiling, and the worker processes and the
# programs that tests start ask for the same. The environment passes it on to those.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# XLA reads it when it first computes; small problems run fastest on one thread.
os.environ.setdefault("NPROC", "1")

import jax

jax.config.update("jax_enable_x64", True)
