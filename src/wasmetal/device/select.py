"""Listing the devices that are present, and opening one by name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import import_module
from typing import cast, get_args

from wasmetal.device.backend import Candidate, FoundDevice, Precision, Unusable
from wasmetal.device.base import Device, DeviceInfo
from wasmetal.device.opened import OpenDevice
from wasmetal.errors import DeviceError, DeviceNotFoundError, setting_up
from wasmetal.forked import Origin, skip_exit_handlers

BACKENDS = {
    "cuda": "wasmetal.device.cuda.opening",
    "metal": "wasmetal.device.metal.opening",
    "vulkan": "wasmetal.device.vulkan.opening",
    "cpu": "wasmetal.device.cpu.device",
    "reference": "wasmetal.device.cpu.reference",
}
"""The module that finds the devices of a backend, by the name that a device spec begins with.

Each has a function ``find_devices() -> Sequence[FoundDevice]``. The import and the function raise
DeviceNotFoundError with the reason if there is no driver, so backends are imported only when needed.
"""

_BY_NAME_ONLY = ("reference",)
"""Backends that are neither listed nor chosen by ``auto``."""
_SPEC = re.compile(r"(?P<backend>[a-z]+)(:(?P<index>[0-9]{1,4}))?")


def list_devices() -> list[DeviceInfo]:
    """Every device that can be opened, best first. Backends without a driver or a device are left out.

    Raises DeviceError if the system refuses to look.
    """
    with setting_up("look for devices", DeviceError):
        return [found.info for found in _present()]


def open_device(spec: str | None = None, precision: Precision | None = None) -> Device:
    """Open a device.

    ``spec`` is ``auto``, a backend (``cpu``, ``vulkan``, ``cuda``) for its best device, or a backend with an index from
    :func:`list_devices` (``vulkan:1``); ``reference`` is the CPU device with NumPy's slow kernels. None means the
    environment variable ``WASMETAL_DEVICE``, or else ``auto``: a discrete GPU, else an integrated GPU, else the CPU.
    ``auto`` never opens a GPU driver that runs on the CPU.

    ``precision`` says what activations may be rounded to before they are multiplied; sums are float32. ``exact`` allows
    nothing, ``standard`` float16 in GEMMs and attention on a GPU's matrix units, and ``fast`` also blocks of 8 bits and
    a scale, with which the CPU device then decodes. None means the environment variable ``WASMETAL_PRECISION``, or else
    ``standard``.

    Raises DeviceNotFoundError if there is no such device, DeviceError if it cannot be used, and ForkedError for a GPU
    in a process that was forked after the parent had looked for GPUs.
    """
    spec = spec or os.environ.get("WASMETAL_DEVICE") or "auto"
    wanted = precision or os.environ.get("WASMETAL_PRECISION") or "standard"
    if wanted not in get_args(Precision):
        raise DeviceError(f"the precision is {wanted!r}; choose {', '.join(get_args(Precision))}")
    with setting_up(f"open the device {spec!r}", DeviceError):
        backend = _find(spec).open()
        backend.precision = cast(Precision, wanted)
        return OpenDevice(backend)


def _find(spec: str) -> Candidate:
    if spec == "auto":
        return _present()[0]
    parsed = _SPEC.fullmatch(spec)
    if parsed is None or parsed["backend"] not in BACKENDS:
        present = ", ".join(f"{info.spec} ({info.name})" for info in list_devices())
        raise DeviceNotFoundError(f"no device {spec!r}; choose auto or one of those present: {present}")
    if parsed["index"]:
        return _numbered(parsed["backend"], int(parsed["index"]))
    return _best_first(_usable(parsed["backend"]))[0]


def _present() -> list[Candidate]:
    found: list[Candidate] = []
    for backend in BACKENDS:
        if backend in _BY_NAME_ONLY:
            continue
        try:
            found += _usable(backend)
        except DeviceNotFoundError:
            continue
    return _best_first(found)


_loaded: dict[str, Origin] = {}
"""Backends whose drivers are loaded. In a forked process they lack their threads: Mesa's would hang at exit."""


def _found(backend: str) -> Sequence[FoundDevice]:
    if backend in _loaded:
        _loaded[backend].check()
    devices: Sequence[FoundDevice] = import_module(BACKENDS[backend]).find_devices()
    if backend not in ("cpu", *_BY_NAME_ONLY, *_loaded):
        _loaded[backend] = Origin(f"the {backend} driver")
        skip_exit_handlers()
    return devices


def _usable(backend: str) -> list[Candidate]:
    """The devices of a backend that can be opened. Raises DeviceNotFoundError with the reason if there is none."""
    found = _found(backend)
    usable = [device for device in found if isinstance(device, Candidate)]
    if not usable:
        problems = "; ".join(f"{device.name}: {device.problem}" for device in found if isinstance(device, Unusable))
        raise DeviceNotFoundError(f"no usable {backend} device: {problems or 'the installed drivers have none'}")
    return usable


def _numbered(backend: str, index: int) -> Candidate:
    found = _found(backend)
    if index >= len(found):
        raise DeviceNotFoundError(f"no device {backend}:{index}: there are {len(found)}, counted from 0")
    device = found[index]
    if isinstance(device, Unusable):
        raise DeviceError(f"{backend}:{index} ({device.name}) cannot be used: {device.problem}")
    return device


def _best_first(devices: list[Candidate]) -> list[Candidate]:
    return sorted(devices, key=lambda device: device.tier, reverse=True)
