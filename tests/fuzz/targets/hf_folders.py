"""Folders of Hugging Face: copies of small ones of several kinds, with one file that was damaged. An input is a JSON
object: which folder, which file, and its text; of a file of weights, its header. If it can be loaded, it is used.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import noise
from tests.fuzz.target import Run, refusal
from tests.models.bert_folder import spelled, write_bert_folder
from tests.models.folder import write_folder
from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from wasmetal import load_embedder, load_model, open_device
from wasmetal.device import Device
from wasmetal.errors import WasmetalError
from wasmetal.models.files.quantize import TYPES

SECONDS = 60.0
MEMORY = 1 << 30

SMALL: dict[str, Any] = {"heads": 2, "kv_heads": 1, "head_dim": 16, "hidden": 32, "blocks": 1, "context": 64}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"qtype": "F32", "rope_scaling": "linear"},
    "qwen3moe": {"qtype": "F16", "architecture": "qwen3moe", "experts": 2},
    "gpt-oss": {"qtype": "F32", "architecture": "gpt-oss", "experts": 2, "expert_qtype": "MXFP4"},
    "gpt-oss-floats": {"qtype": "F16", "architecture": "gpt-oss", "experts": 2, "rope_scaling": "yarn"},
    "gemma3": {"qtype": "F16", "architecture": "gemma3", "window": 4},
}
EMBEDDERS = ("bert", "bert-words")
ODD = (
    *(None, True, False, [], {}, [[]], "", "x", "[CLS]", "▁", "a" * 3000, "mxfp4", "U8", "F16", "I64", "yarn", ["x"]),
    *(-1, 0, 1, 3, 32, 2**31, 2**63, 2**80, -1.5, 1e30, float("nan"), float("inf")),
)


def generate(random: Random) -> bytes:
    kind = random.choice([*MODELS, *EMBEDDERS])
    path, text = random.choice(_files(kind))
    try:
        content: Any = json.loads(text)
    except ValueError:
        content = None
    if content is None or random.random() < 0.1:
        text = noise.mutated(random, text.encode()).decode("latin-1")
    else:
        for _ in range(random.choice([1, 1, 2])):
            content = _changed(random, content)
        text = json.dumps(content)
    return json.dumps({"kind": kind, "path": path, "text": text}).encode()


def _changed(random: Random, value: Any) -> Any:
    """A value of JSON with something in it that is another, missing, or there under another name."""
    if not value or not isinstance(value, (dict, list)) or random.random() < 0.05:
        if type(value) is int and random.random() < 0.5:
            return value + random.choice([-32, -1, 1, 32, value])
        return deepcopy(random.choice(ODD))
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    r = random.random()
    if r < 0.07:
        del value[key]
    elif r < 0.12 and isinstance(value, dict):
        value[str(key) + random.choice(["x", "_blocks", "_scales", "_bias", ".weight"])] = deepcopy(value[key])
    elif r < 0.17 and isinstance(value, dict):
        value[random.choice(list(value))] = deepcopy(value[key])
    else:
        value[key] = _changed(random, value[key])
    return value


def _write(folder: Path) -> None:
    """All models, each in a folder of its own."""
    source = folder / "source.gguf"
    for kind, options in MODELS.items():
        write_folder(folder / kind, write_tiny_llama(source, **SMALL, **options))
    write_tiny_bert(source, blocks=1, context=16)
    for kind in EMBEDDERS:
        write_bert_folder(folder / kind, source)
        (folder / kind / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
        roles = {"cls_token": {"content": "[CLS]"}, "do_lower_case": True, "strip_accents": None}
        (folder / kind / "tokenizer_config.json").write_text(json.dumps(roles | {"model_max_length": 14}))
    (folder / "bert-words" / "vocab.txt").write_text("\n".join(spelled()))
    (folder / "bert-words" / "tokenizer.json").unlink()


@cache
def _files(kind: str) -> list[tuple[str, str]]:
    """The files of a folder and their texts."""
    with tempfile.TemporaryDirectory() as temporary:
        _write(Path(temporary))
        folder = Path(temporary, kind)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(path.relative_to(folder).as_posix(), _text(path.read_bytes(), path)) for path in files]


def _text(data: bytes, path: Path) -> str:
    return (data[8:][: _header(data)] if path.suffix == ".safetensors" else data).decode()


def _header(data: bytes) -> int:
    (length,) = struct.unpack_from("<Q", data)
    return int(length)


@contextmanager
def opened(device: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder, open_device(device) as opened_device:
        _write(Path(folder))

        def run(data: bytes) -> Counter[str]:
            case = json.loads(data)
            path = Path(folder, case["kind"], case["path"])
            whole, text = path.read_bytes(), case["text"].encode("utf-8", "surrogatepass")
            if path.suffix == ".safetensors":
                text = struct.pack("<Q", len(text)) + text + whole[8 + _header(whole) :]
            path.unlink()  # an earlier case may have it mapped
            path.write_bytes(text)
            try:
                return Counter([_outcome(Path(folder, case["kind"]), opened_device)])
            finally:
                path.unlink()
                path.write_bytes(whole)

        yield run


def _outcome(folder: Path, device: Device) -> str:
    stage = "load"
    try:
        if folder.name in EMBEDDERS:
            with load_embedder(folder, device) as embedder:
                stage = "use"
                embedder.embed(["The world, a [SEP] é"], truncate=True)
                return "used"
        for quantize in (None, next(iter(TYPES))):
            with load_model(folder, device, quantize=quantize) as model, model.session() as session:
                stage = "use"
                session.forward([1 % model.vocab_size], model.logits())
                model.tokenizer.decode(model.tokenizer.encode("hello <|im_end|> é\n"))
    except WasmetalError as error:
        return refusal(stage, error)
    return "used"
