"""Ops: check tensors and encode kernels into a command list."""
