"""Kernels in Triton: their code generation, layouts and synchronisation are Triton's, proven on real GPUs."""
