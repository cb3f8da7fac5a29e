"""What an actor host does, and has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostStats:
    """What a host does, and has done since it was made."""

    resident: int
    """Actors that are awake."""
    busy: int
    """Messages that are being handled."""
    queued: int
    """Messages that wait."""
    timers: int
    """Actors with a timer, frozen or not, as far as is known."""
    reading_timers: bool
    """Whether the store is still being looked through for timers."""
    messages: int
    """That were handled."""
    repeated: int
    """That were not handled, since a message with their key had been."""
    failed: int
    """That have failed."""
    created: int
    thawed: int
    frozen: int
    """Residents that were sent back to the store."""
    lost: int
    """Residents that could not be frozen, and went back to their last snapshot."""
    memory_bytes: int
    """Linear memory of the residents."""
    device_bytes: int
    """Device memory of the residents."""
    activation_p50: float
    """Seconds that an activation took, of the last 10,000: with the freezing of another actor, if that was needed."""
    activation_p99: float
