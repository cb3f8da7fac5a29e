"""The service that tries models of guests' own in worker processes."""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.schema_py_generated import Model

from wasmetal.nn.errors import NnErrno
from wasmetal.worker.channel import Channel, Header
from wasmetal.worker.child import answer
from wasmetal.worker.confinement import Allowance


def run(channel: Channel, allowance: Allowance) -> None:
    """Answer requests to try a model."""
    answer(channel, allowance, _try)


def _try(_: Header, model: bytearray) -> tuple[Header, bytes]:
    """Without delegates, whose own results have no memory: so it is those of no fixed size that have none."""
    resolver, given = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, bytes(model)
    try:
        interpreter = Interpreter(model_content=given, num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        return {"errno": NnErrno.INVALID_ENCODING, "reason": " ".join(str(error).split())[:300]}, b""
    tensors = interpreter.get_tensor_details()
    known = Model.GetRootAs(given).SubgraphsLength() == 1  # the tensors of others are not shown
    if not known or not all(_has_memory(interpreter, each["index"]) for each in tensors):
        return {"errno": NnErrno.UNSUPPORTED_OPERATION, "reason": "the size of a result is not known beforehand"}, b""
    sizes = (math.prod(map(int, each["shape"])) * np.dtype(each["dtype"]).itemsize for each in tensors)
    return {"nbytes": sum(sizes)}, b""


def _has_memory(interpreter: Interpreter, index: int) -> bool:
    try:
        interpreter.tensor(index)()
    except ValueError:
        return False
    return True
