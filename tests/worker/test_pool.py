"""Worker processes: what they answer, what ends them, and what they cannot do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wasmetal.errors import ModelError, WasmetalError
from wasmetal.worker import WorkerPool
from wasmetal.worker.process import WorkerFailure, WorkerProcess

LINUX = sys.platform == "linux"
MIB = 1 << 20


@pytest.fixture(scope="module")
def pool() -> WorkerPool:
    return WorkerPool("tests.worker.service", ModelError)


def ask(
    pool: WorkerPool,
    do: str,
    argument: Any = None,
    payload: bytes = b"",
    *,
    seconds: float = 30,
    memory: int = 512 * MIB,
    most: int = 64 * MIB,
) -> tuple[dict[str, Any], bytearray]:
    header = {"do": do, "argument": argument}
    return pool.request("asking", header, payload, seconds=seconds, memory=memory, most=most)


def pid(pool: WorkerPool) -> int:
    return int(ask(pool, "echo")[0]["pid"])


@pytest.mark.parametrize("size", [0, 1, 3 * MIB])
def test_messages_arrive_unchanged(pool: WorkerPool, size: int) -> None:
    payload = os.urandom(size)
    answer, result = ask(pool, "echo", "ü\0\n", payload)
    assert answer["argument"] == "ü\0\n"
    assert result == payload


def test_a_process_is_used_again(pool: WorkerPool) -> None:
    assert pid(pool) == pid(pool) != os.getpid()


def test_a_refusal_is_one_printable_line_and_costs_no_process(pool: WorkerPool) -> None:
    before = pid(pool)
    with pytest.raises(ModelError, match=r"^two�lines �\[31m$"):
        ask(pool, "refuse", "two\nlines \33[31m")
    assert pid(pool) == before


@pytest.mark.parametrize(
    ("do", "argument", "said"),
    [
        ("raise", "secret", "asking failed: its process ended with exit code 1: KeyError: 'secret'"),
        ("exit", 3, "asking failed: its process ended with exit code 3"),
        ("abort", None, "asking failed: its process was ended by SIGABRT"),
        ("sleep", 60, "asking takes more than 0.5 seconds"),
        ("hold the GIL", None, "asking takes more than 0.5 seconds"),
        ("answer", 65 * MIB, "asking failed: its process did not answer: a message of .* bytes is too large"),
    ],
)
def test_a_failure_costs_one_request(pool: WorkerPool, do: str, argument: Any, said: str) -> None:
    before, began = pid(pool), time.monotonic()
    with pytest.raises(ModelError, match=f"^{said}"):
        ask(pool, do, argument, seconds=0.5 if "0.5" in said else 30)
    assert time.monotonic() - began < 10
    assert pid(pool) != before
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_memory_is_limited_to_what_a_request_may_take(pool: WorkerPool) -> None:
    assert ask(pool, "allocate", 100 * MIB, memory=200 * MIB)[0] == {"held": 100 * MIB}
    with pytest.raises(ModelError, match=r"^asking needs more than 200 MiB of memory; if you trust it"):
        ask(pool, "allocate", 300 * MIB, memory=200 * MIB)
    assert ask(pool, "allocate", 300 * MIB)[0] == {"held": 300 * MIB}


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_memory_is_watched_where_the_system_does_not_limit_it(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmetal.worker.process.ENFORCED", False)
    monkeypatch.setattr("wasmetal.worker.process.resident_bytes", watched := Growing())
    with pytest.raises(ModelError, match=r"^asking needs more than 512 MiB of memory; if you trust it"):
        ask(pool, "sleep", 60)
    assert watched.looks > 2


class Growing:
    """A process that takes 200 MiB more at each look."""

    looks = 0

    def __call__(self, pid: int) -> int:
        assert pid > 0
        self.looks += 1
        return self.looks * 200 * MIB


def test_requests_are_answered_at_the_same_time(pool: WorkerPool) -> None:
    pids: list[int] = []
    both = threading.Barrier(2)

    def work() -> None:
        both.wait()
        ask(pool, "sleep", 0.5)
        pids.append(pid(pool))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 2


def test_a_worker_outlives_the_thread_that_needed_it_first() -> None:
    """Linux would end it with that thread, had that thread started it."""
    pool, pids = WorkerPool("tests.worker.service", ModelError), []
    thread = threading.Thread(target=lambda: pids.append(pid(pool)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert pids == [pid(pool)]


def test_a_worker_that_was_killed_while_idle_is_replaced(pool: WorkerPool) -> None:
    os.kill(killed := pid(pool), signal.SIGKILL)
    time.sleep(0.2)
    assert pid(pool) != killed


# ---- What a worker cannot do


@pytest.fixture
def listening() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


DENIED = "asking failed: its process ended with exit code 1: .*Error"


@pytest.mark.parametrize("do", ["read", "write", "connect", "send", "execute", "fork", "kill"])
@pytest.mark.skipif(not LINUX, reason="needs Landlock and seccomp")
def test_what_a_worker_is_denied(pool: WorkerPool, do: str, tmp_path: Path, listening: int) -> None:
    (tmp_path / "file").write_bytes(b"as it was")
    argument = {"connect": listening, "send": listening, "kill": os.getpid()}.get(do, str(tmp_path / "file"))
    with pytest.raises(ModelError, match=DENIED):
        ask(pool, do, argument)
    assert (tmp_path / "file").read_bytes() == b"as it was"


@pytest.mark.skipif(not LINUX, reason="needs Landlock and seccomp")
def test_a_worker_that_needs_files_can_change_only_those_it_is_given(tmp_path: Path, listening: int) -> None:
    (tmp_path / "in").mkdir()
    for name in ("file", "in/file"):
        (tmp_path / name).write_bytes(b"as it was")

    def asked(do: str, argument: Any) -> str:
        """What became of it."""
        worker = WorkerProcess("tests.worker.service", {}, files=True, writable=[str(tmp_path / "in")])
        try:
            request = {"do": do, "argument": argument}
            return bytes(worker.request(request, b"", seconds=30, memory=64 * MIB, most=MIB)[1]).decode()
        except WorkerFailure as failure:
            return str(failure)
        finally:
            worker.end()

    assert asked("read", str(tmp_path / "file")) == "as it was"
    assert asked("write", str(tmp_path / "in/file")) == ""
    assert (tmp_path / "in/file").read_bytes() == b"written"
    assert "PermissionError" in asked("write", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"as it was"
    for do, argument in (("connect", listening), ("send", listening), ("execute", None), ("fork", None)):
        assert "PermissionError" in asked(do, argument)


def test_files_cannot_be_opened_without_landlock_either(tmp_path: Path) -> None:
    """As on macOS, and on Linux before 5.13: no descriptor is left for one."""
    (tmp_path / "file").write_bytes(b"secret")
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from wasmetal.worker import confinement, landlock, seccomp\n"
        "landlock.restrict = seccomp.restrict = lambda **_: False\n"
        "confinement.confine(files=False)\n"
        "try: open(sys.argv[1])\n"
        "except OSError as error: print(error.strerror)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "file", *sys.path], capture_output=True, text=True, check=False
    )
    assert said.stdout == "Too many open files\n"


@pytest.mark.skipif(not LINUX, reason="needs seccomp")
@pytest.mark.parametrize("service", ["wasmetal.host.compiler_worker", "wasmetal.models.lm.template_worker"])
def test_every_thread_of_a_worker_is_confined(service: str) -> None:
    """Those that libraries start when they are imported, too."""
    worker = WorkerProcess(service, {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"})
    try:
        tasks = [task.read_text() for task in Path(f"/proc/{worker._process.pid}/task").glob("*/status")]
        assert tasks
        assert all("Seccomp:\t2\n" in task and "NoNewPrivs:\t1\n" in task for task in tasks)
    finally:
        worker.end()


def test_the_environment_is_not_passed_on(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    fresh = WorkerPool("tests.worker.service", ModelError, threads=3)
    environment = ask(fresh, "environment")[0]
    assert "API_KEY" not in environment
    assert environment["RAYON_NUM_THREADS"] == "3"


def test_no_core_is_written(pool: WorkerPool) -> None:
    assert ask(pool, "limits")[0] == {"core": [0, 0]}


# ---- How it ends


def run_until(line: str, script: str) -> subprocess.Popen[str]:
    """Start a process that uses a pool, and wait until it says ``line``."""
    head = (
        "import os, sys, threading, time; sys.path[:0] = sys.argv[1:]\n"
        "from tests.worker.test_pool import *\n"
        "pool = WorkerPool('tests.worker.service', ModelError)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", head + script, *sys.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith(line), said + (process.stderr.read() if process.stderr and not said else "")
    process.worker = int(said.split()[1])  # type: ignore[attr-defined]
    return process


def gone(pid: int) -> bool:
    return _within(10, lambda: not Path(f"/proc/{pid}/exe").exists() if LINUX else not _exists(pid))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _within(seconds: float, happens: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_worker_ends_with_its_parent(how: signal.Signals | None) -> None:
    script = "print('pid', pid(pool), flush=True)\n" + ("time.sleep(60)\n" if how else "")
    with run_until("pid", script) as process:
        if how:
            process.send_signal(how)
        process.wait(20)
        assert gone(process.worker)  # type: ignore[attr-defined]


def test_a_busy_worker_ends_with_its_parent() -> None:
    script = "print('pid', pid(pool), flush=True)\nask(pool, 'hold the GIL', seconds=60)\n"
    with run_until("pid", script) as process:
        time.sleep(0.3)
        process.kill()
        process.wait(20)
        assert gone(process.worker)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_request_at_once() -> None:
    script = "print('pid', pid(pool), flush=True)\nask(pool, 'hold the GIL', seconds=60)\n"
    with run_until("pid", script) as process:
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert time.monotonic() - began < 5
        assert gone(process.worker)  # type: ignore[attr-defined]


def test_a_forked_process_starts_its_own() -> None:
    script = (
        "first = pid(pool)\n"
        "forked = os.fork()\n"
        "if not forked: os._exit(0 if pid(pool) != first else 1)\n"
        "assert os.waitpid(forked, 0)[1] == 0\n"
        "assert pid(pool) == first\n"
        "print('pid', first, flush=True)\n"
    )
    with run_until("pid", script) as process:
        assert process.wait(20) == 0
        assert gone(process.worker)  # type: ignore[attr-defined]


def test_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ModelError, match=r"^cannot start a worker process: .*No such file"):
        pid(WorkerPool("tests.worker.service", ModelError))


def test_a_service_that_cannot_be_imported() -> None:
    with pytest.raises(ModelError, match=r"^cannot start a worker process: it ended with exit code 1: .*no_such"):
        pid(WorkerPool("no_such", ModelError))
    with pytest.raises(WasmetalError):
        WorkerProcess("no_such", {}, files=True)
