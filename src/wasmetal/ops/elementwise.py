"""Elementwise operations. The output may be the same tensor as an input, but may not overlap it otherwise."""

from __future__ import annotations

from wasmetal.kernels.catalog import THREADS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import ALIGNMENT, Tensor
from wasmetal.ops.work import EXPONENTIAL, Part, Work


def add(rec: Recorder, a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a + b; f32 of one shape, rows may be strided. If a is [T, K], b may be [K]. Raises OpError."""
    check.dtypes("add", (DType.F32,), a=a, b=b, out=out)
    if broadcast := len(a.shape) == 2 and b.shape == a.shape[1:]:
        check.shape("add", "out", out, a.shape)
        check.packed("add", b=b)
        check.separate("add", out, b=b)
        matrices = [a, b, out]
    else:
        matrices = check.flat("add", a=a, b=b, out=out)
    check.separate_or_same("add", out, a=a, b=b)
    for part in rec.parts("add", _work(12, *matrices)):
        left, result = matrices[0].part(part), matrices[2].part(part)
        right = matrices[1].part(part)
        rec.dispatch(
            "add",
            (left, right, result),
            _groups(part),
            part.work,
            rows=part.rows,
            columns=part.columns,
            a_stride=left.row_stride,
            b_stride=0 if broadcast else right.row_stride,
            out_stride=result.row_stride,
        )


def scale(rec: Recorder, x: Tensor, factor: float, out: Tensor) -> None:
    """out = x * factor; f32 of one shape, rows may be strided. Raises OpError."""
    check.dtypes("scale", (DType.F32,), x=x, out=out)
    matrices = check.flat("scale", x=x, out=out)
    check.separate_or_same("scale", out, x=x)
    for part in rec.parts("scale", _work(8, *matrices)):
        source, result = (matrix.part(part) for matrix in matrices)
        rec.dispatch(
            "scale",
            (source, result),
            _groups(part),
            part.work,
            rows=part.rows,
            columns=part.columns,
            x_stride=source.row_stride,
            out_stride=result.row_stride,
            factor=factor,
        )


def copy(rec: Recorder, x: Tensor, out: Tensor) -> None:
    """out = x, bit for bit; packed, of one type and shape, a multiple of 16 bytes. Raises OpError."""
    check.dtypes("copy", (x.dtype,), out=out)
    check.shape("copy", "out", out, x.shape)
    check.packed("copy", x=x, out=out)
    check.require(x.nbytes % ALIGNMENT == 0, f"copy: {x.nbytes} bytes; they must be a multiple of {ALIGNMENT}")
    check.separate("copy", out, x=x)
    vectors = x.nbytes // ALIGNMENT
    rec.dispatch("copy", (x, out), -(-vectors // THREADS), 2 * x.nbytes, vectors=vectors)


def silu_mul(rec: Recorder, gate: Tensor, up: Tensor, out: Tensor, *, batch: Tensor | None = None) -> None:
    """out = silu(gate) * up, with silu(x) = x / (1 + exp(-x)); f32 [T, K], rows may be strided. Raises OpError.

    The gated linear unit of N. Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    _gated("silu_mul", rec, gate, up, out, batch)


def gelu_mul(rec: Recorder, gate: Tensor, up: Tensor, out: Tensor, *, batch: Tensor | None = None) -> None:
    """out = gelu(gate) * up, with gelu(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) / 2. Otherwise as silu_mul.

    The approximation of D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units", 2016.
    """
    _gated("gelu_mul", rec, gate, up, out, batch)


def swiglu_oai(rec: Recorder, gate: Tensor, up: Tensor, out: Tensor, *, batch: Tensor | None = None) -> None:
    """out = g / (1 + exp(-1.702 g)) * (u + 1), with g = min(gate, 7) and u = up limited to -7 .. 7. Else as silu_mul.

    The gated linear unit of gpt-oss: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025, and its reference code.
    """
    _gated("swiglu_oai", rec, gate, up, out, batch)


def gelu(rec: Recorder, x: Tensor, out: Tensor, *, batch: Tensor | None = None) -> None:
    """out = x (1 + erf(x / sqrt(2))) / 2; f32 [T, K], rows may be strided. Raises OpError.

    D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units", 2016, not approximated.
    """
    check.dtypes("gelu", (DType.F32,), x=x, out=out)
    check.rank("gelu", 2, x=x, out=out)
    check.shape("gelu", "out", out, x.shape)
    check.separate_or_same("gelu", out, x=x)
    batch, offset = check.optional_batch("gelu", batch, out.shape[0], out, stand_in=x)
    for part in rec.parts("gelu", _work(24 + EXPONENTIAL, x, out)):
        rec.dispatch(
            "gelu",
            (x.part(part), out.part(part), batch),
            _groups(part),
            part.work,
            batch_row=part.top,
            rows=part.rows,
            columns=part.columns,
            x_stride=x.row_stride,
            out_stride=out.row_stride,
            **offset,
        )


def _gated(name: str, rec: Recorder, gate: Tensor, up: Tensor, out: Tensor, batch: Tensor | None) -> None:
    check.dtypes(name, (DType.F32,), gate=gate, up=up, out=out)
    check.rank(name, 2, gate=gate, up=up, out=out)
    check.shape(name, "gate", gate, out.shape)
    check.shape(name, "up", up, out.shape)
    check.separate_or_same(name, out, gate=gate, up=up)
    batch, offset = check.optional_batch(name, batch, out.shape[0], out, stand_in=gate)
    for part in rec.parts(name, _work(12 + EXPONENTIAL, gate, up, out)):
        some_gate, some_up, some_out = (tensor.part(part) for tensor in (gate, up, out))
        rec.dispatch(
            name,
            (some_gate, some_up, some_out, batch),
            _groups(part),
            part.work,
            batch_row=part.top,
            rows=part.rows,
            columns=part.columns,
            gate_stride=gate.row_stride,
            up_stride=up.row_stride,
            out_stride=out.row_stride,
            **offset,
        )


def _work(element: int, *matrices: Tensor) -> Work:
    """``element``: operations per element."""
    *rows, columns = matrices[0].shape
    return Work(rows[0] if rows else 1, columns, element, column_step=min(columns, THREADS), aligned=matrices)


def _groups(part: Part) -> int:
    """One thread per element."""
    return -(-part.rows * part.columns // THREADS)
