"""What loading a model will take, known before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wasmetal.device.base import DeviceInfo
from wasmetal.errors import ModelError, setting_up
from wasmetal.kernels.dtypes import tensor_bytes
from wasmetal.models.architectures import read_network
from wasmetal.models.architectures.bert import Bert
from wasmetal.models.files import store
from wasmetal.models.files.quantize import quantize as quantize_file
from wasmetal.models.hf_folder import open_model_file
from wasmetal.models.lm import fit
from wasmetal.models.lm.model import CONTEXTS, DEFAULT_CONTEXT


@dataclass(frozen=True, slots=True)
class Plan:
    """A model that has not been loaded."""

    name: str
    embeds: bool
    """Whether it makes embeddings, and not text."""
    context: int
    """Tokens."""
    nbytes: int
    """Of the device's memory that it may come to use: weights, and the KV cache when it is full."""
    device: DeviceInfo


def plan(
    source: str | Path,
    info: DeviceInfo,
    *,
    context: int | None = None,
    contexts: int = CONTEXTS,
    kv_type: str | None = None,
    quantize: str | None = None,
) -> Plan:
    """What a model takes on a device, with these options of :func:`load_model`; embedding models have none.

    Reads no more than the head of its file. Raises ModelError if the file cannot be used, OutOfDeviceMemoryError if it
    is too large for the device.
    """
    with setting_up(f"plan {source}", ModelError):
        path = store.resolve(source)
        name, file = store.name_of(source, path), open_model_file(path)
        tensors = file.tensors.values()
        if file.get("general.architecture", str, "") == Bert.name:
            each = 4 if info.expands_weights else 0
            nbytes = sum(each * tensor.size or tensor_bytes(tensor.dtype, tensor.shape) for tensor in tensors)
            return Plan(name, True, Bert(file).context_length, nbytes, info)
        if quantize is not None:
            quantize_file(file, quantize)
            tensors = file.tensors.values()
        config = read_network(file).config
        length = min(config.context_length, DEFAULT_CONTEXT) if context is None else context
        demand = fit.demand(config, tensors, info, length, contexts, kv_type)
        demand.check(info)
        return Plan(name, False, length, demand.weights + demand.kv_cache, info)
