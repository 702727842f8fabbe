"""Files of named arrays: formats, paths, and how to leave no half file behind.

Parameters and solver states are kept in these. Names are paths ("net/conv/W"); arrays, and in HDF5
the groups above them, carry attributes: NNabla's `index` (order) and `need_grad`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from .errors import DistnnError, MissingExtraError

Arrays = dict[str, np.ndarray]
Attributes = dict[str, dict[str, int]]  # by name of an array or of what lies above it


class ArrayFile:
    """A file of named arrays with attributes, as one function of the API reads or writes it.

    A file passes through memory as a whole. That costs its size for a moment, and keeps HDF5 away
    from the disk: when a disk is full, HDF5 2.0 ends the process by a segmentation fault.

    Args:
        function: whose errors these are.
        error_class: the class of these errors.
        path: a path, or an open binary file.
        extension: the format of an open file.
    """

    def __init__(
        self, function: str, error_class: type[DistnnError], path: Any, extension: str | None = None
    ) -> None:
        self._function = function
        self._error_class = error_class
        self._path: str | None = None
        self._file: Any = None
        if isinstance(path, str | bytes | os.PathLike):
            self._path = os.fsdecode(path)
            ending = os.path.splitext(self._path)[1].lower()
            self.name = repr(self._path)
            says = f"{self.name} ends in {ending!r}"
        elif hasattr(path, "read") or hasattr(path, "write"):
            self._file = path
            ending = str(extension).lower()
            self.name = "the open file"
            says = f"extension of the open file is {extension!r}"
            if isinstance(path, io.TextIOBase):
                raise self.error("the open file is a text file; open it in binary mode")
        else:
            raise self.error(f"path is {type(path).__name__}; pass a str, a Path or an open file")
        if ending not in _FORMATS:
            if ending in (".protobuf", ".nnp", ".nntxt", ".prototxt"):
                says += ", a format of NNabla that distnn cannot read or write yet: to convert a "
                says += "file, load it in NNabla and save it there as .h5"
            raise self.error(f"{says}; known formats are {' and '.join(_FORMATS)}")
        self._format = _FORMATS[ending]
        self._ending = ending

    def error(self, text: str) -> DistnnError:
        """An error of the function that works on this file, to be raised."""
        return self._error_class(f"[{self._function}] {text}")

    def write(self, arrays: Arrays, attributes: Attributes) -> None:
        """Write the file as a whole, or leave the old one."""
        self._check(arrays)
        try:
            content = self._format.dump(arrays, attributes)
        except ImportError as reason:
            raise self._missing_extra() from reason
        if self._path is None:
            self._write_open(content)
            return
        # Through a link to the file it names, as if it were written in place.
        target = os.path.realpath(self._path)
        directory, name = os.path.split(target)
        if not os.path.isdir(directory):
            raise self.error(f"the directory of {self.name} does not exist; create it first")
        if os.path.isdir(target):
            raise self.error(f"{self.name} is a directory; pass the path of a file")
        # Not tempfile: its files are readable for their owner only. Random: ranks may save at once.
        temporary = os.path.join(directory, f".{name}.{os.urandom(4).hex()}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _write_open(self, content: bytes | memoryview) -> None:
        rewind = getattr(self._file, "seekable", bool)()
        if rewind:
            self._file.seek(0)
            self._file.truncate()
        self._file.write(content)
        if rewind:
            self._file.seek(0)

    def read(self) -> tuple[Arrays, Attributes]:
        """All arrays, in the order of the file or by name, and the attributes that it has."""
        content = self._content()
        try:
            arrays, attributes = self._format.parse(content)
        except ImportError as reason:
            raise self._missing_extra() from reason
        except Exception as reason:  # what parsers raise on broken bytes is in nobody's contract
            raise self.error(
                f"{self.name} cannot be read as a {self._ending} file: {reason}; is it cut off, or "
                "of another format?"
            ) from reason
        for name, values in arrays.items():
            if values.dtype.kind not in "biuf":
                raise self.error(
                    f"{name!r} of {self.name} has dtype {values.dtype}, which is not a number; "
                    "only bool, integer and float arrays can be loaded"
                )
        self._check(arrays)
        return arrays, attributes

    def _content(self) -> bytes:
        if self._path is None:
            return self._file.read()
        if not os.path.isfile(self._path):
            what = "a directory" if os.path.isdir(self._path) else "missing"
            raise self.error(f"{self.name} is {what}; pass the path of a file that exists")
        with open(self._path, "rb") as file:
            return file.read()

    def _check(self, arrays: Arrays) -> None:
        """Names must be paths, none above another: what HDF5 and scopes both can hold."""
        for name in arrays:
            parts = name.split("/") if isinstance(name, str) else [""]
            if "" in parts or "." in parts:
                raise self.error(
                    f"{name!r} is no name for an array; names are parts joined by '/', none of "
                    "them empty or '.'"
                )
            for end in range(1, len(parts)):
                above = "/".join(parts[:end])
                if above in arrays:
                    raise self.error(
                        f"{above!r} and {name!r} cannot be in one file: {above!r} would be an "
                        "array and a scope; rename one"
                    )

    def _missing_extra(self) -> MissingExtraError:
        return MissingExtraError(
            f"[{self._function}] {self._ending} files need {self._format.package}, which is not "
            "installed; pip install distnn[io]"
        )


# -- formats ----------------------------------------------------------------------------------


def _dump_h5(arrays: Arrays, attributes: Attributes) -> memoryview:
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        for name, items in attributes.items():
            file[name].attrs.update(items)
    return content.getbuffer()


def _parse_h5(content: bytes) -> tuple[Arrays, Attributes]:
    import h5py

    arrays: Arrays = {}
    attributes: Attributes = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item[()])
            arrays[name] = values.astype(values.dtype.newbyteorder("="), copy=False)
        found = attributes[name] = {}
        for key in ("index", "need_grad"):
            number = item.attrs.get(key)
            if isinstance(number, np.integer | np.bool_):
                found[key] = number.item()

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(visit)
    return dict(sorted(arrays.items())), attributes


# The format has a dictionary of texts for what its users want to add; this is our key in it.
_METADATA = "distnn"


def _dump_safetensors(arrays: Arrays, attributes: Attributes) -> bytes:
    from safetensors.numpy import save

    # It reads memory without looking at strides.
    plain = {name: np.asarray(values, order="C") for name, values in arrays.items()}
    return save(plain, {_METADATA: json.dumps(attributes)})


def _parse_safetensors(content: bytes) -> tuple[Arrays, Attributes]:
    from safetensors import deserialize

    tensors = dict(deserialize(content))  # checks the file, and comes in any order
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = json.loads(header.pop("__metadata__", {}).get(_METADATA, "{}"))
    attributes: Attributes = {
        name: {key: number for key, number in items.items() if isinstance(number, int)}
        for name, items in metadata.items()
    }
    arrays = {}
    for name, _ in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        tensor = tensors[name]
        if tensor["dtype"] not in _SAFETENSORS:
            raise ValueError(f"dtype {tensor['dtype']} of {name!r} is none of {[*_SAFETENSORS]}")
        values = np.frombuffer(tensor["data"], _SAFETENSORS[tensor["dtype"]])
        if tensor["dtype"] == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = values.reshape(tensor["shape"])
    return arrays, attributes


_SAFETENSORS = {
    "BOOL": "?", "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "<i1", "I16": "<i2",
    "I32": "<i4", "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


class _Format(NamedTuple):
    package: str
    dump: Callable[[Arrays, Attributes], bytes | memoryview]
    parse: Callable[[bytes], tuple[Arrays, Attributes]]


_FORMATS = {
    ".h5": _Format("h5py", _dump_h5, _parse_h5),
    ".safetensors": _Format("safetensors", _dump_safetensors, _parse_safetensors),
}
