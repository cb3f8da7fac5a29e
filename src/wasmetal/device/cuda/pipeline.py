"""Kernels, compiled by NVRTC at their first use and kept on disk between processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

from wasmetal.device.cuda.api import call, cu
from wasmetal.device.cuda.context import Context
from wasmetal.device.pipelines import CacheFile, Pipelines, cache_key, code_digest, compiled_code
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CUDA_PRELUDE, Kernel, cuda_prelude

_OPTIONS = (
    "--std=c++17",
    "--define-macro=SLANG_CUDA_ENABLE_HALF",
    "--define-macro=SLANG_CUDA_STRUCTURED_BUFFER_NO_COUNT",  # a buffer is a pointer
    "--diag-suppress=1444",  # the prelude names deprecated types
)
_SHARED = 44
"""Percent of a multiprocessor's fast memory that is group memory, once a kernel has come that needs much: then the same
for all kernels, since changing it takes time. Without such kernels the driver's choice is faster: it leaves more cache.

On an H200 these are 100 KiB: two groups of the kernel that has most."""
_MISSING = "pip install 'wasmetal[cuda]'"


class Pipeline:
    """A kernel, loaded onto the GPU."""

    def __init__(self, context: Context, kernel: Kernel, image: bytes) -> None:
        context.use()
        module = call("cuModuleLoadData", image)
        context.release_with(self, "cuModuleUnload", module)
        self.function = call("cuModuleGetFunction", module, kernel.name.encode())
        self.threads = kernel.threads
        self.spread = kernel.spread
        self.most = kernel.most
        self.ahead = kernel.ahead if context.physical.begins_early else None

    def share(self) -> None:
        """Have the same share of group memory as all other kernels that do this."""
        carveout = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        call("cuFuncSetAttribute", self.function, carveout, _SHARED)


class CudaPipelines(Pipelines[Pipeline]):
    """Pipelines, each from a file with its machine code if an earlier process has compiled it.

    The names of the files contain the GPU's architecture, and digests of every kernel's source and how it is compiled.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        self._shares = False
        options = hashlib.sha256(cuda_prelude() + repr(_OPTIONS).encode()).hexdigest()[:16]
        self.key = cache_key("cuda", context.physical.architecture, code_digest("cuda"), options)

    def compile(self, kernel: Kernel) -> Pipeline:
        """Load the kernel's machine code, compiled now if it is not on disk. Raises DeviceError."""
        file = CacheFile(f"{self.key}-{kernel.name}.cubin")
        image = file.read()
        if not image:
            image = compile_kernel(kernel, self._context.physical.architecture)
            file.write(image)
        made = Pipeline(self._context, kernel, image)
        if "integer_dot" in kernel.features and not self._shares:
            self._shares = True
            for earlier in self._made.values():
                earlier.share()
        if self._shares:
            made.share()
        return made

    def save(self) -> None:
        """Do nothing: each kernel is saved when it has been compiled."""


def compile_kernel(kernel: Kernel, architecture: str) -> bytes:
    """A kernel's machine code for an architecture such as ``sm_90``. Needs no GPU. Raises DeviceError."""
    nvrtc, headers = _compiler()
    source = compiled_code(kernel, "cuda")

    def check(result: Any, *written: Any) -> Any:
        if result:
            raise DeviceError(f"NVRTC failed on kernel {kernel.name}: {getattr(result, 'name', result)}")
        return written[0] if written else None

    def text(size: Callable[..., Any], get: Callable[..., Any]) -> bytes:
        made = bytes(check(*size(program)))
        check(*get(program, made))
        return made

    included = [cuda_prelude()], [CUDA_PRELUDE.encode()]
    program = check(*nvrtc.nvrtcCreateProgram(source, f"{kernel.name}.cu".encode(), 1, *included))
    options = [f"--gpu-architecture={architecture}", f"--include-path={headers}", *_OPTIONS]
    try:
        (failed,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if failed:
            log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode(errors="replace")
            raise DeviceError(f"NVRTC does not compile kernel {kernel.name}: {' '.join(log.split())[:300]}")
        return text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@cache
def _compiler() -> tuple[Any, str]:
    """NVRTC, and the folder of CUDA's headers. Raises DeviceError if either is not installed."""
    try:
        from cuda.bindings import nvrtc  # noqa: PLC0415
        from cuda.pathfinder import find_nvidia_header_directory  # noqa: PLC0415

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise DeviceError(f"NVRTC, CUDA's compiler, is not installed: {_MISSING}") from error
    headers = find_nvidia_header_directory("cudart")
    if headers is None:
        raise DeviceError(f"CUDA's headers are not installed: {_MISSING}")
    return nvrtc, headers
