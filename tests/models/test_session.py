"""Sessions: what they share, what they keep apart, and what survives saving. "Equal" means bit for bit."""

import gc
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.device.harness import spent_time
from tests.models.oracle import relative_error
from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device
from wasmetal.errors import ModelError, OpError, OutOfDeviceMemoryError
from wasmetal.kernels.reference import KERNELS
from wasmetal.models import Model, Session, load_model
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.lm.kv_cache import PAGE_SIZE, KVCache
from wasmetal.ops import DType, Tensor

PROMPT = list(range(10, 50))  # one whole page and a part of the next


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("session") / "tiny.gguf", qtype="Q8_0")


@pytest.fixture
def model(device: Device, path: Path) -> Iterator[Model]:
    with load_model(path, device, kv_type="f32") as model:
        yield model


@pytest.fixture
def on_cpu(cpu: Device, path: Path) -> Iterator[Model]:
    with load_model(path, cpu) as model:
        yield model


def step(session: Session, *tokens: int) -> NDArray[np.float32]:
    """The logits after some more tokens."""
    logits = session.model.logits()
    session.forward(tokens, logits)
    return logits.buffer.view().view(np.float32).copy()


def free(model: Model) -> int:
    return model.cache.free


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_forward_that_failed_is_no_concern_of_the_next(
    path: Path, reference: Device, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Interrupted or failed in the middle of the forward pass, in lists that the next one uses again."""
    rope, faults = KERNELS["rope"], [error]

    def interrupted(*args: Any) -> Any:
        run = rope(*args)

        def either() -> None:
            if faults:
                raise faults.pop()
            run()

        return either

    monkeypatch.setitem(KERNELS, "rope", interrupted)
    with load_model(path, reference) as model, model.session() as session:
        logits = model.logits()
        with pytest.raises(error):
            session.forward(PROMPT, logits)
        assert session.length == 0
        session.forward(PROMPT, logits)
        monkeypatch.undo()
        with model.session() as other:
            assert np.array_equal(logits.numpy(), step(other, *PROMPT))


def test_a_fork_goes_its_own_way(model: Model) -> None:
    with model.session() as straight, model.session() as parent:
        straight.forward(PROMPT, None)
        parent.forward(PROMPT, None)
        held = free(model)
        with parent.fork() as child, parent.fork() as grandchild:
            assert free(model) == held  # nothing is copied yet
            assert child.length == len(PROMPT)
            other = step(child, 100)
            assert free(model) == held - 1  # the page that was partly full
            expected = step(straight, 5)
            np.testing.assert_array_equal(step(parent, 5), expected)
            np.testing.assert_array_equal(step(grandchild, 5), expected)
            assert not np.array_equal(other, expected)
            expected = step(straight, 6)
            np.testing.assert_array_equal(step(grandchild, 6), expected)
            np.testing.assert_array_equal(step(parent, 6), expected)


def test_a_fork_outlives_its_parent(model: Model) -> None:
    with model.session() as straight:
        straight.forward(PROMPT, None)
        expected = step(straight, 5)
        parent = model.session()
        parent.forward(PROMPT, None)
        with parent.fork() as child:
            parent.close()
            with model.session() as other:  # takes the pages that were given back
                other.forward(PROMPT[::-1], None)
                np.testing.assert_array_equal(step(child, 5), expected)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 40])
def test_truncate(model: Model, length: int) -> None:
    with model.session() as straight, model.session() as session:
        straight.forward(PROMPT[:length], None) if length else None
        # The same chunks on both sides, so that the same kernels made the keys and values.
        session.forward(PROMPT[:length], None) if length else None
        session.forward(range(60, 100), None)
        session.truncate(length)
        assert session.length == length
        assert len(session.pages) == -(-length // PAGE_SIZE)
        np.testing.assert_array_equal(step(session, 7, 8), step(straight, 7, 8))


def test_truncating_a_fork_leaves_the_parent(model: Model) -> None:
    with model.session() as straight, model.session() as parent:
        for session in (straight, parent):
            session.forward(PROMPT, None)
        with parent.fork() as child:
            child.truncate(10)
            step(child, *range(200, 230))  # writes where the parent's tokens are
        np.testing.assert_array_equal(step(parent, 5), step(straight, 5))


def test_save_and_restore(model: Model) -> None:
    with model.session() as session, model.session() as other:
        session.forward(PROMPT, None)
        copied = model.device.counters.bytes_copied
        state = session.save()
        rows = 2 * 2 * len(PROMPT) * 2 * 16 * 4  # layers, keys and values, positions, heads, elements, bytes
        assert model.device.counters.bytes_copied == copied + rows
        assert len(state) < rows + 100
        expected = step(session, 5)
        other.forward([1, 2, 3], None)
        other.restore(state)
        assert model.device.counters.bytes_copied == copied + 2 * rows
        assert other.length == len(PROMPT)
        np.testing.assert_array_equal(step(other, 5), expected)
        session.restore(state)
        np.testing.assert_array_equal(step(session, 5), expected)


def test_pages_that_are_scattered(model: Model) -> None:
    with model.session() as straight, model.session() as parent, model.session() as other:
        straight.forward(PROMPT, None)
        parent.forward(PROMPT, None)
        with parent.fork() as child:
            for session in (straight, child):
                session.forward([4] * 40, None)
            assert np.diff(child.pages).tolist() != [1, 1]
            state = child.save()
            assert state == straight.save()
            expected = step(straight, 5)
            np.testing.assert_array_equal(step(child, 5), expected)
            child.restore(state)
            other.restore(state)
            for session in (child, other):
                np.testing.assert_array_equal(step(session, 5), expected)


def test_an_empty_session_can_be_saved(on_cpu: Model) -> None:
    with on_cpu.session() as session, on_cpu.session() as other:
        other.forward(PROMPT, None)
        other.restore(session.save())
        assert other.length == 0
        np.testing.assert_array_equal(step(other, 5), step(session, 5))


@pytest.mark.vulkan
def test_a_state_moves_between_devices(cpu: Device, vulkan: Device, path: Path) -> None:
    here, there = load_model(path, cpu), load_model(path, vulkan, kv_type="f32")
    with here, there, here.session() as session, there.session() as moved:
        session.forward(PROMPT, None)
        moved.restore(session.save())
        assert relative_error(step(moved, 5), step(session, 5)) < 1e-5


@given(data=st.data())
def test_a_damaged_state_is_refused_and_nothing_changes(on_cpu: Model, data: st.DataObject) -> None:
    with on_cpu.session() as session, on_cpu.session() as other:
        if data.draw(st.booleans(), "some tokens"):
            session.forward([4, 5, 6], None)
        other.forward([7, 8], None)
        state = bytearray(session.save())
        if data.draw(st.booleans(), "cut"):
            state = state[: data.draw(st.integers(0, len(state) - 1), "length")]
        else:
            at = data.draw(st.integers(0, min(80, len(state) - 1)) | st.integers(0, len(state) - 1), "at")
            state[at] ^= data.draw(st.integers(1, 255), "flip")
        held = free(on_cpu)
        with pytest.raises(ModelError, match="saved"):
            other.restore(bytes(state))
        assert (other.length, free(on_cpu)) == (2, held)


def test_a_state_of_another_model_is_refused(on_cpu: Model, cpu: Device, tmp_path: Path) -> None:
    other = load_model(write_tiny_llama(tmp_path / "tiny.gguf", qtype="Q8_0", seed=1), cpu)
    with other, on_cpu.session() as session, other.session() as elsewhere:
        session.forward(PROMPT, None)
        with pytest.raises(ModelError, match="saved with another model than tiny"):
            elsewhere.restore(session.save())


def test_a_state_longer_than_the_context_is_refused(on_cpu: Model, cpu: Device, path: Path) -> None:
    with load_model(path, cpu, context=39) as small, on_cpu.session() as session, small.session() as other:
        session.forward(PROMPT, None)
        with pytest.raises(ModelError, match="the saved session has 40 tokens; the context holds 39"):
            other.restore(session.save())


@pytest.mark.parametrize("tokens", [[-1], [4, 274], [2**40]])
def test_unknown_tokens(on_cpu: Model, tokens: list[int]) -> None:
    with on_cpu.session() as session, pytest.raises(ModelError, match=f"token {tokens[-1]} is not in the vocabulary"):
        session.forward(tokens, None)


def test_no_tokens(on_cpu: Model) -> None:
    with on_cpu.session() as session, pytest.raises(ModelError, match="at least one token"):
        session.forward([], None)


def test_the_context_ends(on_cpu: Model) -> None:
    with on_cpu.session() as session:
        session.forward([4] * 255, None)
        with pytest.raises(ModelError, match=r"255 \+ 2 tokens are more than the context of 256"):
            session.forward([4, 5], None)
        step(session, 4)
        assert session.length == 256


def test_the_cache_is_full_and_nothing_changes(model: Model) -> None:
    """Two whole contexts fit. The third session is refused, cleanly, until another one gives way."""
    with model.session() as one, model.session() as two, model.session() as three, model.session() as straight:
        straight.forward(PROMPT, None)
        expected = step(straight, 5)
        straight.truncate(0)
        one.forward([4] * 256, None)
        two.forward([4] * 200, None)
        three.forward(PROMPT[:30], None)
        state = one.save()
        with pytest.raises(OutOfDeviceMemoryError, match=r"no room for 64 more tokens \(0 of 512 are free\)"):
            three.forward([4] * 60, None)
        with pytest.raises(OutOfDeviceMemoryError, match=r"no room for 224 more tokens \(0 of 512 are free\)"):
            three.restore(state)
        assert (three.length, len(three.pages)) == (30, 1)
        with three.fork() as child, pytest.raises(OutOfDeviceMemoryError, match="no room for 32 more tokens"):
            child.forward([4], None)  # there is no page for the copy that it needs
        one.restore(state)  # in the place of what it holds
        two.truncate(100)
        three.truncate(0)
        three.forward(PROMPT, None)
        np.testing.assert_array_equal(step(three, 5), expected)


def test_sessions_that_nobody_holds_give_back_their_pages(on_cpu: Model) -> None:
    everything = free(on_cpu)
    session = on_cpu.session()
    session.forward(PROMPT, None)
    child = session.fork()
    assert free(on_cpu) == everything - 2
    del session
    gc.collect()
    assert free(on_cpu) == everything - 2
    del child
    gc.collect()
    assert free(on_cpu) == everything


def test_closing(cpu: Device, path: Path) -> None:
    model = load_model(path, cpu)
    session, logits = model.session(), model.logits()
    with session:
        session.forward(PROMPT, logits)
    session.close()
    with pytest.raises(ModelError, match="this session is closed"):
        session.forward([4], None)
    assert free(model) == 16
    other = model.session()
    model.close()
    model.close()
    for use in (other.fork, other.save, lambda: other.forward([4], None), lambda: other.truncate(0)):
        with pytest.raises(ModelError, match="this session is closed"):
            use()
    with pytest.raises(ModelError, match="the model tiny is closed"):
        model.session()


def test_one_submission_per_forward_and_no_copies(model: Model) -> None:
    with model.session() as session:
        logits = model.logits()
        session.forward(PROMPT, logits)
        session.forward([4], logits)
        counters = model.device.counters
        before = (counters.submits, counters.bytes_copied, counters.bytes_loaded, counters.bytes_shared)
        for token in range(4, 14):
            session.forward([token], logits)
        after = (counters.submits, counters.bytes_copied, counters.bytes_loaded, counters.bytes_shared)
        assert after == (before[0] + 10, *before[1:])
        assert session.counters.submits == 12
        assert spent_time(model.device, session.counters.device_seconds)
        assert session.counters.device_seconds <= counters.device_seconds


def test_logits_go_where_the_caller_says(model: Model) -> None:
    with model.session() as session, model.session() as same:
        one, two = model.logits(), model.logits()
        views = [t.buffer.view().view(np.float32) for t in (one, two)]
        session.forward(PROMPT, one)
        session.forward([5], two)
        assert not np.array_equal(*views)
        first = views[0].copy()
        same.forward(PROMPT, two)
        np.testing.assert_array_equal(views[1], first)


def test_logits_of_another_kind_are_refused(on_cpu: Model) -> None:
    buffer = on_cpu.device.allocate(4096)
    with on_cpu.session() as session:
        for wrong in (Tensor(buffer, 0, DType.F32, (273,)), Tensor(buffer, 0, DType.I32, (274,))):
            with pytest.raises(OpError):
                session.forward(PROMPT, wrong)
        assert (session.length, session.pages) == (0, [])


def test_threads_do_not_disturb_each_other(model: Model) -> None:
    def decode(session: Session, out: list[NDArray[np.float32]]) -> None:
        for token in PROMPT[:20]:
            out.append(step(session, token))

    with model.session() as session:
        expected: list[NDArray[np.float32]] = []
        decode(session, expected)
    results: list[list[NDArray[np.float32]]] = [[], [], []]
    sessions = [model.session() for _ in results]
    threads = [threading.Thread(target=decode, args=pair) for pair in zip(sessions, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


# --- The pool


@settings(max_examples=200)
@given(data=st.data())
def test_pages_are_counted(cpu: Device, data: st.DataObject) -> None:
    """Whatever holders do, a page is free exactly while none holds it, and a new page is nobody else's."""
    total = 12
    cache = KVCache(BufferGroup(cpu), 1, 1, 4, total)
    holders: list[list[int]] = [[], [], []]
    for _ in range(data.draw(st.integers(1, 20), "operations")):
        holder = data.draw(st.sampled_from(holders), "holder")
        match data.draw(st.sampled_from(["extend", "share", "release", "grow"]), "operation"):
            case "extend":
                count = data.draw(st.integers(0, 5), "count")
                before, others = list(holder), {page for other in holders for page in other}
                if count > total - len(others):
                    with pytest.raises(OutOfDeviceMemoryError):
                        cache.extend(holder, count)
                    assert holder == before
                else:
                    cache.extend(holder, count)
                    assert holder[: len(before)] == before
                    assert len(set(holder[len(before) :]) - others) == count
            case "share":
                holders.append(cache.share(holder))
            case "release":
                cache.release(holder, keep=data.draw(st.integers(0, len(holder)), "keep"))
            case "grow" if holder:
                # The next token goes to a place in the last page, so nobody else may hold that page afterwards.
                before = list(holder)
                needed = sum(holder[-1] in other for other in holders) > 1
                if needed > cache.free:
                    with pytest.raises(OutOfDeviceMemoryError):
                        cache.grow(holder, PAGE_SIZE * len(holder) - 1, 1)
                else:
                    growth = cache.grow(holder, PAGE_SIZE * len(holder) - 1, 1)
                    assert holder == before
                    if data.draw(st.booleans(), "adopt"):
                        cache.adopt(holder, growth)
                        assert sum(holder[-1] in other for other in holders) == 1
                    else:
                        cache.discard(growth)
                        assert holder == before
        assert cache.owner.held == total - cache.free
        assert cache.free == total - len({page for other in holders for page in other})


def test_sessions_that_grow_in_turn_stay_contiguous(cpu: Device) -> None:
    cache = KVCache(BufferGroup(cpu), 1, 1, 4, 16)
    one: list[int] = []
    two: list[int] = []
    for _ in range(8):
        cache.extend(one, 1)
        cache.extend(two, 1)
    assert (one, two) == (list(range(8)), list(range(8, 16)))


@pytest.mark.parametrize("begin", [0, 31, 32, 45, 64])
def test_rows_are_appended_where_others_ended(model: Model, begin: int) -> None:
    """Also to a session whose last page is shared, which is then copied."""
    tokens = [int(token) for token in np.random.default_rng(begin).integers(0, 200, 70)]
    with model.session() as whole, model.session() as short:
        whole.forward(tokens, None)
        if begin:
            short.forward(tokens[:begin], None)
        shared = short.fork()
        before = [rows.tobytes() for rows in shared.rows(0, [begin])]
        cuts = [begin, 66, 67, 70] if begin < 66 else [begin, 70]
        blocks = [rows.reshape(-1) for rows in whole.rows(begin, [end - some for some, end in pairwise(cuts)])]
        short.append_rows([blocks[:2], blocks[2:]] if len(blocks) > 2 else [blocks], 70 - begin, model.cache.dtype)
        assert short.length == 70
        assert (short.rows(begin, [70 - begin])[0] == whole.rows(begin, [70 - begin])[0]).all()
        assert [rows.tobytes() for rows in shared.rows(0, [begin])] == before
        logits = [model.logits() for _ in range(2)]
        for session, out in zip((short, whole), logits, strict=True):
            session.forward([5], out)
        if begin == 0:  # bit for bit the same session; else its beginning was computed in other batches
            assert (logits[0].buffer.view() == logits[1].buffer.view()).all()
        with pytest.raises(ModelError, match="are not the keys and values of 2 tokens"):
            short.append_rows([[rows.reshape(-1) for rows in whole.rows(0, [3])]], 2, model.cache.dtype)
        with pytest.raises(ModelError, match="of 1 tokens are missing"):
            short.append_rows([[rows.reshape(-1) for rows in whole.rows(0, [1])]], 2, model.cache.dtype)
        assert short.length == 71
        with pytest.raises(ModelError, match="more than the context"):
            short.append_rows([[np.zeros(300 * model.cache.position_bytes, np.uint8)]], 300, model.cache.dtype)
        with pytest.raises(ModelError, match="of a session of"):
            whole.rows(0, [1000])
