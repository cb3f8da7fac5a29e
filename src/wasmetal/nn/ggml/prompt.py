"""What all contexts of GGUF models have in common: their inputs and outputs, and what is known of them as JSON."""

from __future__ import annotations

import json
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.tensor import NnTensor

PROMPT, METADATA = 0, 1
"""Inputs, which are a text and options; the outputs of the same numbers are the result, and what is known of it."""
INPUTS, OUTPUTS = ("prompt", "options"), ("text", "metadata")
"""Their names."""
MAX_PROMPT = 1 << 18
"""Bytes of a prompt: tokenizing takes hundreds of bytes, and microseconds, for each, and is not interrupted."""


def text_of(tensor: NnTensor) -> str:
    """The text of a prompt. Raises NnRefusal if it is too long."""
    data = tensor.data
    if data.size > MAX_PROMPT:
        raise NnRefusal(NnErrno.TOO_LARGE, f"a prompt of {data.size} bytes; at most {MAX_PROMPT} are taken")
    return data.tobytes().decode(errors="replace")


def checked(index: int) -> int:
    """The number of an input or output. Raises NnRefusal if there is none of that number."""
    if index not in (PROMPT, METADATA):
        raise invalid(f"number {index}; a GGUF model has a text, 0, and JSON, 1")
    return index


def vector_of(values: NDArray[np.floating]) -> bytes:
    """Output PROMPT where it is a vector [n]: scaled to length 1, as JSON."""
    vector = values / max(float(np.linalg.norm(values)), 1e-12)
    numbers = [float(f"{value:.9g}") for value in vector]
    return json.dumps({"n_embedding": len(numbers), "embedding": numbers}).encode()


def known(input_tokens: int, output_tokens: int) -> bytes:
    """Output METADATA."""
    described = {
        "input_tokens": input_tokens,
        "llama_build_number": 0,
        "llama_commit": f"wasmetal-{metadata.version('wasmetal')}",
        "output_tokens": output_tokens,
    }
    return json.dumps(described).encode()
