"""What scripts read: the shape and the meaning of every ``--json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import wasmetal

from wasmetal.device import Device, list_devices


def read(*arguments: object, **environment: str) -> Any:
    done = wasmetal(*arguments, "--json", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_devices_are_those_that_the_library_lists() -> None:
    found = read("devices")
    assert [each["spec"] for each in found] == [info.spec for info in list_devices()]
    for each, info in zip(found, list_devices(), strict=True):
        assert each["name"] == info.name
        assert each["unified"] == info.unified
        assert each["page_alignment"] == info.page_alignment


def test_models_tells_which_are_here(tmp_path: Path) -> None:
    [model] = read("models", WASMETAL_HOME=str(tmp_path))
    assert model["name"] == "smollm2:135m"
    assert model["path"] is None
    assert model["bytes"] == 98_362_432


def test_doctor_proves_every_device(device: Device) -> None:
    [report] = read("doctor", "--device", device.info.spec)["devices"]
    assert report["name"] == device.info.name
    assert report["backend"] == device.info.backend
    assert report["ok"] is True
    assert report["pointer_identity"] is True
    assert report["shared_overhead_mb"] < 0.1
    assert report["copy_overhead_mb"] > 16
    assert report["bytes_copied"] == 0
    assert report["gemm_shared_ms"] > 0
    assert report["gemm_copy_ms"] > 0
    assert all(link["ok"] for link in report["links"])


def test_doctor_without_a_device_walks_all() -> None:
    assert [report["spec"] for report in read("doctor")["devices"]] == [info.spec for info in list_devices()]


def test_zerocopy_counts_what_it_copies(device: Device) -> None:
    result = read("bench", "zerocopy", "--device", device.info.spec, "--largest", "64KiB")
    assert result["device"] == device.info.spec
    assert [row["nbytes"] for row in result["rows"]] == [4096, 16384, 65536]
    assert result["skipped"] == []
    for row in result["rows"]:
        assert row["bytes_copied_shared"] == 0
        assert row["bytes_copied_copied"] == 2 * row["nbytes"]
        assert min(row["shared_ms"], row["copied_ms"], row["wrap_ms"]) > 0


def test_zerocopy_says_what_it_skips() -> None:
    from wasmetal.bench import zerocopy
    from wasmetal.device import open_device

    with open_device("cpu") as device:
        [skipped] = zerocopy.measure(device, [device.info.memory_bytes // 4096 * 4096])
    assert isinstance(skipped, zerocopy.Skipped)
    assert str(device.info.memory_bytes) in skipped.reason


def test_dispatch_splits_the_round_trip(device: Device) -> None:
    result = read("bench", "dispatch", "--device", device.info.spec)
    assert result["device"] == device.info.spec
    assert result["new"]["encode_us"] > 0
    assert result["same"]["encode_us"] == 0  # recorded once, replayed since
    for split in (result["new"], result["same"]):
        parts = [split[part] for part in ("host_call_us", "encode_us", "submit_us", "wait_us")]
        assert sum(parts) == pytest.approx(split["total_us"])
        assert min(split["host_call_us"], split["submit_us"]) > 0
