"""`Recording`: what is known of a run of a custom training loop; `Setup`: the loop's problem."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from dlf_dynamics.datasets import digest
from dlf_dynamics.dynamics import Dynamics
from dlf_dynamics.errors import ConfigError, one_line
from dlf_dynamics.hdf5 import ContentError, json_object
from dlf_dynamics.layout import Layout
from dlf_dynamics.optimizers import NO_OPTIMIZER, Unmade
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Static

NO_NAME = "no optimizer"
"""Name of the optimizer in a recording without one."""


@dataclass(frozen=True)
class Recording:
    """What `Recorder` was told about a loop.

    Attributes:
        optimizer: name of the optimizer, for labels.
        full_batch: whether each update uses the problem's whole loss.
        stateful: whether the optimizer's state was recorded; in older files it always was.
        replayed: whether updates may be replayed; not for checkpoints of other programs.
    """

    optimizer: str
    full_batch: bool
    stateful: bool = True
    replayed: bool = True

    @property
    def has_optimizer(self) -> bool:
        """Whether the optimizer is known."""
        return self.optimizer != NO_NAME

    @property
    def own_updates(self) -> bool:
        """Whether any update can be replayed."""
        return self.has_optimizer and self.full_batch and self.stateful and self.replayed

    @classmethod
    def from_json(cls, text: str) -> Recording:
        """Reads what `to_json` wrote; unknown keys, of newer versions, are ignored.

        Raises:
            ContentError: when a key is missing or has another type.
        """
        content = json_object(text, "/recording")
        known = {name: content.get(name) for name in get_type_hints(cls)}
        known |= {name: content.get(name, True) for name in ("stateful", "replayed")}
        for name, kind in get_type_hints(cls).items():
            if not isinstance(known[name], kind):
                raise ContentError(f"/recording has {name} {known[name]!r}; expected {kind}")
        return cls(**known)  # type: ignore[arg-type]

    def to_json(self) -> str:
        """The recording as JSON."""
        return json.dumps(asdict(self))


class Setup(NamedTuple):
    """What a custom training loop trains; `--problem` names a function that returns it.

    Attributes:
        problem: problem as a function of a pytree of parameters.
        optimizer: optax transformation that makes the updates; None if it is unknown.
        params: parameters of the problem; only their form matters.
    """

    problem: Problem
    optimizer: optax.GradientTransformation | None
    params: PyTree

    @property
    def layout(self) -> Layout:
        """The form of the parameters."""
        return Layout.of(self.params)

    def dynamics(self, recording: Recording, layout: Layout | None = None) -> Dynamics:
        """The dynamics of the loop, in flat parameters.

        Unknown mini-batches cannot be replayed; a batch of all examples stands for them.

        Args:
            recording: what the run file says about the loop.
            layout: layout of the parameters with other types than the model's own.
        """
        layout = self.layout if layout is None else layout
        optimizer: Any = self.optimizer if recording.has_optimizer else None
        if optimizer is not None and not (recording.stateful and self.makes_updates):
            optimizer = Unmade(optimizer, recording.stateful)
        return Dynamics(
            self.problem.flat(layout),
            NO_OPTIMIZER if optimizer is None else optimizer,
            _unknown_rate,
            Static(0),
            batch_size=None if recording.full_batch else self.problem.num_examples,
            layout=layout,
        )

    @property
    def makes_updates(self) -> bool:
        """Whether updates need nothing but gradients, state and parameters.

        Some optimizers also need the value of the loss, or the loss itself.
        """
        rule = NO_OPTIMIZER if self.optimizer is None else self.optimizer
        try:
            jax.eval_shape(lambda p: rule.update(p, rule.init(p), p), self.params)
        except Exception:
            return False
        return True

    def data_sha256(self) -> str:
        """Digest of the data."""
        return digest(np.asarray(self.problem.inputs), np.asarray(self.problem.targets))


def _unknown_rate(step: Any) -> Any:
    """The learning rate of an optimizer that does not reveal it."""
    return jnp.full(jnp.shape(step), jnp.nan)


def load_setup(name: str) -> Setup:
    """Calls the function that `module:function` or `file.py:function` names.

    Raises:
        ConfigError: when there is no such function, it fails, or it does not return problem,
            optimizer and parameters.
    """
    source, _, function = name.rpartition(":")
    if not source or not function.isidentifier():
        raise ConfigError(
            f"problem is {name!r}; expected module:function or file.py:function, "
            "such as mymodel.py:setup"
        )
    module = _imported(source)
    make = getattr(module, function, None)
    if not callable(make):
        names = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise ConfigError(f"{source} has no function {function!r}; it has {', '.join(names)}")
    try:
        returned = make()
    except Exception as error:
        raise ConfigError(f"{name} failed: {type(error).__name__}: {one_line(error)}") from error
    return _checked(name, returned)


def _checked(name: str, returned: Any) -> Setup:
    parts = tuple(returned) if isinstance(returned, tuple) else (returned,)
    kinds = [type(part).__name__ for part in parts]
    if (
        len(parts) == 3
        and isinstance(parts[0], Problem)
        and (parts[1] is None or hasattr(parts[1], "update"))
    ):
        return Setup(*parts)
    raise ConfigError(
        f"{name} returned {', '.join(kinds)}; expected (problem, optimizer, params): a Problem, an "
        "optax transformation and the parameters"
    )


def _imported(source: str) -> Any:
    path = Path(source)
    try:
        if path.suffix != ".py":
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(source)
        if not path.is_file():
            raise ConfigError(f"problem file {source} does not exist")
        # Not under its own name, which may be the name of a package that it imports.
        name = f"_setup_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # pickle, dataclasses and others look up the classes of the file here.
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{source} could not be imported: {type(error).__name__}: {one_line(error)}"
        ) from error
