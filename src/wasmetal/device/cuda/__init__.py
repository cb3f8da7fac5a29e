"""NVIDIA's GPUs, through CUDA's driver API, with kernels compiled by NVRTC.

Importing a module of this package needs ``cuda-bindings`` (the extra ``cuda``), or raises DeviceNotFoundError.
"""
