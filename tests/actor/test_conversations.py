"""Conversations that are frozen after every message, and thawed here or in a new process, go on as if never frozen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.actor import moves
from tests.actor.guests import probe, probe_program
from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, ActorProgram, Limits, Snapshot, load_model
from wasmetal.actor.chunks import MemoryChunks
from wasmetal.actor.manifest import Manifest, Session
from wasmetal.device import Device
from wasmetal.errors import DeviceError, GuestError, LimitError
from wasmetal.host.errno import Errno
from wasmetal.models import Model

CHAT = Path(__file__).parents[2] / "guests" / "chat.wasm"
SAMPLED = ("--max-tokens", "6", "--temperature", "1.5", "--top-k", "60")
QUESTIONS = ("hello", "the world", "and then?", "or all")


@pytest.fixture(scope="module")
def chat() -> ActorProgram:
    return ActorProgram(CHAT)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=512)


@pytest.fixture(params=["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def model(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Model]:
    with load_model(tiny, request.getfixturevalue(request.param), contexts=8) as loaded:
        yield loaded


def through_json(snapshot: Snapshot) -> Snapshot:
    return Snapshot(Manifest.from_json(json.loads(json.dumps(snapshot.manifest.to_json()))), snapshot.chunks)


def save(snapshot: Snapshot, folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest").write_text(json.dumps(snapshot.manifest.to_json()))
    for chunk in snapshot.manifest.chunks():
        (folder / chunk.digest).write_bytes(snapshot.chunks.get(chunk.digest, chunk.size))


IN_A_NEW_PROCESS = """
import json, pathlib, sys, wasmetal
from wasmetal.actor.chunks import MemoryChunks
from wasmetal.actor.manifest import Manifest
folder, program, model, device, *questions = sys.argv[1:]
chunks = MemoryChunks()
for path in pathlib.Path(folder).iterdir():
    if path.name != "manifest":
        assert chunks.put(path.read_bytes()) == path.name
manifest = Manifest.from_json(json.loads(pathlib.Path(folder, "manifest").read_text()))
snapshot = wasmetal.Snapshot(manifest, chunks)
with wasmetal.Actor.thaw(snapshot, program, device=device, models={"default": model}) as actor:
    json.dump([actor.send(question).read().hex() for question in questions], sys.stdout)
