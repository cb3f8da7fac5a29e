"""Servers as they were asked for: guests and conversations, with models that are loaded on demand."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import wasmetal
from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from tests.serve.serving import Serving, serving
from wasmetal.cli.serve_guests import guest_spec
from wasmetal.errors import WasmetalError
from wasmetal.serve.engine import Engine
from wasmetal.serve.keys import Keys
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.recipe import Recipe

VOTE = Path(__file__).parents[2] / "guests" / "vote.wasm"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("one", "two", "three"):
        write_tiny_llama(folder / f"{name}.gguf", context=512, blocks=1)
    write_tiny_bert(folder / "vectors.gguf")
    return folder


def recipe(folder: Path, models: Sequence[str], guests: Sequence[str], **options: Any) -> Recipe:
    """``guests``: what each ``--guest`` grants."""
    grants = [each.format(folder) for each in guests]
    return Recipe(
        models=[str(folder / f"{name}.gguf") for name in models],
        limits=ServerLimits(running=2, resident=2),
        keys=Keys({}),
        loading={"context": None, "contexts": 5, "prefixes": 1, "kv_type": None, "quantize": None,
                 "deterministic": True},
        device="cpu",
        guests=tuple(guest_spec(f"voting{index}={VOTE}{grant}") for index, grant in enumerate(grants)),
        **options,
    )  # fmt: skip


@contextmanager
def made(wanted: Recipe) -> Iterator[Serving]:
    with ExitStack() as stack:
        engine: Engine = pickle.loads(pickle.dumps(wanted)).make(stack).state.engine
        with serving(engine) as server:
            yield server


def chat(server: Serving, model: str, **headers: str) -> tuple[int, Any]:
    body = {"model": model, "messages": HELLO, "max_tokens": 3}
    return server.ask("/v1/chat/completions", body, headers=headers)[:2]


def test_models_of_guests_stay_and_others_come_and_go(folder: Path, tmp_path: Path) -> None:
    grants = ["", ",model=default={0}/three.gguf"]
    wanted = recipe(folder, ["vectors", "one", "two"], grants, resident=3, actors=tmp_path / "actors")
    with made(wanted) as server:
        names = [each["id"] for each in server.ask("/v1/models")[1]["data"]]
        assert sorted(names) == ["one", "two", "vectors", "voting0", "voting1"]
        assert set(server.engine.models) == {"one"}  # three is for its guest alone
        for name in ("voting0", "voting1", "one", "two"):
            assert chat(server, name)[0] == 200
        assert set(server.engine.models) == {"one", "two"}
        assert server.ask("/v1/embeddings", {"model": "vectors", "input": "hello"})[0] == 200
        assert set(server.engine.models) == {"one", "vectors"}
        for name in ("voting0", "voting1", "one"):
            assert chat(server, name, **{"X-Wasmetal-Actor": name})[0] == 200
        status, body = chat(server, "two", **{"X-Wasmetal-Actor": "ann"})
        assert (status, body["error"]["param"]) == (400, "model")
        assert "loaded when it is asked for" in body["error"]["message"]
        asked = {"model": "two", "input": "hello", "max_output_tokens": 3}
        assert server.ask("/v1/responses", asked)[0] == 400
        assert server.ask("/v1/responses", asked | {"store": False})[0] == 200


def test_all_at_the_start_if_there_is_room(folder: Path) -> None:
    with made(recipe(folder, ["one", "two"], [",model=a={0}/three.gguf,model=b={0}/two.gguf"], resident=3)) as server:
        assert set(server.engine.models) == {"one", "two"}


@pytest.mark.parametrize(
    ("models", "grant", "options", "message"),
    [
        (["one", "two"], "", {"resident": 1}, "no place for two"),
        (["one"], ",model=default={0}/vectors.gguf", {}, "makes embeddings"),
        (["one", "one"], "", {}, "two models have the same name"),
    ],
)
def test_what_cannot_be_made(folder: Path, models: list[str], grant: str, options: Any, message: str) -> None:
    with ExitStack() as stack, pytest.raises(WasmetalError, match=message):
        recipe(folder, models, [grant], **options).make(stack)


def test_not_on_ray() -> None:
    for option in (("--actors", "talks"), ("--guest", "voting=guests/vote.wasm")):
        done = wasmetal("serve", "--ray", *option)
        assert done.returncode
        assert "not for --ray" in done.stderr
