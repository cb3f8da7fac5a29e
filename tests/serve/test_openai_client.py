"""The official client, unmodified but for the address."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests.serve.serving import Serving, serving
from wasmetal import Guest, load_model, packaged
from wasmetal.device import Device
from wasmetal.models import Embedder, Model
from wasmetal.models.lm.kv_cache import PAGE_SIZE
from wasmetal.serve.engine import Engine
from wasmetal.serve.keys import new_key, read_keys
from wasmetal.serve.limits import ServerLimits

HELLO: list[Any] = [{"role": "user", "content": "hello world"}]
NO_END = {"0": -100, "2": -100}
"""Biases against the tiny model's end tokens."""


@pytest.fixture(scope="module")
def client(served: Serving) -> openai.OpenAI:
    return served.client()


def chat_guest(model: Model, *args: str, stdin: str = "") -> str:
    """What ``wasmetal chat --greedy`` writes: the chat guest, as the command runs it."""
    out: list[bytes] = []
    options = {"models": {"default": model}, "stdin": stdin.encode(), "stdout": out.append, "trusted": True}
    with Guest(packaged.guest("chat"), args=["--greedy", *args], **options) as guest:
        assert guest.run() == 0
    return b"".join(out).decode(errors="replace")


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "vectors"]
    assert client.models.retrieve("tiny").owned_by == "wasmetal"


def test_a_chat_says_what_wasmetal_chat_says(client: openai.OpenAI, tiny: Model) -> None:
    for text in ("hello world", "say <|im_end|> or <|im_start|>system", "grüße 🚀\n\nand more"):
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": text}], temperature=0, max_tokens=12
        )
        choice = answer.choices[0]
        assert (answer.object, choice.message.role) == ("chat.completion", "assistant")
        expected = chat_guest(tiny, "--max-tokens", "12", "-p", text)
        assert (choice.message.content or "").rstrip("\n") + "\n" == expected


def test_usage(client: openai.OpenAI, served: Serving) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=7, logit_bias=NO_END, max_tokens=3
    )
    _, counted, _ = served.ask("/tokenize", {"model": "tiny", "messages": HELLO})
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (counted["count"], 7)
    assert answer.usage.total_tokens == counted["count"] + 7
    assert answer.choices[0].finish_reason == "length"


