"""Finds and reads checkpoints of other programs as trees of NumPy arrays, and their steps.

Each kind of file is read by its own library, which is imported only then. No code in a file is
executed: PyTorch files are read only if they hold nothing but tensors and plain containers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlf_dynamics.errors import ConfigError, FileError, one_line, shortened
from dlf_dynamics.torch_state import updates_made

Tree = Any
"""Dictionaries and lists of arrays, numbers and texts."""

_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint.msgpack")
_ASIDE = re.compile(
    r"(optimizer|scheduler|rng_state|training_args|scaler)([-_.].*)?", re.IGNORECASE
)
"""Files that trainers leave beside a model, without parameters in them."""

_COUNTED = re.compile(
    r"(?:step|iter|iteration|update|checkpoint|ckpt)s?[-_=. ]?(\d+)", re.IGNORECASE
)
"""Numbers in names that count updates."""

_STEPS = ("global_step", "step", "iteration", "num_updates")
"""What programs call the number of updates in a checkpoint."""


def find_checkpoints(paths: Iterable[Path]) -> list[Path]:
    """The checkpoints among these files and folders, and inside the folders.

    Raises:
        FileError: when a file or folder does not exist or holds no checkpoint.
    """
    checkpoints: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileError(f"checkpoint {path} does not exist")
        inside = [path] if path.is_file() else list(_inside(path))
        if not inside:
            raise FileError(f"{path} has no checkpoint in it; expected {_expected()}")
        checkpoints += inside
    return checkpoints


def _inside(folder: Path) -> Iterator[Path]:
    """The checkpoints in a folder, or the folder itself if it is one."""
    if _is_orbax(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _inside(path)
        elif path.suffix in _READERS and not _ASIDE.fullmatch(path.name):
            yield path


def _is_orbax(folder: Path) -> bool:
    """Whether a folder is an orbax checkpoint; a step's folder has it as its item `default`."""
    return any((folder / name).exists() for name in (_ORBAX[0], *_ORBAX[2:]))


def number_in_name(path: Path, pattern: str | None = None) -> int | None:
    r"""The number in the name of a checkpoint, or of the folder that it is in.

    Args:
        path: path of the checkpoint.
        pattern: regular expression whose only group is the number; None takes the only number in
            the name, or the one after `step`, `iter`, `checkpoint` or the like, of the checkpoint
            or else of its folder.

    Raises:
        ConfigError: when the pattern is not such an expression, or there are several numbers.

    >>> number_in_name(Path("runs/b2/checkpoint-300/model.safetensors"))
    300
    >>> number_in_name(Path("step_300_seed_1.npz"), r"step_(\d+)")
    300
    """
    if pattern is None:
        for name in (path.name.removesuffix(path.suffix), path.parent.name):
            numbers = re.findall(r"\d+", name)
            named = _COUNTED.findall(name)
            if len(named) == 1 or len(set(numbers)) == 1:
                return int(named[0] if len(named) == 1 else numbers[0])
            if numbers:
                raise ConfigError(
                    f"{path} has several numbers in its name; expected a step_pattern that finds "
                    "the one of its step"
                )
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"step_pattern is no regular expression: {error}") from error
    if expression.groups != 1:
        raise ConfigError(
            f"step_pattern has {expression.groups} groups; expected one, such as step_(\\d+)"
        )
    matches = expression.findall(path.as_posix())
    if matches and not str(matches[-1]).isdecimal():
        raise ConfigError(
            f"step_pattern finds {matches[-1]!r} in {path}; expected a whole number: (\\d+)"
        )
    return int(matches[-1]) if matches else None


def own_step(tree: Tree) -> int | None:
    """The number of updates stored in a checkpoint or in its optimizer's state."""
    if not isinstance(tree, Mapping):
        return None
    for name in _STEPS:
        value = tree.get(name)
        if value is not None and np.ndim(value) == 0 and not isinstance(value, str | bytes | bool):
            number = np.asarray(value)
            if np.issubdtype(number.dtype, np.integer) or float(number).is_integer():
                return int(number)
    return updates_made(tree)


def read_checkpoint(path: Path) -> Tree:
    """The content of a checkpoint.

    Raises:
        ConfigError: when the library that reads this kind of file is not installed.
        FileError: when the kind is unknown, or the file is damaged or holds more than arrays.
    """
    reader = _orbax if path.is_dir() else _READERS.get(path.suffix)
    if reader is None:
        raise FileError(f"{path} is of an unknown kind; expected {_expected()}")
    try:
        return reader(path)
    except ImportError as error:
        package = _PACKAGES[reader.__name__]
        raise ConfigError(
            f"{path} needs {package}, which is not installed; pip install {package}"
        ) from error
    except Exception as error:
        reason = shortened(one_line(error), 200)
        raise FileError(f"{path} cannot be read: {type(error).__name__}: {reason}") from error


def _expected() -> str:
    return f"{', '.join(_READERS)}, or a folder that orbax wrote"


def _npz(path: Path) -> Tree:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _safetensors(path: Path) -> Tree:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        numbers = {n: int(v) for n, v in (file.metadata() or {}).items() if n in _STEPS}
        return {name: file.get_tensor(name) for name in file.keys()} | numbers  # noqa: SIM118


def _msgpack(path: Path) -> Tree:
    from flax.serialization import msgpack_restore

    return msgpack_restore(path.read_bytes())


def _orbax(path: Path) -> Tree:
    import jax
    import orbax.checkpoint as ocp

    # As NumPy arrays: JAX would cut float64 to float32 and require the devices of the writer.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        held: Any = reader.metadata(path.absolute())
        kinds = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), held.item_metadata.tree
        )
        return reader.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=kinds))


def _torch(path: Path) -> Tree:
    import torch  # pyright: ignore[reportMissingImports]

    return _from_torch(torch.load(path, map_location="cpu", weights_only=True))


def _from_torch(value: Any) -> Tree:
    """The same tree with NumPy arrays in place of tensors."""
    import torch  # pyright: ignore[reportMissingImports]

    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        if tensor.dtype == torch.bfloat16:  # NumPy has this type from ml_dtypes only
            import ml_dtypes

            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.contiguous().numpy()
    if isinstance(value, Mapping):
        return {key: _from_torch(item) for key, item in value.items()}
    return [_from_torch(item) for item in value] if isinstance(value, list | tuple) else value


_READERS: dict[str, Callable[[Path], Tree]] = {
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".msgpack": _msgpack,
    ".pt": _torch,
    ".pth": _torch,
    ".bin": _torch,
    ".ckpt": _torch,
}
"""Readers by the suffix of the file."""

_PACKAGES = {
    "_npz": "numpy",
    "_safetensors": "safetensors",
    "_msgpack": "flax",
    "_orbax": "orbax-checkpoint",
    "_torch": "torch",
}
"""Package to install, by the reader that needs it."""
