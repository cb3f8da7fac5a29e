"""Operations that reduce along rows, with one group of threads per row."""

from __future__ import annotations

from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor


def rms_norm(rec: Recorder, x: Tensor, weight: Tensor, out: Tensor, eps: float, *, batch: Tensor | None = None) -> None:
    """out = x / sqrt(mean(x²) + eps) * weight along each row; f32, x and out [T, K], weight [K]. Raises OpError.

    ``out`` may be ``x``. After B. Zhang and R. Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    check.dtypes("rms_norm", (DType.F32,), x=x, weight=weight, out=out)
    check.rank("rms_norm", 2, x=x, out=out)
    rows, columns = x.shape
    check.shape("rms_norm", "weight", weight, (columns,))
    check.shape("rms_norm", "out", out, x.shape)
    check.packed("rms_norm", weight=weight)
    check.separate_or_same("rms_norm", out, x=x)
    check.separate("rms_norm", out, weight=weight)
    batch, offset = check.optional_batch("rms_norm", batch, rows, out, stand_in=weight)
    rec.dispatch(
        "rms_norm",
        (x, weight, out, batch),
        rows,
        rows=rows,
        columns=columns,
        x_stride=x.row_stride,
        out_stride=out.row_stride,
        eps=eps,
        **offset,
    )


def softmax(rec: Recorder, x: Tensor, out: Tensor) -> None:
    """out = exp(x - max) / sum over the last dimension; f32 of one shape. A row that is all -inf gives zeros.

    ``out`` may be ``x``. Raises OpError.
    """
    check.dtypes("softmax", (DType.F32,), x=x, out=out)
    check.shape("softmax", "out", out, x.shape)
    rows, columns, x_stride = check.matrix("softmax", "x", x)
    _, _, out_stride = check.matrix("softmax", "out", out)
    check.separate_or_same("softmax", out, x=x)
    rec.dispatch("softmax", (x, out), rows, rows=rows, columns=columns, x_stride=x_stride, out_stride=out_stride)


def argmax(rec: Recorder, x: Tensor, out: Tensor) -> None:
    """Out = index of the largest element over the last dimension, the lowest of equals; x f32, out I32 of the rest.

    NaN is less than everything; a row that is all NaN gives 0. A vector x gives out [1]. Raises OpError.
    """
    check.dtypes("argmax", (DType.F32,), x=x)
    check.dtypes("argmax", (DType.I32,), out=out)
    rows, columns, stride = check.matrix("argmax", "x", x)
    check.shape("argmax", "out", out, x.shape[:-1] or (1,))
    check.packed("argmax", out=out)
    check.separate("argmax", out, x=x)
    rec.dispatch("argmax", (x, out), rows, rows=rows, columns=columns, x_stride=stride)
