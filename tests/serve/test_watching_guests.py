"""Guests that are models, and conversations, for those who watch: figures, records, and the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import wasmetal
from tests.serve.serving import Serving, serving, wait_for
from wasmetal import ActorProgram, packaged
from wasmetal.models import Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.record import Record

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"messages": HELLO, "max_tokens": 5, "temperature": 0}


@pytest.fixture
def records() -> list[Record]:
    return []


@pytest.fixture
def server(tiny: Model, tmp_path: Path, records: list[Record]) -> Iterator[Serving]:
    program = ActorProgram(packaged.guest("converse"), trusted=True)
    guest = GuestModel("speaker", program, {"default": tiny})
    engine = Engine([tiny], ServerLimits(running=2, resident=2), guests=[guest], actors=tmp_path / "actors")
    with serving(engine, observers=[records.append]) as server:
        yield server


def test_a_guest_that_is_a_model(server: Serving, records: list[Record]) -> None:
    assert server.ask("/v1/chat/completions", CHAT | {"model": "speaker"})[0] == 200
    wait_for(lambda: not server.engine.tasks and bool(records))
    stats = server.ask("/stats")[1]
    assert stats["guest_models"] == ["speaker"]
    (row,) = stats["ended"]
    assert (row["model"], row["state"]) == ("speaker", "ended")
    assert row["tokens"] == 5
    assert row["prompt_tokens"] > 0
    assert row["memory"]["cells"]
    assert 0 < row["tokens_per_second"] <= row["tokens"] / row["seconds"] + 1
    assert stats["totals"]["completion_tokens"] == 5
    said = records[0].as_dict()
    assert (said["model"], said["completion_tokens"]) == ("speaker", 5)
    assert said["prompt_tokens"] == row["prompt_tokens"]
    assert said["device_seconds"] > 0


def test_a_conversation(server: Serving, records: list[Record]) -> None:
    for _ in range(2):
        done = server.ask("/v1/chat/completions", CHAT | {"model": "tiny"}, headers={"X-Wasmetal-Actor": "ann"})
        assert done[0] == 200
    body = {"model": "tiny", "input": "hello", "max_output_tokens": 5}
    assert server.ask("/v1/responses", body)[0] == 200
    wait_for(lambda: not server.engine.tasks and len(records) == 3)
    stats = server.ask("/stats")[1]
    assert stats["conversations"]["awake"] == 2
    assert stats["conversations"]["busy"] == 0
    assert stats["conversations"]["memory_bytes"] > 0
    assert [row["model"] for row in stats["ended"]] == ["tiny"] * 3
    assert [record.route for record in records] == ["/v1/chat/completions"] * 2 + ["/v1/responses"]
    assert all(record.completion_tokens == 5 and record.finish for record in records)


def test_guests_want_models_that_are_there(tiny_path: Path, tmp_path: Path) -> None:
    done = wasmetal("serve", tiny_path, "--device", "cpu", "--idle-seconds", 5, "--actors", tmp_path / "a", "--port", 0)
    assert done.returncode == 2
    assert "loaded at the start" in done.stderr
    done = wasmetal("serve", tiny_path, "--ray", "--actors", tmp_path / "a")
    assert done.returncode == 2
    assert "--ray" in done.stderr
