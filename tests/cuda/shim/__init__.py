"""Kernels for CUDA that use matrix instructions, as C++ on the CPU."""
