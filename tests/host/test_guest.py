"""The Guest class: modules, capabilities, streams, and how a run ends."""

from __future__ import annotations

import _thread
import contextlib
import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import wasmtime

import wasmetal
from tests.host.probe import PAGE, Probe, command, tensor
from wasmetal import Guest, Limits
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.errors import GuestError, GuestTrapError, MemoryRefusedError
from wasmetal.host import abi
from wasmetal.host.errno import Errno

WASI = "wasi_snapshot_preview1"


def wasi(functions: dict[str, int], body: str) -> bytes:
    """A module that imports WASI functions of so many i32 parameters."""
    imports = [
        f'(import "{WASI}" "{name}" (func ${name} (param {"i32 " * count}) (result i32)))'
        for name, count in functions.items()
    ]
    return f'(module {" ".join(imports)} (memory (export "memory") 1) {body})'.encode()


def writer(*texts: bytes, fd: int = 1, then: str = "") -> bytes:
    """Writes the texts, one call each."""
    data, calls, at = [], [], 256
    for text in texts:
        escaped = "".join(f"\\{byte:02x}" for byte in text)
        data.append(f'(data (i32.const {at}) "{escaped}")')
        calls.append(
            f"(i32.store (i32.const 0) (i32.const {at})) (i32.store (i32.const 4) (i32.const {len(text)}))"
            f"(drop (call $fd_write (i32.const {fd}) (i32.const 0) (i32.const 1) (i32.const 8)))"
        )
        at += len(text)
    return wasi({"fd_write": 4}, f'{" ".join(data)} (func (export "_start") {" ".join(calls)} {then})')


SPIN = b'(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'


def test_the_public_names() -> None:
    for name in wasmetal.__all__:
        assert getattr(wasmetal, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        wasmetal.nothing  # noqa: B018


# ---- Modules


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"", "guest is not a WebAssembly module"),
        (b"MZ\x90", "not a WebAssembly module"),
        (b"\0asm\x0d\0\x01\0", "component that exports no wasi:cli/run"),
        (b"\0asm\x01\0\0\0\x0d", "unexpected end"),
        (b"(module (func)", "expected"),
        (b'(module (import "env" "f" (func)))', "env::f"),
        (b'(module (import "wasmetal_gpu" "submission_wait" (func (param i32))))', "incompatible import type"),
        (b"(module (memory i64 0 0x1000000000000) (memory 70000))", "memory"),
    ],
)
def test_what_is_no_module_for_us(code: bytes, message: str) -> None:
    with pytest.raises(GuestError, match=message) as error:
        Guest(code, device="cpu")
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"cannot read .*No such file"):
        Guest(tmp_path / "none.wasm")


def test_a_file_and_its_name(tmp_path: Path) -> None:
    code = wasi(
        {"args_get": 2, "fd_write": 4},
        """(func (export "_start")
            (drop (call $args_get (i32.const 64) (i32.const 128)))
            (i32.store (i32.const 0) (i32.const 128)) (i32.store (i32.const 4) (i32.const 10))
            (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))""",
    )
    path = tmp_path / "my.wat"
    path.write_bytes(code)
    with Guest(path, args=["-v", "x"]) as guest:
        assert "".join(guest.stream()) == "my.wat\0-v\0"


def test_a_guest_without_our_imports_opens_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_DEVICE", "no such device")
    with Guest(b'(module (func (export "_start")))') as guest:
        assert guest.run() == 0


def test_an_open_device_stays_open() -> None:
    with CpuDevice() as device:
        with Probe(device) as probe:
            probe.share()
        with Probe(device) as probe:
            x = tensor(probe.share(), (4,))
            probe.run(command(9, x, x, x))


# ---- Capabilities: nothing is granted by default


