"""Model files that change while they are read or used: an error, and never the end of the process (SIGBUS)."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from tests.models.tiny import write_tiny_llama
from tests.security.apart import run_apart, started_apart
from tests.security.model_writers import attack, attempts, replace, write_when_told
from tests.security.wasi_probe import READ, WRITE, WasiProbe
from wasmetal import load_model
from wasmetal.device import Device, open_device
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


def test_a_model_that_was_copied_does_not_need_its_file(
    vulkan: Device, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMETAL_COPY_WEIGHTS", "1")
    with open_device("cpu") as cpu:
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


@pytest.fixture(params=["cpu", "metal"])
def in_place(request: pytest.FixtureRequest) -> Device:
    """Devices that use files in place."""
    device: Device = request.getfixturevalue(request.param)
    if not device.info.wraps_files:
        pytest.skip("no compiled kernels for this processor")
    return device


def test_no_guest_writes_to_a_file_that_is_used_in_place(in_place: Device, path: Path) -> None:
    with WasiProbe({"/models": path.parent}) as probe:
        with load_model(path, in_place) as model:
            assert model.counters.bytes_loaded < path.stat().st_size * 0.5
            expected, before = logits(model), path.read_bytes()
            assert attempts(probe) == {"TXTBSY", "INVAL"}  # INVAL: to shorten what is open for reading
            assert path.read_bytes() == before
            assert probe.read(probe.open(path.name)).startswith(b"GGUF")
            np.testing.assert_array_equal(logits(model), expected)
        fd = probe.open(path.name, READ | WRITE, OFlags.TRUNC)
        assert probe.read(fd) == b""


def test_a_file_in_use_may_be_replaced(in_place: Device, path: Path) -> None:
    with WasiProbe({"/models": path.parent}) as probe, load_model(path, in_place) as model:
        expected = logits(model)
        replace(probe)
        assert not path.exists()
        np.testing.assert_array_equal(logits(model), expected)


def test_guests_of_other_processes(in_place: Device, path: Path) -> None:
    with load_model(path, in_place) as model:
        expected = logits(model)
        assert run_apart(attack, str(path.parent)) == "INVAL TXTBSY\n"
        assert not path.exists()
        np.testing.assert_array_equal(logits(model), expected)


def test_isolated_guests(in_place: Device, path: Path) -> None:
    with (
        WasiProbe({"/models": path.parent}, isolation="process") as probe,
        load_model(path, in_place) as model,
    ):
        expected = logits(model)
        assert attempts(probe) == {"TXTBSY", "INVAL"}
        np.testing.assert_array_equal(logits(model), expected)


def test_a_file_that_a_guest_writes_is_copied(in_place: Device, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with WasiProbe({"/models": path.parent}) as probe, caplog.at_level(logging.WARNING, "wasmetal.models"):
        fd = probe.open(path.name, WRITE)
        with load_model(path, in_place) as model:
            assert model.counters.bytes_shared == 0
            expected = logits(model)
            probe.fd_filestat_set_size(fd, 0)
            np.testing.assert_array_equal(logits(model), expected)
        assert "a guest has it open for writing" in caplog.text


def test_a_file_that_a_guest_of_another_process_writes_is_copied(in_place: Device, path: Path) -> None:
    with started_apart(write_when_told, str(path.parent)) as writer:
        assert writer("") == "open"
        with load_model(path, in_place) as model:
            assert model.counters.bytes_shared == 0
            expected = logits(model)
            assert writer("go on") == "shortened"
            np.testing.assert_array_equal(logits(model), expected)


def test_a_file_that_others_may_write_is_copied(in_place: Device, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with caplog.at_level(logging.WARNING, "wasmetal.models"), load_model(path, in_place) as model:
            assert model.counters.bytes_shared == 0
            assert logits(model).any()
        assert "other users may write to it" in caplog.text


def test_a_file_of_another_user_is_copied(
    in_place: Device, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:  # root's own files are trusted
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with caplog.at_level(logging.WARNING, "wasmetal.models"), load_model(path, in_place) as model:
        assert model.counters.bytes_shared == 0
    assert "it belongs to another user" in caplog.text


def test_a_file_system_without_locks(
    in_place: Device, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    with caplog.at_level(logging.WARNING, "wasmetal.models"), load_model(path, in_place) as model:
        assert model.counters.bytes_shared == 0
        assert logits(model).any()
    assert "it cannot be locked: Function not implemented" in caplog.text


def test_a_guest_that_ends_leaves_the_file_usable_in_place(in_place: Device, path: Path) -> None:
    with WasiProbe({"/models": path.parent}) as probe:
        probe.open(path.name, WRITE)
        probe.fd_close(probe.open(path.name, WRITE))
    with load_model(path, in_place) as model:
        assert model.counters.bytes_shared > 0
