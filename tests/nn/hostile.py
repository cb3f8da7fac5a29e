"""ONNX models of a few hundred bytes that would take gigabytes, each in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.nn.models import onnx_model

_node = helper.make_node
_value = helper.make_tensor_value_info
FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING


def _ints(name: str, *values: int, scalar: bool = False) -> Any:
    return helper.make_tensor(name, INT64, [] if scalar else [len(values)], values)


def _floats(name: str, *values: float, shape: Sequence[int] | None = None) -> Any:
    return helper.make_tensor(name, FLOAT, [len(values)] if shape is None else shape, values)


def _size_of(value: str, nodes: Sequence[Any], *initializers: Any) -> bytes:
    """A model that computes ``value``, and gives the number of its elements."""
    return onnx_model([*nodes, _node("Size", [value], ["y"])], {}, {"y": (np.int64, ())}, *initializers)


def _loop(nodes: Sequence[Any], state: Any, scanned: Any, *initializers: Any) -> Any:
    """A Loop without an end, with one state ``v``, which becomes ``w``, or one output ``w`` that accumulates."""
    inputs = [_value("i", INT64, []), _value("go", BOOL, []), *([state[0]] if state else [])]
    outputs = [_value("on", BOOL, []), *([state[1]] if state else [scanned])]
    body = helper.make_graph([_node("Identity", ["go"], ["on"]), *nodes], "b", inputs, outputs, list(initializers))
    return _node("Loop", ["count", "", *(["v0"] if state else [])], ["x"], body=body)


def _scan() -> Any:
    inputs, outputs = [_value("s", FLOAT, [1]), _value("e", FLOAT, [1])], [_value("t", FLOAT, [1])]
    nodes = [_node("Identity", ["s"], ["t"]), _node("ConstantOfShape", ["n"], ["o"])]
    outputs.append(_value("o", FLOAT, [10**6]))
    body = helper.make_graph(nodes, "b", inputs, outputs, [_ints("n", 10**6)])
    return _node("Scan", ["s0", "e0"], ["t0", "x"], body=body, num_scan_inputs=1)


_BILLION = _ints("n", 10**9)
_COUNT = _ints("count", 10**9, scalar=True)
_IMAGE = _floats("a", *[1.0] * 16, shape=[1, 1, 4, 4])
_SEQUENCES = (helper.make_tensor_sequence_value_info(name, FLOAT, None) for name in ("v", "w"))

MODELS: dict[str, bytes] = {
    "ConstantOfShape": _size_of("x", [_node("ConstantOfShape", ["n"], ["x"])], _BILLION),
    "Tile": _size_of("x", [_node("Tile", ["a", "n"], ["x"])], _floats("a", 1.0, 2.0), _ints("n", 10**8)),
    "Expand": _size_of("x", [_node("Expand", ["a", "n"], ["x"])], _floats("a", 1.0), _BILLION),
    "Resize": _size_of(
        "x", [_node("Resize", ["a", "", "n"], ["x"], mode="nearest")], _IMAGE, _floats("n", 1, 1, 20000, 20000)
    ),
    "Resize, linear": _size_of(
        "x", [_node("Resize", ["a", "", "n"], ["x"], mode="linear")], _IMAGE, _floats("n", 1, 1, 20000, 20000)
    ),
    "Range": _size_of(
        "x",
        [_node("Range", ["a", "n", "d"], ["x"])],
        *(_ints(name, value, scalar=True) for name, value in (("a", 0), ("n", 10**9), ("d", 1))),
    ),
    "Pad": _size_of("x", [_node("Pad", ["a", "n"], ["x"])], _floats("a", 1.0), _ints("n", 0, 10**9)),
    "MatMul": _size_of(
        "x",
        [
            *(_node("ConstantOfShape", [n], [a]) for n, a in (("n", "a"), ("m", "b"))),
            _node("MatMul", ["a", "b"], ["x"]),
        ],
        *(_ints("n", 10**5, 1), _ints("m", 1, 10**5)),
    ),
    "OneHot": _size_of(
        "x",
        [_node("OneHot", ["a", "n", "b"], ["x"])],
        *(_ints("a", 1, 2, 3), _ints("n", 10**9, scalar=True), _floats("b", 0.0, 1.0)),
    ),
    "EyeLike": _size_of(
        "x", [_node("ConstantOfShape", ["n"], ["a"]), _node("EyeLike", ["a"], ["x"])], _ints("n", 1000, 10**6)
    ),
    "RandomNormal": _size_of("x", [_node("RandomNormal", [], ["x"], shape=[10**9])]),
    "Loop, accumulating": _size_of(
        "x",
        [_loop([_node("ConstantOfShape", ["n"], ["w"])], None, _value("w", FLOAT, [10**5]), _ints("n", 10**5))],
        _COUNT,
    ),
    "Loop, doubling": _size_of(
        "x",
        [
            _loop(
                [_node("Concat", ["v", "v"], ["w"], axis=0)],
                (_value("v", FLOAT, [None]), _value("w", FLOAT, [None])),
                None,
            )
        ],
        *(_COUNT, _floats("v0", 1.0)),
    ),
    "Loop, of little tensors": _size_of(
        "x", [_loop([_node("Neg", ["a"], ["w"])], None, _value("w", FLOAT, [1]))], _COUNT, _floats("a", 1.0)
    ),
    "Loop, of a sequence": _size_of(
        "y0",
        [
            _node("SequenceConstruct", ["a"], ["v0"]),
            _loop(
                [_node("ConstantOfShape", ["n"], ["t"]), _node("SequenceInsert", ["v", "t"], ["w"])],
                tuple(_SEQUENCES),
                None,
                _ints("n", 10**6),
            ),
            _node("ConcatFromSequence", ["x"], ["y0"], axis=0),
        ],
        *(_COUNT, _floats("a", 1.0)),
    ),
    "Scan": _size_of(
        "x",
        [_node("ConstantOfShape", ["n"], ["e0"]), _scan()],
        *(_ints("n", 10**4, 1), _floats("s0", 0.0)),
    ),
}
"""What asks for too much while it is run."""


def _sparse() -> Any:
    return helper.make_sparse_tensor(_floats("a", 1.0), _ints("i", 5), [5 * 10**8])


def _sparse_initializer() -> bytes:
    body = helper.make_graph(
        [_node("Size", ["a"], ["y"])], "g", [], [_value("y", INT64, [])], sparse_initializer=[_sparse()]
    )
    model: bytes = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return model


def _functions(depth: int) -> bytes:
    """Functions of which each calls the next one ten times."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    functions = [helper.make_function("d", "f0", ["x"], ["y"], [_node("Neg", ["x"], ["y"])], opsets)]
    names = ["x", *(f"t{i}" for i in range(9)), "y"]
    for level in range(1, depth):
        calls = [_node(f"f{level - 1}", [a], [b], domain="d") for a, b in pairwise(names)]
        functions.append(helper.make_function("d", f"f{level}", ["x"], ["y"], calls, opsets))
    call = _node(f"f{depth - 1}", ["x"], ["y"], domain="d")
    graph = helper.make_graph([call], "g", [_value("x", FLOAT, [1])], [_value("y", FLOAT, [1])])
    made: bytes = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8).SerializeToString()
    return made


