"""Loading TensorFlow Lite models, and running them: an interpreter for each context."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from wasmetal.device.cpu.library import thread_count
from wasmetal.nn.backend import Config, Context, Services, Source
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.partial import AtOnce, Unbound
from wasmetal.nn.tensor import NnTensor, TensorType
from wasmetal.nn.tflite.trial import tensor_bytes

log = logging.getLogger("wasmetal.nn")
_TYPES = {kind.dtype: kind for kind in TensorType}


class TfliteBackend:
    """Models as bytes, each of which contexts share."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def load(self, source: Source, config: Config) -> TfliteGraph:
        """Load a model. Charges its bytes. Options of guests are ignored."""
        own = isinstance(source.model, bytes)
        model = source.model if isinstance(source.model, bytes) else Path(str(source.model)).read_bytes()
        self._services.charge(len(model))
        nbytes = None
        try:
            if own:
                nbytes = tensor_bytes(model, self._services.room())
            with self._services.stoppable(lambda: None):
                Interpreter(model_content=model, num_threads=1)
        except BaseException as error:
            self._services.charge(-len(model))
            if not isinstance(error, ValueError | RuntimeError):
                raise
            reason = " ".join(str(error).split())[:300]
            if not own:
                log.warning("%s: %s", source.name, reason)  # the host's own file
            raise NnRefusal(NnErrno.INVALID_ENCODING, f"{source.name}: {reason}") from None
        return TfliteGraph(model, nbytes, 1 if own else thread_count(), self._services)

    def close(self) -> None:
        """Nothing: the graphs have released everything."""


class TfliteGraph:
    """A model."""

    holds_tensors = True

    def __init__(self, model: bytes, tensors: int | None, threads: int, services: Services) -> None:
        """``tensors``: their bytes, if what the model itself says is not to be believed."""
        self._model: bytes | None = model
        self._tensors = tensors
        self._threads = threads
        self._services = services

    def configure(self, config: Config) -> None:
        """Nothing: there are no options."""

    def context(self) -> Context:
        """A new context."""
        if self._model is None:
            raise invalid("the graph was unloaded")
        interpreter = Interpreter(model_content=self._model, num_threads=self._threads)
        return TfliteContext(interpreter, self._tensors, self._services)

    def close(self) -> None:
        """Release the model."""
        if self._model is not None:
            self._services.charge(-len(self._model))
            self._model = None


class TfliteContext(AtOnce, Unbound):
    """An interpreter. Charges for all of its tensors, as if none of them shared memory."""

    NO_PIECES = "a TensorFlow Lite model has no output piece by piece"
    NOT_BOUND = "the tensors of a TensorFlow Lite model cannot be bound"

    def __init__(self, interpreter: Any, tensors: int | None, services: Services) -> None:
        self._interpreter = interpreter
        self._services = services
        self._inputs, self._outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self.inputs = [str(each["name"]) for each in self._inputs]
        self.outputs = [str(each["name"]) for each in self._outputs]
        self._given: set[int] = set()
        """Inputs that were set. What others hold, nobody has written: it may be anybody's."""
        self._computed = False
        self._left: dict[int, NDArray[np.uint8]] = {}
        """Outputs, once the interpreter was released."""
        if tensors is None:
            details = interpreter.get_tensor_details()
            tensors = sum(math.prod(map(int, each["shape"])) * _itemsize(each["dtype"]) for each in details)
        self._charged = tensors
        services.charge(self._charged)
        try:
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError, MemoryError) as error:
            services.charge(-self._charged)
            raise NnRefusal(NnErrno.RUNTIME_ERROR, " ".join(str(error).split())[:300]) from None
        except BaseException:
            services.charge(-self._charged)
            raise

    def set_input(self, index: int, tensor: NnTensor) -> None:
        """Copy an input, which must have the model's own shape."""
        declared = _declared(self._inputs, index)
        expected, shape = np.dtype(declared["dtype"]), tuple(map(int, declared["shape"]))
        if tensor.dtype != expected or tensor.shape != shape:
            found = f"{tensor.dtype} {list(tensor.shape)[:8]}"
            raise invalid(f"input {index} is {found}; the model has {expected} {list(shape)}")
        if shape == ():  # of which LiteRT shows a copy
            self._interpreter.set_tensor(declared["index"], tensor.data.copy().view(expected).reshape(()))
        elif tensor.data.size:
            self._bytes(declared)[:] = tensor.data
        self._given.add(index)
        self._computed = False

    def compute(self) -> None:
        """Run the interpreter, to its end: nothing stops it."""
        if missing := [index for index in range(len(self._inputs)) if index not in self._given]:
            raise invalid(f"input {missing[0]} was not set")
        self._computed = False
        try:
            with self._services.stoppable(lambda: None):
                self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise NnRefusal(NnErrno.RUNTIME_ERROR, " ".join(str(error).split())[:300]) from None
        self._computed = True

    def output(self, index: int) -> NDArray[np.uint8]:
        """An output's bytes, in the interpreter's memory."""
        declared = _declared(self._outputs, index)
        if not self._computed:
            raise invalid("nothing was computed")
        return self._left[index] if self._interpreter is None else self._bytes(declared)

    def output_type(self, index: int) -> tuple[TensorType, tuple[int, ...]] | None:
        """Element type and shape of an output."""
        kind = _TYPES.get(np.dtype(self._outputs[index]["dtype"]))
        return None if kind is None else (kind, tuple(self._interpreter.tensor(self._outputs[index]["index"])().shape))

    def release(self) -> None:
        """Release the interpreter; outputs are copied."""
        if self._interpreter is not None and self._computed:
            known = {index: each for index, each in enumerate(self._outputs) if np.dtype(each["dtype"]) in _TYPES}
            self._left = {index: self._bytes(each).copy() for index, each in known.items()}
        self._interpreter = None

    def close(self) -> None:
        """Release everything."""
        self._interpreter, self._left, self._computed = None, {}, False
        self._services.charge(-self._charged)
        self._charged = 0

    def _bytes(self, declared: dict[str, Any]) -> NDArray[np.uint8]:
        """A tensor's bytes [n], where the interpreter has them. To be dropped before it runs."""
        array: NDArray[Any] = self._interpreter.tensor(declared["index"])()
        return array.reshape(-1).view(np.uint8)


def _declared(details: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """What the model says of an input or output. Raises NnRefusal."""
    if not 0 <= index < len(details):
        raise invalid(f"tensor {index} of {len(details)}")
    if np.dtype(details[index]["dtype"]) not in _TYPES:
        name = np.dtype(details[index]["dtype"]).name
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, f"tensor {index} is of {name}, which wasi-nn has not")
    return details[index]


def _itemsize(dtype: Any) -> int:
    return int(np.dtype(dtype).itemsize)
