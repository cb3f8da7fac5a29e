from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guests.scripted import ScriptedModel
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, Program, load_model
from wasmetal.device import Device
from wasmetal.errors import GuestError
from wasmetal.models.lm.grammar import Grammar
from wasmetal.serve.protocol import Drawn, End, ReplyReader, Request, Sampling, Token

COMPLETE = Path(__file__).parents[2] / "guests" / "complete.wasm"
GREEDY = Sampling(temperature=0)
ONE_BY_ONE = [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b" ", b"st ", b"t", b"w"]


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(COMPLETE)


def complete(program: Program, model: Any, request: Request | bytes) -> tuple[list[Token], End | None, bytes]:
    """The tokens, the end, and what went wrong."""
    reader, records, errors = ReplyReader(), [], []
    stdin = request if isinstance(request, bytes) else request.encode()
    with Guest(
        program,
        models={"default": model},
        stdin=stdin,
        stdout=lambda data: records.extend(reader.feed(data)),
        stderr=errors.append,
    ) as guest:
        code = guest.run()
    assert code == (0 if not errors else 1)
    tokens = [record for record in records if isinstance(record, Token)]
    end = next((record for record in records if isinstance(record, End)), None)
    assert len(records) == len(tokens) + (end is not None)
    return tokens, end, b"".join(errors)


def scripted(program: Program, reply: bytes, **fields: Any) -> tuple[bytes, End | None]:
    fields = {"prompt": b"ab", "max_tokens": 100, "sampling": GREEDY} | fields
    tokens, end, errors = complete(program, ScriptedModel(reply), Request(**fields))
    assert not errors
    return b"".join(token.text for token in tokens), end


def test_the_text_ends_at_an_end_token(program: Program) -> None:
    assert scripted(program, b"hello") == (b"hello", End("stop", 6))


def test_max_tokens(program: Program) -> None:
    assert scripted(program, b"hello", max_tokens=3) == (b"hel", End("length", 3))


def test_the_context_ends_the_text(program: Program) -> None:
    request = Request(b"0123456789", 100, GREEDY)
    tokens, end, _ = complete(program, ScriptedModel(b"a" * 100, context=20), request)
    assert (len(tokens), end) == (11, End("length", 11))  # the last was drawn, and not run


@given(
    reply=st.binary(max_size=30).map(lambda data: bytes(97 + byte % 3 for byte in data)),
    stops=st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), max_size=3),
    most=st.integers(1, 31),
)
def test_stop_strings_cut_the_text_where_the_first_begins(
    program: Program, reply: bytes, stops: list[bytes], most: int
) -> None:
    text, end = scripted(program, reply, stops=stops, max_tokens=most)
    # What a reader sees who looks at the text after each token.
    expected, reason, drawn = reply[:most], "stop" if len(reply) < most else "length", min(len(reply) + 1, most)
    for length in range(1, len(expected) + 1):
        found = [at for stop in stops if (at := reply[:length].find(stop)) >= 0]
        if found:
            expected, reason, drawn = reply[: min(found)], "stop", length
            break
    assert (text, end) == (expected, End(reason, drawn))


@pytest.mark.parametrize(
    ("fields", "pieces"),
    [
        pytest.param({"logprobs": 0}, ONE_BY_ONE, id="the guest chooses"),
        pytest.param({"piece": 1}, ONE_BY_ONE, id="one by one"),
        pytest.param({"piece": 5}, [b"0", b"12345", b"6 st ", b"two ", b"stay n", b"ow ", b""], id="five"),
        pytest.param({}, [b"0", b"123456 st two ", b"stay now ", b""], id="sixteen"),
        pytest.param({"piece": 2**32 - 1}, [b"0", b"123456 st two stay now "], id="all"),
    ],
)
def test_what_a_stop_string_may_begin_in_is_held_back(
    program: Program, fields: dict[str, Any], pieces: list[bytes]
) -> None:
    """Whether tokens come one by one or, after the first, several together."""
    model, seen = ScriptedModel(b"0123456 st two stay now stop three"), []
    reader = ReplyReader()

    def stdout(data: bytes) -> None:
        seen.append(b"".join(record.text for record in reader.feed(data) if isinstance(record, Token)))

    request = Request(b"x", 100, GREEDY, stops=[b"stop"], **fields)
    with Guest(program, models={"default": model}, stdin=request.encode(), stdout=stdout) as guest:
        guest.run()
    assert seen[: len(pieces)] == pieces
    assert b"".join(seen) == b"0123456 st two stay now "


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("complete") / "tiny.gguf", qtype="F32")


class Oracle:
    """The model's distribution after some tokens, straight from its logits."""

    def __init__(self, model: Any) -> None:
        self._session, self._logits = model.session(), model.logits()

    def logits(self, tokens: list[int]) -> np.ndarray:
        self._session.truncate(0)
        self._session.forward(tokens, self._logits)
        return self._logits.numpy().astype(np.float64)

    def logprobs(self, tokens: list[int]) -> np.ndarray:
        logits = self.logits(tokens)
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1, seed=5), Sampling(0.7, top_k=8, seed=6)])
def test_logprobs_are_the_models(program: Program, path: Path, cpu: Device, sampling: Sampling) -> None:
    with load_model(path, cpu) as model:
        oracle, prompt = Oracle(model), [30, 40, 50]
        tokens, _, _ = complete(program, model, Request(prompt, 8, sampling, logprobs=5))
        assert tokens
        for token in tokens:
            expected = oracle.logprobs(prompt)
            order = np.argsort(-expected, kind="stable")[:5]
            assert token.logprob == pytest.approx(expected[token.token], abs=1e-3)
            assert [top[0] for top in token.tops] == order.tolist()
            assert [top[1] for top in token.tops] == pytest.approx(expected[order].tolist(), abs=1e-3)
            prompt.append(token.token)