def _in_a_loop(node: Any, name: str) -> bytes:
    body = [node, _node("Size", [name], ["w"])]
    return _size_of("x", [_loop(body, None, _value("w", INT64, []))], _COUNT)


_TEXT = helper.make_tensor("a", STRING, [1], [b"x" * 10_000])

REFUSED: dict[str, bytes] = {
    "sparse initializer": _sparse_initializer(),
    "sparse constant": _size_of("x", [_node("Constant", [], ["x"], sparse_value=_sparse())]),
    "sparse constant in a loop": _in_a_loop(_node("Constant", [], ["z"], sparse_value=_sparse()), "z"),
    "functions": _functions(9),
    "strings": _size_of("x", [_node("Tile", ["a", "n"], ["x"])], _TEXT, _ints("n", 10**6)),
    "strings, constant": _size_of("x", [_node("Constant", [], ["x"], value=_TEXT)]),
    "strings, as an attribute": _size_of("x", [_node("Constant", [], ["x"], value_strings=["x" * 10_000])]),
    "strings, in a loop": _in_a_loop(_node("Constant", [], ["z"], value=_TEXT), "z"),
    "strings, made of numbers": _size_of("x", [_node("Cast", ["a"], ["x"], to=STRING)], _floats("a", 1.0)),
}
"""What would take memory that ONNX Runtime's allocator does not see."""
