"""The kernels that a run's network has at infinite width, and how far its own NTK is from them.

As the hidden layers widen, the NTK of a random network tends to a fixed kernel Θ (Jacot, Gabriel
and Hongler, 2018), and its outputs to a Gaussian process, whose covariance is the NNGP kernel (Lee
and others, 2018). Both come from neural-tangents' `stax` in its standard parameterisation
(Sohl-Dickstein, Novak, Schoenholz and Lee, arXiv 2001.07301, with s = 1 and the run's own widths),
in which weights and biases are trained as they are, and a layer's part of Θ grows with its inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.analysis.spectra.ntk import (
    MAX_DENSE,
    check_engine,
    dense_eigenvalues,
    first_examples,
    kernels_along,
)
from dlf_dynamics.config import InitName, SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.models import ACTIVATIONS, FullyConnected, make_model
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Checkpoints, Run
from dlf_dynamics.tangents import neural_tangents
from dlf_dynamics.trained import TrainedRun

WEIGHT_VARIANCES: dict[InitName, Callable[[int, int], float]] = {
    "published": lambda fan_in, fan_out: 1 / fan_in,
    "published-updated": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot-normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot-uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he-normal": lambda fan_in, fan_out: 2 / fan_in,
    "he-uniform": lambda fan_in, fan_out: 2 / fan_in,
    "lecun-normal": lambda fan_in, fan_out: 1 / fan_in,
}
"""Variance of an initial weight of a layer, by the name of the initialisation."""

BIAS_STD: dict[InitName, float] = {"published-updated": 1e-2}
"""Standard deviation of the initial biases, where they are not 0."""

_RADII, _ANGLES = 40, 32
_FARTHEST = 9.0  # exp(-r²/2) is below 3e-18 from there


@dataclass(frozen=True)
class InfiniteWidth:
    """Kernels at infinite width, and the empirical NTK of a run beside them.

    All kernels are traced: averaged over the outputs, one row for each example. Where the network
    or its derivatives are not finite, the run's numbers are NaN.

    Attributes:
        steps: step of each checkpoint.
        eigenvalues: eigenvalues of the run's kernel K_t, in descending order.
        distance: ‖K_t − Θ‖ / ‖Θ‖ in the Frobenius norm. At step 0 it is due to finite width.
        alignment: ⟨K_t, Θ⟩ / (‖K_t‖ ‖Θ‖), at most 1; it does not depend on the scale of K_t.
        movement: ‖K_t − K_0‖ / ‖K_0‖, from the run's own kernel at its first checkpoint.
        ntk: eigenvalues of Θ, in descending order.
        nngp: eigenvalues of the NNGP kernel, the covariance of each output, descending.
        num_examples: number of examples that the kernels are taken on, the first ones.
        normal_weights: whether the run's initial weights are drawn from a normal distribution, as
            those of the limit are; else see `limit_kernels`.
    """

    steps: Int[np.ndarray, " checkpoints"]
    eigenvalues: Float[np.ndarray, "checkpoints examples"]
    distance: Float[np.ndarray, " checkpoints"]
    alignment: Float[np.ndarray, " checkpoints"]
    movement: Float[np.ndarray, " checkpoints"]
    ntk: Float[np.ndarray, " examples"]
    nngp: Float[np.ndarray, " examples"]
    num_examples: int
    normal_weights: bool
    __repr__ = brief


def infinite_width(
    run: Run, checkpoints: Checkpoints | None = None, *, num_examples: int = 50
) -> InfiniteWidth:
    """Compares the empirical NTK along a run with that of an infinitely wide network.

    Args:
        run: a recorded run of a fully connected network.
        checkpoints: increasing indices into `run.checkpoint_steps`; none means all.
        num_examples: number of examples, the first ones of the data.

    Raises:
        ConfigError: when neural-tangents is not installed, the run's network is not a
            `FullyConnected`, or there are too many examples to form the kernels.
    """
    model = check_network(run, num_examples)
    indices = np.arange(len(run.checkpoint_steps)) if checkpoints is None else checkpoints
    problem = first_examples(run, num_examples)
    params = jax.ShapeDtypeStruct((run.num_params,), run.dtype)
    shape = jax.eval_shape(problem.outputs, params).shape
    limit, nngp = limit_kernels(model, np.asarray(problem.inputs), shape[1])
    ((initial,),) = kernels_along(run, [0], problem)
    parts = [
        np.column_stack(
            [
                dense_eigenvalues(kernels),
                _distance(kernels, limit),
                _alignment(kernels, limit),
                _distance(kernels, initial),
            ]
        )
        for kernels in kernels_along(run, indices, problem)
    ]
    *eigenvalues, distance, alignment, movement = np.concatenate(parts).T
    ntk, process = dense_eigenvalues(np.stack([limit, nngp]))
    return InfiniteWidth(
        steps=run.checkpoint_steps[np.asarray(indices)],
        eigenvalues=np.stack(eigenvalues, axis=1),
        distance=distance,
        alignment=alignment,
        movement=movement,
        ntk=ntk,
        nngp=process,
        num_examples=len(limit),
        normal_weights=model.weights == "published",
    )


def check_kernels(run: Run, config: SpectrumConfig) -> None:
    """Raises for kernels that are not available, before anything is computed.

    Raises:
        ConfigError: as `infinite_width` and `ntk_spectrum` do.
    """
    if config.infinite_width:
        check_network(run, config.ntk_examples)
    if config.ntk_examples:
        traced = not config.ntk_full
        check_engine(run, config.ntk_engine, num_examples=config.ntk_examples, trace_outputs=traced)


def check_network(run: Run, num_examples: int) -> FullyConnected:
    """The run's network, if its kernels at infinite width are available.

    Raises:
        ConfigError: as `infinite_width` does.
    """
    if not isinstance(run, TrainedRun):
        raise ConfigError(
            f"infinite_width: {run.path} was recorded in a custom training loop; expected a "
            "network that dlf-dynamics built, as the kernels follow from its layers: leave it out"
        )
    model = make_model(run.config.model)
    if not isinstance(model, FullyConnected):
        raise ConfigError(
            f"infinite_width: the run's model.name is {run.config.model.name!r}; expected "
            "'fully-connected', the only one whose kernels are known here: leave it out"
        )
    examples = min(num_examples, len(run.problem.targets))
    if examples > MAX_DENSE:
        raise ConfigError(
            f"infinite_width: ntk_examples is {num_examples:,}; expected at most {MAX_DENSE:,}, "
            "as the kernels are formed"
        )
    neural_tangents()
    return model


def limit_kernels(
    model: FullyConnected, inputs: Float[np.ndarray, "examples *features"], num_outputs: int
) -> tuple[Float[np.ndarray, "examples examples"], Float[np.ndarray, "examples examples"]]:
    """The NTK Θ and the NNGP kernel of a network with infinitely many units, in float64.

    Θ keeps the network's own widths and leaves out its fluctuations, which are of relative size
    1/√width: it is the mean of the empirical NTK over the initial parameters, exactly for one
    hidden layer and to O(1/width) for more.

    The weights are taken as normal with the variances of `model.weights`. In the first layer, whose
    number of inputs is finite, truncated normal or uniform weights have another limit: on the
    published spiral, which has two inputs, with ReLU and Glorot's variance, it is 0.2 % (truncated)
    and 0.8 % (uniform) away in the Frobenius norm. With more inputs it is closer.

    Args:
        model: the network.
        inputs: inputs of the examples, which are flattened.
        num_outputs: number of outputs of the network.

    Raises:
        ConfigError: when neural-tangents is not installed, or does not import on this JAX.
    """
    package = neural_tangents()
    with jax.enable_x64(True):
        kernel = jax.jit(_layers(package.stax, model, math.prod(inputs.shape[1:]), num_outputs))
        kernels = kernel(jnp.asarray(np.reshape(inputs, (len(inputs), -1)), float))
    return np.asarray(kernels.ntk), np.asarray(kernels.nngp)


def _layers(stax: Any, model: FullyConnected, num_inputs: int, num_outputs: int) -> Callable:
    """Both kernels of a network as a function of its inputs."""
    weights: Any = model.weights
    layers = []
    for fan_in, fan_out in itertools.pairwise((num_inputs, *model.widths, num_outputs)):
        variance = WEIGHT_VARIANCES[weights](fan_in, fan_out)
        layers.append(
            stax.Dense(
                fan_out,
                W_std=math.sqrt(fan_in * variance),
                b_std=BIAS_STD.get(weights, 0.0),
                parameterization="standard",
            )
        )
        layers.append(_activation(stax, ACTIVATIONS[model.activation]))
    kernel = stax.serial(*layers[:-1])[2]  # the last layer is linear
    return lambda inputs: kernel(inputs, None, ("ntk", "nngp"))


def _activation(stax: Any, function: Callable[[Array], Array]) -> Any:
    """The `stax` layer of an activation.

    The activations of `stax` itself are not used: at an example that is exactly 0, such as one of
    the published spiral, its ReLU takes 1/4 for E[φ'φ'] where JAX's ReLU has derivative 0, and its
    numerical layer gives NaN. For tanh, softplus, SiLU, sigmoid, ELU and JAX's GELU it has no other
    layer.
    """
    derivative = jnp.vectorize(jax.grad(function))
    return stax.Elementwise(function, _dual(function), _dual(derivative))


def _dual(function: Callable[[Array], Array]) -> Callable[[Array, Array, Array], Array]:
    """E[φ(u) φ(v)] for normal u and v with zero means, by their covariance and variances.

    In polar coordinates, u = σ₁ r cos(a) and v = σ₂ r cos(a − θ) with cos θ their correlation, the
    rays on which one of them is 0 are ends of the four sectors that Gauss-Legendre rules take, so
    that corners and jumps of φ at 0 cost no accuracy. Absolute errors for tanh, SiLU, GELU, ELU and
    their derivatives are below 1e-12 up to a σ of 2, 1e-6 up to 10 and 1e-4 up to 40.
    """
    rays, radial = jnp.asarray(_rays()), jnp.asarray(_radial())

    def expectation(cov: Array, var1: Array, var2: Array) -> Array:
        product = jnp.sqrt(var1 * var2)
        theta = jnp.arccos(jnp.clip(cov / jnp.where(product > 0, product, 1), -1, 1))

        # Node by node: all at once would not fit into memory for a thousand examples.
        def along_ray(total: Array, ray: Array) -> tuple[Array, None]:
            start, turns, share, part = ray
            width = jnp.where(turns == 1, jnp.pi - theta, theta)
            angle = start + turns * theta + share * width
            u, v = jnp.sqrt(var1) * jnp.cos(angle), jnp.sqrt(var2) * jnp.cos(angle - theta)

            def at_radius(total: Array, node: Array) -> tuple[Array, None]:
                radius, density = node
                return total + density * function(radius * u) * function(radius * v), None

            integral, _ = jax.lax.scan(at_radius, jnp.zeros_like(theta), radial)
            return total + part * width * integral, None

        return jax.lax.scan(along_ray, jnp.zeros_like(theta), rays)[0]

    return expectation


def _radial() -> Float[np.ndarray, "nodes 2"]:
    """Radii, and the weights of r exp(−r²/2) / 2π there."""
    nodes, weights = np.polynomial.legendre.leggauss(_RADII)
    radii = _FARTHEST * (nodes + 1) / 2
    return np.stack([radii, _FARTHEST / 4 / np.pi * weights * radii * np.exp(-(radii**2) / 2)], 1)


def _rays() -> Float[np.ndarray, "nodes 4"]:
    """Nodes of all sectors: start of the sector, 1 if θ is to be added to it, position, and weight.

    Position and weight are fractions of the sector.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_ANGLES)
    starts, turns = np.pi * np.array([-0.5, 0.5, 0.5, 1.5]), np.array([1.0, 0.0, 1.0, 0.0])
    of_sector = np.repeat(np.stack([starts, turns], 1), _ANGLES, axis=0)
    return np.hstack([of_sector, np.tile(np.stack([(nodes + 1) / 2, weights / 2], 1), (4, 1))])


def _distance(
    kernels: Float[np.ndarray, "kernels size size"], from_kernel: Float[np.ndarray, "size size"]
) -> Float[np.ndarray, " kernels"]:
    """Relative distance in the Frobenius norm."""
    return np.linalg.norm(kernels - from_kernel, axis=(1, 2)) / np.linalg.norm(from_kernel)


def _alignment(
    kernels: Float[np.ndarray, "kernels size size"], with_kernel: Float[np.ndarray, "size size"]
) -> Float[np.ndarray, " kernels"]:
    """Cosine of the angle between matrices."""
    norms = np.linalg.norm(kernels, axis=(1, 2)) * np.linalg.norm(with_kernel)
    return np.einsum("kab,ab->k", kernels, with_kernel) / norms
