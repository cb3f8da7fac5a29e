"""Vocabularies, merges and texts. An input is a JSON object: the tokenizer's fields in a model file, and texts.

What a file's tokenizer accepts must tokenize every text: ids are in the vocabulary, and can be read back.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import noise, tokenizer_files
from tests.fuzz.target import Run, refusal
from tests.models.tiny import write_tiny_llama
from wasmetal import load_model, open_device
from wasmetal.device import Device
from wasmetal.errors import WasmetalError
from wasmetal.models.lm.tokenizer import KINDS
from wasmetal.models.lm.tokenizer_patterns import PRE_TOKENIZERS

SECONDS = 60.0
MEMORY = 1 << 30

SMALL = {"qtype": "F32", "heads": 1, "kv_heads": 1, "head_dim": 4, "hidden": 4, "blocks": 1, "context": 32}
BYTES = tokenizer_files.VOCABULARY[1:257]


def generate(random: Random) -> bytes:
    tokens, merges = _merged(random) if random.random() < 0.6 else _arbitrary(random)
    usual = random.random() < 0.6
    fields: dict[str, Any] = {
        "model": random.choice(list(KINDS)),
        "pre": random.choice(list(PRE_TOKENIZERS)),
        "tokens": tokens,
        "token_type": [1 if usual else random.choice([1, 1, 1, 2, 3, 4, 5, 6, 0, 99]) for _ in tokens],
        "merges": merges,
        "scores": [random.choice([0.0, 1.0, -1.0, float("nan"), float("inf"), random.random()]) for _ in tokens],
    }
    for name in ("bos", "eos", "eot", "unknown"):
        if random.random() < 0.5:
            wrong = random.random() < 0.05
            fields[f"{name}_token_id"] = (
                random.choice([-1, 2**40, len(tokens)]) if wrong else random.randrange(len(tokens))
            )
    if random.random() < 0.3:
        fields["add_bos_token"] = random.random() < 0.5
    if random.random() < 0.05:
        del fields[random.choice(list(fields))]
    texts = [noise.text(random, 60) * random.choice([1, 1, 1, 50]) for _ in range(3)]
    return json.dumps({"fields": fields, "texts": texts}).encode()


def _merged(random: Random) -> tuple[list[str], list[str]]:
    """A vocabulary as training makes it: every token is one character, or two earlier tokens and their merge."""
    tokens = [*"abĠ▁Ċé0xF<>", "中", "😀"]
    tokens += BYTES if random.random() < 0.3 else []
    merges = []
    for _ in range(random.randint(0, 40)):
        left, right = random.choice(tokens), random.choice(tokens)
        if left + right not in tokens and len(left + right) < 60:
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    return tokens, merges


def _arbitrary(random: Random) -> tuple[list[str], list[str]]:
    tokens = list(dict.fromkeys(noise.text(random, 5) for _ in range(random.randint(1, 40))))
    if random.random() < 0.9:
        tokens = list(filter(None, tokens)) or ["a"]
    if random.random() < 0.3:
        tokens = list(dict.fromkeys([*tokens, *BYTES]))
    if random.random() < 0.02:  # pieces of which each contains the one before
        tokens = ["a" * n for n in range(1, random.choice([50, 400, 2000]))]
    random.shuffle(tokens)
    return tokens, [_merge(random, tokens) for _ in range(random.choice([0, 0, 1, 2, 5, 30]))]


def _merge(random: Random, tokens: list[str]) -> str:
    r = random.random()
    if r < 0.5:
        return f"{random.choice(tokens)} {random.choice(tokens)}"
    token = random.choice(tokens)
    cut = random.randint(0, len(token))
    return f"{token[:cut]} {token[cut:]}" if r < 0.95 else token


@contextmanager
def opened(device: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder, open_device(device) as opened_device:
        path = Path(folder, "case.gguf")

        def run(data: bytes) -> Counter[str]:
            case = json.loads(data)
            path.unlink(missing_ok=True)
            write_tiny_llama(
                path,
                **SMALL,
                tokens=case["fields"].get("tokens", ["a"]),
                tokenizer=lambda w, tokens: tokenizer_files.write(w, case["fields"]),
            )
            return Counter([_outcome(path, opened_device, case["texts"])])

        yield run


def _outcome(path: Path, device: Device, texts: list[str]) -> str:
    stage = "load"
    try:
        with load_model(path, device) as model:
            stage = "tokenize"
            size = model.vocab_size
            assert len(model.tokenizer.pieces()) == size
            for text in texts:
                for parse_special in (False, True):
                    ids = model.tokenizer.encode(text, parse_special=parse_special)
                    assert all(0 <= i < size for i in ids), "a token outside of the vocabulary"
                    model.tokenizer.decode(ids)
            model.tokenizer.decode(range(size))
    except WasmetalError as error:
        return refusal(stage, error)
    return "used"
