"""Embeddings against the float64 oracle. tests/reference/check_embeddings.py compares with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import wasmetal
from tests.models.hostile import reading
from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import CLS, SEP, TOKENS, embedding_of, write_tiny_bert
from wasmetal import load_embedder, load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.architectures.bert import Bert
from wasmetal.models.files.gguf import GGUFFile

TEXTS = ["the world", "a", "", "A b, c " * 12, "the world"]


def ids(text: str) -> list[int]:
    words = {"the": ["▁the"], "world": ["▁world"], "a": ["▁a"], "b": ["▁b"], "c": ["▁c"], ",": ["▁,"]}
    tokens = [token for word in text.lower().replace(",", " , ").split() for token in words[word]]
    return [CLS, *map(TOKENS.index, tokens), SEP]


@pytest.mark.parametrize(("qtype", "pooling"), [("F32", "mean"), ("F16", "cls"), ("Q8_0", "mean")])
def test_vectors_are_the_oracles(device: Device, tmp_path: Path, qtype: str, pooling: str) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf", qtype=qtype, pooling=1 if pooling == "mean" else 2)
    with load_embedder(path, device) as embedder:
        assert (embedder.dimension, embedder.context_length, embedder.pooling) == (96, 80, pooling)
        vectors = embedder.embed(TEXTS)
        assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 96))
        for text, vector in zip(TEXTS, vectors, strict=True):
            np.testing.assert_allclose(vector, embedding_of(path, ids(text), pooling), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(vectors[0], vectors[-1])
        assert embedder.embed([]).shape == (0, 96)
    with pytest.raises(ModelError, match="the model bert is closed"):
        embedder.embed(["a"])


def test_a_text_does_not_depend_on_those_beside_it(cpu: Device, tmp_path: Path) -> None:
    """Batches of more rows and more texts than one submission takes."""
    path = write_tiny_bert(tmp_path / "bert.gguf")
    texts = [" ".join(["a b c the world"[: 1 + n % 15].strip()] * (1 + n % 12)) for n in range(150)]
    with load_embedder(path, cpu) as embedder:
        together = embedder.embed(texts)
        for number in (0, 63, 64, 149):
            np.testing.assert_allclose(embedder.embed([texts[number]])[0], together[number], atol=1e-5)


def test_long_texts(cpu: Device, tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf")
    with load_embedder(path, cpu) as embedder:
        assert np.isfinite(embedder.embed(["a " * 78])).all()
        with pytest.raises(
            ModelError, match=r"^text 1 has 81 tokens; bert takes at most 80 \(truncate=True, --truncate"
        ):
            embedder.embed(["a", "a " * 79])
        vectors = embedder.embed(["a " * 79, "a " * 78], truncate=True)
        np.testing.assert_array_equal(vectors[0], vectors[1])


def test_control_tokens_stay_text(cpu: Device, tmp_path: Path) -> None:
    with load_embedder(write_tiny_bert(tmp_path / "bert.gguf"), cpu) as embedder:
        assert embedder._tokens("[SEP]", 0, False)[1] == TOKENS.index("▁[")
        assert embedder._tokens("[SEP]", 0, False).count(SEP) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": 4}, r"bert\.pooling_type is 4; supported: 1 \(mean\), 2 \(cls\)"),
        ({"heads": 7}, "7 heads in 96 elements"),
        ({"heads": 0}, r"bert\.attention\.head_count is 0"),
        ({"causal": True}, r"causal is True; the architecture bert supports only False"),
    ],
)
def test_refused(cpu: Device, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load_embedder(write_tiny_bert(tmp_path / "bad.gguf", **options), cpu)
    assert "\n" not in str(caught.value)


def test_models_of_the_other_kind(cpu: Device, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'llama' is not supported for embeddings; supported: bert"):
        load_embedder(write_tiny_llama(tmp_path / "llama.gguf"), cpu)
    with pytest.raises(ModelError, match="an embedding model: use wasmetal embed, or load_embedder"):
        load_model(write_tiny_bert(tmp_path / "bert.gguf"), cpu)


def test_any_missing_or_misshapen_tensor_is_refused(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf", blocks=1)
    for name in GGUFFile(path).tensors:
        file = GGUFFile(path)
        found = file.tensors.pop(name)
        if name != "token_types.weight":
            with pytest.raises(ModelError, match=f"the tensor {name} is missing"):
                Bert(file)
        file.tensors["other"] = found
        with pytest.raises(ModelError):
            Bert(file)


def test_damaged_headers(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf", blocks=1)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.integers(0, 3000, 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        with reading(8 << 20):
            Bert(GGUFFile(path))


def test_models_show(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf")
    shown = json.loads(wasmetal("models", "show", path, "--json").stdout)
    assert (shown["architecture"], shown["context"], shown["refusal"]) == ("bert", 80, None)


def test_the_command(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf")
    printed = wasmetal("embed", path, "the world", "a", "--json", "--device", "cpu")
    vectors = np.array(json.loads(printed.stdout))
    np.testing.assert_allclose(vectors[0], embedding_of(path, ids("the world"), "mean"), atol=1e-4)
    lines = wasmetal("embed", path, "--device", "cpu", stdin="the world\na\n").stdout.splitlines()
    np.testing.assert_allclose([[float(x) for x in line.split()] for line in lines], vectors, atol=1e-6)
    refused = wasmetal("embed", path, "a " * 200, "--device", "cpu")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
