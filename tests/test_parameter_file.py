"""save_parameters and load_parameters against files written and read by h5py and safetensors."""

import io
import json

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.context import World, world_scope
from distnn.errors import ArgumentError, ParameterError
from distnn.parameter import get_parameter_or_create
from distnn.parameter_file import load_parameters, save_parameters

h5py = pytest.importorskip("h5py", reason="parameter files need distnn[io]")
safetensors = pytest.importorskip("safetensors", reason="parameter files need distnn[io]")
from safetensors.numpy import load_file, save_file  # noqa: E402 (only where it is there)

both_formats = pytest.mark.parametrize("ending", [".h5", ".safetensors"])


def parameter(name, values, need_grad=True):
    values = np.asarray(values, np.float32)
    get_parameter_or_create(name, values.shape, values, need_grad)
    return nn.get_parameters(grad_only=False)[name]


def network():
    """Names out of alphabetical order, one of them a running statistic, one a scalar, one empty."""
    parameter("net/conv/W", np.arange(24).reshape(2, 3, 4) / 7)
    parameter("net/bn/mean", [[1.5, -2.5]], need_grad=False)
    parameter("affine/b", -3.25)
    parameter("affine/W", np.zeros((0, 5)))
    return nn.get_parameters(grad_only=False)


def write_h5(path, items):
    """A file as NNabla writes it: name -> values, in the order of the dictionary."""
    with h5py.File(path, "w") as file:
        for index, (name, values) in enumerate(items.items()):
            file[name] = values
            file[name].attrs["need_grad"] = True
            file[name].attrs["index"] = index


def write_raw(path, tensors, data):
    """A .safetensors file by its specification: name -> (dtype, shape, bytes), in any order."""
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(dict(sorted(header.items()))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def everything():
    """What a failed load could have changed."""
    parameters = nn.get_parameters(grad_only=False)
    return [(key, p.d.tolist(), p.need_grad, id(p)) for key, p in parameters.items()]


# -- saving -----------------------------------------------------------------------------------


def test_an_h5_file_has_the_layout_of_nnabla(tmp_path):
    network()
    save_parameters(tmp_path / "x.h5")
    expected = {
        "net/conv/W": (np.arange(24, dtype=np.float32).reshape(2, 3, 4) / np.float32(7), True),
        "net/bn/mean": (np.array([[1.5, -2.5]], np.float32), False),
        "affine/b": (np.array(-3.25, np.float32), True),
        "affine/W": (np.zeros((0, 5), np.float32), True),
    }
    with h5py.File(tmp_path / "x.h5", "r") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if hasattr(item, "dtype") else None)
        assert sorted(names) == sorted(expected)
        for index, (name, (values, need_grad)) in enumerate(expected.items()):
            assert file[name].dtype == np.float32
            assert file[name].shape == values.shape
            np.testing.assert_array_equal(file[name][()], values)
            attributes = dict(file[name].attrs)
            assert attributes == {"need_grad": need_grad, "index": index}
            assert attributes["need_grad"].dtype == np.bool_
            assert attributes["index"].dtype == np.int64


def test_a_safetensors_file_has_names_as_keys_and_the_rest_in_its_metadata(tmp_path):
    network()
    save_parameters(tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    assert sorted(tensors) == ["affine/W", "affine/b", "net/bn/mean", "net/conv/W"]
    np.testing.assert_array_equal(tensors["net/bn/mean"], np.array([[1.5, -2.5]], np.float32))
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="np") as file:
        metadata = json.loads(file.metadata()["distnn"])
    assert metadata["net/conv/W"] == {"need_grad": True, "index": 0}
    assert metadata["net/bn/mean"] == {"need_grad": False, "index": 1}


@both_formats
def test_given_names_are_kept_and_those_of_a_scope_begin_in_it(tmp_path, ending):
    w = network()["net/conv/W"]
    save_parameters(str(tmp_path / f"given{ending}"), {"other": w})
    with nn.parameter_scope("affine"):
        save_parameters(tmp_path / f"scope{ending}")
    nn.clear_parameters()
    load_parameters(tmp_path / f"given{ending}")
    load_parameters(str(tmp_path / f"scope{ending}"))
    assert list(nn.get_parameters()) == ["other", "b", "W"]
    np.testing.assert_array_equal(nn.get_parameters()["other"].d, w.d)


