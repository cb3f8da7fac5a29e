"""Models that a guest is granted for wasi-nn: as Python has them, and as the command line writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmetal.device import Device
from wasmetal.errors import GuestError
from wasmetal.nn.backend import Source
from wasmetal.nn.errors import NnRefusal
from wasmetal.nn.kinds import Kind, kind_of

if TYPE_CHECKING:
    from wasmetal.models import Embedder
    from wasmetal.models.loaded import LoadedModel

_OPTION = re.compile(r":([a-z][a-z0-9-]*)=")
_ENCODINGS = ("ggml", "onnx", "tensorflowlite", "autodetect")
_TARGETS = ("cpu", "gpu", "tpu", "auto")


@dataclass(frozen=True, slots=True)
class NnModel:
    """A model to be granted for wasi-nn, with options."""

    source: str | Path | LoadedModel | Embedder
    """A known model's name, a path (of a GGUF file, a folder of Hugging Face, or an ONNX model), or a loaded model."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As the guest would give them; they hold unless the guest gives others."""


Given = Mapping[str, "str | Path | LoadedModel | Embedder | NnModel"]
"""Models by the guest's names for them."""


def parse(text: str) -> tuple[str, NnModel]:
    """A grant and its name from ``NAME=PATH[:option=value…]``. A value is JSON, or else a text. Raises GuestError."""
    name, _, rest = text.partition("=")
    path, *options = _OPTION.split(rest)
    if not (name and path):
        raise GuestError(f"{text!r} has not the form NAME=PATH[:option=value…]")
    return name, NnModel(path, dict(zip(options[::2], map(_value, options[1::2]), strict=True)))


def parse_preload(text: str) -> tuple[str, NnModel]:
    """A grant and its name from WasmEdge's ``NAME:ENCODING:TARGET:PATH``. Raises GuestError."""
    name, encoding, target, path = (*text.split(":", 3), "", "", "")[:4]
    if not (name and path):
        raise GuestError(f"{text!r} has not the form NAME:ENCODING:TARGET:PATH")
    for value, known in ((encoding, _ENCODINGS), (target, _TARGETS)):
        if value.lower() not in known:
            raise GuestError(f"{value!r} in {text!r} is not supported; supported: {', '.join(known)}")
    return name, NnModel(path)


def sources(given: Given) -> dict[str, Source]:
    """What backends load, by the guest's names. A file need not be there. Raises GuestError and ModelError."""
    found = {}
    for name, model in given.items():
        granted = model if isinstance(model, NnModel) else NnModel(model)
        if isinstance(granted.source, str | Path):
            source = Source(path_of(granted.source), str(granted.source), granted.options)
        else:
            source = Source(granted.source, granted.source.name, granted.options)
        _check(source)
        found[name] = source
    return found


def device_of(sources: Iterable[Source]) -> Device | None:
    """The device of the first one that is loaded already; None if none is."""
    devices = (getattr(source.model, "device", None) for source in sources)
    return next((device for device in devices if device is not None), None)


def needs_device(model: object) -> bool:
    """Whether a model, of which a file need not be there, runs on wasmetal's engine."""
    return _kind(model) is Kind.GGML


def path_of(source: str | Path) -> Path:
    """The file that a name or path means; it need not be there. Raises ModelError if a known model is not here."""
    from wasmetal.models.files import store  # noqa: PLC0415 (slow to import, and few guests need it)

    if store.find(str(source)) is None and str(source) not in store.CATALOG:
        return Path(source)
    return store.resolve(source)


def _kind(model: object) -> Kind | None:
    """A model's kind; None if its file cannot be read."""
    try:
        return kind_of(model)
    except OSError:
        return None


def _check(source: Source) -> None:
    """Raise GuestError if a model of this kind could never be loaded here, or its options are wrong."""
    kind = _kind(source.model)
    if kind is Kind.TFLITE and not find_spec("ai_edge_litert"):
        raise GuestError(f"{source.name} is a TensorFlow Lite model; to run those, pip install 'wasmetal[tflite]'")
    if kind is Kind.ONNX and not find_spec("onnxruntime"):
        raise GuestError(f"{source.name} is an ONNX model; to run those, pip install 'wasmetal[onnx]'")
    if kind is Kind.GGML:
        from wasmetal.nn.ggml.options import GgmlOptions  # noqa: PLC0415 (slow to import, and few guests need it)

        try:
            GgmlOptions().updated(source.options)
        except NnRefusal as error:
            raise GuestError(f"model {source.name}: {error}") from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
