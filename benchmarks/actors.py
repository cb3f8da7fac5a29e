"""Many actors on one machine: what they take while a few of them are awake, and how long it takes to wake one.

    python -m benchmarks.actors --actors 10000 --messages 100000 --store FOLDER

Each actor has pages of memory that no other has, filled at random with its first message. Three parts: every actor gets
its first message; then random ones get another, one at a time, so that each has to be woken, and another one frozen;
then several senders soak the host, with half of the messages to a few actors, and half to any. Memory, open files and
threads of the process are looked at all the time. In the end every actor must have counted its messages.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import wasmtime

from wasmetal import ActorHost, ActorProgram, ActorType
from wasmetal.actor.store import DirectoryStore
from wasmetal.resident import resident_bytes

PAGE = 65536
HOT = 16
"""Actors that get half of the messages of the soak."""
SECONDS = 0.5
"""Between two looks at what the process takes."""


def program(pages: int) -> ActorProgram:
    """A guest that fills its pages with random bytes, counts messages in the first, and replies with their number."""
    text = f"""(module
      (import "wasmetal_actor" "random_fill" (func $random_fill (param i32 i32) (result i32)))
      (import "wasmetal_actor" "reply_write" (func $reply_write (param i32 i32) (result i32)))
      (memory (export "memory") {pages})
      (func (export "wm_actor_message") (local $at i32)
        (if (i32.eqz (i32.load (i32.const 0))) (then
          (loop
            (if (call $random_fill (local.get $at) (i32.const {PAGE})) (then unreachable))
            (local.set $at (i32.add (local.get $at) (i32.const {PAGE})))
            (br_if 0 (i32.lt_u (local.get $at) (i32.const {pages * PAGE}))))
          (i32.store (i32.const 0) (i32.const 0))))
        (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
        (if (call $reply_write (i32.const 0) (i32.const 4)) (then unreachable))))"""
    return ActorProgram(bytes(wasmtime.wat2wasm(text)))


@dataclass
class Watch:
    """What the process takes, over time."""

    seen: list[dict[str, float]] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Take down a moment."""
        self.seen.append(
            {
                "seconds": round(time.monotonic() - self._begun, 1),
                "resident_mb": round(resident_bytes() / 1e6, 1),
                "descriptors": len(os.listdir("/dev/fd")),
                "threads": len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0,
            }
        )

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look from time to time."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(SECONDS):
                self.look()

        self.look()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.look()

    def summary(self) -> dict[str, Any]:
        """The most of each, and memory as it developed."""
        names = ("resident_mb", "descriptors", "threads")
        tenths = [self.seen[(len(self.seen) - 1) * i // 10] for i in range(11)]
        return {
            "most": {name: max(each[name] for each in self.seen) for name in names},
            "over time": [{name: each[name] for name in ("seconds", *names)} for each in tenths],
        }


class Bench:
    """A host, and what its actors should have counted."""

    def __init__(self, host: ActorHost, actors: int, senders: int) -> None:
        self.host, self.senders = host, senders
        self.names = [f"actor-{i:06}" for i in range(actors)]
        self.sent: Counter[str] = Counter()
        self.counted: dict[str, int] = {}
        self._lock = threading.Lock()

    def send(self, name: str, key: str | None = None) -> float:
        """Send a message and wait for the reply; return the seconds that took."""
        begun = time.perf_counter()
        number = int.from_bytes(self.host.send(name, b"", key=key, wait=600).read(), "little")
        seconds = time.perf_counter() - begun
        with self._lock:
            self.sent[name] += 1
            self.counted[name] = max(number, self.counted.get(name, 0))
        return seconds

    def share_out(self, count: int, choose: Callable[[int], str], keys: bool = False) -> Sequence[float]:
        """Have several senders send messages; return the seconds of each."""
        seconds = [array("d") for _ in range(self.senders)]
        failed: list[BaseException] = []

        def run(sender: int) -> None:
            try:
                for i in range(sender, count, self.senders):
                    seconds[sender].append(self.send(choose(i), f"soak-{i}" if keys else None))
                    if not sender and len(seconds[0]) % max(1, count // self.senders // 10) == 0:
                        print(f"{len(seconds[0]) * self.senders} of {count} messages", file=sys.stderr)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=run, args=(sender,)) for sender in range(self.senders)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return sum(seconds, array("d"))


def part(count: int, work: Callable[[], Sequence[float]]) -> dict[str, Any]:
    """Do a part, and say what it took."""
    watch, begun = Watch(), time.perf_counter()
    with watch.looking():
        seconds = work()
    took = time.perf_counter() - begun
    return {"messages": count, "seconds": round(took, 1), "a second": round(count / took, 1)} | {
        "ms": percentiles(seconds),
        **watch.summary(),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": round(1e3 * float(p50), 2), "p99": round(1e3 * float(p99), 2)}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts."""
    types = ActorType(program=program(options.pages))
    chance = random.Random(1)
    watch = Watch()
    watch.look()
    results: dict[str, Any] = {"before": watch.seen[0], "durability": options.durability}
    with ActorHost(
        DirectoryStore(folder), types, resident=options.resident, durability=options.durability, workers=options.workers
    ) as host:
        bench = Bench(host, options.actors, options.senders)
        results["first messages"] = part(
            options.actors, lambda: bench.share_out(options.actors, lambda i: bench.names[i])
        )
        host._residents.seconds.clear()
        chosen = [chance.choice(bench.names) for _ in range(options.activations)]
        results["woken one at a time"] = part(len(chosen), lambda: [bench.send(name) for name in chosen])
        results["woken one at a time"]["activation ms"] = percentiles(list(host._residents.seconds))
        host._residents.seconds.clear()
        hot = bench.names[:HOT]
        if options.messages:
            results["soak"] = part(
                options.messages,
                lambda: bench.share_out(
                    options.messages, lambda i: chance.choice(hot if i % 2 else bench.names), options.keys
                ),
            )
            results["soak"]["activation ms"] = percentiles(list(host._residents.seconds))
        stats = host.stats()
        results["activations"] = stats.created + stats.thawed
        results["awake"] = stats.resident
        wrong = [name for name in bench.names if bench.counted[name] != bench.sent[name]]
        results["actors that miscounted"] = len(wrong)
    begun = time.perf_counter()
    with ActorHost(DirectoryStore(folder, create=False), types, resident=options.resident) as host:
        results["actors found again"] = len(host.actors())
        results["first reply of a new host, ms"] = round(
            1e3 * (bench_first(host, bench.names[-1], bench.sent[bench.names[-1]]) - begun), 1
        )
        while host.stats().reading_timers:
            time.sleep(0.01)
        results["all timers found, s"] = round(time.perf_counter() - begun, 1)
    return results


def bench_first(host: ActorHost, name: str, before: int) -> float:
    """When an actor has replied that a host has found; its number must follow the last one."""
    number = int.from_bytes(host.send(name, b"").read(), "little")
    if number != before + 1:
        raise AssertionError(f"{name} has counted {number} messages, not {before + 1}")
    return time.perf_counter()


def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--actors", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=2000, help="of the soak")
    parser.add_argument("--activations", type=int, default=500, help="one at a time")
    parser.add_argument("--resident", type=int, default=32, help="actors that may be awake")
    parser.add_argument("--pages", type=int, default=4, help="of 64 KiB, that each actor has for itself")
    parser.add_argument("--senders", type=int, default=16)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--durability", choices=("message", "freeze"), default="message")
    parser.add_argument("--keys", action="store_true", help="give each message of the soak a key")
    parser.add_argument("--store", type=Path, help="an empty folder; by default a temporary one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.store or Path(stack.enter_context(TemporaryDirectory())) / "store"
        results = measure(options, folder)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        if not isinstance(value, dict) or "ms" not in value:
            print(f"{name}: {value}")
            continue
        print(f"{name}: {value['messages']} messages in {value['seconds']} s, {value['a second']} a second")
        print(f"  reply {value['ms']} ms, activation {value.get('activation ms', '-')} ms, most {value['most']}")
        for each in value["over time"]:
            print(f"  {each}")
    if results["actors that miscounted"]:
        sys.exit("actors have miscounted")


if __name__ == "__main__":
    main()
