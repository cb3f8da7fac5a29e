"""What the host's processor is called, and what it can do."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from functools import cache


@cache
def name() -> str:
    """The processor's marketing name if the system reports it, else its architecture."""
    if reported := _reported():
        return reported.get("model name", platform.machine())
    asked = ["sysctl", "-n", "machdep.cpu.brand_string"]  # macOS, on which platform.processor() is only "arm"
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return platform.machine()


def flags() -> set[str]:
    """The extensions of its instruction set by Linux's names; none on other systems."""
    reported = _reported()
    return set(reported.get("flags", reported.get("Features", "")).split())


@cache
def _reported() -> dict[str, str]:
    """What Linux says of the first core, by name; nothing on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first, _, _ = file.read().partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
