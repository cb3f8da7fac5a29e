"""Mistakes put into the Metal device on purpose: each must be noticed on the emulated GPU."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from device.harness import recorded, span
from metal.devices import EMULATED
from metal.standin import Gpu, RuleError, installed
from metal.standin.mutant import mutant
from wasmetal.device import MemoryKind, open_device
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

pytestmark = pytest.mark.skipif(not EMULATED, reason="on a Mac Metal is not emulated")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))


def use_it() -> None:
    """A bit of everything that a device does. Fails where a result is wrong, or something is left behind."""
    gpu = Gpu(max_buffer_length=4 * page_size())
    region = Region(16 * page_size(), 8 * page_size())
    memory = region.view().view(np.float32)[-64:]
    memory[:] = 1
    with installed(gpu):
        device = open_device("metal")
        wrapped = device.wrap(region.aperture(0, region.size))
        shared = span(wrapped, region.size // 4 - 64, 64)
        short_lived = Region(page_size(), page_size())
        ones = device.wrap(short_lived.aperture(0, page_size()))
        own = device.allocate(4 * 48, MemoryKind.SHARED)
        values = own.view().view(np.float32).reshape(3, 16)
        ones.view().view(np.float32)[:16] = values[:] = 1
        one, a, b, c = span(ones, 0, 16), *(span(own, start, 16) for start in (0, 16, 32))
        lists = [
            recorded(device, (one, b, c), (b, c, a), (c, a, b)),  # 3, 5, 2
            recorded(device, (a, b, c), (shared, shared, shared)),  # 3, 5, 8
            recorded(device, (c, c, a), (shared, shared, shared)),  # 16, 5, 8
        ]
        submissions = [device.submit(lists[:2]), device.submit(lists[2:])]
        for closed in (wrapped, ones, own, *lists, short_lived):
            closed.close()
        del wrapped, ones, own, shared, one, a, b, c, lists, short_lived, closed
        gc.collect()
        assert all(submission.wait() > 0 for submission in submissions)
        assert values[:, 0].tolist() == [16, 5, 8]
        assert np.all(memory == 4)
        gc.collect()
        assert not gpu.live, "buffers were left behind"
        device.close()


def test_without_a_mistake() -> None:
    use_it()


MISTAKES: dict[str, tuple[str, str, str, type[Exception]]] = {
    "a wrong selector": ("memory", "BytesNoCopy_length_options_", "BytesNoCopy_length_option_", AttributeError),
    "a missing argument": ("memory", "pages.size, _OPTIONS, None)", "pages.size, _OPTIONS)", TypeError),
    "an argument of another kind": ("encoding", "buffer, offset, index)", "buffer, float(offset), index)", ValueError),
    "a wrong constant": ("api", "MTLCommandBufferErrorTimeout", "MTLCommandBufferErrorTimedOut", AttributeError),
    "an unaligned length": ("memory", "pages.size, _OPTIONS, None)", "pages.size - 4, _OPTIONS, None)", RuleError),
    "an unaligned offset": ("memory", "_parts.range(part)[0]", "_parts.range(part)[0] + 4", RuleError),
    "an unaligned parameter": ("commands", "_SLOT = 256", "_SLOT = 40", RuleError),
    "private storage": ("memory", "mtl.MTLResourceStorageModeShared |", "2 << 4 |", RuleError),
    "fast math": ("pipeline", "mtl.MTLMathModeSafe", "2", RuleError),
    "too many threads": ("commands", ".kernel.threads)", ".kernel.threads[:2] + (16,))", RuleError),
    "no pipeline": ("encoding", 'self._call("setComputePipelineState_", pipeline)', "pass", RuleError),
    "an offset not set": ("encoding", 'self._call("setBufferOffset_atIndex_", offset, index)', "pass", AssertionError),
    "no barrier between dispatches": ("commands", "encoding.barrier()", "pass", AssertionError),
    "no barrier between lists": ("stream", "self._encoder.memoryBarrierWithScope_", "id", AssertionError),
    "submissions out of order": ("queue", "commands.encodeWaitForEvent_value_(", "print(", AssertionError),
    "an encoder left open": ("stream", "encoder.endEncoding()", "pass", RuleError),
    "no autorelease pool": ("queue", "with self._lock, objc.autorelease_pool():", "with self._lock:", RuleError),
    "a buffer released early": ("queue", "commands, lists)", "commands, ())", RuleError),
    "pages released early": ("commands", "dispatch.ranges) for", "None) for", RuleError),
    "a buffer kept for ever": ("memory", "queue.residency.remove(buffers)", "pass", AssertionError),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str) -> None:
    module, old, new, noticed = MISTAKES[mistake]
    with mutant(module, old, new), pytest.raises(noticed):
        use_it()
    gc.collect()
