"""Guests that are models of the API."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve.serving import Serving, serving, wait_for
from tests.serve.test_going_away import close
from tests.serve.test_tools import CALL, WEATHER
from wasmetal import Actor, ActorProgram, Dir
from wasmetal.cli.options import OptionError
from wasmetal.cli.serve_guests import guest_spec
from wasmetal.models import Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel, message
from wasmetal.serve.limits import ServerLimits

GUESTS = Path(__file__).parents[2] / "guests"
HELLO: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": 'hello "world" 🚀\n'}]
DOCS = {
    "cats.txt": "The cat sat on the mat.\n\nA kitten is a young cat.",
    "deep/computers.md": "A computer runs programs.\n\nA compiler makes programs of text.",
    "ignored.bin": "cat computer",
}


def actor(text: str) -> ActorProgram:
    """An actor that does this with each message."""
    return ActorProgram(
        f"""(module
          (import "wasmetal_actor" "reply_write" (func $reply (param i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 0) "hello") (data (i32.const 16) "hi\\00nonsense")
          (data (i32.const 32) "\\00{{\\"error\\": \\"I would rather not\\"}}") (data (i32.const 80) "\\00{{}}")
          (func (export "wm_actor_message") {text}))""".encode()
    )


def say(address: int, length: int) -> str:
    return f"(drop (call $reply (i32.const {address}) (i32.const {length})))"


HOSTILE = {
    "traps": "unreachable",
    "traps-late": f"{say(0, 5)} unreachable",
    "loops": "(loop br 0)",
    "nonsense": say(16, 11),
    "half": say(80, 2),
    "nothing": say(80, 3),
    "floods": f"(memory.fill (i32.const 256) (i32.const 120) (i32.const 60000)) (loop {say(256, 60000)} br 0)",
    "refuses": f"{say(32, 32)} unreachable",
}


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    for name, text in DOCS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def server(tiny: Model, docs: Path) -> Iterator[Serving]:
    granted = {"default": tiny}
    guests = [
        GuestModel("plain", ActorProgram(GUESTS / "converse.wasm"), granted),
        GuestModel("voting", ActorProgram(GUESTS / "vote.wasm"), granted),
        GuestModel("library", ActorProgram(GUESTS / "retrieve.wasm"), granted, {"/docs": Dir(docs, read_only=True)}),
        GuestModel("bare", ActorProgram(GUESTS / "retrieve.wasm"), granted),
        GuestModel("without", ActorProgram(GUESTS / "converse.wasm")),
        *(GuestModel(name, actor(text)) for name, text in HOSTILE.items()),
    ]
    limits = ServerLimits(running=3, seconds=30, reply_bytes=1 << 20)
    with serving(Engine([tiny], limits, guests=guests)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return server.client()


def alone(model: Model, guest: str = "converse", **options: Any) -> tuple[str, Actor]:
    """What a guest says by itself, and the guest."""
    with Actor(GUESTS / f"{guest}.wasm", models={"default": model}) as ran:
        said = ran.send(message(HELLO, **options)).read().partition(b"\0")[0]
        return said.decode(errors="replace"), ran


def test_guests_are_among_the_models(client: openai.OpenAI) -> None:
    assert {"tiny", "plain", "voting"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("plain").id == "plain"


def test_a_guest_answers_as_it_does_alone(client: openai.OpenAI, tiny: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.95, "seed": 7}
    expected, _ = alone(tiny, **options)
    answer = client.chat.completions.create(model="plain", messages=HELLO, **options)
    assert answer.model == "plain"
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "length")
    chunks = list(
        client.chat.completions.create(
            model="plain", messages=HELLO, **options, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert chunks[-1].usage == answer.usage
    assert answer.usage
    plain = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, logit_bias={"2": -100})
    assert plain.usage
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens
    assert answer.usage.completion_tokens == 12


def test_the_answer_that_two_of_three_agree_with_is_elected(client: openai.OpenAI, tiny: Model) -> None:
    def words(text: str) -> set[str]:
        return {each.lower() for each in re.findall(r"[0-9A-Za-z\x80-\xff]+", text.encode().decode("latin-1"))}

    def agreement(a: set[str], b: set[str]) -> float:
        return len(a & b) / len(a | b) if a | b else 1.0

    for seed in (3, 40):
        options: dict[str, Any] = {"max_tokens": 24, "temperature": 1.5}
        answers = [alone(tiny, seed=seed + fork, **options)[0] for fork in range(3)]
        votes = [sum(agreement(words(one), words(other)) for other in answers) for one in answers]
        answer = client.chat.completions.create(model="voting", messages=HELLO, seed=seed, **options)
        assert answer.choices[0].message.content == answers[votes.index(max(votes))]
        assert answer.usage
        assert answer.usage.prompt_tokens_details
        prompt = answer.usage.prompt_tokens // 4  # read once, and by each fork again but for its last token
        assert answer.usage.prompt_tokens_details.cached_tokens == 3 * (prompt - 1)


@pytest.mark.parametrize(
    ("question", "sources"),
    [
        ("Where is the CAT?", "cats.txt"),
        ("Who makes programs for a computer or a kitten?", "deep/computers.md, cats.txt"),
        ("zzz", None),
    ],
)
def test_passages_are_found_in_a_granted_folder(client: openai.OpenAI, question: str, sources: str | None) -> None:
    answer = client.chat.completions.create(
        model="library", messages=[{"role": "user", "content": question}], max_tokens=4, temperature=0
    )
    said = answer.choices[0].message.content or ""
    assert said.partition("\n\nFrom: ")[2] == (sources or "")
    assert answer.usage
    assert (answer.usage.prompt_tokens > 100) == (sources is not None)


@pytest.mark.parametrize(
    ("model", "status", "text"),
    [
        ("traps", 500, "unreachable"),
        ("nonsense", 500, "finish_reason"),
        ("half", 500, "finish_reason"),
        ("nothing", 500, "finish_reason"),
        ("floods", 500, "reply of 1048576 bytes"),
        ("without", 500, "no model named 'default' was granted"),
        ("refuses", 400, "I would rather not"),
        ("bare", 400, "no folder was granted"),
    ],
)
def test_a_guest_that_fails_is_an_error_of_its_own_request(server: Serving, model: str, status: int, text: str) -> None:
    found, body, _ = server.ask("/v1/chat/completions", {"model": model, "messages": HELLO})
    assert (found, text in body["error"]["message"]) == (status, True), body
    assert body["error"]["code"] == ("completion_failed" if status == 500 else "refused_by_guest")


def test_a_guest_that_traps_after_some_text(server: Serving) -> None:
    status, text, _ = server.ask("/v1/chat/completions", {"model": "traps-late", "messages": HELLO, "stream": True})
    *_, said, error = (json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line)
    assert (status, said["choices"][0]["delta"]) == (200, {"content": "hello"})
    assert error["error"]["code"] == "completion_failed"


def test_a_guest_stops_when_its_client_goes_away(server: Serving) -> None:
    drawn = server.metric("wasmetal_completion_tokens_total")
    for model, begun in (("loops", False), ("plain", True)):
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        body = json.dumps({"model": model, "messages": HELLO, "stream": True, "temperature": 0})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        if begun:
            response = connection.getresponse()
            response.readline()
            close(connection, response)
        else:
            wait_for(lambda: bool(server.engine.admission.running))
            connection.close()
        wait_for(lambda: not server.engine.tasks)
    assert server.metric("wasmetal_completion_tokens_total") > drawn  # though it had no end


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"stop": ["x"]}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"extra_body": {"top_k": 3}}, "top_k"),
        ({"extra_body": {"grammar": 'root ::= "a"'}}, "grammar"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [WEATHER]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": CALL[:2]}, "messages.1.tool_calls"),
        ({"messages": [HELLO[1], {"role": "tool", "tool_call_id": "1", "content": "sunny"}]}, "messages.1.role"),
        ({"messages": [{"role": "assistant", "content": "no question"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "hello " * 5000}]}, "messages"),
    ],
)
def test_what_guests_are_not_told_of_is_refused(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**({"model": "plain", "messages": HELLO} | options))
    assert raised.value.param == param


def test_what_the_option_says() -> None:
    spec = guest_spec("a b=x/y.wasm,model=default=smollm2:135m,dir=/tmp::/docs:ro,dir=out::out")
    assert (spec.name, spec.file, spec.models) == ("a b", Path("x/y.wasm"), {"default": "smollm2:135m"})
    assert spec.dirs == {"/docs": Dir("/tmp", read_only=True), "out": Dir("out")}
    for text in ("x.wasm", "=x.wasm", "a=", "a=x.wasm,", "a=x.wasm,nn=b=c", "a=x.wasm,model=b", "a=x.wasm,dir=b"):
        with pytest.raises(OptionError):
            guest_spec(text)


def test_guests_answer_chats_alone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is a guest"):
        client.completions.create(model="plain", prompt="hello")
