"""Actors of a host that use a model, which is loaded once and shared by those that decode at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny import write_tiny_llama
from wasmetal import ActorHost, ActorProgram, ActorType, load_model
from wasmetal.actor.store import DirectoryStore
from wasmetal.device import Device
from wasmetal.errors import GuestError

CHAT = Path(__file__).parents[2] / "guests" / "chat.wasm"
LOADING = {"contexts": 8, "trusted": True}
"""Whose template is rendered in this process: starting another takes longer than an answer."""
ARGS = ("--greedy", "--repeat-penalty", "1.5")


@pytest.fixture(scope="module")
def chat() -> ActorProgram:
    return ActorProgram(CHAT)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=512)


def test_conversations_are_frozen_and_go_on(chat: ActorProgram, tiny: Path, tmp_path: Path) -> None:
    """The answers are those of actors that stay awake; the model is loaded once, for two types."""
    types = {
        name: ActorType(program=chat, models={"default": tiny}, args=("--max-tokens", length, *ARGS))
        for name, length in (("short", "4"), ("long", "9"))
    }
    said = [("a", "hello", "short"), ("b", "the world", "long"), ("a", "and then?", None), ("c", "or all", "short")]
    said += [("b", "hello", None), ("a", "the world", None), ("c", "hello", None)]
    answers = []
    for number, (resident, device_bytes) in enumerate([(8, None), (1, None), (8, 1)]):
        with ActorHost(
            DirectoryStore(tmp_path / str(number)),
            types,
            device="cpu",
            loading=LOADING,
            resident=resident,
            device_bytes=device_bytes,
        ) as host:
            answers.append([host.send(name, text, type=kind).read() for name, text, kind in said])
            loaded = {id(model) for each in host._types._types.values() for model in each.models.values()}
            assert len(loaded) == 1
            stats = host.stats()
            assert stats.frozen == [0, 6, stats.frozen][number]
            assert (stats.device_bytes > 0) == (number < 2)
            assert len(host.resident()) == [3, 1, 0][number]
            if number == 0:
                host.fork("a", "d")
                assert host.send("d", "hello").read() == host.send("a", "hello").read()
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0])) > 3


def test_actors_that_decode_at_once_share_the_device(chat: ActorProgram, tiny: Path, tmp_path: Path) -> None:
    """When the first has its answer, the others have much of theirs."""
    actors = ActorType(program=chat, models={"default": tiny}, args=("--max-tokens", "300", *ARGS))
    with ActorHost(DirectoryStore(tmp_path), actors, device="cpu", loading=LOADING, durability="freeze") as host:
        names = [f"a{i}" for i in range(4)]
        for _ in range(2):  # the first time they are made, one after the other
            lengths: list[int] = []
            replies = [host.send(name, "hello") for name in names]
            while not any(reply.done for reply in replies):
                lengths = [len(reply._pieces) for reply in replies]
                replies[0].wait(0.001)
            assert len({reply.read() for reply in replies}) == 1
        assert min(lengths) > max(lengths) / 4 > 10


def test_actors_for_whose_sessions_there_is_no_room_take_that_of_idle_ones(
    chat: ActorProgram, tiny: Path, tmp_path: Path
) -> None:
    """A cache of 16 pages has one for each of 16 actors."""
    actors = ActorType(program=chat, models={"default": tiny}, args=("--raw", "--max-tokens", "2", *ARGS))
    with ActorHost(DirectoryStore(tmp_path), actors, device="cpu", loading={"contexts": 1, "trusted": True}) as host:
        for _ in range(2):
            for i in range(18):
                assert host.send(f"a{i}", "a").read()
        assert 0 < len(host.resident()) <= 16
        assert host.stats().lost == host.stats().failed == 0


def test_what_was_loaded_here_is_closed_here(chat: ActorProgram, tiny: Path, tmp_path: Path, cpu: Device) -> None:
    with load_model(tiny, cpu) as model:
        actors = ActorType(program=chat, models={"default": model}, args=("--max-tokens", "4"))
        with ActorHost(DirectoryStore(tmp_path), actors) as host:
            assert host.send("a", "hello").read()
        model.session().close()  # it is still loaded
    with pytest.raises(GuestError, match="No such file"):
        ActorHost(DirectoryStore(tmp_path), ActorType(program=tmp_path / "no.wasm"))
