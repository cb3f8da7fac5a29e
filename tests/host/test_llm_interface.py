"""``wasmetal_llm``, driven by a guest that forwards what the test says, on a tiny random model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.guests.scripted import ScriptedModel
from tests.host.probe import PAGE, Probe
from tests.models.tiny import write_tiny_llama
from wasmetal import Limits, load_model
from wasmetal.counters import Counters
from wasmetal.device import Device
from wasmetal.errors import GuestError
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.models.lm.kv_cache import PAGE_SIZE
from wasmetal.models.lm.pacing import Pacing

TEXT, TOKENS, OUT, LOGITS = 1024, 4096, PAGE, 4 * PAGE
ROUNDED = 1e-3
"""How far logits may be apart whose keys and values were rounded to float16 before or after they were used."""


@pytest.fixture(scope="module")
def model(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with load_model(write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"), device) as model:
        yield model


@pytest.fixture(params=[False, True], ids=["memory32", "memory64"])
def probe(model: Any, request: pytest.FixtureRequest) -> Iterator[Probe]:
    with Probe(model.device, memory64=request.param, models={"tiny": model}) as probe:
        yield probe


def size(probe: Probe) -> int:
    width = 8 if probe.memory64 else 4
    return int.from_bytes(probe.bytes[probe.OUT : probe.OUT + width].tobytes(), "little")


def opened(probe: Probe, name: bytes = b"tiny") -> int:
    assert probe.model_open(TEXT, probe.put(TEXT, name), probe.OUT) == Errno.SUCCESS
    return probe.u32()


def session(probe: Probe) -> int:
    assert probe.session_open(opened(probe), probe.OUT) == Errno.SUCCESS
    return probe.u32()


def forward(probe: Probe, session: int, tokens: list[int], logits: int = LOGITS) -> Errno:
    probe.put(TOKENS, np.array(tokens, np.uint32))
    return probe.session_forward(session, TOKENS, len(tokens), logits)


def forward_top(probe: Probe, session: int, tokens: list[int], k: int, rows: int = 1) -> Errno:
    probe.put(TOKENS, np.array(tokens, np.uint32))
    return probe.session_forward_top(session, TOKENS, len(tokens), rows, k, OUT, probe.OUT)


def test_models_are_had_by_the_names_that_were_granted(probe: Probe) -> None:
    assert opened(probe) != opened(probe)
    for name in (b"", b"Tiny", b"tiny\0", b"../tiny", b"smollm2:135m"):
        assert probe.model_open(TEXT, probe.put(TEXT, name), probe.OUT) == Errno.NOENT


def test_nothing_is_granted_by_default(device: Device) -> None:
    with Probe(device) as probe:
        assert probe.model_open(TEXT, probe.put(TEXT, b"default"), probe.OUT) == Errno.NOENT


def test_a_model_that_is_not_a_language_model(cpu: Device) -> None:
    class ImageModel:
        name, device, capabilities, counters = "image", cpu, frozenset[Any](), Counters()

    with Probe(cpu, models={"image": ImageModel()}) as probe:
        assert probe.model_open(TEXT, probe.put(TEXT, b"image"), probe.OUT) == Errno.NOTSUP


def test_model_info(probe: Probe, model: Any) -> None:
    handle = opened(probe)
    assert probe.model_describe(handle, OUT) == Errno.SUCCESS
    info = probe.bytes[OUT : OUT + abi.MODEL_INFO.itemsize].view(abi.MODEL_INFO)[0]
    ends = sorted(model.tokenizer.end_of_generation)
    assert tuple(info) == (model.vocab_size, model.context_length, len(ends), 1)
    assert probe.model_end_tokens(handle, OUT, 0, probe.OUT) == Errno.OVERFLOW
    assert size(probe) == len(ends)
    assert probe.model_end_tokens(handle, OUT, len(ends), probe.OUT) == Errno.SUCCESS
    assert probe.bytes[OUT : OUT + 4 * len(ends)].view(np.uint32).tolist() == ends


def test_vocabulary(probe: Probe, model: Any) -> None:
    handle = opened(probe)
    assert probe.model_vocabulary(handle, 0, 0, probe.OUT) == Errno.OVERFLOW
    nbytes = size(probe)
    assert probe.model_vocabulary(handle, OUT, nbytes - 1, probe.OUT) == Errno.OVERFLOW
    assert not probe.bytes[OUT : OUT + nbytes].any()
    assert probe.model_vocabulary(handle, OUT, nbytes, probe.OUT) == Errno.SUCCESS
    offsets = probe.bytes[OUT:].view(np.uint32)[: model.vocab_size + 1]
    data = probe.bytes[OUT + offsets.nbytes : OUT + nbytes].tobytes()
    pieces = [data[begin:end] for begin, end in pairwise(offsets)]
    assert pieces == list(model.tokenizer.pieces())
    assert offsets[-1] == len(data)


def test_tokenize_and_back(probe: Probe, model: Any) -> None:
    handle, text = opened(probe), "hello wörld <|im_end|>"
    n = probe.put(TEXT, text.encode())
    for flags, options in {
        0: {"parse_special": False, "add_bos": False},
        abi.TokenizeFlags.PARSE_SPECIAL: {"parse_special": True, "add_bos": False},
        abi.TokenizeFlags.ADD_BOS: {"parse_special": False, "add_bos": None},
    }.items():
        assert probe.model_tokenize(handle, TEXT, n, flags, TOKENS, 64, probe.OUT) == Errno.SUCCESS
        tokens = probe.bytes[TOKENS:].view(np.uint32)[: size(probe)].tolist()
        assert tokens == model.tokenizer.encode(text, **options)
        assert probe.model_detokenize(handle, TOKENS, len(tokens), OUT, 64, probe.OUT) == Errno.SUCCESS
        assert probe.bytes[OUT : OUT + size(probe)].tobytes().decode() == text
    assert probe.model_detokenize(handle, TOKENS, len(tokens), OUT, 5, probe.OUT) == Errno.OVERFLOW
    assert size(probe) == n


def test_apply_template(probe: Probe, model: Any) -> None:
    messages = [{"role": "user", "content": 'quote " and ünicode'}]
    handle = opened(probe)
    n = probe.put(TEXT, json.dumps(messages).encode())
    for flags in (0, abi.TemplateFlags.GENERATION_PROMPT):
        assert probe.model_apply_template(handle, TEXT, n, flags, OUT, 4096, probe.OUT) == Errno.SUCCESS
        expected = model.chat_template.render(messages, add_generation_prompt=bool(flags))
        assert probe.bytes[OUT : OUT + size(probe)].tobytes().decode() == expected


def test_a_model_without_a_template() -> None:
    model = ScriptedModel(template=False)
    with Probe(model.device, models={"tiny": model}) as probe:
        handle = opened(probe)
        n = probe.put(TEXT, b"[]")
        assert probe.model_apply_template(handle, TEXT, n, 0, OUT, 4096, probe.OUT) == Errno.NOTSUP


def test_a_state_too_large_for_the_model_is_not_even_read(probe: Probe, model: Any) -> None:
    handle = session(probe)
    most = model.context_length * model.cache.position_bytes
    assert most + 8192 < 64 * PAGE
    assert probe.guest.call("grow", 56) == 8
    assert probe.session_restore(handle, 0, most + 8192) == Errno.INVAL


def reference(model: Any, tokens: list[int]) -> np.ndarray:
    with model.session() as session:
        logits = model.logits()
        session.forward(tokens, logits)
        return logits.buffer.view().view(np.float32)[: model.vocab_size].copy()


def test_the_device_writes_logits_into_guest_memory(probe: Probe, model: Any) -> None:
    handle = session(probe)
    assert forward(probe, handle, [5, 6, 7]) == Errno.SUCCESS
    np.testing.assert_array_equal(probe.floats(LOGITS, model.vocab_size), reference(model, [5, 6, 7]))
    shared = probe.guest.counters.bytes_shared
    assert forward(probe, handle, [8]) == Errno.SUCCESS
    np.testing.assert_allclose(probe.floats(LOGITS, model.vocab_size), reference(model, [5, 6, 7, 8]), atol=ROUNDED)
    assert probe.guest.counters.bytes_copied == 0
    assert probe.guest.counters.bytes_shared == shared > 0  # the place is shared once


def test_logits_at_another_place_and_nowhere(probe: Probe, model: Any) -> None:
    handle = session(probe)
    assert forward(probe, handle, [5], logits=0) == Errno.SUCCESS
    assert not probe.bytes[LOGITS : LOGITS + 4096].any()
    for place in (LOGITS + 16, OUT + 48, LOGITS):
        probe.bytes[place - 16 : place + 4 * model.vocab_size + 16] = 0xA5
        assert forward(probe, handle, [6], logits=place) == Errno.SUCCESS
        assert np.isfinite(probe.floats(place, model.vocab_size)).all()
        assert (probe.bytes[place - 16 : place] == 0xA5).all()  # and nothing beside them is written
        end = place + 4 * model.vocab_size
        assert (probe.bytes[end : end + 16] == 0xA5).all()


def test_logits_after_the_memory_has_grown(probe: Probe, model: Any) -> None:
    handle = session(probe)
    assert forward(probe, handle, [5]) == Errno.SUCCESS
    assert probe.guest.call("grow", 8) == 8
    for place in (LOGITS, 12 * PAGE):
        assert forward(probe, handle, [6], logits=place) == Errno.SUCCESS
        assert probe.floats(place, model.vocab_size).any()


def test_a_full_context_is_an_overflow(probe: Probe, model: Any) -> None:
    handle, room = session(probe), model.context_length
    assert forward(probe, handle, [1] * (room + 1)) == Errno.OVERFLOW
    assert forward(probe, handle, [1] * room) == Errno.SUCCESS
    assert forward(probe, handle, [1]) == Errno.OVERFLOW
    assert probe.session_truncate(handle, room - 1) == Errno.SUCCESS
    assert forward(probe, handle, [1]) == Errno.SUCCESS


def test_fork_truncate_save_restore(probe: Probe, model: Any) -> None:
    handle = session(probe)
    assert forward(probe, handle, [5, 6, 7]) == Errno.SUCCESS
    assert probe.session_fork(handle, probe.OUT) == Errno.SUCCESS
    copy = probe.u32()
    assert forward(probe, handle, [8]) == Errno.SUCCESS
    expected = probe.floats(LOGITS, model.vocab_size).copy()
    assert probe.session_truncate(copy, 2) == Errno.SUCCESS
    assert forward(probe, copy, [7]) == Errno.SUCCESS
    copied = probe.guest.counters.bytes_copied
    assert probe.session_save(copy, 0, 0, probe.OUT) == Errno.OVERFLOW
    assert probe.guest.counters.bytes_copied == copied  # to ask for the size copies nothing
    nbytes = size(probe)
    assert probe.session_save(copy, OUT, nbytes, probe.OUT) == Errno.SUCCESS
    assert size(probe) == nbytes
    assert probe.guest.counters.bytes_copied == copied + 3 * model.cache.position_bytes
    assert probe.session_close(copy) == Errno.SUCCESS
    fresh = session(probe)
    assert probe.session_restore(fresh, OUT, nbytes) == Errno.SUCCESS
    assert probe.session_length(fresh, probe.OUT) == Errno.SUCCESS
    assert probe.u32() == 3
    assert forward(probe, fresh, [8]) == Errno.SUCCESS
    np.testing.assert_allclose(probe.floats(LOGITS, model.vocab_size), expected, atol=ROUNDED)


def test_device_memory_of_sessions_is_limited(model: Any) -> None:
    """What counts is whole pages of the cache, each once however many forks share it."""
    page = model.cache.page_bytes
    with Probe(model.device, models={"tiny": model}, limits=Limits(device_bytes=3 * page)) as probe:
        handle = session(probe)
        assert forward(probe, handle, [1] * (3 * PAGE_SIZE + 1)) == Errno.NOMEM
        assert probe.guest._account.device_bytes == 0
        assert forward(probe, handle, [1] * (PAGE_SIZE + 1)) == Errno.SUCCESS
        assert probe.guest._account.device_bytes == 2 * page
        assert probe.buffer_create_device(page + 1, 1, probe.OUT) == Errno.NOMEM
        assert probe.session_fork(handle, probe.OUT) == Errno.SUCCESS
        copy = probe.u32()
        assert probe.guest._account.device_bytes == 2 * page
        assert forward(probe, copy, [1] * PAGE_SIZE) == Errno.NOMEM  # one page more, and a copy of the shared one
        assert forward(probe, copy, [1]) == Errno.SUCCESS  # the copy alone
        assert forward(probe, handle, [1] * PAGE_SIZE) == Errno.NOMEM
        assert probe.session_close(handle) == Errno.SUCCESS
        assert probe.guest._account.device_bytes == 2 * page
        assert forward(probe, copy, [1] * PAGE_SIZE) == Errno.SUCCESS
        assert probe.session_truncate(copy, 2 * PAGE_SIZE) == Errno.SUCCESS
        assert probe.session_save(copy, 0, 0, probe.OUT) == Errno.OVERFLOW
        assert probe.session_save(copy, OUT, size(probe), probe.OUT) == Errno.SUCCESS
        state = size(probe)
        assert probe.session_close(copy) == Errno.SUCCESS
        assert probe.guest._account.device_bytes == 0
        fresh = session(probe)
        assert forward(probe, fresh, [1]) == Errno.SUCCESS
        assert probe.session_restore(fresh, OUT, state) == Errno.SUCCESS  # its page is used again
        assert probe.guest._account.device_bytes == 2 * page
        assert probe.session_restore(other := session(probe), OUT, state) == Errno.NOMEM
        assert probe.session_close(fresh) == Errno.SUCCESS
        assert probe.session_restore(other, OUT, state) == Errno.SUCCESS
        assert probe.guest._account.device_bytes == 2 * page


def test_a_full_cache_is_no_memory(probe: Probe, model: Any) -> None:
    full = []
    while forward(probe, handle := session(probe), [1] * model.context_length) == Errno.SUCCESS:
        full.append(handle)
    assert full
    assert forward(probe, handle, [1] * model.context_length) == Errno.NOMEM
    assert probe.session_close(full[0]) == Errno.SUCCESS
    assert forward(probe, handle, [1] * model.context_length) == Errno.SUCCESS


def test_sessions_of_other_guests_are_out_of_reach(probe: Probe, model: Any) -> None:
    with Probe(model.device, models={"tiny": model}) as other:
        its = session(other)
        for _ in range(4):
            assert its != session(probe)
        assert forward(probe, its, [1]) == Errno.BADF
        assert probe.session_close(its) == Errno.BADF


def test_a_guests_sessions_go_with_it(probe: Probe, model: Any) -> None:
    free = model.cache.free
    assert forward(probe, session(probe), [1] * 100) == Errno.SUCCESS
    assert model.cache.free < free
    probe.guest.close()
    assert model.cache.free == free


def test_a_model_must_be_on_the_guests_device(model: Any) -> None:
    from wasmetal.device.cpu.device import CpuDevice

    with pytest.raises(GuestError, match="'tiny' is on another device"):
        Probe(CpuDevice(), models={"tiny": model})


# --- The largest logits


@pytest.mark.parametrize("k", [1, 5, abi.MAX_TOP])
def test_the_largest_logits(probe: Probe, model: Any, k: int) -> None:
    all_logits, some = session(probe), session(probe)
    for tokens in ([5, 6, 7, 8], [9]):
        assert forward(probe, all_logits, tokens) == Errno.SUCCESS
        logits = probe.floats(LOGITS, model.vocab_size).copy()
        probe.bytes[OUT : OUT + 8 * k + 8] = 0xA5
        assert forward_top(probe, some, tokens, k) == Errno.SUCCESS
        found = probe.bytes[OUT : OUT + 8 * k].view(abi.CANDIDATE)
        maximum, total = probe.floats(probe.OUT, 2)
        order = np.argsort(-logits, kind="stable")[:k]
        np.testing.assert_allclose(found["logit"], logits[order], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(logits[found["token"]], found["logit"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose([maximum, total], [logits.max(), np.exp(logits - logits.max()).sum()], rtol=1e-4)
        assert (probe.bytes[OUT + 8 * k : OUT + 8 * k + 8] == 0xA5).all()


def test_the_largest_logits_of_wrong_requests(probe: Probe, model: Any) -> None:
    it = session(probe)
    for k in (0, abi.MAX_TOP + 1, 2**32 - 1):
        assert forward_top(probe, it, [5], k) == Errno.INVAL
    for rows in (0, 3, 2**32 - 1):
        assert forward_top(probe, it, [5, 6], 1, rows) == Errno.INVAL
    assert forward_top(probe, it, [5] * 40, 1, abi.MAX_TOP_ROWS + 1) == Errno.INVAL
    assert forward_top(probe, it, [], 1) == Errno.INVAL
    assert forward_top(probe, it, [model.vocab_size], 1) == Errno.INVAL
    assert forward_top(probe, it + 1000, [5], 1) == Errno.BADF
    end = probe.bytes.size
    for out, totals in ((end - 4, probe.OUT), (OUT, end - 4)):
        assert probe.session_forward_top(it, TOKENS, 1, 1, 1, out, totals) == Errno.FAULT
    for out, totals in ((OUT + 2, probe.OUT), (OUT, probe.OUT + 2)):
        assert probe.session_forward_top(it, TOKENS, 1, 1, 1, out, totals) == Errno.INVAL
    assert probe.session_length(it, probe.OUT) == Errno.SUCCESS
    assert probe.u32() == 0


@pytest.mark.parametrize("tokens", [[5, 6, 7, 8], list(range(40, 110))])
def test_the_largest_logits_after_several_tokens(probe: Probe, model: Any, tokens: list[int]) -> None:
    """Also where the tokens are more than a batch: each is what the same tokens give one by one."""
    one, some, k = session(probe), session(probe), 3
    rows = min(len(tokens), abi.MAX_TOP_ROWS)
    assert forward_top(probe, some, tokens, k, rows) == Errno.SUCCESS
    found = probe.bytes[OUT : OUT + 8 * k * rows].view(abi.CANDIDATE).reshape(rows, k).copy()
    totals = probe.bytes[probe.OUT : probe.OUT + 8 * rows].view(abi.LOGIT_TOTALS).copy()
    for row in range(rows):
        last = len(tokens) - rows + row
        assert forward(probe, one, tokens[last if row else 0 : last + 1]) == Errno.SUCCESS
        logits = probe.floats(LOGITS, model.vocab_size)
        np.testing.assert_allclose(found[row]["logit"], np.sort(logits)[::-1][:k], rtol=ROUNDED, atol=ROUNDED)
        np.testing.assert_allclose(logits[found[row]["token"]], found[row]["logit"], rtol=ROUNDED, atol=ROUNDED)
        np.testing.assert_allclose(totals[row]["max"], logits.max(), rtol=ROUNDED, atol=ROUNDED)


# --- Several tokens for one call

SAMPLING_AT, STOPS_AT, GENERATED = 512, 2048, 2 * PAGE


def generate(
    probe: Probe, session: int, tokens: list[int], cap: int, stops: tuple[int, ...] = (), **sampling: float
) -> tuple[Errno, list[int]]:
    record = np.zeros(1, abi.SAMPLING)
    for name, value in {"top_k": 1, "top_p": 1.0, **sampling}.items():
        record[name] = value
    probe.put(SAMPLING_AT, record)
    probe.put(TOKENS, np.array(tokens, np.uint32))
    probe.put(STOPS_AT, np.array(stops, np.uint32))
    where = session, TOKENS, len(tokens), SAMPLING_AT, STOPS_AT, len(stops), GENERATED, cap, probe.OUT
    errno = probe.session_generate(*where)
    return errno, probe.bytes[GENERATED : GENERATED + 4 * size(probe)].view(np.uint32).tolist()


def length(probe: Probe, session: int) -> int:
    assert probe.session_length(session, probe.OUT) == Errno.SUCCESS
    return probe.u32()


@pytest.fixture
def all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes."""
    monkeypatch.setattr(Pacing, "turn", lambda _: math.inf)