def test_a_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 30, "n": 2}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    chunks = list(
        client.chat.completions.create(
            **options, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *others, last = chunks
    assert (last.choices, last.usage) == ([], whole.usage)
    for index, expected in enumerate(whole.choices):
        mine = [choice for chunk in others for choice in chunk.choices if choice.index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == expected.message.content
        assert [choice.finish_reason for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == expected.finish_reason
        logprobs = [each for choice in mine if choice.logprobs for each in choice.logprobs.content or []]
        assert expected.logprobs
        assert logprobs == expected.logprobs.content


def test_without_include_usage_there_is_none(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3, logit_bias={"2": -100}
    )
    assert answer.choices[0].logprobs
    content = answer.choices[0].logprobs.content or []
    assert len(content) == 4
    for each in content:
        values = [top.logprob for top in each.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3
        assert each.bytes is not None
    joined = b"".join(bytes(each.bytes or []) for each in content)
    assert joined.decode(errors="replace") == answer.choices[0].message.content


def test_seeds_and_choices(client: openai.OpenAI) -> None:
    def texts(**options: Any) -> list[str | None]:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, n=3, max_tokens=10, logit_bias=NO_END, **options
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    assert texts(seed=7) == texts(seed=7)
    assert len({*texts(seed=7), *texts(seed=-8)}) == 6
    assert len({*texts(), *texts()}) == 6  # random
    assert len(set(texts(temperature=0))) == 1


def test_stop_strings(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 40}
    whole = client.completions.create(**options, logit_bias=NO_END).choices[0].text
    stop = whole[10:13]
    at = whole.index(stop)
    choice = client.completions.create(**options, logit_bias=NO_END, stop=["\0never", stop]).choices[0]
    assert (choice.text, choice.finish_reason) == (whole[:at], "stop")
    chunks = client.completions.create(**options, logit_bias=NO_END, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[:at]


def test_penalties_change_what_is_said(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 40}
    plain, penalized = (
        client.completions.create(**options, logit_bias=NO_END, logprobs=0, **penalty).choices[0].logprobs
        for penalty in ({}, {"frequency_penalty": 2.0, "presence_penalty": 2.0})
    )
    assert plain
    assert penalized
    assert len(set(penalized.tokens or [])) > len(set(plain.tokens or []))


def test_completions_of_several_prompts(client: openai.OpenAI, served: Serving) -> None:
    tokens = [served.ask("/tokenize", {"model": "tiny", "prompt": text})[1]["tokens"] for text in ("hello", "world")]
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    alone = [client.completions.create(**options, prompt=text).choices[0].text for text in ("hello", "world")]
    prompts: list[Any] = [["hello", "world"], tokens]
    for prompt in prompts:
        answer = client.completions.create(**options, prompt=prompt, n=2, echo=True)
        assert [choice.text for choice in answer.choices] == [
            text for text, said in zip(("hello" + alone[0], "world" + alone[1]), alone, strict=True) for _ in range(2)
        ]
        assert answer.usage
        assert answer.usage.prompt_tokens == sum(map(len, tokens))
    assert client.completions.create(**options, prompt=tokens[0]).choices[0].text == alone[0]


def test_detokenize_is_the_inverse(served: Serving) -> None:
    text = "hello <|im_end|> wörld 🚀"
    _, there, _ = served.ask("/tokenize", {"model": "tiny", "prompt": text})
    assert served.ask("/detokenize", {"model": "tiny", "tokens": there["tokens"]})[1] == {"prompt": text}
    assert there["count"] == len(there["tokens"])


def test_embeddings(client: openai.OpenAI, embedder: Embedder) -> None:
    texts = ["hello", "the world"]
    for options in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model="vectors", input=texts, **options)
        found = np.array([each.embedding for each in answer.data], np.float32)
        np.testing.assert_allclose(found, embedder.embed(texts), atol=1e-6)
        assert answer.usage.prompt_tokens > 0


@pytest.mark.parametrize(
    ("error", "options", "param", "code"),
    [
        (openai.NotFoundError, {"model": "gpt-4o"}, "model", "model_not_found"),
        (openai.BadRequestError, {"model": "vectors"}, "model", None),
        (openai.BadRequestError, {"messages": []}, "messages", "invalid_value"),
        (openai.BadRequestError, {"temperature": 3}, "temperature", "invalid_value"),
        (openai.BadRequestError, {"temperature": "hot"}, "temperature", "invalid_value"),
        (openai.BadRequestError, {"n": 1000}, "n", None),
        (openai.BadRequestError, {"max_tokens": 0}, "max_tokens", "invalid_value"),
        (openai.BadRequestError, {"stop": [""]}, "stop", "invalid_value"),
        (openai.BadRequestError, {"logit_bias": {"999999": 1}}, "logit_bias", None),
        (openai.BadRequestError, {"logit_bias": {"hello": 1}}, "logit_bias", "invalid_value"),
        (openai.BadRequestError, {"top_logprobs": 2}, "top_logprobs", None),
        (openai.BadRequestError, {"extra_body": {"best": 1}}, "best", "unknown_parameter"),
        (
            openai.BadRequestError,
            {"messages": [{"role": "user", "content": "hello " * 5000}]},
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_errors(
    client: openai.OpenAI, error: type[openai.APIStatusError], options: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**({"model": "tiny", "messages": HELLO} | options))
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.type == "invalid_request_error"
    assert "\n" not in raised.value.message


def test_many_clients_at_once_each_get_their_own_answer(served: Serving, tiny: Model) -> None:
    prompts = [f"hello {number}" for number in range(12)]

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def ask(text: str) -> str:
                parts = await client.completions.create(
                    model="tiny", prompt=text, temperature=0, max_tokens=16, stream=True
                )
                return "".join([part.choices[0].text async for part in parts])

            return await asyncio.gather(*map(ask, prompts))

    expected = [chat_guest(tiny, "--raw", "--max-tokens", "16", "-p", text) for text in prompts]
    assert [text.rstrip("\n") + "\n" for text in asyncio.run(ask_all())] == expected
    assert served.metric("wasmetal_batched_total") > served.metric("wasmetal_batches_total")  # not one by one


@pytest.mark.model
def test_smollm2_says_what_wasmetal_chat_says(smollm2: Path, cpu: Device) -> None:
    text = "What is a computer? One sentence."
    with load_model(smollm2, cpu, context=512, contexts=3) as model:
        expected = chat_guest(model, "--max-tokens", "24", "--system", "Be brief.", "-p", text)
        with serving(Engine([model], ServerLimits(running=2))) as server:
            answer = server.client().chat.completions.create(
                model=model.name,
                messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}],
                temperature=0,
                max_tokens=24,
            )
            assert (answer.choices[0].message.content or "").rstrip("\n") + "\n" == expected
            assert server.metric("wasmetal_bytes_copied_total") == 0


def test_the_second_request_runs_what_is_new(tiny_path: Path, cpu: Device, tmp_path: Path) -> None:
    first, second = new_key("ann"), new_key("bob")
    file = tmp_path / "keys"
    file.write_text(f"{first[1]}\n{second[1]}\n")
    system = {"role": "system", "content": "be brief and kind, " * 20}
    with (
        load_model(tiny_path, cpu, contexts=3, prefixes=1, deterministic=True) as model,
        serving(Engine([model], ServerLimits(running=2)), keys=read_keys(None, file)) as server,
    ):

        def ask(key: str, question: str) -> tuple[str | None, int]:
            answer = server.client(key).chat.completions.create(
                model="tiny", messages=[system, {"role": "user", "content": question}], temperature=0, max_tokens=8
            )
            assert answer.usage
            assert answer.usage.prompt_tokens_details
            return answer.choices[0].message.content, answer.usage.prompt_tokens_details.cached_tokens or 0

        prompt = model.chat_template.render([system]) if model.chat_template else ""
        begin = len(model.tokenizer.encode(prompt)) // PAGE_SIZE * PAGE_SIZE
        one, nothing = ask(first[0], "one")
        assert nothing == 0
        for question, answer in (("two", None), ("one", one)):
            said, cached = ask(first[0], question)
            assert cached in (begin, begin - PAGE_SIZE)  # the template's last tokens depend on what follows
            assert answer in (None, said)
        assert ask(second[0], "one") == (one, 0)
