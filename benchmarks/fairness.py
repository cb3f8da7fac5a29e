"""How much a hostile guest slows the others down that share a device and a model with it.

    python -m benchmarks.fairness --device cpu --seconds 10

Nine honest guests, each in a loop: four decode a token, five multiply two matrices of 192 x 192. The time of every
operation is taken. Then one of the nine, a multiplying one, is replaced by a hostile guest, and the times of the other
eight are compared with those before, for each attack in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import wasmtime

from tests.host.probe import PAGE, Probe, command, probe_text, tensor
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, Limits, Program, load_model
from wasmetal.device import Device, open_device
from wasmetal.errors import GuestError
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.models import Model

MATMUL, ATTENTION, ADD, SOFTMAX = 1, 7, 9, 11
I32 = 26
TEXT, TOKENS, LISTS = PAGE, 2 * PAGE, 40 * PAGE
"""Addresses in a guest's memory."""
CONTEXT = 2048
DECODERS, MULTIPLIERS = 4, 5
KINDS = ("decode", "multiply")

Step = Callable[[], None]


class Worker:
    """A guest, and a thread that has it do one thing after another."""

    def __init__(self, device: Device, model: Model) -> None:
        self.device = device
        self.probe = Probe(device, pages=160, maximum=160, models={"m": model}, limits=Limits())
        self.probe.put(TEXT, b"m")
        _must(self.probe.model_open(TEXT, 1, self.probe.OUT))
        self.model = self.probe.u32()
        self.seconds: list[float] = []

    def session(self) -> int:
        """A new session of the guest's."""
        _must(self.probe.session_open(self.model, self.probe.OUT))
        return self.probe.u32()

    def forward(self, session: int, tokens: int) -> Errno:
        """Append the first of the tokens at TOKENS."""
        return self.probe.session_forward(session, TOKENS, tokens, 0)

    def loop(self, step: Step, over: threading.Event) -> None:
        """Take steps, and their times, until it is over or the guest is stopped."""
        with suppress(GuestError):
            while not over.is_set():
                begin = time.perf_counter()
                step()
                self.seconds.append(time.perf_counter() - begin)


def decode(worker: Worker) -> Step:
    """Decode a token, in a session that begins anew when it is full."""
    worker.probe.put(TOKENS, np.full(CONTEXT, 100, np.uint32))
    session, length = worker.session(), count()

    def step() -> None:
        if next(length) % 128 == 127:
            worker.probe.session_truncate(session, 0)
        _must(worker.forward(session, 1))

    return step


def multiply(worker: Worker, n: int = 192) -> Step:
    """Multiply two matrices."""
    product = _product(worker.probe.share(4 * PAGE, 16 * PAGE), n)
    return lambda: worker.probe.run(product)


# ---- Attacks. Each returns what the hostile guest does over and over.


def long_lists(worker: Worker) -> Step:
    """Lists of 4096 commands, waited for."""
    return _list(worker, _busy(worker.probe.share(4 * PAGE, 16 * PAGE)) * 4096)


def short_lists(worker: Worker) -> Step:
    """One list after another that takes the device no time."""
    x = tensor(worker.probe.allocate(PAGE), (64,))
    add = bytes(command(ADD, x, x, x).tobytes())
    return _list(worker, [add])


def never_waits(worker: Worker) -> Step:
    """Lists on device memory that it never waits for."""
    size = worker.probe.put(LISTS, b"".join(_busy(worker.probe.allocate(16 * PAGE)) * 512))

    def step() -> None:
        if worker.probe.commands_submit(LISTS, size, worker.probe.OUT) != Errno.SUCCESS:
            time.sleep(0.001)

    return step


def big_products(worker: Worker) -> Step:
    """One matrix product after another, of 1280 x 1280."""
    return _list(worker, [_product(worker.probe.allocate(3 * 4 * 1280**2), 1280).tobytes()])


def long_attention(worker: Worker) -> Step:
    """Attention of 64 rows to 2^17 positions that are all on one page."""
    rows, page, entries = 64, 2048, 64
    probe, buffer = worker.probe, worker.probe.share(4 * PAGE, 16 * PAGE)
    probe.bytes[4 * PAGE : 20 * PAGE] = 0
    probe.put(4 * PAGE, np.array([[rows, 0], *[[entries * page - 1, 0]] * rows], np.int32))
    probe.put(5 * PAGE, np.array([entries * page, *[0] * entries], np.int32))
    pool = tensor(buffer, (1, page, 1, 4), 4 * PAGE)
    tables = tensor(buffer, (1 + rows, 2), dtype=I32), tensor(buffer, (1, 1 + entries), PAGE, dtype=I32)
    q, out = tensor(buffer, (rows, 1, 4), 8 * PAGE), tensor(buffer, (rows, 4), 9 * PAGE)
    return _list(worker, [command(ATTENTION, q, pool, pool, *tables, out, attributes=(1.0,)).tobytes()])


