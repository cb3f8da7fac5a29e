"""When the timers of actors are due, those that are frozen included."""

from __future__ import annotations

import heapq


class Timers:
    """Times by actor, in seconds since 1970. It takes no lock: its owner does."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """May have entries that are no longer true."""
        self._touched: set[str] | None = set()
        """Actors whose timer was set here while those of the store are still being read; then None."""

    def __len__(self) -> int:
        return len(self._due)

    def set(self, actor_id: str, due: float | None) -> None:
        """Set or clear an actor's timer."""
        if self._touched is not None:
            self._touched.add(actor_id)
        self._set(actor_id, due)

    def learn(self, actor_id: str, due: float | None) -> None:
        """What a snapshot says that may be older than what was set here."""
        if self._touched is None or actor_id not in self._touched:
            self._set(actor_id, due)

    def learned(self) -> None:
        """All snapshots of the store were looked at."""
        self._touched = None

    @property
    def next(self) -> float | None:
        """When the first is due."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> list[str]:
        """The actors whose timers are due, which are cleared."""
        found = []
        while (due := self.next) is not None and due <= now:
            actor_id = heapq.heappop(self._heap)[1]
            del self._due[actor_id]
            found.append(actor_id)
        return found

    def _set(self, actor_id: str, due: float | None) -> None:
        if due is None:
            self._due.pop(actor_id, None)
        elif self._due.get(actor_id) != due:
            self._due[actor_id] = due
            heapq.heappush(self._heap, (due, actor_id))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(due, each) for each, due in self._due.items()]
            heapq.heapify(self._heap)
