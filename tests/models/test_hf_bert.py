"""Folders of embedding models: what the float64 oracle computes, and what is refused.

``tests/reference/check_hf_embeddings.py`` compares with transformers.
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
from tests.models.bert_folder import bert_tensors, spelled, tokenizer_json, write_bert_folder, write_modules
from tests.models.folder import safetensors
from tests.models.test_embedder import TEXTS, ids
from tests.models.tiny_bert import TOKENS, embedding_of, write_tiny_bert
from wasmetal import load_embedder, load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.architectures.bert import Bert
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.hf_folder import HFFolder
from wasmetal.models.lm.tokenizer import Tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_bert(tmp_path / "bert.gguf")


@pytest.fixture
def folder(tmp_path: Path, source: Path) -> Path:
    return write_bert_folder(tmp_path / "model", source)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("qtype", "pooling", "normalize"), [("F32", "mean", True), ("F16", "cls", False)])
def test_vectors_are_the_oracles(device: Device, tmp_path: Path, qtype: str, pooling: str, normalize: bool) -> None:
    source = write_tiny_bert(tmp_path / "bert.gguf", qtype=qtype)
    folder = write_bert_folder(tmp_path / "model", source, pooling=pooling, normalize=normalize)
    with load_embedder(folder, device) as embedder:
        assert (embedder.pooling, embedder.normalized, embedder.context_length) == (pooling, normalize, 80)
        for text, vector in zip(TEXTS, embedder.embed(TEXTS), strict=True):
            length = np.linalg.norm(vector)
            assert length == pytest.approx(1, abs=1e-5) or not normalize
            np.testing.assert_allclose(vector / length, embedding_of(source, ids(text), pooling), atol=1e-4)
        if not normalize:
            assert length > 2


def test_the_tensors_are_the_gguf_files(source: Path, folder: Path) -> None:
    there, here = GGUFFile(source).tensors, HFFolder(folder).tensors
    assert there.keys() == here.keys()
    for name, tensor in there.items():
        np.testing.assert_array_equal(here[name].data, tensor.data, err_msg=name)


def test_a_plain_encoder(cpu: Device, tmp_path: Path, source: Path) -> None:
    """Without sentence-transformers' files: the mean, of length 1, as of GGUF files that do not say."""
    folder = write_bert_folder(tmp_path / "model", source, pooling=None)
    with load_embedder(folder, cpu) as embedder:
        assert (embedder.pooling, embedder.normalized) == ("mean", True)
        np.testing.assert_allclose(embedder.embed(["a"])[0], embedding_of(source, ids("a"), "mean"), atol=1e-4)


def test_names_of_other_versions(source: Path, folder: Path) -> None:
    """As a part of a model for another task, and with TensorFlow's names."""
    wanted = {name: tensor.data for name, tensor in HFFolder(folder).tensors.items()}
    renamed = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): values
        for name, values in bert_tensors(source).items()
    }
    (folder / "model.safetensors").write_bytes(
        safetensors(renamed | {"cls.predictions.bias": np.ones(len(TOKENS), np.float32)})
    )
    found = HFFolder(folder).tensors
    assert found.keys() == wanted.keys()
    for name, data in wanted.items():
        np.testing.assert_array_equal(found[name].data, data, err_msg=name)


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"], "pooling_mode_cls_token": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    ],
)
def test_spellings_of_poolings(folder: Path, pooling: dict[str, Any], kind: str) -> None:
    write_modules(folder, pooling)
    assert HFFolder(folder).fields["bert.pooling_type"] == {"mean": 1, "cls": 2}[kind]


@pytest.mark.parametrize("where", ["sentence_bert_config.json", "tokenizer_config.json"])
def test_the_longest_text(cpu: Device, source: Path, folder: Path, where: str) -> None:
    """Shorter than there are positions."""
    key = "max_seq_length" if where.startswith("sentence") else "model_max_length"
    (folder / where).write_text(json.dumps({key: 20}))
    with load_embedder(folder, cpu) as embedder:
        assert embedder.context_length == 20
        with pytest.raises(ModelError, match="text 0 has 22 tokens; model takes at most 20"):
            embedder.embed(["a " * 20])
        vector = embedder.embed(["a " * 20], truncate=True)[0]
        np.testing.assert_allclose(vector, embedding_of(source, ids("a " * 18), "mean"), atol=1e-4)
    (folder / where).write_text(json.dumps({key: 10**30}))
    assert HFFolder(folder).fields["bert.context_length"] == 80


