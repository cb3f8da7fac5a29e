"""Tiny ONNX models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

OPSET, IR = 17, 8


def onnx_model(
    nodes: Sequence[Any], inputs: dict[str, tuple[Any, Any]], outputs: dict[str, tuple[Any, Any]], *initializers: Any
) -> bytes:
    """A model. Inputs and outputs by name: dtype and shape."""

    def values(described: dict[str, tuple[Any, Any]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in described.items()
        ]

    graph = helper.make_graph(list(nodes), "g", values(inputs), values(outputs), list(initializers))
    opsets = [helper.make_opsetid("", OPSET)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR).SerializeToString()
    return model


def identity(dtype: Any, shape: Any = ("a", "b")) -> bytes:
    """Gives its input."""
    return onnx_model([helper.make_node("Identity", ["x"], ["y"])], {"x": (dtype, shape)}, {"y": (dtype, shape)})


def add(shape: Any = ("n", 3), other: Any = (3,)) -> bytes:
    """c = a + b, in float32."""
    floats = np.float32
    nodes = [helper.make_node("Add", ["a", "b"], ["c"])]
    return onnx_model(nodes, {"a": (floats, shape), "b": (floats, other)}, {"c": (floats, shape)})


def endless(count: int = 2**62) -> bytes:
    """Adds 1 to its input so many times."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "v_one"], ["v_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_next", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor("v_one", TensorProto.FLOAT, [1], [1.0])],
    )
    nodes = [helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)]
    times = helper.make_tensor("count", TensorProto.INT64, [], [count])
    return onnx_model(nodes, {"x": (np.float32, (1,))}, {"y": (np.float32, (1,))}, times)


def external(location: str, offset: int = 0, nbytes: int = 16, constant: bool = False) -> bytes:
    """Gives bytes of a file that it names."""
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[nbytes], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
    if constant:
        nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Identity", ["w"], ["y"])]
        return onnx_model(nodes, {}, {"y": (np.uint8, (nbytes,))})
    return onnx_model([helper.make_node("Identity", ["w"], ["y"])], {}, {"y": (np.uint8, (nbytes,))}, tensor)
