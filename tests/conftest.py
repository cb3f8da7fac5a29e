"""The devices that tests run on, and the watch over Vulkan's validation layer.

Vulkan tests are skipped where there is no Vulkan driver, and fail instead where ``WASMETAL_REQUIRE_VULKAN=1``. If the
validation layer is installed it is switched on, and any word from it fails the test, or the session, that caused it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from metal.devices import METAL, open_metal
from wasmetal.device import Device, open_device
from wasmetal.errors import DeviceNotFoundError

REQUIRED = os.environ.get("WASMETAL_REQUIRE_VULKAN") == "1"

try:
    from wasmetal.device.vulkan import validation
except DeviceNotFoundError:
    validation = None


def pytest_configure() -> None:
    if validation is not None and validation.present():
        os.environ["WASMETAL_VULKAN_VALIDATION"] = "1"
    elif REQUIRED:
        raise pytest.UsageError(
            "WASMETAL_REQUIRE_VULKAN=1, but the Vulkan loader or its validation layer is not installed "
            "(Debian: libvulkan1, vulkan-validationlayers)"
        )


@pytest.fixture(autouse=True)
def _silent_validation() -> Iterator[None]:
    seen = len(validation.messages) if validation else 0
    yield
    if validation and validation.messages[seen:]:
        pytest.fail("the Vulkan validation layer: " + "\n".join(validation.messages[seen:]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Also what was said between tests: when the session's devices were closed, or garbage was collected.
    if validation and validation.messages:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("Vulkan validation layer")
    watched = validation is not None and validation.requested()
    terminalreporter.write_line(f"{len(validation.messages)} messages" if watched else "not installed")
    for message in validation.messages if watched else ():
        terminalreporter.write_line(message)


@pytest.fixture(scope="session")
def cpu() -> Iterator[Device]:
    """The CPU device: the oracle."""
    with open_device("cpu") as device:
        yield device


@pytest.fixture(scope="session")
def vulkan() -> Iterator[Device]:
    """The best Vulkan device."""
    try:
        device = open_device("vulkan")
    except DeviceNotFoundError as error:
        if REQUIRED:
            pytest.fail(f"WASMETAL_REQUIRE_VULKAN=1, but {error}")
        pytest.skip(str(error))
    with device:
        yield device


@pytest.fixture(scope="session")
def metal() -> Iterator[Device]:
    """Metal's first device."""
    try:
        device = open_metal()
    except DeviceNotFoundError as error:
        if os.environ.get("WASMETAL_REQUIRE_METAL") == "1":
            pytest.fail(f"WASMETAL_REQUIRE_METAL=1, but {error}")
        pytest.skip(str(error))
    with device:
        yield device


@pytest.fixture(
    scope="session",
    params=["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan), pytest.param("metal", id=METAL)],
)
def device(request: pytest.FixtureRequest) -> Device:
    """Every device present, one after another."""
    return request.getfixturevalue(request.param)
