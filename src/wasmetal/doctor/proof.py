"""The links of the chain, one method each: linear memory, its pages, and the device's buffer over them.

A link says what it saw, or raises :class:`BrokenLinkError`. The guest (``probe.wat``) writes and checks bytes itself,
so that whoever compares is never the one who wrote.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import resources
from statistics import median
from typing import Self

import numpy as np
from numpy.typing import NDArray
from wasmtime import Func, Instance, Memory, Module, Store

from wasmetal import ops
from wasmetal.device.base import Buffer, CommandList, Device, MemoryKind
from wasmetal.doctor.report import Link, Report
from wasmetal.errors import WasmetalError
from wasmetal.memory.creator import MemoryCreator
from wasmetal.memory.pages import page_size
from wasmetal.memory.wasmtime_engine import new_engine
from wasmetal.ops import DType, Recorder, Tensor
from wasmetal.resident import resident_bytes

START = 1 << 20
"""Where the shared range begins in the guest's memory: a multiple of every page size in use."""
SHARED = 16 << 20
"""Bytes shared with the device, and then copied to it for comparison."""
WASM_PAGE = 1 << 16
COUNT = 1 << 16
"""Elements of each array of test values, all below 2**24, so that float32 holds them exactly."""
N = 128
"""Rows and columns of the multiplied matrices."""
REPEATS = 30
NOISE_PAGES = 64
"""Pages that allocators and drivers may add to the process between two measurements; a copy adds far more."""


class BrokenLinkError(WasmetalError):
    """A link of the chain does not hold; the message says what was seen."""


def prove(device: Device) -> Report:
    """Check the chain on ``device``. Does not raise if a link fails: the report says which and why."""
    report = Report(device.info.name, device.info.backend, device.info.spec, device.info.features)
    with ExitStack() as stack:
        chain: Chain | None = None
        for name in ("pages", "addresses", "bytes", "growth", "memory", "matmul", "copies"):
            try:
                if chain is None:
                    chain = stack.enter_context(Chain(device, report))
                report.links.append(Link(name, True, getattr(chain, name)()))
            except WasmetalError as error:
                report.links.append(Link(name, False, str(error)))
    return report