def test_no_arguments_environment_input_or_directories() -> None:
    names = {"args_sizes_get": 2, "environ_sizes_get": 2, "fd_prestat_get": 2, "fd_read": 4}
    code = wasi(
        names,
        """
        (func (export "args") (result i32)
            (drop (call $args_sizes_get (i32.const 0) (i32.const 4))) (i32.load (i32.const 0)))
        (func (export "environ") (result i32)
            (drop (call $environ_sizes_get (i32.const 0) (i32.const 4))) (i32.load (i32.const 0)))
        (func (export "directory") (result i32) (call $fd_prestat_get (i32.const 3) (i32.const 0)))
        (func (export "read") (result i32)
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 8))
            (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
            (i32.load (i32.const 16)))""",
    )
    with Guest(code) as guest:
        assert guest.call("args") == 1  # its own name
        assert guest.call("environ") == 0
        assert guest.call("directory") == Errno.BADF
        assert guest.call("read") == 0
    with Guest(code, args=["a"], env={"A": "1", "B": "2"}, stdin=b"hello", dirs={"/d": "."}) as guest:
        assert guest.call("args") == 2
        assert guest.call("environ") == 2
        assert guest.call("directory") == 0
        assert guest.call("read") == 5
    given = iter([b"he", b"longer than the guest asked for", b""])
    with Guest(code, stdin=lambda most: next(given)) as guest:
        assert [guest.call("read") for _ in range(3)] == [2, 8, 0]
        with pytest.raises(StopIteration):
            guest.call("read")
    with pytest.raises(GuestError, match="input is bytes"):
        Guest(code, stdin=lambda most: b"", isolation="process")


def test_a_directory_is_all_that_can_be_seen(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "file").write_text("in")
    (tmp_path / "secret").write_text("out")
    code = f"""(module
        (import "{WASI}" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "file") (data (i32.const 16) "../secret") (data (i32.const 32) "/etc/passwd")
        (func (export "open") (param i32 i32) (result i32)
            (call $open (i32.const 3) (i32.const 0) (local.get 0) (local.get 1)
                (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 128))))"""
    with Guest(code.encode(), dirs={"/here": inside}) as guest:
        assert guest.call("open", 0, 4) == 0
        assert guest.call("open", 16, 9) != 0
        assert guest.call("open", 32, 11) != 0


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="cannot grant directory"):
        Guest(SPIN, dirs={"/d": tmp_path / "none"})


# ---- Streams


def test_output_goes_nowhere_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    for fd in (1, 2):
        with Guest(writer(b"text", fd=fd)) as guest:
            assert guest.run() == 0
    assert capfd.readouterr() == ("", "")


def test_callbacks_get_what_is_written() -> None:
    out: list[bytes] = []
    for fd, name in ((1, "stdout"), (2, "stderr")):
        with Guest(writer(b"one", b"two", fd=fd), **{name: out.append}) as guest:
            guest.run()
    assert out == [b"one", b"two"] * 2


@pytest.mark.parametrize("then", ["(loop (br 0))", ""], ids=["it goes on", "it ends"])
def test_a_failing_callback_stops_the_guest(then: str) -> None:
    def fail(data: bytes) -> None:
        raise BrokenPipeError("no reader")

    with Guest(writer(b"text", then=then), stdout=fail) as guest, pytest.raises(BrokenPipeError):
        guest.run()


def test_stream_gives_text_as_it_is_written() -> None:
    euro = "€".encode()
    with Guest(writer(b"a", euro[:1], euro[1:] + b"b", b"\xff", euro[:2])) as guest:
        assert list(guest.stream()) == ["a", "€b", "\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}"]
        assert guest.exit_code == 0


def test_stream_is_live() -> None:
    """The text arrives while the guest still runs."""
    with Guest(writer(b"first", then="(loop (br 0))"), limits=Limits(wall_seconds=30)) as guest:
        stream = guest.stream()
        assert next(stream) == "first"
        stream.close()


def test_a_stream_that_nobody_reads_holds_the_guest_up() -> None:
    """Instead of filling the host's memory. The guest counts its writes."""
    code = wasi(
        {"fd_write": 4},
        """(global $count (export "count") (mut i32) (i32.const 0))
        (func (export "_start")
            (i32.store (i32.const 4) (i32.const 1000))
            (loop $again
                (global.set $count (i32.add (global.get $count) (i32.const 1)))
                (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                (br $again)))""",
    )
    with Guest(code) as guest:
        stream = guest.stream()
        next(stream), next(stream)
        time.sleep(0.3)  # for the guest to write far too much in
        stream.close()
        count = guest._instance.exports(guest._store)["count"]
        assert isinstance(count, wasmtime.Global)
        assert 1 < count.value(guest._store) < 100


