"""Fully connected networks as pure functions of a pytree of parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dlf_dynamics.config import ModelConfig

Layer = tuple[Float[Array, "inputs outputs"], Float[Array, " outputs"]]
Params = tuple[Layer, ...]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "elu": jax.nn.elu,
    "identity": lambda x: x,
}


def _standard_normal(key: PRNGKeyArray, shape: tuple[int, int], dtype) -> Array:
    """N(0, 1/fan_in), drawn as neural-tangents' "standard" parameterisation draws it."""
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[0])


_WEIGHTS: dict[str, Callable[..., Array]] = {
    "published": _standard_normal,
    "published-updated": initializers.glorot_normal(),
    "glorot-normal": initializers.glorot_normal(),
    "glorot-uniform": initializers.glorot_uniform(),
    "he-normal": initializers.he_normal(),
    "he-uniform": initializers.he_uniform(),
    "lecun-normal": initializers.lecun_normal(),
}
_BIAS_SCALE = {"published-updated": 1e-2}


@dataclass(frozen=True)
class FullyConnected:
    """Layers x W + b with an activation between them; the last layer is linear.

    Attributes:
        widths: of the hidden layers.
        activation: a key of ACTIVATIONS.
        weights: a name of the initial weights (`ModelConfig.init`).

    >>> model = FullyConnected((100,), "relu", "published")
    >>> sum(leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0), 2, 3)))
    603
    """

    widths: tuple[int, ...]
    activation: str
    weights: str

    @classmethod
    def from_config(cls, config: ModelConfig) -> FullyConnected:
        """The network that the configuration describes."""
        return cls(config.widths, config.activation, config.init)

    def init(
        self, key: PRNGKeyArray, num_inputs: int, num_outputs: int, dtype: Any = float
    ) -> Params:
        """Random parameters.

        The key is split as stax's `serial` does, one part for each layer and each activation, so
        that the published initial parameters come out bit by bit.
        """
        sizes = (num_inputs, *self.widths, num_outputs)
        layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            key, layer_key = jax.random.split(key)
            weight_key, bias_key = jax.random.split(layer_key)
            weight = _WEIGHTS[self.weights](weight_key, (fan_in, fan_out), dtype)
            scale = _BIAS_SCALE.get(self.weights, 0.0)
            bias = scale * jax.random.normal(bias_key, (fan_out,), dtype)
            layers.append((weight, bias))
            key, _ = jax.random.split(key)
        return tuple(layers)

    def apply(
        self, params: Params, inputs: Float[Array, "examples *features"]
    ) -> Float[Array, "examples outputs"]:
        """Outputs (logits) of the network; image inputs are flattened."""
        return self._layers(params, inputs)[-1]

    def gates(
        self, params: Params, inputs: Float[Array, "examples *features"]
    ) -> Bool[Array, "examples units"]:
        """Which hidden units, of all layers, have a positive input at each example."""
        none = jnp.zeros((len(inputs), 0), bool)
        hidden = self._layers(params, inputs)[:-1]
        return jnp.concatenate([none, *[layer > 0 for layer in hidden]], axis=1)

    def _layers(self, params: Params, inputs: Array) -> list[Array]:
        """What each layer gives before its activation."""
        activation = ACTIVATIONS[self.activation]
        weight, bias = params[0]
        layers = [inputs.reshape(len(inputs), -1) @ weight + bias]
        for weight, bias in params[1:]:
            layers.append(activation(layers[-1]) @ weight + bias)
        return layers
