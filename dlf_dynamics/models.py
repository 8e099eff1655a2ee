"""Networks as pure functions of a pytree of parameters: fully connected and convolutional."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """N(0, 1/fan_in), drawn as neural-tangents' "standard" parameterisation draws it."""
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
# The initializer of stax itself, whose last bit differs between versions of JAX.
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


class _Gated(ABC):
    """A network whose hidden units pass or stop what comes to them."""

    @abstractmethod
    def _layers(
        self, params: Params, inputs: Array, activation: Activation | None = None
    ) -> list[Array]:
        """What each layer gives before its activation."""

    def gates(
        self, params: Params, inputs: Float[Array, "examples *features"]
    ) -> Bool[Array, "examples units"]:
        """Which hidden units, of all layers and pixels, have a positive input at each example."""
        return _positive(self._layers(params, inputs)[:-1], len(inputs))

    def apply_piece(
        self,
        params: Params,
        inputs: Float[Array, "examples *features"],
        gates: Bool[Array, "examples units"],
    ) -> Float[Array, "examples outputs"]:
        """Outputs of the network in which these hidden units, as `gates` tells them, pass.

        With the gates of its own parameters it is the network with ReLU.
        """
        return self._layers(params, inputs, _passing(gates))[-1]


@dataclass(frozen=True)
class FullyConnected(_Gated):
    """Layers x W + b with an activation between them; the last layer is linear.

    Attributes:
        widths: of the hidden layers.
        activation: a key of ACTIVATIONS.
        weights: a name of the initial weights (`ModelConfig.init`).

    >>> model = FullyConnected((100,), "relu", "published")
    >>> sum(leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0), (2,), 3)))
    603
    """

    widths: tuple[int, ...]
    activation: str
    weights: str

    def init(
        self,
        key: PRNGKeyArray,
        input_shape: tuple[int, ...],
        num_outputs: int,
        dtype: Any = float,
    ) -> Params:
        """Random parameters.

        The key is split as stax's `serial` does, one part for each layer and each activation, so
        that the published initial parameters come out bit for bit.

        Args:
            key: of the draw.
            input_shape: of one example, which is flattened.
            num_outputs: of the network.
            dtype: of the parameters.
        """
        sizes = (math.prod(input_shape), *self.widths, num_outputs)
        layers = []
        for shape in itertools.pairwise(sizes):
            layer, key = _draw(self.weights, key, shape, dtype)
            layers.append(layer)
            key, _ = jax.random.split(key)
        return tuple(layers)

    def layer_sizes(self, input_shape: tuple[int, ...], num_outputs: int) -> list[tuple[int, int]]:
        """Parameters of each layer, and numbers that it gives for an example."""
        sizes = (math.prod(input_shape), *self.widths, num_outputs)
        return [((inputs + 1) * outputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]

    def apply(
        self, params: Params, inputs: Float[Array, "examples *features"]
    ) -> Float[Array, "examples outputs"]:
        """Outputs (logits) of the network; image inputs are flattened."""
        return self._layers(params, inputs)[-1]

    def _layers(
        self, params: Params, inputs: Array, activation: Activation | None = None
    ) -> list[Array]:
        """What each layer gives before its activation."""
        activation = activation or ACTIVATIONS[self.activation]
        weight, bias = params[0]
        layers = [inputs.reshape(len(inputs), -1) @ weight + bias]
        for weight, bias in params[1:]:
            layers.append(activation(layers[-1]) @ weight + bias)
        return layers


@dataclass(frozen=True)
class Convolutional(_Gated):
    """3x3 convolutions with an activation and average pooling after each, then a dense layer.

    A convolution keeps the sides of its image (zeros around it); a pooling takes the means of 2x2
    squares, without the last row or column where a side is odd, and is left out where a side is 1.

    Attributes:
        channels: of each convolution.
        pools: how many poolings follow each convolution and its activation.
        activation: a key of ACTIVATIONS.
        weights: a name of the initial weights (`ModelConfig.init`).
        multiple_of: which the sides of the images must be a multiple of.

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

    def init(
        self,
        key: PRNGKeyArray,
        input_shape: tuple[int, ...],
        num_outputs: int,
        dtype: Any = float,
    ) -> Params:
        """Random parameters: of each convolution a kernel (3, 3, inputs, outputs) and biases.

        The key is split as stax's `serial` does, one part for each convolution, activation and
        pooling, and for the flattening.

        Args:
            key: of the draw.
            input_shape: (height, width, channels) of one example.
            num_outputs: of the network.
            dtype: of the parameters.

        Raises:
            DataError: when the inputs are no images, or not of sides that the network can take.
        """
        height, width, inputs = self._checked(input_shape)
        layers = []
        for outputs, pools in zip(self.channels, self.pools, strict=True):
            layer, key = _draw(self.weights, key, (3, 3, inputs, outputs), dtype)
            layers.append(layer)
            done = _num_pools(height, width, pools)
            for _ in range(1 + done):
                key, _ = jax.random.split(key)
            height, width, inputs = height >> done, width >> done, outputs
        key, _ = jax.random.split(key)
        layer, _ = _draw(self.weights, key, (height * width * inputs, num_outputs), dtype)
        return (*layers, layer)

    def layer_sizes(self, input_shape: tuple[int, ...], num_outputs: int) -> list[tuple[int, int]]:
        """Parameters of each layer, and numbers that it gives for an example.

        Raises:
            DataError: as for `init`.
        """
        height, width, inputs = self._checked(input_shape)
        sizes = []
        for outputs, pools in zip(self.channels, self.pools, strict=True):
            sizes.append(((9 * inputs + 1) * outputs, height * width * outputs))
            done = _num_pools(height, width, pools)
            height, width, inputs = height >> done, width >> done, outputs
        return [*sizes, ((height * width * inputs + 1) * num_outputs, num_outputs)]

    def apply(
        self, params: Params, inputs: Float[Array, "examples height width channels"]
    ) -> Float[Array, "examples outputs"]:
        """Outputs (logits) of the network."""
        return self._layers(params, inputs)[-1]

    def _layers(
        self, params: Params, inputs: Array, activation: Activation | None = None
    ) -> list[Array]:
        """What each layer gives before its activation."""
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
        """The shape of an image that the network can take."""
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


def _draw(
    weights: str, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any
) -> tuple[Layer, PRNGKeyArray]:
    """Parameters of a layer with weights of this shape, its outputs last, and what to draw from."""
    key, layer_key = jax.random.split(key)
    weight_key, bias_key = jax.random.split(layer_key)
    weight = _WEIGHTS[weights](weight_key, shape, dtype)
    bias = _BIASES.get(weights, initializers.zeros)(bias_key, shape[-1:], dtype)
    return (weight, bias), key


def _positive(hidden: list[Array], num_examples: int) -> Bool[Array, "examples units"]:
    none = jnp.zeros((num_examples, 0), bool)
    units = [(layer > 0).reshape(num_examples, -1) for layer in hidden]
    return jnp.concatenate([none, *units], axis=1)


def _passing(gates: Bool[Array, "examples units"]) -> Activation:
    """An activation to be asked for one layer after the other: units pass where a gate is open."""
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
    """The 3x3 pixels around each pixel, in the order of a kernel; zeros beyond the image."""
    _, height, width, _ = image.shape
    wide = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


def _num_pools(height: int, width: int, most: int) -> int:
    """Poolings until a side is 1, or `most`."""
    return min(most, min(height, width).bit_length() - 1)


def _pooled(image: Array) -> Array:
    """Means of squares of 2x2 pixels."""
    window = (1, 2, 2, 1)
    start = np.zeros((), image.dtype)
    return jax.lax.reduce_window(image, start, jax.lax.add, window, window, "VALID") / 4
