"""Loading GGUF models, and folders of Hugging Face, for wasi-nn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from wasmetal.device import Device
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.memory.anonymous_file import anonymous_file
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
            return self._load_own(source.model, options)
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

    def _load_own(self, content: bytes, options: GgmlOptions) -> Graph:
        """A graph of a model of the caller's own, which is closed with it. All that it takes is charged."""
        cleanup = ExitStack()
        self._services.charge(len(content))
        cleanup.callback(self._services.charge, -len(content))
        try:
            with anonymous_file(content) as path, self._services.stoppable(lambda: None):
                loading = {name: value for name, value in self._loading.items() if name in ("context", "kv_type")}
                model = load(path, self._device, {**loading, "contexts": 1, "trusted": False}, self._charged)
        except ModelError as error:
            cleanup.close()
            raise NnRefusal(NnErrno.INVALID_ENCODING, str(error)) from None
        except BaseException:
            cleanup.close()
            raise
        cleanup.callback(model.close)
        self._services.counters.add(model.counters)
        if isinstance(model, Embedder):
            return EmbeddingGraph(model, self._services, cleanup)
        return TextGraph(model, model.cache.owner, self._services, options, cleanup)

    def _charged(self, nbytes: int) -> None:
        """Charge for memory that a model of the caller's own takes. Raises OutOfDeviceMemoryError."""
        try:
            self._services.charge(nbytes)
        except Exception as error:
            raise OutOfDeviceMemoryError(str(error)) from None

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


def load(
    path: Path, device: Device, loading: Mapping[str, Any], charge: Callable[[int], None] | None = None
) -> Model | Embedder:
    """The model of a file: a language model, or an embedding model. Raises what loading it does."""
    if open_model_file(path).get("general.architecture", str, "") == Bert.name:
        return load_embedder(path, device, charge=charge)
    return load_model(path, device, **loading, charge=charge)


class TextGraph:
    """A language model with options."""

    holds_tensors = False

    def __init__(
        self, model: Model, holder: Holder, services: Services, options: GgmlOptions, own: ExitStack | None = None
    ) -> None:
        """``own``: what releases the model, if it is the graph's own."""
        self._own = own
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
        """Release the model, unless the backend keeps it."""
        if self._own:
            self._own.close()
