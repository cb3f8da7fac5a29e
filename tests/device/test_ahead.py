"""What is prepared for the next submission: when it is expected, when it is used, and when it is dropped."""

from __future__ import annotations

import gc
import weakref

import pytest

from wasmetal.device.ahead import Ahead
from wasmetal.device.backend import Recording


class Prepared:
    """Anything that can be referred to weakly."""


def repeated(ahead: Ahead[Prepared], *recordings: Recording) -> None:
    """Recordings submitted twice in a row."""
    for _ in range(2):
        assert ahead.take(recordings) is None


def test_twice_in_a_row() -> None:
    ahead: Ahead[Prepared] = Ahead()
    a, b, made = Recording(), Recording(), Prepared()
    for submitted in ([a, b], [a], [a, b], [b, a], [b], [a, b]):
        assert ahead.take(submitted) is None
        assert not ahead.expects(submitted)
    assert ahead.take([a, b]) is None
    assert not ahead.expects([b, a])
    assert not ahead.expects([a])
    assert ahead.expects([a, b])
    ahead.put([a, b], made)
    assert not ahead.expects([a, b])  # it is there


def test_it_is_used_once_and_others_may_come_between() -> None:
    ahead: Ahead[Prepared] = Ahead()
    a, b, made = Recording(), Recording(), Prepared()
    repeated(ahead, a)
    ahead.put([a], made)
    for other in ([b], [a, b], [b, a]):
        assert ahead.take(other) is None
    assert ahead.take([a]) is made
    assert not ahead.expects([a])  # it was not submitted twice in a row
    assert ahead.take([a]) is None
    assert ahead.expects([a])


def test_only_the_latest_is_kept() -> None:
    ahead: Ahead[Prepared] = Ahead()
    a, b, made = Recording(), Recording(), [Prepared(), Prepared()]
    gone = weakref.ref(made[0])
    ahead.put([a], made[0])
    ahead.put([b], made.pop())
    made.clear()
    assert gone() is None
    assert ahead.take([a]) is None
    assert ahead.take([b]) is not None


@pytest.mark.parametrize("which", [0, 1])
def test_it_goes_with_any_of_its_recordings(which: int) -> None:
    """And is gone before what the recording uses."""
    ahead: Ahead[Prepared] = Ahead()
    recordings, order = [Recording(), Recording()], []
    uses, made = Prepared(), Prepared()
    recordings[which].uses = uses
    weakref.finalize(uses, order.append, "what it uses")
    weakref.finalize(made, order.append, "what was prepared")
    ahead.put(recordings, made)
    del made, uses
    gc.collect()
    assert order == []
    del recordings[which]
    assert order == ["what was prepared", "what it uses"]


def test_what_was_used_does_not_go_with_its_recordings() -> None:
    ahead: Ahead[Prepared] = Ahead()
    recording, other, made = Recording(), Recording(), Prepared()
    ahead.put([recording], made)
    assert ahead.take([recording]) is made
    ahead.put([other], made)
    del recording
    gc.collect()
    assert ahead.take([other]) is made


def test_everything_becomes_garbage_at_once() -> None:
    ahead: Ahead[list[object]] = Ahead()
    recording, uses, order = Recording(), Prepared(), []
    recording.uses, recording.itself, recording.ahead = uses, recording, ahead
    made = Prepared()
    weakref.finalize(uses, order.append, "what it uses")
    weakref.finalize(made, order.append, "what was prepared")
    ahead.put([recording], [uses, made])  # as the Metal device does: see there
    del ahead, recording, uses, made
    assert order == []
    gc.collect()
    assert order == ["what was prepared", "what it uses"]
