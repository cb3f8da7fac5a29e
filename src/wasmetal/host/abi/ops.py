"""The ops of the guest ABI. Each is the function of the same name in ``wasmetal.ops``, with the same parameter names.

``step``, which many ops take, is described once, here.
"""

from __future__ import annotations

from dataclasses import replace

from wasmetal.host.abi.schema import Attribute, Flag, Op, Operand, Ops

STEP = Operand("step", "I32 [4]")
OPTIONAL_STEP = replace(STEP, optional=True)
PAGE_TABLE = Operand("page_table", "I32 [n]: the pages that hold the sequence, in order")


def _out(doc: str) -> Operand:
    return Operand("out", doc, read=False, written=True)


OPS = Ops(
    doc="""
    Ops. A command's operands stand in t[] in the order given; r and w say which usage their buffers must allow. An
    operand in brackets may be left out. Flags and attributes that an op does not name are 0.

    `step` says which rows are valid: step[0] is their number, step[1] the position of the first one in its sequence,
    step[2] the row that WM_OP_COPY_ROW takes, step[3] is 0. With it, an op leaves rows that are not valid untouched.

    What ops read as indices (ids, step, page tables) is clamped to what it indexes, whatever its value.

    An output may be the very same tensor as an input in the elementwise ops (add, scale, silu_mul, softmax, rms_norm);
    any other overlap of an output with an operand is WM_INVAL.

    "Any type" means every element type but I32. The rows of an F32 operand whose first dimension is T, and those of the
    operands of matmul, add and scale, may be strided (wm_tensor.row_stride); all other operands are packed.
    """,
    ops=(
        Op(
            1,
            "matmul",
            "out = a b, for each matrix of the batch",
            (
                Operand("a", "F32 or F16 [M, K], or [batch, M, K]"),
                Operand("b", "of a's type, [K, N], or [batch, K, N]"),
                _out("F32 or F16 [M, N], or [batch, M, N]"),
            ),
            flags=(
                Flag("transpose_a", 1, "a is [.., K, M]"),
                Flag("transpose_b", 2, "b is [.., N, K]"),
            ),
        ),
        Op(
            2,
            "linear",
            "out = x weight^T, accumulated in float32",
            (
                Operand("x", "F32 [T, K]"),
                Operand("weight", "any type [N, K]"),
                Operand("out", "F32 [T, N]", written=True),
                OPTIONAL_STEP,
            ),
            flags=(Flag("accumulate", 1, "out += x weight^T"),),
        ),
        Op(
            3,
            "embed",
            "row t of out is row ids[t] of the table",
            (
                Operand("table", "any type [N, K]"),
                Operand("ids", "I32 [T]"),
                _out("F32 [T, K]"),
                OPTIONAL_STEP,
            ),
        ),
        Op(
            4,
            "rms_norm",
            "out = x / sqrt(mean(x^2) + eps) * weight, row by row",
            (
                Operand("x", "F32 [T, K]"),
                Operand("weight", "F32 [K]"),
                _out("F32 [T, K]"),
                OPTIONAL_STEP,
            ),
            attributes=(Attribute("eps", "added to the mean square"),),
        ),
        Op(
            5,
            "rope",
            "rotary position embedding in place: turns the pairs (i, i + rot / 2) of each head's first rot elements",
            (
                Operand("x", "F32 [T, heads, head_dim]", written=True),
                Operand("table", "F32 [positions, rot / 2, 2]: cosine and sine of each angle"),
                STEP,
            ),
            flags=(Flag("interleaved", 1, "the pairs are (2i, 2i + 1)"),),
        ),
        Op(
            6,
            "kv_append",
            "writes the rows' keys and values to their positions in the pages of a KV cache",
            (
                Operand("k", "F32 [T, kv_heads, head_dim]"),
                Operand("v", "F32 [T, kv_heads, head_dim]"),
                Operand("k_pages", "F32 or F16 [pages, page_size, kv_heads, head_dim]", written=True),
                Operand("v_pages", "as k_pages", written=True),
                PAGE_TABLE,
                STEP,
            ),
        ),
        Op(
            7,
            "attention",
            "causal attention: each row attends to all positions up to its own; heads is a multiple of kv_heads",
            (
                Operand("q", "F32 [T, heads, head_dim]; head_dim is a multiple of 4, at most 256"),
                Operand("k_pages", "F32 or F16 [pages, page_size, kv_heads, head_dim]"),
                Operand("v_pages", "as k_pages"),
                PAGE_TABLE,
                STEP,
                _out("F32 [T, heads * head_dim]"),
            ),
            attributes=(Attribute("scale", "multiplies q k before the softmax; usually 1 / sqrt(head_dim)"),),
        ),
        Op(
            8,
            "silu_mul",
            "out = gate / (1 + exp(-gate)) * up",
            (
                Operand("gate", "F32 [T, K]"),
                Operand("up", "F32 [T, K]"),
                _out("F32 [T, K]"),
                OPTIONAL_STEP,
            ),
        ),
        Op(
            9,
            "add",
            "out = a + b",
            (
                Operand("a", "F32"),
                Operand("b", "F32, of a's shape"),
                _out("F32, of a's shape"),
            ),
        ),
        Op(
            10,
            "scale",
            "out = x * factor",
            (Operand("x", "F32"), _out("F32, of x's shape")),
            attributes=(Attribute("factor", "multiplies every element"),),
        ),
        Op(
            11,
            "softmax",
            "the softmax of each row",
            (Operand("x", "F32 [T, K]"), _out("F32 [T, K]")),
        ),
        Op(
            12,
            "argmax",
            "the index of each row's first maximum; NaN is less than everything",
            (Operand("x", "F32 [T, K]"), _out("I32 [T]")),
        ),
        Op(
            13,
            "copy_row",
            "out = row step[2] of x",
            (
                Operand("x", "F32 [T, K]"),
                _out("F32 [1, K]"),
                STEP,
            ),
        ),
    ),
)
