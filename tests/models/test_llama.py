"""The Llama on every device against float64, and files that are no Llama of ours."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.oracle import logits_of, relative_error
from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device, open_device
from wasmetal.device.base import MemoryKind
from wasmetal.device.buffer import DeviceBuffer
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.errors import DeviceError, ModelError, OutOfDeviceMemoryError, WasmetalError
from wasmetal.models import Model, load_model
from wasmetal.models.architectures import ARCHITECTURES
from wasmetal.models.architectures.rope import unscaled
from wasmetal.models.files.gguf import GGUFFile

TOLERANCE = 1e-5
"""Relative error of float32 against float64, over two layers."""


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(4, 270, count).tolist()


OF_256 = {"heads": 16, "kv_heads": 4, "hidden": 256}
"""Matrices whose rows are multiples of 256."""


@pytest.mark.parametrize(
    "options",
    [
        {"qtype": "F32"},
        {"qtype": "F16"},
        {"qtype": "BF16"},
        {"qtype": "Q8_0"},
        {"qtype": "Q4_0"},
        {"qtype": "Q4_1"},
        {"qtype": "Q5_0"},
        {"qtype": "MXFP4"},
        {"qtype": "Q6_K", **OF_256},
        {"qtype": "Q5_K", **OF_256},
        {"qtype": "Q5_1", "value_qtype": "IQ4_NL"},
        {"qtype": "Q2_K", "value_qtype": "Q3_K", **OF_256},
        {"qtype": "IQ4_XS", "value_qtype": "Q5_K", **OF_256},
        {"qtype": "Q4_K", "value_qtype": "Q6_K", **OF_256},
        {"qtype": "Q8_0", "value_qtype": "F16"},  # q and k are one matrix, v another; so are gate and up
        {"tied": False},
        {"rope_scaling": "linear"},
        {"rope_scaling": "llama3"},
        {"rope_scaling": "yarn"},
        {"heads": 1, "kv_heads": 1, "head_dim": 32, "blocks": 1},
        {"heads": 7, "kv_heads": 7, "head_dim": 32, "blocks": 3, "hidden": 32},
        {"architecture": "qwen2", "qtype": "Q8_0", "value_qtype": "F16"},
        {"window": 4},
        {"architecture": "qwen3", "value_qtype": "Q8_0"},
        {"architecture": "qwen3", "heads": 3, "kv_heads": 1, "head_dim": 32, "rope_scaling": "yarn"},
        {"architecture": "qwen3moe", "value_qtype": "Q8_0"},
        {"architecture": "qwen3moe", "qtype": "F16", "experts": 3, "tied": False},
        {"architecture": "llama", "experts": 8},
        {"architecture": "llama", "experts": 6, "qtype": "Q4_K", "value_qtype": "IQ4_XS", **OF_256},
        {"architecture": "gpt-oss", "window": 4, "qtype": "Q8_0", "value_qtype": "MXFP4", "blocks": 3, "tied": False},
        {"architecture": "gpt-oss", "window": 4, "rope_scaling": "yarn", "heads": 4, "head_dim": 32, "qtype": "F32"},
        {"architecture": "smollm3", "blocks": 5},
        {"architecture": "granite"},
        {"architecture": "granite", "tied": False, "qtype": "F32"},
        {"architecture": "olmo2", "heads": 4, "kv_heads": 4},
        {"architecture": "phi3", "tied": False},
        {"architecture": "phi3", "rope_scaling": "longrope", "context": 48},
        {"architecture": "gemma3", "window": 4},
        {"architecture": "gemma3", "window": 4, "rope_scaling": "linear", "blocks": 3},
        {"architecture": "qwen2", "heads": 3, "kv_heads": 1, "head_dim": 32, "tied": False},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)
def test_logits_agree_with_float64(device: Device, tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", **options)
    some = tokens(11)
    expected = logits_of(path, some, long=True)
    with load_model(path, device, kv_type="f32") as model, model.session() as session:
        logits = model.logits()
        got = logits.buffer.view().view(np.float32)
        session.forward(some[:7], logits)
        assert relative_error(got, expected[6]) < TOLERANCE
        for i in range(7, 11):
            session.forward(some[i : i + 1], logits)
            assert relative_error(got, expected[i]) < TOLERANCE
        assert session.length == 11


def test_longrope_by_the_context(cpu: Device, tmp_path: Path) -> None:
    """Up to the original context, which is a quarter of the model's, RoPE has the short factors."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", architecture="phi3", rope_scaling="longrope")
    some = tokens(11)
    for context, long in ((64, False), (65, True)):
        with load_model(path, cpu, context=context) as model, model.session() as session:
            logits = model.logits()
            session.forward(some, logits)
            assert relative_error(logits.numpy(), logits_of(path, some, long=long)[-1]) < TOLERANCE
            assert relative_error(logits.numpy(), logits_of(path, some, long=not long)[-1]) > 10 * TOLERANCE


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 512, 513, 1025])
def test_prompts_of_every_shape_class(device: Device, tmp_path: Path, count: int) -> None:
    """Lengths at and around the limits of the recorded shapes; beyond the largest, several submissions."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=1100, blocks=1, heads=2, kv_heads=1)
    some = tokens(count + 1)
    expected = logits_of(path, some)
    with load_model(path, device, kv_type="f32") as model, model.session() as session:
        logits = model.logits()
        got = logits.buffer.view().view(np.float32)
        session.forward(some[:-1], logits)
        assert relative_error(got, expected[-2]) < TOLERANCE
        session.forward(some[-1:], logits)
        assert relative_error(got, expected[-1]) < TOLERANCE


def test_numpy_has_weights_as_float32(reference: Device, tmp_path: Path) -> None:
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf", qtype="Q4_1"), reference) as model:
        dim, hidden = 96, 160
        per_layer = dim * (96 + 2 * 32 + 96 + 3 * hidden)
        assert model.weight_bytes == 4 * (2 * per_layer + model.vocab_size * dim)


@pytest.mark.parametrize("name", ["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def test_repacked_weights_are_held_in_other_blocks(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    device: Device = request.getfixturevalue(name)
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf", qtype="IQ4_NL"), device) as model:
        weights = 2 * 96 * (96 + 2 * 32 + 96 + 3 * 160) + model.vocab_size * 96
        assert model.weight_bytes == weights // 32 * 34


@pytest.mark.parametrize("name", ["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def test_weights_are_held_in_their_blocks(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    device: Device = request.getfixturevalue(name)
    before = device.counters.bytes_loaded
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf", qtype="Q4_1"), device) as model:
        weights = 2 * 96 * (96 + 2 * 32 + 96 + 3 * 160) + model.vocab_size * 96
        assert model.weight_bytes == weights // 32 * 20
        in_file, angles = model.weight_bytes + 4 * 5 * 96, 4 * model.context_length * 16
        loaded = device.counters.bytes_loaded - before
        assert loaded == angles + (0 if device.info.wraps_files else in_file)


def test_weights_in_the_pages_of_their_file(tmp_path: Path) -> None:
    path, some = write_tiny_llama(tmp_path / "tiny.gguf"), tokens(5)
    with open_device("cpu") as device:
        if not device.info.wraps_files:
            pytest.skip("no compiled kernels for this processor")
        with load_model(path, device) as model, model.session() as session:
            assert device.counters.bytes_loaded == 4 * model.context_length * 16  # the angles of RoPE
            logits = model.logits()
            session.forward(some, logits)
            assert relative_error(logits.numpy(), logits_of(path, some)[-1]) < TOLERANCE


def test_rope_table_far_out() -> None:
    """Angles of positions in the hundred thousands, which float32 arithmetic would get wrong by 1e-2."""
    table = unscaled(16, 10000.0).table(200_001)
    assert table.shape == (200_001, 8, 2)
    for pair in range(8):
        angle = 200_000 * 10000.0 ** (-pair / 8)
        assert table[200_000, pair].tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-6)


# --- Files that are no Llama of ours


class NoDevice:
    """A device on which nothing may be allocated."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the device's {name} was asked for before the file was checked")


