"""Model files: damaged copies of small ones of several kinds. An input is a file; if it can be loaded, it is used.

An input that speaks of being split takes the place of the first part of a model in two files.
"""

from __future__ import annotations

import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

from tests.fuzz import noise
from tests.fuzz.target import Run, refusal
from tests.fuzz.tokenizer_files import sentencepiece
from tests.models.split import write_split_llama
from tests.models.tiny import write_tiny_llama
from wasmetal import load_model, open_device
from wasmetal.device import Device
from wasmetal.errors import WasmetalError

SECONDS = 60.0
MEMORY = 1 << 30

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 32, "blocks": 1, "context": 64}
SPLIT = SMALL | {"tensors": 6}
HEADER = 16_000
"""Bytes within which most changes are made."""


def generate(random: Random) -> bytes:
    base, marks = random.choice(_bases())
    if random.random() < 0.5:
        return noise.mutated(random, base, HEADER)
    out = bytearray(base)
    for _ in range(random.choice([1, 1, 2, 3])):  # counts, lengths and types where the header has them
        at = random.choice(marks)
        if random.random() < 0.5:
            struct.pack_into("<Q", out, at, random.choice([noise.number(random), len(base), random.getrandbits(20)]))
        else:
            struct.pack_into("<I", out, at, random.choice([*range(14), noise.number(random) % 2**32]))
    return bytes(out)


@cache
def _bases() -> list[tuple[bytes, list[int]]]:
    """Files, and where in each there is likely to be a count or a length."""
    kinds = (
        {"qtype": "Q4_1"},
        {"qtype": "F32", "tied": False},
        {"qtype": "Q8_0", "rope_scaling": "llama3"},
        {"qtype": "F16", "rope_scaling": "linear", "value_qtype": "F32"},
        {"qtype": "Q4_0", "architecture": "qwen2"},
        {"qtype": "Q8_0", "tokenizer": sentencepiece},
    )
    found, files = [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            files.append(write_tiny_llama(Path(folder, "base.gguf"), **SMALL, **kind).read_bytes())
        files.append(write_split_llama(Path(folder, "split.gguf"), **SPLIT)[0].read_bytes())
        for data in files:
            words = range(8, min(HEADER, len(data)) - 8)
            found.append((data, [i for i in words if 0 < struct.unpack_from("<Q", data, i)[0] < 5000]))
    return found


@contextmanager
def opened(device: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder, open_device(device) as opened_device:
        first, _ = write_split_llama(Path(folder, "split.gguf"), **SPLIT)

        def run(data: bytes) -> Counter[str]:
            path = first if b"split.count" in data[:HEADER] else Path(folder, "case.gguf")
            path.unlink(missing_ok=True)  # an earlier case may have the old file mapped
            path.write_bytes(data)
            return Counter([_outcome(path, opened_device)])

        yield run


def _outcome(path: Path, device: Device) -> str:
    stage = "load"
    try:
        with load_model(path, device) as model:
            stage = "use"
            with model.session() as session:
                session.forward([1 % model.vocab_size], model.logits())
            model.tokenizer.decode(model.tokenizer.encode("hello <|im_end|> é\n"))
            if model.chat_template:
                model.chat_template.render([{"role": "user", "content": "x"}])
    except WasmetalError as error:
        return refusal(stage, error)
    return "used"
