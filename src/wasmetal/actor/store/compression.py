"""Chunks compressed with zstd, where that saves anything."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from wasmetal.errors import SnapshotError

SUFFIX: Final = ".zst"
MOST: Final = 1 << 20
"""Bytes of a chunk that may be compressed. Larger ones are mapped instead; and no chunk grows, when it is read, to more
than this beyond the bytes that the file has."""
_LEAST: Final = 512
_WORTH: Final = 0.9
"""What is left of a chunk that is worth compressing, at most."""
_LEVEL: Final = 3


def available() -> None:
    """Raise SnapshotError unless ``zstandard`` is installed."""
    _zstandard()


def compressed(data: memoryview) -> bytes | None:
    """The chunk as a frame of zstd; None if it is better stored as it is. Without ``zstandard``, SnapshotError."""
    if not _LEAST <= data.nbytes <= MOST:
        return None
    frame: bytes = _zstandard().ZstdCompressor(level=_LEVEL, write_content_size=True).compress(data)
    return frame if len(frame) <= _WORTH * data.nbytes else None


def content_bytes(frame: bytes) -> int:
    """Bytes that a frame's header says it holds; -1 if that is no header, says nothing, or more than ``MOST``.

    Raises SnapshotError without ``zstandard``.
    """
    zstandard = _zstandard()
    try:
        size = zstandard.get_frame_parameters(frame).content_size
    except zstandard.ZstdError:
        return -1
    return size if size <= MOST else -1


def decompressed(frame: bytes, digest: str, size: int) -> bytes:
    """The chunk. Raises SnapshotError if the frame is damaged, or holds another number of bytes, or more than ``MOST``.

    Nothing is allocated before that number was checked.
    """
    if content_bytes(frame) != size:
        raise SnapshotError(f"the snapshot's chunk {digest} is damaged: it does not hold {size} compressed bytes")
    zstandard = _zstandard()
    try:
        data: bytes = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise SnapshotError(f"the snapshot's chunk {digest} is damaged: it cannot be decompressed") from error
    return data


def _zstandard() -> ModuleType:
    try:
        import zstandard  # noqa: PLC0415
    except ImportError as error:
        raise SnapshotError("compressed chunks need the package zstandard: pip install 'wasmetal[zstd]'") from error
    module: ModuleType = zstandard
    return module
