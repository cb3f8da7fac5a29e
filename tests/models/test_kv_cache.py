"""The KV cache's types, and how it grows; whether a model fits, and what is said if it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.command import wasmetal
from tests.models.oracle import logits_of, relative_error
from tests.models.test_session import step
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, packaged
from wasmetal.device import Device
from wasmetal.device.base import DeviceInfo
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.kernels.dtypes import KV, DType
from wasmetal.models import Model, load_model
from wasmetal.models.lm import kv_cache
from wasmetal.models.lm.fit import Demand, kv_type
from wasmetal.models.lm.kv_cache import PAGE_SIZE

TYPES = [dtype.suffix for dtype in KV]
BOUNDS = {"f32": 1e-5, "f16": 2e-3, "q8_0": 2e-2}
"""Of logits, relative to the largest: q8_0's steps are 1/254 of a block's largest value."""
PROMPT = list(range(10, 110))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("kv") / "tiny.gguf", qtype="Q8_0", head_dim=32, context=512)


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device's pools begin with a page."""
    monkeypatch.setattr(kv_cache, "FIRST_PAGES", 1)
    monkeypatch.setattr(DeviceInfo, "lazy_memory", False)


@pytest.fixture(params=TYPES)
def model(request: pytest.FixtureRequest, device: Device, path: Path) -> Iterator[Model]:
    with load_model(path, device, kv_type=request.param) as model:
        yield model


def test_logits_are_close_to_exact(model: Model, path: Path) -> None:
    bound = BOUNDS[model.cache.dtype.suffix]
    exact = logits_of(path, [*PROMPT, *range(20)])
    with model.session() as session:
        session.forward(PROMPT[:-1], None)
        for i, token in enumerate([PROMPT[-1], *range(19)]):
            assert relative_error(step(session, token), exact[len(PROMPT) - 1 + i]) < bound


def test_a_fork_that_copies_its_page(model: Model) -> None:
    with model.session() as session:
        session.forward(PROMPT[:40], None)
        with session.fork() as other:
            first, second = step(session, 1), step(other, 2)
            assert (first != second).any()
        session.truncate(40)
        np.testing.assert_array_equal(step(session, 2), second)


@pytest.mark.parametrize("saved", TYPES)
def test_a_state_is_converted(model: Model, device: Device, path: Path, saved: str) -> None:
    with load_model(path, device, kv_type=saved) as there, there.session() as session, model.session() as other:
        session.forward(PROMPT[: PAGE_SIZE + 8], None)
        state = session.save()
        assert len(state) == session.state_bytes
        other.restore(state)
        error = relative_error(step(other, 5), step(session, 5))
        assert error < max(BOUNDS[saved], BOUNDS[model.cache.dtype.suffix])
        if saved == model.cache.dtype.suffix:
            assert error == 0


