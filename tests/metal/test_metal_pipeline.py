"""Compiling kernels on an emulated GPU, and the archive that makes it unnecessary the next time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.device.harness import recorded, span
from tests.metal.standin import Gpu, bridge
from tests.metal.test_kernels_on_shim import rounded_linear
from tests.models.tiny import write_tiny_llama
from tests.ops.tensors import Bench
from wasmetal import ops
from wasmetal.counters import Counters
from wasmetal.device import Device, trial
from wasmetal.device.backend import Precision
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, Kernel
from wasmetal.kernels.dtypes import DType
from wasmetal.models import load_model

COMPILED = [*(name for name in CATALOG if "_simdgroup_" in name), "add"]
"""The kernels that a first session compiles: those of the trials, and the one that it runs."""
TRIED = ["add"]
"""The kernels that a session compiles without an archive if its device has passed the trials before."""


@pytest.fixture
def session(open_on: Callable[[Gpu], Device]) -> Callable[..., list[str]]:
    """Open a device as a process would, run a kernel, close it; returns the kernels that were compiled."""

    def run(**changes: object) -> list[str]:
        gpu = Gpu(**changes)
        with open_on(gpu) as device:
            buffer = device.allocate(64)
            device.submit([recorded(device, (span(buffer, 0, 4), span(buffer, 4, 4), span(buffer, 8, 4)))]).wait()
        return gpu.compiled

    return run


def files(home: Path) -> list[Path]:
    return sorted((home / "pipelines").iterdir())


def test_a_kernel_is_compiled_once_in_two_processes(session: Callable[..., list[str]], tmp_path: Path) -> None:
    assert session() == COMPILED
    archive, digest, trials, _ = files(tmp_path)  # and nothing else
    assert (archive.suffix, digest.suffix, trials.suffix) == (".archive", ".sha256", ".trials")
    before = archive.stat()
    assert session() == []
    assert archive.stat().st_mtime_ns == before.st_mtime_ns  # there was nothing to add


def test_an_archive_belongs_to_a_gpu_a_system_and_kernels(
    session: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session() == COMPILED
    assert session(name="another GPU") == COMPILED
    assert session(macos=26) == COMPILED
    code = Kernel.code
    monkeypatch.setattr(Kernel, "code", lambda kernel, target: code(kernel, target) + b"// changed")
    assert session() == COMPILED
    assert len(files(tmp_path)) == 16


@pytest.mark.parametrize("damage", ["cut short", "changed", "emptied", "of another", "no digest"])
def test_a_damaged_archive_is_made_anew(session: Callable[..., list[str]], tmp_path: Path, damage: str) -> None:
    session()
    archive, digest, *_ = files(tmp_path)
    whole = archive.read_bytes()
    if damage == "no digest":
        digest.unlink()
    else:
        cut = {"cut short": whole[:-3], "changed": whole.replace(b"add", b"sub"), "emptied": b"", "of another": b"{}"}
        archive.write_bytes(cut[damage])
    assert session() == TRIED
    assert b"add" in archive.read_bytes()
    assert session() == []


def test_an_archive_that_metal_refuses(session: Callable[..., list[str]], tmp_path: Path) -> None:
    """Its digest fits, but Metal rejects it."""
    import hashlib

    session()
    archive, digest, *_ = files(tmp_path)
    archive.write_bytes(b"from another world")
    digest.write_text(hashlib.sha256(b"from another world").hexdigest())
    assert session() == TRIED
    assert session() == []


def test_a_gpu_without_archives(session: Callable[..., list[str]], tmp_path: Path) -> None:
    assert session(has_archives=False) == COMPILED
    assert session(has_archives=False) == TRIED
    assert not list((tmp_path / "pipelines").glob("*.archive"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written(session: Callable[..., list[str]], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for _ in range(2):
        assert session() == COMPILED
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_of_the_cache(session: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "pipelines").write_text("in the way")
    for _ in range(2):
        assert session() == COMPILED


def test_the_compilers_words_are_told(session: Callable[..., list[str]]) -> None:
    with pytest.raises(
        DeviceError, match="kernel add did not compile: program_source:7: no such thing as halves"
    ) as told:
        session(compile_error="program_source:7:\n no such thing as halves")
    assert "\n" not in str(told.value)
    with pytest.raises(DeviceError, match="kernel add did not compile: too many registers"):
        session(pipeline_error="too many registers")


def test_a_gpu_that_is_not_as_the_kernels_expect(session: Callable[..., list[str]]) -> None:
    with pytest.raises(DeviceError, match="kernel add has groups of 128 threads; emulated Metal allows 64"):
        session(max_threads=64)
    with pytest.raises(DeviceError, match="has simdgroups of 64 threads"):
        session(simd_width=64)


def computes_a_gemm(device: Device) -> None:
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((3, 32)).astype(np.float32), rng.standard_normal((5, 32)).astype(np.float32)
    with Bench(device) as bench:
        out = bench.empty(3, 5)
        tensors = bench.put(x), bench.put(weight), out
        bench.run(lambda rec: ops.linear(rec, *tensors))
        bench.only(out)
        assert np.allclose(bench.get(out), x @ weight.T, atol=1e-5)


def test_gemms_are_by_simdgroup_matrices(gpu: Gpu, open_on: Callable[[Gpu], Device]) -> None:
    emulated = open_on(gpu)
    assert emulated.backend.simdgroups
    assert "simdgroup matrices" in emulated.info.features
    assert emulated.counters == Counters()
    assert gpu.compiled == COMPILED[:-1]
    computes_a_gemm(emulated)
    assert gpu.compiled == COMPILED[:-1]


@pytest.mark.parametrize(
    ("simdgroups", "problem"),
    [
        ("wrong", "wrong results for gemm_f32"),
        ("none", "kernel gemm_simdgroup_f32 did not compile: no simdgroup matrices here"),
        ("too large", "kernel gemm_simdgroup_f32 has groups of 128 threads; emulated Metal allows 64"),
    ],
)
def test_simdgroup_matrices_that_do_not_work(open_on: Callable[[Gpu], Device], simdgroups: str, problem: str) -> None:
    """If the kernels are wrong, or do not compile, GEMMs are computed without them."""
    gpu = Gpu(simdgroups=simdgroups)
    device = open_on(gpu)
    assert not device.backend.simdgroups
    assert f"no simdgroup matrices ({problem})" in device.info.features
    computes_a_gemm(device)
    assert gpu.compiled[-1] == "gemm_f32"


@pytest.mark.parametrize("name", ["gemm_simdgroup_f32", "gemm_simdgroup_q4_1", "matmul_simdgroup_f32_f32"])
@pytest.mark.parametrize(
    ("written", "instead"),
    [
        (r"ulong2\(0\), true", "ulong2(0), false"),
        (r"(->tile_0\)\[\w+(?: \+ \dU)?\] =) ([^;]+);", r"\1 float(half(\2));"),
    ],
    ids=["loaded the wrong way round", "rounded to half"],
)
def test_one_wrong_kernel_is_enough(
    open_on: Callable[[Gpu], Device], monkeypatch: pytest.MonkeyPatch, name: str, written: str, instead: str
) -> None:
    """Each is tried, and closely enough to notice operands of fewer bits."""
    code = Kernel.code

    def changed(kernel: Kernel, target: str) -> bytes:
        if kernel.name != name:
            return code(kernel, target)
        text, changes = re.subn(written, instead, code(kernel, target).decode())
        assert changes
        return text.encode()

    monkeypatch.setattr(Kernel, "code", changed)
    device = open_on(Gpu())
    plain = name.replace("_simdgroup", "")
    assert f"no simdgroup matrices (wrong results for {plain})" in device.info.features
    computes_a_gemm(device)


def gemm_errors(device: Device, dtype: DType) -> tuple[float, float]:
    """The errors of a GEMM, relative to its largest result: with operands rounded to float16, and as they are."""
    with Bench(device) as bench:
        out, *wanted = rounded_linear(bench, np.random.default_rng(7), dtype, 67, 5, 96, 1)
        rounded, plain = (float(np.abs(bench.get(out) - want).max() / np.abs(want).max()) for want in wanted)
        return rounded, plain


@pytest.mark.usefixtures("tried")
def test_operands_of_float16_are_tried_at_first_use(open_on: Callable[[Gpu], Device]) -> None:
    """For each type of weights, once in two processes; never where nothing may be rounded."""

    def compiled(precision: Precision) -> list[str]:
        gpu = Gpu()
        device = open_on(gpu)
        device.backend.precision = precision
        dispatches = bridge.calls["dispatchThreadgroups:threadsPerThreadgroup:"]
        rounded, plain = gemm_errors(device, DType.F16)
        assert (rounded if precision == "standard" else plain) < 1e-6 < max(rounded, plain) / 10
        gpu.compiled.append(str(bridge.calls["dispatchThreadgroups:threadsPerThreadgroup:"] - dispatches))
        device.close()
        return gpu.compiled

    assert compiled("exact") == ["gemm_simdgroup_f16", "1"]
    assert compiled("standard") == ["gemm_simdgroup16_f16", "3"]
    assert compiled("standard") == ["1"]


@pytest.mark.usefixtures("tried")
def test_a_model_whose_activations_are_rounded(open_on: Callable[[Gpu], Device], tmp_path: Path) -> None:
    """A prompt is computed with operands of float16 unless the precision is exact; a token that is decoded is not."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype="Q8_0")
    logits = []
    for precision in ("exact", "standard"):
        device = open_on(Gpu())
        device.backend.precision = precision
        with load_model(path, device) as model, model.session() as session:
            out = model.logits()
            session.forward([3, 1, 4, 1, 5], out)
            prompt = out.numpy().copy()
            with model.session() as other:
                other.forward([3], out)
                logits.append((prompt, out.numpy().copy()))
    (exact, decoded), (rounded, decoded_too) = logits
    assert 1e-6 < np.abs(rounded - exact).max() / np.abs(exact).max() < 1e-2
    assert np.array_equal(decoded, decoded_too)


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize(
    ("written", "instead"),
    [
        (r"_slang_simdgroup_load_transpose<", "_slang_simdgroup_load<"),
        (r"accumulate_0\) != 0U", "accumulate_0) == 0U"),
        ("0.0625", "1.0"),
    ],
    ids=["loaded the wrong way round", "added to what it is to replace", "not made smaller"],
)
def test_a_wrong_kernel_of_float16_is_not_used(
    open_on: Callable[[Gpu], Device], monkeypatch: pytest.MonkeyPatch, written: str, instead: str
) -> None:
    """Nor are other types affected. GEMMs of that type are computed in float32."""
    code = Kernel.code

    def changed(kernel: Kernel, target: str) -> bytes:
        if kernel.name != "gemm_simdgroup16_q4_1":
            return code(kernel, target)
        text, changes = re.subn(written, instead, code(kernel, target).decode())
        assert changes
        return text.encode()

    monkeypatch.setattr(Kernel, "code", changed)
    device = open_on(Gpu())
    for _ in range(2):
        rounded, plain = gemm_errors(device, DType.Q4_1)
        assert plain < 1e-6 < rounded / 10
    problem = "no gemm_simdgroup16_q4_1 (wrong results for gemm_q4_1)"
    assert [feature for feature in device.info.features if "simdgroup16" in feature] == [problem]
    rounded, plain = gemm_errors(device, DType.F16)
    assert rounded < 1e-6 < plain / 10


