"""What tests run on: devices, the model; the watch over Vulkan's validation layer; what a run says at its end.

Vulkan tests are skipped if there is no Vulkan driver, and fail instead if ``WASMETAL_REQUIRE_VULKAN=1``. If the
validation layer is installed it is switched on, and any message from it fails the test, or the run, that caused it.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.metal.devices import EMULATED, LAYERS, METAL, open_metal
from wasmetal.device import Device, open_device
from wasmetal.errors import DeviceNotFoundError, ModelError
from wasmetal.models.files import store

REQUIRED = os.environ.get("WASMETAL_REQUIRE_VULKAN") == "1"
HAS_CUDA = os.environ.get("WASMETAL_REQUIRE_CUDA") == "1" or Path("/dev/nvidiactl").exists()
"""Whether tests of all devices have a case for CUDA: with a GPU of NVIDIA's only, for there is nothing in its place."""

try:
    from tests import vulkan_validation as validation
except DeviceNotFoundError:
    validation = None

# No deadlines: a busy machine is no failure. "all" is for make test-all (--hypothesis-profile=all).
settings.register_profile(
    "all",
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("quick", settings.get_profile("all"), max_examples=15)
settings.load_profile("quick")

MESSAGES = pytest.StashKey[list[str]]()
"""What the validation layer said in the workers of this run."""


OF_ALL_DEVICES = "actor", "cli", "guests", "host", "models", "ops", "security"
"""Folders of tests whose cases on the emulated Metal device are slow: ``metal/`` tries each kernel and rule there."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if EMULATED and folder in OF_ALL_DEVICES and METAL in item.name:
            item.add_marker(pytest.mark.slow)
        if (marker := item.get_closest_marker("slow_on")) and f"[{marker.args[0]}" in item.name:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    # Thousands of collected tests are no garbage: without them gc.collect(), which many tests call, takes 1 ms of 200.
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MESSAGES] = []
    if workers := config.getoption("numprocesses", None):  # of pytest-xdist; more threads than cores would spin
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    if validation is not None and validation.present():
        validation.watch()
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


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """In the controller of pytest-xdist: a worker has ended."""
    node.config.stash[MESSAGES] += getattr(node, "workeroutput", {}).get("validation", ())


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Also what was said between tests: when the session's devices were closed, or garbage was collected.
    messages = session.config.stash[MESSAGES]
    messages += validation.messages if validation else ()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["validation"] = messages
    elif messages:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("Vulkan validation layer")
    messages = config.stash[MESSAGES]
    watched = validation is not None and validation.present()
    terminalreporter.write_line(f"{len(messages)} messages" if watched else "not installed")
    for message in messages:
        terminalreporter.write_line(message)

    terminalreporter.section("Metal")
    passed, failed = (terminalreporter.getreports(outcome) for outcome in ("passed", "failed"))
    for layer, has in LAYERS.items():
        good, bad = (sum(r.when == "call" and has(r.nodeid) for r in reports) for reports in (passed, failed))
        terminalreporter.write_line(
            f"layer {layer}: {f'{good} passed, {bad} failed' if good + bad else 'not run here'}"
        )


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, here and in processes started from here, even if the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's file. Tests that ask for it are marked ``model``."""
    try:
        return store.resolve("smollm2:135m")
    except ModelError as error:
        if os.environ.get("WASMETAL_REQUIRE_MODEL") == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cpu() -> Iterator[Device]:
    """The CPU device."""
    with open_device("cpu") as device:
        yield device


@pytest.fixture(scope="session")
def reference() -> Iterator[Device]:
    """The reference device: NumPy kernels, which tests can replace."""
    with open_device("reference") as device:
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


@pytest.fixture(scope="session")
def cuda() -> Iterator[Device]:
    """The first GPU of NVIDIA's."""
    try:
        device = open_device("cuda")
    except DeviceNotFoundError as error:
        if os.environ.get("WASMETAL_REQUIRE_CUDA") == "1":
            pytest.fail(f"WASMETAL_REQUIRE_CUDA=1, but {error}")
        pytest.skip(str(error))
    with device:
        yield device


@pytest.fixture(
    scope="session",
    params=[
        "cpu",
        pytest.param("vulkan", marks=pytest.mark.vulkan),
        pytest.param("metal", id=METAL),
        *(["cuda"] if HAS_CUDA else []),
    ],
)
def device(request: pytest.FixtureRequest) -> Device:
    """Every device present, one after another."""
    return request.getfixturevalue(request.param)
