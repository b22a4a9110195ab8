"""Kernels on CUDA, in Triton: what adapters add, read from the slots that are on alone."""
