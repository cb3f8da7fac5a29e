"""Folders of gpt-oss: what GGUF files of the same models compute, MXFP4 bit for bit, and what is refused.

``tests/reference/check_hf_folders.py`` compares with transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cli.command import wasmetal
from tests.models.folder import safetensors, write_folder
from tests.models.tiny import write_tiny_llama
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.kernels.dtypes import DType
from wasmetal.models.architectures import read_network
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.files.quantize import quantize
from wasmetal.models.files.safetensors import SafetensorsFile
from wasmetal.models.hf_folder import HFFolder

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""What four bits stand for: the table of OCP's "Microscaling Formats (MX) Specification", 2023."""
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"


def write(path: Path, expert_qtype: str, **options: Any) -> tuple[Path, Path]:
    """A GGUF file, and the folder of the same model."""
    options = {"architecture": "gpt-oss", "qtype": "F32", "expert_qtype": expert_qtype, "window": 5} | options
    source = write_tiny_llama(path / "tiny.gguf", **options)
    return source, write_folder(path / "model", source, 2)


def stored(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a folder's weights."""
    found: dict[str, NDArray[Any]] = {}
    for path in folder.glob("*.safetensors"):
        file = SafetensorsFile(path)
        found |= {name: tensor.dequantize() for name, tensor in file.tensors.items()}
        for name, tensor in file.integers.items():
            found[name] = tensor.source.read(tensor.offset, tensor.nbytes).reshape(tensor.shape)
    return found


def rewrite(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """All weights in one file."""
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(safetensors(tensors))


@pytest.mark.parametrize(("expert_qtype", "options"), [("MXFP4", {}), ("F16", {"rope_scaling": "yarn", "blocks": 3})])
def test_it_computes_what_the_gguf_file_does(
    device: Device, tmp_path: Path, expert_qtype: str, options: dict[str, Any]
) -> None:
    results = []
    for source in write(tmp_path, expert_qtype, **options):
        with load_model(source, device, kv_type="f32") as model, model.session() as session:
            out = model.logits()
            for tokens in (list(range(3, 33)), [5], [6]):
                session.forward(tokens, out)
                results.append(out.numpy().copy())
    np.testing.assert_array_equal(results[:3], results[3:])


@pytest.mark.parametrize("expert_qtype", ["MXFP4", "F16", "F32"])
def test_the_tensors_are_the_gguf_files_bit_for_bit(tmp_path: Path, expert_qtype: str) -> None:
    source, folder = write(tmp_path, expert_qtype)
    there, here = GGUFFile(source).tensors, HFFolder(folder).tensors
    assert there.keys() == here.keys()
    for name, tensor in there.items():
        assert (here[name].dtype, here[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(here[name].data, tensor.data, err_msg=name)
    assert here["blk.0.ffn_gate_exps.weight"].dtype is DType[expert_qtype]


def test_mxfp4_is_what_its_definition_says(tmp_path: Path) -> None:
    """Any blocks, and any scales whose products are numbers."""
    _, folder = write(tmp_path, "MXFP4")
    tensors, rng = stored(folder), np.random.default_rng(1)
    values = {}
    for name in (GATE_UP, DOWN):
        blocks, scales = (tensors[f"{name}_{part}"] for part in ("blocks", "scales"))
        blocks[...] = rng.integers(0, 256, blocks.shape)
        scales[...] = rng.integers(2, 252, scales.shape)
        weights = np.empty((*scales.shape, 32))
        weights[..., 0::2], weights[..., 1::2] = E2M1[blocks & 15], E2M1[blocks >> 4]
        values[name] = (weights * 2.0 ** (scales[..., None].astype(int) - 127)).reshape(*scales.shape[:2], -1)
    rewrite(folder, tensors)
    file = HFFolder(folder)
    for kind, expected in (
        ("gate", values[GATE_UP][:, 0::2]),
        ("up", values[GATE_UP][:, 1::2]),
        ("down", values[DOWN]),
    ):
        np.testing.assert_array_equal(file.tensors[f"blk.0.ffn_{kind}_exps.weight"].dequantize(), expected)


@pytest.mark.parametrize("expert_qtype", ["MXFP4", "F16"])
def test_any_part_of_a_tensor_can_be_read(tmp_path: Path, expert_qtype: str) -> None:
    _, folder = write(tmp_path, expert_qtype)
    rng = np.random.default_rng(2)
    for name, tensor in HFFolder(folder).tensors.items():
        whole = tensor.data
        for begin, end in np.sort(rng.integers(0, whole.size + 1, (8, 2))):
            part = tensor.source.read(tensor.offset + int(begin), int(end - begin))
            np.testing.assert_array_equal(part, whole[begin:end], err_msg=name)


@pytest.mark.parametrize(("expert_qtype", "becomes"), [("MXFP4", "MXFP4"), ("F16", "Q8_0")])
def test_it_can_be_quantized(cpu: Device, tmp_path: Path, expert_qtype: str, becomes: str) -> None:
    """What is MXFP4 stays so; and biases stay what they are, which have two dimensions."""
    results = []
    for source in write(tmp_path, expert_qtype):
        with load_model(source, cpu, quantize="q8_0") as model, model.session() as session:
            out = model.logits()
            session.forward([3, 1, 4], out)
            results.append(out.numpy().copy())
    np.testing.assert_array_equal(*results)
    file = HFFolder(tmp_path / "model")
    quantize(file, "q8_0")
    kinds = {name: tensor.dtype.name for name, tensor in file.tensors.items()}
    assert {kind for name, kind in kinds.items() if name.endswith("_exps.weight")} == {becomes}
    assert {kind for name, kind in kinds.items() if name.endswith("bias")} == {"F32"}


def test_models_show(tmp_path: Path) -> None:
    source, folder = write(tmp_path, "MXFP4")
    shown, of_gguf = (json.loads(wasmetal("models", "show", path, "--json").stdout) for path in (folder, source))
    for key in (
        "architecture",
        "parameters",
        "active_parameters",
        "experts",
        "experts_used",
        "types",
        "memory",
        "short",
    ):
        assert shown[key] == of_gguf[key], key
    assert (shown["architecture"], shown["refusal"]) == ("gpt-oss", None)
    assert shown["types"]["MXFP4"]["tensors"] == 6


Change = Callable[[dict[str, NDArray[Any]]], object]
TENSORS: dict[str, tuple[Change, str]] = {
    "no scales": (lambda t: t.pop(f"{GATE_UP}_scales"), "gate_up_proj, either it or its _blocks and _scales"),
    "no blocks": (lambda t: t.pop(f"{DOWN}_blocks"), "down_proj, either it or its _blocks and _scales"),
    "both forms": (lambda t: t.update({DOWN: np.ones((6, 64, 96), np.float32)}), "and nothing else"),
    "blocks of another size": (
        lambda t: t.update({f"{DOWN}_blocks": t[f"{DOWN}_blocks"][..., :8].copy()}),
        r"down_proj_blocks' is \(6, 96, 2, 8\), and its scales are \(6, 96, 2\): \(experts, rows, blocks of a row, 16",
    ),
    "fewer blocks": (
        lambda t: t.update({f"{DOWN}_blocks": t[f"{DOWN}_blocks"][:, :, :1].copy()}),
        r"down_proj_blocks' is \(6, 96, 1, 16\), and its scales are \(6, 96, 2\)",
    ),
    "fewer blocks and scales": (
        lambda t: t.update(
            {
                f"{DOWN}_blocks": t[f"{DOWN}_blocks"][:, :, :1].copy(),
                f"{DOWN}_scales": t[f"{DOWN}_scales"][:, :, :1].copy(),
            }
        ),
        r"ffn_down_exps.weight is MXFP4 \(6, 96, 32\); \(6, 96, 64\) is expected",
    ),
    "fewer experts": (
        lambda t: t.update({f"{GATE_UP}_{part}": t[f"{GATE_UP}_{part}"][:5].copy() for part in ("blocks", "scales")}),
        r"ffn_gate_exps.weight is MXFP4 \(5, 64, 96\); \(6, 64, 96\) is expected",
    ),
    "an odd number of rows": (
        lambda t: t.update(
            {f"{GATE_UP}_{part}": t[f"{GATE_UP}_{part}"][:, :-1].copy() for part in ("blocks", "scales")}
        ),
        "rows even",
    ),
    "floats for blocks": (
        lambda t: t.update({f"{DOWN}_blocks": np.ones((6, 96, 2, 16), np.float16)}),
        "down_proj_blocks' is of type F16; U8 is expected",
    ),
    "larger integers": (
        lambda t: t.update({f"{DOWN}_scales": np.ones((6, 96, 2), np.int64)}),
        "down_proj_scales' is of type I64; U8 is expected",
    ),
    "no bias": (lambda t: t.pop(f"{DOWN}_bias"), "the tensor blk.0.ffn_down_exps.bias is missing"),
    "a long bias": (
        lambda t: t.update({f"{DOWN}_bias": np.ones((6, 97), np.float32)}),
        r"ffn_down_exps.bias is F32 \(6, 97\); \(6, 96\) is expected",
    ),
    "a bias for each block": (
        lambda t: t.update({f"{GATE_UP}_bias": np.ones((6, 64, 2), np.float32)}),
        r"gate_up_proj_bias' is F32 \(6, 64, 2\); floats in 2 dimensions are expected, of which the last is even",
    ),
    "a bias of integers": (
        lambda t: t.update({f"{DOWN}_bias": np.ones((6, 96), np.uint8)}),
        r"down_proj_bias' is U8 \(6, 96\); floats in 2 dimensions are expected",
    ),
    "no sinks": (lambda t: t.pop("model.layers.0.self_attn.sinks"), r"blk.0.attn_sinks.weight is missing"),
    "a router of integers": (
        lambda t: t.update({"model.layers.0.mlp.router.weight": np.ones((6, 96), np.uint8)}),
        "router.weight' is of type U8, which is not supported there",
    ),
    "another spelling": (
        lambda t: t.update({DOWN.replace("0", "00") + "_bias": np.ones((6, 96), np.float32)}),
        "down_proj_bias' occurs twice",
    ),
    "a layer too many": (
        lambda t: t.update({f"{DOWN}_blocks".replace("0", "7"): t[f"{DOWN}_blocks"]}),
        "of model.layers.7.mlp.experts.down_proj, either",
    ),
}


@pytest.mark.parametrize(("change", "said"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_are_refused(tmp_path: Path, change: Change, said: str) -> None:
    _, folder = write(tmp_path, "MXFP4", blocks=1)
    tensors = stored(folder)
    change(tensors)
    rewrite(folder, tensors)
    with pytest.raises(ModelError, match=said) as refused:
        read_network(HFFolder(folder))
    assert "\n" not in str(refused.value)


def test_floats_that_are_refused(tmp_path: Path) -> None:
    _, folder = write(tmp_path, "F32", blocks=1)
    tensors = stored(folder)
    for values, said in (
        (
            tensors[GATE_UP].swapaxes(1, 2).copy(),
            r"ffn_gate_exps.weight is F32 \(6, 48, 128\); \(6, 64, 96\) is expect",
        ),
        (tensors[GATE_UP][0], "gate_up_proj' is F32 .* floats in 3 dimensions are expected, of which the last is even"),
        (tensors[GATE_UP][..., :-1].copy(), "of which the last is even"),
        (np.ones((6, 96, 128), np.uint8), "gate_up_proj' is U8"),
    ):
        rewrite(folder, tensors | {GATE_UP: values})
        with pytest.raises(ModelError, match=said):
            read_network(HFFolder(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(swiglu_limit=5.0), "swiglu_limit is 5.0, which is not supported"),
        (lambda c: c.update(swiglu_alpha=2.0), "swiglu_alpha is 2.0"),
        (lambda c: c.update(attention_bias=False), "attention_bias is False"),
        (lambda c: c.update(quantization_config={"quant_method": "awq"}), "quantization_config is .*awq"),
        (lambda c: c.update(quantization_config="mxfp4"), "quantization_config is 'mxfp4'"),
        (lambda c: c.update(layer_types=["full_attention"] * 2), "layer_types other than full_attention in every 2nd"),
        (
            lambda c: c["rope_scaling"].update(rope_type="yarn", factor=4.0, truncate=True),
            "limits that are whole pairs",
        ),
        (lambda c: c.pop("num_local_experts"), "no gpt-oss.expert_count"),
        (lambda c: c.update(num_experts_per_tok=7), "expert_used_count is 7 of 6"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, change: Callable[[Any], object], said: str) -> None:
    _, folder = write(tmp_path, "MXFP4")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        read_network(HFFolder(folder))


def test_blocks_in_a_folder_of_another_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", write_tiny_llama(tmp_path / "tiny.gguf", qtype="F32"))
    rewrite(folder, stored(folder) | {f"{DOWN}_blocks": np.ones((6, 96, 2, 16), np.uint8)})
    with pytest.raises(ModelError, match="down_proj_blocks' is not supported"):
        HFFolder(folder)
