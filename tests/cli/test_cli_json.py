"""What scripts read: the shape and the meaning of every ``--json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import wasmetal
from tests.models.tiny import write_tiny_llama
from wasmetal.device import list_devices


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
    first, *_ = models = read("models", WASMETAL_HOME=str(tmp_path))
    assert first["name"] == "smollm2:135m"
    assert first["bytes"] == 98_362_432
    assert {model["path"] for model in models} == {None}
    assert all(model["licence"] and model["source"] for model in models)


def test_doctor_proves_every_device(spec: str) -> None:
    [report] = read("doctor", "--device", spec)["devices"]
    assert report["name"] == next(info.name for info in list_devices() if info.spec == spec)
    assert report["backend"] == spec.partition(":")[0]
    assert report["ok"] is True
    assert report["pointer_identity"] is True
    assert report["shared_overhead_mb"] < 1
    assert report["copy_overhead_mb"] > 16
    assert report["bytes_copied"] == 0
    assert report["gemm_shared_ms"] > 0
    assert report["gemm_copy_ms"] > 0
    assert all(link["ok"] for link in report["links"])


def test_doctor_without_a_device_walks_all() -> None:
    assert [report["spec"] for report in read("doctor")["devices"]] == [info.spec for info in list_devices()]


def test_zerocopy_counts_what_it_copies(spec: str) -> None:
    result = read("bench", "zerocopy", "--device", spec, "--largest", "64KiB")
    assert result["device"] == spec
    assert [row["nbytes"] for row in result["rows"]] == [4096, 16384, 65536]
    assert result["skipped"] == []
    for row in result["rows"]:
        assert row["bytes_copied_shared"] == 0
        assert row["bytes_copied_copied"] == 2 * row["nbytes"]
        assert min(row["shared_ms"], row["copied_ms"], row["wrap_ms"], row["read_gbs"]) > 0


def test_zerocopy_says_what_it_skips() -> None:
    from wasmetal.bench import zerocopy
    from wasmetal.device import open_device

    with open_device("cpu") as device:
        [skipped] = zerocopy.measure(device, [device.info.memory_bytes // 4096 * 4096])
    assert isinstance(skipped, zerocopy.Skipped)
    assert str(device.info.memory_bytes) in skipped.reason


def test_dispatch_splits_the_round_trip(spec: str) -> None:
    result = read("bench", "dispatch", "--device", spec)
    assert result["device"] == spec
    assert result["new"]["encode_us"] > 0
    assert result["same"]["encode_us"] == 0  # recorded once, replayed since
    for split in (result["new"], result["same"], result["same, one call"]):
        assert min(split[f"{part}_us"] for part in ("total", "host_call", "submit", "wait")) > 0


def test_nn_compares_three_ways() -> None:
    pytest.importorskip("onnxruntime")
    rows = {row["way"]: row for row in read("bench", "nn")["rows"]}
    assert all(row["microseconds"] > 0 for row in rows.values())
    image, result = 4 * 3 * 224 * 224, 4 * 32
    assert [rows[way]["bytes_copied"] for way in ("plain", "copied", "bound")] == [0, image + result, 0]


def test_instantiate_tells_of_every_step() -> None:
    result = read("bench", "instantiate", "--device", "cpu")
    assert result["device"] == "cpu:0"
    for step in ("compile", "load", "instantiate"):
        assert 0 < result[step]["median"] <= result[step]["p95"]


def test_llm_measures_guest_and_python(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf", context=2048)
    arguments = ("--prompt-tokens", 40, "--tokens", 5, "--repeats", 1, "--device", "cpu")
    result = read("bench", "llm", model, *arguments, PATH="/nowhere")
    assert result["device"] == "cpu:0"
    assert result["weight_bytes"] > 0
    assert [each["engine"] for each in result["engines"]] == ["guest", "python"]
    bound = result["bandwidth_bytes_per_second"] / result["weight_bytes"]
    assert result["decode_bound_tokens_per_second"] == pytest.approx(bound)
    for each in result["engines"]:
        assert each["prefill_tokens_per_second"] > 0
        assert each["first_token_seconds"] > 0
        assert each["decode_share_of_bound"] == pytest.approx(each["decode_tokens_per_second"] / bound)


def test_llm_adds_llama_cpp_where_it_is_on_the_path(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf", context=2048)
    program = tmp_path / "llama-bench"
    rows = [{"n_prompt": 7, "n_gen": 0, "avg_ts": 70.0}, {"n_prompt": 0, "n_gen": 5, "avg_ts": 50.0}]
    program.write_text(f"#!/bin/sh\nprintf '%s ' \"$@\" >{tmp_path}/arguments\necho '{json.dumps(rows)}'\n")
    program.chmod(0o755)
    arguments = ("--prompt-tokens", 7, "--tokens", 5, "--repeats", 1, "--device", "cpu")
    result = read("bench", "llm", model, *arguments, PATH=f"{tmp_path}:{os.environ['PATH']}")
    peer = result["engines"][2]
    assert peer["engine"] == "llama.cpp"
    assert (peer["prefill_tokens_per_second"], peer["decode_tokens_per_second"]) == (70, 50)
    assert peer["first_token_seconds"] == pytest.approx(0.1)
    asked = (tmp_path / "arguments").read_text()
    assert f"-m {model} " in asked
    assert "-p 7 -n 5 " in asked


def test_actor_measures_each_length(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf", context=2048)
    arguments = ("--tokens", 24, "--tokens", 100, "--repeats", 2, "--device", "cpu", "--folder", tmp_path)
    result = read("bench", "actor", model, *arguments)
    assert (result["device"], result["repeats"]) == ("cpu:0", 2)
    short, long = result["rows"]
    assert (repr(short["tokens"]), repr(long["tokens"])) == ("24", "100")
    assert short["nbytes"] < long["nbytes"]
    for row in result["rows"]:
        assert 0 < row["later_nbytes"] < row["nbytes"]
        assert min(row[step] for step in ("prefill", "fork", "freeze", "freeze_later", "save", "save_later")) > 0
        assert 0 < row["thaw"] < row["thaw_first_token"]
        assert 0 < row["load"] < row["load_first_token"]
        assert row["thaw_of_prefill"] == pytest.approx(row["thaw"] / row["prefill"])
        assert row["thaw_first_token_of_prefill"] == pytest.approx(row["thaw_first_token"] / row["prefill"])
        assert row["freeze_bytes_per_second"] == pytest.approx(row["nbytes"] / row["freeze"])
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
