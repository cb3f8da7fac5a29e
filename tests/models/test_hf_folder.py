"""Folders of Hugging Face: what GGUF files of the same models compute, and what is refused.

``tests/reference/check_hf_folders.py`` compares with transformers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as PublishedTokenizer

from tests.cli.command import wasmetal
from tests.models.bert_folder import write_bert_folder
from tests.models.folder import safetensors, write_folder, write_tokenizer
from tests.models.hostile import reading
from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.architectures import read_network
from wasmetal.models.files.safetensors import SafetensorsFile
from wasmetal.models.hf_folder import HFFolder
from wasmetal.models.lm.tokenizer import Tokenizer
from wasmetal.models.lm.tokenizer_patterns import PRE_TOKENIZERS, WHOLE_WORDS_FIRST

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", write_tiny_llama(tmp_path / "tiny.gguf", qtype="F32"))


def edit(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("architecture", "qtype", "tied", "files"), [("llama", "F16", False, 3), ("qwen2", "F32", True, 1)]
)
def test_it_computes_what_the_gguf_file_does(
    device: Device, tmp_path: Path, architecture: str, qtype: str, tied: bool, files: int
) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", architecture=architecture, qtype=qtype, tied=tied)
    folder = write_folder(tmp_path / "Tiny-0.5B", path, files)
    for each in folder.iterdir():
        each.chmod(0o644)
    results = []
    for source in (path, folder):
        with load_model(source, device, kv_type="f32") as model, model.session() as session:
            out = model.logits()
            session.forward([3, 1, 4, 1, 5], out)
            results.append(
                (out.numpy().copy(), model.config.vocab_size, model.tokenizer.encode("hello the world, 123 ü"))
            )
            assert model.name == ("tiny" if source == path else "Tiny-0.5B")
            assert model.tokenizer.eos == 2
            assert model.chat_template is not None
            assert model.chat_template._compiled is None  # not trusted
            if device.info.wraps_files:
                assert model.counters.bytes_shared > 0
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


@pytest.mark.parametrize(
    "options",
    [
        {"window": 5},
        {"architecture": "qwen3", "heads": 3, "kv_heads": 1, "head_dim": 32, "rope_scaling": "yarn"},
        {"experts": 5},
        {"architecture": "qwen3moe"},
        {"architecture": "smollm3", "blocks": 5, "rope_scaling": "linear"},
        {"architecture": "granite", "tied": False},
        {"architecture": "olmo2", "heads": 4, "kv_heads": 4},
        {"architecture": "phi3", "tied": False, "window": 7},
        {"architecture": "phi3", "rope_scaling": "longrope", "context": 48},
        {"architecture": "gemma3", "window": 4, "blocks": 3, "rope_scaling": "linear"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_architectures(cpu: Device, tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype="F32", **options)
    folder = write_folder(tmp_path / "model", path, 2)
    results = []
    for source in (path, folder):
        with load_model(source, cpu) as model, model.session() as session:
            out = model.logits()
            session.forward(range(3, 33), out)
            results.append(out.numpy().copy())
    # Gemma's norms are 1 less in folders, which rounds them.
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-5 if options.get("window") == 4 else 0)


def test_sessions_of_other_models_are_told_apart(folder: Path) -> None:
    before = HFFolder(folder).digest()
    assert HFFolder(folder).digest() == before
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-5] + b"\1" + content[-4:])
    assert HFFolder(folder).tensors.keys()
    for name in ("config.json", "tokenizer.json"):
        edit(folder / name, lambda content: content.update({"added_tokens": [], "eos_token_id": 5}))
    assert HFFolder(folder).digest() != before


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "dbrx"])
def test_patterns_of_pre_tokenizers(folder: Path, name: str) -> None:
    (pattern,) = PRE_TOKENIZERS[name]
    write_tokenizer(folder, None if name == "gpt-2" else pattern)
    if name == "llama-bpe":
        edit(folder / "tokenizer.json", lambda content: content["model"].update(ignore_merges=True))
    file = HFFolder(folder)
    found = file.require("tokenizer.ggml.pre", str)
    assert PRE_TOKENIZERS[found] == (pattern,)
    assert (found in WHOLE_WORDS_FIRST) == (name == "llama-bpe")
    assert Tokenizer(file).encode("hello<|im_end|>")[-1] == 2


@pytest.mark.parametrize("ignore_merges", [True, False])
def test_whole_words_first(folder: Path, ignore_merges: bool) -> None:
    """As gpt-oss has it, whose patterns are those of gpt-4o; GGUF files cannot say so."""
    write_tokenizer(folder, PRE_TOKENIZERS["gpt-4o"][0])
    edit(
        folder / "tokenizer.json",
        lambda t: t["model"].update(ignore_merges=ignore_merges, merges=t["model"]["merges"][:-1]),
    )
    ours, theirs = Tokenizer(HFFolder(folder)), PublishedTokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("hello world", " world's in the WorldWide", "a  world\n\n42"):
        assert ours.encode(text) == theirs.encode(text).ids
    assert len(ours.encode(" world")) == (1 if ignore_merges else 2)
    assert not ours.add_bos


def test_models_show(folder: Path) -> None:
    shown = json.loads(wasmetal("models", "show", folder, "--json").stdout)
    assert (shown["architecture"], shown["context"], shown["refusal"]) == ("llama", 256, None)
    assert shown["types"].keys() == {"F32"}


CONFIG: dict[str, tuple[Edit, str]] = {
    "architecture": (
        lambda c: c.update(model_type="mamba"),
        "model_type is 'mamba'; .* supported: llama, mistral, qwen2",
    ),
    "quantized": (
        lambda c: c.update(quantization_config={"quant_method": "awq"}),
        "quantization_config is .* not supp",
    ),
    "activation": (lambda c: c.update(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "no activation": (lambda c: c.update(hidden_act=None), "hidden_act is None"),
    "RoPE": (lambda c: c.update(rope_scaling={"type": "dynamic"}), "RoPE of the type 'dynamic' is not supported"),
    "RoPE of no kind": (lambda c: c.update(rope_scaling=["linear"]), r"RoPE of the type \['linear'\] is not"),
    "llama3 without numbers": (
        lambda c: c.update(rope_scaling={"rope_type": "llama3"}),
        "factor should be of type float",
    ),
    "longrope": (
        lambda c: c.update(rope_scaling={"type": "longrope"}),
        "'longrope' is not .*: default, linear, llama3, yarn",
    ),
    "YaRN of another magnitude": (
        lambda c: c.update(rope_scaling={"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}),
        "YaRN with a magnitude of its own",
    ),
    "YaRN without a factor": (lambda c: c.update(rope_scaling={"type": "yarn"}), "factor should be of type float"),
    "window": (
        lambda c: c.update(model_type="mistral", sliding_window="4096"),
        "sliding_window should be of type int, not str",
    ),
    "part of a head": (
        lambda c: c.update(partial_rotary_factor=float("nan"), rope_theta="x"),
        "rope_theta should be of type float",
    ),
    "scores": (
        lambda c: c.update(model_type="gemma3_text", hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=7),
        "query_pre_attn_scalar is 7.0, which is not supported with heads of",
    ),
    "capped logits": (
        lambda c: c.update(model_type="gemma3_text", query_pre_attn_scalar=16, final_logit_softcapping=30.0),
        "final_logit_softcapping",
    ),
    "positions": (
        lambda c: c.update(model_type="smollm3", no_rope_layers=[1, 0]),
        "layers without RoPE other than every 4th are not supported",
    ),
    "text for a number": (lambda c: c.update(hidden_size="96"), "hidden_size should be of type int, not str"),
    "a number too large": (lambda c: c.update(hidden_size=2**80), "embedding_length is 1208925819614629174706176"),
    "infinite": (lambda c: c.update(rms_norm_eps=float("inf")), "rms_epsilon is inf"),
    "vocabulary": (lambda c: c.update(vocab_size=2**40), "1099511627776 tokens; 1 to"),
    "fewer tokens": (lambda c: c.update(vocab_size=9), "an id that the model has not|added token"),
    "heads": (lambda c: c.update(num_attention_heads=7), "rows for 7 heads"),
    "no heads": (lambda c: c.update(num_attention_heads=0), "rows for 0 heads"),
}


@pytest.mark.parametrize(("change", "said"), CONFIG.values(), ids=CONFIG.keys())
def test_configurations_that_are_refused(folder: Path, cpu: Device, change: Edit, said: str) -> None:
    edit(folder / "config.json", change)
    with pytest.raises(ModelError, match=said) as refused:
        load_model(folder, cpu)
    assert "\n" not in str(refused.value)


TOKENIZER: dict[str, tuple[Edit, str]] = {
    "SentencePiece": (lambda t: t["model"].update(byte_fallback=True), "in a way that is not supported"),
    "no model": (lambda t: t.update(model=None), "none of BPE, unigram and WordPiece"),
    "a list for a model": (lambda t: t.update(model=["BPE"]), "none of BPE, unigram and WordPiece"),
    "unigram": (lambda t: t["model"].update(type="Unigram"), "none of BPE, unigram and WordPiece"),
    "dropout": (lambda t: t["model"].update(dropout=0.1), "has a dropout, which is not supported"),
    "merge": (lambda t: t["model"].update(merges=["a"]), "a merge that is not of two tokens"),
    "merge of others": (lambda t: t["model"].update(merges=[["zzzz", "y"]]), "the merge 'zzzz y' is not of two tokens"),
    "id": (lambda t: t["model"]["vocab"].update(x=1.5), "gives 'x' an id that the model has not"),
    "added": (lambda t: t.update(added_tokens=[{"id": -1, "content": "x", "special": True}]), "an added token"),
    "normalizer": (lambda t: t.update(normalizer={"type": "Lowercase"}), "a normalizer that is not supported"),
    "pattern": (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "in a way that is not supported"),
    "no splits": (lambda t: t.update(pre_tokenizer=None), "has no bytes stand as characters"),
    "half a pair": (lambda t: t["model"]["vocab"].update({"\ud800": 5}), "not valid JSON"),
}


@pytest.mark.parametrize(("change", "said"), TOKENIZER.values(), ids=TOKENIZER.keys())
def test_tokenizers_that_are_refused(folder: Path, change: Edit, said: str) -> None:
    edit(folder / "tokenizer.json", change)
    with pytest.raises(ModelError, match=said):
        Tokenizer(HFFolder(folder))


def test_files_that_are_refused(folder: Path, tmp_path: Path) -> None:
    index = folder / "model.safetensors.index.json"
    for places, said in (
        ({"a": "../other/model.safetensors"}, "names '../other/model.safetensors', which is no safetensors file"),
        ({"a": "/etc/passwd"}, "names '/etc/passwd'"),
        ({"a": 1}, "names '1'"),
        ({}, "has no weight_map"),
        ({"a": "missing.safetensors"}, "missing.safetensors: No such file"),
        ({str(i): f"{i}.safetensors" for i in range(300)}, "300 files of weights; at most 256"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(ModelError, match=said):
            HFFolder(folder)
    index.unlink()
    for name, content, said in (
        ("config.json", "[" * 100_000, "config.json: not valid JSON"),
        ("config.json", '{"a": 1, "a": 2}', "a key occurs twice"),
        ("config.json", "[]", "a JSON object is expected"),
        ("config.json", " " * (2 << 20), "at most 1048576 are supported"),
    ):
        (folder / name).write_text(content)
        with pytest.raises(ModelError, match=said):
            HFFolder(folder)
    with pytest.raises(ModelError, match=r"a folder without config\.json is no model"):
        HFFolder(tmp_path)


def test_tensors_that_are_refused(folder: Path) -> None:
    for tensors, said in (
        ({"model.layers.0.mlp.other.weight": np.ones(4, np.float32)}, "other.weight' is not supported"),
        ({"model.norm.weight": np.ones(4, np.float32)}, r"output_norm.weight is F32 \(4,\); \(96,\) is expected"),
        ({"model.norm.weight": np.ones(96, np.float32)}, r"the tensor token_embd\.weight is missing"),
    ):
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
        with pytest.raises(ModelError, match=said):
            read_network(HFFolder(folder))


def test_experts_that_are_refused(tmp_path: Path) -> None:
    """All experts, each once, of one shape; and only experts have numbers."""
    folder = write_folder(tmp_path / "model", write_tiny_llama(tmp_path / "tiny.gguf", qtype="F32", experts=3))
    weights = folder / "model.safetensors"
    whole = {name: tensor.dequantize() for name, tensor in SafetensorsFile(weights).tensors.items()}
    first = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"

    def refused(tensors: dict[str, Any], said: str) -> None:
        weights.write_bytes(safetensors(tensors))
        with pytest.raises(ModelError, match=said) as caught:
            read_network(HFFolder(folder))
        assert "\n" not in str(caught.value)

    gap = {name: values for name, values in whole.items() if name != first.format(1)}
    refused(gap, r"the experts' blk\.1\.ffn_down_exps\.weight are not numbered from 0")
    fewer = {name: values for name, values in whole.items() if name != first.format(2)}
    refused(fewer, r"blk\.1\.ffn_down_exps\.weight is F32 \(2, .*\(3, .*expected")
    refused(whole | {first.format(1): np.ones((3, 4), np.float32)}, "differ in shape or type")
    refused(whole | {first.format("01"): whole[first.format(1)]}, r"experts\.01\.w2\.weight' occurs twice")
    refused(whole | {first.format("9999999"): whole[first.format(1)]}, "is not supported")
    refused(whole | {"model.layers.0.block_sparse_moe.experts.w1.weight": np.ones(4, np.float32)}, "is not supported")
    refused(whole | {"model.layers.0.input_layernorm.experts.0.weight": np.ones(4, np.float32)}, "is not supported")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(norm_topk_prob=False), "norm_topk_prob is False"),
        (lambda c: c.pop("norm_topk_prob"), "norm_topk_prob is False"),
        (lambda c: c.update(mlp_only_layers=[1]), r"mlp_only_layers is \[1\]"),
        (lambda c: c.update(decoder_sparse_step=2), "decoder_sparse_step is 2"),
        (lambda c: c.update(num_experts="9"), "num_experts should be of type int"),
        (lambda c: c.pop("num_experts"), "no qwen3moe.expert_count"),
    ],
)
def test_mixtures_that_are_refused(tmp_path: Path, change: Edit, said: str) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", architecture="qwen3moe", qtype="F32")
    folder = write_folder(tmp_path / "model", path)
    edit(folder / "config.json", change)
    with pytest.raises(ModelError, match=said):
        read_network(HFFolder(folder))


def test_a_mixture_can_be_quantized(cpu: Device, tmp_path: Path) -> None:
    """Each expert's weights, as those of the GGUF file of the same model."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype="F32", experts=3)
    results = []
    for source in (path, write_folder(tmp_path / "model", path, 2)):
        with load_model(source, cpu, quantize="q8_0") as model, model.session() as session:
            out = model.logits()
            session.forward([3, 1, 4], out)
            results.append(out.numpy().copy())
    np.testing.assert_array_equal(*results)