def test_vocab_txt(folder: Path) -> None:
    """A token on each line, in place of tokenizer.json."""
    of_json = Tokenizer(HFFolder(folder))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(spelled()) + "\n")
    of_text = Tokenizer(HFFolder(folder))
    for text in (*TEXTS, "The Wörld, aabc [SEP]"):
        assert of_text.encode(text) == of_json.encode(text)
    assert (of_text.bos, of_text.eos, of_text.add_bos, of_text.add_eos) == (2, 3, True, True)
    assert of_json.encode("Thé", parse_special=False) == [2, TOKENS.index("▁the")]
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "cls_token": {"content": "a"}}))
    cased = Tokenizer(HFFolder(folder))
    assert cased.encode("The") == [TOKENS.index("▁a"), 1]
    (folder / "vocab.txt").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="is not valid UTF-8"):
        HFFolder(folder)


def test_tokens_stand_for_their_text(folder: Path) -> None:
    tokenizer = Tokenizer(HFFolder(folder))
    assert tokenizer.decode(tokenizer.encode("the ab, world", add_bos=False)) == "the ab , world"


def test_lowercase_of_sentence_transformers(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda t: t["normalizer"].update(lowercase=False))
    assert Tokenizer(HFFolder(folder)).encode("The") == [2, 1]
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert Tokenizer(HFFolder(folder)).encode("The") == [2, TOKENS.index("▁the")]
    assert Tokenizer(HFFolder(folder)).encode("Thé") == [2, 1]  # accents stay


def test_the_commands(source: Path, folder: Path) -> None:
    shown, of_gguf = (json.loads(wasmetal("models", "show", path, "--json").stdout) for path in (folder, source))
    for key in ("architecture", "parameters", "context", "vocabulary", "types", "memory", "refusal"):
        assert shown[key] == of_gguf[key], key
    assert shown["architecture"] == "bert"
    vectors = json.loads(wasmetal("embed", folder, "the world", "--json", "--device", "cpu").stdout)
    np.testing.assert_allclose(vectors[0], embedding_of(source, ids("the world"), "mean"), atol=1e-4)


MODULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "Dense": (
        lambda m: m.insert(2, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}),
        "modules.json has 'Transformer in the folder, Pooling in 1_Pooling, Dense in 2_Dense, .* are supported",
    ),
    "another folder": (lambda m: m[0].update(path="0_Transformer"), "Transformer in the folder itself"),
    "no pooling": (lambda m: m.pop(1), "modules.json has"),
    "outside": (lambda m: m[1].update(path="../1_Pooling"), "the pooling in '../1_Pooling', which is no folder"),
    "itself": (lambda m: m[1].update(path=""), "the pooling in '', which is no folder"),
    "missing": (
        lambda m: m[1].update(path="3_Pooling"),
        "the pooling in 3_Pooling, and there is no 3_Pooling/config.json",
    ),
    "no type": (lambda m: m[1].pop("type"), "modules.json is no list of modules with types and paths"),
}


