"""Compiled pipelines on disk, in Metal's own archive, so that the next process need not compile them again."""

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
    """An ``MTLBinaryArchive`` that begins with what an earlier process left.

    Its file is named by system, GPU and a digest of every kernel's source, so that none is given what another made. An
    archive only saves time, so a GPU that has none (``kept`` is False; virtual ones) is passed over.
    """

    def __init__(self, physical: PhysicalDevice) -> None:
        self._device = physical.handle
        self.key = _key(physical)
        """Names files of what holds for this system, GPU and state of the kernels alone."""
        self._file = CacheFile(f"{self.key}.archive")
        self._changed = False
        with objc.autorelease_pool():
            self._archive = self._make(self._file.path if self._file.whole() else None) or self._make(None)

    @property
    def kept(self) -> bool:
        """Whether there is an archive at all."""
        return self._archive is not None

    def pipeline(self, descriptor: Any, what: str) -> Any:
        """The ``MTLComputePipelineState`` that a descriptor describes: kept here, or else compiled and then kept.

        Raises DeviceError, that ``what`` was not compiled.
        """
        if self._archive is not None:
            descriptor.setBinaryArchives_([self._archive])
            with contextlib.suppress(DeviceError):
                return self._build(descriptor, mtl.MTLPipelineOptionFailOnBinaryArchiveMiss, what)
            # Compiled into the archive, and so once: the pipeline is then found there.
            added, error = self._archive.addComputePipelineFunctionsWithDescriptor_error_(descriptor, None)
            self._changed |= bool(added)
            if not added:
                _log.info("%s was not added to the pipeline archive: %s", what, error_text(error))
        return self._build(descriptor, mtl.MTLPipelineOptionNone, what)

    def save(self) -> None:
        """Write the file anew if something was added."""
        if self._changed:
            try:
                self._file.replace(self._write)
            except DeviceError as error:
                _log.info("%s", error)
            self._changed = False

    def _write(self, path: Path) -> None:
        with objc.autorelease_pool():
            written = self._archive.serializeToURL_error_(NSURL.fileURLWithPath_(str(path)), None)
            succeeded(written, "the pipeline archive was not written")

    def _build(self, descriptor: Any, option: int, what: str) -> Any:
        build = self._device.newComputePipelineStateWithDescriptor_options_reflection_error_
        # PyObjC has no result for the reflection argument, so there are two and not three.
        return succeeded(build(descriptor, option, None, None), f"{what} was not compiled")

    def _make(self, path: Path | None) -> Any:
        descriptor = mtl.MTLBinaryArchiveDescriptor.new()
        if path is not None:
            descriptor.setUrl_(NSURL.fileURLWithPath_(str(path)))
        archive, error = self._device.newBinaryArchiveWithDescriptor_error_(descriptor, None)
        if archive is None:
            _log.info("no pipeline archive from %s: %s", path, error_text(error))
        return archive


def _key(physical: PhysicalDevice) -> str:
    """What compiled code depends on, as part of a file's name."""
    sources = hashlib.sha256()
    for name in sorted(CATALOG):
        with contextlib.suppress(FileNotFoundError):  # a kernel for other devices
            sources.update(CATALOG[name].code("metal"))
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"metal-{physical.system}-{physical.name}-{sources.hexdigest()[:16]}")