def raw(header: Any, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def described(**changes: Any) -> dict[str, Any]:
    return {"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


BAD = {
    "empty": (b"", "truncated"),
    "endless header": (struct.pack("<Q", 2**63) + bytes(100), "a header of 9223372036854775808 bytes"),
    "header past the end": (struct.pack("<Q", 101) + bytes(100), "a header of 101 bytes"),
    "no JSON": (raw(b"{"), "not valid JSON"),
    "deep": (raw(b'{"t":' * 100_000), "not valid JSON"),
    "type": (raw(described(dtype="F8_E4M3")), "is of type 'F8_E4M3'; supported: F32, F16"),
    "no shape": (raw(described(shape=None)), "has no dtype, shape and data_offsets"),
    "no dimensions": (raw(described(shape=[])), "has not 1 to 4 positive dimensions"),
    "boolean": (raw(described(shape=[True])), "has not 1 to 4 positive dimensions"),
    "negative": (raw(described(shape=[-4])), "has not 1 to 4 positive dimensions"),
    "huge": (raw(described(shape=[2**62, 2**62])), "is not within the file, or of another length"),
    "past the end": (raw(described(data_offsets=[64, 80])), "is not within the file"),
    "backwards": (raw(described(data_offsets=[16, 0])), "is not within the file"),
    "overlap": (raw(described() | {"u": described(data_offsets=[8, 24])["t"]}), "'u' overlaps"),
    "other length": (raw(described(data_offsets=[0, 20])), "of another length"),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_safetensors_file_is_one_clear_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith("bad.safetensors: ")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("folder")
    llama = write_tiny_llama(path / "llama.gguf", qtype="F16", blocks=1)
    gpt_oss = write_tiny_llama(
        path / "gpt-oss.gguf", architecture="gpt-oss", qtype="F32", expert_qtype="MXFP4", blocks=1, experts=2
    )
    bert = write_bert_folder(path / "bert", write_tiny_bert(path / "bert.gguf", blocks=1))
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    return {
        "llama": write_folder(path / "llama", llama, 2),
        "gpt-oss": write_folder(path / "gpt-oss", gpt_oss, 2),
        "bert": bert,
    }


@pytest.mark.parametrize("kind", ["llama", "gpt-oss", "bert"])
@settings(max_examples=80)
@given(data=st.data())
def test_any_mutation_is_read_or_refused(tiny: dict[str, Path], kind: str, data: st.DataObject) -> None:
    files = sorted(path for path in tiny[kind].rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files), "file")
    original = path.read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(0, 3), "edits")):
        at = data.draw(st.integers(0, min(2000, len(content) - 1)), "at")
        new = data.draw(st.binary(max_size=8) | st.sampled_from([b"9" * 30, b"null", b"[", b"-1", b'""']), "new")
        content[at : at + data.draw(st.integers(0, 8), "old")] = new
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)), "keep")])
    try:
        with reading(4 << 20):
            file = HFFolder(tiny[kind])
            for tensor in file.tensors.values():
                assert tensor.data.nbytes == tensor.nbytes
            Tokenizer(file)
    finally:
        path.write_bytes(original)
