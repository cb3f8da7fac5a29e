"""One round trip guest → device → guest, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

import numpy as np
import wasmtime
from numpy.typing import NDArray

from wasmetal.device.base import CommandList, Device, Submission
from wasmetal.host import abi
from wasmetal.host.guest import Guest

BATCH, BATCHES = 10, 100
"""Round trips from one look at the clock to the next, and how often the guest looks."""
WARM_UP = 5
"""Batches."""
COMMAND, TIMES = 1024, 4096
"""Addresses of the command and of the times in the guest's memory."""


@dataclass(frozen=True, slots=True)
class Split:
    """Medians, of the means of batches, in µs of one round trip that runs one small kernel.

    The parts are of a second run, which looks at the clock in each of them, so they may add up to a little more.
    """

    total_us: float
    """By the guest's clock."""
    host_call_us: float
    """All but the other parts: calls of the host, their checks, and the guest's own instructions."""
    encode_us: float
    """Turning the guest's commands into a command list. 0 for a list that the host has recorded before."""
    submit_us: float
    """Handing the list to the device."""
    wait_us: float
    """Until the device has finished. The CPU device computes here."""


def measure(device: Device) -> dict[str, Split]:
    """The split for a list that is new to the host, for one that it has recorded before, and for that in one call."""
    return {
        "new": _split(device, fresh=True),
        "same": _split(device),
        "same, one call": _split(device, once=True),
    }


def _split(device: Device, fresh: bool = False, once: bool = False) -> Split:
    module, clocked = _guest(fresh, once), ClockedDevice(device)
    total = _totals(module, device)
    clocked_total = _totals(module, cast(Device, clocked))
    rounds = [(one.encode, one.submit, one.wait) for one in clocked.rounds[:-1]]
    parts = np.array(rounds).reshape(BATCHES, BATCH, 3).mean(1)
    # Of each batch, which takes no less than its parts; the medians of these may come from different ones.
    host_call = clocked_total - parts.sum(1)
    return Split(*(1e6 * float(np.median(each[WARM_UP:])) for each in (total, host_call, *parts.T)))


def _totals(module: bytes, device: Device) -> NDArray[np.float64]:
    """Seconds of a round trip by the guest's clock, the mean of each batch, [BATCHES]."""
    with Guest(module, device=device) as guest:
        guest.run()
        times = np.frombuffer(guest.read(TIMES, 8 * (BATCHES + 1)), np.int64)
    return 1e-9 * np.diff(times) / BATCH


def _guest(fresh: bool, once: bool) -> bytes:
    """The module of ``round_trip.wat``, with a command that scales 1,024 float32 in place."""
    command = np.zeros((), abi.COMMAND)
    (command["op"],) = (number for number, op in abi.OPS.items() if op.name == "scale")
    command["attributes"][0] = np.float32(1).view(np.uint32)
    for operand in command["t"][:2]:
        operand["dtype"], operand["rank"], operand["shape"][0] = 0, 1, 1024

    def offset(record: np.dtype[np.void], field: str) -> int:
        assert record.fields is not None
        return record.fields[field][1]

    first = COMMAND + offset(abi.COMMAND, "t") + offset(abi.TENSOR, "buffer")
    values = {
        "BATCH": BATCH,
        "TIMES": TIMES,
        "LAST_TIME": TIMES + 8 * BATCHES,
        "FRESH": int(fresh),
        "ONCE": int(once),
        "RECORD": "".join(f"\\{byte:02x}" for byte in command.tobytes()),
        "FIRST_BUFFER": first,
        "SECOND_BUFFER": first + abi.TENSOR.itemsize,
        "ATTRIBUTE": COMMAND + offset(abi.COMMAND, "attributes"),
        "SUBMISSION": COMMAND - 16,
        "COMMAND_SIZE": abi.COMMAND.itemsize,
        "COMMAND": COMMAND,
    }
    text = (resources.files("wasmetal.bench") / "round_trip.wat").read_text()
    return bytes(wasmtime.wat2wasm(text.format(**values)))


@dataclass(slots=True)
class Round:
    """The device's part of one round trip: seconds of each step."""

    encode: float = 0.0
    submit: float = 0.0
    wait: float = 0.0


class ClockedDevice:
    """A device that times each step of a round trip and forwards everything."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.rounds = [Round()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def record(self) -> CommandList:
        """A list whose recording is timed, from this call to ``finish``."""
        return cast(CommandList, _ClockedList(self._device.record(), self.rounds))

    def submit(self, lists: Sequence[CommandList]) -> Submission:
        """Submit, timed, with a wait that is timed too."""
        begin = time.perf_counter()
        submission = self._device.submit([cast(_ClockedList, one).commands for one in lists])
        self.rounds[-1].submit = time.perf_counter() - begin
        return cast(Submission, _ClockedSubmission(submission, self.rounds))


class _ClockedList:
    def __init__(self, commands: CommandList, rounds: list[Round]) -> None:
        self.commands = commands
        self._rounds = rounds
        self._begin = time.perf_counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.commands, name)

    def finish(self) -> None:
        self.commands.finish()
        self._rounds[-1].encode = time.perf_counter() - self._begin


class _ClockedSubmission:
    def __init__(self, submission: Submission, rounds: list[Round]) -> None:
        self._submission = submission
        self._rounds = rounds

    # Not by __getattr__, which takes several times as long, in every round trip.
    @property
    def pending(self) -> bool:
        return self._submission.pending

    @property
    def seconds(self) -> float:
        return self._submission.seconds

    @property
    def dispatches(self) -> int:
        return self._submission.dispatches

    def abandon(self) -> None:
        self._submission.abandon()

    def wait(self, timeout: float | None = None) -> None:
        begin = time.perf_counter()
        self._submission.wait(timeout)
        self._rounds[-1].wait = time.perf_counter() - begin
        self._rounds.append(Round())
