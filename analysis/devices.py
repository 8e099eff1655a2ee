"""Work on many checkpoints at once, shared out over the devices of the machine.

The command line makes every core of a CPU a device for small networks, whose operations are too
short to be shared out themselves (`startup`). Several GPUs are used in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import PyTree

Item = TypeVar("Item")

_AXIS = "checkpoints"


def map_over_devices(function: Callable[[PyTree], PyTree], batch: PyTree) -> PyTree:
    """Like `jax.lax.map(function, batch)`, each device taking an equal part of the batch.

    To be called in a function that is compiled. There is no exchange between the devices, so the
    results do not depend on their number.

    Args:
        function: of an element of the batch.
        batch: leaves of the same leading size, a multiple of `jax.device_count()`.
    """
    mesh = jax.make_mesh((jax.device_count(),), (_AXIS,), axis_types=(AxisType.Auto,))
    part = PartitionSpec(_AXIS)
    of_part = lambda elements: jax.lax.map(function, elements)  # noqa: E731
    # The check of replication knows no while loops whose lengths differ between devices.
    return jax.shard_map(of_part, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)(batch)


def rounded_up(count: int) -> int:
    """The next multiple of the number of devices."""
    return -(-count // jax.device_count()) * jax.device_count()


def filled(items: list[Item], count: int) -> list[Item]:
    """The list with its last item repeated, so that one compilation serves lists of any length."""
    return [*items, *[items[-1]] * (count - len(items))]


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each given out when the next one was asked for.

    What the devices still compute when it is made goes on while the one before is treated.
    """
    before: list[Item] = []
    for item in items:
        yield from before
        before = [item]
    yield from before
