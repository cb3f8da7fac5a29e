"""Check folders of embedding models against transformers, on small random BERTs that it saves, in several files.

    python tests/reference/check_hf_embeddings.py [--device cpu]...

Needs torch and transformers (``pip install -e .[reference]``). Tokens are compared with those of transformers'
tokenizer, and vectors with its model's rows, pooled here as sentence-transformers' files say. With the package
sentence_transformers installed, its own vectors are compared, too. Relative error is ‖ours − reference‖ / ‖reference‖,
per text.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.models.bert_folder import write_modules
from wasmetal import load_embedder, open_device

TOLERANCE = 1e-3
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789éßø▁"
CHARACTERS = [*LETTERS, *".,!?'[]()-#_世界αβ"]
PARTS = [*(f"##{each}" for each in LETTERS), "##ld", "##ing", "##ed"]
WORDS = ["the", "world", "The", "World", "un", "emb", "caf", "known"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *PARTS, *WORDS]
TEXTS = [
    *("the world", "The World, embedding!", "", "Café ÉCOLE Straße", "世界the世", "un-known (x) _ ## ▁a", "x" * 101),
    *("日本 unknown ☃ αβγ", "a\u0301b\u200bc\td\u3000e", "it's 2,000.5 " * 6),
]


@dataclass(frozen=True)
class Case:
    """How a model is saved."""

    pooling: dict[str, Any] | None = None
    """The pooling's configuration, if sentence-transformers' files are there."""
    normalize: bool = True
    tokenizer: str = "tokenizer.json"
    lowercase: bool = True
    within: bool = False
    """Whether it is a part of a model for another task."""
    dtype: torch.dtype = torch.float32
    transformer: dict[str, Any] | None = None
    """``sentence_bert_config.json``."""


MEAN = {"word_embedding_dimension": 96, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
CASES = {
    "plain": Case(),
    "mean": Case(MEAN),
    "mean, not scaled": Case(MEAN, normalize=False),
    "cls, of a newer version": Case({"embedding_dimension": 96, "pooling_mode": "cls", "include_prompt": True}),
    "vocab.txt": Case(MEAN, tokenizer="vocab.txt"),
    "vocab.txt, cased": Case(MEAN, tokenizer="vocab.txt", lowercase=False),
    "cased": Case(MEAN, lowercase=False),
    "cased, texts in lower case": Case(MEAN, lowercase=False, transformer={"do_lower_case": True}),
    "at most 20 tokens": Case(MEAN, transformer={"max_seq_length": 20, "do_lower_case": False}),
    "within a masked language model": Case(MEAN, within=True),
    "in half precision": Case(MEAN, dtype=torch.bfloat16),
}


def save(folder: Path, case: Case) -> None:
    """A random model, and all files beside it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY) + 3,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=160,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model = BertForMaskedLM(config) if case.within else BertModel(config)
    for parameter in model.parameters():  # biases and norms too, which are initialised to 0 and 1
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.to(case.dtype).save_pretrained(folder, max_shard_size="100KB")
    tokenizer = BertTokenizerFast({token: i for i, token in enumerate(VOCABULARY)}, do_lower_case=case.lowercase)
    tokenizer.save_pretrained(folder)
    if case.tokenizer == "vocab.txt":
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    if case.pooling is not None:
        write_modules(folder, case.pooling)
    if not case.normalize:
        path = folder / "modules.json"
        path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    if case.transformer is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(case.transformer))


@torch.inference_mode()
def reference(folder: Path, case: Case) -> tuple[list[list[int]], NDArray[np.float64]]:
    """The tokens and vectors of all texts."""
    settings = case.transformer or {}
    model = BertModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    texts = [text.lower() if settings.get("do_lower_case") else text for text in TEXTS]
    most = settings.get("max_seq_length", 128)
    tokens = [tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in texts]
    cls = "cls" in (case.pooling or {}).values()
    vectors = []
    for ids in tokens:
        states = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
        of = states[0] if cls else states.mean(axis=0)
        vectors.append(of / np.linalg.norm(of) if case.normalize else of)
    return tokens, np.stack(vectors)


def sentence_transformers(folder: Path) -> NDArray[np.float32] | None:
    """The vectors of the package of that name, if it is installed."""
    if find_spec("sentence_transformers") is None or not (folder / "modules.json").exists():
        return None
    from sentence_transformers import SentenceTransformer

    found: NDArray[np.float32] = SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": torch.float32}
    ).encode(TEXTS, batch_size=1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", action="append", help="default: cpu")
    devices = parser.parse_args().device or ["cpu"]
    worst, wrong = 0.0, []
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            save(folder, case)
            tokens, vectors = reference(folder, case)
            others = [each for each in [sentence_transformers(folder)] if each is not None]
            for device in devices:
                with open_device(device) as opened, load_embedder(folder, opened) as embedder:
                    ours = embedder.embed(TEXTS, truncate=True)
                    if [embedder._tokens(text, 0, True) for text in TEXTS] != tokens:
                        wrong.append(name)
                errors = [
                    float((np.linalg.norm(ours - each, axis=1) / np.linalg.norm(each, axis=1)).max())
                    for each in (vectors, *others)
                ]
                worst = max(worst, *errors)
                shown = ", ".join(f"{error:.1e}" for error in errors)
                print(
                    f"{device}  {name}: relative error {shown}{'; OTHER TOKENS' if name in wrong else ''}", flush=True
                )
    print(f"worst {worst:.1e}, at most {TOLERANCE:.0e} is allowed")
    return bool(wrong) or not worst < TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
