"""Model files that change while they are read or used: an error, and never the end of the process (SIGBUS)."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from tests.models.tiny import write_tiny_llama
from tests.security.wasi_probe import READ, WRITE, WasiProbe
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.host.wasi_abi import OFlags
from wasmetal.models import Model
from wasmetal.models.files.gguf import GGUFFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = write_tiny_llama(tmp_path / "tiny.gguf", value_qtype="Q8_0")
    path.chmod(0o644)
    return path


def logits(model: Model) -> np.ndarray:
    out = model.logits()
    with model.session() as session:
        session.forward([3, 1, 4, 1, 5], out)
    return out.numpy().copy()


@pytest.mark.parametrize("left", [0.9, 0.1, 0])
def test_a_file_that_is_shortened_while_it_is_loaded(device: Device, path: Path, left: float) -> None:
    file = GGUFFile(path)
    os.truncate(path, int(path.stat().st_size * left))
    with pytest.raises(ModelError, match=r"tiny.gguf: (shortened|cannot be mapped)"):
        Model(file, "tiny", device)


def test_a_file_that_is_replaced_while_it_is_loaded(device: Device, path: Path) -> None:
    """The bytes of one file are used, whatever its name has become."""
    with load_model(path, device) as model:
        expected = logits(model)
    file = GGUFFile(path)
    path.unlink()
    path.write_bytes(b"something else")
    with Model(file, "tiny", device) as model:
        np.testing.assert_array_equal(logits(model), expected)


def test_a_loaded_model_does_not_need_its_file(cpu: Device, vulkan: Device, path: Path) -> None:
    for device in (cpu, vulkan):
        copy = path.with_name("copy.gguf")
        copy.write_bytes(path.read_bytes())
        with load_model(copy, device) as model:
            expected = logits(model)
            os.truncate(copy, 0)
            np.testing.assert_array_equal(logits(model), expected)


def test_a_pipe_is_no_model(tmp_path: Path, cpu: Device) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(tmp_path / "pipe", cpu)


# ---- Used in place


def test_no_guest_writes_to_a_file_that_is_used_in_place(metal: Device, path: Path) -> None:
    with WasiProbe({"/models": path.parent}) as probe:
        with load_model(path, metal) as model:
            assert model.counters.bytes_loaded < path.stat().st_size * 0.5
            expected = logits(model)
            for rights, oflags in ((WRITE, 0), (READ | WRITE, 0), (WRITE, OFlags.TRUNC), (READ, OFlags.TRUNC)):
                with pytest.raises(OSError, match="TXTBSY"):
                    probe.open(path.name, rights, oflags)
            os.link(path, path.with_name("link"))
            with pytest.raises(OSError, match="TXTBSY"):
                probe.open("link", WRITE)
            assert probe.read(probe.open(path.name)).startswith(b"GGUF")
            np.testing.assert_array_equal(logits(model), expected)
        fd = probe.open(path.name, READ | WRITE, OFlags.TRUNC)
        assert probe.read(fd) == b""


def test_a_file_that_a_guest_writes_is_copied(metal: Device, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with WasiProbe({"/models": path.parent}) as probe, caplog.at_level(logging.WARNING, "wasmetal.models"):
        fd = probe.open(path.name, WRITE)
        with load_model(path, metal) as model:
            assert model.counters.bytes_shared == 0
            expected = logits(model)
            probe.fd_filestat_set_size(fd, 0)
            np.testing.assert_array_equal(logits(model), expected)
        assert "a guest has it open for writing" in caplog.text


def test_a_file_that_others_may_write_is_copied(metal: Device, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with caplog.at_level(logging.WARNING, "wasmetal.models"), load_model(path, metal) as model:
            assert model.counters.bytes_shared == 0
            assert logits(model).any()
        assert "other users may write to it" in caplog.text


def test_a_guest_that_ends_leaves_the_file_usable_in_place(metal: Device, path: Path) -> None:
    with WasiProbe({"/models": path.parent}) as probe:
        probe.open(path.name, WRITE)
        probe.fd_close(probe.open(path.name, WRITE))
    with load_model(path, metal) as model:
        assert model.counters.bytes_shared > 0
