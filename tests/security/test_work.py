"""How long a device may work for a guest: work is limited, cut into slices, and ends soon after a limit on time."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import SCRIPT
from tests.host.probe import PAGE, Probe, command, tensor
from wasmetal import Limits
from wasmetal.device import Device, open_device
from wasmetal.errors import LimitError
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.host.recording import LONGEST, SLICE_SECONDS

MATMUL, RMS_NORM, ATTENTION, ADD, SOFTMAX = 1, 4, 7, 9, 11
SLACK = 60
"""Seconds by which a machine may be late that is busy with other tests."""


@pytest.fixture(params=["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def own(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device for one test, after which it may still be at work."""
    request.getfixturevalue(request.param)  # skips, if there is none
    with open_device(request.param) as device:
        yield device


def attention(buffer: int, rows: int, entries: int, slots: int = 1 << 16) -> bytes:
    """Rows over a page table whose entries all name the one page of a pool in a buffer of 80 pages."""
    pool = tensor(buffer, (1, slots, 1, 4), dtype=1)
    sequences, batch = (
        tensor(buffer, (1, 1 + entries), 11 * PAGE, dtype=26),
        tensor(buffer, (1 + rows, 2), 8 * PAGE, dtype=26),
    )
    q, out = tensor(buffer, (rows, 3, 4), 16 * PAGE), tensor(buffer, (rows, 12), 32 * PAGE)
    return bytes(command(ATTENTION, q, pool, pool, batch, sequences, out, attributes=(1.0,)).tobytes())


def metadata(rows: int) -> tuple[bytes, bytes]:
    """Batch metadata whose rows see all there is, and the length of their sequence."""
    batch = np.zeros((1 + rows, 2), np.uint32)
    batch[0, 0], batch[1:, 0] = rows, 2**31 - 1
    return batch.tobytes(), struct.pack("<I", 2**31 - 1)


def prepare(probe: Probe, rows: int) -> int:
    """The buffer, with the metadata in place."""
    buffer = probe.share(PAGE, 64 * PAGE)
    batch, length = metadata(rows)
    probe.bytes[PAGE:] = 0
    probe.put(9 * PAGE, batch)
    probe.put(12 * PAGE, length)
    return buffer


def submit_and_wait(probe: Probe, times: int = 1) -> None:
    """Limits are looked at in both calls."""
    assert probe.commands_submit(4096, 272 * times, probe.OUT) == Errno.SUCCESS
    assert probe.submission_wait(probe.u32(), abi.FOREVER) == Errno.SUCCESS


@pytest.mark.parametrize("entries", [1, 1 << 15])
def test_positions_are_at_most_the_slots_of_the_pool(own: Device, entries: int) -> None:
    """Whatever the table's length: 2^31 positions on one page are 2^16 of them."""
    rows, limits = 4, Limits(memory_bytes=80 * PAGE, device_bytes=0, wall_seconds=60)
    with Probe(own, pages=80, maximum=80, limits=limits) as probe:
        buffer = prepare(probe, rows)
        probe.put(4096, attention(buffer, rows, min(entries, 2**15 - 1)))
        begin = time.monotonic()
        submit_and_wait(probe)
        assert time.monotonic() - begin < SLACK
        assert not probe.floats(PAGE + 32 * PAGE, 12 * rows).any()


@pytest.mark.parametrize("seconds", ["wall_seconds", "device_seconds"])
def test_a_long_command_ends_at_the_limit(own: Device, seconds: str) -> None:
    """Minutes of work in one command of a slow device. Then the guest closes, and the device works for another."""
    rows, slow = 4096, own.info.operations_per_second < 1e10
    times, limit = (1, 1.0) if slow else (180, 0.25)
    limits = Limits(memory_bytes=80 * PAGE, device_bytes=0, work=None, **{seconds: limit})
    probe = Probe(own, pages=80, maximum=80, limits=limits)
    buffer = prepare(probe, rows)
    probe.put(4096, attention(buffer, rows, 4000) * times)
    begin = time.monotonic()
    with pytest.raises(LimitError):
        submit_and_wait(probe, times)
    probe.guest.close()
    assert time.monotonic() - begin < 1 + SLACK
    with Probe(own, limits=Limits(wall_seconds=SLACK)) as other:
        x = tensor(other.share(), (4,))
        other.run(command(ADD, x, x, x))


def test_a_large_product_ends_at_the_limit(own: Device) -> None:
    n, times = 2048, 1 if own.info.operations_per_second < 1e10 else 64
    pages = 3 * 4 * n * n // PAGE + 1
    limits = Limits(device_seconds=0.05, device_bytes=0, work=None)
    with Probe(own, pages=pages, maximum=pages, limits=limits) as probe:
        buffer = probe.share(PAGE, (pages - 1) * PAGE)
        a, b, out = (tensor(buffer, (n, n), i * 4 * n * n) for i in range(3))
        handle = probe.start(*[command(MATMUL, a, b, out)] * times)
        begin = time.monotonic()
        with pytest.raises(LimitError):
            probe.submission_wait(handle, abi.FOREVER)
        assert time.monotonic() - begin < SLACK


