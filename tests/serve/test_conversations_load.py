"""Many conversations at once, of which some are given up, while a guest traps: each goes on as if it were alone."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve.serving import serving, wait_for
from tests.serve.test_conversations import whole
from tests.serve.test_serve_load import descriptors, resident
from wasmetal import ActorProgram, load_model
from wasmetal.device import Device
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.limits import ServerLimits

CLIENTS = 24
SECONDS = float(os.environ.get("WASMETAL_LOAD_SECONDS", "30"))
TRAPS = b'(module (memory (export "memory") 1) (func (export "wm_actor_message") unreachable))'
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


class Talk:
    """A conversation, and what has been said in it."""

    def __init__(self, url: str, number: int, run: int) -> None:
        self.client = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=20,
            timeout=120,
            default_headers={"X-Wasmetal-Actor": f"{run}-{number}"},
        )
        self.choose = random.Random(number)
        self.requests: list[list[Any]] = []
        self.questions: list[str] = []
        self.answers: list[str] = []
        self.left = self.trapped = 0

    async def go_on(self, end: float) -> None:
        async with self.client as client:
            while time.monotonic() < end and len(self.answers) < 40:
                question = f"hello {self.choose.randrange(100)}"
                messages: list[Any] = [{"role": "user", "content": question}]
                what = self.choose.random()
                if what < 0.1:
                    stream = await client.chat.completions.create(
                        model="tiny", messages=messages, stream=True, temperature=0, max_tokens=3000
                    )
                    await stream.close()  # it may have ended
                    await self._settle()
                elif what < 0.15:
                    with pytest.raises(openai.InternalServerError):
                        await client.with_options(max_retries=0).chat.completions.create(
                            model="traps", messages=messages, extra_headers={"X-Wasmetal-Actor": question}
                        )
                    self.trapped += 1
                else:
                    await self._ask(question, messages)

    async def _ask(self, question: str, messages: list[Any]) -> None:
        answer = await self.client.chat.completions.create(model="tiny", messages=messages, **OPTIONS)
        self.requests.append(messages)
        self.questions.append(question)
        self.answers.append(answer.choices[0].message.content or "")

    async def _settle(self) -> None:
        """Nobody knows whether a request counts that was given up: say what the conversation is."""
        self.left += 1
        await self._ask("and", whole([*self.questions, "and"], self.answers))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 300)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts descriptors and pages as Linux does")
def test_load(tiny_path: Path, cpu: Device, tmp_path: Path) -> None:
    limits = ServerLimits(running=6, waiting=CLIENTS, resident=6)
    with load_model(tiny_path, cpu, contexts=13, deterministic=True) as model:
        guests = [GuestModel("traps", ActorProgram(TRAPS))]
        engine = Engine([model], limits, guests=guests, actors=tmp_path / "actors")
        with serving(engine) as server:

            def load(run: int, seconds: float) -> list[Talk]:
                talks, end = [Talk(server.url, number, run) for number in range(CLIENTS)], time.monotonic() + seconds

                async def everybody() -> None:
                    await asyncio.gather(*(talk.go_on(end) for talk in talks))

                asyncio.run(everybody())
                wait_for(lambda: not engine.tasks)
                return talks

            load(0, SECONDS / 4)  # until every thread and buffer is there that there will be
            threads, files, memory = threading.active_count(), descriptors(), resident()
            talks = load(1, SECONDS)
            assert all(talk.answers for talk in talks)
            assert sum(talk.left for talk in talks) > 0
            assert sum(talk.trapped for talk in talks) > 0
            assert engine.conversations
            assert len(engine.conversations.host.resident()) <= limits.resident
            assert len(model.cache.quota._holders) <= 1 + limits.resident
            wait_for(lambda: descriptors() <= files + 8)  # of those that are awake
            assert threading.active_count() <= threads + 2
            assert resident() - memory < 48 << 20
            for number, talk in enumerate(talks[::4]):
                client = server.client(default_headers={"X-Wasmetal-Actor": f"alone-{number}"})
                for request, answer in zip(talk.requests, talk.answers, strict=True):
                    again = client.chat.completions.create(model="tiny", messages=request, **OPTIONS)
                    assert again.choices[0].message.content == answer
