"""Compiled pipelines on disk, in an ``MTLBinaryArchive``, so that the next process need not compile them again."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from wasmetal.device.metal.api import NSURL, error_text, mtl, objc, succeeded
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.pipelines import CacheFile
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG

_log = logging.getLogger(__name__)


class Archive:
    """An ``MTLBinaryArchive``, loaded from the file that an earlier process saved.

    The file's name contains the system, the GPU and a digest of every kernel's source, so a change to any of them
    starts a new archive. An archive only saves time: a GPU that supports none (virtual GPUs; ``kept`` is False) works
    without.
    """

    def __init__(self, physical: PhysicalDevice) -> None:
        self._device = physical.handle
        self.key = _key(physical)
        """Names cache files that are valid only for this system, this GPU and these kernel sources."""
        self._file = CacheFile(f"{self.key}.archive")
        self._changed = False
        with objc.autorelease_pool():
            self._archive = self._make(self._file.path if self._file.whole() else None) or self._make(None)

    @property
    def kept(self) -> bool:
        """Whether the GPU supports archives."""
        return self._archive is not None

    def pipeline(self, descriptor: Any, what: str) -> Any:
        """The ``MTLComputePipelineState`` for a descriptor: from the archive, or else compiled and added to it.

        Raises DeviceError, which names ``what``, if it does not compile.
        """
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

    def save(self) -> None:
        """Write the file if any pipeline was added."""
        if self._changed:
            try:
                self._file.replace(self._write)
            except DeviceError as error:
                _log.info("%s", error)
            self._changed = False

    def _write(self, path: Path) -> None:
        with objc.autorelease_pool():
            written = self._archive.serializeToURL_error_(NSURL.fileURLWithPath_(str(path)), None)
            succeeded(written, "cannot write the pipeline archive")

    def _build(self, descriptor: Any, option: int, what: str) -> Any:
        build = self._device.newComputePipelineStateWithDescriptor_options_reflection_error_
        # With None for the reflection argument, PyObjC returns two results, not three.
        return succeeded(build(descriptor, option, None, None), f"{what} did not compile")

    def _make(self, path: Path | None) -> Any:
        descriptor = mtl.MTLBinaryArchiveDescriptor.new()
        if path is not None:
            descriptor.setUrl_(NSURL.fileURLWithPath_(str(path)))
        archive, error = self._device.newBinaryArchiveWithDescriptor_error_(descriptor, None)
        if archive is None:
            _log.info("no pipeline archive from %s: %s", path, error_text(error))
        return archive


def _key(physical: PhysicalDevice) -> str:
    """What compiled code depends on, for use in a file's name."""
    sources = hashlib.sha256()
    for name in sorted(CATALOG):
        with contextlib.suppress(FileNotFoundError):  # not a kernel for Metal
            sources.update(CATALOG[name].code("metal"))
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"metal-{physical.system}-{physical.name}-{sources.hexdigest()[:16]}")
