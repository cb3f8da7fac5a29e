"""Completions whose tokens the device chooses, several at a time."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.serving import Serving, wait_for
from tests.serve.test_going_away import begin, close
from wasmetal.serve.metrics import Metrics

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "top-k": {"temperature": 1.2, "top_k": 20, "seed": 11},
    "top-p": {"temperature": 0.9, "top_k": 64, "top_p": 0.8, "min_p": 0.02, "seed": 2**63 + 5},
}


def ask(server: Serving, **options: Any) -> tuple[Any, int]:
    """The choice, and how many batches it took."""
    before = server.metric("wasmetal_batches_total")
    status, body, _ = server.ask("/v1/completions", {"model": "tiny", "prompt": "hello", "max_tokens": 100} | options)
    assert status == 200, body
    return body["choices"][0] | body["usage"], int(server.metric("wasmetal_batches_total") - before)


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("prompt", ["hello", "a b c", "once upon"])
def test_they_are_those_that_the_guest_chooses(served: Serving, sampling: str, prompt: str) -> None:
    """With log-probabilities, it chooses each token itself."""
    options: dict[str, Any] = {"prompt": prompt} | SAMPLING[sampling]
    one_by_one, passes = ask(served, **options, logprobs=0)
    burst, fewer = ask(served, **options)
    assert passes == one_by_one["completion_tokens"]
    assert fewer < passes or passes < 4
    for same in ("text", "finish_reason", "completion_tokens"):
        assert burst[same] == one_by_one[same]


@pytest.mark.parametrize("most", [1, 2, 15, 16, 17, 18, 33])
def test_as_many_as_are_wanted(served: Serving, most: int) -> None:
    whole, _ = ask(served, temperature=0, max_tokens=100)
    some, _ = ask(served, temperature=0, max_tokens=most)
    assert whole["text"].startswith(some["text"])
    assert some["completion_tokens"] == min(most, whole["completion_tokens"])


def test_a_stop_string_ends_the_text_in_the_midst_of_them(served: Serving) -> None:
    text = ask(served, temperature=0)[0]["text"]
    stops = {each for at in range(1, len(text) - 2) if "\ufffd" not in (each := text[at : at + 2])}
    assert stops
    for stop in sorted(stops)[:8]:
        one_by_one, _ = ask(served, temperature=0, stop=stop, logprobs=0)
        burst, _ = ask(served, temperature=0, stop=stop)
        assert burst["text"] == one_by_one["text"] == text[: text.index(stop)]
        assert burst["completion_tokens"] == one_by_one["completion_tokens"]


def test_the_context_ends_the_text(served: Serving) -> None:
    prompt = [5] * 4080
    answers = [ask(served, prompt=prompt, temperature=0, max_tokens=100, **more)[0] for more in ({}, {"logprobs": 0})]
    assert [each["completion_tokens"] for each in answers] == [17, 17]
    assert answers[0]["text"] == answers[1]["text"]


def test_a_client_that_goes_away_stops_them(served: Serving) -> None:
    before = served.metric("wasmetal_completion_tokens_total")
    close(*begin(served, logit_bias={}, temperature=1, top_k=64, prompt=[5]))
    wait_for(lambda: not served.engine.tasks)
    assert served.metric("wasmetal_completion_tokens_total") - before < 4000


def test_pieces_are_sent_at_once(served: Serving) -> None:
    """Not when the client has acknowledged the one before, as Nagle's algorithm would have it."""
    begun = begin(served)
    sockets = [each.transport.get_extra_info("socket") for each in served.server.server_state.connections]
    assert sockets
    assert all(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)
    close(*begun)
    wait_for(lambda: not served.engine.tasks)


def test_figures_count_tokens_that_come_together(served: Serving) -> None:
    def counted() -> float:
        firsts, others = ("wasmetal_time_to_first_token_seconds", "wasmetal_time_between_tokens_seconds")
        return served.metric(f"{firsts}_count") + served.metric(f"{others}_count")

    before, drawn = counted(), served.metric("wasmetal_completion_tokens_total")
    answer, _ = ask(served, temperature=0)
    assert served.metric("wasmetal_completion_tokens_total") - drawn == answer["completion_tokens"]
    assert counted() - before == answer["completion_tokens"] - (answer["finish_reason"] == "stop")


def test_times_between_tokens() -> None:
    metrics = Metrics()
    for seconds, count, first in ((0.5, 1, True), (0.08, 8, False), (0.009, 1, False), (9.0, 2, False), (7.0, 4, True)):
        metrics.pieces("m", seconds, count, first=first)
    (found,) = [
        family for family in text_string_to_metric_families(metrics.text().decode())
        if family.name == "wasmetal_time_between_tokens_seconds"
    ]  # fmt: skip
    values = {(each.name[37:], each.labels.get("le")): each.value for each in found.samples}
    # Each of the eight took 0.01 s; the three that came with the first no time.
    bounds = [float(bound) for _, bound in values if bound]
    expected = [sum(each <= bound for each in [*[0.01] * 8, 0.009, 4.5, 4.5, *[0.0] * 3]) for bound in bounds]
    assert [value for (_, bound), value in values.items() if bound] == expected
    assert bounds[-1] == float("inf")
    assert (values["count", None], values["sum", None]) == (14, pytest.approx(9.089))
