"""A backend that doubles bytes, to test what is in front of backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmetal.nn.backend import Config, Services, Source
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.tensor import NnTensor, TensorType


class DoublingContext:
    inputs, outputs = ("x",), ("y",)

    def __init__(self, graph: DoublingGraph) -> None:
        self.graph = graph
        self.input: Any = None
        self.result = np.zeros(0, np.uint8)
        self.released = False

    def set_input(self, index: int, tensor: NnTensor) -> None:
        if index:
            raise invalid("one input")
        self.input = tensor.data.copy()

    def compute(self) -> None:
        if self.input is None:
            raise invalid("no input")
        if self.graph.fails:
            raise RuntimeError("broken")
        self.result = 2 * self.input

    def output(self, index: int) -> Any:
        if index:
            raise invalid("one output")
        return self.result

    def output_type(self, index: int) -> Any:
        return TensorType.U8, (self.output(index).size,)

    def compute_single(self) -> None:
        raise NnRefusal(NnErrno.END_OF_SEQUENCE, "nothing more")

    def output_single(self, index: int) -> Any:
        return self.output(index)

    def fini_single(self) -> None:
        self.result = self.result[:0]

    def bind_input(self, index: int, tensor: NnTensor) -> None:
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "no binding")

    bind_output = bind_input

    def release(self) -> None:
        self.released = True

    close = release


class DoublingGraph:
    holds_tensors = True

    def __init__(self, source: Source, config: Config) -> None:
        self.source, self.config = source, dict(config)
        self.contexts: list[DoublingContext] = []
        self.closed = 0
        self.fails = False

    def configure(self, config: Config) -> None:
        self.config |= config

    def context(self) -> DoublingContext:
        self.contexts.append(DoublingContext(self))
        return self.contexts[-1]

    def close(self) -> None:
        assert all(each.released for each in self.contexts)
        self.closed += 1


class Doubling:
    def __init__(self, services: Services) -> None:
        self.services = services
        self.graphs: list[DoublingGraph] = []
        self.closed = False

    def load(self, source: Source, config: Config) -> DoublingGraph:
        self.graphs.append(DoublingGraph(source, config))
        return self.graphs[-1]

    def close(self) -> None:
        assert all(graph.closed for graph in self.graphs)
        self.closed = True
