"""Kernels: Slang sources, their catalog, and the compiled code that ships."""