def test_stream_tells_of_a_failure() -> None:
    code = f"""(module (import "{WASI}" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
        (func (export "_start") (call $exit (i32.const 3))))""".encode()
    with Guest(code) as guest, pytest.raises(GuestError, match="exit code 3"):
        list(guest.stream())
    with Guest(b'(module (func (export "_start") unreachable))') as guest, pytest.raises(GuestTrapError):
        list(guest.stream())


# ---- How a run ends


def test_exit_codes() -> None:
    for code in (0, 1, 125):
        text = f"""(module (import "{WASI}" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const {code}))))"""
        with Guest(text.encode()) as guest:
            assert guest.run() == code == guest.exit_code


def test_an_exit_code_that_wasi_does_not_know() -> None:
    text = f"""(module (import "{WASI}" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
        (func (export "_start") (call $exit (i32.const -1))))"""
    with Guest(text.encode()) as guest, pytest.raises(GuestError, match=r"^exit with invalid exit status"):
        guest.run()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("unreachable", "the guest trapped in stumble: wasm `unreachable` instruction executed"),
        ("(drop (i32.load (i32.const -1)))", "stumble: .*out of bounds memory access"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "stumble: .*integer divide by zero"),
        ("(call $stumble)", "call stack exhausted"),
    ],
)
def test_traps_are_one_line(body: str, message: str) -> None:
    code = f'(module (memory 1) (func $stumble {body}) (func (export "f") (call $stumble)))'.encode()
    with Guest(code) as guest, pytest.raises(GuestTrapError, match=message) as error:
        guest.call("f")
    assert "\n" not in str(error.value)


def test_a_guests_names_cannot_control_a_terminal() -> None:
    name = "\\1b[2J\\n\\0d"
    code = f'(module (func (@name "{name}") (export "f") unreachable))'
    with Guest(code.encode()) as guest, pytest.raises(GuestTrapError) as trap:
        guest.call("f")
    assert str(trap.value).isprintable()
    with pytest.raises(GuestError) as missing:
        Guest(f'(module (import "{name}" "x" (func)))'.encode())
    assert str(missing.value).isprintable()


def test_exports_that_are_not_there() -> None:
    with Guest(b'(module (memory (export "memory") 1))') as guest:
        with pytest.raises(GuestError, match="exports no function '_start'"):
            guest.run()
        with pytest.raises(GuestError, match="exports no function 'memory'"):
            guest.call("memory")


def test_memory_is_read_and_written_between_calls() -> None:
    code = b"""(module (memory (export "memory") 1)
        (func (export "double") (param i32)
            (i32.store8 (local.get 0) (i32.shl (i32.load8_u (local.get 0)) (i32.const 1)))))"""
    with Guest(code) as guest:
        guest.write(PAGE - 2, b"\x15\x16")
        guest.call("double", PAGE - 2)
        assert guest.read(PAGE - 2, 2) == b"\x2a\x16"
        assert guest.read(PAGE, 0) == b""
        guest.write(PAGE, b"")
        for address, nbytes in ((PAGE - 1, 2), (-1, 1), (0, -1), (2**32, 1)):
            with pytest.raises(GuestError, match="leave the guest's memory of 65536 bytes"):
                guest.read(address, nbytes)
        with pytest.raises(GuestError, match="leave the guest's memory"):
            guest.write(PAGE - 1, b"ab")
        assert guest.read(PAGE - 1, 1) == b"\x16"
    with Guest(b"(module)") as guest, pytest.raises(GuestError, match="no memory"):
        guest.read(0, 1)


def test_stop_from_another_thread() -> None:
    with Guest(SPIN) as guest:
        timer = threading.Timer(0.1, guest.stop)
        timer.start()
        with pytest.raises(GuestError, match="was stopped"):
            guest.run()


