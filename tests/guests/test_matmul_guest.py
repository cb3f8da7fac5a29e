from __future__ import annotations

import json
from pathlib import Path

from wasmetal import Guest
from wasmetal.device import Device

MATMUL = Path(__file__).parents[2] / "guests" / "matmul.wasm"
MATRIX = 128 * 128 * 4


def test_in_place(device: Device) -> None:
    with Guest(MATMUL, device=device, args=["--repeats", "3"]) as guest:
        line = "".join(guest.stream())
    assert line.startswith("128x128 matrices shared: 16384 of 16384 elements right")
    assert line.endswith("0 bytes copied\n")
    assert guest.counters.bytes_copied == 0
    assert guest.counters.bytes_shared == 3 * MATRIX
    assert guest.counters.submits == 3


def test_with_copies(device: Device) -> None:
    with Guest(MATMUL, device=device, args=["--repeats", "3", "--copy", "--json"]) as guest:
        result = json.loads("".join(guest.stream()))
    assert (result["mode"], result["verified"], result["repeats"]) == ("copied", 16384, 3)
    assert result["bytes_copied"] == guest.counters.bytes_copied == 3 * 3 * MATRIX
    assert 0 < result["best_ms"] <= result["median_ms"]


def test_it_notices_a_wrong_product() -> None:
    """Its verification is not for show: a device that writes one wrong element is caught."""
    from collections.abc import Sequence
    from typing import Any

    import numpy as np

    from wasmetal.device.cpu.device import CpuDevice

    class Wrong(CpuDevice):
        def wrap(self, aperture: Any) -> Any:
            self.last = super().wrap(aperture)
            return self.last

        def submit(self, lists: Sequence[Any]) -> Any:
            submission = super().submit(lists)
            submission.wait()
            self.last.view().view(np.float32)[16383] += np.float32(1e-3)
            return submission

    written: list[bytes] = []
    with Guest(MATMUL, device=Wrong(), args=["--repeats", "1"], stdout=written.append) as guest:
        assert guest.run() == 1
    assert b"16383 of 16384 elements right" in written[0]


def test_wrong_arguments() -> None:
    with Guest(MATMUL, device="cpu", args=["--what"]) as guest:
        assert guest.run() == 2
