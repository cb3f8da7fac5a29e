"""The interface ``wasmetal_gpu``. ``wasmetal.h`` says what each function means."""

# ruff: noqa: D102

from __future__ import annotations

import numpy as np

from wasmetal.host import abi
from wasmetal.host.account import Account
from wasmetal.host.commands import GuestBuffer
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.handles import Handles
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.metering import MeteredDevice
from wasmetal.host.submissions import Submissions, Submitted
from wasmetal.host.view import GuestMemory
from wasmetal.memory import page_size
from wasmetal.ops import ALIGNMENT

_COMMAND_BYTES, _COMMAND_ALIGNMENT = abi.COMMAND.itemsize, abi.COMMAND.alignment


class Gpu:
    """One guest's buffers and submissions. Each method that ``wasmetal.h`` names is a host function."""

    def __init__(self, account: Account, handles: Handles, device: MeteredDevice, interrupt: Interrupt) -> None:
        self._account = account
        self._handles = handles
        self._device = device
        self._page_size = max(page_size(), device.info.page_alignment)
        self._submissions = Submissions(account, device, interrupt)

    def buffer_create(self, memory: GuestMemory, ptr: int, nbytes: int, usage: int, out: int) -> None:
        handle = memory.array(out, 1, np.uint32)
        _check_usage(usage)
        self._handles.check_room()
        handle[0] = self._handles.add(self.share(memory, ptr, nbytes, usage))

    def buffer_create_device(self, memory: GuestMemory, nbytes: int, usage: int, out: int) -> None:
        handle = memory.array(out, 1, np.uint32)
        _check_usage(usage)
        if nbytes == 0:
            raise Refusal(Errno.INVAL, "a buffer of 0 bytes")
        self._handles.check_room()
        handle[0] = self._handles.add(self.allocate(nbytes, usage))

    def buffer_destroy(self, memory: GuestMemory, handle: int) -> None:
        held = self._idle(handle)
        self._handles.remove(handle)
        self._submissions.forget(held)
        held.buffer.close()
        if not held.shared:
            self._account.release(self._device.charge(held.buffer.nbytes))

    def buffer_read(self, memory: GuestMemory, handle: int, offset: int, ptr: int, nbytes: int) -> None:
        out = memory.array(ptr, nbytes)
        held = self._copyable(handle, offset, nbytes)
        if nbytes:
            self._device.read(held.buffer, offset, out)

    def buffer_write(self, memory: GuestMemory, handle: int, offset: int, ptr: int, nbytes: int) -> None:
        data = memory.array(ptr, nbytes)
        held = self._copyable(handle, offset, nbytes)
        if nbytes:
            self._device.write(held.buffer, offset, data)

    def commands_submit(self, memory: GuestMemory, ptr: int, nbytes: int, out: int) -> None:
        handle = memory.array(out, 1, np.uint32)
        commands = self._commands(memory, ptr, nbytes)
        self._handles.check_room()
        handle[0] = self._handles.add(self._submissions.submit(commands, self._buffer))

    def commands_run(self, memory: GuestMemory, ptr: int, nbytes: int) -> None:
        self._submissions.run(self._commands(memory, ptr, nbytes), self._buffer)

    def submission_wait(self, memory: GuestMemory, handle: int, timeout_ns: int) -> None:
        submitted = self._handles.get(handle, Submitted)
        try:
            self._submissions.wait(submitted, None if timeout_ns == abi.FOREVER else timeout_ns / 1e9)
        finally:
            if submitted.done:
                self._handles.remove(handle)

    def device_describe(self, memory: GuestMemory, out: int) -> None:
        record = memory.array(out, 1, abi.DEVICE_INFO)
        info = self._device.info
        record[0] = np.zeros((), abi.DEVICE_INFO)
        record["backend"] = abi.Backend["CPU" if info.backend == "reference" else info.backend.upper()]
        record["unified"] = info.unified
        record["page_size"] = self._page_size
        record["tensor_alignment"] = ALIGNMENT
        record["memory_bytes"] = info.memory_bytes
        record["memory_limit"] = self._account.limits.device_bytes
        record["handle_limit"] = self._handles.limit
        record["command_limit"] = self._account.limits.commands
        record["subgroup_size"] = info.subgroup_size
        name = info.name.encode()[:80].decode(errors="ignore").encode()
        record["name"][0, : len(name)] = np.frombuffer(name, np.uint8)

    def counters_read(self, memory: GuestMemory, out: int) -> None:
        record = memory.array(out, 1, abi.COUNTERS)
        totals = self._account.counters.as_dict()
        totals["device_ns"] = int(totals.pop("device_seconds") * 1e9)
        for name, total in totals.items():
            record[name] = total

    def share(self, memory: GuestMemory, ptr: int, nbytes: int, usage: int) -> GuestBuffer:
        """A buffer of pages of the guest's memory, without a handle yet. Raises Refusal and WrapRefusedError."""
        aperture = memory.pages(ptr, nbytes, self._page_size)
        return GuestBuffer(self._device.wrap(aperture), usage, shared=True, offset=ptr)

    def allocate(self, nbytes: int, usage: int) -> GuestBuffer:
        """A zeroed buffer of device memory, without a handle yet. Raises Refusal and OutOfDeviceMemoryError."""
        return GuestBuffer(self._device.allocate(nbytes), usage, shared=False)

    def close(self) -> None:
        """Release the guest's lists and buffers once the device has finished with them."""
        self._submissions.close()
        for held in self._handles:
            if isinstance(held, GuestBuffer):
                held.buffer.close()

    def _commands(self, memory: GuestMemory, ptr: int, nbytes: int) -> bytes:
        """A copy of the commands of a list. Raises Refusal."""
        if nbytes % _COMMAND_BYTES or not nbytes:
            raise Refusal(Errno.INVAL, f"{nbytes} bytes are not one or more commands of {_COMMAND_BYTES}")
        commands = memory.part(ptr, nbytes, _COMMAND_ALIGNMENT)
        if nbytes // _COMMAND_BYTES > self._account.limits.commands:
            raise Refusal(Errno.TOOBIG, f"limit reached: {self._account.limits.commands} commands in a list")
        return commands.tobytes()

    def _buffer(self, handle: int) -> GuestBuffer:
        return self._handles.get(handle, GuestBuffer)

    def _idle(self, handle: int) -> GuestBuffer:
        held = self._buffer(handle)
        if held.pending:
            raise Refusal(Errno.BUSY, "a pending submission names the buffer")
        return held

    def _copyable(self, handle: int, offset: int, nbytes: int) -> GuestBuffer:
        held = self._idle(handle)
        if held.shared:
            raise Refusal(Errno.INVAL, "a shared buffer's bytes are in the guest's memory already")
        if offset + nbytes > held.buffer.nbytes:
            raise Refusal(Errno.INVAL, f"{nbytes} bytes at {offset} leave the buffer of {held.buffer.nbytes}")
        return held


def _check_usage(usage: int) -> None:
    if not 0 < usage <= (abi.Usage.READ | abi.Usage.WRITE):
        raise Refusal(Errno.INVAL, f"usage {usage:#x} is not a set of WM_USAGE_READ and WM_USAGE_WRITE")
