"""Batch metadata: positions, sequence numbers, lengths and page tables of any value, for the kernels that read them.

An input is a JSON object: the shapes and numbers of one case. What the device computes is compared with float64 NumPy,
in tensors that lie among poisoned bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from tests.fuzz.target import Run
from tests.ops.test_attention import check_attention, check_kv_append
from wasmetal import open_device, ops
from wasmetal.device import Device
from wasmetal.ops import DType

SECONDS = 60.0
MEMORY = 1 << 30

ATTENTION = {
    "attention": ops.attention,
    "split_attention": ops.split_attention,
    "prefill_attention": ops.prefill_attention,
}
EXTREMES = (-1, -(2**31), 2**31 - 1, 12345678, 255, 256, 65536)


def generate(random: Random) -> bytes:
    page_size, pages = random.randint(1, 33), random.randint(1, 12)
    count, entries, rows = random.randint(1, 5), random.randint(1, 9), random.randint(1, 40)
    positions = entries * page_size
    case: dict[str, Any] = {
        "op": random.choice([*ATTENTION, "kv_append"]),
        "parts": random.randint(1, 9),
        "dtype": random.choice(["F32", "F16"]),
        "kv_heads": random.randint(1, 3),
        "group": random.randint(1, 4),
        "head_dim": 4 * random.randint(1, 20),
        "page_size": page_size,
        "pages": pages,
        "tables": [[_number(random, pages) for _ in range(entries)] for _ in range(count)],
        "lengths": [_number(random, positions) for _ in range(count)],
        "positions": [_number(random, positions) for _ in range(rows)],
        "sequences": [_number(random, count - 1) for _ in range(rows)],
        "valid": _number(random, rows),
        "window": random.choice([None, random.randint(1, positions + 1), 2**31 - 1]),
    }
    if case["op"] == "kv_append":  # rows of one slot may be written in any order, so each has its own
        case["sequences"] = [0] * rows
        case["tables"] = [random.sample(range(6), 3)]
        case["lengths"] = [_number(random, 30)]
        case["positions"] = random.sample(range(40), rows)
    return json.dumps(case).encode()


def _number(random: Random, most: int) -> int:
    return random.choice(EXTREMES) if random.random() < 0.1 else random.randint(0, most + 1)


@contextmanager
def opened(device: str) -> Iterator[Run]:
    with open_device(device) as opened_device:

        def run(data: bytes) -> Counter[str]:
            return Counter([_check(opened_device, json.loads(data))])

        yield run


def _check(device: Device, case: dict[str, Any]) -> str:
    dtype, metadata = DType[case["dtype"]], [case[name] for name in ("tables", "lengths", "positions", "sequences")]
    valid = case["valid"] if 0 <= case["valid"] < 2**31 else -1
    if case["op"] == "kv_append":
        check_kv_append(device, dtype, *metadata, valid)
    else:
        heads = case["kv_heads"] * case["group"]
        sizes = heads, case["kv_heads"], case["head_dim"], case["page_size"], case["pages"]
        how = {"window": case.get("window"), "attend": ATTENTION[case["op"]]}
        if case["op"] == "split_attention":
            how["parts"] = case["parts"]
        check_attention(device, dtype, *sizes, *metadata, valid, gap=4, **how)
    return case["op"]
