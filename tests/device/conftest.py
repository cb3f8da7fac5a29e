"""The devices under test, opened afresh for each test."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import HAS_CUDA
from tests.metal.devices import METAL, open_metal
from wasmetal.device import Device, open_device
from wasmetal.device.opened import OpenDevice
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

Opener = Callable[[], Device]


def open_as_discrete() -> Device:
    """The Vulkan device, treated as a discrete GPU: its device memory is not mapped, so copies are staged."""
    from wasmetal.device.vulkan.device import VulkanBackend
    from wasmetal.device.vulkan.physical import physical_devices

    physical = physical_devices()[0]
    physical.unified = False
    return OpenDevice(VulkanBackend(physical))


OPENERS: dict[str, Opener] = {
    "cpu": lambda: open_device("cpu"),
    "vulkan": lambda: open_device("vulkan"),
    "vulkan as discrete": open_as_discrete,
    "metal": open_metal,
    "cuda": lambda: open_device("cuda"),
}


ALIGNMENTS = {
    "cpu": (16, 64, 256),
    "vulkan": (64, 256),
    "vulkan as discrete": (16,),
    "metal": (64,),
    "cuda": (16, 64, 256),
}
"""Offset alignments at which each device is tested; the device's alignment if that is coarser."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (name, alignment),
            id=f"{METAL if name == 'metal' else name} {alignment}",
            marks=[pytest.mark.vulkan] if name.startswith("vulkan") else [],
        )
        for name, alignments in ALIGNMENTS.items()
        if name != "cuda" or HAS_CUDA
        for alignment in alignments
    ],
)
def opener(request: pytest.FixtureRequest) -> Opener:
    """A function that opens a device with each alignment, for tests that close the device."""
    name, alignment = request.param
    if name != "cpu":
        request.getfixturevalue(name.split()[0])  # skips, or fails, if there is none

    def open_it() -> Device:
        device = OPENERS[name]()
        backend = device.backend
        backend.info = replace(backend.info, offset_alignment=max(backend.info.offset_alignment, alignment))
        return device

    return open_it


@pytest.fixture
def device(opener: Opener) -> Iterator[Device]:
    """A new device for each test."""
    with opener() as opened:
        yield opened


@pytest.fixture(scope="module")
def lasting(opener: Opener) -> Iterator[Device]:
    """A device that several tests share; each must leave it as it was."""
    with opener() as opened:
        yield opened


@pytest.fixture
def own_vulkan(vulkan: Device) -> Iterator[Device]:
    """A new Vulkan device for each test."""
    with open_device("vulkan") as opened:
        yield opened


@pytest.fixture
def own_discrete(vulkan: Device) -> Iterator[Device]:
    """A new Vulkan device for each test, treated as a discrete GPU."""
    with open_as_discrete() as opened:
        yield opened


@pytest.fixture
def region() -> Iterator[Region]:
    """64 KiB of pages that can grow to 1 MiB."""
    made = Region(1 << 20, 1 << 16)
    yield made
    made.close()


@pytest.fixture
def read_only() -> Iterator[int]:
    """The address of a read-only page."""
    pages = mmap.mmap(-1, 2 * page_size(), prot=mmap.PROT_READ)
    view = np.frombuffer(pages, np.uint8)
    yield -(-view.ctypes.data // page_size()) * page_size()
    del view
    pages.close()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[[Device, str, int], None]:
    """Make a Vulkan function return a given result."""
    from wasmetal.device.vulkan import api

    real = api.lib

    class Library:
        def __init__(self, function: str, result: int) -> None:
            setattr(self, function, lambda *args: result)

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    def inject(device: Device, function: str, result: int) -> None:
        if function == "vkGetMemoryHostPointerPropertiesEXT":  # an extension function, which each device looks up
            monkeypatch.setattr(device.backend.logical, "_host_pointer_properties", lambda *args: result)
        else:
            monkeypatch.setattr(api, "lib", Library(function, result))

    return inject
