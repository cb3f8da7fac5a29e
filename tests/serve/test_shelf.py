"""Models that are loaded when they are asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from tests.serve.serving import Serving, serving, wait_for
from wasmetal.device import Device
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.models import Embedder, Model
from wasmetal.models.planning import plan
from wasmetal.serve.engine import Engine
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.loading import Loading
from wasmetal.serve.shelf import Room, Stored

NAMES = ("one", "two", "three")
ASK: dict[str, Any] = {"prompt": "hello", "max_tokens": 8, "temperature": 0}
LONG: dict[str, Any] = {"prompt": "hello", "max_tokens": 4000, "logit_bias": {"0": -100, "2": -100}}


class Watch:
    """Counts what is loaded."""

    def __init__(self) -> None:
        self.now: set[str] = set()
        self.most = 0
        self.lock = threading.Lock()

    def over(self, stored: Stored) -> Stored:
        name = stored.plan.name

        def load() -> Model | Embedder:
            with self.lock:
                self.now.add(name)
                self.most = max(self.most, len(self.now))
            model = stored.load()
            close = model.close

            def closing() -> None:
                close()
                with self.lock:
                    self.now.discard(name)

            model.close = closing  # type: ignore[method-assign]
            return model

        return replace(stored, load=load)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shelf")
    texts = [write_tiny_llama(folder / f"{name}.gguf", context=4096, blocks=1) for name in NAMES]
    return [*texts, write_tiny_bert(folder / "vectors.gguf")]


@pytest.fixture
def loading(cpu: Device) -> Loading:
    options: dict[str, Any] = {"context": None, "contexts": 5, "kv_type": None, "quantize": None}
    return Loading(cpu, **options, prefixes=1, deterministic=True)


Shelved = Callable[..., Any]


@pytest.fixture
def shelved(loading: Loading, paths: Sequence[Path]) -> Iterator[Shelved]:
    watch = Watch()

    @contextmanager
    def make(**room: Any) -> Iterator[tuple[Serving, Watch]]:
        _, stored = loading.share_out(paths, Room(count=0))
        engine = Engine([], ServerLimits(running=4), stored=[watch.over(each) for each in stored], room=Room(**room))
        with serving(engine) as server:
            yield server, watch

    yield make
    assert not watch.now  # at the end of a server, nothing is left


def ask(server: Serving, name: str, **more: Any) -> tuple[int, Any, dict[str, str]]:
    return server.ask("/v1/completions", ASK | {"model": name} | more)


def test_one_at_a_time(shelved: Shelved) -> None:
    with shelved(count=1) as (server, watch):
        assert [model["id"] for model in server.ask("/v1/models")[1]["data"]] == [*NAMES, "vectors"]
        assert server.ask("/v1/models/two")[0] == 200
        assert not watch.now
        assert {model["loaded"] for model in server.ask("/stats")[1]["models"]} == {False}
        for name in ("one", "two", "two", "one"):
            assert ask(server, name)[0] == 200
            assert watch.now == {name}
        assert server.ask("/v1/embeddings", {"model": "vectors", "input": "hello"})[0] == 200
        assert watch.now == {"vectors"}
        assert server.ask("/tokenize", {"model": "three", "prompt": "hello"})[0] == 200
        assert server.engine.shelf.loads == 5
        assert server.metric("wasmetal_models_loaded") == 1
        assert ask(server, "four")[1]["error"]["code"] == "model_not_found"
        assert watch.most == 1


def test_many_who_want_different_ones(shelved: Shelved) -> None:
    with shelved(count=2) as (server, watch), ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: ask(server, NAMES[number % 3]), range(24)))
        assert [status for status, *_ in answers] == [200] * 24
        assert len({body["choices"][0]["text"] for _, body, _ in answers}) == 1  # the files are the same
        assert watch.most <= 2


def test_a_model_in_use_is_waited_for_and_not_for_ever(shelved: Shelved) -> None:
    with shelved(count=1, patience=0.2) as (server, watch):
        stream = server.client().completions.create(model="one", **LONG, stream=True)
        next(stream)
        status, body, headers = ask(server, "two")
        assert (status, body["error"]["code"]) == (503, "model_unavailable")
        assert "one" in body["error"]["message"]
        assert "retry-after" in headers
        stream.close()
        wait_for(lambda: not server.engine.tasks)
        assert ask(server, "two")[0] == 200
        assert watch.now == {"two"}


def test_room_in_bytes(shelved: Shelved, cpu: Device, paths: Sequence[Path]) -> None:
    each = plan(paths[0], cpu.info, contexts=5).nbytes
    with shelved(nbytes=2 * each + each // 2) as (server, watch):
        for name in NAMES:
            assert ask(server, name)[0] == 200
        assert watch.now == {"two", "three"}
    with shelved(nbytes=each - 1) as (server, watch):
        status, body, headers = ask(server, "one")
        assert (status, body["error"]["code"]) == (503, "model_unavailable")
        assert "memory" in body["error"]["message"]
        assert "retry-after" not in headers
        assert watch.most <= 2


def test_idle_models_go(shelved: Shelved) -> None:
    with shelved(idle_seconds=0.3) as (server, watch):
        assert ask(server, "one")[0] == ask(server, "two")[0] == 200
        wait_for(lambda: not watch.now)
        stream = server.client().completions.create(model="one", **LONG, stream=True)
        next(stream)
        time.sleep(0.5)
        assert watch.now == {"one"}
        stream.close()
        wait_for(lambda: not watch.now)
        assert ask(server, "one")[0] == 200


def test_a_model_that_cannot_be_loaded(loading: Loading, paths: Sequence[Path]) -> None:
    def fail() -> Model:
        raise ModelError("the file is gone")

    _, (first, second, *_) = loading.share_out(paths, Room(count=0))
    engine = Engine([], stored=[replace(first, load=fail), second], room=Room(count=1))
    with serving(engine) as server:
        for _ in range(2):
            status, body, _ = ask(server, "one")
            assert (status, body["error"]["code"]) == (503, "model_unavailable")
            assert "the file is gone" in body["error"]["message"]
        assert ask(server, "two")[0] == 200


def test_an_end_while_a_model_is_loaded(loading: Loading, paths: Sequence[Path]) -> None:
    watch, go_on, begun = Watch(), threading.Event(), threading.Event()
    _, (first, *_) = loading.share_out(paths, Room(count=0))

    def slowly() -> Model | Embedder:
        begun.set()
        go_on.wait(30)
        return first.load()

    stored = watch.over(replace(first, load=slowly))
    thread: threading.Thread
    with serving(Engine([], stored=[stored])) as server:
        thread = threading.Thread(target=ask, args=(server, "one"))
        thread.start()
        begun.wait(30)
        go_on.set()
    thread.join()
    assert not watch.now


def test_what_is_loaded_at_the_start(loading: Loading, paths: Sequence[Path]) -> None:
    total = sum(each.plan.nbytes for each in loading.share_out(paths, Room())[0])
    assert total
    for room, at_start in ((Room(), 4), (Room(count=4), 4), (Room(count=3), 0), (Room(nbytes=total), 4),
                           (Room(nbytes=total - 1), 0), (Room(idle_seconds=5), 0)):  # fmt: skip
        now, later = loading.share_out(paths, room)
        assert (len(now), len(later)) == (at_start, 4 - at_start)


def test_plans(cpu: Device, paths: Sequence[Path], tmp_path: Path) -> None:
    from wasmetal import load_embedder, load_model

    with load_model(paths[0], cpu, contexts=3) as model:
        found = plan(paths[0], cpu.info, contexts=3)
        assert (found.name, found.embeds, found.context) == (model.name, False, model.context_length)
        assert found.nbytes >= model.cache.pages * model.cache.page_bytes
        assert plan(paths[0], cpu.info, contexts=6).nbytes - found.nbytes == model.cache.pages * model.cache.page_bytes
    with load_embedder(paths[3], cpu) as embedder:
        found = plan(paths[3], cpu.info)
        assert (found.name, found.embeds, found.context) == (embedder.name, True, embedder.context_length)
    with pytest.raises(OutOfDeviceMemoryError):
        plan(paths[0], replace(cpu.info, memory_bytes=1000))
    (tmp_path / "not.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelError):
        plan(tmp_path / "not.gguf", cpu.info)
