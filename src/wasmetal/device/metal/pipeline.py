"""Compute pipelines, compiled from the kernels' Metal source and kept in an ``MTLBinaryArchive`` between processes."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wasmetal.device.metal.api import NSURL, error_text, mtl, objc, succeeded
from wasmetal.device.metal.physical import SIMD_WIDTH, PhysicalDevice
from wasmetal.device.pipelines import CacheFile, Pipelines, cache_key, check_threads, code_digest, compiled_code
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A kernel compiled for the GPU. The parameter struct is buffer argument 0, the kernel's buffers are 1, 2, …"""

    kernel: Kernel
    handle: Any
    """The ``MTLComputePipelineState``."""


class MetalPipelines(Pipelines[Pipeline]):
    """Pipelines in an ``MTLBinaryArchive``, which is loaded from the file that an earlier process saved.

    The names of cache files contain ``key``: the system, the GPU and a digest of every kernel's source. An archive only
    saves time: a GPU that supports none (virtual GPUs; ``archived`` is False) works without.
    """

    def __init__(self, physical: PhysicalDevice, indirect: bool = False) -> None:
        """``indirect``: the pipelines can also be used from indirect command buffers."""
        super().__init__()
        self._physical = physical
        self._indirect = indirect
        self.key = cache_key("metal", physical.system, physical.name, code_digest("metal"))
        self._file = CacheFile(f"{self.key}.archive")
        self._changed = False
        with objc.autorelease_pool():
            self._archive = self._load(self._file.path if self._file.whole() else None) or self._load(None)

    @property
    def archived(self) -> bool:
        """Whether the GPU supports archives."""
        return self._archive is not None

    def compile(self, kernel: Kernel) -> Pipeline:
        """The kernel's pipeline: from the archive, or else compiled and added to it. Raises DeviceError."""
        physical = self._physical
        with objc.autorelease_pool():
            descriptor = mtl.MTLComputePipelineDescriptor.new()
            descriptor.setComputeFunction_(_function(physical.handle, kernel))
            if self._indirect:
                descriptor.setSupportIndirectCommandBuffers_(True)
            made = Pipeline(kernel, self._pipeline(descriptor, f"kernel {kernel.name}"))
        check_threads(kernel, made.handle.maxTotalThreadsPerThreadgroup(), physical.name)
        if (width := made.handle.threadExecutionWidth()) != SIMD_WIDTH:
            raise DeviceError(f"{physical.name} has simdgroups of {width} threads; the kernels need {SIMD_WIDTH}")
        return made

    def save(self) -> None:
        """Write the archive's file if any pipeline was added."""
        if self._changed:
            self._file.replace(self._write)
            self._changed = False

    def _pipeline(self, descriptor: Any, what: str) -> Any:
        if self._archive is not None:
            descriptor.setBinaryArchives_([self._archive])
            with contextlib.suppress(DeviceError):
                return self._build(descriptor, mtl.MTLPipelineOptionFailOnBinaryArchiveMiss, what)
            # Adding it compiles it; building the pipeline below then finds it in the archive, so it is compiled once.
            added, error = self._archive.addComputePipelineFunctionsWithDescriptor_error_(descriptor, None)
            self._changed |= bool(added)
            if not added:
                _log.info("%s could not be added to the pipeline archive: %s", what, error_text(error))
        return self._build(descriptor, mtl.MTLPipelineOptionNone, what)

    def _build(self, descriptor: Any, option: int, what: str) -> Any:
        build = self._physical.handle.newComputePipelineStateWithDescriptor_options_reflection_error_
        # With None for the reflection argument, PyObjC returns two results, not three.
        return succeeded(build(descriptor, option, None, None), f"{what} did not compile")

    def _load(self, path: Path | None) -> Any:
        """The archive in a file, or an empty one; None if it cannot be made."""
        descriptor = mtl.MTLBinaryArchiveDescriptor.new()
        if path is not None:
            descriptor.setUrl_(NSURL.fileURLWithPath_(str(path)))
        archive, error = self._physical.handle.newBinaryArchiveWithDescriptor_error_(descriptor, None)
        if archive is None:
            _log.info("no pipeline archive from %s: %s", path, error_text(error))
        return archive

    def _write(self, path: Path) -> None:
        with objc.autorelease_pool():
            written = self._archive.serializeToURL_error_(NSURL.fileURLWithPath_(str(path)), None)
            succeeded(written, "cannot write the pipeline archive")


def _function(device: Any, kernel: Kernel) -> Any:
    source = compiled_code(kernel, "metal").decode()
    options = mtl.MTLCompileOptions.new()
    # Fast math reorders sums, and assumes that there are no NaNs and infinities.
    options.setMathMode_(mtl.MTLMathModeSafe)
    options.setMathFloatingPointFunctions_(mtl.MTLMathFloatingPointFunctionsPrecise)
    options.setLanguageVersion_(mtl.MTLLanguageVersion3_1)
    compiled = device.newLibraryWithSource_options_error_(source, options, None)
    library = succeeded(compiled, f"kernel {kernel.name} did not compile")
    function = library.newFunctionWithName_(kernel.name)
    if function is None:
        raise DeviceError(f"kernel {kernel.name} is not in its own library: generate the kernels again")
    return function