def forward_flood(worker: Worker) -> Step:
    """Prompts of as many tokens as it can get pages for."""
    worker.probe.put(TOKENS, np.full(CONTEXT, 100, np.uint32))
    session, tokens = worker.session(), CONTEXT
    while worker.forward(session, 1) != Errno.SUCCESS:
        pass

    def step() -> None:
        nonlocal tokens
        worker.probe.session_truncate(session, 0)
        if worker.forward(session, tokens) != Errno.SUCCESS:
            tokens = max(1, tokens // 2)

    return step


def hoarding(worker: Worker) -> Step:
    """As many sessions as it can get pages for, and then more tokens in each."""
    worker.probe.put(TOKENS, np.full(CONTEXT, 100, np.uint32))
    sessions = [worker.session() for _ in range(500)]
    turns = count()
    return lambda: void(worker.forward(sessions[next(turns) % len(sessions)], 1))


def churn(worker: Worker) -> Step:
    """Guests that submit a long list and are closed at once."""

    program = Program(bytes(wasmtime.wat2wasm(probe_text(False, 160, 160))))

    def step() -> None:
        with Guest(program, device=worker.device) as other:
            other.call("buffer_create_device", 16 * PAGE, 3, Probe.OUT)
            buffer = int.from_bytes(other.read(Probe.OUT, 4), "little")
            commands = b"".join(_busy(buffer) * 512)
            other.write(LISTS, commands)
            other.call("commands_submit", LISTS, len(commands), Probe.OUT)

    return step


def tokenizing(worker: Worker) -> Step:
    """Text to tokens, as much of it as is taken in one call."""
    text = b"The quick brown fox jumps over the lazy dog. " * 24_000
    probe, size = worker.probe, 1 << 20
    probe.put(TOKENS, text[:size])

    def step() -> None:
        nonlocal size
        errno = probe.model_tokenize(worker.model, TOKENS, size, 0, LISTS, 1 << 20, probe.OUT)
        if errno != Errno.SUCCESS:
            size = max(1, size // 2)

    return step


ATTACKS = (
    long_lists,
    short_lists,
    never_waits,
    big_products,
    long_attention,
    forward_flood,
    hoarding,
    churn,
    tokenizing,
)


def void(_: object) -> None:
    """Nothing: whatever the hostile guest is told, it goes on."""


def _must(errno: Errno) -> None:
    if errno != Errno.SUCCESS:
        raise RuntimeError(errno.name)


def _product(buffer: int, n: int) -> Any:
    return command(MATMUL, *[tensor(buffer, (n, n), 4 * n * n * i) for i in range(3)])


def _busy(buffer: int) -> list[bytes]:
    """A command that takes a while."""
    x = tensor(buffer, (1, 4 * PAGE))
    return [command(SOFTMAX, x, x).tobytes()]


def _list(worker: Worker, commands: list[bytes]) -> Step:
    """Submit a list and wait for it."""
    probe, size = worker.probe, worker.probe.put(LISTS, b"".join(commands))

    def step() -> None:
        if probe.commands_submit(LISTS, size, probe.OUT) == Errno.SUCCESS:
            probe.submission_wait(probe.u32(), abi.FOREVER)

    return step


# ---- Measuring


def measure(device: Device, model: Model, attack: Callable[[Worker], Step] | None, seconds: float) -> dict[str, Any]:
    """Seconds of each operation of the honest guests, by what they do."""
    over = threading.Event()
    with ExitStack() as stack:

        def worker() -> Worker:
            made = Worker(device, model)
            stack.callback(made.probe.guest.close)
            return made

        kinds = [decode] * DECODERS + [multiply] * (MULTIPLIERS - (attack is not None))
        workers = [worker() for _ in kinds]
        steps = [kind(each) for kind, each in zip(kinds, workers, strict=True)]
        for step in steps:  # recorded and compiled once before
            step()
        threads = [
            threading.Thread(target=each.loop, args=(step, over), daemon=True)
            for each, step in zip(workers, steps, strict=True)
        ]
        if attack:
            hostile = worker()
            threads.append(threading.Thread(target=hostile.loop, args=(attack(hostile), over), daemon=True))
            threads[-1].start()
            time.sleep(0.5)
        for thread in threads[: len(workers)]:
            thread.start()
        time.sleep(seconds)
        over.set()
        if attack:
            hostile.probe.guest.stop()
        for thread in threads:
            thread.join(120)
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    for kind, each in zip(kinds, workers, strict=True):
        times[kind.__name__] += each.seconds
    return {name: _summary(each) for name, each in times.items()}


def _summary(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"count": len(seconds), "p50_ms": round(1e3 * p50, 2), "p99_ms": round(1e3 * p99, 2)}


def _columns(times: dict[str, float]) -> str:
    return f"{times['p50_ms']:11.1f} ms {times['p99_ms']:6.1f} ms {times.get('p99_ratio', 1):5.2f}"


def results(device: Device, model: Model, names: list[str], seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """What honest guests take without and with each attack."""
    alone = measure(device, model, None, seconds)
    yield "none", alone
    for attack in ATTACKS:
        if attack.__name__ in names:
            measured = measure(device, model, attack, seconds)
            for kind, each in measured.items():
                each["p99_ratio"] = round(each["p99_ms"] / alone[kind]["p99_ms"], 2)
            yield attack.__name__, measured


def main() -> None:
    """Read the command line, and print a row for each attack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", help="as for wasmetal run")
    parser.add_argument("--model", help="a model's name or path; by default, a tiny one")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--attack", action="append", choices=[each.__name__ for each in ATTACKS], help="only these")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    names = options.attack or [attack.__name__ for attack in ATTACKS]
    rows: dict[str, Any] = {}
    with ExitStack() as stack:
        device = stack.enter_context(open_device(options.device))
        path = options.model or write_tiny_llama(Path(stack.enter_context(TemporaryDirectory())) / "m", context=CONTEXT)
        model = stack.enter_context(load_model(path, device, context=CONTEXT, contexts=4))
        if not options.json:
            print(f"{'attack':16}" + "".join(f"{kind:>10} p50 {'p99':>9} {'ratio':>6}" for kind in KINDS))
        for number, (name, row) in enumerate(results(device, model, names, options.seconds)):
            print(f"{number} of {len(names)} attacks measured", file=sys.stderr)
            rows[name] = row
            if not options.json:
                print(f"{name:16}" + "".join(map(_columns, row.values())), flush=True)
    if options.json:
        print(json.dumps({"device": options.device, "model": options.model, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
