"""The type of a model's KV cache, and whether weights and cache fit a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from wasmetal.device.base import DeviceInfo
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.kernels.dtypes import KV, DType, tensor_bytes
from wasmetal.models.architectures.network import Config
from wasmetal.models.files.model_file import FileTensor
from wasmetal.models.lm.kv_cache import PAGE_SIZE
from wasmetal.ops.pools import fits_q8_0

KV_TYPES = {dtype.suffix: dtype for dtype in KV}
"""The types that a KV cache can have, by the names that callers use."""


def kv_type(name: str | None, info: DeviceInfo, config: Config) -> DType:
    """The type of a cache: the one that is named, or float16 on GPUs and float32 elsewhere.

    Raises ModelError if there is no such type, or the model's heads do not fit it.
    """
    if name is None:
        return DType.F16 if info.gpu else DType.F32
    if name not in KV_TYPES:
        raise ModelError(f"a key-value cache of the type {name!r}; supported: {', '.join(KV_TYPES)}")
    if KV_TYPES[name] is DType.Q8_0 and not fits_q8_0(config.head_count_kv, config.head_dim):
        raise ModelError(
            f"a key-value cache of the type q8_0 has blocks of 32 elements, two at a time, and this model has "
            f"{config.head_count_kv} heads of {config.head_dim}; choose the type f16"
        )
    return KV_TYPES[name]


def demand(
    config: Config, tensors: Iterable[FileTensor], info: DeviceInfo, context: int, contexts: int, name: str | None
) -> Demand:
    """What a model with these tensors asks of a device, with a KV cache of the type that is named (``kv_type``)."""
    weights = sum(
        4 * tensor.size if info.expands_weights else tensor_bytes(tensor.dtype, tensor.shape) for tensor in tensors
    )
    return Demand(config, weights, context, contexts, kv_type(name, info, config))


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model asks of a device's memory, scratch memory aside."""

    config: Config
    weights: int
    """Bytes."""
    context: int
    contexts: int
    dtype: DType
    """Of the KV cache."""

    @property
    def kv_cache(self) -> int:
        """Bytes of the KV cache when it is full."""
        return 2 * self.config.block_count * self.pool

    @property
    def pool(self) -> int:
        """Bytes of one layer's keys."""
        positions = -(-self.context // PAGE_SIZE) * PAGE_SIZE * self.contexts
        return positions * self.dtype.row_bytes(self.config.head_count_kv * self.config.head_dim)

    def check(self, info: DeviceInfo) -> None:
        """Raise OutOfDeviceMemoryError if the device has not as much memory, or cannot address a pool as a whole.

        The message says by how much it is too much, and what would fit.
        """
        excess = self.weights + self.kv_cache - info.memory_bytes
        if excess > 0:
            raise OutOfDeviceMemoryError(
                f"the model needs {_gb(self.weights + self.kv_cache)} of memory (weights {_gb(self.weights)}, "
                f"{self._cache()}), {_gb(excess)} more than {info.spec} has; {self._advice(self._fits(info))}"
            )
        most = info.max_binding_bytes - info.offset_alignment
        if self.pool > most:
            raise OutOfDeviceMemoryError(
                f"{self._cache()} has {_gb(self.pool)} for the keys of a layer, {_gb(self.pool - most)} more than "
                f"{info.spec} can address at once; {self._advice(self._fits(info))}"
            )

    def explain(self, info: DeviceInfo, error: OutOfDeviceMemoryError) -> OutOfDeviceMemoryError:
        """An error to raise instead of one that says that the device had no more memory, although it should have."""
        return OutOfDeviceMemoryError(
            f"the model needs {_gb(self.weights + self.kv_cache)} of the {_gb(info.memory_bytes)} of {info.spec} "
            f"(weights {_gb(self.weights)}, {self._cache()}), of which other programs may use a part: {error}; "
            "a smaller context, fewer contexts or another type of the cache take less"
        )

    def _fits(self, info: DeviceInfo) -> Callable[[Demand], bool]:
        most = info.max_binding_bytes - info.offset_alignment
        return lambda other: other.weights + other.kv_cache <= info.memory_bytes and other.pool <= most

    def _advice(self, fits: Callable[[Demand], bool]) -> str:
        """What would fit, each by itself."""
        found = []
        context = self.context // 2 // PAGE_SIZE * PAGE_SIZE
        while context and not fits(replace(self, context=context)):
            context = context // 2 // PAGE_SIZE * PAGE_SIZE
        if context:
            found.append(f"a context of {context} tokens")
        contexts = next((n for n in range(self.contexts - 1, 0, -1) if fits(replace(self, contexts=n))), None)
        if contexts:
            found.append(f"{contexts} context{'s' if contexts > 1 else ''} instead of {self.contexts}")
        smaller = KV[KV.index(self.dtype) + 1 :]
        for dtype in smaller:
            whole = dtype is not DType.Q8_0 or fits_q8_0(self.config.head_count_kv, self.config.head_dim)
            if whole and fits(replace(self, dtype=dtype)):
                found.append(f"a cache of the type {dtype.suffix}")
                break
        if not found:
            return "quantize it, or use a smaller model or another device"
        *others, last = found
        return f"{', '.join(others)} or {last} would fit" if others else f"{last} would fit"

    def _cache(self) -> str:
        return (
            f"a key-value cache of {_gb(self.kv_cache)} for {self.contexts} × {self.context} tokens in "
            f"{self.dtype.suffix}"
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
