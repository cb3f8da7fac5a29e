"""The stand-in for PyObjC: it has what the wheel describes, and refuses what would abort the process on a Mac."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.metal.standin import Gpu, RuleError, bridge, framework, gpu, wheel
from tests.metal.standin.bridge import Object, Pool, table
from tests.metal.standin.framework import Framework
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

SOURCE = """#include <metal_stdlib>
using namespace metal;
[[kernel]] void twice(uint3 group [[threadgroup_position_in_grid]], uint3 thread_ [[thread_position_in_threadgroup]],
    uint constant* count [[buffer(0)]], float device* x [[buffer(1)]])
{
    uint i = group.x * 32u + thread_.x;
    if (i < *count) { x[i] = 2.0 * x[i]; }
}
"""


def test_the_signatures_are_the_wheels() -> None:
    try:
        text = wheel.generate()
    except subprocess.CalledProcessError as error:
        if os.environ.get("WASMETAL_REQUIRE_PYOBJC") == "1":
            raise
        pytest.skip(f"PyObjC's wheel could not be downloaded: {error}")
    assert text == wheel.SIGNATURES.read_text(), "run `python -m tests.metal.standin`"


def test_all_it_has_is_described() -> None:
    """By the wheel, or else by the stand-in, but only for classes: the wheel describes all protocols."""
    assert framework.selectors() == table().methods.keys()
    for kind in vars(framework).values():
        if isinstance(kind, type) and issubclass(kind, Object) and kind.protocol:
            own = {bridge.selector(name) for name in vars(kind) if name[0] != "_" and callable(getattr(kind, name))}
            assert own <= set(kind.described), kind
            told = set(table().protocols.get(kind.protocol, own))
            assert own <= told, f"{kind.protocol} has no {own - told}"


def test_how_types_are_written() -> None:
    pointer = {"type": b"^v", "type_modifier": b"n", "c_array_length_in_arg": 3}
    assert wheel._types({"retval": {"type": b"@"}, "arguments": {2: pointer}}) == "@ n^v[1]"
    assert list(wheel._split("{MTLSize=QQQ}Q@?^@v")) == ["{MTLSize=QQQ}", "Q", "@?", "^@", "v"]


@pytest.fixture(autouse=True)
def _pool() -> Iterator[None]:
    with Pool():
        yield


class Bench:
    """An emulated GPU with everything that a kernel needs, made by hand."""

    def __init__(self) -> None:
        self.gpu = Gpu()
        self.mtl = Framework([self.gpu])
        self.device = self.mtl.MTLCopyAllDevices()[0]
        self.region = Region(4 * page_size(), 4 * page_size())
        self.floats = self.region.view().view(np.float32)
        self.buffer = self.wrap(self.region.view())
        options = self.mtl.MTLCompileOptions.new()
        options.setMathMode_(self.mtl.MTLMathModeSafe)
        options.setMathFloatingPointFunctions_(self.mtl.MTLMathFloatingPointFunctionsPrecise)
        self.library, _ = self.device.newLibraryWithSource_options_error_(SOURCE, options, None)
        descriptor = self.mtl.MTLComputePipelineDescriptor.new()
        descriptor.setComputeFunction_(self.library.newFunctionWithName_("twice"))
        self.pipeline, _ = self.device.newComputePipelineStateWithDescriptor_options_reflection_error_(
            descriptor, 0, None, None
        )
        self.queue = self.device.newCommandQueue()
        self.event = self.device.newSharedEvent()
        self.commands = self.queue.commandBufferWithUnretainedReferences()

    def wrap(self, pages: Any, length: int | None = None, options: int = 0) -> Any:
        length = pages.size if length is None else length
        return self.device.newBufferWithBytesNoCopy_length_options_deallocator_(pages, length, options, None)

    def encoder(self) -> Any:
        return self.commands.computeCommandEncoderWithDispatchType_(self.mtl.MTLDispatchTypeConcurrent)

    def dispatch(self, encoder: Any, threads: int = 32, groups: int = 1) -> None:
        encoder.dispatchThreadgroups_threadsPerThreadgroup_(
            self.mtl.MTLSizeMake(groups, 1, 1), self.mtl.MTLSizeMake(threads, 1, 1)
        )

    def bound(self) -> Any:
        """An encoder that is ready for a dispatch of 16 floats."""
        self.floats[0:1].view(np.uint32)[:] = 16
        encoder = self.encoder()
        encoder.setComputePipelineState_(self.pipeline)
        encoder.setBuffer_offset_atIndex_(self.buffer, 0, 0)
        encoder.setBuffer_offset_atIndex_(self.buffer, page_size(), 1)
        return encoder

    def commit(self, encoder: Any) -> None:
        encoder.endEncoding()
        self.commands.commit()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Pool():
        made = Bench()
        yield made
        if made.commands._encoder is not None:
            made.commands._encoder.ended = True
        made.gpu.hangs = True
        del made
        gc.collect()


def test_what_is_right_works(bench: Bench) -> None:
    bench.floats[page_size() // 4 :][:32] = 1
    encoder = bench.bound()
    bench.dispatch(encoder)
    bench.commit(encoder)
    assert bench.floats[page_size() // 4] == 1  # work only runs when it is waited for
    bench.commands.waitUntilCompleted()
    assert bench.commands.status() == bench.mtl.MTLCommandBufferStatusCompleted
    assert bench.floats[page_size() // 4 :][:17].tolist() == [2] * 16 + [1]


def encode(use: Callable[[Bench, Any], object]) -> Callable[[Bench], object]:
    return lambda bench: use(bench, bench.bound())


BROKEN: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "pages that begin inside a page": ("not the address", lambda b: b.wrap(b.region.view()[16 : 16 + page_size()])),
    "a length inside a page": ("no whole number", lambda b: b.wrap(b.region.view(), page_size() + 16)),
    "no length": ("no whole number", lambda b: b.wrap(b.region.view(), 0)),
    "private storage": ("shared storage", lambda b: b.wrap(b.region.view(), options=32)),
    "more than maxBufferLength": (
        "maxBufferLength",
        lambda b: setattr(b.gpu, "max_buffer_length", page_size()) or b.wrap(b.region.view()),
    ),
    "fast math": (
        "fast math",
        lambda b: b.device.newLibraryWithSource_options_error_(SOURCE, b.mtl.MTLCompileOptions.new(), None),
    ),
    "two encoders": ("encoder is open", lambda b: (b.encoder(), b.encoder())),
    "a signal inside an encoder": (
        "encoder is open",
        lambda b: (b.encoder(), b.commands.encodeSignalEvent_value_(b.event, 1)),
    ),
    "a commit inside an encoder": ("encoder is open", lambda b: (b.encoder(), b.commands.commit())),
    "two commits": ("commit after commit", lambda b: (b.commands.commit(), b.commands.commit())),
    "an encoder after the commit": ("after commit", lambda b: (b.commands.commit(), b.encoder())),
    "a wait before the commit": ("before commit", lambda b: b.commands.waitUntilCompleted()),
    "a call after endEncoding": ("after endEncoding", encode(lambda b, e: (e.endEncoding(), b.dispatch(e)))),
    "endEncoding twice": ("after endEncoding", encode(lambda b, e: (e.endEncoding(), e.endEncoding()))),
    "no pipeline": ("before a pipeline", lambda b: b.dispatch(b.encoder())),
    "no buffer": (
        "no buffer was set at index 0",
        lambda b: (e := b.encoder(), e.setComputePipelineState_(b.pipeline), b.dispatch(e)),
    ),
    "an offset without a buffer": ("before a buffer", lambda b: b.encoder().setBufferOffset_atIndex_(16, 3)),
    "too many threads": ("1025 threads", encode(lambda b, e: b.dispatch(e, threads=1025))),
    "more threads than the pipeline has": (
        "33 threads",
        encode(lambda b, e: setattr(b.gpu, "max_threads", 32) or b.dispatch(e, threads=33)),
    ),
    "no threads": ("0 threads", encode(lambda b, e: b.dispatch(e, threads=0))),
    "no groups": ("no threadgroups", encode(lambda b, e: b.dispatch(e, groups=0))),
    "an unaligned constant": ("no multiple of 32", encode(lambda b, e: e.setBufferOffset_atIndex_(16, 0))),
    "an unaligned buffer": ("no multiple of 16", encode(lambda b, e: e.setBufferOffset_atIndex_(8, 1))),
    "an offset past the end": ("past a buffer", encode(lambda b, e: e.setBufferOffset_atIndex_(4 * page_size(), 1))),
    "a 32nd buffer": ("there are 31", encode(lambda b, e: e.setBuffer_offset_atIndex_(b.buffer, 0, 31))),
    "a barrier that orders no buffers": ("orders no buffers", encode(lambda b, e: e.memoryBarrierWithScope_(2))),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_rule_of_metals(bench: Bench, what: str) -> None:
    words, break_it = BROKEN[what]
    with pytest.raises(RuleError, match=words):
        break_it(bench)


def test_work_on_what_is_gone(bench: Bench) -> None:
    for gone in ("buffer", "pipeline", "region"):
        fresh = Bench()
        encoder = fresh.bound()
        fresh.dispatch(encoder)
        fresh.commit(encoder)
        if gone == "region":
            fresh.region.close()
            fresh.floats = None
        setattr(fresh, gone, None)
        gc.collect()
        with pytest.raises(RuleError, match=r"released before|unmapped before"):
            fresh.commands.waitUntilCompleted()


def test_a_kernel_that_leaves_its_buffer(bench: Bench) -> None:
    encoder = bench.bound()
    bench.floats[0:1].view(np.uint32)[:] = 1 << 20
    encoder.setBufferOffset_atIndex_(4 * page_size() - 64, 1)
    bench.dispatch(encoder)
    bench.commit(encoder)
    with pytest.raises(RuleError, match=f"which has {4 * page_size()}"):
        bench.commands.waitUntilCompleted()


def test_an_encoder_left_open() -> None:
    with Pool():
        bench = Bench()
        bench.encoder()
        framework.broken.clear()
        bench.commands = None
        gc.collect()
    assert framework.broken == ["an encoder was dropped without endEncoding"]
    framework.broken.clear()


CALLS: dict[str, tuple[type[Exception], Callable[[Bench], object]]] = {
    "no such selector": (AttributeError, lambda b: b.device.newBufferWithBytes_length_(b"", 0)),
    "a selector of another class": (AttributeError, lambda b: b.buffer.newCommandQueue()),
    "no such constant": (AttributeError, lambda b: b.mtl.MTLResourceStorageModeGuest),
    "an argument too few": (TypeError, lambda b: b.device.supportsFamily_()),
    "an argument too many": (TypeError, lambda b: b.device.newCommandQueue(None)),
    "text for a number": (ValueError, lambda b: b.device.supportsFamily_("Apple9")),
    "a fraction for a number": (ValueError, lambda b: b.event.setSignaledValue_(1.0)),
    "a negative number": (ValueError, lambda b: b.event.setSignaledValue_(-1)),
    "a number of 65 bits": (ValueError, lambda b: b.event.setSignaledValue_(1 << 64)),
    "a number for an object": (ValueError, lambda b: b.commands.encodeSignalEvent_value_(1, 1)),
    "something for an error": (
        ValueError,
        lambda b: b.device.newLibraryWithSource_options_error_(SOURCE, b.mtl.MTLCompileOptions.new(), 0),
    ),
    "an address for bytes": (ValueError, lambda b: b.wrap(b.region.address, page_size())),
    "fewer bytes than their length": (ValueError, lambda b: b.wrap(b.region.view(), 5 * page_size())),
    "bytes with gaps": (ValueError, lambda b: b.wrap(b.region.view()[::2], page_size())),
    "numbers for a struct": (
        ValueError,
        encode(lambda b, e: e.dispatchThreadgroups_threadsPerThreadgroup_((1, 1, 1), (1, 1, 1))),
    ),
    "two sides of three": (TypeError, lambda b: b.mtl.MTLSizeMake(1, 1)),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_the_bridge_refuses(bench: Bench, what: str) -> None:
    kind, call = CALLS[what]
    with pytest.raises(kind):
        call(bench)


def test_objects_need_a_pool(bench: Bench) -> None:
    """On any thread: guests' threads have no pool except the device's."""

    def call() -> None:
        with pytest.raises(RuleError, match="no pool"):
            bench.queue.commandBufferWithUnretainedReferences()
        with pytest.raises(RuleError, match="no pool"):
            bench.device.newCommandQueue()
        assert bench.device.maxBufferLength()
        seen.append(bench)

    seen: list[Bench] = []
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert seen


def test_memory_that_is_not_there() -> None:
    region = Region(4 * page_size(), page_size())
    inside, outside = (region.address, page_size()), (region.address, page_size() + 1)
    assert gpu.accessible([inside], write=True)
    assert not gpu.accessible([inside, outside], write=False)
