"""The file of a checkpoint: arrays and plain values, checksummed, replaced as a whole.

The layout is that of .safetensors, written and read with NumPy alone: the length of a JSON table,
the table, the arrays' bytes. Plain values lie in the table's texts, as does the checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from typing import Any

import numpy as np

from .errors import CheckpointError

_FORMAT = "distnn checkpoint 1"
_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "|i1",
    "I16": "<i2", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(text): name for name, text in _DTYPES.items()}
_ARRAY, _TUPLE = "__array__", "__tuple__"

Arrays = dict[str, np.ndarray]


def pack(function: str, arrays: Arrays, values: dict[str, Any]) -> bytes:
    """Arrays by name, and values: None, bool, int, float, str, arrays; lists and dicts of these."""
    arrays = dict(arrays)
    plain = _encode(function, values, "", arrays)
    table: dict[str, Any] = {}
    parts = []
    start = 0
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise CheckpointError(
                f"[{function}] {name} has dtype {array.dtype}; only {sorted(_DTYPES)} can be saved"
            )
        content = array.tobytes()
        offsets = [start, start + len(content)]
        table[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        parts.append(content)
        start += len(content)
    data = b"".join(parts)
    values_text = json.dumps(plain)
    texts = {"format": _FORMAT, "values": values_text, "checksum": _sum(table, values_text, data)}
    header = json.dumps({"__metadata__": texts, **table}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def unpack(function: str, name: str, content: bytes) -> tuple[Arrays, dict[str, Any]]:
    """What was packed; raises CheckpointError where a byte is missing or another."""
    try:
        size = int.from_bytes(content[:8], "little")
        table = json.loads(content[8 : 8 + size])
        texts = table.pop("__metadata__")
        data = memoryview(content)[8 + size :]
        intact = texts["format"] == _FORMAT and texts["checksum"] == _sum(
            table, texts["values"], data
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as reason:
        raise CheckpointError(
            f"[{function}] {name} is no checkpoint, or cut off ({len(content)} bytes); take an "
            "older one"
        ) from reason
    if not intact:
        raise CheckpointError(
            f"[{function}] {name} is damaged: its bytes ({len(content)}) do not have the checksum "
            "written with them; take an older one"
        )
    arrays = {}
    for key, entry in table.items():
        start, stop = entry["data_offsets"]
        flat = np.frombuffer(data[start:stop], _DTYPES[entry["dtype"]])
        arrays[key] = flat.reshape(entry["shape"])
    return arrays, _decode(json.loads(texts["values"]), arrays)


def _sum(table: Any, values: str, data: Any) -> str:
    found = hashlib.blake2b(digest_size=16)
    found.update(json.dumps([table, values], sort_keys=True).encode())
    found.update(data)
    return found.hexdigest()


def _encode(function: str, value: Any, where: str, arrays: Arrays) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        arrays[f"values{where}"] = value
        return {_ARRAY: f"values{where}"}
    if isinstance(value, tuple):
        items = [_encode(function, v, f"{where}/{i}", arrays) for i, v in enumerate(value)]
        return {_TUPLE: items}
    if isinstance(value, list):
        return [_encode(function, v, f"{where}/{i}", arrays) for i, v in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: _encode(function, v, f"{where}/{k}", arrays) for k, v in value.items()}
    what = "a dict with keys that are no str" if isinstance(value, dict) else type(value).__name__
    raise CheckpointError(
        f"[{function}] {where[1:]} is {what}; pass numbers, texts, None, NumPy arrays, and lists, "
        "tuples and dicts of these"
    )


def _decode(value: Any, arrays: Arrays) -> Any:
    if isinstance(value, list):
        return [_decode(v, arrays) for v in value]
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return arrays.pop(value[_ARRAY]).copy()
        if value.keys() == {_TUPLE}:
            return tuple(_decode(v, arrays) for v in value[_TUPLE])
        return {k: _decode(v, arrays) for k, v in value.items()}
    return value


def replace(path: str, content: bytes, keep: int) -> None:
    """Write a file so that at any moment `path` is the old file or the new one, whole.

    Args:
        keep: files to keep: path is the newest, `name.1.ending` the one before, and so on.
    """
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    temporary = os.path.join(directory, f".{name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep > 1 and os.path.exists(target):
            _shift(target, keep)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def older(path: str, number: int) -> str:
    """Path of the checkpoint `number` saves before the newest."""
    stem, ending = os.path.splitext(path)
    return f"{stem}.{number}{ending}" if number else path


def _shift(path: str, keep: int) -> None:
    for number in range(keep - 2, 0, -1):
        if os.path.exists(older(path, number)):
            os.replace(older(path, number), older(path, number + 1))
    # A second name of the newest: the first stays until the new file takes it.
    with suppress(FileNotFoundError):
        os.unlink(older(path, 1))
    os.link(path, older(path, 1))
