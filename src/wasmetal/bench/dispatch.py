"""One round trip guest → device → guest, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from statistics import median
from typing import Any, cast

import numpy as np
import wasmtime

from wasmetal.device.base import CommandList, Device, Submission
from wasmetal.host import abi
from wasmetal.host.guest import Guest

ROUNDS = 500
WARM_UP = 20
COMMAND = 1024
"""Address of the command in the guest's memory."""


@dataclass(frozen=True, slots=True)
class Split:
    """Medians in µs of one round trip that runs one small kernel. The parts add up to about the total."""

    total_us: float
    host_call_us: float
    """Between guest and host: two calls (submit, wait), their checks, and the guest's own instructions."""
    encode_us: float
    """Turning the guest's commands into a command list. 0 for a list that the host has recorded before."""
    submit_us: float
    """Handing the list to the device."""
    wait_us: float
    """Until the device has finished. The CPU device computes here."""


def measure(device: Device) -> dict[str, Split]:
    """The split for a list that is new to the host, and for one that it has recorded before."""
    return {"new": _split(device, fresh=True), "same": _split(device, fresh=False)}


def _split(device: Device, fresh: bool) -> Split:
    clocked = ClockedDevice(device)
    with Guest(_guest(fresh), device=cast(Device, clocked)) as guest:
        guest.run()
    rounds = clocked.rounds[WARM_UP:]
    total = median(after.end - before.end for before, after in pairwise(rounds))
    encode, submit, wait = (median(getattr(one, part) for one in rounds) for part in ("encode", "submit", "wait"))
    return Split(*(1e6 * part for part in (total, total - encode - submit - wait, encode, submit, wait)))


def _guest(fresh: bool) -> bytes:
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
        "ROUNDS": ROUNDS,
        "FRESH": int(fresh),
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
    """The device's part of one round trip: seconds of each step, and the time at its end."""

    encode: float = 0.0
    submit: float = 0.0
    wait: float = 0.0
    end: float = 0.0


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._submission, name)

    def wait(self, timeout: float | None = None) -> None:
        begin = time.perf_counter()
        self._submission.wait(timeout)
        done = self._rounds[-1]
        done.end = time.perf_counter()
        done.wait = done.end - begin
        self._rounds.append(Round())
