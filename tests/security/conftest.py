"""Devices of the tests of hostile input: the oracle, and a real driver."""

from __future__ import annotations

import pytest

from wasmetal.device import Device


@pytest.fixture(scope="session", params=["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def device(request: pytest.FixtureRequest) -> Device:
    """The CPU device, and the best Vulkan device if there is one."""
    device: Device = request.getfixturevalue(request.param)
    return device
