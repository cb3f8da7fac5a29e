"""Joules, where the platform tells."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.serve.serving import serving
from wasmetal.models import Model
from wasmetal.serve import energy, metrics
from wasmetal.serve.engine import Engine


def zone(powercap: Path, folder: str, name: str, microjoules: int) -> Path:
    """One of RAPL's, as Linux shows it; returns what is to be rewritten."""
    path = powercap / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text("1000000\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


class Nvml(SimpleNamespace):
    """A stand-in for NVIDIA's package, with GPUs that have consumed so much; None: they do not tell."""

    class NVMLError(Exception):
        pass

    def __init__(self, *millijoules: int | None, fails: bool = False) -> None:
        super().__init__(millijoules=list(millijoules), fails=fails)

    def nvmlInit(self) -> None:
        if self.fails:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if (found := self.millijoules[handle]) is None:
            raise self.NVMLError("Not Supported")
        return int(found)


def told(known: list[energy.Meter]) -> dict[str, float]:
    return {meter.name: round(meter.joules(), 6) for meter in known}


def test_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    first = zone(tmp_path, "intel-rapl:0", "package-0", 999_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    zone(tmp_path, "intel-rapl:3", "package-3", 7).write_text("nonsense")
    zone(tmp_path, "intel-rapl:4", "package-4", 7).unlink()
    known = energy.meters(tmp_path)
    assert told(known) == {"package-0": 0, "package-1": 0}
    first.write_text("1000")  # it has begun again
    second.write_text("500000")
    assert told(known) == {"package-0": 0.002, "package-1": 0.5}
    first.write_text("3000")
    assert told(known) == {"package-0": 0.004, "package-1": 0.5}


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(5_000, None, 0)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    known = energy.meters(tmp_path)
    nvml.millijoules = [7_500, 1, 250]
    assert told(known) == {"gpu-0": 2.5, "gpu-2": 0.25}
    nvml.millijoules[0] = None
    with pytest.raises(OSError, match="Not Supported"):
        known[0].joules()
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(1, fails=True))
    assert energy.meters(tmp_path) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.meters(tmp_path / "nothing") == []


@pytest.mark.parametrize("tells", [True, False])
def test_the_figure(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    nvml: Any = Nvml(*([1_000] if tells else []))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(metrics, "meters", lambda: energy.meters(tmp_path))
    with serving(Engine([tiny])) as server:
        nvml.millijoules = [43_000]
        text = server.ask("/metrics")[1]
        assert ('wasmetal_energy_joules_total{source="gpu-0"} 42.0' in text) == tells
        assert ("wasmetal_energy" in text) == tells
