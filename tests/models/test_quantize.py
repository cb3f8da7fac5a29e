"""Weights that are quantized while they are loaded: what the gguf package makes of them, and how exact Q4_K is."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.command import wasmetal
from tests.models.folder import write_folder
from tests.models.tiny import write_tiny_llama
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.kernels.dtypes import DType
from wasmetal.models.files import quantize as quantizing
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.files.q4_k import quantize_q4_k
from wasmetal.models.hf_folder import open_model_file

FINER = ("token_embd.weight", "output.weight")


def ahead(source: Path, path: Path, kind: str) -> Path:
    """The file with its matrices quantized by the gguf package: Q8_0 for those that decide about tokens directly."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            of_list = field.types[1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], of_list)
    for tensor in reader.tensors:
        target = GGMLQuantizationType[("Q8_0" if tensor.name in FINER else kind) if len(tensor.shape) > 1 else "F32"]
        values = dequantize(tensor.data, tensor.tensor_type)
        data = quantize_q4_k(values) if target.name == "Q4_K" else quantize(values, target)
        writer.add_tensor(tensor.name, data, raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(source: Path, device: Device, **options: object) -> np.ndarray:
    with load_model(source, device, kv_type="f32", **options) as model, model.session() as session:
        out = model.logits()
        session.forward([3, 1, 4, 1, 5], out)
        return out.numpy().copy()


@pytest.mark.parametrize(("name", "kind", "hidden"), [("q8_0", "Q8_0", 160), ("q4_0", "Q4_0", 160)])
@pytest.mark.parametrize("float_type", ["F32", "F16"])
def test_a_folder_gives_what_the_quantized_file_does(
    device: Device, tmp_path: Path, name: str, kind: str, hidden: int, float_type: str
) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype=float_type, tied=False, hidden=hidden)
    want = logits(ahead(path, tmp_path / "ahead.gguf", kind), device)
    folder = write_folder(tmp_path / "model", path, 2)
    for source in (folder, path):
        np.testing.assert_array_equal(logits(source, device, quantize=name), want)


def test_four_bits_with_scales_of_six(cpu: Device, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype="BF16", heads=16, kv_heads=4, hidden=256)
    want = logits(ahead(path, tmp_path / "ahead.gguf", "Q4_K"), cpu)
    np.testing.assert_array_equal(logits(path, cpu, quantize="q4_k"), want)


def test_what_is_quantized_and_what_stays(tmp_path: Path) -> None:
    file = GGUFFile(write_tiny_llama(tmp_path / "tiny.gguf", qtype="F16", tied=False, hidden=80))
    before, digest = dict(file.tensors), file.digest()
    quantizing.quantize(file, "q4_0")
    for name, tensor in file.tensors.items():
        stays = len(tensor.shape) == 1 or tensor.shape[-1] == 80
        expected = before[name].dtype if stays else DType.Q8_0 if name in FINER else DType.Q4_0
        assert tensor.dtype is expected, name
    assert file.digest() != digest
    assert [*file.tensors] == [*before]


def test_progress_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any bytes of a quantized tensor, computed a few rows at a time, are those of the whole."""
    monkeypatch.setattr(quantizing, "_ELEMENTS", 500)
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype="F16")
    seen: list[tuple[int, int]] = []
    for source in (path, write_folder(tmp_path / "model", path)):
        file = open_model_file(source)
        whole = {name: tensor.dequantize() for name, tensor in file.tensors.items()}
        quantizing.quantize(file, "q8_0", lambda done, total: seen.append((done, total)))
        for name, tensor in file.tensors.items():
            if tensor.dtype is DType.Q8_0:
                data = quantize(whole[name], GGMLQuantizationType.Q8_0).reshape(-1)
                np.testing.assert_array_equal(tensor.data, data)
                for begin, end in ((0, 1), (7, 350), (len(data) - 103, len(data))):
                    np.testing.assert_array_equal(tensor.source.read(begin, end - begin), data[begin:end])
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]
        seen.clear()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Of a matrix of 64 MB as float32, little more than what it becomes is held."""
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4096, 4096), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    quantizing.quantize(file, "q8_0")
    tracemalloc.start()
    try:
        kept = file.tensors["blk.0.ffn_up.weight"].data
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < kept.nbytes + quantizing._threads() * 12 * 4 * quantizing._ELEMENTS


@pytest.mark.parametrize(
    ("qtype", "name", "said"),
    [
        ("Q4_1", "q4_0", "nothing can be quantized to q4_0: .* the file has F32, Q4_1"),
        ("F16", "q4_k", "rows of a multiple of 256 weights; the file has F16, F32"),
        ("F16", "q2_k", "cannot be quantized to 'q2_k'; supported: q8_0, q4_0, q4_k"),
    ],
)
def test_refusals(cpu: Device, tmp_path: Path, qtype: str, name: str, said: str) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype=qtype, hidden=96)
    with pytest.raises(ModelError, match=said):
        load_model(path, cpu, quantize=name)


def test_models_show(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype="F16")
    shown = json.loads(wasmetal("models", "show", path, "--quantize", "q8_0", "--json").stdout)
    assert shown["types"].keys() == {"F32", "Q8_0"}


def error(data: np.ndarray, kind: str, x: np.ndarray) -> float:
    return float(np.sqrt(np.mean((dequantize(data, GGMLQuantizationType[kind]) - x) ** 2)))


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    shift=st.sampled_from([-2.0, 0.0, 1.0]),
    tails=st.booleans(),
)
def test_q4_k_is_no_worse_than_q4_0(seed: int, rows: int, scale: float, shift: float, tails: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(4, (rows, 512)) if tails else rng.standard_normal((rows, 512))
    x = (scale * (x + shift)).astype(np.float32)
    assert error(quantize_q4_k(x), "Q4_K", x) < error(quantize(x, GGMLQuantizationType.Q4_0), "Q4_0", x)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30, -1e-30, 6e4])
def test_q4_k_of_equal_weights(value: float) -> None:
    x = np.full((1, 256), value, np.float32)
    got = dequantize(quantize_q4_k(x), GGMLQuantizationType.Q4_K)
    np.testing.assert_allclose(got, x, rtol=2e-3, atol=1e-6)
