"""All tests compute in float64; it must be chosen before JAX computes anything."""

import jax

jax.config.update("jax_enable_x64", True)
