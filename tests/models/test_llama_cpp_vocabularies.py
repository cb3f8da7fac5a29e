"""llama.cpp's own vocabulary tests: texts and the ids that its tokenizers are known to give, per vocabulary.

They parse no special tokens.
"""

import os
from pathlib import Path

import pytest

from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.lm.tokenizer import Tokenizer

FOLDER = os.environ.get("WASMETAL_LLAMA_CPP_MODELS")
SEPARATOR = "\n__ggml_vocab_test__\n"
NAMES = (
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)


@pytest.mark.skipif(FOLDER is None, reason="WASMETAL_LLAMA_CPP_MODELS does not name llama.cpp's models folder")
@pytest.mark.parametrize("name", NAMES)
def test_vocabulary(name: str) -> None:
    path = Path(FOLDER or "") / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer(GGUFFile(path))
    texts = Path(f"{path}.inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = Path(f"{path}.out").read_text().splitlines()
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = list(map(int, line.split()))
        assert tokenizer.encode(text, parse_special=False, add_bos=False) == ids, text
        if name != "bert-bge":  # which loses case, accents and spaces
            assert tokenizer.decode(ids) == text
