"""Running an ONNX model: inputs and outputs that are copied, or bound where they lie."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from wasmetal.nn.backend import Services
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.onnx.memory import OnnxMemory
from wasmetal.nn.partial import AtOnce
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
class _Declared:
    """What the model says of an input or output. ONNX Runtime's own object would keep the session alive."""

    name: str
    type: str
    shape: list[int | str | None]


@dataclass(frozen=True, slots=True)
class _Held:
    """The bytes of an input, or of a bound output."""

    data: NDArray[np.uint8]
    copied: bool
    address: int

    def overlaps(self, other: _Held) -> bool:
        """Whether they share a byte."""
        return self.address < other.address + other.data.size and other.address < self.address + self.data.size


def _held(data: NDArray[np.uint8], copied: bool) -> _Held:
    return _Held(data, copied, data.ctypes.data)


class OnnxContext(AtOnce):
    """Inputs and outputs of a session. Charges for what a run allocates, and for copies of inputs and outputs."""

    NO_PIECES = "an ONNX model has no output piece by piece"

    def __init__(self, session: Any, services: Services, memory: OnnxMemory) -> None:
        self._session = session
        self._services = services
        self._memory = memory
        self._inputs = [_Declared(each.name, each.type, each.shape) for each in session.get_inputs()]
        self._outputs = [_Declared(each.name, each.type, each.shape) for each in session.get_outputs()]
        self.inputs = [each.name for each in self._inputs]
        self.outputs = [each.name for each in self._outputs]
        self._types = [output.type for output in self._outputs]
        self._binding = session.io_binding()
        self._given: dict[int, _Held] = {}
        self._bound: dict[int, _Held] = {}
        self._complete = False
        """Whether these were found to be all that is needed, and apart."""
        self._results: dict[int, NDArray[np.uint8]] = {}
        """Bytes of the outputs that wasi-nn has types for, once they were computed."""
        self._kept: Sequence[Any] = ()
        """What those bytes belong to."""
        self._charged = 0
        """Bytes of the outputs that are charged, beyond what their run has allocated."""
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = _FATAL
        # Means no GPU graph, as without it. But ONNX Runtime's Python part asks for it at each run, and where it is not
        # set, gets an exception from C++, which takes 30 µs.
        self._options.add_run_config_entry("gpu_graph_id", "-1")
        self._expect_outputs()

    def set_input(self, index: int, tensor: NnTensor) -> None:
        """Copy an input."""
        dtype = self._check(self._inputs, index, tensor, "input")
        before = self._given.get(index)
        freed = before.data.size if before and before.copied else 0
        self._memory.charge(tensor.data.size - freed)
        if freed == tensor.data.size > 0 and before:  # to copy to new pages takes several times as long
            before.data[:] = tensor.data
            self._give(index, before, dtype, tensor.shape)
        else:
            self._give(index, _held(tensor.data.copy(), copied=True), dtype, tensor.shape)

    def bind_input(self, index: int, tensor: NnTensor) -> None:
        """Read an input where it lies."""
        dtype = self._check(self._inputs, index, tensor, "input")
        _check_alignment(tensor, dtype)
        before = self._given.get(index)
        if before and before.copied:
            self._services.charge(-before.data.size)
        self._give(index, _held(tensor.data, copied=False), dtype, tensor.shape)
        self._services.counters.bytes_shared += tensor.data.size

    def bind_output(self, index: int, tensor: NnTensor) -> None:
        """Write an output where it is to lie."""
        dtype = self._check(self._outputs, index, tensor, "output")
        _check_alignment(tensor, dtype)
        self._complete = False
        self._bound[index] = held = _held(tensor.data, copied=False)
        name = self._outputs[index].name
        self._binding.bind_output(name, "cpu", 0, dtype.type, tensor.shape, held.data.ctypes.data)
        self._services.counters.bytes_shared += tensor.data.size

    def compute(self) -> None:
        """Run the session."""
        if not self._complete:
            self._check_complete()
        self._forget()
        before, kept = self._memory.in_use, self._memory.kept
        try:
            values = self._run()
        except NnRefusal as refusal:
            if refusal.errno != NnErrno.TOO_LARGE or not kept:
                raise
            # Blocks of former runs, which may have been larger than what they were used for, are freed by now.
            values = self._run()
        made = [index for index in range(len(values)) if index not in self._bound and self._types[index] in _TYPES]
        results = {index: self._result(values[index]) for index in made}
        # Outputs that are inputs or weights were not allocated by the run, but are the guest's to keep.
        nbytes = max(sum(data.size for data in results.values()) - (self._memory.in_use - before), 0)
        self._memory.charge(nbytes)
        results |= {index: held.data for index, held in self._bound.items()}
        self._results, self._charged, self._kept = results, nbytes, values

    def _run(self) -> Sequence[Any]:
        """Run the session; the outputs, unless all are bound."""
        try:
            with self._services.stoppable(self._stop), self._memory.limited():
                self._session.run_with_iobinding(self._binding, self._options)
            return self._binding.get_outputs() if len(self._bound) < len(self._outputs) else ()
        except RuntimeError as error:
            raise NnRefusal(NnErrno.RUNTIME_ERROR, " ".join(str(error).split())[:300]) from None
        finally:
            self._expect_outputs()  # the binding would hold those of this run

    def output(self, index: int) -> NDArray[np.uint8]:
        """An output's bytes, where ONNX Runtime has written them."""
        if not 0 <= index < len(self._outputs):
            raise invalid(f"output {index} of {len(self._outputs)}")
        _dtype_of(self._outputs[index])
        if index not in self._results:
            raise invalid("nothing was computed")
        return self._results[index]

    def output_type(self, index: int) -> tuple[TensorType, tuple[int, ...]] | None:
        """Element type and shape of an output that is not bound."""
        kind = _TYPES.get(self._types[index])
        return None if kind is None else (kind, tuple(self._kept[index].shape()))

    def release(self) -> None:
        """Release inputs and session. Outputs are copied, since they may be the session's weights."""
        self._results = {index: data.copy() for index, data in self._results.items()}
        self._drop()
        nbytes = sum(data.size for data in self._results.values())
        self._memory.charge(nbytes - self._charged)
        self._charged = nbytes

    def close(self) -> None:
        """Release the outputs, too."""
        self._forget()
        self._drop()

    def _drop(self) -> None:
        self._services.charge(-sum(held.data.size for held in self._given.values() if held.copied))
        self._given, self._bound, self._kept = {}, {}, ()
        self._binding = self._session = None
        self._memory.settle()

    def _result(self, value: Any) -> NDArray[np.uint8]:
        """The bytes of an output: where ONNX Runtime has written them, or a copy if an output is an input itself."""
        nbytes = value.tensor_size_in_bytes()
        if not nbytes:
            return np.zeros(0, np.uint8)
        data = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(value.data_ptr()), np.uint8)
        held = _held(data, copied=False)
        return data.copy() if any(held.overlaps(each) for each in self._given.values()) else data

    def _stop(self) -> None:
        """Have the run end. The caller is being stopped, so there is no other."""
        self._options.terminate = True

    def _expect_outputs(self) -> None:
        """Have the next run make new outputs, but for those that are bound."""
        for index, output in enumerate(self._outputs):
            if index not in self._bound:
                self._binding.bind_output(output.name, "cpu")

    def _give(self, index: int, held: _Held, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._given[index], self._complete = held, False
        self._binding.bind_input(self._inputs[index].name, "cpu", 0, dtype.type, shape, held.address)

    def _forget(self) -> None:
        """Drop the outputs."""
        if self._kept or self._charged:
            self._services.charge(-self._charged)
            self._results, self._kept, self._charged = {}, (), 0
            self._memory.settle()
        self._results = {}

    def _check(self, declared: list[_Declared], index: int, tensor: NnTensor, what: str) -> np.dtype[Any]:
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
        written, read = list(self._bound.values()), [held for held in self._given.values() if not held.copied]
        for number, held in enumerate(written):
            if any(held.overlaps(other) for other in read + written[:number]):
                raise invalid("a bound output overlaps another bound tensor")
        self._complete = True


def _dtype_of(declared: _Declared) -> np.dtype[Any]:
    """The element type that a model declares. Raises NnRefusal if wasi-nn has it not."""
    if declared.type not in _TYPES:
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, f"{declared.name} is a {declared.type}, which wasi-nn has not")
    return _TYPES[declared.type].dtype


def _check_alignment(tensor: NnTensor, dtype: np.dtype[Any]) -> None:
    if tensor.data.ctypes.data % dtype.itemsize:
        raise invalid(f"a tensor that is bound must be aligned to {dtype.itemsize} bytes")
