"""Conversations: actors that are frozen when they are idle, and thawed by their next request."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.cli.command import SCRIPT
from tests.serve.serving import PATIENCE, Serving, serving, wait_for
from tests.serve.test_going_away import close
from wasmetal import ActorProgram
from wasmetal.models import Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.keys import new_key, read_keys
from wasmetal.serve.limits import ServerLimits

GUESTS = Path(__file__).parents[2] / "guests"
ONCE = b"""(module (import "wasmetal_actor" "reply_write" (func $reply (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "hello")
  (func (export "wm_actor_message") (drop (call $reply (i32.const 0) (i32.const 5)))
    (if (i32.load (i32.const 16)) (then (loop br 0))) (i32.store (i32.const 16) (i32.const 1))))"""
"""It answers one message; the next has no end."""
ANN = {"X-Wasmetal-Actor": "Ann's ../talk"}
BOB = {"X-Wasmetal-Actor": "bob"}


@contextmanager
def keeping(model: Model, folder: Path, **options: Any) -> Iterator[Serving]:
    limits = ServerLimits(**({"running": 2, "resident": 2} | options.pop("limits", {})))
    guests = [
        GuestModel("voting", ActorProgram(GUESTS / "vote.wasm"), {"default": model}),
        GuestModel("once", ActorProgram(ONCE)),
    ]
    with serving(Engine([model], limits, guests=guests, actors=folder), **options) as server:
        yield server


@pytest.fixture
def server(tiny: Model, tmp_path: Path) -> Iterator[Serving]:
    with keeping(tiny, tmp_path / "actors") as server:
        yield server


def user(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


def ask(
    client: openai.OpenAI, messages: list[Any], headers: dict[str, str] | None, model: str = "tiny", **options: Any
) -> tuple[str, int, int]:
    """The answer, tokens of the prompt, and how many of those were cached."""
    options = {"max_tokens": 8, "temperature": 1, "seed": 11} | options
    answer = client.chat.completions.create(model=model, messages=messages, extra_headers=headers, **options)
    assert answer.usage
    assert answer.usage.prompt_tokens_details
    cached = answer.usage.prompt_tokens_details.cached_tokens or 0
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens, cached


def whole(questions: list[str], answers: list[str]) -> list[Any]:
    """A conversation as clients send it that keep it themselves."""
    messages = user(questions[0])
    for answer, question in zip(answers, questions[1:], strict=True):
        messages += [{"role": "assistant", "content": answer}, *user(question)]
    return messages


def test_a_conversation_goes_on_where_it_was(server: Serving) -> None:
    client = server.client()
    first, prompt, cached = ask(client, user("hello"), ANN)
    assert cached == 0
    second, longer, kept = ask(client, user("and again"), ANN)
    # What the tiny model says is hardly text: not all of the answer need give the same tokens again.
    assert prompt <= kept < longer
    # Another conversation, one that is sent whole, and one without an actor say the same.
    messages = whole(["hello", "and again"], [first])
    said, same, some = ask(client, messages, BOB)
    assert (said, same) == (second, longer)
    assert ask(client, messages, None)[0] == second != ""
    # Sent whole, it takes the place of what there was; nothing of it is run again but the last token.
    assert ask(client, messages, BOB) == (second, longer, longer - 1)
    assert some == 0


def test_it_is_frozen_when_it_is_idle_and_thawed_by_its_next_request(tiny: Model, tmp_path: Path) -> None:
    with keeping(tiny, tmp_path / "actors", limits={"resident": 1}) as server:
        client = server.client()
        host = server.engine.conversations.host if server.engine.conversations else None
        assert host
        _, prompt, _ = ask(client, user("hello"), ANN)
        ask(client, user("hello"), BOB)
        assert len(host.resident()) == 1  # the other is frozen
        assert ask(client, user("and again"), ANN)[2] >= prompt
        assert host.stats().thawed == 1


def test_no_more_than_so_many(tiny: Model, tmp_path: Path) -> None:
    """New ones are refused, also after a restart; those that are there go on; room that is made is used."""
    for _ in range(2):
        with keeping(tiny, tmp_path / "actors", limits={"conversations": 2}) as server:
            client = server.client(max_retries=0)
            assert server.engine.conversations
            for name in ANN, BOB:
                ask(client, user("hello"), name)
            with pytest.raises(openai.InternalServerError, match="keeps no more than 2 conversations") as caught:
                ask(client, user("hello"), {"X-Wasmetal-Actor": "eve"})
            assert caught.value.status_code == 507
            ask(client, user("and again"), ANN)
            ask(client, user("hello"), None)
            host = server.engine.conversations.host
            assert len(host.actors()) == 2
    with keeping(tiny, tmp_path / "actors", limits={"conversations": 2}) as server:
        assert server.engine.conversations
        host = server.engine.conversations.host
        host.delete(host.actors()[0])
        ask(server.client(), user("hello"), {"X-Wasmetal-Actor": "eve"})
        assert len(host.actors()) == 2


def test_time_freezes_it(tiny: Model, tmp_path: Path) -> None:
    with keeping(tiny, tmp_path / "actors", limits={"idle_seconds": 0.1}) as server:
        client = server.client()
        _, prompt, _ = ask(client, user("hello"), ANN)
        assert server.engine.conversations
        host = server.engine.conversations.host
        wait_for(lambda: not host.resident())
        assert ask(client, user("and again"), ANN)[2] >= prompt
        assert host.stats().thawed == 1


def test_with_another_file_of_the_guest_it_cannot_go_on(tiny: Model, tmp_path: Path) -> None:
    for path, error in ((GUESTS / "vote.wasm", None), (GUESTS / "converse.wasm", openai.ConflictError)):
        guest = GuestModel("plain", ActorProgram(path), {"default": tiny})
        with serving(Engine([tiny], ServerLimits(running=2), guests=[guest], actors=tmp_path / "actors")) as server:
            if error is None:
                ask(server.client(), user("hello"), BOB, "plain")
                continue
            with pytest.raises(error) as raised:
                ask(server.client(), user("hello"), BOB, "plain")
            assert raised.value.code == "conversation_unusable"


def test_after_a_restart(tiny: Model, tmp_path: Path) -> None:
    with keeping(tiny, tmp_path / "actors") as server:
        expected = [ask(server.client(), user(text), BOB)[0] for text in ("hello", "and again")]
    with keeping(tiny, tmp_path / "others") as server:
        first, prompt, _ = ask(server.client(), user("hello"), BOB)
    with keeping(tiny, tmp_path / "others") as server:
        second, _, cached = ask(server.client(), user("and again"), BOB)
    assert ([first, second], cached >= prompt) == (expected, True)


def test_after_a_kill(tiny_path: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [SCRIPT, "serve", tiny_path, "--port", "0", "--device", "cpu"]
    command += ["--actors", tmp_path / "actors", "--guest", f"plain={GUESTS / 'converse.wasm'}"]
    found = []
    for text in ("hello", "and again"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
        try:
            assert process.stderr
            url = process.stderr.readline().split()[-1]
            found.append(ask(openai.OpenAI(base_url=url, api_key="none"), user(text), BOB, "plain"))
        finally:
            process.kill()
            process.wait()
            process.stderr.close()  # type: ignore[union-attr]
    (_, prompt, nothing), (_, _, cached) = found
    assert (nothing, cached >= prompt) == (0, True)


def test_keys_have_conversations_of_their_own(tiny: Model, tmp_path: Path) -> None:
    keys = [new_key("ann"), new_key("bob")]
    (tmp_path / "keys").write_text("\n".join(line for _, line in keys))
    with keeping(tiny, tmp_path / "actors", keys=read_keys(None, tmp_path / "keys")) as server:
        first, second = (server.client(key) for key, _ in keys)
        _, prompt, _ = ask(first, user("hello"), ANN)
        assert ask(second, user("hello"), ANN)[1:] == (prompt, 0)
        assert ask(first, user("and again"), ANN)[2] >= prompt


def test_a_guest_has_conversations_too(server: Serving) -> None:
    client = server.client()
    first = ask(client, user("hello"), BOB, "voting", temperature=1, seed=4)[0]
    said = ask(client, user("and again"), BOB, "voting", temperature=1, seed=5)[0]
    messages = whole(["hello", "and again"], [first])
    assert ask(client, messages, None, "voting", temperature=1, seed=5)[0] == said
    with pytest.raises(openai.BadRequestError, match="'voting'") as raised:
        ask(client, user("hello"), BOB)
    assert raised.value.param == "model"


def begin(
    server: Serving, headers: dict[str, str], path: str = "/v1/chat/completions", body: Any = None
) -> tuple[http.client.HTTPConnection, Any]:
    """An answer without end, of which something has been said."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    body = body or {"model": "once", "messages": user("hello"), "stream": True}
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"} | headers)
    response = connection.getresponse()
    assert response.status == 200
    while b"hello" not in response.readline():
        pass
    return connection, response


def test_one_request_at_a_time_and_one_that_is_given_up_never_was(server: Serving) -> None:
    client = server.client()
    assert ask(client, user("hello"), BOB, "once")[0] == "hello"
    begun = begin(server, BOB)
    with pytest.raises(openai.ConflictError) as raised:
        ask(client, user("hello"), BOB, "once")
    assert raised.value.code == "conversation_busy"
    assert ask(client, user("hello"), ANN, "once")[0] == "hello"
    close(*begun)
    wait_for(lambda: not server.engine.tasks)
    close(*begin(server, BOB))  # it is as it was before
    wait_for(lambda: not server.engine.tasks)


def test_a_server_that_ends_gives_up_what_does_not(tiny: Model, tmp_path: Path) -> None:
    with keeping(tiny, tmp_path / "actors", limits={"drain_seconds": 0.1}) as server:
        ask(server.client(), user("hello"), BOB, "once")
        connection, response = begin(server, BOB)
        server.server.drain()
        assert b"shutting_down" in response.read()
        connection.close()
    with keeping(tiny, tmp_path / "actors") as server:
        close(*begin(server, BOB))  # as it was
        wait_for(lambda: not server.engine.tasks)


def test_a_request_that_is_refused_never_was(server: Serving) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError):
        ask(client, [{"role": "system", "content": "x" * 9000}, *user("hello " * 2000)], BOB)
    _, prompt, _ = ask(client, user("hello"), BOB)
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, [{"role": "assistant", "content": "hello"}], BOB)
    assert raised.value.code == "refused_by_guest"
    assert ask(client, user("and again"), BOB)[2] >= prompt


def test_a_server_that_keeps_none_says_so(served: Serving) -> None:
    with pytest.raises(openai.BadRequestError, match="--actors"):
        ask(served.client(), user("hello"), BOB)


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_names_that_are_none(server: Serving, name: str) -> None:
    body = {"model": "tiny", "messages": user("hello")}
    status, found, _ = server.ask("/v1/chat/completions", body, headers={"X-Wasmetal-Actor": name})
    assert (status, "X-Wasmetal-Actor" in found["error"]["message"]) == (400, True)