def test_interrupting_the_main_thread_stops_the_guest(interruptible: None) -> None:
    def interrupt_soon(_: bytes) -> None:
        threading.Timer(0.1, _thread.interrupt_main).start()

    with Guest(writer(b"I run", then="(loop (br 0))"), stdout=interrupt_soon) as guest:
        with pytest.raises(KeyboardInterrupt):
            guest.run()
        assert guest._calls.current is not None
        assert guest._calls.current.ended


def test_a_closed_guest_is_closed() -> None:
    guest = Guest(writer(b"x"))
    guest.close()
    guest.close()
    with pytest.raises(GuestError, match="is closed"):
        guest.run()
    with pytest.raises(GuestError, match="is closed"):
        next(guest.stream())


def test_closing_while_it_runs() -> None:
    """Over and over: there must be no moment at which a guest is taken apart under a call."""
    for i in range(20):
        guest = Guest(SPIN)
        ended: list[str] = []

        def run(guest: Guest = guest, ended: list[str] = ended) -> None:
            try:
                guest.run()
            except GuestError as error:
                ended.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(i * 1e-4)
        guest.close()
        thread.join()
        assert ended in (["the guest is closed"], ["the guest was closed"])


def test_one_call_at_a_time() -> None:
    def run() -> None:
        with contextlib.suppress(GuestError):
            guest.run()

    with Guest(SPIN) as guest:
        thread = threading.Thread(target=run)
        thread.start()
        while guest._calls.current is None or guest._calls.current.ended:
            time.sleep(0.01)
        with pytest.raises(GuestError, match="running already"):
            guest.run()
        guest.stop()
        thread.join()


def test_a_start_function_may_call_the_host() -> None:
    text = f"""(module
        (import "{abi.GPU}" "device_describe" (func $info (param i32) (result i32)))
        (memory (export "memory") 1) (global $errno (mut i32) (i32.const -1))
        (func $start (global.set $errno (call $info (i32.const 0)))) (start $start)
        (func (export "errno") (result i32) (global.get $errno)))"""
    with Guest(text.encode(), device="cpu") as guest:
        assert guest.call("errno") == Errno.SUCCESS


def test_a_guest_without_memory_gets_a_fault() -> None:
    text = f"""(module (import "{abi.GPU}" "device_describe" (func $info (param i32) (result i32)))
        (func (export "info") (result i32) (call $info (i32.const 0))))"""
    with Guest(text.encode(), device="cpu") as guest:
        assert guest.call("info") == Errno.FAULT


def test_clocks() -> None:
    text = f"""(module
        (import "{WASI}" "clock_time_get" (func $now (param i32 i64 i32) (result i32)))
        (import "{WASI}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "now") (param i32) (result i64)
            (drop (call $now (local.get 0) (i64.const 1) (i32.const 0))) (i64.load (i32.const 0)))
        (func (export "poll") (param i32) (result i32)
            (call $poll (i32.const 1024) (i32.const 4096) (local.get 0) (i32.const 8)))
        (func (export "subscribe")
            (param $at i32) (param $tag i32) (param $clock i32) (param $ns i64) (param $flags i32)
            (i64.store (local.get $at) (i64.const 77)) (i32.store8 offset=8 (local.get $at) (local.get $tag))
            (i32.store offset=16 (local.get $at) (local.get $clock))
            (i64.store offset=24 (local.get $at) (local.get $ns))
            (i32.store offset=40 (local.get $at) (local.get $flags)))
        (func (export "load") (param i32) (result i64) (i64.load (local.get 0))))"""
    with Guest(text.encode()) as guest:
        assert abs(guest.call("now", 0) - time.time_ns()) < 60e9
        first = guest.call("now", 1)
        assert 0 <= first < 60e9  # not the host's uptime
        begin = time.monotonic()
        guest.call("subscribe", 1024, 0, 1, 50_000_000, 0)
        guest.call("subscribe", 1072, 0, 1, 3_600_000_000_000, 0)
        assert guest.call("poll", 2) == 0
        assert time.monotonic() - begin >= 0.05
        assert guest.call("load", 8) & 0xFFFFFFFF == 1  # one event,
        assert guest.call("load", 4096) == 77  # the first's
        guest.call("subscribe", 1024, 0, 1, guest.call("now", 1) + 3_600_000_000_000, 1)  # absolute
        guest.call("subscribe", 1072, 1, 0, 0, 0)  # a file: ready at once
        assert guest.call("poll", 2) == 0
        assert guest.call("load", 8) & 0xFFFFFFFF == 1
        assert guest.call("poll", 0) == Errno.INVAL
        assert guest.call("poll", 100_000) == Errno.INVAL


