"""Work shared out over devices: many checkpoints of small networks, the examples of large ones.

The command line makes every core of a CPU a device for small networks, whose operations are too
short to be shared out themselves (`startup`). Several GPUs are used in the same way. For a large
network each device takes a part of the examples, and of the numbers of each vector (`vectors`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from dlf_dynamics.problem import Problem

Item = TypeVar("Item")

_AXIS = "devices"


@lru_cache
def mesh() -> Mesh | None:
    """All devices, also those of other processes, in a row; none where there is only one."""
    if jax.device_count() == 1:
        return None
    return jax.make_mesh((jax.device_count(),), (_AXIS,), axis_types=(AxisType.Auto,))


def map_over_devices(
    function: Callable[[PyTree], PyTree], batch: PyTree, *, batch_size: int | None = None
) -> PyTree:
    """Like `jax.lax.map(function, batch)`, each device taking an equal part of the batch.

    To be called in a function that is compiled. There is no exchange between the devices, so the
    results do not depend on their number. Of several processes each does all of it.

    Args:
        function: function of an element of the batch.
        batch: leaves of the same leading size, a multiple of `jax.local_device_count()`.
        batch_size: elements that a device treats as one vector; none takes one after the other.
    """
    own = Mesh(np.array(jax.local_devices()), (_AXIS,), axis_types=(AxisType.Auto,))
    part = PartitionSpec(_AXIS)
    of_part = partial(jax.lax.map, function, batch_size=batch_size)
    # The check of replication knows no while loops whose lengths differ between devices.
    return jax.shard_map(of_part, mesh=own, in_specs=part, out_specs=part, check_vma=False)(batch)


@partial(
    jax.tree_util.register_dataclass, data_fields=["equal", "rest"], meta_fields=["mesh", "counts"]
)
@dataclass(frozen=True)
class SharedProblem:
    """A problem whose examples are shared out over devices.

    Attributes:
        equal: the problem on as many examples as make equal parts, each on its device.
        rest: the problem on those left over, fewer than there are devices, on each of these.
        mesh: the devices.
        counts: numbers of examples of both.
    """

    equal: Problem
    rest: Problem
    mesh: Mesh
    counts: tuple[int, int]

    @classmethod
    def of(cls, problem: Problem, mesh: Mesh) -> SharedProblem:
        """The same problem, its data laid on the devices."""
        count = problem.num_examples
        end = count - count % mesh.size

        def laid(some: slice, spec: PartitionSpec) -> Problem:
            there = NamedSharding(mesh, spec)

            def put(leaf: Array, sharding: NamedSharding = there) -> Array:
                whole = np.asarray(leaf)
                return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

            copied = partial(put, sharding=NamedSharding(mesh, PartitionSpec()))
            return replace(
                problem,
                inputs=put(problem.inputs[some]),
                targets=put(problem.targets[some]),
                origin=jax.tree.map(copied, problem.origin),
            )

        equal = laid(slice(0, end), PartitionSpec(_AXIS))
        return cls(equal, laid(slice(end, count), PartitionSpec()), mesh, (end, count - end))

    def product(
        self,
        make: Callable[..., Callable[[Array], Array]],
        arguments: tuple[Any, ...],
        vector: Float[Array, " params"],
    ) -> Float[Array, " params"]:
        """Product of a mean over the examples, of their parts on the devices at once.

        Parameters and vector are whole on each device, as the model needs them; the parts of the
        product are summed by one exchange.

        Args:
            make: `make(problem, *arguments)`, the matvec of a problem, a mean over its examples.
            arguments: arrays.
            vector: what is multiplied.
        """
        equal, rest = self.counts
        everywhere, part = PartitionSpec(), PartitionSpec(_AXIS)
        data: Any = replace(
            self.equal,
            inputs=part,
            targets=part,
            origin=jax.tree.map(lambda _: everywhere, self.equal.origin),
        )

        def of_part(problem: Problem, arguments: tuple[Any, ...], vector: Array) -> Array:
            return jax.lax.pmean(make(problem, *arguments)(vector), _AXIS)

        mapped = jax.shard_map(
            of_part,
            mesh=self.mesh,
            in_specs=(data, everywhere, everywhere),
            out_specs=everywhere,
            check_vma=False,
        )
        products = []
        if equal:
            products.append(equal / (equal + rest) * mapped(self.equal, arguments, vector))
        if rest or not equal:
            share = rest / (equal + rest) if rest else 1.0
            products.append(share * make(self.rest, *arguments)(vector))
        return sum(products[1:], products[0])


_laid: list[tuple[Problem, SharedProblem]] = []
"""What was laid on the devices last: along a run it is the same again and again."""


def shared_problem(problem: Problem, several: Mesh | None) -> SharedProblem | None:
    """The problem with its examples on the devices, laid there once; none where there is one."""
    if several is None:
        return None
    for known, shared in _laid:
        if known is problem and shared.mesh == several:
            return shared
    shared = SharedProblem.of(problem, several)
    _laid[:] = [*_laid[-1:], (problem, shared)]  # a run's, and the same in float64
    return shared


def rounded_up(count: int) -> int:
    """The next multiple of the number of this process's devices."""
    return -(-count // jax.local_device_count()) * jax.local_device_count()


def filled(items: list[Item], count: int) -> list[Item]:
    """The list with its last item repeated, so that one compilation serves lists of any length."""
    return [*items, *[items[-1]] * (count - len(items))]


def in_groups(items: Sequence[Item]) -> Iterator[tuple[list[Item], int]]:
    """As many at a time as there are devices, filled up, and how many of them count."""
    count = jax.local_device_count()
    for start in range(0, len(items), count):
        some = list(items[start : start + count])
        yield filled(some, count), len(some)


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each given out when the next one was asked for.

    What the devices still compute when it is made goes on while the one before is treated.
    """
    before: list[Item] = []
    for item in items:
        yield from before
        before = [item]
    yield from before