Edit = Callable[[gguf.GGUFWriter], None]


def dropped(w: gguf.GGUFWriter, name: str) -> None:
    for tensors in w.tensors:
        del tensors[name]


def halved(w: gguf.GGUFWriter, name: str) -> None:
    info = w.tensors[0][name]
    rows, columns = info.shape
    info.tensor, info.shape, info.nbytes = info.tensor[: rows // 2], (rows // 2, columns), info.nbytes // 2


def named(name: str, value: Any) -> Edit:
    def edit(w: gguf.GGUFWriter) -> None:
        w.kv_data[0][name] = value

    return edit


def integer(name: str, value: int) -> Edit:
    return named(name, gguf.gguf_writer.GGUFValue(value, gguf.GGUFValueType.UINT32))


def real(name: str, value: float) -> Edit:
    return named(name, gguf.gguf_writer.GGUFValue(value, gguf.GGUFValueType.FLOAT32))


def text(name: str, value: str) -> Edit:
    return named(name, gguf.gguf_writer.GGUFValue(value, gguf.GGUFValueType.STRING))


def pattern(*local: bool) -> Edit:
    """A list of which layers have a sliding window, where an interval is usual."""
    value = gguf.gguf_writer.GGUFValue(list(local), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.BOOL)
    return named("gemma3.attention.sliding_window_pattern", value)


def write_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Edit, **options: Any) -> Path:
    """A tiny model, edited before it is written."""
    write = gguf.GGUFWriter.write_header_to_file

    def edited(w: gguf.GGUFWriter) -> None:
        edit(w)
        write(w)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", edited)
    return write_tiny_llama(tmp_path / "edited.gguf", **options)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            text("general.architecture", "mamba"),
            "the architecture 'mamba' is not supported; supported: gemma3, .*llama, ",
        ),
        (
            text("llama.rope.scaling.type", "longrope"),
            "RoPE scaling 'longrope' is not supported; supported: none",
        ),
        (
            text("llama.rope.scaling.type", "dynamic"),
            "RoPE scaling 'dynamic' is not supported; supported: none",
        ),
        (
            real("llama.final_logit_softcapping", 30.0),
            "final_logit_softcapping is 30.0; .* supports only 0.0",
        ),
        (lambda w: w.add_tensor("rope_freqs.weight", np.zeros(8, np.float32)), "a factor that is not a finite number"),
        (integer("llama.expert_count", 8), "the metadata has no llama.expert_used_count"),
        (integer("llama.attention.value_length", 8), "keys and values of different lengths"),
        (integer("llama.attention.head_count", 0), "llama.attention.head_count is 0"),
        (integer("llama.attention.head_count", 2**32 - 1), "llama.attention.head_count is 4294967295"),
        (integer("llama.attention.head_count_kv", 4), "heads must divide evenly"),
        (integer("llama.attention.key_length", 6), "lengths must be multiples of 4"),
        (integer("llama.attention.key_length", 32), r"attn_q.weight is Q4_1 \(96, 96\); \(192, 96\) is expected"),
        (integer("llama.block_count", 3), "the tensor blk.2.attn_q.weight is missing"),
        (integer("llama.block_count", 1), "the tensor blk.1.*is not supported in the architecture llama"),
        (integer("llama.rope.dimension_count", 32), "RoPE over 32 elements of a head of 16"),
        (integer("llama.rope.dimension_count", 5), "RoPE over 5 elements"),
        (integer("llama.context_length", 0), "llama.context_length is 0"),
        (real("llama.rope.freq_base", math.nan), "llama.rope.freq_base is nan"),
        (real("llama.rope.scaling.factor", 0.0), "llama.rope.scaling.factor is 0.0"),
        (real("llama.attention.layer_norm_rms_epsilon", -1.0), "layer_norm_rms_epsilon is -1.0"),
        (text("llama.embedding_length", "wide"), "llama.embedding_length should be of type int, not str"),
        (lambda w: dropped(w, "blk.1.ffn_down.weight"), "the tensor blk.1.ffn_down.weight is missing"),
        (lambda w: dropped(w, "token_embd.weight"), "the tensor token_embd.weight is missing"),
        (lambda w: halved(w, "blk.0.attn_k.weight"), r"attn_k.weight is Q4_1 \(16, 96\); \(32, 96\) is expected"),
        (lambda w: w.add_tensor("blk.0.attn_q.bias", np.zeros(96, np.float32)), "attn_q.bias is not supported"),
    ],
)
def test_refused_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Edit, said: str
) -> None:
    path = write_edited(tmp_path, monkeypatch, edit)
    with pytest.raises(ModelError, match=said) as caught:
        Model(GGUFFile(path), "edited", NoDevice())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "edit", "said"),
    [
        ("gemma3", pattern(True, False, True), "pattern has 3 entries for 2 layers"),
        ("gemma3", integer("gemma3.attention.sliding_window_pattern", 0), "sliding_window_pattern is 0"),
        ("gemma3", real("gemma3.final_logit_softcapping", 30.0), "final_logit_softcapping is 30.0"),
        ("gemma3", lambda w: dropped(w, "blk.0.attn_q_norm.weight"), "blk.0.attn_q_norm.weight is missing"),
        ("gpt-oss", lambda w: dropped(w, "blk.1.attn_sinks.weight"), "blk.1.attn_sinks.weight is missing"),
        ("gpt-oss", lambda w: dropped(w, "blk.0.ffn_up_exps.bias"), "blk.0.ffn_up_exps.bias is missing"),
        ("gpt-oss", integer("gpt-oss.expert_used_count", 7), "expert_used_count is 7 of 6; at most 6 can be used"),
        ("granite", real("granite.residual_scale", 0.0), "granite.residual_scale is 0.0"),
        ("olmo2", integer("olmo2.attention.sliding_window", 4096), "sliding_window is 4096; .* supports only 0"),
        ("phi3", text("phi3.rope.scaling.type", "longrope"), "the tensor rope_factors_long.weight is missing"),
        ("phi3", lambda w: dropped(w, "blk.1.attn_qkv.weight"), "blk.1.attn_qkv.weight is missing"),
        ("qwen3", integer("qwen3.attention.key_length", 32), r"\(192, 96\) is expected"),
        ("qwen2", integer("qwen2.expert_count", 8), "mixtures of experts are not supported in the architecture qwen2"),
        ("qwen3moe", integer("qwen3moe.expert_count", 0), "qwen3moe.expert_count is 0"),
        (
            "qwen3moe",
            integer("qwen3moe.expert_count", 8),
            r"ffn_gate_inp.weight is F32 \(7, 96\); \(8, 96\) is expected",
        ),
        ("qwen3moe", integer("qwen3moe.expert_count", 2**31), "qwen3moe.expert_count is 2147483648"),
        ("qwen3moe", integer("qwen3moe.expert_used_count", 0), "qwen3moe.expert_used_count is 0"),
        ("qwen3moe", integer("qwen3moe.expert_used_count", 8), "expert_used_count is 8 of 7; at most 7 can be used"),
        (
            "qwen3moe",
            integer("qwen3moe.expert_feed_forward_length", 66),
            "expert_feed_forward_length is 66, not a mult",
        ),
        ("qwen3moe", integer("qwen3moe.expert_feed_forward_length", 32), r"\(7, 32, 96\) is expected"),
        ("qwen3moe", real("qwen3moe.expert_weights_scale", 2.5), "expert_weights_scale is 2.5; .* supports only 1.0"),
        ("qwen3moe", lambda w: dropped(w, "blk.0.ffn_up_exps.weight"), "blk.0.ffn_up_exps.weight is missing"),
        ("smollm3", real("smollm3.rope.scaling.yarn_log_multiplier", 0.1), "yarn_log_multiplier is 0.1"),
    ],
)
def test_other_architectures_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, edit: Edit, said: str
) -> None:
    path = write_edited(tmp_path, monkeypatch, edit, architecture=architecture)
    with pytest.raises(ModelError, match=said) as caught:
        Model(GGUFFile(path), "edited", NoDevice())
    assert "\n" not in str(caught.value)


