"""Memory of forks, against copies that the test keeps; and what the operating system says that they take."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from tests.actor.guests import MESSAGE, imports
from wasmetal import Actor, ActorProgram
from wasmetal.actor.fork_image import can_map
from wasmetal.actor.memory_image import PAGE
from wasmetal.errors import MemoryRefusedError
from wasmetal.memory import Region

linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory of forks is copied")
PAGES = 80
WRITER = f"""(module {imports("message_read", "reply_write")}
  (memory (export "memory") {PAGES} {PAGES + 8})
  (data (i32.const {3 * PAGE}) "initial")
  {MESSAGE}
    (drop (call $message_read (i32.const 0) (i32.const 8) (i32.const 0)))
    (if (i32.eq (i32.load (i32.const 4)) (i32.const 0xffffffff)) (then (drop (memory.grow (i32.const 1))) (return)))
    (if (i32.eqz (i32.load (i32.const 4))) (then
      (memory.fill (i32.and (i32.load (i32.const 0)) (i32.const 0xffff0000)) (i32.const 0) (i32.const {PAGE}))
      (return)))
    (i32.store (i32.load (i32.const 0)) (i32.load (i32.const 4)))))"""
"""Takes an address and a number, and stores it there; for 0 it clears a page, and for -1 it grows by one."""


@pytest.fixture(scope="module")
def program() -> ActorProgram:
    return ActorProgram(bytes(wasmtime.wat2wasm(WRITER)))


def store(actor: Actor, page: int, number: int) -> None:
    assert actor.send(np.array([page * PAGE + 64, number % 2**32], "<u4").tobytes()).read() == b""


def memory_of(actor: Actor) -> bytes:
    return actor._guest.state.regions[0].view()[16:].tobytes()


class Model:
    """An actor, and what its memory should hold."""

    def __init__(self, actor: Actor, memory: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.actor, self.memory = actor, memory

    def store(self, page: int, number: int) -> None:
        store(self.actor, page, number)
        if number:
            self.memory[page * PAGE + 64 : page * PAGE + 68] = list(np.uint32(number).tobytes())
        else:
            self.memory[page * PAGE : (page + 1) * PAGE] = 0

    def check(self) -> None:
        assert memory_of(self.actor) == self.memory[16:].tobytes()


ACTS = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from(["store", "fork", "close"]), st.integers(1, 20), st.integers(0, 5)),
    max_size=40,
)


@given(first=st.dictionaries(st.integers(1, PAGES - 3), st.integers(1, 99), max_size=60), acts=ACTS)
def test_forks_go_their_own_ways(
    program: ActorProgram, first: dict[int, int], acts: list[tuple[int, str, int, int]]
) -> None:
    memory = np.zeros(PAGES * PAGE, np.uint8)
    memory[3 * PAGE : 3 * PAGE + 7] = list(b"initial")
    models = [Model(Actor(program), memory)]
    try:
        for page, number in first.items():
            models[0].store(page, number)
        for which, act, page, number in acts:
            model = models[which % len(models)]
            if act == "store":
                model.store(page, number)
            elif act == "fork":
                models.append(Model(model.actor.fork(), model.memory.copy()))
            elif len(models) > 1:
                models.remove(model)
                model.check()
                model.actor.close()
        for model in models:
            model.check()
    finally:
        for model in models:
            model.actor.close()


def test_a_memory_that_has_grown(program: ActorProgram) -> None:
    with Actor(program) as actor:
        store(actor, 5, 5)
        with actor.fork() as small:
            store(actor, 0, -1)
            store(actor, PAGES, 6)
            with actor.fork() as large, large.fork() as again:
                assert memory_of(large) == memory_of(again) == memory_of(actor)
                assert len(memory_of(small)) + PAGE == len(memory_of(large))
                store(small, 0, -1)
                store(small, PAGES, 6)
                assert memory_of(small) == memory_of(large)


@linux
def test_forks_share_their_memory(program: ActorProgram) -> None:
    with Actor(program) as actor:
        for page in range(1, PAGES - 1):
            store(actor, page, page)
        held, forks = proportional(), []
        try:
            for number in range(20):
                forks.append(fork := actor.fork())
                copied = fork.counters.bytes_copied
                assert copied >= (PAGES - 3) * PAGE if not number else copied <= 2 * PAGE
            assert proportional() - held < 5 * PAGES * PAGE
            assert all(memory_of(fork) == memory_of(actor) for fork in forks)
            files = descriptors()
            for fork in forks:
                fork.close()
            forks.clear()
            del fork
            assert descriptors() < files  # what they shared has gone with them
        finally:
            for fork in forks:
                fork.close()


@linux
@pytest.mark.parametrize("failing", ["memfd_create", "ftruncate", "pwrite"])
def test_without_files_in_memory_pages_are_copied(
    program: ActorProgram, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*arguments: Any) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with Actor(program) as actor:
        store(actor, 5, 5)
        monkeypatch.setattr(os, failing, fail)
        with actor.fork() as fork:
            assert memory_of(fork) == memory_of(actor)
            assert fork.counters.bytes_copied > 0


def test_only_the_cpu_device_maps_them() -> None:
    class Info:
        backend: ClassVar = "vulkan"

    class Imports:
        info = Info()

    assert not can_map(Imports())  # type: ignore[arg-type]
    assert can_map(None) == hasattr(os, "memfd_create")


@linux
def test_only_whole_pages_inside_are_mapped() -> None:
    file = os.memfd_create("test")
    os.ftruncate(file, 1 << 20)
    try:
        region = Region(1 << 20, PAGE)
        for begin, end in (
            (0, 2 * PAGE),
            (-PAGE, PAGE),
            (1, PAGE),
            (0, PAGE - 1),
            (PAGE, PAGE),
            (PAGE, 0),
            (0, 1 << 64),
        ):
            with pytest.raises(MemoryRefusedError):
                region.map(file, begin, end)
        os.pwrite(file, b"abc", 0)
        region.map(file, 0, PAGE)
        assert region.view()[:3].tobytes() == b"abc"
        region.view()[0] = 0
        assert os.pread(file, 3, 0) == b"abc"
    finally:
        os.close(file)


def proportional() -> int:
    """Bytes in memory, those that several mappings share divided by their number."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
