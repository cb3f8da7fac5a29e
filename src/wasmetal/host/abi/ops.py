"""The ops of the guest ABI. Each is the function of the same name in ``wasmetal.ops``, with the same parameter names.

The batch metadata that many ops take is described once, here; ``wasmetal.ops.batch`` says what it is for.
"""

from __future__ import annotations

from dataclasses import replace

from wasmetal.host.abi.schema import Attribute, Flag, Op, Operand, Ops

BATCH = Operand("batch", "I32 [1 + T, 2]")
OPTIONAL_BATCH = replace(BATCH, optional=True)
SEQUENCES = Operand("sequences", "I32 [S, 1 + P]")


def _out(doc: str) -> Operand:
    return Operand("out", doc, read=False, written=True)


OPS = Ops(
    doc="""
    Ops. A command's operands stand in t[] in the order given; r and w say which usage their buffers must allow. An
    operand in brackets may be left out. Flags and attributes that an op does not name are 0.

    Batch metadata: `batch` and `sequences` say which of the T rows are valid and where each one stands, so that a list
    of commands that was submitted once can be submitted again for other rows, also of several sequences at a time.
    batch[0] is the number of valid rows, which come first, and a 0; batch[1 + t] is the position of row t and its
    sequence, an index into `sequences`. sequences[s] is a sequence's length, with this submission's rows, and its page
    table: the page of the KV cache that holds each run of page_size positions. With `batch`, an op leaves rows that are
    not valid untouched; without it, all are valid.

    What ops read as indices (ids, batch, sequences) is clamped to what it indexes, whatever its value.

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
                OPTIONAL_BATCH,
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
                OPTIONAL_BATCH,
            ),
        ),
        Op(
            4,
            "rms_norm",
            "out = x / sqrt(mean(x^2) + eps) * weight along the last dimension",
            (
                Operand("x", "F32 [T, K], or [T, heads, K]"),
                Operand("weight", "F32 [K]"),
                _out("F32, of x's shape"),
                OPTIONAL_BATCH,
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
                BATCH,
            ),
            flags=(Flag("interleaved", 1, "the pairs are (2i, 2i + 1)"),),
        ),
        Op(
            6,
            "kv_append",
            "writes keys and values to the rows' positions in a KV cache; rows past their sequence's end are dropped",
            (
                Operand("k", "F32 [T, kv_heads, head_dim]"),
                Operand("v", "F32 [T, kv_heads, head_dim]"),
                Operand(
                    "k_pages", "F32, F16 or Q8_0 (guest-guide.md) [pages, page_size, kv_heads, head_dim]", written=True
                ),
                Operand("v_pages", "as k_pages", written=True),
                BATCH,
                SEQUENCES,
            ),
        ),
        Op(
            7,
            "attention",
            "causal attention: a row attends to its sequence up to its own position; heads is a multiple of kv_heads",
            (
                Operand("q", "F32 [T, heads, head_dim]; head_dim is a multiple of 4, at most 256"),
                Operand("k_pages", "F32, F16 or Q8_0 (guest-guide.md) [pages, page_size, kv_heads, head_dim]"),
                Operand("v_pages", "as k_pages"),
                BATCH,
                SEQUENCES,
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
                OPTIONAL_BATCH,
            ),
        ),
        Op(
            9,
            "add",
            "out = a + b",
            (
                Operand("a", "F32"),
                Operand("b", "F32, of a's shape, or [K] if a is [T, K]"),
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
    ),
)
