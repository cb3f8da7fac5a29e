"""What the host computes for a guest: it is charged to that guest, and does not hold up the others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from threading import Event, Thread

import numpy as np
import pytest

from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, Limits, load_model
from wasmetal.device import Device
from wasmetal.errors import LimitError
from wasmetal.host.errno import Errno
from wasmetal.models import Model

LOOPS = """(module
    (import "wasmetal_gpu" "counters_read" (func $read (param i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "spin") (loop (br 0)))
    (func (export "compute") (local $i i32)
        (loop $outer
            (drop (call $read (i32.const 128)))
            (local.set $i (i32.const 5000000))
            (loop $inner (br_if $inner (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
            (br $outer)))
    (func (export "call") (param $n i32)
        (loop $again
            (drop (call $read (i32.const 128)))
            (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cpu: Device) -> Iterator[Model]:
    with load_model(write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"), cpu) as model:
        yield model


def test_calls_are_charged(device: Device) -> None:
    with Guest(LOOPS.encode(), device=device) as guest:
        begin = time.monotonic()
        guest.call("call", 20_000)
        assert 0.2 * 20_000 * 1e-6 < guest.host_seconds < time.monotonic() - begin
        before = guest.host_seconds
        guest.stop()
        assert guest.host_seconds == before


def test_the_guest_s_own_code_is_not_charged(cpu: Device) -> None:
    with Guest(LOOPS.encode(), device=cpu, limits=Limits(wall_seconds=1)) as guest:
        before = time.process_time()
        with pytest.raises(LimitError, match="wall time"):
            guest.call("compute")
        assert guest.host_seconds < 0.5 * (time.process_time() - before)


def test_waiting_is_not_charged() -> None:
    code = """(module
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 500000000))
            (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"""
    with Guest(code.encode(), limits=Limits(host_seconds=0.2)) as guest:
        guest.run()
        assert guest.host_seconds < 0.1


def test_a_guest_is_stopped_at_its_limit(device: Device) -> None:
    with Guest(LOOPS.encode(), device=device, limits=Limits(host_seconds=0.2)) as guest:
        begin = time.monotonic()
        with pytest.raises(LimitError, match=r"0\.2 seconds of host time"):
            guest.call("call", 2**31 - 1)
        assert 0.2 < time.monotonic() - begin < 30


def test_short_runs_add_up(cpu: Device) -> None:
    with Guest(LOOPS.encode(), device=cpu, limits=Limits(host_seconds=0.05)) as guest:
        runs = (guest.call("call", 100) for _ in range(100_000))
        with pytest.raises(LimitError, match="host time"):
            list(runs)


def test_a_list_whose_last_command_is_wrong(cpu: Device) -> None:
    """It is refused as a whole, but what was recorded until then is charged: all of it, though the host looks at the
    clock between commands."""
    with Probe(cpu, pages=64, limits=Limits(host_seconds=0.5)) as probe:
        x = tensor(probe.share(), (4,))
        data = command(9, x, x, x).tobytes() * 2000 + command(99).tobytes()
        probe.put(8 * PAGE, data)
        calls = (probe.commands_submit(8 * PAGE, len(data), probe.OUT) for _ in range(1000))
        before = time.process_time()
        with pytest.raises(LimitError, match="host time"):
            assert set(calls) == {Errno.NOTSUP}
        assert probe.guest.host_seconds > 0.5 * (time.process_time() - before)


def hostile_calls(probe: Probe) -> dict[str, Callable[[], object]]:
    """Calls that cost the host as much as a call may."""
    size = 1 << 18
    probe.put(128, b"m")
    probe.model_open(128, 1, probe.OUT)
    model = probe.u32()
    x = tensor(probe.share(), (4,))
    list_ = command(9, x, x, x).tobytes() * 4000 + command(99).tobytes()
    texts, tokens, lists = 16 * PAGE, 32 * PAGE, 64 * PAGE
    probe.put(texts, b"1" * size)
    probe.put(tokens, np.zeros(size, np.uint32))
    probe.put(lists, list_)
    return {
        "tokenize": lambda: probe.model_tokenize(model, texts, size, 0, 0, 0, 16),
        "detokenize": lambda: probe.model_detokenize(model, tokens, size, 0, 0, 16),
        "vocabulary": lambda: probe.model_vocabulary(model, 0, 0, 16),
        "submit": lambda: probe.commands_submit(lists, len(list_), probe.OUT),
        "counters": lambda: probe.counters_read(128),
    }


@pytest.mark.parametrize("what", ["tokenize", "detokenize", "vocabulary", "submit", "counters"])
def test_other_guests_are_not_held_up(what: str, cpu: Device, model: Model) -> None:
    """Another guest's time limit holds, and its calls return, while one makes the dearest calls there are."""
    with (
        Probe(cpu, pages=256, maximum=256, models={"m": model}) as attacker,
        Guest(LOOPS.encode(), device=cpu, limits=Limits(wall_seconds=0.5)) as spinning,
        Guest(LOOPS.encode(), device=cpu) as calling,
    ):
        call = hostile_calls(attacker)[what]

        def attack() -> None:
            with contextlib.suppress(Exception):
                while True:
                    call()

        Thread(target=attack, daemon=True).start()
        time.sleep(0.2)
        begin = time.monotonic()
        with pytest.raises(LimitError, match="wall time"):
            spinning.call("spin")
        stopped = time.monotonic()
        calling.call("call", 200)
        called = time.monotonic()
        attacker.guest.stop()
    assert stopped - begin < 0.5 + 2
    assert called - stopped < 2


def test_threads_run_while_a_text_is_tokenized(model: Model) -> None:
    ticks: list[float] = []
    over = Event()

    def tick() -> None:
        while not over.wait(0.001):
            ticks.append(time.monotonic())

    ticking = Thread(target=tick)
    ticking.start()
    begin = time.monotonic()
    model.tokenizer.encode("1" * (1 << 21))
    end = time.monotonic()
    over.set()
    ticking.join()
    assert end - begin > 0.05
    assert sum(begin < at < end for at in ticks) > 5


def test_text_over_the_limit(cpu: Device, model: Model) -> None:
    with Probe(cpu, pages=64, maximum=64, models={"m": model}) as probe:
        probe.put(128, b"m")
        probe.model_open(128, 1, probe.OUT)
        handle, size = probe.u32(), (1 << 18) + 1
        assert probe.model_tokenize(handle, PAGE, size, 0, 0, 0, 16) == Errno.TOOBIG
        assert probe.model_detokenize(handle, PAGE, size, 0, 0, 16) == Errno.TOOBIG
        assert probe.model_apply_template(handle, PAGE, size, 0, 0, 0, 16) == Errno.TOOBIG
