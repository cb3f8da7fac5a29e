from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, load_model, packaged
from wasmetal.device import Device
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.models import Model, Session
from wasmetal.models.lm.kv_cache import PAGE_SIZE
from wasmetal.models.lm.quota import Holder

CONTEXT = 8 * PAGE_SIZE
PAGES = 8


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("prefixes") / "tiny.gguf", context=CONTEXT, blocks=1)


@pytest.fixture
def model(path: Path, cpu: Device) -> Iterator[Model]:
    with load_model(path, cpu, contexts=4, prefixes=1, deterministic=True) as model:
        yield model


@pytest.fixture(scope="module")
def plain(path: Path, cpu: Device) -> Iterator[Model]:
    """The same without a cache of prefixes."""
    with load_model(path, cpu, deterministic=True) as model:
        yield model


def run(session: Session, tokens: list[int]) -> np.ndarray:
    """The logits after the tokens."""
    logits = session.model.logits()
    for submission in session.steps(tokens, logits):
        if submission:
            submission.wait()
    return logits.numpy().copy()


def joined(model: Model, scope: str | None = "ann") -> tuple[Session, Holder]:
    holder = model.join(lambda nbytes: None, scope)
    return model.session(holder), holder


def leave(session: Session, holder: Holder) -> None:
    session.close()
    session.model.reclaim()
    session.model.leave(holder)


def text(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(4, 270, length).tolist()


def test_the_second_session_runs_what_is_new(model: Model, plain: Model) -> None:
    begin = text(0, 70)
    for number, reused in enumerate((0, 2 * PAGE_SIZE, 2 * PAGE_SIZE)):
        session, holder = joined(model)
        tokens = begin + text(number + 1, 10)
        np.testing.assert_array_equal(run(session, tokens), run(plain.session(), tokens))
        assert (holder.reused, session.length) == (reused, len(tokens))
        np.testing.assert_array_equal(run(session, [7, 8]), run(plain.session(), [*tokens, 7, 8]))  # it goes on
        leave(session, holder)


@pytest.mark.parametrize(("length", "kept"), [(2 * PAGE_SIZE, 1), (2 * PAGE_SIZE + 1, 1), (2 * PAGE_SIZE + 2, 2)])
def test_at_least_two_tokens_are_run(model: Model, plain: Model, length: int, kept: int) -> None:
    tokens = text(0, length)
    for reused in (0, kept * PAGE_SIZE):
        session, holder = joined(model)
        np.testing.assert_array_equal(run(session, tokens), run(plain.session(), tokens))
        assert holder.reused == reused


def test_others_find_nothing(model: Model) -> None:
    tokens = text(0, 80)
    for scope in ("ann", "bob", None, ""):
        session, holder = joined(model, scope)
        run(session, tokens)
        assert holder.reused == 0
        leave(session, holder)


def test_what_is_kept_is_never_written_to(model: Model, plain: Model) -> None:
    tokens = text(0, 2 * PAGE_SIZE)
    session, holder = joined(model)
    run(session, tokens)
    session.truncate(10)
    other = [*tokens[:10], *text(1, 60)]
    np.testing.assert_array_equal(run(session, other[10:]), run(plain.session(), other))
    second, second_holder = joined(model)
    np.testing.assert_array_equal(run(second, [*tokens, 9, 9]), run(plain.session(), [*tokens, 9, 9]))
    assert second_holder.reused == 2 * PAGE_SIZE
    assert holder.reused == 0


def test_a_session_that_fails_is_empty(model: Model) -> None:
    tokens = text(0, 80)
    session, holder = joined(model)
    run(session, tokens)
    leave(session, holder)
    free = model.cache.free
    session, holder = joined(model)

    def refuse(nbytes: int) -> None:
        if nbytes > 0:
            raise OutOfDeviceMemoryError("no more")

    holder.charge = refuse
    with pytest.raises(OutOfDeviceMemoryError):
        run(session, tokens)
    assert (session.length, session.pages, holder.reused) == (0, [], 0)
    with pytest.raises(ModelError):
        run(session, [10**6])
    steps = session.steps(tokens, None)
    steps.close()
    assert model.cache.free == free


@given(
    sessions=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, CONTEXT - 1), st.sampled_from(["ann", "bob"]), st.booleans()),
        max_size=8,
    )
)
def test_any_sessions(path: Path, cpu: Device, plain: Model, sessions: list[tuple[int, int, str, bool]]) -> None:
    """Three sit beside one another at most; what one of them gets to hold is what it is guaranteed, always."""
    with load_model(path, cpu, contexts=4, prefixes=1, deterministic=True) as model:
        assert model.prefixes is not None
        there: list[tuple[Session, Holder]] = []
        for seed, length, scope, stays in sessions:
            if len(there) == 3:
                leave(*there.pop(0))
            session, holder = joined(model, scope)
            tokens = text(seed, CONTEXT)[: length + 1]
            np.testing.assert_array_equal(run(session, tokens), run(plain.session(), tokens))
            assert holder.reused % PAGE_SIZE == 0
            assert holder.reused < len(tokens)
            assert len(model.prefixes) <= PAGES
            assert model.cache.owner.held == len(model.prefixes)
            if stays:
                there.append((session, holder))
            else:
                leave(session, holder)
        for each in there:
            leave(*each)
        assert model.cache.free == 4 * PAGES - len(model.prefixes)
        assert all(holder.held == 0 for _, holder in there)


def test_the_oldest_goes_first(model: Model) -> None:
    assert model.prefixes is not None
    for seed in (0, 1, 0, 2):  # of four pages each, of which eight are kept
        session, holder = joined(model)
        run(session, text(seed, 4 * PAGE_SIZE + 2))
        leave(session, holder)
    for seed, reused in ((0, 4), (2, 4), (1, 0)):
        session, holder = joined(model)
        run(session, text(seed, 4 * PAGE_SIZE + 2))
        assert holder.reused == reused * PAGE_SIZE
        leave(session, holder)


def test_guests(model: Model) -> None:
    def ask(prefixes: str | None, question: str) -> tuple[bytes, int]:
        out: list[bytes] = []
        arguments = ["--greedy", "--max-tokens", "8", "-p", "hello world " * 24 + question]
        options = {"models": {"default": model}, "args": arguments, "stdout": out.append, "trusted": True}
        with Guest(packaged.guest("chat"), prefixes=prefixes, **options) as guest:
            assert guest.run() == 0
            return b"".join(out), guest.reused_tokens

    alone, nothing = ask(None, "one")
    assert nothing == 0
    assert ask("ann", "one") == (alone, 0)
    again, reused = ask("ann", "one")
    assert again == alone
    assert reused >= PAGE_SIZE
    assert ask("ann", "two")[1] >= PAGE_SIZE
    assert ask("bob", "one") == (alone, 0)


@pytest.mark.parametrize("prefixes", [-1, 2])
def test_contexts_for_prefixes(path: Path, cpu: Device, prefixes: int) -> None:
    with pytest.raises(ModelError, match="0 to 1 are supported"):
        load_model(path, cpu, contexts=2, prefixes=prefixes)
