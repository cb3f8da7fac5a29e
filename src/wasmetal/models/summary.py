"""What a model file has in it, and the memory that it would take, without loading it."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from wasmetal.device.base import Bytes, Device, DeviceInfo, MemoryKind
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.kernels.dtypes import tensor_bytes
from wasmetal.models.architectures import read_network
from wasmetal.models.architectures.bert import Bert
from wasmetal.models.embedder import Embedder
from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.files.source import Source
from wasmetal.models.lm import fit
from wasmetal.models.lm.kv_cache import KVCache
from wasmetal.models.lm.model import Model

MAX_SESSIONS = 1 << 16
_SMALL = 1 << 20
"""Bytes of a tensor that is read all the same: its values may be needed to lay out the model."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a model takes."""

    context: int
    """Tokens of each session."""
    sessions: int
    weights: int
    """In the types that kernels read, which are the file's wherever possible."""
    expanded_weights: int
    """On a device that expands them to float32 (``DeviceInfo.expands_weights``)."""
    kv_type: str
    """The type of the KV cache; empty if there is none."""
    kv_cache: int
    """For all sessions, when it is full."""
    scratch: int
    """Activations, tables and inputs."""

    @property
    def total(self) -> int:
        """Bytes in all, on a device that does not expand the weights."""
        return self.weights + self.kv_cache + self.scratch


@dataclass(frozen=True, slots=True)
class Summary:
    """What is in a model file."""

    architecture: str
    title: str | None
    """What the file calls the model."""
    licence: str | None
    """The licence's identifier, if the file has it."""
    context: int | None
    """Positions that the model was trained for."""
    vocabulary: int | None
    """Tokens."""
    parameters: int
    """Elements of all tensors."""
    experts: int | None
    """In each mixture; None if the model has none."""
    experts_used: int | None
    """Of those, by each token."""
    active_parameters: int
    """Parameters without those of experts that a token does not use."""
    types: dict[str, tuple[int, int]]
    """Tensors and their bytes, by weight type."""
    bytes: int
    """Of all tensors."""


def summarize(file: ModelFile) -> Summary:
    """What the header says. Raises ModelError if it has no architecture, or a field is not of its type."""
    architecture = file.require("general.architecture", str)
    tokens = file.get("tokenizer.ggml.tokens", list, None)
    count: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    experts, used = (file.get(f"{architecture}.expert_{name}", int, 0) for name in ("count", "used_count"))
    mixture = 0 < used <= experts
    parameters = idle = 0
    for tensor in file.tensors.values():
        parameters += tensor.size
        if mixture and "_exps." in tensor.name:
            idle += tensor.size - tensor.size * used // experts
        name = (tensor.repacked.type if tensor.repacked else tensor.dtype).name
        count[name] += 1
        nbytes[name] += tensor.nbytes
    return Summary(
        architecture=architecture,
        title=file.get("general.name", str, None),
        licence=file.get("general.license", str, None),
        context=file.get(f"{architecture}.context_length", int, None),
        vocabulary=None if tokens is None else len(tokens),
        parameters=parameters,
        experts=experts if mixture else None,
        experts_used=used if mixture else None,
        active_parameters=parameters - idle,
        types={name: (count[name], total) for name, total in nbytes.most_common()},
        bytes=sum(nbytes.values()),
    )


def memory_needed(file: ModelFile, context: int | None = None, sessions: int = 1, kv_type: str | None = None) -> Memory:
    """What :class:`Model` allocates for sessions of ``context`` tokens each, by default as many as ``load_model``; or
    what :class:`Embedder` does, which has no sessions.

    Found by making the model on a device that only counts. Raises ModelError if the model cannot be used.
    """
    device = _Counting()
    if not 1 <= sessions <= MAX_SESSIONS:
        raise ModelError(f"{sessions} sessions; 1 to {MAX_SESSIONS} are supported")
    described = _described(file)
    cache: KVCache | None = None
    model: Embedder | Model
    if _embeds(file):
        model = Embedder(described, file.path.stem, cast(Device, device))
    else:
        model = Model(described, file.path.stem, cast(Device, device), context, sessions, kv_type=kv_type)
        cache = model.cache
    with model:
        kv_cache = cache.page_bytes * cache.free if cache else 0
        tensors = file.tensors.values()
        weights = sum(tensor_bytes(tensor.dtype, tensor.shape) for tensor in tensors)
        return Memory(
            context=model.context_length,
            sessions=sessions,
            weights=weights,
            expanded_weights=4 * sum(tensor.size for tensor in tensors),
            kv_type=cache.dtype.suffix if cache else "",
            kv_cache=kv_cache,
            scratch=max(0, device.allocated - weights - kv_cache),
        )


def shortage(file: ModelFile, memory: Memory, info: DeviceInfo, kv_type: str | None = None) -> str | None:
    """Why a device has not the memory for a model, and what would fit; None if it has.

    ``kv_type``: as for ``load_model``; if None, the device's default. Raises ModelError if the model cannot be used.
    """
    if _embeds(file):
        return None
    config = read_network(_described(file)).config
    try:
        fit.demand(config, file.tensors.values(), info, memory.context, memory.sessions, kv_type).check(info)
    except OutOfDeviceMemoryError as error:
        return str(error)
    return None


def _embeds(file: ModelFile) -> bool:
    return file.get("general.architecture", str, "") == Bert.name


def _described(file: ModelFile) -> ModelFile:
    """The file without what takes long, or memory: large tensors are zeros."""
    described = copy.copy(file)
    # A template is code of the file's, and takes no memory of the device.
    described.fields = {key: value for key, value in file.fields.items() if key != "tokenizer.chat_template"}
    described.tensors = {
        name: replace(tensor, source=cast(Source, _Unread(tensor.source))) if tensor.nbytes > _SMALL else tensor
        for name, tensor in file.tensors.items()
    }
    return described


class _Unread:
    """In place of a file's bytes: zeros, which take no memory until they are written."""

    def __init__(self, source: Source) -> None:
        self.size = source.size

    def read(self, offset: int, nbytes: int) -> Bytes:
        return np.zeros(nbytes, np.uint8)


class _Room:
    """A buffer that is only counted, unless the host has to write to it."""

    address = device_address = None

    def __init__(self, nbytes: int, kind: MemoryKind) -> None:
        self.nbytes = nbytes
        self.kind = kind

    def view(self) -> Bytes:
        return np.zeros(self.nbytes, np.uint8)

    def close(self) -> None:
        """Nothing was allocated."""


class _Counting:
    """As much of a device as it takes to make a model."""

    info = DeviceInfo(
        name="none",
        backend="none",
        index=0,
        driver="",
        unified=True,
        memory_bytes=1 << 62,
        page_alignment=4096,
        offset_alignment=16,
        max_binding_bytes=1 << 62,
        subgroup_size=1,
        lazy_memory=True,
    )

    def __init__(self) -> None:
        self.allocated = 0

    def allocate(self, nbytes: int, kind: MemoryKind) -> Any:
        self.allocated += nbytes
        return _Room(nbytes, kind)

    def load(self, buffer: Any, offset: int, data: Bytes) -> None:
        """Only counted when it was allocated."""
