"""Waiting for a device that has to be asked whether it has ended."""

from __future__ import annotations

import itertools
import time

import pytest

from wasmetal.device.waiting import _NAP, SLICE, poll, wait_in_slices
from wasmetal.errors import DeviceTimeoutError


@pytest.mark.parametrize("patient", [False, True])
def test_it_asks_until_it_has_ended(patient: bool) -> None:
    asked = itertools.count()
    assert poll(lambda: next(asked) == 5, 60.0, patient)
    assert next(asked) == 6


@pytest.mark.parametrize("patient", [False, True])
def test_it_asks_once_more_when_the_time_is_up(patient: bool) -> None:
    assert not poll(lambda: False, 0.0, patient)
    assert not poll(lambda: False, 0.01, patient)
    assert poll(lambda: True, 0.0, patient)


def test_a_patient_wait_asks_rarely() -> None:
    """Other threads have the processor in between."""
    asked = itertools.count()
    assert not poll(lambda: next(asked) < 0, 0.02, patient=True)
    assert next(asked) <= 2 + 0.02 / _NAP


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 0.01])
def test_a_timeout_is_waited_for_even_if_a_wait_ends_early(timeout: float) -> None:
    waits: list[float] = []
    begin = time.monotonic()
    with pytest.raises(DeviceTimeoutError, match="still running"):
        wait_in_slices(lambda seconds: bool(waits.append(seconds)), timeout)
    assert time.monotonic() - begin >= timeout
    assert all(0 <= seconds <= max(0.0, timeout) for seconds in waits)


def test_long_waits_are_in_slices() -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    wait_in_slices(wait, 60.0)
    assert waits == [SLICE] * 3