def test_generating_for_a_time(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that has taken too long gives what there is; the next goes on from there."""
    one, some = session(probe), session(probe)
    monkeypatch.setattr(Pacing, "turn", lambda _: math.inf)
    _, expected = generate(probe, one, [5, 6, 7], 12)
    monkeypatch.setattr(Pacing, "turn", lambda _: 0.0)
    tokens: list[int] = []
    while len(tokens) < 12:
        errno, more = generate(probe, some, tokens[-1:] or [5, 6, 7], 12 - len(tokens))
        assert errno == Errno.SUCCESS
        assert more
        tokens += more
    assert tokens == expected
    assert length(probe, one) == length(probe, some)


@pytest.mark.usefixtures("all_at_once")
def test_generating(probe: Probe, model: Any) -> None:
    one, some = session(probe), session(probe)
    expected, tokens = [], [5, 6, 7]
    for _ in range(10):
        assert forward(probe, one, tokens) == Errno.SUCCESS
        tokens = [int(probe.floats(LOGITS, model.vocab_size).argmax())]
        expected += tokens
    assert generate(probe, some, [5, 6, 7], 6) == (Errno.SUCCESS, expected[:6])
    assert length(probe, some) == 3 + 5
    assert generate(probe, some, expected[5:6], 4) == (Errno.SUCCESS, expected[6:10])
    stop = expected[2]
    assert probe.session_truncate(some, 0) == Errno.SUCCESS
    assert generate(probe, some, [5, 6, 7], 10, (stop,)) == (Errno.SUCCESS, expected[: expected.index(stop) + 1])


@pytest.mark.usefixtures("all_at_once")
def test_the_seed_decides_what_is_generated(probe: Probe) -> None:
    def sample(seed: int) -> tuple[list[int], int]:
        it = session(probe)
        errno, tokens = generate(probe, it, [5], 12, seed=seed, temperature=2.0, top_k=64)
        assert errno == Errno.SUCCESS
        return tokens, int(probe.bytes[SAMPLING_AT : SAMPLING_AT + 8].view(np.uint64)[0])

    assert sample(1) == sample(1)
    assert sample(1)[0] != sample(2)[0]
    assert sample(1)[1] == (1 + 12 * 0x9E3779B97F4A7C15) % 2**64  # its state after twelve numbers


def test_generating_what_cannot_be(probe: Probe, model: Any) -> None:
    it = session(probe)
    wrong: list[dict[str, float]] = [{"top_k": 0}, {"top_k": 65}, {"temperature": np.nan}, {"temperature": -1.0}]
    for sampling in [*wrong, {"top_p": np.inf}, {"min_p": -0.5}]:
        assert generate(probe, it, [5], 4, **sampling)[0] == Errno.INVAL
    assert generate(probe, it, [], 4)[0] == Errno.INVAL
    assert generate(probe, it, [5], 0)[0] == Errno.INVAL
    assert generate(probe, it, [model.vocab_size], 4)[0] == Errno.INVAL
    assert generate(probe, it, [5], 4, (model.vocab_size,))[0] == Errno.INVAL
    assert generate(probe, it + 1000, [5], 4)[0] == Errno.BADF
    assert generate(probe, it, [5] * (model.context_length + 1), 4)[0] == Errno.OVERFLOW
    end = probe.bytes.size
    good = [it, TOKENS, 1, SAMPLING_AT, STOPS_AT, 0, GENERATED, 4, probe.OUT]
    for place, value in ((1, end), (3, end - 8), (6, end - 8), (8, end - 2)):
        bad = [*good]
        bad[place] = value
        assert probe.session_generate(*bad) in (Errno.FAULT, Errno.INVAL)
    assert length(probe, it) == 0


@pytest.mark.usefixtures("all_at_once")
def test_generating_to_the_end_of_the_context(probe: Probe, model: Any) -> None:
    it = session(probe)
    prompt = [5] * (model.context_length - 2)
    errno, tokens = generate(probe, it, prompt, 100)
    assert (errno, len(tokens), length(probe, it)) == (Errno.SUCCESS, 3, model.context_length)
