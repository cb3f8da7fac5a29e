"""Copies in mappings of their own, against what the operating system says of the memory."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest

from wasmetal.memory.copies import Copies
from wasmetal.resident import resident_bytes

SIZE = 64 << 10


def test_copies_are_apart_and_come_again() -> None:
    copies = Copies(SIZE, warm=2)
    kept = [copies.copy(np.full(SIZE, value, np.uint8)) for value in range(200)]
    assert all((each == value).all() for value, each in enumerate(kept))
    with pytest.raises(ValueError, match="read-only"):
        kept[0][0] = 1
    part = kept[7][100:200]
    places = {each.ctypes.data for each in kept}
    assert len(places) == 200
    del kept
    gc.collect()
    again = [copies.copy(np.full(SIZE, 255, np.uint8)) for _ in range(199)]
    assert {each.ctypes.data for each in again} <= places  # the same places
    assert (part == 7).all()  # but not the one that something refers to


def test_threads_share_one() -> None:
    copies = Copies(SIZE, warm=4)

    def work(value: int) -> None:
        for _ in range(50):
            held = [copies.copy(np.full(SIZE, value, np.uint8)) for _ in range(5)]
            right.append(all((each == value).all() for each in held))

    right: list[bool] = []
    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 400


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere freed memory is taken when it is needed")
def test_what_is_freed_goes_back() -> None:
    copies = Copies(SIZE, warm=16)
    before = resident_bytes()
    held = [copies.copy(np.ones(SIZE, np.uint8)) for _ in range(512)]
    most = resident_bytes()
    assert most - before >= 24 << 20
    del held
    assert most - resident_bytes() >= 24 << 20