"""


def answers_in_a_new_process(folder: Path, model: str | Path, device: str, questions: tuple[str, ...]) -> list[bytes]:
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, folder, CHAT, model, device, *questions]
    out = subprocess.run(command, check=True, capture_output=True, timeout=120, env=os.environ).stdout
    return [bytes.fromhex(answer) for answer in json.loads(out)]


def test_a_conversation_frozen_after_every_message(
    chat: ActorProgram, tiny: Path, model: Model, tmp_path: Path
) -> None:
    models = {"default": model}
    with Actor(chat, models=models, args=SAMPLED) as actor:
        first = through_json(actor.freeze())
        expected = [actor.send(question).read() for question in QUESTIONS]
        blocks = actor.freeze().manifest.handles
    assert len(set(expected)) == len(QUESTIONS)
    snapshot = first
    for number, question in enumerate(QUESTIONS):
        with Actor.thaw(snapshot, chat, models=models) as actor:
            assert actor.send(question).read() == expected[number]
            snapshot = through_json(actor.freeze())
        if number == 1:
            save(snapshot, tmp_path / "frozen")
    assert snapshot.manifest.handles == blocks  # bit for bit
    assert answers_in_a_new_process(tmp_path / "frozen", tiny, model.device.info.spec, QUESTIONS[2:]) == expected[2:]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_random_conversations(chat: ActorProgram, model: Model) -> None:
    """A hundred on the CPU device; fewer on lavapipe, where a hundred take three minutes."""
    rng = np.random.default_rng(5)
    words = ["hello", "the", "world", "and", "or", "all", "in", "a", "then"]
    for _ in range(100 if model.device.info.backend == "cpu" else 20):
        questions = [" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(rng.integers(1, 6))]
        args = (*SAMPLED, *(("--repeat-penalty", "1.1") if rng.random() < 0.3 else ("--draft-tokens", "3")))
        with Actor(chat, models={"default": model}, args=args) as actor:
            snapshot = actor.freeze()
            expected = [actor.send(question).read() for question in questions]
        for question, answer in zip(questions, expected, strict=True):
            with Actor.thaw(through_json(snapshot), chat, models={"default": model}) as actor:
                assert actor.send(question).read() == answer
                snapshot = actor.freeze()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("count", "devices"), [(100, ["cpu"]), pytest.param(5, ["cpu", "vulkan"], marks=pytest.mark.vulkan)]
)
def test_random_conversations_move_to_a_new_process_for_every_message(count: int, devices: list[str]) -> None:
    """Devices do not agree to the last bit, so that there the most likely token is chosen."""
    messages, differences = moves.run(count, devices, greedy=len(devices) > 1)
    assert messages > 2 * count
    assert differences == []


@pytest.mark.model
def test_the_real_model(chat: ActorProgram, smollm2: Path, cpu: Device, tmp_path: Path) -> None:
    questions = ("Name a colour.", "Another one, please.", "Which of the two is warmer?")
    with load_model(smollm2, cpu) as model:
        models = {"default": model}
        with Actor(chat, models=models, args=("--max-tokens", "16", "--temperature", "0.9")) as actor:
            snapshot = through_json(actor.freeze())
            expected = [actor.send(question).read() for question in questions]
        for question, answer in zip(questions[:2], expected, strict=False):
            with Actor.thaw(snapshot, chat, models=models) as actor:
                assert actor.send(question).read() == answer
                snapshot = through_json(actor.freeze())
    save(snapshot, tmp_path / "frozen")
    assert answers_in_a_new_process(tmp_path / "frozen", smollm2, "cpu", questions[2:]) == expected[2:]


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
@pytest.mark.vulkan
def test_keys_and_values_cross_from_one_device_to_another(
    chat: ActorProgram, tmp_path: Path, cpu: Device, vulkan: Device, kv_type: str
) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", heads=4, kv_heads=2, head_dim=32, context=512)
    with load_model(path, cpu, kv_type=kv_type) as here, load_model(path, vulkan, kv_type=kv_type) as there:
        actor = Actor(chat, models={"default": here}, args=("--max-tokens", "40"))
        actor.send("hello world").read()
        snapshot = through_json(actor.freeze())
        with Actor.thaw(snapshot, chat, models={"default": there}) as thawed:
            assert thawed.freeze().manifest.handles == snapshot.manifest.handles
            thawed.send("hello").read()
            back = through_json(thawed.freeze())
        with Actor.thaw(back, chat, models={"default": here}) as thawed:
            assert thawed.freeze().manifest.handles == back.manifest.handles
        actor.close()


def test_forks_go_their_own_ways_and_share_pages(chat: ActorProgram, model: Model) -> None:
    models = {"default": model}
    with Actor(chat, models=models, args=SAMPLED, id="trunk") as actor:
        actor.send("hello").read()
        snapshot = actor.freeze()
        free = model.cache.free
        forks = [actor.fork() for _ in range(4)]
        assert model.cache.free == free
        assert len({fork.id for fork in forks} | {"trunk"}) == 5
        expected = []
        for question in QUESTIONS[:4]:
            with Actor.thaw(snapshot, chat, models=models) as alone:
                expected.append([alone.send(question).read(), alone.send("and then?").read()])
        first = [fork.send(question).read() for fork, question in zip(forks, QUESTIONS, strict=False)]
        trunk = actor.send("the world").read()
        actor.close()  # the forks keep what they share with it
    second = [fork.send("and then?").read() for fork in forks]
    assert [list(pair) for pair in zip(first, second, strict=True)] == expected
    assert trunk == expected[1][0]
    for fork in forks:
        fork.close()
    model.reclaim()
    assert model.cache.free == len(model.cache._references)
    assert len(model.cache.quota._holders) == 1  # the model's owner


def test_forks_outlive_the_actor_that_loaded_the_model(chat: ActorProgram, tiny: Path) -> None:
    actor = Actor(chat, device="cpu", models={"default": tiny}, args=SAMPLED)
    fork = actor.fork(id="branch")
    expected = actor.send("hello").read()
    actor.close()
    device = fork._guest.grants.device
    assert fork.id == "branch"
    assert fork.send("hello").read() == expected
    fork.close()
    assert device is not None
    with pytest.raises(DeviceError, match="closed"):
        device.allocate(16)


def test_sessions_that_share_pages_share_them_again(cpu: Device, tiny: Path) -> None:
    """Also those of which one was truncated in the middle of a block, and gone on with."""
    program = probe_program()
    with load_model(tiny, cpu) as model:
        with Actor(program, models={"m": model}) as actor:
            p = probe(actor)
            assert p.model_open(128, p.put(128, b"m"), p.OUT) == Errno.SUCCESS
            assert p.session_open(p.u32(), p.OUT) == Errno.SUCCESS
            sessions = [p.u32()]

            def forward(session: int, count: int, seed: int) -> None:
                tokens = np.random.default_rng(seed).integers(0, 200, count).astype(np.uint32)
                assert p.session_forward(session, 4096, p.put(4096, tokens) // 4, 0) == Errno.SUCCESS

            forward(sessions[0], 100, 0)
            for keep, more in ((100, 0), (100, 30), (70, 40), (10, 3), (0, 5)):
                assert p.session_fork(sessions[0], p.OUT) == Errno.SUCCESS
                sessions.append(p.u32())
                assert p.session_truncate(sessions[-1], keep) == Errno.SUCCESS
                if more:
                    forward(sessions[-1], more, more)
            snapshot = through_json(actor.freeze())
            before = {each: model.cache.read(each.pages, [each.length])[0].tobytes() for each in held(actor)}
            free = model.cache.free
        model.reclaim()
        whole = model.cache.free
        with Actor.thaw(snapshot, program, models={"m": model}) as thawed:
            # Pages of whole blocks are shared again; the partly filled last ones of the first two are not.
            assert whole - free <= whole - model.cache.free <= whole - free + 1
            after = [model.cache.read(each.pages, [each.length])[0].tobytes() for each in held(thawed)]
            assert after == list(before.values())
            assert thawed.freeze().manifest.handles == snapshot.manifest.handles


def held(actor: Actor) -> list[Any]:
    return [each.session for _, each in actor._guest.handles.items() if hasattr(each, "session")]


def test_chunks_of_what_did_not_change_are_the_same(chat: ActorProgram, tiny: Path, cpu: Device) -> None:
    with load_model(tiny, cpu) as model, Actor(chat, models={"default": model}, args=SAMPLED) as actor:
        chunks = MemoryChunks()
        actor.send("hello world " * 20).read()
        before = actor.freeze_into(chunks)
        nbytes = chunks.nbytes
        assert actor.freeze_into(chunks).chunks() == before.chunks()
        assert chunks.nbytes == nbytes
        actor.send("and then?").read()
        after = actor.freeze_into(chunks)
        sessions = [each for m in (before, after) for each in m.handles.held.values() if isinstance(each, Session)]
        assert len(sessions) == 2
        whole = sessions[0].tokens // 32
        assert whole >= 1
        assert sessions[1].blocks[:whole] == sessions[0].blocks[:whole]


def test_a_cache_without_room_is_said(chat: ActorProgram, tiny: Path, cpu: Device) -> None:
    with load_model(tiny, cpu) as model, Actor(chat, models={"default": model}, args=SAMPLED) as actor:
        actor.send("hello world " * 20).read()
        snapshot = actor.freeze()
        with pytest.raises(LimitError, match="device memory"):
            Actor.thaw(snapshot, chat, models={"default": model}, limits=Limits(device_bytes=4096))
        Actor.thaw(snapshot, chat, models={"default": model}).close()


def test_what_the_chat_guest_refuses_is_no_failure(chat: ActorProgram, tiny: Path, cpu: Device) -> None:
    said: list[bytes] = []
    with (
        load_model(tiny, cpu, context=64) as model,
        Actor(chat, models={"default": model}, stderr=said.append) as actor,
    ):
        assert actor.send("hello " * 100).read() == b""
        assert b"the model's context is 64" in b"".join(said)
        assert actor.send("hello").read()
    with pytest.raises(GuestError, match="closed"):
        actor.freeze()
