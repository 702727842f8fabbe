"""Listings of plans of three networks, compared with stored ones: a change shows what it changes.

Where a change is meant, `DISTNN_CPU_KERNELS=numpy python tests/test_listings.py` stores them anew;
read the difference.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import distnn as nn
from distnn.context import Context, World, context_scope, world_scope
from distnn.errors import GraphError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import networks

HERE = Path(__file__).resolve().parent
NETWORKS = {
    "seed": lambda: networks.seed(depth=1, batch=4, width=0.25),
    "resnet": lambda: networks.resnet50(2, 32, (1, 1, 1, 1), 8, channel_last=False),
    "transformer": lambda: networks.transformer(1, 16, 2, 2, 8, 50),
}


def listing(name):
    network = NETWORKS[name]()
    with world_scope(World()), context_scope(Context(["cpu:float"])):
        x, t = (nn.Variable(array.shape) for array in network.batch())
        return nn.profiler.listing(network.ours(x, t)) + "\n"


@pytest.mark.skipif(nn.get_cpu_kernels() != "numpy", reason="compiled kernels chain nothing")
@pytest.mark.parametrize("name", NETWORKS)
def test_plans_are_as_stored(name):
    assert listing(name) == (HERE / "listings" / f"{name}.txt").read_text()


def test_a_leaf_has_no_listing():
    with pytest.raises(GraphError, match=r"\[listing\]"):
        nn.profiler.listing(nn.Variable((2, 3)))


if __name__ == "__main__":
    for name in NETWORKS:
        (HERE / "listings" / f"{name}.txt").write_text(listing(name))
