"""What a guest may use."""

from __future__ import annotations

from dataclasses import dataclass, fields

from wasmetal.errors import GuestError


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one guest. None: no limit."""

    memory_bytes: int = 4 << 30
    """Bytes of all linear memories together. Beyond it ``memory.grow`` gives -1, and a module whose initial memories
    are larger is refused with LimitError. Tables (at most 4, of at most 2^20 elements each; of a component, 64 smaller
    ones) may take up to a 64th of it more, or 32 KiB if that is more."""
    memories: int = 1
    """How many linear memories the module may have; beyond it, LimitError."""
    device_bytes: int = 4 << 30
    """Device memory held by the guest's buffers and sessions; beyond it, the call gives NOMEM."""
    handles: int = 1024
    """Buffers, submissions, models, sessions and open files held at a time; beyond it, the call gives MFILE."""
    commands: int = 16_384
    """Commands in one list (TOOBIG), and in all pending submissions together (AGAIN)."""
    work: int | None = 1 << 40
    """Work of the commands in one list (TOOBIG), and in all pending submissions together (AGAIN), in operations:
    roughly, multiply-adds or bytes read and written; products count in whole tiles of 64 × 64. The default allows a
    product of two matrices of 10,000 × 10,000: a minute or two on two CPU cores, a second or less on a GPU."""
    nn_model_bytes: int = 0
    """Bytes of a model that the guest itself brings to wasi-nn, which is then the host's to parse and run; beyond it,
    the call gives TOO_LARGE. 0: none are taken."""
    disk_bytes: int = 1 << 30
    """Bytes by which the guest may extend files in granted directories, in all; deleting or shortening files gives
    nothing back. Beyond it, the call gives DQUOT."""
    files: int = 65_536
    """Files, directories and links that the guest may create in granted directories, in all; beyond it, DQUOT."""
    wall_seconds: float | None = None
    """Time that one run may take; then LimitError. What is already running finishes first: one kernel on the CPU
    device."""
    device_seconds: float | None = None
    """Time that the device may spend on the guest; then LimitError, with the same exception. Until the device has
    reported how long a submission took, the time that the guest has waited for it counts, unless other guests' work is
    ahead."""

    host_seconds: float | None = None
    """Processor time that the host may spend in the guest's calls, kernels of the CPU device included, in all; then
    LimitError, once the current call has ended."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value >= 0:
                raise GuestError(f"limit {field.name} is {value}; it must be 0 or more")
