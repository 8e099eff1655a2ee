"""Checksums of rows: CRC-32 of a row's step, as int64, and its values after it, little-endian.

They find what changed by accident: damaged disks, broken copies, writes of other programs. Rows of
many bytes take 0.7 ms for each megabyte, without Python's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from jaxtyping import Int, Shaped, UInt8


def of_rows(
    steps: Int[np.ndarray, " rows"], values: Shaped[np.ndarray, "rows *row"]
) -> Int[np.ndarray, " rows"]:
    """Of each row of one value.

    >>> of_rows(np.array([7]), np.array([[0.5, 0.25]])).tolist()
    [1676482311]
    """
    pairs = zip(_bytes_of(steps), _bytes_of(values), strict=True)
    return np.array([crc32(row, crc32(step)) for step, row in pairs], np.int64)


def of_joined_rows(
    steps: Int[np.ndarray, " rows"], columns: Sequence[Shaped[np.ndarray, "rows ..."]]
) -> Int[np.ndarray, " rows"]:
    """Of each row of several values, one checksum for all: for rows of few bytes."""
    joined = np.concatenate([_bytes_of(values) for values in (steps, *columns)], axis=1)
    return np.array([crc32(row) for row in joined], np.int64)


def of_vectors(step: int, vectors: Sequence[Shaped[np.ndarray, " _numbers"]]) -> int:
    """Of a step and the vectors of its state."""
    found = crc32(_bytes_of(np.array([step], np.int64))[0])
    for vector in vectors:
        found = crc32(_bytes_of(vector[None])[0], found)
    return found


def _bytes_of(values: Shaped[np.ndarray, "rows *row"]) -> UInt8[np.ndarray, "rows bytes"]:
    """The bytes of each row."""
    ordered = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    width = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=int))
    return (
        ordered.view(np.uint8).reshape(len(values), width)
        if width
        else np.zeros((len(values), 0), np.uint8)
    )