def test_gemma3_may_list_its_layers(cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, options = tokens(11), {"architecture": "gemma3", "window": 4, "blocks": 3}
    expected = logits_of(write_tiny_llama(tmp_path / "interval.gguf", **options), some)[-1]
    listed = write_edited(tmp_path, monkeypatch, pattern(True, False, True), **options)
    with load_model(listed, cpu) as model, model.session() as session:
        session.forward(some, logits := model.logits())
        assert relative_error(logits.numpy(), expected) < TOLERANCE


@given(data=st.data())
def test_any_mutation_runs_or_is_refused(cpu: Device, tmp_path_factory: Any, data: st.DataObject) -> None:
    """Whatever a few bytes of the file are changed to: a model that runs, or one line."""
    architecture = data.draw(st.sampled_from(sorted(ARCHITECTURES)), "architecture")
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    write_tiny_llama(path, architecture=architecture, blocks=1, heads=2, kv_heads=1)
    content = bytearray(path.read_bytes())
    metadata = content.index(b"token_embd.weight")
    for _ in range(data.draw(st.integers(1, 3), "edits")):
        at = data.draw(st.integers(0, 1023) | st.integers(0, metadata + 1500), "at")
        edit = data.draw(st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 8, bytes(8)]), "edit")
        content[at : at + len(edit)] = edit
    path.write_bytes(content)
    message = ""
    try:
        with load_model(path, cpu) as model, model.session() as session:
            ids = model.tokenizer.encode("Hello <|im_end|>")
            session.forward(ids, model.logits())
            model.tokenizer.decode(ids)
            if model.chat_template:
                model.chat_template.render([{"role": "user", "content": "Hi"}])
    except WasmetalError as e:
        message = str(e)
    assert "\n" not in message


