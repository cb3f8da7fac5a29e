"""The results of the proof on one device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Link:
    """One link of the chain: whether it holds, and what was seen."""

    name: str
    ok: bool
    saw: str


@dataclass(slots=True)
class Report:
    """The chain on one device. Sizes in MB (10**6 bytes), times in ms; None if an earlier link failed."""

    name: str
    backend: str
    spec: str
    features: tuple[str, ...] = ()
    """Features of the device that are in use."""
    pointer_identity: bool = False
    """Whether Wasm memory, mapping and device buffer begin at the same address."""
    shared_overhead_mb: float | None = None
    """Memory added by sharing 16 MiB with the device: this process's resident memory, and what the device allocated."""
    copy_overhead_mb: float | None = None
    """Memory added by copying 16 MiB to the device, measured the same way."""
    bytes_copied: int | None = None
    """Bytes that the device's copying functions moved on the shared path."""
    gemm_shared_ms: float | None = None
    """Median time of a 128 × 128 float32 matrix multiplication in the guest's memory."""
    gemm_copy_ms: float | None = None
    """The same with both matrices copied to the device and the result copied back."""
    links: list[Link] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when every link holds."""
        return all(link.ok for link in self.links)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {"ok": self.ok, **asdict(self)}
