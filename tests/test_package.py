"""The package as a whole: what importing costs, what NNabla's scripts find, contexts."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.contrib.context import extension_context
from distnn.errors import ArgumentError, ContextError, DistnnError, MissingExtraError
from distnn.ext_utils import get_extension_context, import_extension_module, list_extensions


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_needs_neither_cupy_nor_mpi4py_nor_the_extras():
    code = """
import sys, distnn, distnn.functions, distnn.parametric_functions, distnn.solvers
import distnn.communicators, distnn.utils.data_iterator, distnn.ext_utils
extras = {"cupy", "mpi4py", "h5py", "safetensors", "matplotlib", "numba", "sklearn", "scipy"}
print(sorted(extras & set(sys.modules)))
"""
    assert python(code) == "[]"


def test_nnablas_names_are_there():
    for name in [
        "Variable",
        "NdArray",
        "Context",
        "parameter_scope",
        "get_current_parameter_scope",
        "get_parameters",
        "clear_parameters",
        "load_parameters",
        "save_parameters",
        "no_grad",
        "auto_forward",
        "set_auto_forward",
        "get_auto_forward",
        "context_scope",
        "set_default_context",
        "get_current_context",
        "forward_all",
        "grad",
        "seed",
        "set_function_pre_hook",
        "unset_solver_post_hook",
    ]:
        assert hasattr(nn, name), name
    assert issubclass(nn.function.PythonFunction, object)
    assert extension_context("cpu") == get_extension_context("cpu", device_id=0)
    assert list_extensions() == ["cpu", "cuda", "cudnn"]
    assert import_extension_module("cpu").get_device_count() == 1
    assert get_extension_context("cpu")["backend"] == ["cpu:float"]


@pytest.mark.parametrize("name", ["cudnn", "cuda", "cuda.cudnn"])
def test_a_gpu_context_says_what_is_missing_and_never_runs_on_the_cpu(name):
    if nn.get_current_context().backend != ["cpu:float"]:
        pytest.skip("there is a GPU, or its emulator")
    missing = r"\[get_extension_context\] 'c.*' needs an NVIDIA GPU and CuPy|no GPU can be used"
    with pytest.raises((MissingExtraError, ContextError), match=missing):
        get_extension_context(name, device_id=0)
    with (
        pytest.raises((MissingExtraError, ContextError)),
        nn.context_scope(nn.Context(["cudnn:float", "cpu:float"])),
    ):
        pass


def test_contexts_of_threads_do_not_disturb_each_other():
    found = {}
    inside = threading.Barrier(2, timeout=10)

    def work(type_config):
        with nn.context_scope(nn.Context([f"cpu:{type_config}"])), nn.auto_forward():
            inside.wait()
            y = F.tanh(nn.Variable.from_numpy_array(np.ones(2)))
            inside.wait()
            found[type_config] = y.d.dtype
        found[type_config, "auto"] = nn.get_auto_forward()

    threads = [threading.Thread(target=work, args=(t,)) for t in ("float", "double")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["float"] == np.float32
    assert found["double"] == np.float64
    assert not found["float", "auto"]


def test_the_default_context_counts_in_every_thread_of_the_world():
    nn.set_default_context(nn.Context(["cpu:double"]))
    y = F.tanh(nn.Variable.from_numpy_array(np.ones(2)))
    y.forward()
    assert y.d.dtype == np.float64


def test_a_function_keeps_the_context_in_which_it_was_called():
    with nn.context_scope(nn.Context(["cpu:double"])):
        h = F.tanh(nn.Variable.from_numpy_array(np.full(2, 0.1), need_grad=True))
    y = F.sum(h)
    y.forward()
    assert h.d.dtype == np.float64
    assert y.d.dtype == np.float32
    y.backward()  # the gradient crosses from float32 into float64
    assert h.g.dtype == np.float64


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: get_extension_context("tpu"), ArgumentError, "'tpu'; use one of"),
        (lambda: get_extension_context("cpu", type_config="int8"), ContextError, "'int8'"),
        (lambda: get_extension_context("cpu", stream=1), ArgumentError, r"got \['stream'\]"),
        (lambda: nn.set_default_context("cpu"), ArgumentError, "ctx is str; pass a Context"),
        (lambda: nn.Context(["abc:float"]).resolve(), ContextError, r"\['abc:float'\]"),
        (lambda: nn.Context()["device"], ArgumentError, "has no 'device'"),
    ],
)
def test_bad_arguments_are_named(call, kind, match):
    with pytest.raises(kind, match=match):
        call()


def test_the_default_context_cannot_change_inside_a_scope():
    with nn.context_scope(nn.Context()), pytest.raises(ContextError, match="leave the scope"):
        nn.set_default_context(nn.Context())


def test_errors_start_with_the_rank_where_there_are_several():
    import distnn.communicators as C

    def work():
        comm = C.MultiProcessDataParallelCommunicator()
        comm.init()
        with pytest.raises(DistnnError, match=f"^rank {comm.rank}: \\[affine\\]"):
            F.affine(nn.Variable((2, 3)), nn.Variable((4, 5)))

    C.run_threads(work, 2)
