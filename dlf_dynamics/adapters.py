"""Models of Equinox, Flax, Haiku and PyTorch as the `apply` and the parameters of a `Problem`.

Each function freezes what is not trained and takes the model in evaluation mode, without dropout
and with the running statistics of batch norm: eigenvalues need a loss that is the same every time
it is computed. Adapt a model once, before the loop: each `apply` is compiled separately.

Running statistics are frozen at their values in the adapted model. Training changes them, so
`Recorder` refuses such a model unless the user states that the loop leaves them alone.
`statistics_of` lists those of an adapted model.

The frameworks are imported when a function is called, so none of them is required.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, PyTree

from dlf_dynamics.errors import ConfigError

Apply = Callable[[Any, Array], Array]


def statistics_of(apply: Apply) -> tuple[str, ...]:
    """Names of the frozen arrays of an adapted model that training would change."""
    return getattr(apply, "statistics", ())


def frozen_in(apply: Apply) -> Mapping[str, Any]:
    """The frozen values of an adapted model by name; None where its outputs do not need one."""
    return getattr(apply, "frozen", {})


def _with_statistics(apply: Apply, state: PyTree) -> Apply:
    """The function, with the state that is frozen in it as its attributes."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    held = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    apply.statistics, apply.frozen = tuple(held), held  # type: ignore[attr-defined]
    return apply


def from_equinox(model: Any, state: Any = None, *, batched: bool = False) -> tuple[Apply, PyTree]:
    """An Equinox model in inference mode; its floating-point arrays are the parameters.

    Later parameters are `equinox.filter(model, equinox.is_inexact_array)` of the trained model, and
    `equinox.combine(params, model)` is the model with these parameters.

    Args:
        model: model that is called with one example, or with all of them if `batched`.
        state: state of a model that has one (batch norm, for example), as returned by
            `equinox.nn.make_with_state`; such a model is called with example and state, and returns
            output and state.
        batched: whether the model takes a leading axis of examples itself.

    >>> import equinox as eqx
    >>> model = eqx.nn.MLP(2, 3, width_size=8, depth=1, key=jax.random.key(0))
    >>> apply, params = from_equinox(model)
    >>> apply(params, jax.numpy.ones((5, 2))).shape
    (5, 3)
    """
    import equinox as eqx

    evaluated = eqx.nn.inference_mode(model)
    params, static = eqx.partition(evaluated, eqx.is_inexact_array)

    def of_one(params: PyTree, inputs: Array) -> Array:
        combined = eqx.combine(params, static)
        return combined(inputs) if state is None else combined(inputs, state)[0]

    if batched:
        return _with_statistics(of_one, state), params
    apply = jax.vmap(of_one, in_axes=(None, 0), axis_name="batch")
    return _with_statistics(apply, state), params


def from_linen(module: Any, variables: PyTree, **options: Any) -> tuple[Apply, PyTree]:
    """A Flax linen module; its collection `params` is trained, the others stay as they are.

    Args:
        module: module that is called with all examples.
        variables: variables as returned by `module.init` or by training.
        options: options of each call, such as `train=False` or `deterministic=True`, and of
            `module.apply`, such as `method`.

    Raises:
        ConfigError: when the variables have no collection `params`, or `mutable` is given.

    >>> from flax import linen as nn
    >>> module = nn.Dense(3)
    >>> variables = module.init(jax.random.key(0), jax.numpy.ones((1, 2)))
    >>> apply, params = from_linen(module, variables)
    >>> apply(params, jax.numpy.ones((5, 2))).shape, sorted(params)
    ((5, 3), ['bias', 'kernel'])
    """
    if "params" not in variables:
        raise ConfigError(
            f"the variables have the collections {_names(variables)}; expected 'params' among "
            "them: pass all that module.init returned"
        )
    if "mutable" in options:
        raise ConfigError(
            "mutable is given; expected a module that changes nothing: leave it out and evaluate, "
            "for example with train=False"
        )
    frozen = {name: value for name, value in variables.items() if name != "params"}

    def apply(params: PyTree, inputs: Array) -> Array:
        return module.apply({**frozen, "params": params}, inputs, **options)

    return _with_statistics(apply, frozen), variables["params"]


def from_nnx(model: Any) -> tuple[Apply, PyTree]:
    """A Flax NNX model as after `model.eval()`; its `nnx.Param`s are trained, the rest is frozen.

    The model itself is left as it is. Parameters are a dictionary of arrays: later ones are
    `nnx.to_pure_dict(nnx.state(model, nnx.Param))` of the trained model, and
    `nnx.update(model, params)` puts them into a model.

    Args:
        model: model that is called with all examples.

    >>> from flax import nnx
    >>> apply, params = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> apply(params, jax.numpy.ones((5, 2))).shape, sorted(params)
    ((5, 3), ['bias', 'kernel'])
    """
    from flax import nnx

    evaluated = nnx.clone(model)
    evaluated.eval()
    graph, variables, rest = nnx.split(evaluated, nnx.Param, ...)

    def apply(params: PyTree, inputs: Array) -> Array:
        return nnx.merge(graph, params, rest)(inputs)

    changed, _ = nnx.split_state(rest, nnx.Not(nnx.RngState), ...)
    return _with_statistics(apply, nnx.to_pure_dict(changed)), nnx.to_pure_dict(variables)


