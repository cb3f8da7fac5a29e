"""The CPU device: kernels in C, or else in NumPy, on host pages."""
