"""Counts of what crossed the boundary between host, guest and device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(slots=True)
class Counters:
    """Running totals: of a device, a model, a session or a guest.

    Tensor bytes cross the boundary only through functions that add to ``bytes_copied``.

    Control data (token ids, the few words of a parameter buffer, command lists, text) is not tensor bytes.
    """

    bytes_copied: int = 0
    """Tensor bytes copied between guest, host and device."""
    bytes_shared: int = 0
    """Bytes of pages wrapped for a device instead of copied."""
    bytes_loaded: int = 0
    """Bytes of model weights loaded into device memory, once per model."""
    host_calls: int = 0
    """A guest's calls of host functions (WASI not included)."""
    submits: int = 0
    """Submissions to the device."""
    dispatches: int = 0
    """Kernels run."""
    device_seconds: float = 0.0
    """Time on the device, in seconds."""

    def count_submission(self, seconds: float, dispatches: int) -> None:
        """Count a completed submission: its seconds on the device and its kernels."""
        self.submits += 1
        self.dispatches += dispatches
        self.device_seconds += seconds

    def add(self, other: Counters) -> None:
        """Add another's totals to these."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __sub__(self, before: Counters) -> Counters:
        """The difference between these totals and earlier ones."""
        return Counters(**{name: total - getattr(before, name) for name, total in self.as_dict().items()})

    def as_dict(self) -> dict[str, int | float]:
        """The totals by name, for printing and JSON."""
        return asdict(self)
