"""What a decoded token costs the host: the lists recorded for the first one are replayed for all that follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device
from wasmetal.models import load_model
from wasmetal.ops import Recorder


def test_a_decoded_token_records_nothing(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf"), device) as model, model.session() as session:
        logits = model.logits()
        session.forward([1, 2, 3], logits)
        session.forward([4], logits)

        def refuse(*_args: object, **_fields: object) -> None:
            raise AssertionError("a kernel was recorded for a decoded token")

        monkeypatch.setattr(Recorder, "dispatch", refuse)
        before = device.counters.as_dict()
        for token in range(5, 45):  # over the end of a page of the cache
            session.forward([token], logits)
        after = device.counters.as_dict()
        assert after["submits"] - before["submits"] == 40
        assert after["bytes_copied"] == before["bytes_copied"]
        with pytest.raises(AssertionError, match="was recorded"):
            session.forward([1], model.logits())
