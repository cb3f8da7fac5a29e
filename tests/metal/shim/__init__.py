"""Metal kernels compiled as C++ and run on the CPU.

``compile_library`` takes a Metal source; each kernel of it is a function that runs on (address, bytes) buffers. This
checks a kernel's arithmetic, indexing, address spaces and barriers. That Apple's compiler takes the source it does not
show, nor how fast a GPU is.
"""

from tests.metal.shim.library import Function, Library, ShimCompileError, ShimError, compile_library

__all__ = ["Function", "Library", "ShimCompileError", "ShimError", "compile_library"]
