"""Loading GGUF models, and folders of Hugging Face, for wasi-nn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.lm.model import Model, load_model
from wasmetal.models.lm.quota import Holder
from wasmetal.nn.backend import Config, Context, Services, Source
from wasmetal.nn.errors import NnErrno, NnRefusal
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
        self._opened: dict[object, tuple[Model, Holder]] = {}
        self._cleanup = ExitStack()

    def load(self, source: Source, config: Config) -> GgmlGraph:
        """A graph of a model, which stays loaded as long as the backend."""
        options = GgmlOptions().updated(source.options).updated(config)
        if isinstance(source.model, bytes):
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "a GGUF model is to be granted by name")
        if source.model not in self._opened:
            self._opened[source.model] = self._open(source)
        return GgmlGraph(*self._opened[source.model], self._services, options)

    def close(self) -> None:
        """Close the models that were loaded here. Idempotent."""
        self._opened.clear()
        self._cleanup.close()

    def _open(self, source: Source) -> tuple[Model, Holder]:
        if isinstance(source.model, Path):
            try:
                model = load_model(source.model, self._device, **self._loading)
            except ModelError as error:
                log.warning("%s: %s", source.name, error)  # the host's own file
                raise NnRefusal(NnErrno.INVALID_ENCODING, f"{source.name}: {error}") from None
            self._cleanup.enter_context(model)
            self._services.counters.add(model.counters)
        else:
            model = cast(Model, source.model)
        holder = model.join(self._services.charge)
        self._cleanup.callback(model.leave, holder)
        return model, holder


class GgmlGraph:
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