def test_what_has_been_tried_is_not_tried_again(
    open_on: Callable[[Gpu], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in this process, nor in the next; but failed trials are repeated, and another GPU is tried."""

    def dispatches(**changes: object) -> int:
        before = bridge.calls["dispatchThreadgroups:threadsPerThreadgroup:"]
        device = open_on(Gpu(**changes))
        assert any(feature.startswith("simdgroup matrices") for feature in device.info.features) or changes
        return bridge.calls["dispatchThreadgroups:threadsPerThreadgroup:"] - before

    assert dispatches(simdgroups="wrong") == len(COMPILED) - 1
    assert dispatches() == len(COMPILED) - 1
    assert dispatches() == 0
    assert dispatches(name="another GPU") == len(COMPILED) - 1
    monkeypatch.setattr(Kernel, "code", lambda kernel, target, code=Kernel.code: code(kernel, target) + b"// changed")
    assert dispatches() == len(COMPILED) - 1


def test_mps_is_tried_once_in_two_processes(open_on: Callable[[Gpu], Device]) -> None:
    def gemms(count: int) -> int:
        encoded = "encodeToCommandBuffer:leftMatrix:rightMatrix:resultMatrix:"
        before = bridge.calls[encoded]
        with Bench(open_on(Gpu())) as bench:
            for _ in range(count):
                tensors = [bench.empty(512, 512) for _ in range(3)]
                commands = bench.device.record()
                ops.matmul(ops.Recorder(bench.info, commands), *tensors)
        return bridge.calls[encoded] - before

    assert gemms(0) == 0
    assert gemms(2) == 6  # of float32, in every layout
    assert gemms(1) == 0


def test_a_gpu_that_hangs_at_its_trials(
    open_on: Callable[[Gpu], Device], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial.find_problem, "__defaults__", (0.05,))
    gpu = Gpu(hangs=True)
    device = open_on(gpu)
    assert any("no simdgroup matrices (the device did not finish" in feature for feature in device.info.features)
    gpu.hangs = False
    computes_a_gemm(device)
    assert gpu.compiled[-1] == "gemm_f32"
    device.close()
    assert "simdgroup matrices" in open_on(Gpu()).info.features  # it is tried again
