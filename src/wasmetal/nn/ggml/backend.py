"""Loading GGUF models, and folders of Hugging Face, for wasi-nn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.architectures.bert import Bert
from wasmetal.models.embedder import Embedder, load_embedder
from wasmetal.models.hf_folder import open_model_file
from wasmetal.models.lm.model import Model, load_model
from wasmetal.models.lm.quota import Holder
from wasmetal.nn.backend import Config, Context, Graph, Services, Source
from wasmetal.nn.errors import NnErrno, NnRefusal
from wasmetal.nn.ggml.embedding import EmbeddingGraph
from wasmetal.nn.ggml.options import GgmlOptions
from wasmetal.nn.ggml.text import TextContext

log = logging.getLogger("wasmetal.nn")


class GgmlBackend:
    """Language models on a device, each loaded once."""

    def __init__(self, device: Device, services: Services, loading: Mapping[str, Any]) -> None:
        """``loading``: options of :func:`load_model`."""
        self._device = device
        self._services = services
        self._loading = loading
        self._opened: dict[object, Embedder | tuple[Model, Holder]] = {}
        self._cleanup = ExitStack()

    def load(self, source: Source, config: Config) -> Graph:
        """A graph of a model, which stays loaded as long as the backend."""
        options = GgmlOptions().updated(source.options).updated(config)
        if isinstance(source.model, bytes):
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "a GGUF model is to be granted by name")
        if source.model not in self._opened:
            self._opened[source.model] = self._open(source)
        opened = self._opened[source.model]
        if isinstance(opened, Embedder):
            return EmbeddingGraph(opened, self._services)
        return TextGraph(*opened, self._services, options)

    def close(self) -> None:
        """Close the models that were loaded here. Idempotent."""
        self._opened.clear()
        self._cleanup.close()

    def _open(self, source: Source) -> Embedder | tuple[Model, Holder]:
        model = source.model
        if isinstance(model, Path):
            try:
                model = load(model, self._device, self._loading)
            except ModelError as error:
                log.warning("%s: %s", source.name, error)  # the host's own file
                raise NnRefusal(NnErrno.INVALID_ENCODING, f"{source.name}: {error}") from None
            self._cleanup.callback(model.close)
            self._services.counters.add(model.counters)
        if isinstance(model, Embedder):
            return model
        model = cast(Model, model)
        holder = model.join(self._services.charge)
        self._cleanup.callback(model.leave, holder)
        return model, holder


def load(path: Path, device: Device, loading: Mapping[str, Any]) -> Model | Embedder:
    """The model of a file: a language model, or an embedding model. Raises what loading it does."""
    if open_model_file(path).get("general.architecture", str, "") == Bert.name:
        return load_embedder(path, device)
    return load_model(path, device, **loading)


class TextGraph:
    """A language model with options."""

    holds_tensors = False

    def __init__(self, model: Model, holder: Holder, services: Services, options: GgmlOptions) -> None:
        self._model = model
        self._holder = holder
        self._services = services
        self._options = options

    def configure(self, config: Config) -> None:
        """Change options. Raises NnRefusal."""
        self._options = self._options.updated(config)

    def context(self) -> Context:
        """A new context, with a session of its own."""
        return TextContext(self._model, self._holder, self._services, self._options)

    def close(self) -> None:
        """Nothing: the backend keeps the model."""