class Chain:
    """A guest whose memory is shared with the device, and one method for each link."""

    def __init__(self, device: Device, report: Report) -> None:
        self.device = device
        self.report = report
        creator = MemoryCreator()
        engine = new_engine(creator)
        self.store = Store(engine)
        self.store.set_epoch_deadline(1)
        probe = (resources.files("wasmetal.doctor") / "probe.wat").read_text()
        self.exports = Instance(self.store, Module(engine, probe), []).exports(self.store)
        self.copied_before = device.counters.bytes_copied
        self.copied_for_comparison = 0
        self.base = self._base()
        self.region = creator.region_at(self.base)
        self.aperture = self.region.aperture(START, SHARED)
        self.buffer = device.wrap(self.aperture)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.buffer.close()
        self.aperture.close()
        self.store.close()

    def pages(self) -> str:
        """Shared pages are aligned to the operating system's pages and to the device's."""
        need = max(page_size(), self.device.info.page_alignment)
        check(self.region.address % need == 0, f"memory at {self.region.address:#x} is not aligned to {need}")
        return f"memory at {self.base:#x}, aligned to the {page_size()}-byte pages; the device asks for {need}"

    def addresses(self) -> str:
        """Wasm memory, mapping and buffer have the same address."""
        seen = {"wasm": self.base, "mapping": self.region.address}
        if self.buffer.address is not None:
            seen["buffer"] = self.buffer.address - START
        check(len(set(seen.values())) == 1, f"addresses differ: {listed(seen)}")
        self.report.pointer_identity = True
        device = self.buffer.device_address
        if device is None:
            return f"{listed(seen)}; the device does not report its own address"
        same = "the same" if device == self.aperture.address else "its own"
        return f"{listed(seen)}; the device uses {same}, {device:#x} for byte {START:#x}"

    def bytes(self) -> str:
        """Guest, host and device each see what the other two write."""
        a, b, out = self._arrays()
        self._call("write", START, COUNT, 0.0, 1.0)
        check(bool(np.array_equal(self._host(a), progression(0, 1))), "the host does not see what the guest wrote")
        self._host(b)[:] = progression(100_000, 2)
        check(self._mismatches(b, 100_000, 2) == 0, "the guest does not see what the host wrote")
        self._run(lambda rec: ops.add(rec, a, b, out))
        check(self._mismatches(out, 100_000, 3) == 0, "the guest does not see what the device wrote")
        check(
            bool(np.array_equal(self._host(out), progression(100_000, 3))),
            "the host does not see what the device wrote",
        )
        return f"{COUNT} values each, written by guest, host and device, seen by the other two"

    def growth(self) -> str:
        """The memory grows in place under the live buffer, and the new pages can be shared."""
        before = self.region.size
        for _ in range(16):
            check(self._call("grow", 1) >= 0, f"refused to grow past {self.region.size} bytes")
        check(self._base() == self.base, f"memory moved from {self.base:#x} to {self._base():#x}")
        a, b, out = self._arrays()
        self._call("write", START, COUNT, 5.0, 1.0)
        self._host(b)[:] = progression(0, 1)
        self._run(lambda rec: ops.add(rec, a, b, out))
        check(self._mismatches(out, 5, 2) == 0, "the buffer shared before the growth no longer shows the guest's bytes")

        aperture = self.region.aperture(before, 16 * WASM_PAGE)
        fresh = self.device.wrap(aperture)
        grown = Tensor(fresh, 0, DType.F32, (COUNT,))
        self._run(lambda rec: ops.add(rec, a, b, grown))
        seen = self._call("mismatches", before, COUNT, 5.0, 2.0) == 0
        fresh.close()
        aperture.close()
        check(seen, "the guest does not see what the device wrote in the new pages")
        return f"from {before} to {self.region.size} bytes in place, live buffer and new pages both shared"

    def memory(self) -> str:
        """Sharing adds no memory. (Copying does: measured beside it, not judged.)"""
        self._call("write", START, SHARED // 4, 0.0, 0.0)  # every page is resident before the first measurement

        def share(nbytes: int) -> Buffer:
            return self.device.wrap(self.region.aperture(START, nbytes))

        def copy(nbytes: int) -> Buffer:
            buffer = self.device.allocate(nbytes, MemoryKind.DEVICE)
            self.device.write(buffer, 0, self.aperture.view()[:nbytes])
            return buffer

        shared = self.report.shared_overhead_mb = self._overhead(share)
        copied_before = self.device.counters.bytes_copied
        copied = self.report.copy_overhead_mb = self._overhead(copy)
        self.copied_for_comparison += self.device.counters.bytes_copied - copied_before
        saw = f"{shared:.2f} MB added by sharing 16 MiB, {copied:.2f} MB by copying them"
        check(shared < max(1e6, NOISE_PAGES * page_size()) / 1e6, saw)
        return saw

    def matmul(self) -> str:
        """Two matrices multiplied in place in the guest's memory, and as copies."""
        random = np.random.default_rng(0)
        nbytes = N * N * 4
        inputs = [random.standard_normal((N, N), np.float32) for _ in range(2)]
        shared = [Tensor(self.buffer, i * nbytes, DType.F32, (N, N)) for i in range(3)]
        for tensor, values in zip(shared, inputs, strict=False):
            self._host(tensor)[:] = values

        def check_result(result: NDArray[np.float32], what: str) -> None:
            error = float(np.abs(result - inputs[0] @ inputs[1]).max())
            check(error < 1e-3, f"the matmul {what} is off by {error:.2g}")

        buffers = [self.device.allocate(nbytes, MemoryKind.DEVICE) for _ in range(3)]
        copied = [Tensor(buffer, 0, DType.F32, (N, N)) for buffer in buffers]
        in_place = self._record(lambda rec: ops.matmul(rec, *shared))
        on_copies = self._record(lambda rec: ops.matmul(rec, *copied))
        result = np.empty((N, N), np.float32)

        def multiply() -> None:
            self.device.submit([in_place]).wait()

        def copy_and_multiply() -> None:
            before = self.device.counters.bytes_copied
            for buffer, values in zip(buffers, inputs, strict=False):
                self.device.write(buffer, 0, values.reshape(-1).view(np.uint8))
            self.device.submit([on_copies]).wait()
            self.device.read(buffers[2], 0, result.reshape(-1).view(np.uint8))
            self.copied_for_comparison += self.device.counters.bytes_copied - before

        self.report.gemm_shared_ms, self.report.gemm_copy_ms = medians_ms(multiply, copy_and_multiply)
        for commands in (in_place, on_copies):
            commands.close()
        for buffer in buffers:
            buffer.close()
        check_result(self._host(shared[2]), "in the guest's memory")
        check_result(result, "of the copies")
        return (
            f"{N} × {N} in {self.report.gemm_shared_ms:.3f} ms in place, "
            f"{self.report.gemm_copy_ms:.3f} ms with copies there and back"
        )

    def copies(self) -> str:
        """No byte was copied, except for the two comparisons with copying."""
        copied = self.device.counters.bytes_copied - self.copied_before - self.copied_for_comparison
        self.report.bytes_copied = copied
        saw = f"{copied} bytes copied on the shared path"
        check(copied == 0, saw)
        return saw

    def _base(self) -> int:
        memory = self.exports["memory"]
        assert isinstance(memory, Memory)
        return address_of(memory, self.store)

    def _call(self, name: str, *arguments: float) -> int:
        function = self.exports[name]
        assert isinstance(function, Func)
        return int(function(self.store, *arguments) or 0)

    def _mismatches(self, tensor: Tensor, first: float, step: float) -> int:
        """How many values the guest finds to differ from first, first + step, …"""
        return self._call("mismatches", START + tensor.offset, COUNT, float(first), float(step))

    def _arrays(self) -> list[Tensor]:
        """Three arrays of COUNT float32, one after another, at the start of the shared range."""
        return [Tensor(self.buffer, i * COUNT * 4, DType.F32, (COUNT,)) for i in range(3)]

    def _host(self, tensor: Tensor) -> NDArray[np.float32]:
        """The tensor's bytes as the host sees them, through the mapping and not through the device."""
        begin = START + tensor.offset
        return self.region.view()[begin : begin + tensor.nbytes].view(np.float32).reshape(tensor.shape)

    def _record(self, encode: Callable[[Recorder], None]) -> CommandList:
        commands = self.device.record()
        encode(Recorder(self.device.info, commands))
        commands.finish()
        return commands

    def _run(self, encode: Callable[[Recorder], None]) -> None:
        commands = self._record(encode)
        self.device.submit([commands]).wait()
        commands.close()

    def _overhead(self, give: Callable[[int], Buffer]) -> float:
        """MB added by giving the device 16 MiB and having it read and write all of them.

        Counted are this process's resident memory and, if the device has memory of its own, which shows in no
        process's, the bytes allocated there.
        """

        def added(nbytes: int) -> int:
            before = resident_bytes()
            buffer = give(nbytes)
            tensor = Tensor(buffer, 0, DType.F32, (nbytes // 4,))
            self._run(lambda rec: ops.scale(rec, tensor, 1.0, tensor))
            growth = resident_bytes() - before
            if buffer.kind is MemoryKind.DEVICE and not self.device.info.unified:
                growth += nbytes
            buffer.close()
            return growth

        added(WASM_PAGE)  # what the first use of anything costs (kernels, staging) is not the sharing's
        # The median: other threads of the process may allocate or release memory during a measurement.
        return median(added(SHARED) for _ in range(3)) / 1e6


def check(holds: bool, saw: str) -> None:
    """Raise BrokenLinkError with what was seen, unless it holds."""
    if not holds:
        raise BrokenLinkError(saw)


def listed(addresses: dict[str, int]) -> str:
    """Names and addresses on one line."""
    return ", ".join(f"{name} {address:#x}" for name, address in addresses.items())


def progression(first: int, step: int) -> NDArray[np.float32]:
    """First, first + step, … in COUNT float32."""
    return first + step * np.arange(COUNT, dtype=np.float32)


def address_of(memory: Memory, store: Store) -> int:
    """Address of a Wasm memory in this process."""
    return ctypes.cast(memory.data_ptr(store), ctypes.c_void_p).value or 0


def medians_ms(*actions: Callable[[], object]) -> list[float]:
    """Median times of REPEATS runs of each, in ms, after three to warm up. They alternate."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(3 + REPEATS):
        for action, its in zip(actions, times, strict=True):
            begin = time.perf_counter()
            action()
            its.append(time.perf_counter() - begin)
    return [1e3 * median(its[3:]) for its in times]
