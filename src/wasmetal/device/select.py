"""Which devices are present, and opening one by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from wasmetal.device.backend import Candidate, Tier
from wasmetal.device.base import Device, DeviceInfo
from wasmetal.errors import DeviceNotFoundError

_SPEC = re.compile(r"(?P<backend>[a-z]+)(:(?P<index>[0-9]{1,4}))?")


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to reach devices. Both functions raise DeviceNotFoundError, with the reason, where there is none."""

    candidates: Callable[[], list[Candidate]]
    open: Callable[[int], Device]


# Backends are imported when they are asked for: wasmetal can be imported where there is no driver.
# ruff: noqa: PLC0415


def _metal_candidates() -> list[Candidate]:
    from wasmetal.device import metal

    return metal.candidates()


def _open_metal(index: int) -> Device:
    from wasmetal.device import metal

    return metal.open_device(index)


def _vulkan_candidates() -> list[Candidate]:
    from wasmetal.device import vulkan

    return vulkan.candidates()


def _open_vulkan(index: int) -> Device:
    from wasmetal.device import vulkan

    return vulkan.open_device(index)


def _cpu_candidates() -> list[Candidate]:
    return [Candidate(_open_cpu(0).info, Tier.CPU)]


def _open_cpu(index: int) -> Device:
    from wasmetal.device.cpu import CpuDevice

    if index:
        raise DeviceNotFoundError(f"no device cpu:{index}: there is one CPU device, cpu:0")
    return CpuDevice()


BACKENDS = {
    "metal": Backend(_metal_candidates, _open_metal),
    "vulkan": Backend(_vulkan_candidates, _open_vulkan),
    "cpu": Backend(_cpu_candidates, _open_cpu),
}
"""Every backend, by the name that a device spec begins with."""


def list_devices() -> list[DeviceInfo]:
    """Every device that can be opened, the best choice first. A backend without driver or device is left out."""
    return [candidate.info for candidate in _present()]


def open_device(spec: str | None = None) -> Device:
    """Open a device.

    ``spec`` is ``auto``, a backend (``cpu``, ``vulkan``), whose best device is taken, or one with the index that
    :func:`list_devices` tells (``vulkan:1``). None means the environment's ``WASMETAL_DEVICE``, or ``auto``: a discrete
    GPU, else an integrated one, else the CPU; a GPU driver that runs on the CPU is never taken unasked.

    Raises DeviceNotFoundError where there is no such device, and DeviceError where it cannot be used.
    """
    spec = spec or os.environ.get("WASMETAL_DEVICE") or "auto"
    if spec == "auto":
        best = _present()[0].info
        return BACKENDS[best.backend].open(best.index)
    parsed = _SPEC.fullmatch(spec)
    backend = BACKENDS.get(parsed["backend"]) if parsed else None
    if parsed is None or backend is None:
        present = ", ".join(f"{info.spec} ({info.name})" for info in list_devices())
        raise DeviceNotFoundError(f"no device {spec!r}; choose auto or one of those present: {present}")
    if parsed["index"]:
        return backend.open(int(parsed["index"]))
    return backend.open(_best_first(backend.candidates())[0].info.index)


def _present() -> list[Candidate]:
    found: list[Candidate] = []
    for backend in BACKENDS.values():
        try:
            found += backend.candidates()
        except DeviceNotFoundError:
            continue
    return _best_first(found)


def _best_first(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: candidate.tier, reverse=True)