def test_slices_of_a_command(own: Device) -> None:
    """The device is given a part of a long command at a time, and computes all of it."""
    n, pages = 1 << 24, 1025
    with Probe(own, pages=pages, maximum=pages) as probe:
        x = tensor(probe.share(PAGE, 4 * n), (n,))
        probe.floats(PAGE, n)[:] = np.arange(n) % 1000
        probe.run(command(ADD, x, x, x))
        assert (probe.floats(PAGE, n) == np.arange(n) % 1000 * 2).all()
        used = probe.guest.counters
        assert used.dispatches == used.submits == -(-12 * n // int(SLICE_SECONDS * own.info.operations_per_second))


def test_work_of_a_list(own: Device) -> None:
    """More than the limit in one list is TOOBIG, and in all that is pending AGAIN."""
    with Probe(own, limits=Limits(work=20_000)) as probe:
        x = tensor(probe.share(), (1024,))
        add = command(ADD, x, x, x)  # 12,288 operations
        assert probe.try_submit(add, add) == Errno.TOOBIG
        first = probe.start(add)
        assert probe.try_submit(add) == Errno.AGAIN
        assert probe.submission_wait(first, abi.FOREVER) == Errno.SUCCESS
        probe.run(add)


def test_the_default_limit(own: Device) -> None:
    """Enough for a product of two matrices of 10,000 by 10,000, though not for one of 11,000."""
    assert Limits().work is not None
    assert 10_000**2 * 10_100 < Limits().work < 11_000**3


def test_work_that_cannot_be_cut(own: Device) -> None:
    """A row of a softmax, of which a device computes all or nothing."""
    columns = LONGEST // 32 + 4096
    pages = 4 * columns // PAGE + 3
    with Probe(own, pages=pages, maximum=pages) as probe:
        buffer = probe.share(PAGE, (pages - 1) * PAGE)
        long, short = tensor(buffer, (1, columns)), tensor(buffer, (1, 4096))
        assert probe.try_submit(command(SOFTMAX, long, long)) == Errno.TOOBIG
        probe.run(command(SOFTMAX, short, short))


@pytest.mark.parametrize(("value", "epsilon"), [(0.0, 0.0), (1.0, -4.0)])
def test_a_norm_without_a_root_is_no_error(
    own: Device, caplog: pytest.LogCaptureFixture, value: float, epsilon: float
) -> None:
    with Probe(own) as probe:
        buffer = probe.share()
        probe.floats(PAGE, 8)[:] = value
        x, weight = tensor(buffer, (1, 4)), tensor(buffer, (4,), 16)
        probe.run(command(RMS_NORM, x, weight, tensor(buffer, (1, 4), 64), attributes=(epsilon,)))
        assert not np.isfinite(probe.floats(PAGE + 64, 4)).any()
    assert not caplog.records


def module(rows: int) -> str:
    """A guest in text that submits the attention, and waits for ever."""

    def literal(data: bytes) -> str:
        return "".join(f"\\{byte:02x}" for byte in data)

    batch, length = metadata(rows)
    handles = "".join(f"(i32.store (i32.const {4096 + 32 + 40 * i}) (i32.load (i32.const 64)))" for i in range(6))
    imports = (
        ("buffer_create", "i32 i32 i32 i32"),
        ("commands_submit", "i32 i32 i32"),
        ("submission_wait", "i32 i64"),
    )
    return "\n".join(
        [
            "(module",
            *[f'(import "{abi.GPU}" "{name}" (func ${name} (param {kinds}) (result i32)))' for name, kinds in imports],
            '(memory (export "memory") 80)',
            f'(data (i32.const 4096) "{literal(attention(1, rows, 4000))}")',
            f'(data (i32.const {9 * PAGE}) "{literal(batch)}")',
            f'(data (i32.const {12 * PAGE}) "{literal(length)}")',
            "(func $ok (param i32) (if (local.get 0) (then unreachable)))",
            '(func (export "_start")',
            f"(call $ok (call $buffer_create (i32.const {PAGE}) (i32.const {64 * PAGE}) (i32.const 3) (i32.const 64)))",
            handles,
            "(loop $again (call $ok (call $commands_submit (i32.const 4096) (i32.const 272) (i32.const 72)))",
            "(call $ok (call $submission_wait (i32.load (i32.const 72)) (i64.const -1))) (br $again))))",
        ]
    )


@pytest.mark.parametrize("own", ["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)], indirect=True)
def test_the_command_line_ends_at_its_timeout(own: Device, tmp_path: Path) -> None:
    """In a process with little address space besides the 4 GiB that a linear memory reserves."""
    attack = tmp_path / "attack.wat"
    attack.write_text(module(4096))
    options = ["--timeout", "2", "--memory-limit", "8MiB", "--device-memory-limit", "1MiB"]
    begin = time.monotonic()
    ran = subprocess.run(
        [
            "sh",
            "-c",
            'ulimit -v 7000000; exec "$@"',
            "sh",
            SCRIPT,
            "run",
            *options,
            "--device",
            own.info.backend,
            attack,
        ],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert "2 seconds of wall time" in ran.stderr
    assert ran.returncode != 0
    assert time.monotonic() - begin < 2 + SLACK
