"""Looks for what one guest leaves behind: in device memory, in the KV cache, in registers, group memory and copies.

    python -m tests.security.zeroing --device vulkan --bytes 8GiB

A guest fills everything that it can get with a pattern, runs kernels on it, and ends. The next guest allocates as much,
and reads every byte that it can: new buffers, which must be zero; results of kernels, which are known; its own memory;
saved sessions and logits, which must be those that it would have got before. The exit status is 1 if a byte was found.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from tests.security.kernel_probes import DTYPES, KernelProbe, kernel_probes
from wasmetal import Limits, load_model, open_device
from wasmetal.device import Device
from wasmetal.errors import GuestTrapError
from wasmetal.host.abi import Errno
from wasmetal.models import Model

Array = NDArray[Any]

PATTERN = 0x4A5EC2E7
"""In every 4-byte word. As a float it is 3.6 million, so that kernels can multiply it."""
WORD = struct.pack("<I", PATTERN)
ENDS = ("closed", "trapped", "dropped", "closed while the device works")
"""How the guest that fills memory may end."""

SMALL_SIZES = (1, 2, 3, 5, 15, 16, 17, 100, 255, 4093, 4096, 4097, 65536, 65537, (1 << 20) + 3)
LARGE = (256 << 20) + 5
"""Bytes of the buffers that the rest is filled with."""
MEMORY_PAGES = 96
SHARED, SHARED_BYTES = PAGE, 32 * PAGE
CHUNK, CHUNK_BYTES = 40 * PAGE, 48 * PAGE
STATE_HEADER = 64


@dataclass
class Found:
    """What the second guest read."""

    read: dict[str, int] = field(default_factory=dict)
    """Bytes, by where."""
    wrong: dict[str, int] = field(default_factory=dict)
    """Of those, bytes that were not what they must be, by where. Empty if all is well."""

    def add(self, where: str, read: int, wrong: int) -> None:
        """Note bytes that were read."""
        self.read[where] = self.read.get(where, 0) + read
        if wrong:
            self.wrong[where] = self.wrong.get(where, 0) + wrong


def sizes(nbytes: int) -> list[int]:
    """Sizes of buffers of every kind that together have about ``nbytes`` bytes."""
    found: list[int] = []
    while len(found) < 60 and sum(found) + sum(SMALL_SIZES) <= nbytes // 2:
        found += SMALL_SIZES
    while (left := nbytes - sum(found)) > 0:
        found.append(min(left, LARGE))
    return found


class Tenant(Probe):
    """A guest with a device, a model and much memory."""

    def __init__(self, device: Device, model: Model, nbytes: int) -> None:
        cache = model.cache.position_bytes * model.context_length * 8
        limits = Limits(device_bytes=nbytes + cache + (64 << 20), handles=4096)
        super().__init__(device, pages=MEMORY_PAGES, maximum=2 * MEMORY_PAGES, models={"m": model}, limits=limits)
        self.put(128, b"m")
        assert self.model_open(128, 1, self.OUT) == Errno.SUCCESS
        self.model = self.u32()

    def session(self) -> int:
        """A new session."""
        assert self.session_open(self.model, self.OUT) == Errno.SUCCESS
        return self.u32()

    def forward(self, session: int, tokens: list[int]) -> bytes:
        """Append tokens; return the logits."""
        self.put(2048, np.array(tokens, np.uint32))
        assert self.session_forward(session, 2048, len(tokens), CHUNK) == Errno.SUCCESS
        assert self.model_describe(self.model, 256) == Errno.SUCCESS
        return self.bytes[CHUNK : CHUNK + 4 * self.u32(256)].tobytes()

    def saved(self, session: int) -> bytes:
        """The session's state."""
        assert self.session_save(session, CHUNK, CHUNK_BYTES, self.OUT) == Errno.SUCCESS
        return self.bytes[CHUNK : CHUNK + self.u32()].tobytes()

    def chunks(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """Offsets and lengths that cover a buffer."""
        for offset in range(0, nbytes, CHUNK_BYTES):
            yield offset, min(CHUNK_BYTES, nbytes - offset)

    def fill_new(self, nbytes: int) -> int:
        """A new buffer, filled from ``CHUNK``."""
        buffer = self.allocate(nbytes)
        for offset, length in self.chunks(nbytes):
            assert self.buffer_write(buffer, offset, CHUNK, length) == Errno.SUCCESS
        return buffer

    def launch(self, probe: KernelProbe, shared: int, out: int) -> Any:
        """A command, its inputs laid out in the shared pages."""
        operands, at = [], 0
        for position, array in enumerate(probe.inputs):
            data = np.ascontiguousarray(array)
            self.put(SHARED + at, data)
            dtype, shape = DTYPES.get(data.dtype, 0), data.shape
            if position == 1 and probe.weight:
                dtype, shape = probe.weight
            operands.append(tensor(shared, shape, at, dtype))
            at += -(-data.nbytes // 16) * 16
        assert at <= SHARED_BYTES
        stride = probe.expected.shape[-1] + probe.gap if probe.gap else 0
        written = tensor(out, probe.expected.shape, dtype=DTYPES[probe.expected.dtype], row_stride=stride)
        operands.insert(probe.out_at, written)
        attributes = () if probe.attribute is None else (probe.attribute,)
        return command(probe.op, *operands, flags=probe.flags, attributes=attributes)


def fill(device: Device, model: Model, nbytes: int, end: str) -> None:
    """A guest that leaves the pattern wherever it can, frees some of it and looks there again, and ends."""
    guest = Tenant(device, model, nbytes)
    guest.bytes[CHUNK : CHUNK + CHUNK_BYTES].view(np.uint32)[:] = PATTERN
    for size in sizes(nbytes):
        guest.fill_new(size)
    out = guest.enter(partial(_fill_kernels, guest))
    _fill_cache(guest, model)
    if end == "closed while the device works":
        x = tensor(out, (1 << 20,))
        guest.start(*[command(10, x, x, attributes=(1.0,))] * 64)
    if end == "trapped":
        with contextlib.suppress(GuestTrapError):
            guest.guest.call("trap")
    if end != "dropped":
        guest.guest.close()
    del guest
    gc.collect()


def _fill_kernels(guest: Tenant) -> int:
    """Run the kernels on the pattern; return a buffer that they have written to."""
    shared, out = guest.share(SHARED, SHARED_BYTES), guest.allocate(8 << 20)
    for probe in kernel_probes():
        filled = tuple(_patterned(array) for array in probe.inputs)
        guest.run(guest.launch(replace(probe, inputs=filled), shared, out))
    return out


def _patterned(array: Array) -> Array:
    """The same array with the pattern for its values, unless they are indices."""
    if array.dtype == np.int32:
        return array
    if array.dtype == np.float32:
        return np.full(array.shape, PATTERN, np.uint32).view(np.float32)
    return np.resize(np.frombuffer(WORD, array.dtype), array.shape)


def _fill_cache(guest: Tenant, model: Model) -> None:
    """Keys and values of the pattern, in as many pages as there are."""
    length = model.context_length
    session = guest.session()
    guest.forward(session, [i % 200 for i in range(length)])
    state = bytearray(guest.saved(session))
    state[STATE_HEADER:] = WORD * ((len(state) - STATE_HEADER) // 4)
    struct.pack_into(
        "<I", state, STATE_HEADER - 4, zlib.crc32(state[STATE_HEADER:], zlib.crc32(state[: STATE_HEADER - 4]))
    )
    guest.put(CHUNK, bytes(state))
    while guest.session_restore(session, CHUNK, len(state)) == Errno.SUCCESS:
        session = guest.session()


@dataclass(frozen=True)
class Answers:
    """What a guest gets from a model, before anybody has left anything."""

    state: bytes
    logits: bytes

    @classmethod
    def of(cls, guest: Tenant) -> Answers:
        """From new sessions: one of a few tokens, and one forked and cut off within a page."""
        first = guest.session()
        logits = guest.forward(first, [5, 6, 7])
        assert guest.session_fork(first, guest.OUT) == Errno.SUCCESS
        fork = guest.u32()
        logits += guest.forward(fork, list(range(40)))
        assert guest.session_truncate(fork, 33) == Errno.SUCCESS
        logits += guest.forward(fork, [9])
        answers = cls(guest.saved(first) + guest.saved(fork), logits)
        for session in (first, fork):
            assert guest.session_close(session) == Errno.SUCCESS
        return answers


def search(device: Device, model: Model, nbytes: int, before: Answers) -> Found:
    """What a new guest finds."""
    found = Found()
    with Tenant(device, model, nbytes) as guest:
        _search_memory(guest, found)
        _search_buffers(guest, nbytes, "new buffers", found)
        _search_buffers(guest, min(nbytes, 16 << 20), "buffers freed and allocated again", found, dirty=True)
        guest.enter(partial(_search_by_kernel, guest, found))
        guest.enter(partial(_search_kernels, guest, found))
        _search_sessions(guest, before, found)
        everything = guest.bytes.tobytes()
        found.add("the whole memory at the end", len(everything), everything.count(WORD) * len(WORD))
    return found


def _search_memory(guest: Tenant, found: Found) -> None:
    memory = guest.bytes.copy()
    memory[:4096] = 0  # the test's own
    found.add("new memory", memory.size, int(np.count_nonzero(memory)))
    size = guest.bytes.size
    assert guest.guest.call("grow", MEMORY_PAGES) == MEMORY_PAGES
    grown = guest.bytes[size:]
    found.add("grown memory", grown.size, int(np.count_nonzero(grown)))


def _search_buffers(guest: Tenant, nbytes: int, where: str, found: Found, dirty: bool = False) -> None:
    """Every byte of new buffers, by copies; ``dirty``: the guest itself fills and frees such buffers first."""
    around = 16
    window = guest.bytes[CHUNK - around : CHUNK + CHUNK_BYTES + around]
    if dirty:
        window.view(np.uint32)[:] = PATTERN
        for size in sizes(nbytes):
            assert guest.buffer_destroy(guest.fill_new(size)) == Errno.SUCCESS
    held = []
    for size in sizes(nbytes):
        held.append(guest.allocate(size))
        for offset, length in guest.chunks(size):
            window[:] = 0x11
            assert guest.buffer_read(held[-1], offset, CHUNK, length) == Errno.SUCCESS
            beside = np.count_nonzero(window[:around] != 0x11) + np.count_nonzero(window[around + length :] != 0x11)
            found.add(where, length, int(np.count_nonzero(window[around : around + length]) + beside))
    for buffer in held:
        assert guest.buffer_destroy(buffer) == Errno.SUCCESS
    window[:] = 0


def _search_by_kernel(guest: Tenant, found: Found) -> None:
    """New buffers as a kernel sees them: copied by one to the guest's memory."""
    shared = guest.share(SHARED, SHARED_BYTES)
    for size in (4, 16, 100, 4096, 65540, SHARED_BYTES):
        buffer = guest.allocate(size)
        guest.bytes[SHARED : SHARED + size] = 0x11
        shape = (size // 4,)
        guest.run(command(10, tensor(buffer, shape), tensor(shared, shape), attributes=(1.0,)))
        found.add("new buffers, by a kernel", size, int(np.count_nonzero(guest.bytes[SHARED : SHARED + size])))
        assert guest.buffer_destroy(buffer) == Errno.SUCCESS
    guest.bytes[SHARED : SHARED + SHARED_BYTES] = 0
    assert guest.buffer_destroy(shared) == Errno.SUCCESS


def _search_kernels(guest: Tenant, found: Found) -> None:
    """Results against what they must be, and what lies around them in a new buffer against zero."""
    shared = guest.share(SHARED, SHARED_BYTES)
    for probe in kernel_probes():
        guest.bytes[SHARED : SHARED + SHARED_BYTES] = 0
        rows, columns = probe.expected.shape if probe.expected.ndim > 1 else (1, probe.expected.size)
        image = np.zeros((rows + 1, columns + probe.gap), probe.expected.dtype)
        image[:rows, :columns] = probe.expected.reshape(rows, columns)
        out = guest.allocate(image.nbytes)
        guest.run(guest.launch(probe, shared, out))
        assert guest.buffer_read(out, 0, CHUNK, image.nbytes) == Errno.SUCCESS
        got = guest.bytes[CHUNK : CHUNK + image.nbytes].view(image.dtype).reshape(image.shape)
        near = np.isclose(got, image, rtol=1e-5, atol=0)
        found.add("results of kernels", image.nbytes, int(np.count_nonzero(~near)) * image.itemsize)
        assert guest.buffer_destroy(out) == Errno.SUCCESS
    assert guest.buffer_destroy(shared) == Errno.SUCCESS


def _search_sessions(guest: Tenant, before: Answers, found: Found) -> None:
    """Saved states and logits, against those of before. Also a snapshot of no tokens, which has no keys and values."""
    now = Answers.of(guest)
    for where, new, old in (("saved sessions", now.state, before.state), ("logits", now.logits, before.logits)):
        assert len(new) == len(old)
        differ = np.frombuffer(new, np.uint8) != np.frombuffer(old, np.uint8)
        found.add(where, len(new), int(np.count_nonzero(differ)))
    empty = guest.saved(guest.session())
    found.add("an empty session", len(empty), max(0, len(empty) - STATE_HEADER))


def run(device: Device, nbytes: int, end: str) -> Found:
    """One guest after another on a device. ``nbytes``: how much device memory each fills or reads."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_llama(Path(folder, "tiny.gguf"), blocks=1)
        with load_model(path, device) as model:
            with Tenant(device, model, nbytes) as first:
                before = Answers.of(first)
            fill(device, model, nbytes, end)
            return search(device, model, nbytes, before)


def byte_count(text: str) -> int:
    """8GiB, 64MiB, or a number of bytes."""
    number = text.removesuffix("GiB").removesuffix("MiB")
    return int(number) << (30 if text.endswith("GiB") else 20 if text.endswith("MiB") else 0)


def main() -> int:
    """Every way to end, one after another."""
    parser = argparse.ArgumentParser("python -m tests.security.zeroing", description="What does a guest leave behind?")
    parser.add_argument("--device", default="cpu", help="cpu (default), vulkan, metal")
    parser.add_argument("--bytes", type=byte_count, default=64 << 20, help="device memory to fill (default: 64MiB)")
    options = parser.parse_args()
    wrong = False
    with open_device(options.device) as device:
        for end in ENDS:
            start = time.monotonic()
            found = run(device, options.bytes, end)
            line = {"device": device.info.name, "end": end, "read": found.read, "wrong": found.wrong}
            print(json.dumps({**line, "seconds": round(time.monotonic() - start, 1)}), flush=True)
            wrong = wrong or bool(found.wrong)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
