"""Parameter files: save_parameters and load_parameters, over files of named arrays.

An ArrayFile knows formats, paths and how to leave no half file behind; it knows nothing of
parameters, and solver_file.py keeps solver states in it. Names are paths ("net/conv/W"); arrays,
and in HDF5 the groups above them, carry attributes: NNabla's `index` (order) and `need_grad`.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from .context import current_backend
from .errors import ArgumentError, ClearedError, DistnnError, MissingExtraError, ParameterError
from .parameter import get_current_parameter_scope, get_parameter_or_create, get_parameters
from .variable import Variable

Arrays = dict[str, np.ndarray]
Attributes = dict[str, dict[str, int]]  # by name of an array or of what lies above it


def save_parameters(
    path: Any, params: Mapping[str, Variable] | None = None, extension: str | None = None
) -> None:
    """Write parameters to a file: names, values in their dtype, need_grad and order.

    The file is written beside its final place and then moved there: a crash leaves the old one.

    Args:
        path: ends in .h5 (NNabla's own layout) or .safetensors; or a binary file open for writing,
            which is rewound afterwards.
        params: name -> Variable; None takes all of the current scope, also those with need_grad
            False (running statistics of batch normalization).
        extension: ".h5" or ".safetensors", for an open file; a path says it by its ending.
    Raises: ParameterError for another ending, and where there is nothing to save: an empty file
        over a good one is a loss. MissingExtraError where h5py or safetensors is not installed.

    >>> import io, numpy as np, distnn as nn
    >>> from distnn.parameter import get_parameter_or_create
    >>> file = io.BytesIO()
    >>> with nn.parameter_scope("save_example"):
    ...     w = get_parameter_or_create("w", (2,), np.ones)
    ...     save_parameters(file, extension=".h5")
    ...     w.d = 0
    ...     load_parameters(file, extension=".h5")
    >>> w.d
    array([1., 1.], dtype=float32)
    """
    file = ArrayFile("save_parameters", ParameterError, path, extension)
    if params is None:
        params = get_parameters(grad_only=False)
    if not params:
        raise file.error(
            f"there are no parameters to save, {file.name} is left as it was; build the network "
            "first, or pass params"
        )
    arrays: Arrays = {}
    attributes: Attributes = {}
    for index, (name, parameter) in enumerate(params.items()):
        if not isinstance(parameter, Variable):
            raise file.error(
                f"params[{name!r}] is {type(parameter).__name__}; pass Variables, for example "
                "params=nn.get_parameters(grad_only=False)"
            )
        try:
            arrays[name] = parameter.data.get_data("r")
        except ClearedError as reason:
            raise file.error(f"{name!r} has no values to save: {reason}") from reason
        attributes[name] = {"need_grad": True, "index": index}
    file.write(arrays, attributes)


def load_parameters(
    path: Any, proto: None = None, needs_proto: bool = False, extension: str = ".nntxt"
) -> None:
    """Read parameters from a file into the current scope, below it inside a parameter_scope.

    Missing parameters are created, in the order in which they were saved. Existing ones keep their
    Variable and their memory, so every graph that uses them sees the new values; their need_grad
    becomes the file's. Parameters that the file does not mention stay as they are. Everything is
    checked before anything is changed: after an error no parameter is different.

    Floats of the file become the parameter's own float type, float32 except under cpu:double, so
    that solvers can go on with them. Integers and booleans stay what they are where the parameter
    is new or holds such numbers itself, and become floats in a parameter that holds floats.

    Args:
        path: ends in .h5 (distnn's or NNabla's) or .safetensors (distnn's or another program's:
            then need_grad is True and the order the file's); or an open binary file.
        proto, needs_proto: of NNabla's network format, which is not supported: leave the defaults.
        extension: ".h5" or ".safetensors", for an open file; a path says it by its ending.
    Raises: ParameterError where the file is missing, broken or empty, where a shape differs, and
        where a name is a scope on one side and a parameter on the other. MissingExtraError where
        h5py or safetensors is not installed.
    """
    if proto is not None or needs_proto:
        given = f"needs_proto={needs_proto}" if proto is None else f"proto={type(proto).__name__}"
        raise ArgumentError(
            f"[load_parameters] got {given}, but networks (.nntxt) cannot be read yet; leave "
            "proto=None and needs_proto=False and build the network in Python"
        )
    file = ArrayFile("load_parameters", ParameterError, path, extension)
    arrays, attributes = file.read()
    if not arrays:
        raise file.error(f"there are no parameters in {file.name}; is it the right file?")
    found = []
    for name, values in arrays.items():
        dtype = _dtype_to_load(_existing(file, name, values.shape), values.dtype)
        saved = attributes.get(name, {})
        index = saved.get("index", math.inf)
        found.append((index, name, values.astype(dtype, copy=False), saved.get("need_grad", True)))
    found.sort(key=lambda item: item[0])  # stable: what has no index stays in the file's order
    for _, name, values, need_grad in found:
        get_parameter_or_create(name, values.shape, need_grad=bool(need_grad)).d = values


def _existing(file: ArrayFile, name: str, shape: tuple[int, ...]) -> Variable | None:
    """The parameter that `name` will be loaded into; None if it must be created."""
    found: Any = get_current_parameter_scope()
    above = ""
    for part in name.split("/"):
        if isinstance(found, Variable):
            raise file.error(
                f"{name!r} of {file.name} lies in a scope {above!r}, but {above!r} is a parameter "
                f"of shape {found.shape} here; load inside another nn.parameter_scope"
            )
        found = found.get(part)
        if found is None:
            return None
        above = f"{above}/{part}" if above else part
    if isinstance(found, OrderedDict):
        raise file.error(
            f"{name!r} is a parameter in {file.name} but a scope here, with {list(found)}; load "
            "inside another nn.parameter_scope"
        )
    if found.shape != shape:
        raise file.error(
            f"{name!r} has shape {shape} in {file.name} but the existing parameter has "
            f"{found.shape}; load the file of this network, or load inside another "
            "nn.parameter_scope"
        )
    return found


def _dtype_to_load(parameter: Variable | None, dtype: np.dtype) -> np.dtype:
    """What values of `dtype` become in `parameter`, or in a new one."""
    present = None if parameter is None else parameter.data.dtype
    if dtype.kind != "f" and (present is None or present.kind != "f"):
        return dtype
    home = None if parameter is None else parameter.data._storage.home
    if home is not None:
        # Back into the slab, as solvers do: `p.d = float64 values` had moved the parameter away.
        return home.array.dtype
    if present is not None and present.kind == "f":
        return present
    return current_backend().parameter_dtype


# -- files of named arrays --------------------------------------------------------------------


class ArrayFile:
    """A file of named arrays with attributes, as one function of the API reads or writes it.

    A file passes through memory as a whole. That costs its size for a moment, and keeps HDF5 away
    from the disk: when a disk is full, HDF5 1.14 ends the process by a segmentation fault.

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
        temporary = os.path.join(directory, f".{name}.{secrets.token_hex(4)}.tmp")
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