@given(presence=st.floats(-2, 2, width=16), frequency=st.floats(-2, 2, width=16), seed=st.integers(0, 2**64 - 1))
def test_penalties_are_subtracted_as_openai_says(
    program: Program, path: Path, cpu: Device, presence: float, frequency: float, seed: int
) -> None:
    biases = {seed % 270: 3.0, 7: -100.0}
    sampling = Sampling(0, presence_penalty=presence, frequency_penalty=frequency, biases=biases)
    with load_model(path, cpu) as model:
        oracle, prompt, drawn = Oracle(model), [30, 40, 50 + seed % 100], [0] * model.vocab_size
        tokens, _, _ = complete(program, model, Request(prompt, 12, sampling))
        for token in tokens:
            logits = oracle.logits(prompt)
            for each, times in enumerate(drawn):
                logits[each] -= times * frequency + (times > 0) * presence
                logits[each] += biases.get(each, 0)
            assert logits[token.token] == pytest.approx(logits.max(), abs=1e-3)
            prompt.append(token.token)
            drawn[token.token] += 1


def test_seeds(program: Program, path: Path, cpu: Device) -> None:
    with load_model(path, cpu) as model:

        def ids(seed: int) -> list[int]:
            tokens, _, _ = complete(program, model, Request([30, 40], 12, Sampling(seed=seed)))
            return [token.token for token in tokens]

        assert ids(1) == ids(1)
        assert len({tuple(ids(seed)) for seed in range(4)}) == 4


def test_min_tokens(program: Program, path: Path, cpu: Device) -> None:
    with load_model(path, cpu) as model:
        end = min(model.tokenizer.end_of_generation)
        always = Sampling(0, biases=dict.fromkeys(model.tokenizer.end_of_generation, 100.0))
        assert end in model.tokenizer.end_of_generation
        for least in (0, 3):
            tokens, ended, _ = complete(program, model, Request([30], 9, always, min_tokens=least))
            assert (len(tokens), ended) == (least, End("stop", least + 1))


@pytest.mark.parametrize("logprobs", [0, 64])
def test_as_many_logprobs_as_there_may_be(program: Program, path: Path, cpu: Device, logprobs: int) -> None:
    with load_model(path, cpu) as model:
        for sampling in (GREEDY, Sampling(seed=3)):
            tokens, _, _ = complete(program, model, Request([30], 3, sampling, logprobs=logprobs))
            assert {len(token.tops) for token in tokens} == {logprobs}


def test_only_what_the_mask_allows_is_drawn(program: Program, path: Path, cpu: Device) -> None:
    with load_model(path, cpu) as model:
        allowed = [[5, 40, model.vocab_size - 1], [33], [min(model.tokenizer.end_of_generation)]]
        drawn: list[int] = []
        request = replace(Request([30], 9, Sampling(seed=2), logprobs=3), grammar=cast("Grammar", object()))
        unread, reader = request.encode(), ReplyReader()

        def stdin(most: int) -> bytes:
            nonlocal unread
            if not unread:
                bits = np.zeros(-(-model.vocab_size // 32) * 32, np.uint8)
                bits[allowed[len(drawn)]] = 1
                unread = np.packbits(bits, bitorder="little").tobytes()
            data, unread = unread[:most], unread[most:]
            return data

        tokens: list[Token] = []

        def stdout(data: bytes) -> None:
            for record in reader.feed(data):
                if isinstance(record, Drawn):
                    drawn.append(record.token)
                elif isinstance(record, Token):
                    tokens.append(record)

        with Guest(program, models={"default": model}, stdin=stdin, stdout=stdout) as guest:
            assert guest.run() == 0
        assert len(drawn) == 3
        assert all(token in some for token, some in zip(drawn, allowed, strict=True))
        assert [token.token for token in tokens] == drawn[:2]
        expected = Oracle(model).logprobs([30])  # those of the model, before the mask
        assert tokens[0].logprob == pytest.approx(expected[drawn[0]], abs=1e-3)


def test_a_request_that_is_none_is_refused(program: Program) -> None:
    good = Request(b"ab", 5, GREEDY, stops=[b"x"]).encode()
    fields = bytes(4) + good[8:], b"\xff" * 4 + good[8:], good[4:64] + bytes(4) + good[68:]
    for bad in (b"", good[:-1], b"wmc1" + good[4:], *(good[:4] + rest for rest in fields)):
        tokens, end, errors = complete(program, ScriptedModel(b"a"), bad)
        assert (tokens, end) == ([], None)
        assert errors.startswith(b"complete: ")


@given(st.binary(max_size=100))
def test_a_guest_is_not_believed(data: bytes) -> None:
    reader = ReplyReader()
    try:
        records = [record for byte in data for record in reader.feed(bytes([byte]))]
    except GuestError:
        return
    assert len(records) <= len(data) // 8
