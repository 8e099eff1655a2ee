"""Networks as pure functions of a pytree of parameters: fully connected and convolutional."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dlf_dynamics.config import ModelConfig
from dlf_dynamics.errors import DataError

# Layers differ in size: axes with an underscore need not have one length in all of them.
Layer = tuple[Float[Array, "*_window _inputs _outputs"], Float[Array, " _outputs"]]
Params = tuple[Layer, ...]

Activation = Callable[[Array], Array]

ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "elu": jax.nn.elu,
    "identity": lambda x: x,
}


def _standard_normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype) -> Array:
    """N(0, 1/fan_in), drawn as in the "standard" parameterisation of neural-tangents."""
    return jax.random.normal(key, shape, dtype) / math.sqrt(math.prod(shape[:-1]))


_WEIGHTS: dict[str, Callable[..., Array]] = {
    "published": _standard_normal,
    "published-updated": initializers.glorot_normal(),
    "glorot-normal": initializers.glorot_normal(),
    "glorot-uniform": initializers.glorot_uniform(),
    "he-normal": initializers.he_normal(),
    "he-uniform": initializers.he_uniform(),
    "lecun-normal": initializers.lecun_normal(),
}
# The initializer that stax uses; its last bit differs between versions of JAX.
_BIASES: dict[str, Callable[..., Array]] = {"published-updated": initializers.normal(1e-2)}


def make_model(config: ModelConfig) -> FullyConnected | Convolutional:
    """The network that the configuration describes.

    >>> make_model(ModelConfig(name="convolutional", widths=(8, 16))).pools
    (1, 1)
    """
    if config.name == "fully-connected":
        return FullyConnected(config.widths, config.activation, config.init)
    if config.name == "convolutional":
        pools = (1,) * len(config.widths)
        return Convolutional(config.widths, pools, config.activation, config.init)
    (width,) = config.widths
    return Convolutional((width,) * 4, (0, 1, 1, 3), config.activation, config.init, multiple_of=32)


class _LayerShape(NamedTuple):
    """The shape of a layer of a network.

    Attributes:
        weights: shape of the weights, outputs last.
        units: number of outputs for one example.
        splits: number of times that the PRNG key is split before the layer is drawn.
    """

    weights: tuple[int, ...]
    units: int
    splits: int


class _Network(ABC):
    """A network whose hidden units pass or block their input.

    Attributes:
        weights: name of the initial weights (`ModelConfig.init`).
    """

    weights: str

    @abstractmethod
    def _shapes(self, input_shape: tuple[int, ...], num_outputs: int) -> list[_LayerShape]:
        """The shapes of the layers for examples of this shape."""

    @abstractmethod
    def _layers(
        self, params: Params, inputs: Array, activation: Activation | None = None
    ) -> list[Array]:
        """Outputs of each layer before its activation."""

    def init(
        self,
        key: PRNGKeyArray,
        input_shape: tuple[int, ...],
        num_outputs: int,
        dtype: Any = float,
    ) -> Params:
        """Random parameters: weights and biases of each layer.

        The key is split as stax's `serial` does, one part for each layer, activation and pooling,
        and for the flattening, so that the published initial parameters come out bit for bit.

        Args:
            key: PRNG key.
            input_shape: shape of one example.
            num_outputs: number of outputs.
            dtype: type of the parameters.

        Raises:
            DataError: when the network cannot take examples of this shape.
        """
        layers = []
        for shape in self._shapes(input_shape, num_outputs):
            for _ in range(shape.splits):
                key, _ = jax.random.split(key)
            key, layer_key = jax.random.split(key)
            layers.append(_drawn(self.weights, layer_key, shape.weights, dtype))
        return tuple(layers)

    def layer_sizes(self, input_shape: tuple[int, ...], num_outputs: int) -> list[tuple[int, int]]:
        """Number of parameters of each layer, and number of its outputs for one example.

        Raises:
            DataError: as for `init`.
        """
        shapes = self._shapes(input_shape, num_outputs)
        return [(math.prod(s.weights) + s.weights[-1], s.units) for s in shapes]

    def apply(
        self, params: Params, inputs: Float[Array, "examples *features"]
    ) -> Float[Array, "examples outputs"]:
        """Outputs (logits) of the network."""
        return self._layers(params, inputs)[-1]

    def gates(
        self, params: Params, inputs: Float[Array, "examples *features"]
    ) -> Bool[Array, "examples units"]:
        """Which hidden units, in all layers and pixels, have a positive input, for each example."""
        return _positive(self._layers(params, inputs)[:-1], len(inputs))

    def apply_piece(
        self,
        params: Params,
        inputs: Float[Array, "examples *features"],
        gates: Bool[Array, "examples units"],
    ) -> Float[Array, "examples outputs"]:
        """Outputs of the network with the given hidden units open, in the form of `gates`.

        With the gates of the same parameters, it is the network with ReLU.
        """
        return self._layers(params, inputs, _passing(gates))[-1]


@dataclass(frozen=True)
class FullyConnected(_Network):
    """Layers x W + b with an activation between them; the last layer is linear.

    Attributes:
        widths: widths of the hidden layers.
        activation: a key of ACTIVATIONS.
        weights: name of the initial weights (`ModelConfig.init`).

    >>> model = FullyConnected((100,), "relu", "published")
    >>> sum(leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0), (2,), 3)))
    603
    """

    widths: tuple[int, ...]
    activation: str
    weights: str

    def _shapes(self, input_shape: tuple[int, ...], num_outputs: int) -> list[_LayerShape]:
        """The shapes of the layers; inputs are flattened."""
        sizes = itertools.pairwise((math.prod(input_shape), *self.widths, num_outputs))
        # From the second layer on, an activation comes before the layer.
        return [_LayerShape(shape, shape[1], min(n, 1)) for n, shape in enumerate(sizes)]

    def _layers(
        self, params: Params, inputs: Array, activation: Activation | None = None
    ) -> list[Array]:
        """Outputs of each layer before its activation."""
        activation = activation or ACTIVATIONS[self.activation]
        weight, bias = params[0]
        layers = [inputs.reshape(len(inputs), -1) @ weight + bias]
        for weight, bias in params[1:]:
            layers.append(activation(layers[-1]) @ weight + bias)
        return layers


@dataclass(frozen=True)
class Convolutional(_Network):
    """3x3 convolutions, each with an activation and average pooling, then a dense layer.

    A convolution keeps the sides of its image (padded with zeros); a pooling takes the means of 2x2
    squares, drops the last row or column of an odd side, and is left out if a side is 1.

    Attributes:
        channels: channels of each convolution.
        pools: number of poolings after each convolution and its activation.
        activation: a key of ACTIVATIONS.
        weights: name of the initial weights (`ModelConfig.init`).
        multiple_of: number that must divide the sides of the images.

    >>> model = make_model(ModelConfig(name="myrtle5", widths=(64,)))
    >>> params = jax.eval_shape(lambda key: model.init(key, (32, 32, 3), 10), jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    113226
    """

    channels: tuple[int, ...]
    pools: tuple[int, ...]
    activation: str
    weights: str
    multiple_of: int = 1

    def _shapes(self, input_shape: tuple[int, ...], num_outputs: int) -> list[_LayerShape]:
        """The shapes of the layers for images (height, width, channels)."""
        height, width, inputs = self._checked(input_shape)
        shapes, splits = [], 0
        for outputs, pools in zip(self.channels, self.pools, strict=True):
            shapes.append(_LayerShape((3, 3, inputs, outputs), height * width * outputs, splits))
            done = _num_pools(height, width, pools)
            splits = 1 + done  # the activation and the poolings
            height, width, inputs = height >> done, width >> done, outputs
        dense = (height * width * inputs, num_outputs)
        return [*shapes, _LayerShape(dense, num_outputs, splits + 1)]  # the flattening

    def _layers(
        self, params: Params, inputs: Array, activation: Activation | None = None
    ) -> list[Array]:
        """Outputs of each layer before its activation."""
        activation = activation or ACTIVATIONS[self.activation]
        layers, image = [], inputs
        for (kernel, bias), pools in zip(params[:-1], self.pools, strict=True):
            layers.append(_convolved(image, kernel) + bias)
            image = activation(layers[-1])
            for _ in range(_num_pools(image.shape[1], image.shape[2], pools)):
                image = _pooled(image)
        weight, bias = params[-1]
        return [*layers, image.reshape(len(image), -1) @ weight + bias]

    def _checked(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape of an image, after checking that the network can take it."""
        if len(input_shape) != 3 or 0 in input_shape:
            raise DataError(
                f"each input has shape {input_shape}; expected (height, width, channels) for a "
                "convolutional network: take other data, or model.name fully-connected"
            )
        height, width, channels = input_shape
        if height % self.multiple_of or width % self.multiple_of:
            raise DataError(
                f"images have {height} x {width} pixels; expected multiples of {self.multiple_of}, "
                "which the poolings of this network halve: take model.name convolutional instead"
            )
        return height, width, channels


def _drawn(weights: str, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Layer:
    """Parameters of a layer with weights of this shape, outputs last."""
    weight_key, bias_key = jax.random.split(key)
    weight = _WEIGHTS[weights](weight_key, shape, dtype)
    return weight, _BIASES.get(weights, initializers.zeros)(bias_key, shape[-1:], dtype)


def _positive(hidden: list[Array], num_examples: int) -> Bool[Array, "examples units"]:
    none = jnp.zeros((num_examples, 0), bool)
    units = [(layer > 0).reshape(num_examples, -1) for layer in hidden]
    return jnp.concatenate([none, *units], axis=1)


def _passing(gates: Bool[Array, "examples units"]) -> Activation:
    """An activation, called for one layer after the other, that passes units with open gates."""
    start = 0

    def activation(layer: Array) -> Array:
        nonlocal start
        count = layer[0].size
        mine = gates[:, start : start + count].reshape(layer.shape)
        start += count
        return jnp.where(mine, layer, jnp.zeros_like(layer))

    return activation


def _convolved(image: Array, kernel: Array) -> Array:
    if jax.default_backend() != "cpu":
        form = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=form)
    # Inside a compiled loop on a CPU, XLA's convolutions are up to 50 times slower than a product
    # of matrices (jax-ml/jax issue 12868); training and eigensolvers are such loops.
    return _patches(image) @ kernel.reshape(-1, kernel.shape[-1])


def _patches(image: Array) -> Array:
    """The 3x3 pixels around each pixel, in the order of a kernel; zeros outside of the image."""
    _, height, width, _ = image.shape
    wide = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


def _num_pools(height: int, width: int, most: int) -> int:
    """Number of poolings until a side is 1, at most `most`."""
    return min(most, min(height, width).bit_length() - 1)


def _pooled(image: Array) -> Array:
    """Means of squares of 2x2 pixels."""
    window = (1, 2, 2, 1)
    start = np.zeros((), image.dtype)
    return jax.lax.reduce_window(image, start, jax.lax.add, window, window, "VALID") / 4
