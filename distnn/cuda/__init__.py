"""NVIDIA GPUs: arrays of CuPy, kernels of our own, cuDNN and NCCL. The only importer of cupy.

Nothing outside of this folder imports it before a context asks for a GPU.
"""
