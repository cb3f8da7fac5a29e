"""Mutations of the Metal device, one function or constant at a time.

Each must be noticed by the stand-in, which enforces Metal's rules, or show in results.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.device.harness import recorded, span
from tests.metal.devices import EMULATED
from tests.metal.standin import Gpu, RuleError, installed
from tests.metal.test_metal_mps import by_mps, chain, check, run
from tests.ops.tensors import Bench
from wasmetal.device import MemoryKind, open_device
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not EMULATED, reason="on a Mac Metal is not emulated")]


@pytest.fixture(autouse=True)
def _home(tried: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))


Mistake = Callable[["Seams"], None]


class Seams:
    """The functions and constants of the device's modules, as imported with the stand-in, to put mistakes into."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def replace(self, module: str, name: str, mistake: Callable[[Any], Any]) -> None:
        """Replace ``name`` (``Class.method`` for a method) by what ``mistake`` makes of it."""
        owner: Any = import_module(f"wasmetal.device.{module}")
        *path, attribute = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        self._patch.setattr(owner, attribute, mistake(getattr(owner, attribute)))


def nothing(module: str, name: str) -> Mistake:
    """A function that does nothing."""
    return lambda seams: seams.replace(module, name, lambda _: lambda *args: None)


def number(module: str, name: str, value: int) -> Mistake:
    """Another number."""
    return lambda seams: seams.replace(module, name, lambda _: value)


def changed(module: str, name: str, mistake: Callable[..., Any]) -> Mistake:
    """A function replaced by ``mistake``, which takes the real one as its first argument."""
    return lambda seams: seams.replace(module, name, lambda real: lambda *args: mistake(real, *args))


def use_it(mistake: Mistake, patch: pytest.MonkeyPatch) -> None:
    """Some of everything that a device does. Fails if a result is wrong, or a buffer is leaked."""
    gpu = Gpu(max_buffer_length=4 * page_size())
    region = Region(16 * page_size(), 8 * page_size())
    memory = region.view().view(np.float32)[-64:]
    memory[:] = 1
    with installed(gpu), patch.context() as patches:
        mistake(Seams(patches))
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
        for submission in submissions:
            submission.wait()
            assert submission.seconds > 0
        assert values[:, 0].tolist() == [16, 5, 8]
        assert np.all(memory == 4)
        gc.collect()
        assert not gpu.live, "buffers were leaked"
        device.close()


def use_mps(mistake: Mistake, patch: pytest.MonkeyPatch) -> None:
    """Dependent kernels and MPS GEMMs. Also fails if MPS is not used."""
    with installed(), patch.context() as patches:
        mistake(Seams(patches))
        with open_device("metal") as device, Bench(device) as bench:
            operations, out, want = chain(bench)
            run(bench, *operations)
            assert by_mps(device)
            check(bench.get(out), want)


def none(seams: Seams) -> None:
    """No mistake."""


