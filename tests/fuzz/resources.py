"""What processes have, from /proc; nothing where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def family(first: int) -> set[int]:
    """A process, those that it has started, and those that these have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found, new = set(), {first}
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new}
    return found


def resident(processes: Iterable[int]) -> int:
    """Bytes of memory that they have; what they share is counted for each."""
    total = 0
    for pid in processes:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        except OSError:
            continue
    return total


@dataclass(frozen=True)
class Held:
    """What this process holds."""

    resident: int
    maps: int
    descriptors: int
    threads: int
    """Those of libraries too."""
    processes: int
    """Those that it has started."""

    @classmethod
    def now(cls) -> Held:
        """As it is."""
        with open("/proc/self/maps", "rb") as maps:
            lines = sum(1 for _ in maps)
        descriptors, threads = (len(os.listdir(f"/proc/self/{folder}")) for folder in ("fd", "task"))
        own = os.getpid()
        return cls(resident([own]), lines, descriptors, threads, len(family(own)) - 1)

    def __str__(self) -> str:
        return (
            f"{self.resident >> 20} MiB resident, {self.maps} maps, {self.descriptors} descriptors, "
            f"{self.threads} threads, {self.processes} processes"
        )
