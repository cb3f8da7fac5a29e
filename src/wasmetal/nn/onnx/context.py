"""Running an ONNX model: inputs and outputs that are copied, or bound where they lie."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from wasmetal.nn.backend import Services
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.tensor import NnTensor, TensorType

_TYPES = {
    "tensor(float16)": TensorType.F16,
    "tensor(float)": TensorType.F32,
    "tensor(double)": TensorType.F64,
    "tensor(uint8)": TensorType.U8,
    "tensor(int32)": TensorType.I32,
    "tensor(int64)": TensorType.I64,
}
"""ONNX's element types that wasi-nn has, too."""
_FATAL = 4


@dataclass(frozen=True, slots=True)
class _Held:
    """The bytes of an input, or of a bound output."""

    data: NDArray[np.uint8]
    copied: bool

    @property
    def span(self) -> tuple[int, int]:
        """The addresses of the first byte, and after the last."""
        begin = self.data.ctypes.data
        return begin, begin + self.data.size


class OnnxContext:
    """Inputs and outputs of a session. Charges for the copies of inputs, and for outputs that are not bound."""

    def __init__(self, session: Any, services: Services) -> None:
        self._session = session
        self._services = services
        self._inputs, self._outputs = session.get_inputs(), session.get_outputs()
        self._binding = session.io_binding()
        self._given: dict[int, _Held] = {}
        self._bound: dict[int, _Held] = {}
        self._results: dict[int, NDArray[np.uint8]] = {}
        """Bytes of the outputs that wasi-nn has types for, once they were computed."""
        self._kept: list[object] = []
        """What those bytes belong to: outputs, and inputs, which an output may be."""
        self._charged = 0
        """Bytes of the outputs that are charged."""
        self._expect_outputs()

    def set_input(self, index: int, tensor: NnTensor) -> None:
        """Copy an input."""
        dtype = self._check(self._inputs, index, tensor, "input")
        before = self._given.get(index)
        freed = before.data.size if before and before.copied else 0
        self._services.charge(tensor.data.size - freed)
        self._give(index, _Held(tensor.data.copy(), copied=True), dtype, tensor.shape)

    def bind_input(self, index: int, tensor: NnTensor) -> None:
        """Read an input where it lies."""
        dtype = self._check(self._inputs, index, tensor, "input")
        _check_alignment(tensor, dtype)
        before = self._given.get(index)
        if before and before.copied:
            self._services.charge(-before.data.size)
        self._give(index, _Held(tensor.data, copied=False), dtype, tensor.shape)
        self._services.counters.bytes_shared += tensor.data.size

    def bind_output(self, index: int, tensor: NnTensor) -> None:
        """Write an output where it is to lie."""
        dtype = self._check(self._outputs, index, tensor, "output")
        _check_alignment(tensor, dtype)
        self._bound[index] = held = _Held(tensor.data, copied=False)
        name = self._outputs[index].name
        self._binding.bind_output(name, "cpu", 0, dtype.type, tensor.shape, held.data.ctypes.data)
        self._services.counters.bytes_shared += tensor.data.size

    def compute(self) -> None:
        """Run the session."""
        self._check_complete()
        self._forget()
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL
        try:
            with self._services.stoppable(lambda: setattr(options, "terminate", True)):
                self._session.run_with_iobinding(self._binding, options)
            values = self._binding.get_outputs()
        except RuntimeError as error:
            raise NnRefusal(NnErrno.RUNTIME_ERROR, " ".join(str(error).split())[:300]) from None
        finally:
            self._expect_outputs()  # the binding would hold those of this run
        results = {index: _bytes(value) for index, value in enumerate(values) if self._outputs[index].type in _TYPES}
        nbytes = sum(data.size for index, data in results.items() if index not in self._bound)
        self._services.charge(nbytes)
        self._results, self._charged, self._kept = results, nbytes, [*values, *self._given.values()]

    def output(self, index: int) -> NDArray[np.uint8]:
        """An output's bytes, where ONNX Runtime has written them."""
        if not 0 <= index < len(self._outputs):
            raise invalid(f"output {index} of {len(self._outputs)}")
        _dtype_of(self._outputs[index])
        if index not in self._results:
            raise invalid("nothing was computed")
        return self._results[index]

    def compute_single(self) -> None:
        """Refused: outputs come at once."""
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "an ONNX model has no output piece by piece")

    def output_single(self, index: int) -> NDArray[np.uint8]:
        """Refused."""
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "an ONNX model has no output piece by piece")

    def fini_single(self) -> None:
        """Refused."""
        self.compute_single()

    def release(self) -> None:
        """Release inputs and session. Outputs are copied, since they may be the session's weights."""
        self._results = {index: data.copy() for index, data in self._results.items()}
        self._drop()

    def close(self) -> None:
        """Release the outputs, too."""
        self._forget()
        self._drop()

    def _drop(self) -> None:
        self._services.charge(-sum(held.data.size for held in self._given.values() if held.copied))
        self._given, self._bound, self._kept = {}, {}, []
        self._binding = self._session = None

    def _expect_outputs(self) -> None:
        """Have the next run make new outputs, but for those that are bound."""
        for index, output in enumerate(self._outputs):
            if index not in self._bound:
                self._binding.bind_output(output.name, "cpu")

    def _give(self, index: int, held: _Held, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._given[index] = held
        self._binding.bind_input(self._inputs[index].name, "cpu", 0, dtype.type, shape, held.data.ctypes.data)

    def _forget(self) -> None:
        """Drop the outputs."""
        self._services.charge(-self._charged)
        self._results, self._kept, self._charged = {}, [], 0

    def _check(self, declared: list[Any], index: int, tensor: NnTensor, what: str) -> np.dtype[Any]:
        """The element type. Raises NnRefusal unless type, shape and bytes are what the model declares.

        ONNX Runtime itself takes any address, and checks no size.
        """
        if not 0 <= index < len(declared):
            raise invalid(f"{what} {index} of {len(declared)}")
        expected, dtype = _dtype_of(declared[index]), tensor.dtype
        if dtype != expected:
            raise invalid(f"{what} {index} is of {dtype}; the model has {expected}")
        fixed = declared[index].shape
        if fixed and (
            len(fixed) != len(tensor.shape)
            or any(isinstance(n, int) and n != m for n, m in zip(fixed, tensor.shape, strict=True))
        ):
            raise invalid(f"{what} {index} has the shape {list(tensor.shape)}; the model has {fixed}")
        return dtype

    def _check_complete(self) -> None:
        """Raise NnRefusal unless there are all inputs, and nothing overlaps what is written.

        Kernels check indices and then use them: an output over them would lead outside of a tensor.
        """
        if missing := [index for index in range(len(self._inputs)) if index not in self._given]:
            raise invalid(f"input {missing[0]} was not set")
        written = [held.span for held in self._bound.values()]
        read = [held.span for held in self._given.values() if not held.copied]
        for number, (begin, end) in enumerate(written):
            if any(begin < other_end and other < end for other, other_end in read + written[:number]):
                raise invalid("a bound output overlaps another bound tensor")


def _dtype_of(declared: Any) -> np.dtype[Any]:
    """The element type that a model declares. Raises NnRefusal if wasi-nn has it not."""
    if declared.type not in _TYPES:
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, f"{declared.name} is a {declared.type}, which wasi-nn has not")
    return _TYPES[declared.type].dtype


def _check_alignment(tensor: NnTensor, dtype: np.dtype[Any]) -> None:
    if tensor.data.ctypes.data % dtype.itemsize:
        raise invalid(f"a tensor that is bound must be aligned to {dtype.itemsize} bytes")


def _bytes(value: Any) -> NDArray[np.uint8]:
    """The bytes of an output, where ONNX Runtime has written them, or the caller's."""
    nbytes = value.tensor_size_in_bytes()
    if not nbytes:
        return np.zeros(0, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(value.data_ptr()), np.uint8)