@pytest.mark.parametrize("use", [use_it, use_mps])
def test_without_a_mistake(use: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    use(none, monkeypatch)


def keeps_parameters_alone(init: Callable[..., None], recording: Any, *args: Any) -> None:
    init(recording, *args)
    recording.uses[:] = recording.uses[-1:]


def tells_of_no_gemm(init: Callable[..., None], recording: Any, *args: Any) -> None:
    init(recording, *args)
    recording.gemms = 0


def turned(gemm: Any) -> Any:
    left, right, result = gemm.matrices
    wrong = replace(right, rows=right.columns, columns=right.rows, transposed=not right.transposed)
    return replace(gemm, matrices=(left, wrong, result))


def too_many_threads(command: Callable[..., Any], pipeline: Any, arguments: Any, sizes: Any, barrier: bool) -> Any:
    groups, threads = sizes
    return command(pipeline, arguments, (groups, type(threads)((*threads[:2], 16))), barrier)


def without(method: str) -> Mistake:
    """One method of the encoder is never called."""
    return changed("metal.encoding", "_calls", lambda real, run: [call for call in real(run) if call[0] != method])


def further(bind: Callable[..., tuple[Any, int]], allocation: Any, *place: int) -> tuple[Any, int]:
    buffer, at = bind(allocation, *place)
    return buffer, at + 4


MISTAKES: dict[str, tuple[Mistake, type[Exception]]] = {
    "an unaligned length": (
        changed("metal.memory", "_wrap", lambda real, device, pages: real(device, pages[:-4])),
        RuleError,
    ),
    "an unaligned offset": (changed("metal.memory", "MetalAllocation.bind", further), RuleError),
    "an unaligned parameter": (number("metal.recording", "_SLOT", 40), RuleError),
    "private storage": (number("metal.memory", "_OPTIONS", 2 << 4), RuleError),
    "fast math": (number("metal.pipeline", "mtl.MTLMathModeSafe", 2), RuleError),
    "too many threads": (changed("metal.recording", "Command", too_many_threads), RuleError),
    "no pipeline": (without("setComputePipelineState_"), RuleError),
    "an offset not set": (without("setBufferOffset_atIndex_"), AssertionError),
    "no barrier between dispatches": (nothing("metal.recording", "Hazards.needs_barrier"), AssertionError),
    "no barrier between lists": (nothing("metal.stream", "Stream.barrier"), AssertionError),
    "submissions out of order": (nothing("metal.queue", "CommandQueue._busy"), AssertionError),
    "an encoder left open": (nothing("metal.stream", "Stream.close"), RuleError),
    "no autorelease pool": (
        lambda seams: seams.replace("metal.queue", "objc", lambda _: SimpleNamespace(autorelease_pool=nullcontext)),
        RuleError,
    ),
    "pages released early": (changed("metal.recording", "MetalRecording.__init__", keeps_parameters_alone), RuleError),
    "a buffer kept for ever": (nothing("metal.residency", "Residency.remove"), AssertionError),
}

MISTAKES_WITH_MPS: dict[str, tuple[Mistake, type[Exception]]] = {
    "passes out of order": (
        changed("metal.stream", "Stream.commands", lambda _, stream: (stream.close(), stream._commands)[1]),
        AssertionError,
    ),
    "an open encoder": (changed("metal.stream", "Stream.commands", lambda _, stream: stream._commands), RuleError),
    "an event that had come already": (
        changed("metal.stream", "Stream.__init__", lambda real, s, commands, event, _: real(s, commands, event, ONES)),
        RuleError,
    ),
    "an MPS pass with unretained references": (
        changed("metal.recording", "MetalRecording.__init__", tells_of_no_gemm),
        RuleError,
    ),
    "no element's offset": (
        changed("libraries.mps", "_matrix", lambda real, matrix, buffer, begin: real(matrix, buffer, begin + 1)),
        RuleError,
    ),
    "the offset of a binding left out": (
        changed("libraries.mps", "_matrix", lambda real, matrix, buffer, begin: real(matrix, buffer, 0)),
        AssertionError,
    ),
    "the wrong way round": (
        changed("libraries.mps", "MpsGemm", lambda real, device, gemm, places: real(device, turned(gemm), places)),
        AssertionError,
    ),
    "a result not added to": (
        changed("libraries.mps", "_kernel", lambda real, device, gemm: real(device, replace(gemm, accumulate=False))),
        AssertionError,
    ),
}
ONES = itertools.repeat(1)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, noticed = MISTAKES[mistake]
    with pytest.raises(noticed):
        use_it(made, monkeypatch)
    gc.collect()


@pytest.mark.parametrize("mistake", MISTAKES_WITH_MPS)
def test_a_mistake_with_mps_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake may already show in the trials: then MPS is not used, which is an AssertionError too."""
    made, noticed = MISTAKES_WITH_MPS[mistake]
    with pytest.raises(noticed):
        use_mps(made, monkeypatch)
    gc.collect()
