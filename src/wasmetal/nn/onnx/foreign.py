"""What is refused of an ONNX model from a guest's own bytes before ONNX Runtime sees it.

ONNX Runtime's allocator, and so the guest's limit, knows nothing of the bytes of strings, of sparse tensors that are
made dense while a model is loaded, and of functions that call each other many times over.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from wasmetal.nn.errors import NnErrno, NnRefusal

_FIELDS = {
    "Model": {"graph": (7, "Graph"), "functions": (25, "[bytes]")},
    "Graph": {
        **{"node": (1, "[Node]"), "initializer": (5, "[Tensor]"), "sparse_initializer": (15, "[bytes]")},
        **{"input": (11, "[bytes]"), "output": (12, "[bytes]"), "value_info": (13, "[bytes]")},
    },
    "Node": {"attribute": (5, "[Attribute]")},
    "Attribute": {
        **{"name": (1, "bytes"), "i": (3, "int64"), "t": (5, "Tensor"), "g": (6, "Graph")},
        **{"tensors": (10, "[Tensor]"), "graphs": (11, "[Graph]")},
        **{"sparse_tensor": (22, "bytes"), "sparse_tensors": (23, "[bytes]")},
    },
    "Tensor": {"data_type": (2, "int32")},
}
"""Of onnx.proto: messages, their fields, and the numbers and types of those."""
_STRING = 8
"""TensorProto.DataType"""
_ITEM = 4096
"""Bytes that ONNX Runtime takes for a node, or a value that is described. (Measured: up to 3,400.)"""


def check(model: bytes) -> int:
    """The bytes that loading a model takes, beyond twice its own. Raises NnRefusal if it is refused."""
    try:
        parsed = _model().FromString(model)
    except DecodeError:
        raise NnRefusal(NnErrno.INVALID_ENCODING, "the model is not ONNX, or damaged") from None
    if parsed.functions:
        raise _unsupported("functions")
    return _ITEM * _count(parsed.graph)


def _count(graph: Any) -> int:
    """How many nodes a graph and those in it have, and values that they describe."""
    count = sum(map(len, (graph.node, graph.initializer, graph.input, graph.output, graph.value_info)))
    _check_tensors(graph.initializer)
    if graph.sparse_initializer:
        raise _unsupported("sparse tensors")
    for node in graph.node:
        for each in node.attribute:
            if each.HasField("sparse_tensor") or each.sparse_tensors:
                raise _unsupported("sparse tensors")
            if b"string" in each.name or (each.name == b"to" and each.i == _STRING):
                raise _unsupported("strings")
            _check_tensors([each.t, *each.tensors])
            for inner in [*([each.g] if each.HasField("g") else []), *each.graphs]:
                count += _count(inner)
    return count


def _check_tensors(tensors: Iterable[Any]) -> None:
    if any(tensor.data_type == _STRING for tensor in tensors):
        raise _unsupported("strings")


def _unsupported(what: str) -> NnRefusal:
    return NnRefusal(NnErrno.UNSUPPORTED_OPERATION, f"{what} in a model of the guest's own are not supported")


@cache
def _model() -> Any:
    """The class of the message."""
    file = descriptor_pb2.FileDescriptorProto(name="onnx.proto", package="wasmetal", syntax="proto2")
    field = descriptor_pb2.FieldDescriptorProto
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for each, (number, kind) in fields.items():
            label = field.LABEL_REPEATED if kind[0] == "[" else field.LABEL_OPTIONAL
            added = message.field.add(name=each, number=number, label=label)
            if (item := kind.strip("[]")) in _FIELDS:
                added.type, added.type_name = field.TYPE_MESSAGE, f".wasmetal.{item}"
            else:
                added.type = field.Type.Value(f"TYPE_{item.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("wasmetal.Model"))