def test_a_cache_costs_what_its_type_takes(cpu: Device, path: Path) -> None:
    elements = 2 * 2 * 2 * 32  # layers, keys and values, heads, elements
    for name, bytes_of_a_block in (("f32", 128), ("f16", 64), ("q8_0", 34)):
        with load_model(path, cpu, kv_type=name) as model:
            assert model.cache.position_bytes * 32 == elements * bytes_of_a_block
            charged: list[int] = []
            with model.session(model.join(charged.append)) as session:
                session.forward(PROMPT, None)
            assert charged[0] == model.cache.page_bytes * -(-len(PROMPT) // PAGE_SIZE)


def test_default_types(cpu: Device, path: Path) -> None:
    with load_model(path, cpu) as model:
        assert model.cache.dtype is DType.F32
        config = model.config
    assert kv_type(None, replace(cpu.info, gpu=True), config) is DType.F16


def test_types_that_are_refused(cpu: Device, path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="type 'q4_0'; supported: f32, f16, q8_0"):
        load_model(path, cpu, kv_type="q4_0")
    small = write_tiny_llama(tmp_path / "small.gguf")
    with pytest.raises(ModelError, match="2 heads of 16; choose the type f16"):
        load_model(small, cpu, kv_type="q8_0")


def test_the_command_line(path: Path) -> None:
    asked = ("chat", path, "--device", "cpu", "-p", "hello", "--greedy", "--max-tokens", "2")
    done = wasmetal(*asked, "--kv-type", "q8_0", "--context", "96", "--stats")
    assert json.loads(done.stderr.splitlines()[-1])["context_length"] == 96
    refused = wasmetal(*asked, "--kv-type", "q9")
    assert refused.stderr.splitlines() == ["wasmetal: a key-value cache of the type 'q9'; supported: f32, f16, q8_0"]
    shown = json.loads(wasmetal("models", "show", path, "--kv-type", "q8_0", "--json").stdout)["memory"]
    assert (shown["kv_type"], shown["kv_cache"]) == ("q8_0", 512 * 8 * 34)


@pytest.mark.parametrize("isolation", [None, "process"])
def test_options_reach_the_models_of_a_guest(path: Path, isolation: Literal["process"] | None) -> None:
    with pytest.raises(ModelError, match="type 'q9'; supported"):
        Guest(
            packaged.guest("chat"),
            device="cpu",
            models={"default": path},
            loading={"kv_type": "q9"},
            isolation=isolation,
            trusted=True,
        )


# ---- Growth


@pytest.mark.usefixtures("growing")
def test_growing_changes_no_logits(model: Model, path: Path) -> None:
    """Several sessions whose pages were written before the pools grew, forks among them, and passes between."""
    bound = BOUNDS[model.cache.dtype.suffix]
    cache = model.cache
    assert cache.capacity == 1
    with model.session() as session, model.session() as other:
        session.forward(PROMPT[:20], None)
        assert (cache.capacity, cache.version) == (1, 0)
        other.forward(PROMPT[50:60], None)
        assert cache.capacity == 2
        with session.fork() as fork:
            fork.forward(PROMPT[20:100], None)
            session.forward(PROMPT[20:], None)
            assert 8 <= cache.capacity < cache.free + 9
            got = step(fork, 7), step(session, 7), step(other, *PROMPT[60:], 7)
    for logits, tokens in zip(got, ([*PROMPT, 7], [*PROMPT, 7], [*PROMPT[50:], 7]), strict=True):
        assert relative_error(logits, logits_of(path, tokens)[-1]) < bound
    assert cache.free == len(cache._references)


@pytest.mark.usefixtures("growing")
def test_a_cache_grows_to_its_size_and_no_further(cpu: Device, path: Path) -> None:
    with load_model(path, cpu, context=3 * PAGE_SIZE, contexts=1) as model, model.session() as session:
        session.forward(range(3 * PAGE_SIZE), None)
        assert model.cache.capacity == 3
        with model.session() as other, pytest.raises(OutOfDeviceMemoryError, match="no room for 32 more tokens"):
            other.forward([1], None)


@pytest.mark.usefixtures("growing")
def test_memory_that_ends_while_growing(cpu: Device, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written stays, the session that asked is unchanged, and later there may be room."""
    with load_model(path, cpu) as model, model.session() as session:
        session.forward(PROMPT[:30], None)
        pool, calls = model.cache._pool, [0]

        def failing(pages: int) -> object:
            calls[0] += 1
            if calls[0] == 3:
                raise OutOfDeviceMemoryError("no more")
            return pool(pages)

        with monkeypatch.context() as patch:
            patch.setattr(model.cache, "_pool", failing)
            with pytest.raises(OutOfDeviceMemoryError, match="no more"):
                session.forward(PROMPT[30:], None)
        assert (session.length, model.cache.capacity) == (30, 1)
        assert relative_error(step(session, PROMPT[30]), logits_of(path, PROMPT[:31])[-1]) < BOUNDS["f32"]
        assert relative_error(step(session, *PROMPT[31:]), logits_of(path, PROMPT)[-1]) < BOUNDS["f32"]


# ---- Whether a model fits


def demand(**changes: object) -> Demand:
    config = SimpleNamespace(block_count=32, head_count_kv=8, head_dim=128, context_length=1 << 17, vocab_size=1)
    return replace(Demand(config, 4_000_000_000, 8192, 4, DType.F32), **changes)


def device_of(nbytes: int, binding: int = 1 << 32) -> DeviceInfo:
    return SimpleNamespace(spec="gpu:0", memory_bytes=nbytes, max_binding_bytes=binding, offset_alignment=16)


def test_a_model_that_fits() -> None:
    assert demand().kv_cache == 2 * 32 * 8 * 128 * 4 * 8192 * 4
    demand().check(device_of(demand().weights + demand().kv_cache))


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (9e9, "needs 12.59 GB .*weights 4.00 GB.* 8.59 GB for 4 × 8192 tokens in f32.* 3.59 GB more than gpu:0 has; "
              "a context of 4096 tokens, 2 contexts instead of 4 or a cache of the type f16 would fit"),
        (6.3e9, "; a context of 2048 tokens, 1 context instead of 4 or a cache of the type q8_0 would fit"),
        (6e9, "; a context of 1024 tokens would fit"),
        (3e9, "; quantize it, or use a smaller model or another device"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit(memory: float, message: str) -> None:
    with pytest.raises(OutOfDeviceMemoryError, match=message) as refused:
        demand().check(device_of(int(memory)))
    assert "\n" not in str(refused.value)


def test_a_pool_that_cannot_be_bound() -> None:
    with pytest.raises(
        OutOfDeviceMemoryError, match=r"keys of a layer, 2\.15 GB more than gpu:0 can address at once; a"
    ):
        demand(contexts=256, context=4096).check(device_of(1 << 50, 1 << 31))


@given(memory=st.integers(1, 1 << 36), contexts=st.integers(1, 9), context=st.integers(1, 1 << 17))
def test_what_is_said_to_fit_does(memory: int, contexts: int, context: int) -> None:
    asked, info = demand(contexts=contexts, context=context), device_of(memory)
    try:
        asked.check(info)
    except OutOfDeviceMemoryError as error:
        words = str(error).split("; ")[-1].split()
        if "context" in words and "tokens" in words:
            replace(asked, context=int(words[words.index("tokens") - 1])).check(info)
        if "type" in words:
            kind = next(dtype for dtype in KV if dtype.suffix == words[words.index("type") + 1].rstrip(","))
            replace(asked, dtype=kind).check(info)


def test_loading_a_model_that_does_not_fit(cpu: Device, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceInfo, "memory_bytes", 800_000)
    with pytest.raises(OutOfDeviceMemoryError, match=r"the model needs .* MB of memory \(weights .*; .* fit"):
        load_model(path, cpu)
