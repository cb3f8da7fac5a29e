"""What the measurement of freezing and thawing gives: every step was done, and of the same conversation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.models.tiny import write_tiny_llama
from wasmetal.bench import freezing
from wasmetal.device import Device


def test_every_step_is_measured(cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "SETTLED", 0.0)
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=512)
    short, long = freezing.measure(cpu, str(path), (30, 200), repeats=1, folder=tmp_path)
    assert short.tokens + 170 == long.tokens
    assert 0 < short.changed_bytes <= long.changed_bytes < long.nbytes
    for costs in (short, long):
        assert min(asdict(costs).values()) > 0
        assert costs.first >= costs.thaw
    assert not list(tmp_path.glob("tmp*"))
