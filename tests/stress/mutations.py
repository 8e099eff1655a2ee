"""Files as accident or malice changes them: bytes, and the structure of HDF5."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

Mutation = Callable[[Path, np.random.Generator], str | None]
"""Changes a file in place and says how; none where the file has nothing that it could change."""

TEXTS = ("config", "provenance", "recording", "study", "status")
BROKEN_JSON = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"7",
    b'"text"',
    b"{}",
    b'{"steps": "many"}',
    b'{"steps": 1e400}',
    b'{"model": 3}',
    b"\xff\xfe not UTF-8",
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b"9" * 20_000,
    b'{"name": "$\\\\frac{$ [/b] [link=x]"}',
    b'{"steps": NaN}',
    b"x" * 3_000_000,
)
NUMBERS = (np.nan, np.inf, -np.inf, -1, 0, 1e300, 2**62, -(2**62))
SHAPES = ((), (0,), (1,), (3, 5), (2, 2, 2), (0, 7), (1, 10**6))


def mutate(path: Path, rng: np.random.Generator) -> str:
    """Changes a file in one way, and says which."""
    while True:
        kind = MUTATIONS[rng.integers(len(MUTATIONS))]
        told = kind(path, rng)
        if told is not None:
            return told


def _flip(path: Path, rng: np.random.Generator) -> str:
    """Bits of some bytes; zeros are mostly room that nothing uses."""
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    where = rng.choice(np.flatnonzero(content), size=int(rng.choice([1, 1, 3, 30])))
    content[where] ^= rng.integers(1, 256, len(where), dtype=np.uint8)
    path.write_bytes(content.tobytes())
    return f"flips bytes {where[:5].tolist()}"


def _blank(path: Path, rng: np.random.Generator) -> str:
    """A block becomes zeros, as after a lost write."""
    content = bytearray(path.read_bytes())
    used = np.flatnonzero(np.frombuffer(bytes(content), np.uint8))
    start, length = int(rng.choice(used)), int(rng.choice([8, 64, 512, 4096]))
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(bytes(content))
    return f"blanks {length} bytes at {start}"


def _cut(path: Path, rng: np.random.Generator) -> str:
    content = path.read_bytes()
    length = int(rng.integers(0, len(content)))
    path.write_bytes(content[:length])
    return f"cuts to {length} of {len(content)} bytes"


def _append(path: Path, rng: np.random.Generator) -> str:
    length = int(rng.integers(1, 10_000))
    with path.open("ab") as file:
        file.write(rng.bytes(length))
    return f"appends {length} bytes"


def _foreign(path: Path, rng: np.random.Generator) -> str:
    content = (b"", b"\x89HDF\r\n\x1a\n", b"steps = 3\n", b"PK\x03\x04" + bytes(100))
    chosen = int(rng.integers(len(content)))
    path.write_bytes(content[chosen])
    return f"is replaced by {content[chosen][:12]!r}"


def _in_file(change: Callable[[h5py.File, list[str], np.random.Generator], str | None]) -> Mutation:
    """A mutation that HDF5 itself makes, given the paths of all objects."""

    def mutation(path: Path, rng: np.random.Generator) -> str | None:
        names: list[str] = []
        with h5py.File(path, "r+") as file:
            file.visit(names.append)
            return change(file, sorted(names), rng)

    return mutation


def _datasets(file: h5py.File, names: list[str]) -> list[str]:
    return [name for name in names if isinstance(file[name], h5py.Dataset)]


def _grows(dataset: h5py.Dataset) -> bool:
    return (dataset.maxshape or ())[:1] == (None,)


def _pick(names: list[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def _replaced(file: h5py.File, name: str, **options: object) -> None:
    """A dataset anew, its attributes kept."""
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, **options).attrs.update(attributes)


@_in_file
def _delete(file: h5py.File, names: list[str], rng: np.random.Generator) -> str:
    name = _pick(names, rng)
    del file[name]
    return f"deletes /{name}"


@_in_file
def _group_for_dataset(file: h5py.File, names: list[str], rng: np.random.Generator) -> str:
    name = _pick(_datasets(file, names), rng)
    del file[name]
    file.create_group(name)
    return f"makes a group of /{name}"


@_in_file
def _dataset_for_group(file: h5py.File, names: list[str], rng: np.random.Generator) -> str | None:
    groups = [name for name in names if isinstance(file[name], h5py.Group)]
    if not groups:
        return None
    name = _pick(groups, rng)
    del file[name]
    file[name] = 3.0
    return f"makes a dataset of /{name}"


@_in_file
def _retype(file: h5py.File, names: list[str], rng: np.random.Generator) -> str:
    name = _pick(_datasets(file, names), rng)
    kinds = (
        "S4",
        "i1",
        "u8",
        "f2",
        "f4",
        "c16",
        "bool",
        h5py.string_dtype(),
        h5py.vlen_dtype("f8"),
    )
    kind = kinds[int(rng.integers(len(kinds)))]
    growing = {"maxshape": (None, *file[name].shape[1:])} if _grows(file[name]) else {}
    _replaced(file, name, shape=file[name].shape, dtype=kind, **growing)
    return f"makes /{name} of type {kind}"


@_in_file
def _compound(file: h5py.File, names: list[str], rng: np.random.Generator) -> str:
    name = _pick(_datasets(file, names), rng)
    _replaced(file, name, shape=file[name].shape, dtype=np.dtype([("a", "f8"), ("b", "i4")]))
    return f"makes /{name} compound"


@_in_file
def _reshape(file: h5py.File, names: list[str], rng: np.random.Generator) -> str:
    name = _pick(_datasets(file, names), rng)
    shape, kind = SHAPES[int(rng.integers(len(SHAPES)))], file[name].dtype
    _replaced(file, name, shape=shape, dtype=kind)
    return f"makes /{name} of shape {shape}"


@_in_file
def _resize(file: h5py.File, names: list[str], rng: np.random.Generator) -> str | None:
    """Rows more or fewer than its neighbours have, also far more than could be."""
    grown = [n for n in _datasets(file, names) if _grows(file[n])]
    if not grown:
        return None
    name = _pick(grown, rng)
    rows = len(file[name])
    length = int(rng.choice([0, max(rows - 1, 0), rows + 1, 10**6, 10**9, 10**15]))
    if length > rows + 1 and file[name].id.get_create_plist().get_alloc_time() != 3:
        length = rows + 1  # HDF5 would fill the disk
    file[name].resize(length, axis=0)
    return f"gives /{name} {length} rows in place of {rows}"


@_in_file
def _huge(file: h5py.File, names: list[str], rng: np.random.Generator) -> str:
    """Many rows that are promised and have no room."""
    name = _pick(_datasets(file, names), rng)
    kind, rest = file[name].dtype, file[name].shape[1:]
    rows = int(rng.choice([10**6, 10**9, 10**13]))
    chunks = (1, *(max(length, 1) for length in rest))
    shape = (rows, *rest)
    _replaced(file, name, shape=shape, maxshape=(None, *rest), chunks=chunks, dtype=kind)
    return f"gives /{name} {rows} rows without content"


@_in_file
def _values(file: h5py.File, names: list[str], rng: np.random.Generator) -> str | None:
    numeric = [n for n in _datasets(file, names) if file[n].dtype.kind in "iuf" and file[n].size]
    if not numeric:
        return None
    name, value = _pick(numeric, rng), NUMBERS[int(rng.integers(len(NUMBERS)))]
    dataset = file[name]
    if dataset.dtype.kind in "iu":
        value = int(np.nan_to_num(value, posinf=2**31, neginf=-5))
        value = int(np.clip(value, np.iinfo(dataset.dtype).min, np.iinfo(dataset.dtype).max))
    flat = dataset[()].reshape(-1)
    index = int(rng.integers(flat.size))
    flat[index] = value
    dataset[...] = flat.reshape(dataset.shape)
    return f"sets number {index} of /{name} to {value}"


@_in_file
def _nudge(file: h5py.File, names: list[str], rng: np.random.Generator) -> str | None:
    """A plausible other number: what only a checksum can tell."""
    rows = [
        n for n in _datasets(file, names) if file[n].dtype.kind == "f" and (file[n].size or 0) > 1
    ]
    if not rows:
        return None
    name = _pick(rows, rng)
    values = file[name][()]
    flat = values.reshape(-1)
    index = int(rng.integers(flat.size))
    flat[index] = np.nan_to_num(flat[index]) * 1.001 + 1e-6
    file[name][...] = values
    return f"nudges number {index} of /{name}"


@_in_file
def _text(file: h5py.File, names: list[str], rng: np.random.Generator) -> str | None:
    there = [n for n in TEXTS if n in file and isinstance(file[n], h5py.Dataset)]
    if not there:
        return None
    name, content = _pick(there, rng), BROKEN_JSON[int(rng.integers(len(BROKEN_JSON)))]
    _replaced(file, name, data=np.bytes_(content) if content else np.bytes_(b" "))
    return f"sets /{name} to {content[:30]!r}"


@_in_file
def _json(file: h5py.File, names: list[str], rng: np.random.Generator) -> str | None:
    """One value somewhere in a JSON text."""
    there = [n for n in TEXTS if n in file and n != "status"]
    if not there:
        return None
    name = _pick(there, rng)
    content = json.loads(file[name][()])
    place, keys = content, []
    while isinstance(place, dict | list) and place:
        keys.append(place)
        options = sorted(place) if isinstance(place, dict) else range(len(place))
        key = list(options)[int(rng.integers(len(options)))]
        keys.append(key)
        place = place[key]
        if rng.random() < 0.3:
            break
    if not keys:
        return None
    values = (
        None,
        -1,
        10**25,
        "[/b] $\\frac{$ \x1b[31m",
        [],
        {},
        [[[]]],
        True,
        1e308,
        "x" * 10_000,
    )
    value = values[int(rng.integers(len(values)))]
    keys[-2][keys[-1]] = value
    _replaced(file, name, data=json.dumps(content))
    return f"sets {keys[-1]!r} in /{name} to {str(value)[:30]!r}"


@_in_file
def _attribute(file: h5py.File, names: list[str], rng: np.random.Generator) -> str | None:
    owners = [n for n in ["/", *names] if len(file[n].attrs)]
    if not owners:
        return None
    name = _pick(owners, rng)
    attributes = file[name].attrs
    key = _pick(sorted(attributes), rng)
    values = (None, 3, np.zeros((2, 2)), "x" * 30_000, b"\xff\xfe", "99.0", np.nan, "[/b]\x1b[31m")
    value = values[int(rng.integers(len(values)))]
    if value is None:
        del attributes[key]
    else:
        attributes[key] = value
    return f"sets attribute {key} of /{name} to {str(value)[:20]!r}"


@_in_file
def _link(file: h5py.File, names: list[str], rng: np.random.Generator) -> str:
    """An object that lies elsewhere, or nowhere."""
    name = _pick(names, rng)
    del file[name]
    kind = _pick(["external", "dangling", "loop", "soft"], rng)
    target = {
        "external": h5py.ExternalLink("elsewhere.h5", "/secret"),
        "dangling": h5py.SoftLink("/nowhere"),
        "loop": h5py.SoftLink(f"/{name}"),
        "soft": h5py.SoftLink("/"),
    }[kind]
    file[name] = target
    return f"makes a link of /{name} ({kind})"


@_in_file
def _outside(file: h5py.File, names: list[str], rng: np.random.Generator) -> str | None:
    """Values that come from another file."""
    numeric = [n for n in _datasets(file, names) if file[n].dtype.kind in "iuf" and file[n].size]
    if not numeric:
        return None
    name = _pick(numeric, rng)
    shape, kind = file[name].shape, file[name].dtype
    if rng.random() < 0.5:
        layout = h5py.VirtualLayout(shape, kind)
        layout[...] = h5py.VirtualSource("elsewhere.h5", "secret", shape, kind)
        del file[name]
        file.create_virtual_dataset(name, layout)
        return f"makes /{name} virtual"
    size = int(np.prod(shape, dtype=int)) * kind.itemsize
    _replaced(file, name, shape=shape, dtype=kind, external=[("elsewhere.bin", 0, size)])
    return f"stores /{name} outside"


MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _flip,
    _blank,
    _cut,
    _append,
    _foreign,
    _delete,
    _group_for_dataset,
    _dataset_for_group,
    _retype,
    _compound,
    _reshape,
    _resize,
    _huge,
    _values,
    _values,
    _nudge,
    _text,
    _text,
    _json,
    _json,
    _attribute,
    _attribute,
    _link,
    _outside,
)
"""Listed twice: what finds most."""
