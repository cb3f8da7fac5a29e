"""Which backend a model is for, as its first bytes tell, and loading it with that one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from wasmetal.nn.backend import Backend, Config, Graph, Source
from wasmetal.nn.errors import NnErrno, NnRefusal


class Kind(Enum):
    """What runs a model."""

    GGML = "ggml"
    """Language and embedding models: GGUF files, folders of Hugging Face, and models that are loaded already."""
    ONNX = "onnx"
    TFLITE = "tensorflowlite"


def kind_of(model: object) -> Kind:
    """The kind of a model, from its file or bytes. Raises OSError if the file cannot be read."""
    if isinstance(model, Path):
        if model.is_dir():
            return Kind.GGML
        with model.open("rb") as file:
            head = file.read(8)
    elif isinstance(model, bytes):
        head = model[:8]
    else:
        return Kind.GGML
    return Kind.GGML if head[:4] == b"GGUF" else Kind.TFLITE if head[4:] == b"TFL3" else Kind.ONNX


class Backends:
    """Loads each model with the backend for its kind. The backends are made at their first use."""

    def __init__(self, makers: Mapping[Kind, Callable[[], Backend]]) -> None:
        self._makers = makers
        self._made: dict[Kind, Backend] = {}

    def load(self, source: Source, config: Config) -> Graph:
        """Load a model. Raises NnRefusal, and what its backend does."""
        try:
            kind = kind_of(source.model)
        except OSError as error:
            raise NnRefusal(NnErrno.MODEL_NOT_FOUND, f"{source.name}: {error}") from None
        if kind not in self._made:
            if kind not in self._makers:
                raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, f"{source.name}: no backend for {kind.value} here")
            self._made[kind] = self._makers[kind]()
        return self._made[kind].load(source, config)

    def close(self) -> None:
        """Close the backends. Idempotent."""
        while self._made:
            self._made.popitem()[1].close()
