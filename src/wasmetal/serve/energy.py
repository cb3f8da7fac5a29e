"""What processors and GPUs consume, where the platform tells: Linux's powercap (RAPL) and NVIDIA's NVML.

They tell of a whole processor or GPU, whoever uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


class Meter:
    """What one of them has consumed since this was made."""

    def __init__(self, name: str, read: Callable[[], int], joules: float, wraps: int = 0) -> None:
        """``read`` gives a number that grows by one for so many ``joules``, and is 0 again after ``wraps``, if that is
        not 0. It may raise OSError, then and later."""
        self.name = name
        self._read, self._joules, self._wraps = read, joules, wraps
        self._last, self._sum = read(), 0

    def joules(self) -> float:
        """So far. It must be asked more often than the number begins again. Raises OSError."""
        value = self._read()
        passed = value - self._last
        self._sum += passed + (self._wraps if passed < 0 else 0)
        self._last = value
        return max(self._sum, 0) * self._joules


def meters(powercap: Path = _POWERCAP) -> list[Meter]:
    """All that can be read. Reading processors' mostly takes root."""
    return [*_processors(powercap), *_gpus()]


def _processors(powercap: Path) -> Iterator[Meter]:
    for folder in sorted(powercap.glob("intel-rapl:*")):  # AMD's, too
        with suppress(OSError, ValueError):
            name = (folder / "name").read_text().strip()
            if name.startswith("package"):  # others are parts of one, or all of them
                wraps = int((folder / "max_energy_range_uj").read_text())
                yield Meter(name, partial(_number, folder / "energy_uj"), 1e-6, wraps)


def _number(path: Path) -> int:
    return int(path.read_text())


def _gpus() -> Iterator[Meter]:
    try:
        import pynvml  # noqa: PLC0415 (of the extra "cuda")
    except ModuleNotFoundError:
        return
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # there is no driver, or it refuses
        return

    def read(handle: object) -> int:
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from error

    for index, handle in enumerate(handles):
        with suppress(OSError):  # GPUs before Volta do not tell
            yield Meter(f"gpu-{index}", partial(read, handle), 1e-3)
