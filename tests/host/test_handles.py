from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule

from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.handles import Handles


def refused(call: object, *args: object) -> Errno | None:
    try:
        call(*args)  # type: ignore[operator]
    except Refusal as refusal:
        return refusal.errno
    return None


class HandleMachine(RuleBasedStateMachine):
    """Against a dictionary that remembers every number ever given out."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.handles = Handles(limit=8, key=0xDEADBEEF)
        self.model: dict[int, str] = {}
        self.given: set[int] = set()
        self.count = 0

    @rule(target=live)
    def add(self) -> int:
        self.count += 1
        if len(self.model) == 8:
            assert refused(self.handles.add, "x") is Errno.MFILE
            return 0
        handle = self.handles.add(f"object {self.count}")
        assert 0 < handle < 2**32
        assert handle not in self.given
        self.given.add(handle)
        self.model[handle] = f"object {self.count}"
        return handle

    @rule(handle=consumes(live))
    def remove(self, handle: int) -> None:
        if handle not in self.model:
            assert refused(self.handles.remove, handle) is Errno.BADF
            return
        self.handles.remove(handle)
        del self.model[handle]
        assert refused(self.handles.get, handle, str) is Errno.BADF
        assert refused(self.handles.remove, handle) is Errno.BADF

    @rule(handle=live)
    def get(self, handle: int) -> None:
        if handle in self.model:
            assert self.handles.get(handle, str) == self.model[handle]
            assert refused(self.handles.get, handle, int) is Errno.BADF

    @rule(handle=st.integers(0, 2**32 - 1))
    def forge(self, handle: int) -> None:
        if handle not in self.model:
            assert refused(self.handles.get, handle, str) is Errno.BADF

    @rule()
    def compare(self) -> None:
        assert sorted(self.handles) == sorted(self.model.values())  # type: ignore[type-var]
        assert len(self.handles) == len(self.model)


TestHandles = HandleMachine.TestCase
TestHandles.settings = settings(max_examples=50)


@given(key=st.integers(0, 2**32 - 1))
def test_a_slot_never_gives_the_same_handle_twice(key: int) -> None:
    handles = Handles(limit=1, key=key)
    given_out = set()
    for _ in range(5000):  # more than a slot has generations
        handle = handles.add("x")
        handles.remove(handle)
        given_out.add(handle)
    assert len(given_out) == 5000
    assert 0 not in given_out


def test_handles_of_other_guests_mean_nothing() -> None:
    one, other = Handles(limit=100, key=0x12345678), Handles(limit=100, key=0x87654321)
    for _ in range(100):
        other.add("other's")
    for handle in [one.add("one's") for _ in range(100)]:
        assert refused(other.get, handle, str) is Errno.BADF


def test_a_handle_names_an_object_of_one_kind() -> None:
    handles = Handles(limit=2, key=0)
    handle = handles.add("text")
    with pytest.raises(Refusal, match="names no int") as refusal:
        handles.get(handle, int)
    assert refusal.value.errno is Errno.BADF


def test_handles_that_were_saved_go_on_as_they_would_have() -> None:
    handles = Handles(8, key=77)
    numbers = [handles.add(f"{i}") for i in range(5)]
    for number in (numbers[3], numbers[1]):
        handles.remove(number)
    loaded = Handles(8, key=5)
    loaded.load(*handles.save())
    for index, held in handles.items():
        assert handles.handle(index) in numbers
        loaded.put(index, held)
    assert len(loaded) == len(handles) == 3
    assert [loaded.get(numbers[i], str) for i in (0, 2, 4)] == ["0", "2", "4"]
    with pytest.raises(Refusal):
        loaded.get(numbers[1], str)
    assert [loaded.add("new") for _ in range(4)] == [handles.add("new") for _ in range(4)]
