"""Many clients at once, of which some go away, while some guests trap: right answers, and nothing that grows."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve.serving import Serving, serving, wait_for
from tests.serve.test_going_away import TRAPS
from wasmetal import Program, load_model
from wasmetal.device import Device
from wasmetal.memory.trim import trim
from wasmetal.serve.engine import Engine
from wasmetal.serve.limits import ServerLimits

CLIENTS = 64
SECONDS = float(os.environ.get("WASMETAL_LOAD_SECONDS", "30"))
ASKS: list[dict[str, Any]] = [
    {"model": "tiny", "prompt": f"hello {number}", "temperature": 0, "max_tokens": 24} | more
    for number in range(8)
    # The guest chooses each token, or the device several.
    for more in ({"logit_bias": {"0": -100, "2": -100}}, {})
]


class Sabotaged(Engine):
    """Gives two of its completions a guest that traps."""

    trapping: Program | None = None
    times = 0

    @property
    def program(self) -> Program:
        self.times += 1
        return self.trapping if self.trapping and self.times in (100, 200) else self._program

    @program.setter
    def program(self, program: Program) -> None:
        self._program = program


class Tally:
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.left = self.trapped = 0


async def one_client(url: str, number: int, end: float, expected: list[str], tally: Tally) -> None:
    choose = random.Random(number)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        while time.monotonic() < end:
            ask, begin, text = choose.randrange(len(ASKS)), time.monotonic(), ""
            leaves = choose.random() < 0.1
            try:
                stream = await client.completions.create(**ASKS[ask], stream=True)
                async for chunk in stream:
                    text += chunk.choices[0].text
                    if leaves and len(text) > 4:
                        await stream.close()
                        break
            except openai.InternalServerError as error:
                assert error.code == "completion_failed"  # noqa: PT017
                tally.trapped += 1
                continue
            if leaves:
                tally.left += 1
                assert expected[ask].startswith(text)
            else:
                assert text == expected[ask]
                tally.seconds.append(time.monotonic() - begin)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes, but for those that are free and would be used again."""
    gc.collect()
    trim()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def load(server: Serving, seconds: float, expected: list[str]) -> Tally:
    tally, end = Tally(), time.monotonic() + seconds

    async def everybody() -> None:
        await asyncio.gather(*(one_client(server.url, each, end, expected, tally) for each in range(CLIENTS)))

    asyncio.run(everybody())
    wait_for(lambda: not server.engine.tasks)
    return tally


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 300)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts descriptors and pages as Linux does")
def test_load(tiny_path: Path, cpu: Device) -> None:
    with load_model(tiny_path, cpu, contexts=9, deterministic=True) as model:
        engine = Sabotaged([model], ServerLimits(running=8, waiting=CLIENTS))
        with serving(engine) as server:
            client = server.client()
            expected = [client.completions.create(**ask).choices[0].text for ask in ASKS]
            load(server, SECONDS / 4, expected)  # until every thread and buffer is there that there will be
            wait_for(lambda: not server.server.server_state.connections or descriptors() < 200)
            threads, files, memory = threading.active_count(), descriptors(), resident()
            free = model.cache.free
            engine.trapping, engine.times = Program(TRAPS), 0
            tally = load(server, SECONDS, expected)
            assert tally.trapped == 2
            assert tally.left > 0
            wait_for(lambda: descriptors() <= files + 2)
            assert threading.active_count() <= threads + 2
            assert len(model.cache.quota._holders) == 1  # whoever loaded it
            after = resident()
            assert after - memory < 32 << 20
            assert model.cache.free == free
            wait_for(lambda: server.engine.admission.running == 0)
            left, pages = descriptors(), model.cache.free
    cuts = statistics.quantiles(tally.seconds, n=100)
    print(
        f"{len(tally.seconds)} answers of up to 24 tokens, all right; {tally.left} clients left: p50 {cuts[49]:.3f} s, "
        f"p99 {cuts[98]:.3f} s; resident {memory >> 20} to {after >> 20} MiB, descriptors {files} to {left}, KV pages "
        f"free {free} to {pages}"
    )
