"""What is said of a model before it is loaded, against the model loaded."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.models.split import write_split_llama
from tests.models.tiny import vocabulary, write_tiny_llama
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.summary import memory_needed, summarize


def test_what_the_header_says(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", value_qtype="Q8_0")
    found, reader = summarize(GGUFFile(path)), gguf.GGUFReader(path)
    assert (found.architecture, found.title, found.licence) == ("llama", "Tiny random Llama", None)
    assert (found.context, found.vocabulary) == (256, len(vocabulary()))
    assert found.parameters == sum(int(np.prod(t.shape)) for t in reader.tensors)
    assert found.types.keys() == {"Q4_1", "Q8_0", "F32"}
    for name, (count, nbytes) in found.types.items():
        of_type = [t for t in reader.tensors if t.tensor_type.name == name]
        assert (count, nbytes) == (len(of_type), sum(int(t.n_bytes) for t in of_type))
    assert found == summarize(GGUFFile(write_split_llama(tmp_path / "split.gguf", value_qtype="Q8_0")[0]))


def test_experts(cpu: Device, tmp_path: Path) -> None:
    """Of 7 experts each token uses 2, in two layers of matrices of 64 x 96."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", architecture="qwen3moe", tied=False)
    found = summarize(GGUFFile(path))
    assert (found.experts, found.experts_used) == (7, 2)
    assert found.parameters - found.active_parameters == 2 * 5 * 3 * 64 * 96
    dense = summarize(GGUFFile(write_tiny_llama(tmp_path / "dense.gguf")))
    assert (dense.experts, dense.experts_used, dense.active_parameters) == (None, None, dense.parameters)
    with load_model(path, cpu) as model:
        attention_and_output = 2 * 96 * (96 + 2 * 32 + 96) + model.vocab_size * 96
        active = 2 * 2 * 3 * 64 * 96
        assert model.weight_bytes == (attention_and_output + active) // 32 * 20 + 4 * 2 * 7 * 96


@pytest.mark.parametrize(("context", "sessions"), [(None, 1), (100, 3)])
@pytest.mark.parametrize("on", ["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def test_the_memory_is_what_the_model_allocates(
    request: pytest.FixtureRequest, on: str, context: int | None, sessions: int, tmp_path: Path
) -> None:
    device: Device = request.getfixturevalue(on)
    path = write_tiny_llama(tmp_path / "tiny.gguf", rope_scaling="llama3")
    said = memory_needed(GGUFFile(path), context, sessions, "f32")
    with load_model(path, device, context=context, contexts=sessions, kv_type="f32") as model:
        allocated = sum(buffer.nbytes for buffer in model._buffers._buffers)
        assert (said.context, said.sessions) == (model.context_length, sessions)
    pages = -(-said.context // 32)
    assert said.kv_cache == 2 * 2 * sessions * pages * 32 * 2 * 16 * 4  # keys, values; layers; heads of 16 float32
    weights = said.expanded_weights if device.info.expands_weights else said.weights
    assert weights + said.kv_cache + said.scratch == pytest.approx(allocated, rel=0.01)
    assert said.total == said.weights + said.kv_cache + said.scratch


def test_the_weights_are_not_read(tmp_path: Path) -> None:
    file = GGUFFile(write_tiny_llama(tmp_path / "tiny.gguf", qtype="F32", heads=32, hidden=4096))
    memory_needed(file)  # what is loaded once
    tracemalloc.start()
    try:
        memory = memory_needed(file, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert memory.weights > 50 << 20
    assert peak < memory.weights


def test_what_cannot_be_used(tmp_path: Path) -> None:
    file = GGUFFile(write_tiny_llama(tmp_path / "tiny.gguf"))
    for context, sessions, said in (
        (257, 1, "a context of 257 tokens"),
        (0, 1, "a context of 0"),
        (9, 0, "0 sessions"),
    ):
        with pytest.raises(ModelError, match=said):
            memory_needed(file, context, sessions)
    other = tmp_path / "other.gguf"
    w = gguf.GGUFWriter(other, "unheard-of")
    w.add_tensor("t", np.zeros(4, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    assert summarize(GGUFFile(other)).parameters == 4
    with pytest.raises(ModelError, match="architecture 'unheard-of' is not supported"):
        memory_needed(GGUFFile(other))


def test_a_template_is_not_run(tmp_path: Path) -> None:
    """Not even compiled: this one could not be."""
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    content = path.read_bytes()
    assert content.count(b"{% endfor %}") == 1
    path.write_bytes(content.replace(b"{% endfor %}", b"{% endXXX %}"))
    assert memory_needed(GGUFFile(path)).total > 0
