"""All tests compute in float64, on one thread; both are chosen before JAX computes anything."""

import os

import jax

# XLA reads it when it first computes; small problems run fastest on one thread.
os.environ.setdefault("NPROC", "1")
jax.config.update("jax_enable_x64", True)
