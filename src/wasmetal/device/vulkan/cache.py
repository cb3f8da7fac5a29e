"""The driver's compiled pipelines on disk, so that the next process need not compile them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from wasmetal.device.cache import cache_directory
from wasmetal.device.vulkan.api import NULL, call, ffi, struct
from wasmetal.device.vulkan.logical import LogicalDevice

_DIGEST_BYTES = hashlib.sha256().digest_size


class PipelineCache:
    """A ``VkPipelineCache`` that begins with what an earlier process left.

    The file is named by vendor, device, driver and the driver's own cache identifier, so that none is ever given the
    data of another, and begins with a digest, because drivers are not known to survive damaged data. A file that is
    missing, damaged or not writable costs only time, so it is passed over in silence.
    """

    def __init__(self, device: LogicalDevice) -> None:
        self._device = device
        self._path = cache_directory() / f"vulkan-{device.physical.cache_key}.bin"
        self._saved = _read(self._path)
        data = self._saved
        info = struct(
            "VkPipelineCacheCreateInfo", initialDataSize=len(data), pInitialData=ffi.from_buffer(data) if data else NULL
        )
        self._cache = device.create("PipelineCache", info)
        self.handle = self._cache.handle

    def save(self) -> None:
        """Write the file anew where there is something new to write."""
        size = ffi.new("size_t *")
        call("vkGetPipelineCacheData", self._device.handle, self.handle, size, NULL)
        held = ffi.new("char[]", size[0])
        call("vkGetPipelineCacheData", self._device.handle, self.handle, size, held)
        data = bytes(ffi.buffer(held, size[0]))
        if data != self._saved:
            with contextlib.suppress(OSError):
                _write(self._path, data)
                self._saved = data


def _read(path: Path) -> bytes:
    """The data of a cache file; empty where there is none that is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == digest else b""


def _write(path: Path, data: bytes) -> None:
    """Replace the file in one step, so that another process reads either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