class SmallDevice(CpuDevice):
    """A device with room for so many buffers and no more."""

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.allocated: list[DeviceBuffer] = []

    def allocate(self, nbytes: int, kind: MemoryKind = MemoryKind.DEVICE) -> DeviceBuffer:
        if len(self.allocated) == self.room:
            raise OutOfDeviceMemoryError("no room")
        self.allocated.append(super().allocate(nbytes, kind))
        return self.allocated[-1]


@pytest.mark.parametrize("room", range(15))
def test_a_model_that_does_not_fit_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setenv("WASMETAL_COPY_WEIGHTS", "1")
    device = SmallDevice(room)
    with pytest.raises(OutOfDeviceMemoryError):
        load_model(write_tiny_llama(tmp_path / "tiny.gguf"), device)
    assert len(device.allocated) == room
    for buffer in device.allocated:
        with pytest.raises(DeviceError, match="closed"):
            buffer.view()


@pytest.mark.parametrize("context", [-1, 0, 257])
def test_a_context_that_the_model_does_not_have(tmp_path: Path, context: int) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=256)
    with pytest.raises(ModelError, match=f"a context of {context} tokens; 1 to 256 are supported"):
        load_model(path, NoDevice(), context=context)


def test_a_name_or_a_path(cpu: Device, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    for source in (path, str(path)):
        with load_model(source, cpu) as model:
            assert (model.name, model.context_length, model.vocab_size) == ("tiny", 256, 274)
            assert model.chat_template is not None
            assert model.chat_template.render([{"role": "user", "content": "Hi"}]).startswith("<|im_start|>user")
    with pytest.raises(ModelError, match="no model of that name"):
        load_model("smollm9", cpu)