W, CLEARED = nn.Variable((2,)), nn.Variable((2,))
CLEARED.data.clear()


@both_formats
@pytest.mark.parametrize(
    ("params", "text"),
    [
        (None, "there are no parameters to save"),
        ({}, "there are no parameters to save"),
        ({"a": W, "a/b": W}, "'a' and 'a/b' cannot be in one file"),
        ({"a/b/c/d": W, "a/b": W}, "'a/b' and 'a/b/c/d' cannot be in one file"),
        ({"/a": W}, "'/a' is no name"),
        ({"a//b": W}, "'a//b' is no name"),
        ({"": W}, "'' is no name"),
        ({"a/./b": W}, "'a/./b' is no name"),
        ({"a": W, "b": CLEARED}, r"'b' has no values to save: .*clear\(\) was called"),
        ({"a": {"b": W}}, r"params\['a'\] is dict; pass Variables"),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file(tmp_path, ending, params, text):
    (tmp_path / f"x{ending}").write_bytes(b"a good file")
    with pytest.raises(ParameterError, match=rf"^\[save_parameters\] {text}"):
        save_parameters(tmp_path / f"x{ending}", params)
    assert (tmp_path / f"x{ending}").read_bytes() == b"a good file"


# -- round trips ------------------------------------------------------------------------------


@both_formats
def test_a_round_trip_keeps_names_bits_flags_and_order(tmp_path, ending):
    saved = network()
    saved["net/conv/W"].d[0, 0] = [np.nan, -0.0, np.inf, 1e-45]
    (tmp_path / f"x{ending.upper()}").write_bytes(b"an older file")
    save_parameters(tmp_path / f"x{ending.upper()}")
    nn.clear_parameters()
    load_parameters(tmp_path / f"x{ending.upper()}")
    loaded = nn.get_parameters(grad_only=False)
    assert [*loaded] == ["net/conv/W", "net/bn/mean", "affine/b", "affine/W"]
    for name, p in loaded.items():
        assert p is not saved[name]
        assert p.need_grad == saved[name].need_grad
        assert (p.shape, p.d.dtype) == (saved[name].shape, np.float32)
        assert p.d.tobytes() == saved[name].d.tobytes()


@both_formats
def test_open_files_are_rewritten_and_rewound(tmp_path, ending):
    w = parameter("w", [1, 2])
    (tmp_path / "any name").write_bytes(b"something longer" * 10_000)
    with open(tmp_path / "any name", "r+b") as file:
        file.seek(100)
        save_parameters(file, extension=ending)
        assert file.tell() == 0
        w.d = 0
        load_parameters(file, extension=ending)
    assert w.d.tolist() == [1, 2]
    assert (tmp_path / "any name").stat().st_size < 10_000


@both_formats
def test_files_without_a_position_can_be_saved_to(ending):
    class Stream:
        content = b""

        def write(self, content):
            self.content += bytes(content)

    w = parameter("w", [1, 2])
    stream = Stream()
    save_parameters(stream, extension=ending)
    w.d = 0
    load_parameters(io.BytesIO(stream.content), extension=ending)
    assert w.d.tolist() == [1, 2]


# -- files of others --------------------------------------------------------------------------


def test_a_file_of_nnabla_is_loaded_in_the_order_of_its_indices(tmp_path):
    items = {f"layer{i}/W": np.full((2, i), i, np.float32) for i in range(12)}  # 10 after 2
    write_h5(tmp_path / "x.h5", items)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["layer3/W"].attrs["need_grad"] = False
    load_parameters(tmp_path / "x.h5")
    loaded = nn.get_parameters(grad_only=False)
    assert list(loaded) == list(items)
    assert [name for name, p in loaded.items() if not p.need_grad] == ["layer3/W"]
    for name, values in items.items():
        np.testing.assert_array_equal(loaded[name].d, values)


@pytest.mark.parametrize("index", [0, None, "not a number"])
def test_without_an_order_an_h5_file_is_loaded_by_name_and_needs_gradients(tmp_path, index):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in ("b", "a/c", "a-b"):
            file[name] = np.ones(2)
            if index is not None:
                file[name].attrs["index"] = index
    load_parameters(tmp_path / "x.h5")
    assert list(nn.get_parameters()) == ["a-b", "a/c", "b"]


def test_a_safetensors_file_of_others_is_loaded_in_its_order_and_needs_gradients(tmp_path):
    tensors = {"z": ("F32", [1], 4), "a.b": ("F64", [], 8), "h": ("F16", [1], 2)}
    tensors["bf"] = ("BF16", [1, 2], 4)
    bfloat16 = (np.float32([-2.5, 3.140625]).view(np.uint32) >> 16).astype(np.uint16)
    data = [np.float32(1), np.float64(2), np.float16(3), bfloat16]
    write_raw(tmp_path / "x.safetensors", tensors, b"".join(part.tobytes() for part in data))
    load_parameters(tmp_path / "x.safetensors")
    loaded = [(name, p.d.tolist()) for name, p in nn.get_parameters().items()]
    assert loaded == [("z", [1]), ("a.b", 2), ("h", [3]), ("bf", [[-2.5, 3.140625]])]


# -- loading into what exists -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "?", ">f4"])
@both_formats
def test_loading_keeps_variable_address_and_float_type(tmp_path, ending, dtype):
    values = np.array([1, 0, 1], dtype)
    if ending == ".h5":
        write_h5(tmp_path / "x.h5", {"a/w": values})
    else:
        save_file({"a/w": values.astype(values.dtype.newbyteorder("="))}, tmp_path / f"x{ending}")
    parameter("a/first", [7])
    registered = parameter("a/w", [5, 6, 7])
    held = registered.d
    address = held.ctypes.data
    load_parameters(tmp_path / f"x{ending}")
    assert nn.get_parameters()["a/w"] is registered
    assert registered.d.ctypes.data == address
    assert registered.d.dtype == np.float32
    assert held.tolist() == [1, 0, 1]


def test_a_new_parameter_lies_in_the_slab_behind_its_predecessor(tmp_path):
    write_h5(tmp_path / "x.h5", {"b": np.ones(3, np.float64)})
    a = parameter("a", np.zeros(16))
    load_parameters(tmp_path / "x.h5")
    assert nn.get_parameters()["b"].d.ctypes.data - a.d.ctypes.data == 16 * 4


def test_loading_under_double_keeps_every_bit(tmp_path):
    values = np.array([1 / 3, np.pi])
    write_h5(tmp_path / "x.h5", {"w": values})
    with nn.context_scope(nn.Context(["cpu:double"])):
        load_parameters(tmp_path / "x.h5")
    np.testing.assert_array_equal(nn.get_parameters()["w"].d, values, strict=True)


@pytest.mark.parametrize("present", [np.array([3.0, 4.0]), np.float16([3, 4]), np.array([3, 4])])
def test_a_parameter_that_had_left_its_slab_returns_to_it_with_floats(tmp_path, present):
    w = parameter("w", [1, 2])
    address = w.d.ctypes.data
    w.d = present
    assert w.d.ctypes.data != address
    write_h5(tmp_path / "x.h5", {"w": np.array([0.1, 1.5], np.float32)})
    load_parameters(tmp_path / "x.h5")
    assert w.d.ctypes.data == address
    np.testing.assert_array_equal(w.d, np.array([0.1, 1.5], np.float32), strict=True)


@both_formats
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_a_new_parameter_of_integers_keeps_its_dtype(tmp_path, ending, dtype):
    parameter("count", [0, 0]).d = np.array([1, 0], dtype)
    save_parameters(tmp_path / f"x{ending}")
    nn.clear_parameters()
    load_parameters(tmp_path / f"x{ending}")
    load_parameters(tmp_path / f"x{ending}")  # the second time it exists
    loaded = nn.get_parameters()["count"].d
    np.testing.assert_array_equal(loaded, np.array([1, 0], dtype), strict=True)


@both_formats
def test_a_graph_built_before_loading_computes_with_the_loaded_values(tmp_path, ending):
    w = parameter("w", [[1, 2], [3, 4]])
    save_parameters(tmp_path / f"x{ending}")
    w.d = 0
    x = nn.Variable.from_numpy_array(np.array([[1, 10]], np.float32))
    y = F.affine(x, get_parameter_or_create("w", (2, 2)))
    y.forward()
    assert y.d.tolist() == [[0, 0]]
    load_parameters(tmp_path / f"x{ending}")
    y.forward()
    assert y.d.tolist() == [[31, 42]]


@both_formats
@pytest.mark.parametrize("saved", [True, False])
def test_need_grad_of_the_file_replaces_that_of_the_parameter(tmp_path, ending, saved):
    w = parameter("w", [1, 2], need_grad=saved)
    save_parameters(tmp_path / f"x{ending}")
    w.need_grad = not saved
    load_parameters(tmp_path / f"x{ending}")
    assert w.need_grad == saved


def test_loading_inside_a_scope_prefixes_names_and_leaves_the_other_parameters(tmp_path):
    write_h5(tmp_path / "x.h5", {"a/w": np.ones(2)})
    other = parameter("net/a/other", [3])
    with nn.parameter_scope("net"):
        load_parameters(tmp_path / "x.h5")
    assert list(nn.get_parameters()) == ["net/a/other", "net/a/w"]
    assert nn.get_parameters()["net/a/w"].name == "net/a/w"
    assert other.d.tolist() == [3]


# -- errors, and that they change nothing -----------------------------------------------------


@both_formats
@pytest.mark.parametrize(
    ("existing", "saved", "text"),
    [
        ("z", "z", r"'z' has shape \(3,\) in '.*' but the existing parameter has \(2,\)"),
        ("z/W", "z", r"'z' is a parameter in '.*' but a scope here, with \['W'\]"),
        ("z", "z/W", r"'z/W' of '.*' lies in a scope 'z', but 'z' is a parameter of shape \(2,\)"),
        ("z/y", "z/y/x/W", r"lies in a scope 'z/y', but 'z/y' is a parameter"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, ending, existing, saved, text):
    with world_scope(World()):
        parameter("a", [1, 2], need_grad=False)
        parameter("new", [1, 2])
        parameter(saved, [1, 2, 3])
        save_parameters(tmp_path / f"x{ending}")
    parameter("a", [8, 9])
    parameter(existing, [8, 9])
    before = everything()
    with pytest.raises(ParameterError, match=rf"^\[load_parameters\] .*{text}"):
        load_parameters(tmp_path / f"x{ending}")
    assert everything() == before


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, r"there are no parameters in '.*x\.h5'"),
        ({"a": np.ones(2), "b": "text"}, "'b' of '.*' has dtype .*not a number"),
        ({"a": np.ones(2), "b": np.array([b"ab"])}, "'b' of '.*' has dtype .S2, which"),
        ({"a": np.ones(2), "b": np.ones(2, complex)}, "'b' of '.*' has dtype complex128, which"),
    ],
)
def test_an_h5_file_without_numbers_changes_nothing(tmp_path, content, text):
    write_h5(tmp_path / "x.h5", content)
    with pytest.raises(ParameterError, match=rf"^\[load_parameters\] {text}"):
        load_parameters(tmp_path / "x.h5")
    assert everything() == []


@pytest.mark.parametrize(
    ("tensors", "metadata", "text"),
    [
        (["a"], "no JSON", r"cannot be read as a \.safetensors file"),
        (["a"], "[1]", r"cannot be read as a \.safetensors file"),
        (["a"], '{"a": 1}', r"cannot be read as a \.safetensors file"),
        (["a", "a/b"], "{}", "'a' and 'a/b' cannot be in one file"),
        (["a", "/b"], "{}", "'/b' is no name for an array"),
    ],
)
def test_a_safetensors_file_that_is_no_tree_changes_nothing(tmp_path, tensors, metadata, text):
    values = {name: np.ones(2) for name in tensors}
    save_file(values, tmp_path / "x.safetensors", {"distnn": metadata})
    with pytest.raises(ParameterError, match=rf"^\[load_parameters\] .*{text}"):
        load_parameters(tmp_path / "x.safetensors")
    assert everything() == []


def test_a_number_format_that_numpy_does_not_have_is_refused(tmp_path):
    write_raw(tmp_path / "x.safetensors", {"w": ("F8_E4M3", [1], 1)}, b"x")
    with pytest.raises(ParameterError, match=r"cannot be read as a \.safetensors file: "):
        load_parameters(tmp_path / "x.safetensors")


@pytest.mark.parametrize("arguments", [{"proto": object()}, {"needs_proto": True}])
def test_networks_of_nnabla_are_not_loaded(arguments):
    with pytest.raises(ArgumentError, match=rf"^\[load_parameters\] got {next(iter(arguments))}="):
        load_parameters("x.h5", **arguments)
