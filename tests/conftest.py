"""All tests compute in float64, on one thread; both are chosen before JAX computes anything."""

import os

# XLA reads it when it first computes; small problems run fastest on one thread.
os.environ.setdefault("NPROC", "1")
# Programs of small networks take far longer to be compiled than to run. The environment passes it
# on to the programs that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax

jax.config.update("jax_enable_x64", True)
