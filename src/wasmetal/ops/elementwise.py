"""Elementwise operations. The output may be the same tensor as an input, but may not overlap it otherwise."""

from __future__ import annotations

from wasmetal.kernels.catalog import THREADS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor


def add(rec: Recorder, a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a + b; f32 of one shape, rows may be strided. If a is [T, K], b may be [K]. Raises OpError."""
    check.dtypes("add", (DType.F32,), a=a, b=b, out=out)
    if len(a.shape) == 2 and b.shape == a.shape[1:]:
        check.shape("add", "out", out, a.shape)
        (rows, columns), strides = a.shape, {"a_stride": a.row_stride, "b_stride": 0, "out_stride": out.row_stride}
        check.packed("add", b=b)
        check.separate("add", out, b=b)
    else:
        rows, columns, strides = check.flat("add", a=a, b=b, out=out)
    check.separate_or_same("add", out, a=a, b=b)
    rec.dispatch("add", (a, b, out), _groups(rows, columns), rows=rows, columns=columns, **strides)


def scale(rec: Recorder, x: Tensor, factor: float, out: Tensor) -> None:
    """out = x * factor; f32 of one shape, rows may be strided. Raises OpError."""
    check.dtypes("scale", (DType.F32,), x=x, out=out)
    rows, columns, strides = check.flat("scale", x=x, out=out)
    check.separate_or_same("scale", out, x=x)
    rec.dispatch("scale", (x, out), _groups(rows, columns), rows=rows, columns=columns, factor=factor, **strides)


def silu_mul(rec: Recorder, gate: Tensor, up: Tensor, out: Tensor, *, batch: Tensor | None = None) -> None:
    """out = silu(gate) * up, with silu(x) = x / (1 + exp(-x)); f32 [T, K], rows may be strided. Raises OpError.

    The gated linear unit of N. Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    check.dtypes("silu_mul", (DType.F32,), gate=gate, up=up, out=out)
    check.rank("silu_mul", 2, gate=gate, up=up, out=out)
    rows, columns = out.shape
    check.shape("silu_mul", "gate", gate, out.shape)
    check.shape("silu_mul", "up", up, out.shape)
    check.separate_or_same("silu_mul", out, gate=gate, up=up)
    batch, offset = check.optional_batch("silu_mul", batch, rows, out, stand_in=gate)
    rec.dispatch(
        "silu_mul",
        (gate, up, out, batch),
        _groups(rows, columns),
        rows=rows,
        columns=columns,
        gate_stride=gate.row_stride,
        up_stride=up.row_stride,
        out_stride=out.row_stride,
        **offset,
    )


def _groups(rows: int, columns: int) -> int:
    """One thread per element."""
    return -(-rows * columns // THREADS)