# ---- Nothing stays behind


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("\n")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_guests_leave_no_mapping(closed: bool) -> None:
    device = CpuDevice()

    def use() -> None:
        probe = Probe(device)
        x = tensor(probe.share(), (4,))
        probe.run(command(9, x, x, x))
        probe.start(command(9, x, x, x))
        if closed:
            probe.guest.close()

    for _ in range(5):
        use()
    gc.collect()
    before = mappings()
    for _ in range(50):
        use()
    gc.collect()
    assert mappings() - before < 20


def test_threads_end_with_their_guests() -> None:
    before = _thread._count()
    for _ in range(10):
        with Guest(writer(b"x")) as guest:
            guest.run()
    give_up = time.monotonic() + 60
    while _thread._count() > before + 1:  # the ticker stays
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_many_guests_at_once() -> None:
    device, errors = CpuDevice(), []

    def work(n: int) -> None:
        try:
            with Probe(device) as probe:
                buffer = probe.share()
                x = tensor(buffer, (4,))
                for i in range(20):
                    probe.floats(PAGE, 4)[:] = n + i
                    probe.run(command(9, x, x, tensor(buffer, (4,), 64)))
                    assert (probe.floats(PAGE + 64, 4) == 2 * (n + i)).all()
                assert probe.guest.counters.submits == 20
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_memory_that_cannot_be_had() -> None:
    with pytest.raises((MemoryRefusedError, GuestError), match="memory"):
        Guest(b"(module (memory i64 0x100000000))", limits=Limits(memory_bytes=1 << 62))


def test_a_failed_constructor_gives_back_what_it_took() -> None:
    closed: list[Any] = []

    class Watched(CpuDevice):
        def close(self) -> None:
            closed.append(self)

    import wasmetal.host.grants as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_device", lambda spec: Watched())
        with pytest.raises(GuestError):
            Guest(b"(module (func $start unreachable) (start $start))", device="cpu")
    assert len(closed) == 1


@pytest.mark.parametrize(
    "end",
    [
        "guest.run()",
        "stream = guest.stream(); next(stream)",
        "for _ in guest.stream(): pass",
        "import threading, contextlib\n"
        "def read():\n"
        "    with contextlib.suppress(wasmetal.errors.GuestError): list(guest.stream())\n"
        "threading.Thread(target=read, daemon=True).start()",
        "guest.close()",
    ],
)
def test_a_process_may_end_with_guests_open(end: str) -> None:
    """Wasmtime's own threads call back into Python when a guest goes, which must be over before Python is."""
    code = writer(b"text", b"more")
    script = f"import wasmetal\nguest = wasmetal.Guest({code!r}, stdout=print)\n{end}\n"
    for _ in range(3):
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")


def test_random_bytes_are_the_systems() -> None:
    text = """(module (import "wasi_snapshot_preview1" "random_get" (func $get (param i32 i32) (result i32)))
        (memory (export "memory") 4)
        (func (export "get") (param i32 i32) (result i32) (call $get (local.get 0) (local.get 1))))"""
    with Guest(text.encode()) as guest, Guest(text.encode()) as other:
        drawn = []
        for each in (guest, guest, other):
            assert each.call("get", 8, 200_000) == 0
            drawn.append(each.read(8, 200_000))
            assert each.read(0, 8) == bytes(8)
        assert len(set(drawn)) == 3
        assert all(abs(data.count(0) - 200_000 / 256) < 400 for data in drawn)
        assert guest.call("get", 0, 0) == 0
        assert guest.call("get", 4 * 65536 - 1, 2) == Errno.FAULT
