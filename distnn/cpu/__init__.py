"""CPU kernels compiled by Numba, in the place of NumPy's. The only importer of numba and llvmlite.

Nothing here imports Numba before a function of some size runs on the CPU, and nothing at all where
it is not installed: `distnn.kernels` says which kernels are used.
"""
