"""Waiting for a device that has to be asked whether it has ended."""

from __future__ import annotations

import itertools

import pytest

from wasmetal.device.waiting import _NAP, poll


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
