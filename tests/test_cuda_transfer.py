"""Batches on their way to a GPU: their values, what waits for what, and where they land."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F

SHAPE = (64, 16, 20)  # 80 KiB, which goes through page-locked buffers


@pytest.fixture(autouse=True)
def landings(gpu):
    """Those of other tests are gone."""
    from distnn.cuda import transfer

    transfer.let_go_of_landings()
    return transfer._ring(0)._landings


@pytest.fixture
def cupy(gpu):
    import cupy

    return cupy


@pytest.fixture
def emulator(gpu):
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.skip("looks into the emulator")
    return gpu_emulator


def batches(count, dtype=np.float32):
    rng = np.random.RandomState(0)
    return [rng.uniform(0, 100, SHAPE).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float64])
def test_batches_arrive_whoever_holds_those_before(cupy, dtype):
    from distnn.cuda.transfer import to_device

    held = []
    for k, batch in enumerate(batches(8, dtype)):
        array = to_device(batch, np.dtype(np.float32))
        if k % 3:
            held.append((array * 2, array[3:] if k % 2 else None, batch))
    for doubled, part, batch in held:
        np.testing.assert_array_equal(doubled.get(), 2 * batch.astype(np.float32))
        if part is not None:
            np.testing.assert_array_equal(part.get(), batch[3:].astype(np.float32))


def test_memory_of_a_batch_takes_the_next_but_one(cupy):
    from distnn.cuda.transfer import to_device

    seen, array = [], None
    for batch in batches(6):
        array = to_device(batch, batch.dtype)
        seen.append(array.data.ptr)
    assert seen[:2] * 3 == seen


def test_streams_are_in_order(emulator):
    with emulator.ordering.checked():
        x = nn.Variable(SHAPE)
        y = F.sum(F.tanh(x) * x)
        for batch in batches(6):
            x.d = batch
            y.forward()
        wanted = batch * np.tanh(batch)
        np.testing.assert_allclose(y.d, wanted.sum(), rtol=1e-4)


def test_a_batch_goes_up_while_the_last_one_is_computed_with(emulator):
    x = nn.Variable(SHAPE)
    y = F.sum(F.tanh(x) * x)
    first, *others = batches(7)
    for batch in others:
        x.d = batch
        y.forward()
    record = emulator.record
    record.clear()
    x.d = first
    y.forward()
    computed = len(record.operations)
    assert record.kernels()
    x.d = others[0]
    y.forward()
    operations = list(record.operations)
    copies = [i for i, o in enumerate(operations) if o[:2] == ("copy", "HtoD") and i >= computed]
    stream = operations[copies[0]][3]
    (event,) = [o[1] for o in operations[computed : copies[0]] if o[0] == "wait" and o[2] == stream]
    recorded = [i for i, o in enumerate(operations) if o[0] == "event" and o[1] is event]
    kernels = [i for i, o in enumerate(operations) if o[0] == "kernel"]
    assert recorded[0] < kernels[0]  # those of the last batch


def test_landings_are_let_go_of_where_no_memory_is_left(cupy, landings):
    from distnn.cuda.transfer import to_device

    for batch in batches(4):
        to_device(batch, batch.dtype)
    assert landings
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + (1 << 12))
    try:
        cupy.empty(SHAPE, np.float32)
    finally:
        pool.set_limit(size=0)
    assert not landings


def test_few_landings_are_kept(cupy, landings):
    from distnn.cuda.transfer import _LANDINGS, to_device

    arrays = [to_device(batch, batch.dtype) for batch in batches(9)]
    assert not landings
    del arrays
    assert len(landings) == _LANDINGS
