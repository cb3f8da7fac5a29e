"""What decoders compute of a single row, several steps at a time: RMS norm, then products with weights, then a gate.

On a GPU each kernel that is recorded costs a few microseconds, about as long as it takes to read 10 MB of weights. So
decoding one token takes fewer and larger kernels. They compute what the ops of the single steps do, but for the order
in which they round.
"""

from __future__ import annotations

from wasmetal.errors import OpError
from wasmetal.kernels.catalog import ACTIVATIONS, NO_BIAS, SUBGROUP_ROWS, THREADS
from wasmetal.kernels.dtypes import WEIGHTS, DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.linear import GEMV_COLUMNS, bindable_rows
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor

_WIDE = 8192
"""From so many rows of weights on, a subgroup takes twice as many at a time.

It reads the vector less often, and there are still enough subgroups to occupy a large GPU. (On an H200 this makes the
head and feed-forward network of Llama 3.2 1B faster, but its queries, keys and values slower.)"""


def norm_linear(
    rec: Recorder, x: Tensor, norm: Tensor, weight: Tensor, out: Tensor, eps: float, *, bias: Tensor | None = None
) -> None:
    """out = (x / sqrt(mean(x²) + eps) * norm) weightᵀ + bias, for a single row. Raises OpError.

    x f32 [1, K] with K a multiple of 8, norm f32 [K], weight [N, K] of any weight type, bias f32 [N], out f32 [1, N].
    """
    _checked("norm_linear", x, norm, weight, out)
    n, k = weight.shape
    if bias is not None:
        check.dtypes("norm_linear", (DType.F32,), bias=bias)
        check.shape("norm_linear", "bias", bias, (n,))
        check.separate("norm_linear", out, bias=bias)
    for begin, end in bindable_rows(rec, "norm_linear", weight):
        shape = _shape(rec, end - begin)
        rec.dispatch(
            f"norm_gemv_{weight.dtype.suffix}",
            (
                *(weight.rows(begin, end), x, norm),
                norm if bias is None else bias.rows(begin, end),  # Without a bias the norm is bound, and not read.
                out.columns(begin, end),
            ),
            shape["groups"],
            4 * k * (end - begin),
            n=end - begin,
            k=k,
            eps=eps,
            **shape,
            **({"bias_offset": NO_BIAS} if bias is None else {}),
        )


def norm_gated(
    rec: Recorder,
    x: Tensor,
    norm: Tensor,
    gate: Tensor,
    up: Tensor,
    out: Tensor,
    eps: float,
    *,
    activation: str = "silu",
) -> None:
    """out = activation(n gateᵀ) * (n upᵀ), for a single row, with n = x / sqrt(mean(x²) + eps) * norm. Raises OpError.

    x f32 [1, K] with K a multiple of 8, norm f32 [K], gate and up [N, K] of one weight type, out f32 [1, N].
    ``activation`` is one of ACTIVATIONS: ``silu``, or ``gelu`` in its tanh form.
    """
    _checked("norm_gated", x, norm, gate, out)
    k = gate.shape[1]
    check.dtypes("norm_gated", (gate.dtype,), up=up)
    check.shape("norm_gated", "up", up, gate.shape)
    check.packed("norm_gated", up=up)
    check.separate("norm_gated", out, up=up)
    if activation not in ACTIVATIONS:
        raise OpError(f"norm_gated: the activation is {activation}; it must be {' or '.join(ACTIVATIONS)}")
    for begin, end in bindable_rows(rec, "norm_gated", gate):
        shape = _shape(rec, 2 * (end - begin))
        rec.dispatch(
            f"gated_gemv_{gate.dtype.suffix}",
            (gate.rows(begin, end), up.rows(begin, end), x, norm, out.columns(begin, end)),
            shape["groups"],
            8 * k * (end - begin),
            n=end - begin,
            k=k,
            eps=eps,
            activation=ACTIVATIONS.index(activation),
            **shape,
        )


def _shape(rec: Recorder, rows: int) -> dict[str, int]:
    """How rows of weights are spread over subgroups."""
    wide = rows >= _WIDE
    subgroups = -(-rows // (2 * SUBGROUP_ROWS if wide else SUBGROUP_ROWS))
    return {"wide": int(wide), "groups": -(-subgroups // (THREADS // rec.info.subgroup_size))}


def _checked(op: str, x: Tensor, norm: Tensor, weight: Tensor, out: Tensor) -> None:
    """What both require."""
    check.dtypes(op, (DType.F32,), x=x, norm=norm, out=out)
    check.dtypes(op, WEIGHTS, weight=weight)
    check.rank(op, 2, x=x, weight=weight, out=out)
    n, k = weight.shape
    check.shape(op, "x", x, (1, k))
    check.shape(op, "norm", norm, (k,))
    check.shape(op, "out", out, (1, n))
    check.require(k % GEMV_COLUMNS == 0, f"{op}: rows have {k} elements; it must be a multiple of {GEMV_COLUMNS}")
    check.packed(op, weight=weight)
    check.separate(op, out, x=x, norm=norm, weight=weight)