@pytest.mark.parametrize(("change", "said"), MODULES.values(), ids=MODULES.keys())
def test_modules_that_are_refused(folder: Path, change: Callable[[Any], object], said: str) -> None:
    edit(folder / "modules.json", change)
    with pytest.raises(ModelError, match=said) as refused:
        HFFolder(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("modules.json", "{}", "no list of modules"),
        ("modules.json", "[" * 70000, "modules.json: 70000 bytes; at most 65536"),
        ("1_Pooling/config.json", '{"pooling_mode": "max"}', "the pooling is 'max'; supported: mean, cls"),
        ("1_Pooling/config.json", '{"pooling_mode": ["cls", "mean"]}', "the pooling is .*supported: mean, cls"),
        ("1_Pooling/config.json", '{"pooling_mode_lasttoken": true}', "the pooling is .*lasttoken.*; supported"),
        ("1_Pooling/config.json", "[]", "a JSON object is expected"),
        ("sentence_bert_config.json", '{"max_seq_length": "9"}', "max_seq_length should be of type int, not str"),
    ],
)
def test_settings_that_are_refused(folder: Path, name: str, content: str, said: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=said):
        HFFolder(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(hidden_act="gelu_new"), "hidden_act is 'gelu_new', which is not supported"),
        (lambda c: c.update(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key'"),
        (lambda c: c.update(is_decoder=True), "is_decoder is True"),
        (lambda c: c.pop("layer_norm_eps"), "no bert.attention.layer_norm_epsilon"),
        (lambda c: c.update(num_attention_heads=7), "7 heads in 96 elements"),
        (lambda c: c.update(type_vocab_size=1), r"token_types.weight is F32 \(2, 96\); \(1, 96\) is expected"),
        (lambda c: c.update(type_vocab_size="2"), "type_vocab_size should be of type int"),
        (lambda c: c.update(max_position_embeddings=81), r"position_embd.weight is F32 \(80, 96\); \(81, 96\) is exp"),
        (lambda c: c.update(vocab_size=16), r"token_embd.weight is F32 \(15, 96\); \(16, 96\) is expected"),
        (lambda c: c.update(model_type="roberta"), "model_type is 'roberta'; of folders, these are supported: .*bert"),
    ],
)
def test_configurations_that_are_refused(folder: Path, change: Callable[[Any], object], said: str) -> None:
    edit(folder / "config.json", change)
    with pytest.raises(ModelError, match=said) as refused:
        Bert(HFFolder(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["normalizer"].update(clean_text=False), "a normalizer that is not supported; of WordPiece"),
        (lambda t: t["normalizer"].update(type="Lowercase"), "a normalizer that is not supported"),
        (lambda t: t["normalizer"].update(strip_accents=1), "strip_accents 1; a text, 100 and a boolean or null"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "splits texts in a way that is not supported"),
        (lambda t: t["model"].update(max_input_chars_per_word=9), "max_input_chars_per_word 9"),
        (lambda t: t["model"].update(continuing_subword_prefix=1), "continuing_subword_prefix 1"),
        (lambda t: t["model"].update(unk_token="?"), "no tokenizer.ggml.unknown_token_id"),
        (lambda t: t["model"].update(vocab=[]), "none of BPE, unigram and WordPiece"),
        (lambda t: t["model"]["vocab"].update({"x": 15}), "gives 'x' an id that the model has not"),
    ],
)
def test_tokenizers_that_are_refused(folder: Path, change: Callable[[Any], object], said: str) -> None:
    edit(folder / "tokenizer.json", change)
    with pytest.raises(ModelError, match=said):
        Tokenizer(HFFolder(folder))


def test_a_tokenizer_without_its_models_type(folder: Path) -> None:
    """As it was written once."""
    edit(folder / "tokenizer.json", lambda t: t["model"].pop("type"))
    assert Tokenizer(HFFolder(folder)).encode("the world") == ids("the world")[:-1]


def test_the_ends_of_texts(folder: Path) -> None:
    """Transformers wrote them in another way once; and a tokenizer may have none."""
    old = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    for processor, ends in ((old, (True, True)), (None, (False, False))):
        edit(folder / "tokenizer.json", lambda t, processor=processor: t.update(post_processor=processor))
        tokenizer = Tokenizer(HFFolder(folder))
        assert (tokenizer.add_bos, tokenizer.add_eos) == ends
        if any(ends):
            assert (tokenizer.bos, tokenizer.eos) == (2, 3)


def test_tensors_that_are_refused(source: Path, folder: Path) -> None:
    whole = bert_tensors(source)

    def refused(tensors: dict[str, NDArray[Any]], said: str) -> None:
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
        with pytest.raises(ModelError, match=said) as caught:
            Bert(HFFolder(folder))
        assert "\n" not in str(caught.value)

    query = "encoder.layer.1.attention.self.query.weight"
    refused({name: each for name, each in whole.items() if name != query}, r"blk\.1\.attn_q\.weight is missing")
    refused(whole | {query: np.ones((96, 95), np.float32)}, r"attn_q\.weight is F32 \(96, 95\); \(96, 96\) is expected")
    refused(whole | {f"bert.{query}": whole[query]}, "query.weight' occurs twice")
    refused(whole | {"encoder.layer.0.other.weight": np.ones(4, np.float32)}, "other.weight' is not supported")
    refused(whole | {query: np.ones((96, 96), np.int64)}, "query.weight' is of type I64, which is not supported there")


def test_it_is_no_language_model(cpu: Device, folder: Path) -> None:
    with pytest.raises(ModelError, match="an embedding model: use wasmetal embed, or load_embedder"):
        load_model(folder, cpu)


def test_the_vocabulary_may_be_smaller_than_the_models(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda t: t.update(tokenizer_json()))
    edit(folder / "config.json", lambda c: c.update(vocab_size=32))
    assert Tokenizer(HFFolder(folder)).encode("the world") == ids("the world")[:-1]