def from_haiku(
    transformed: Any, params: PyTree, state: PyTree = None, **options: Any
) -> tuple[Apply, PyTree]:
    """A function that `haiku.transform` or `haiku.transform_with_state` transformed.

    Args:
        transformed: transformed function of all examples; it gets no random key.
        params: parameters as returned by `transformed.init` or by training.
        state: state to freeze; needed after `transform_with_state`.
        options: options of each call, such as `is_training=False`.

    Raises:
        ConfigError: when a state is missing or not expected; `apply` raises it when the function
            needs random numbers.

    >>> import haiku as hk
    >>> transformed = hk.transform(lambda x: hk.Linear(3)(x))
    >>> inputs = jax.numpy.ones((5, 2))
    >>> apply, params = from_haiku(transformed, transformed.init(jax.random.key(0), inputs))
    >>> apply(params, inputs).shape
    (5, 3)
    """
    import haiku as hk

    stateful = isinstance(transformed, hk.TransformedWithState)
    if stateful and state is None:
        raise ConfigError(
            "state is missing; expected the one that init returned beside params, as the function "
            "was made by transform_with_state"
        )
    if not stateful and state is not None:
        raise ConfigError("state is given; expected none, as the function was made by transform")

    def apply(params: PyTree, inputs: Array) -> Array:
        try:
            if stateful:
                return transformed.apply(params, state, None, inputs, **options)[0]
            return transformed.apply(params, None, inputs, **options)
        except ValueError as error:
            if "PRNGKey" not in str(error):
                raise
            raise ConfigError(
                "the Haiku function draws random numbers; expected a deterministic one: switch "
                "dropout off, for example with from_haiku(..., is_training=False)"
            ) from error

    return _with_statistics(apply, state), params


def from_torch(
    module: Any, inputs: Any = None, *, with_statistics: bool = False
) -> tuple[Apply, dict[str, Array]]:
    """A PyTorch module as after `module.eval()`; parameters that require gradients are trained.

    The module itself is left as it is, and nothing is shared with it. Parameters are a dictionary
    of arrays by the names of `module.named_parameters()`: later ones are
    `params_of(apply, module.state_dict())`. A parameter with several names (tied weights) is one,
    under its first name. Parameters with `requires_grad=False` and all buffers are frozen.

    torchax computes the module in JAX. Outputs and gradient are compared with PyTorch's own for
    each shape of inputs, at parameters near those of the module; a module that differs is refused.

    Args:
        module: module that is called with all examples and returns one tensor, a row for each.
        inputs: some or all examples, with which values are compared with PyTorch's at once, and the
            buffers found that a pass in training mode changes. Without them, examples are made up
            when `apply` is first called, and all buffers of the state_dict count as statistics.
        with_statistics: whether the running statistics that training changes are among the
            parameters (they are not differentiated), so that they are recorded with them; see
            docs/own/models.md.

    Raises:
        ConfigError: when torch or torchax is not installed; the module cannot be copied, has
            parameters of several types, of half precision or complex, or none; or float64 where JAX
            computes in float32. `apply` raises it for what torchax cannot compute or computes
            otherwise than PyTorch, and for random numbers.

    >>> import torch  # doctest: +SKIP
    >>> module = torch.nn.Linear(2, 3)  # doctest: +SKIP
    >>> apply, params = from_torch(module, jax.numpy.ones((5, 2)))  # doctest: +SKIP
    >>> apply(params, jax.numpy.ones((5, 2))).shape, sorted(params)  # doctest: +SKIP
    ((5, 3), ['bias', 'weight'])
    """
    from dlf_dynamics.torch_modules import adapted

    return adapted(module, inputs, with_statistics=with_statistics)


def params_of(apply: Apply, state: Mapping[str, Any]) -> dict[str, Array]:
    """Parameters of an adapted PyTorch module, copied from a later state_dict.

    Args:
        apply: function that `from_torch` returned.
        state: `module.state_dict()`, taken now or saved earlier.

    Raises:
        ConfigError: when names or shapes differ from the module's, or a frozen value has changed.
    """
    from dlf_dynamics.torch_modules import params_of

    taken = getattr(apply, "torch_module", None)
    if taken is None:
        raise ConfigError("apply has no PyTorch module; expected the one that from_torch gave")
    return params_of(taken, state)


def _names(variables: PyTree) -> str:
    return ", ".join(map(repr, variables)) or "none"
