from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wasmetal.serve.admission import Admission
from wasmetal.serve.errors import ApiError


def test_owners_take_turns() -> None:
    async def run() -> list[str]:
        admission, order = Admission(1, 10), list[str]()

        async def work(owner: str, name: str) -> None:
            async with admission.place(owner):
                order.append(name)
                await asyncio.sleep(0)

        names = ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]
        await asyncio.gather(*(work(name[0], name) for name in names))
        return order

    assert asyncio.run(run()) == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


@given(steps=st.lists(st.tuples(st.sampled_from(["come", "end", "cancel"]), st.integers(0, 9)), max_size=40))
@example([("come", 0), ("come", 0), ("come", 1), ("end", 0), ("cancel", 2)])
@example([("come", 0), ("come", 0), ("come", 1), ("end", 0), ("end", 4), ("cancel", 2)])
def test_places_are_neither_lost_nor_made(steps: list[tuple[str, int]]) -> None:
    most = 2

    async def run() -> None:
        admission = Admission(most, 100)
        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []

        async def work(owner: str, end: asyncio.Event) -> None:
            async with admission.place(owner):
                await end.wait()

        for what, number in steps:
            if what == "come":
                end = asyncio.Event()
                tasks.append((asyncio.create_task(work(f"owner {number % 3}", end)), end))
            elif tasks:
                task, end = tasks[number % len(tasks)]
                if what == "end":
                    end.set()
                else:
                    task.cancel()
            if number % 2:  # or several things happen before anybody notices
                for _ in range(4):
                    await asyncio.sleep(0)
                alive = sum(not task.done() for task, _ in tasks)
                assert (admission.running, admission.waiting) == (min(alive, most), max(alive - most, 0))
        for _, end in tasks:
            end.set()
        for task, _ in tasks:
            with suppress(asyncio.CancelledError):
                await task
        assert (admission.running, admission.waiting) == (0, 0)
        async with admission.place(), admission.place():
            assert admission.running == most

    asyncio.run(run())


def test_reservations() -> None:
    async def run() -> None:
        admission = Admission(1, 1)
        admission.reserve(2)
        with pytest.raises(ApiError) as raised:
            admission.reserve()
        assert raised.value.status == 429
        admission.give_back(2)
        admission.draining = True
        with pytest.raises(ApiError) as raised:
            admission.reserve()
        assert raised.value.status == 503

    asyncio.run(run())
