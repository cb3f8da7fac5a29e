"""Opening a device by name."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from wasmetal.device import list_devices, open_device, select
from wasmetal.device.backend import AnyBackend, Candidate, FoundDevice, Tier, Unusable
from wasmetal.device.cpu.device import CpuBackend
from wasmetal.errors import DeviceError, DeviceNotFoundError


class Machine:
    """A machine with the GPUs that the test chooses and the real CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **backends: list[Tier | str]) -> None:
        """For each backend its devices: how good each is, or why it cannot be used."""
        monkeypatch.delenv("WASMETAL_DEVICE", raising=False)
        table = {"cpu": select.BACKENDS["cpu"]}
        for name, devices in backends.items():
            found = [self.found(name, i, device) for i, device in enumerate(devices)]
            module = f"a_machine_of_the_tests_{name}"
            monkeypatch.setitem(sys.modules, module, SimpleNamespace(find_devices=lambda found=found: found))
            table = {name: module, **table}
        monkeypatch.setattr(select, "BACKENDS", table)

    @staticmethod
    def found(backend: str, index: int, device: Tier | str) -> FoundDevice:
        if isinstance(device, str):
            return Unusable(f"{backend} GPU", device)
        made = CpuBackend()
        made.info = replace(made.info, backend=backend, index=index, name=f"{device.name} GPU")
        return Candidate(made.info, device, lambda: made)


def opened(spec: str | None = None) -> str:
    return open_device(spec).info.spec


@pytest.mark.parametrize(
    ("gpus", "best"),
    [
        ([], "cpu:0"),
        ([Tier.SOFTWARE], "cpu:0"),
        ([Tier.INTEGRATED], "vulkan:0"),
        ([Tier.SOFTWARE, Tier.INTEGRATED, Tier.DISCRETE], "vulkan:2"),
        ([Tier.DISCRETE, Tier.DISCRETE], "vulkan:0"),
    ],
)
def test_auto_takes_the_best(monkeypatch: pytest.MonkeyPatch, gpus: list[Tier], best: str) -> None:
    Machine(monkeypatch, vulkan=gpus)
    assert opened() == opened("auto") == best
    assert list_devices()[0].spec == best
    assert len(list_devices()) == len(gpus) + 1


def test_a_backend_alone_means_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, vulkan=[Tier.SOFTWARE, Tier.INTEGRATED, Tier.DISCRETE], metal=[Tier.SOFTWARE])
    assert opened("vulkan") == "vulkan:2"
    assert opened("vulkan:1") == "vulkan:1"
    assert opened("metal") == "metal:0"
    assert opened("cpu") == opened("cpu:0") == "cpu:0"


def test_the_environment_chooses_where_the_caller_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, vulkan=[Tier.DISCRETE, Tier.DISCRETE])
    monkeypatch.setenv("WASMETAL_DEVICE", "vulkan:1")
    assert opened() == "vulkan:1"
    assert opened("cpu") == "cpu:0"
    assert opened("auto") == "vulkan:0"
    monkeypatch.setenv("WASMETAL_DEVICE", "")
    assert opened() == "vulkan:0"


@pytest.mark.parametrize(
    "spec", ["gpu", "vulkan:", "vulkan:-1", "vulkan:1.5", "vulkan:0:0", ":0", "CPU", "vulkan:99999"]
)
def test_a_name_that_means_nothing(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    Machine(monkeypatch, vulkan=[Tier.DISCRETE])
    with pytest.raises(DeviceNotFoundError) as caught:
        open_device(spec)
    assert f"no device {spec!r}; choose auto or one of those present: vulkan:0 (DISCRETE GPU), cpu:0" in str(
        caught.value
    )


def test_a_backend_without_devices_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, vulkan=[], metal=["too old", "on loan"])
    with pytest.raises(DeviceNotFoundError, match="no usable vulkan device: the installed drivers have none"):
        open_device("vulkan")
    with pytest.raises(DeviceNotFoundError, match="no usable metal device: metal GPU: too old; metal GPU: on loan"):
        open_device("metal")
    with pytest.raises(DeviceError, match=r"metal:1 \(metal GPU\) cannot be used: on loan"):
        open_device("metal:1")
    with pytest.raises(DeviceNotFoundError, match="no device metal:2: there are 2"):
        open_device("metal:2")
    assert opened("auto") == "cpu:0"


def test_what_cannot_be_used_keeps_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, vulkan=["too old", Tier.DISCRETE])
    assert opened("vulkan") == opened("vulkan:1") == opened("auto") == "vulkan:1"


def test_there_is_one_cpu() -> None:
    with pytest.raises(DeviceNotFoundError, match="no device cpu:1"):
        open_device("cpu:1")


def test_what_is_there_but_broken_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, vulkan=[Tier.DISCRETE])

    def broken() -> AnyBackend:
        raise DeviceError("it is on fire")

    found = replace(sys.modules[select.BACKENDS["vulkan"]].find_devices()[0], open=broken)
    monkeypatch.setattr(sys.modules[select.BACKENDS["vulkan"]], "find_devices", lambda: [found])
    with pytest.raises(DeviceError, match="it is on fire"):
        open_device("auto")


@pytest.mark.vulkan
def test_a_driver_on_the_cpu_is_only_taken_when_asked_for(vulkan, monkeypatch: pytest.MonkeyPatch) -> None:
    from wasmetal.device.vulkan.physical import physical_devices

    monkeypatch.delenv("WASMETAL_DEVICE", raising=False)
    if any(found.tier > Tier.SOFTWARE for found in physical_devices()):
        pytest.skip("this machine has a GPU")
    assert opened("auto") == "cpu:0"
    assert opened("vulkan").startswith("vulkan:")
