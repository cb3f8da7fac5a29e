"""Submissions on the CPU: which thread runs them, what they wait for, and what is dropped."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.device.harness import Vectors, recorded
from wasmetal.device import Device, open_device
from wasmetal.errors import DeviceError, DeviceTimeoutError
from wasmetal.kernels.catalog import CATALOG
from wasmetal.kernels.reference import KERNELS

LONG = 30
"""A timeout in seconds that no test reaches."""


@pytest.fixture
def device() -> Iterator[Device]:
    with open_device("reference") as opened:
        yield opened


class Gate:
    """A list of one kernel that is done when the gate is opened, and of a second that doubles the vector it binds."""

    def __init__(self, device: Device, vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        kernel = CATALOG["scale"]
        monkeypatch.setitem(KERNELS, "scale", lambda p, x, out: self.pass_through)
        self.list = device.record()
        self.list.dispatch(kernel, [vectors[0], vectors[0]], bytes(4 * len(kernel.params)), (1, 1, 1))
        self.list.finish()
        self.double = recorded(device, (vectors[0], vectors[0], vectors[0]))

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(LONG)


@pytest.fixture
def gate(device: Device, vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(device, vectors, monkeypatch)
    yield made
    made.opened.set()


@pytest.fixture
def vectors(device: Device) -> Vectors:
    made = Vectors(device, 3, 16)
    made.view(0)[:] = made.view(1)[:] = 1
    return made


def waiting(submission) -> threading.Thread:
    thread = threading.Thread(target=submission.wait, daemon=True)
    thread.start()
    return thread


def submitted_elsewhere(device: Device, *lists):
    """Submitted by another thread."""
    made = []
    thread = threading.Thread(target=lambda: made.append(device.submit(lists)))
    thread.start()
    thread.join()
    return made[0]


def test_a_short_submission_is_not_stuck_behind_another_threads(device: Device, gate: Gate, vectors: Vectors) -> None:
    long = submitted_elsewhere(device, gate.list, gate.double)
    thread = waiting(long)
    assert gate.reached.wait(LONG)
    other = Vectors(device, 1, 16)
    other.view(0)[:] = 3
    device.submit([recorded(device, (other[0], other[0], other[0]))]).wait(LONG)
    assert np.all(other.view(0) == 6)
    assert long.pending
    gate.opened.set()
    thread.join(LONG)
    assert np.all(vectors.view(0) == 2)


@pytest.mark.parametrize("hazard", ["read after write", "write after read", "through a third"])
def test_what_touches_the_same_bytes_waits(device: Device, gate: Gate, vectors: Vectors, hazard: str) -> None:
    """Though other threads have submitted it, and nobody waits for that."""
    submitted_elsewhere(device, gate.list, gate.double)  # 0 becomes 2, after the gate
    if hazard == "read after write":
        last = recorded(device, (vectors[0], vectors[1], vectors[2]))
    elif hazard == "write after read":
        last = recorded(device, (vectors[1], vectors[1], vectors[0]))
    else:
        submitted_elsewhere(device, recorded(device, (vectors[0], vectors[1], vectors[1])))  # 1 becomes 3
        last = recorded(device, (vectors[1], vectors[1], vectors[2]))
    submission = device.submit([last])
    thread = waiting(submission)
    assert gate.reached.wait(LONG)
    with pytest.raises(DeviceTimeoutError):
        submission.wait(0.01)
    assert not vectors.view(2).any()
    gate.opened.set()
    thread.join(LONG)
    assert not submission.pending
    want = {"read after write": (2, 3), "write after read": (0, 2), "through a third": (2, 6)}
    number, value = want[hazard]
    assert np.all(vectors.view(number) == value)


def test_one_threads_submissions_run_in_order(device: Device, gate: Gate) -> None:
    """Also if they have no byte in common."""
    gate.opened.set()
    first = device.submit([gate.list])
    other = Vectors(device, 1, 16)
    device.submit([recorded(device, (other[0], other[0], other[0]))]).wait()
    assert gate.reached.is_set()
    assert not first.pending


def test_a_list_that_is_closed_before_it_ran_does_not_run(device: Device, vectors: Vectors) -> None:
    """Neither for itself nor for the device's next submission; and that is no success."""
    dropped = recorded(device, (vectors[0], vectors[0], vectors[0]))
    submission = device.submit([dropped])
    dropped.close()
    device.submit([recorded(device, (vectors[0], vectors[1], vectors[2]))]).wait()
    assert np.all(vectors.view(2) == 2)
    with pytest.raises(DeviceError, match="closed before it had run"):
        submission.wait()


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyboardInterrupt()], ids=["failed", "interrupted"])
def test_a_kernel_that_fails_ends_its_submission(
    device: Device, vectors: Vectors, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(KERNELS, "add", lambda p, *arrays: fail)
    ran = recorded(device, (vectors[0], vectors[0], vectors[0]))
    monkeypatch.undo()
    submission = device.submit([ran, recorded(device, (vectors[1], vectors[1], vectors[1]))])
    with pytest.raises(type(error)):
        submission.wait()
    with pytest.raises(DeviceError if isinstance(error, KeyboardInterrupt) else MemoryError):
        submission.wait()
    assert np.all(vectors.view(1) == 1)
    device.submit([recorded(device, (vectors[0], vectors[0], vectors[0]))]).wait()
    assert np.all(vectors.view(0) == 2)


def test_a_kernel_that_the_cpu_does_not_have(device: Device, vectors: Vectors) -> None:
    kernel = CATALOG["gemm_simdgroup_f32"]
    with pytest.raises(DeviceError, match="gemm_simdgroup_f32 has no NumPy version"):
        device.record().dispatch(kernel, [vectors[0]] * len(kernel.access), bytes(4 * len(kernel.params)), (1, 1, 1))
