"""The pipeline cache on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.harness import recorded, span
from wasmetal.device import Device, MemoryKind, open_device

pytestmark = pytest.mark.vulkan

Session = Callable[[], bytes]


@pytest.fixture
def session(vulkan: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Open a device with its cache under ``tmp_path``, run a kernel, close it; returns what the driver was given."""
    from wasmetal.device.vulkan import pipeline

    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    real, given = pipeline.struct, []

    def spy(name: str, **fields):
        made = real(name, **fields)
        if name == "VkPipelineCacheCreateInfo":
            size = made.initialDataSize
            given.append(bytes(pipeline.ffi.buffer(made.pInitialData, size)) if size else b"")
        return made

    monkeypatch.setattr(pipeline, "struct", spy)

    def run() -> bytes:
        with open_device("vulkan") as device:
            buffer = device.allocate(64, MemoryKind.SHARED)
            device.submit([recorded(device, (span(buffer, 0, 4), span(buffer, 4, 4), span(buffer, 8, 4)))]).wait()
        return given.pop()

    return run


def cached(home: Path) -> Path:
    data, digest = sorted((home / "pipelines").iterdir())  # and no temporary file beside them
    assert digest.name == f"{data.name}.sha256"
    return data


def test_the_next_process_begins_with_what_this_one_compiled(session: Session, tmp_path: Path) -> None:
    assert session() == b""
    assert session() == cached(tmp_path).read_bytes() != b""


def test_the_file_is_named_by_the_device(session: Session, tmp_path: Path) -> None:
    session()
    name = cached(tmp_path).name
    # Vulkan's own header: length, version, vendor, device, cache identifier.
    header = cached(tmp_path).read_bytes()[:32]
    vendor, device = (int.from_bytes(header[i : i + 4], "little") for i in (8, 12))
    assert name.startswith(f"vulkan-{vendor:04x}-{device:04x}-")
    assert name.endswith(f"-{header[16:32].hex()}.bin")


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 4096])
def test_a_damaged_file_is_passed_over_and_replaced(session: Session, tmp_path: Path, damage: bytes) -> None:
    session()
    path = cached(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert session() == b""
    assert path.read_bytes() == whole


def test_a_file_without_its_digest_is_damaged(session: Session, tmp_path: Path) -> None:
    session()
    path = cached(tmp_path)
    path.with_name(f"{path.name}.sha256").unlink()
    assert session() == b""
    assert session() == path.read_bytes()


def test_one_flipped_bit_is_damage(session: Session, tmp_path: Path) -> None:
    session()
    path = cached(tmp_path)
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    assert session() == b""


def test_nothing_new_is_not_written(session: Session, tmp_path: Path) -> None:
    session()
    before = os.stat(cached(tmp_path)).st_ino
    session()
    assert os.stat(cached(tmp_path)).st_ino == before


def test_no_room_for_a_cache_is_no_error(session: Session, tmp_path: Path) -> None:
    (tmp_path / "pipelines").write_text("a file where the folder should be")
    assert session() == b""
    assert (tmp_path / "pipelines").is_file()
