"""The stand-in for Metal Performance Shaders: its selectors and types are the wheel's, and it enforces MPS's rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.metal.standin import Gpu, RuleError, bridge, shaders
from tests.metal.standin.bridge import Pool, table
from tests.metal.standin.framework import Framework
from tests.metal.standin.shaders import Shaders
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

ENCODE = "encodeToCommandBuffer:leftMatrix:rightMatrix:resultMatrix:"


def test_what_the_wheel_tells_of_classes() -> None:
    """The wheel names all selectors but one, and its types, if it has any, are those of Apple's headers."""
    assert shaders.selectors() - table().named.keys() == {("MPSMatrixMultiplication", ENCODE)}
    corrected = 0
    for (kind, selector), types in table().named.items():
        method = getattr(shaders.CLASSES[kind], selector.replace(":", "_"))
        for index, encoding in types.items():
            assert method.types[1 + index] == encoding
            corrected += 1
    assert corrected == 2  # the BOOLs


def test_a_function_has_its_types_from_the_wheel() -> None:
    assert table().functions["MPSSupportsMTLDevice"] == ["Z", "@"]


class Bench:
    """An emulated GPU, and three matrices of 2 by 3 in one buffer."""

    def __init__(self) -> None:
        gpu = Gpu()
        self.mtl, self.mps = Framework([gpu]), Shaders(gpu)
        self.device = self.mtl.MTLCopyAllDevices()[0]
        self.region = Region(page_size(), page_size())
        self.floats = self.region.view().view(np.float32)
        self.buffer = self.device.newBufferWithBytesNoCopy_length_options_deallocator_(
            self.region.view(), page_size(), 0, None
        )
        self.commands = self.device.newCommandQueue().commandBuffer()

    def matrix(self, offset: int, rows: int, columns: int, row_bytes: int = 16, kind: str = "Float32") -> Any:
        describe = self.mps.MPSMatrixDescriptor.matrixDescriptorWithRows_columns_rowBytes_dataType_
        descriptor = describe(rows, columns, row_bytes, getattr(self.mps, f"MPSDataType{kind}"))
        return self.mps.MPSMatrix.alloc().initWithBuffer_offset_descriptor_(self.buffer, offset, descriptor)

    def kernel(self, rows: int = 2, columns: int = 2, interior: int = 3, beta: float = 0.0) -> Any:
        new = self.mps.MPSMatrixMultiplication.alloc()
        return new.initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta_(
            self.device, False, True, rows, columns, interior, 2.0, beta
        )

    def encode(self, kernel: Any, left: Any = None, right: Any = None, result: Any = None) -> None:
        kernel.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix_(
            self.commands,
            left or self.matrix(0, 2, 3),
            right or self.matrix(64, 2, 3),
            result or self.matrix(128, 2, 2),
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Pool():
        made = Bench()
        yield made
        if made.commands._encoder is not None:
            made.commands._encoder.ended = True


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_what_is_right_works(bench: Bench, beta: float) -> None:
    bench.floats[:8], bench.floats[16:24] = range(8), range(8, 0, -1)
    bench.floats[32:40] = 100
    bench.encode(bench.kernel(beta=beta))
    bench.commands.commit()
    bench.commands.waitUntilCompleted()
    # [[0, 1, 2], [4, 5, 6]] times the transpose of [[8, 7, 6], [4, 3, 2]]
    want = 2 * np.array([[19, 7], [103, 43]]) + 100 * beta
    assert bench.floats[32:40].reshape(2, 4).tolist() == [[*row, 100, 100] for row in want]


def test_passes_have_no_order_but_what_an_event_gives_them(bench: Bench) -> None:
    """A GEMM of ones, and a GEMM of its result: the second runs first unless it waits for the first."""
    bench.floats[:64] = 1
    event = bench.device.newEvent()
    second = bench.kernel(interior=2), bench.matrix(128, 2, 2), bench.matrix(64, 2, 2), bench.matrix(192, 2, 2)
    bench.encode(bench.kernel())
    bench.commands.encodeSignalEvent_value_(event, 1)
    bench.commands.encodeWaitForEvent_value_(event, 1)
    bench.encode(*second)
    bench.commands.commit()
    bench.commands.waitUntilCompleted()
    assert bench.floats[48] == 2 * 2 * 6
    bench.floats[:64] = 1
    bench.commands = bench.device.newCommandQueue().commandBuffer()
    bench.encode(bench.kernel())
    bench.encode(*second)
    bench.commands.commit()
    bench.commands.waitUntilCompleted()
    assert bench.floats[48] == 2 * 2


def unretained(bench: Bench) -> None:
    bench.commands = bench.device.newCommandQueue().commandBufferWithUnretainedReferences()
    bench.encode(bench.kernel())


def waits_for_another(bench: Bench) -> None:
    bench.encode(bench.kernel())
    bench.commands.encodeWaitForEvent_value_(bench.device.newEvent(), 1)


def signals_again(bench: Bench) -> None:
    event = bench.device.newEvent()
    for _ in range(2):
        bench.commands.encodeSignalEvent_value_(event, 1)


BROKEN: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "an encoder that is open": (
        "encoder is open",
        lambda b: (b.commands.computeCommandEncoderWithDispatchType_(1), b.encode(b.kernel())),
    ),
    "after the commit": ("after commit", lambda b: (b.commands.commit(), b.encode(b.kernel()))),
    "a command buffer that retains nothing": ("holds on to nothing", unretained),
    "a wait for what another signals": ("its own last signal", waits_for_another),
    "a signal of what has come": ("cannot signal 1", signals_again),
    "rows that end within an element": ("no whole number of elements", lambda b: b.matrix(0, 2, 3, row_bytes=14)),
    "rows that overlap": ("cannot have 3 columns", lambda b: b.matrix(0, 2, 3, row_bytes=8)),
    "no rows": ("0 by 3", lambda b: b.matrix(0, 0, 3)),
    "an offset within an element": ("within an element", lambda b: b.matrix(2, 2, 3)),
    "more than the buffer has": ("leaves its buffer", lambda b: b.matrix(page_size() - 16, 2, 3)),
    "a type that is not known": (
        "no data type",
        lambda b: setattr(b.mps, "MPSDataTypeInt8", 8) or b.matrix(0, 2, 3, kind="Int8"),
    ),
    "a matrix too small": ("is needed", lambda b: b.encode(b.kernel(interior=4))),
    "operands of two types": ("two types", lambda b: b.encode(b.kernel(), left=b.matrix(0, 2, 3, kind="Float16"))),
    "a result of fewer bits": (
        "no float16 product",
        lambda b: b.encode(b.kernel(), result=b.matrix(128, 2, 2, kind="Float16")),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_rule(bench: Bench, what: str) -> None:
    words, break_it = BROKEN[what]
    with pytest.raises(RuleError, match=words):
        break_it(bench)


CALLS: dict[str, tuple[type[Exception], Callable[[Bench], object]]] = {
    "no such class": (AttributeError, lambda b: b.mps.MPSMatrixVectorMultiplication),
    "a selector of another class": (AttributeError, lambda b: b.mps.MPSMatrix.matrixDescriptorWithRows_columns_()),
    "an argument too few": (
        TypeError,
        lambda b: b.mps.MPSMatrix.alloc().initWithBuffer_offset_descriptor_(b.buffer, 0),
    ),
    "a fraction for a number": (ValueError, lambda b: b.matrix(0.0, 2, 3)),
    "text for a fraction": (ValueError, lambda b: b.kernel(beta="1")),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_the_bridge_refuses(bench: Bench, what: str) -> None:
    kind, call = CALLS[what]
    with pytest.raises(kind):
        call(bench)


def test_descriptors_need_a_pool(bench: Bench) -> None:
    bridge.Pool._depth.value -= 1
    try:
        with pytest.raises(RuleError, match="no pool"):
            bench.matrix(0, 2, 3)
        with pytest.raises(RuleError, match="no pool"):
            bench.kernel()
    finally:
        bridge.Pool._depth.value += 1
