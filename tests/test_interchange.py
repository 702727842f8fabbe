"""Arrays of other libraries as ours and ours as theirs, over the same memory."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.errors import ArgumentError
from distnn.utils.dlpack import to_dlpack


def test_numpy_in_by_dlpack_shares_memory():
    theirs = np.arange(6, dtype=np.float32).reshape(2, 3)
    ours = nn.from_dlpack(theirs)
    assert ours.shape == (2, 3)
    assert ours.dtype == np.float32
    theirs[0, 0] = 7
    assert ours.data[0, 0] == 7
    ours.data[1, 2] = -1
    assert theirs[1, 2] == -1


def test_functions_see_what_the_owner_wrote_in_between():
    theirs = np.ones(3, np.float64)  # converted to float32 for each function
    ours = nn.from_dlpack(theirs)
    np.testing.assert_array_equal((ours * 2).data, [2, 2, 2])
    theirs[:] = 5
    np.testing.assert_array_equal((ours * 2).data, [10, 10, 10])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool"])
def test_pytorch_in_and_out_without_a_copy(dtype):
    torch = pytest.importorskip("torch")
    theirs = torch.zeros(2, 3, dtype=getattr(torch, dtype))
    ours = nn.from_dlpack(theirs)
    assert ours.dtype == np.dtype(dtype)
    back = torch.from_dlpack(ours)
    assert back.data_ptr() == theirs.data_ptr()
    back[0, 1] = 1
    assert ours.data[0, 1] == theirs[0, 1] == 1


def test_our_arrays_as_tensors_stay_live():
    torch = pytest.importorskip("torch")
    x = nn.Variable.from_numpy_array(np.full((2, 2), 3, np.float32))  # on the host, whatever runs
    tensor = torch.from_dlpack(x.data)
    tensor[0, 0] = 9
    y = F.identity(x)
    y.forward()
    np.testing.assert_array_equal(y.d, [[9, 3], [3, 3]])


def test_a_view_exports_its_own_part():
    a = nn.NdArray.from_numpy_array(np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(np.from_dlpack(a.narrow(0, 1, 2)), [[2, 3], [4, 5]])


def test_the_array_interface_keeps_the_memory_alive():
    a = nn.NdArray.from_numpy_array(np.arange(100000.0))

    class Holder:
        __array_interface__ = a.__array_interface__

    seen = np.asarray(Holder())
    assert not seen.flags.writeable
    a.clear()
    a.data = np.zeros(100000)
    np.testing.assert_array_equal(seen, np.arange(100000.0))


def test_numpy_reads_by_the_interface_without_a_copy():
    a = nn.NdArray.from_numpy_array(np.ones(4, np.float32))
    seen = np.asarray(a)
    a.data[2] = 5
    assert seen[2] == 5


def test_there_is_no_cuda_interface_on_the_host():
    a = nn.NdArray.from_numpy_array(np.zeros(2, np.float32))
    assert not hasattr(a, "__cuda_array_interface__")
    assert a.__dlpack_device__() == (1, 0)


def test_capsules_under_nnablas_name():
    assert type(to_dlpack(nn.NdArray((2,)))).__name__ == "PyCapsule"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ([1, 2], r"\[from_dlpack\] tensor is list"),
        (np.zeros((4, 4), np.float32).T[1:], r"strides .* pass a C-contiguous one"),
        (np.zeros(3, np.complex64), "dtype complex64"),
    ],
)
def test_what_cannot_be_shared_says_why(tensor, message):
    with pytest.raises(ArgumentError, match=message):
        nn.from_dlpack(tensor)
