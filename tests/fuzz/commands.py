"""Random commands of a guest's list: near to right, so that many run, and with hostile fields."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from tests.fuzz import noise
from tests.fuzz.noise import PAGE
from wasmetal.host import abi

ROOM = {"shared": PAGE, "device": 8192}
"""Bytes of the buffers that a guest of ``host_calls`` begins with."""
F32, I32 = 0, 26
DTYPES = (F32, F32, F32, 1, 2, 3, 8, I32, I32)
SCALARS = (0x3727C5AC, 0x3F800000, 0xBF800000, 0, 0x7F800000, 0x7FC00000, 0x7E967699)
"""As float32: 1e-5, 1, -1, 0, infinity, NaN, 1e38."""


def generate(random: Random) -> dict[str, Any]:
    """A command as JSON values, its buffers as references to handles."""
    number = random.choice(list(abi.OPS)) if random.random() < 0.98 else noise.number(random) % 2**32
    op = abi.OPS.get(number)
    command = {
        "op": number,
        "flags": random.choice([0] * 7 + [1, 2, 3]) if random.random() < 0.98 else noise.number(random) % 2**32,
        "attributes": [0] * 6,
    }
    if op and random.random() < 0.75:
        command["t"] = [_fitting(random, shape, dtype) for shape, dtype in _shapes(random, op.name)]
        command["attributes"][: len(op.attributes)] = [random.choice(SCALARS) for _ in op.attributes]
    else:
        command["t"] = [_any(random) for _ in range(random.randint(1, 6))]
        command["attributes"] = [random.getrandbits(32) if random.random() < 0.1 else 0 for _ in range(6)]
    return command


def record(command: dict[str, Any], handle: Callable[[Any], int]) -> Any:
    """The command as the guest writes it. ``handle`` gives the number for a reference."""
    out = np.zeros((), abi.COMMAND)
    for name in ("op", "flags", "attributes"):
        out[name] = command[name]
    for i, tensor in enumerate(command["t"]):
        if tensor:
            out["t"][i] = (handle(tensor[0]), *tensor[1:])
    return out


def _shapes(random: Random, op: str) -> list[tuple[tuple[int, ...], int]]:
    """Operands that fit one another."""
    rows, width = random.choice([1, 2, 3, 5, 8]), random.choice([4, 8, 32, 64])
    columns, heads, head_dim = random.choice([1, 2, 7, 64]), random.choice([1, 2, 4]), random.choice([4, 8, 16])
    kv_heads = random.choice([n for n in (1, 2, 4) if heads % n == 0])
    pages, page_size, sequences = random.choice([1, 2, 3]), random.choice([1, 4, 16]), random.choice([1, 2, 4])
    weight = random.choice(DTYPES[:7]) if width % 32 == 0 else random.choice([0, 1])
    x, batch = ((rows, width), F32), ((1 + rows, 2), I32)
    pool = ((pages, page_size, kv_heads, head_dim), random.choice([0, 1]))
    queries, keys = ((rows, heads, head_dim), F32), ((rows, kv_heads, head_dim), F32)
    table = ((sequences, 1 + random.choice([1, 3, 8])), I32)
    optional = [batch] if random.random() < 0.5 else []
    return {
        "matmul": [x, ((width, columns), F32), ((rows, columns), F32)],
        "linear": [x, ((columns, width), weight), ((rows, columns), F32), *optional],
        "embed": [((columns, width), weight), ((rows,), I32), x, *optional],
        "rms_norm": [x, ((width,), F32), x, *optional],
        "rope": [queries, ((random.choice([1, 3, 8]), head_dim // 2, 2), F32), batch],
        "kv_append": [keys, keys, pool, pool, batch, table],
        "attention": [queries, pool, pool, batch, table, ((rows, heads * head_dim), F32)],
        "silu_mul": [x, x, x, *optional],
        "add": [x, x, x],
        "scale": [x, x],
        "softmax": [x, x],
        "argmax": [x, ((rows,), I32)],
    }.get(op, [x, x])


def _fitting(random: Random, shape: tuple[int, ...], dtype: int) -> list[Any]:
    kind = random.choice(["shared"] * 3 + ["device"])
    offset = 16 * random.randint(0, (ROOM[kind] - 256) // 16)
    if random.random() < 0.05:
        offset = ROOM[kind] - 16 * random.randint(1, 64)
    stride = random.randint(1, 64) if random.random() < 0.04 else 0
    dimensions = [*shape, 0, 0, 0][:4]
    if random.random() < 0.02:
        dimensions[random.randrange(4)] = _dimension(random)
    return [[kind, random.randrange(2)], dtype, offset, len(shape), stride, dimensions]


def _any(random: Random) -> list[Any] | None:
    if random.random() < 0.1:
        return None
    rank = random.randint(1, 4)
    return [
        [random.choice(["shared", "device", "stolen", "session"]), random.randrange(8)],
        random.choice(DTYPES) if random.random() < 0.97 else noise.number(random) % 2**32,
        16 * random.randint(0, 511) if random.random() < 0.8 else noise.number(random),
        rank if random.random() < 0.97 else noise.number(random) % 2**32,
        0 if random.random() < 0.85 else _dimension(random),
        [_dimension(random) if i < rank else 0 for i in range(4)],
    ]


def _dimension(random: Random) -> int:
    return (
        random.choice([1, 1, 2, 3, 4, 4, 8, 16, 32, 64, 256])
        if random.random() < 0.93
        else noise.number(random) % 2**32
    )
