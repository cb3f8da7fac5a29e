"""Guests in a process of their own: as useful as others, with the same errors, and harmless however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny
from tests.security.modules import functions
from wasmetal import Dir, Guest, Limits, Program, load_model
from wasmetal.device import Device
from wasmetal.errors import GuestError, GuestTrapError, LimitError, WasmetalError
from wasmetal.host import guest_process, isolated
from wasmetal.host.isolated import IsolatedGuest

GUESTS = Path(__file__).parents[2] / "guests"
DEVICES = ["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)]
COUNTER = b"""(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 2)
    (global $n (mut i32) (i32.const 0))
    (data (i32.const 0) "\\10\\00\\00\\00\\06\\00\\00\\00")
    (data (i32.const 16) "caf\\c3\\a9\\0a")
    (func (export "next") (result i32)
        (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))
    (func (export "pair") (param i64 f64) (result i64 f64) (local.get 0) (local.get 1))
    (func $f (export "reference") (result funcref) (ref.func $f))
    (func (export "trap") unreachable)
    (func (export "spin") (loop $l (br $l)))
    (func (export "exit") (param i32) (call $exit (local.get 0)))
    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
    (func $say (export "say") (param i32)
        (drop (call $write (local.get 0) (i32.const 0) (i32.const 1) (i32.const 8))))
    (func (export "_start")
        (loop $l (call $say (i32.const 1)) (br_if $l (i32.lt_u (global.get $n) (i32.const 0))))))"""
FLOOD = COUNTER.replace(b"(i32.lt_u (global.get $n) (i32.const 0))", b"(i32.const 1)")


def isolate(module: Any = COUNTER, **grants: Any) -> Guest:
    return Guest(module, isolation="process", **grants)


def process(guest: Guest) -> int:
    assert isinstance(guest, IsolatedGuest)
    return guest._process.worker._process.pid


def ended(pid: int) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


# ---- What it does


@pytest.mark.parametrize("device", DEVICES)
def test_a_guest_computes_without_copies(device: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(device)  # skips if there is none
    with isolate(GUESTS / "matmul.wasm", device=device) as guest:
        said = "".join(guest.stream())
        assert "16384 of 16384 elements right" in said
        assert guest.exit_code == 0
        assert guest.counters.bytes_copied == 0
        assert guest.counters.bytes_shared > 0
        assert guest.counters.dispatches > 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_guest_uses_models_by_path(device: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    request.getfixturevalue(device)
    path = tiny.write_tiny_llama(tmp_path / "tiny.gguf")
    arguments = ["--greedy", "--max-tokens", "5", "-p", "the world"]
    said = []
    for isolation in ("process", None):
        with Guest(
            GUESTS / "chat.wasm", device=device, models={"default": path}, args=arguments, isolation=isolation
        ) as guest:
            said.append(("".join(guest.stream()), guest.counters.bytes_copied, guest.counters.bytes_loaded))
    assert said[0] == said[1]


def test_calls_memory_and_programs() -> None:
    program = Program(COUNTER)
    with isolate(program) as one, isolate(program) as other:
        assert [one.call("next") for _ in range(3)] == [1, 2, 3]
        assert other.call("next") == 1
        assert one.call("pair", -(2**63), -0.5) == [-(2**63), -0.5]
        one.write(65530, b"\0\xffabc")
        assert one.read(65529, 7) == b"\0\0\xffabc\0"
        assert other.read(65530, 5) == bytes(5)
    assert process(one) != process(other)


@pytest.mark.slow
def test_large_modules_and_reads() -> None:
    with isolate(functions(3_000, exports=1)) as guest:
        guest.call("0")
    with isolate() as guest:
        assert guest.call("grow", 2000) == 2
        assert guest.read(0, 100 << 20)[16:20] == b"caf\xc3"


def test_output_goes_where_it_should() -> None:
    out, err = bytearray(), bytearray()
    with isolate(stdout=out.extend, stderr=err.extend) as guest:
        assert guest.run() == guest.exit_code == 0
        assert out == "café\n".encode()
        assert list(guest.stream()) == ["café\n"]
        guest.call("say", 2)
    assert (out, err) == ("café\n".encode(), "café\n".encode())


@pytest.mark.slow
def test_directories(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    module = b"""(module
        (import "wasi_snapshot_preview1" "path_create_directory" (func $make (param i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (data (i32.const 0) "new")
        (func (export "make") (param i32) (result i32) (call $make (local.get 0) (i32.const 0) (i32.const 3))))"""
    with isolate(module, dirs={"in": inside, "out": Dir(outside, read_only=True)}) as guest:
        assert guest.call("make", 3) == 0
        assert guest.call("make", 4) != 0
    assert (inside / "new").is_dir()
    assert not (outside / "new").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs seccomp")
def test_every_thread_of_the_process_is_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    # A library that starts threads when it is imported shows that the process was confined before.
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    with isolate(GUESTS / "matmul.wasm", device="cpu") as guest:
        guest.run()
        tasks = [task.read_text() for task in Path(f"/proc/{process(guest)}/task").glob("*/status")]
        assert tasks
        assert all("Seccomp:\t2\n" in task and "NoNewPrivs:\t1\n" in task for task in tasks)


# ---- Errors are those of other guests


def _call(name: str, *args: Any) -> Callable[[Guest], Any]:
    return lambda guest: guest.call(name, *args)


def _raise(data: bytes) -> None:
    raise ValueError("from a callback")


def _time_out(data: bytes) -> None:
    raise TimeoutError("from a callback")


ENDS: dict[str, tuple[dict[str, Any], Callable[[Guest], Any]]] = {
    "a trap": ({}, _call("trap")),
    "no function": ({}, _call("nothing")),
    "an exit": ({}, _call("exit", 3)),
    "wall time": ({"limits": Limits(wall_seconds=0.3)}, _call("spin")),
    "linear memory": ({"limits": Limits(memory_bytes=65536)}, _call("next")),
    "past the memory": ({}, lambda guest: guest.read(131070, 3)),
    "a write past the memory": ({}, lambda guest: guest.write(131070, b"abc")),
    "a callback's TimeoutError": ({"module": FLOOD, "stdout": _time_out}, lambda guest: guest.run()),
    "a callback's error": ({"module": FLOOD, "stdout": _raise}, lambda guest: guest.run()),
    "no directory": ({"dirs": {"d": "/nowhere/at/all"}}, _call("next")),
    "no model": ({"models": {"m": "/nowhere/model.gguf"}}, _call("next")),
    "no device": ({"device": "abacus"}, _call("next")),
    "no module": ({"module": b"(module (func)"}, _call("next")),
    "no import": ({"module": b'(module (import "e" "f" (func)))'}, _call("next")),
    "a trap at the start": ({"module": b"(module (func $f unreachable) (start $f))"}, _call("next")),
    "closed": ({}, lambda guest: (guest.close(), guest.call("next"))),
    "stopped": ({}, lambda guest: (guest.stop(), guest.call("next"))),
}


QUICK = ("a trap", "an exit", "wall time", "a callback's error", "no model", "closed")
ALL_ENDS = [
    pytest.param(*ends, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, ends in ENDS.items()
]


@pytest.mark.parametrize(("grants", "use"), ALL_ENDS)
def test_errors_are_the_same(grants: dict[str, Any], use: Callable[[Guest], Any]) -> None:
    raised = []
    for isolation in ("process", None):
        with pytest.raises((WasmetalError, ValueError, TimeoutError)) as caught:  # noqa: SIM117
            with Guest(**{"module": COUNTER, "device": None} | grants, isolation=isolation) as guest:
                use(guest)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


def test_a_guest_goes_on_after_a_trap_and_not_after_a_limit() -> None:
    with isolate(limits=Limits(wall_seconds=1.0)) as guest:
        with pytest.raises(GuestTrapError):
            guest.call("trap")
        assert guest.call("next") == 1
        with pytest.raises(LimitError, match=r"^limit reached: 1 seconds of wall time$"):
            guest.call("spin")
        with pytest.raises(GuestError, match=r"^the guest cannot go on after this: limit reached: 1 seconds"):
            guest.call("next")


def test_what_cannot_travel(cpu: Device, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"^an isolated guest opens a device for itself; name it, for example"):
        isolate(device=cpu)
    path = tiny.write_tiny_llama(tmp_path / "tiny.gguf")
    with (
        load_model(path, cpu, trusted=True) as model,
        pytest.raises(GuestError, match=r"give the name or path of model 'm'$"),
    ):
        isolate(device="cpu", models={"m": model})
    with isolate() as guest, pytest.raises(GuestError, match=r"^the result of 'reference' is a reference"):
        guest.call("reference")
    with isolate() as guest:
        with pytest.raises(GuestError, match=r"^an argument of 'exit' is no number"):
            guest.call("exit", "3")  # type: ignore[arg-type]
        with pytest.raises(GuestError):
            guest.call("exit", 2**70)
        assert guest.call("next") == 1
    with pytest.raises(GuestError, match=r"^isolation is 'thread'; it must be 'process' or None$"):
        Guest(COUNTER, isolation="thread")  # type: ignore[arg-type]


# ---- Bad ends


def test_a_process_that_hangs_is_killed_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a driver did not return."""
    monkeypatch.setattr(guest_process, "GRACE_SECONDS", 1.0)
    with isolate() as other, isolate(limits=Limits(wall_seconds=0.5)) as guest:
        os.kill(process(guest), signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(LimitError, match=r"^limit reached: 0.5 seconds of wall time$"):
            guest.call("spin")
        assert time.monotonic() - began < 10
        assert ended(process(guest))
        assert other.call("next") == 1


def test_a_process_that_dies_is_one_guests_error() -> None:
    with isolate() as other, isolate() as guest:
        threading.Timer(0.3, os.kill, (process(guest), signal.SIGKILL)).start()
        with pytest.raises(GuestError, match=r"^the guest's process was ended by SIGKILL$"):
            guest.call("spin")
        with pytest.raises(GuestError, match=r"^the guest cannot go on after this: the guest's process was ended by"):
            guest.call("next")
        assert other.call("next") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not limit memory")
def test_the_system_limits_the_memory_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(limits=Limits(memory_bytes=2**70, device_bytes=2**70)).close()
    limits = Limits(memory_bytes=1 << 30, device_bytes=0)
    with isolate(limits=limits) as guest:
        assert guest.call("grow", 8000) == 2
    monkeypatch.setattr(isolated, "HOST_BYTES", -(1 << 30) + (100 << 20))  # 100 MiB in all
    with isolate(limits=limits) as guest:
        assert guest.call("grow", 8000) == -1
        assert guest.call("next") == 1


def test_a_model_whose_template_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nest = "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}"
    loop = "{% for i in range(60) %}" + nest + "{% endfor %}"
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", "{% set ns = namespace(x=[0], y=[0]) %}" + loop + "{{ ns.x == ns.y }}")
    monkeypatch.setattr(guest_process, "GRACE_SECONDS", 1.0)
    path = tiny.write_tiny_llama(tmp_path / "bomb.gguf")
    began = time.monotonic()
    with isolate(
        GUESTS / "chat.wasm",
        device="cpu",
        models={"default": path},
        args=["-p", "hello"],
        limits=Limits(wall_seconds=1.0),
    ) as guest:
        with pytest.raises(LimitError, match="limit reached: 1 seconds of wall time"):
            guest.run()
        assert time.monotonic() - began < 60
        assert ended(process(guest))


LIES: dict[str, list[dict[str, Any]]] = {
    "nothing": [{}],
    "no counters": [{"value": 0}],
    "odd counters": [{"value": 0, "counters": {"bribes": 3}}],
    "no exit code": [{"value": "x", "counters": {}}],
    "an odd output": [{"output": ["stdout"]}, {}],
    "an odd error": [{"error": ["LimitError"], "message": "m", "counters": {}}],
    "an error of Python": [{"error": "SystemExit", "message": "m", "counters": {}}],
    "an odd message": [{"error": "LimitError", "message": 5, "counters": {}}],
}


@pytest.mark.parametrize("lies", LIES.values(), ids=LIES)
def test_a_process_that_lies(lies: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """As one might that a guest has taken over."""
    with isolate() as guest:
        assert isinstance(guest, IsolatedGuest)
        answers = iter(lies)
        monkeypatch.setattr(guest._process.worker.channel, "receive", lambda *_, **__: (next(answers), bytearray(b"x")))
        with pytest.raises(GuestError):
            guest.run()


# ---- Threads, callbacks, ends


def test_stopping_from_another_thread() -> None:
    with isolate() as guest:
        threading.Timer(0.3, guest.stop).start()
        with pytest.raises(GuestError, match=r"^the guest was stopped$"):
            guest.call("spin")


def test_closing_from_another_thread() -> None:
    with isolate() as guest:
        threading.Timer(0.3, guest.close).start()
        with pytest.raises(GuestError, match=r"^the guest was closed$"):
            guest.call("spin")
    assert ended(process(guest))


def test_one_call_at_a_time() -> None:
    said: list[str] = []

    def again(data: bytes) -> None:
        with pytest.raises(GuestError, match=r"^the guest is running already; a guest runs one call at a time$"):
            guest.call("next")
        said.append(data.decode())

    with isolate(stdout=again) as guest:
        guest.run()
    assert said == ["café\n"]


def test_closing_in_a_callback() -> None:
    with isolate(FLOOD, stdout=lambda data: guest.close()) as guest:
        with pytest.raises(GuestError, match=r"^the guest was closed$"):
            guest.run()
        assert ended(process(guest))


def test_a_reader_that_leaves_and_one_that_is_slow() -> None:
    with isolate(FLOOD) as guest:
        for text in guest.stream():
            assert text == "café\n"
            break
        with pytest.raises(GuestError, match="cannot go on after this: the guest's output is no longer read"):
            guest.run()
    with isolate(FLOOD, limits=Limits(wall_seconds=1.0)) as guest:
        stream = guest.stream()
        next(stream)
        time.sleep(1.5)
        with pytest.raises(LimitError):
            list(stream)


def test_a_forked_process_leaves_the_guest_alone() -> None:
    script = (
        "import os, sys; sys.path[:0] = sys.argv[1:]\n"
        "from tests.security.test_isolation import *\n"
        "with isolate() as guest:\n"
        "    guest.call('next')\n"
        "    forked = os.fork()\n"
        "    if not forked:\n"
        "        try: guest.call('next')\n"
        "        except WasmetalError as error: print(type(error).__name__, flush=True)\n"
        "        guest.close()\n"
        "        guest.__del__()\n"
        "        os._exit(0)\n"
        "    os.waitpid(forked, 0)\n"
        "    print(guest.call('next'))\n"
    )
    command = [sys.executable, "-c", script, *sys.path]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout == "ForkedError\n2\n"


def test_a_guest_that_is_dropped() -> None:
    guest = isolate()
    pid = process(guest)
    del guest
    assert ended(pid)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_ends_with_its_parent(how: signal.Signals) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tests.security.test_isolation import *\n"
        "with isolate() as guest:\n"
        "    print(process(guest), flush=True)\n"
        "    guest.call('spin')\n"
    )
    command = [sys.executable, "-c", script, *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stderr
        line = parent.stdout.readline()
        assert line, parent.stderr.read()
        time.sleep(0.5)
        parent.send_signal(how)
        parent.wait(20)
        assert ended(int(line))
        assert ("KeyboardInterrupt" in parent.stderr.read()) == (how is signal.SIGINT)
