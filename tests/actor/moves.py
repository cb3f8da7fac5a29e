"""Random conversations that are frozen after every message, and thawed by a new process for the next one.

Each reply must be that of an actor that is never frozen, on the first device. With several devices, messages go to one
after the other. ::

    python -m tests.actor.moves --conversations 100 --device cpu
    python -m tests.actor.moves --conversations 5 --greedy --device cpu --device vulkan --model smollm2:135m

On several devices replies may differ once the logits of two tokens are as close as the devices' are to each other: then
the first token that differs is printed, and the conversation ends.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, ActorProgram, Snapshot, load_model, open_device
from wasmetal.actor.manifest import Manifest
from wasmetal.actor.store import DirectoryStore
from wasmetal.packaged import guest

QUESTIONS = (
    ("Name a colour.", "Another one, please.", "Why?", "And which do you like?", "What is the capital of France?"),
    ("hello", "the world and", "or all in a", "then the hello", "and and then", "a world"),
)
"""For a real model, and for one whose replies are noise."""
SAMPLED = ("--temperature", "1.5", "--top-k", "60")

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What all processes of a run are given."""

    store: str
    model: str
    kv_type: str | None
    device: str = "cpu"


@dataclass(frozen=True)
class Reply:
    """What an actor has said, and that as tokens."""

    text: bytes
    tokens: list[int]


@dataclass(frozen=True)
class Difference:
    """Where a conversation first differs from the one that is never frozen."""

    conversation: int
    message: int
    token: int
    """In the reply."""
    got: bytes
    expected: bytes

    def __str__(self) -> str:
        where = f"conversation {self.conversation + 1}, message {self.message + 1}, token {self.token + 1} of the reply"
        return f"{where} differs\n  never frozen: {self.expected!r}\n  thawed:       {self.got!r}"


class _Models:
    """The program and the model, in one process."""

    def __init__(self, setting: Setting) -> None:
        self._device = open_device(setting.device)
        self.model = load_model(setting.model, self._device, kv_type=setting.kv_type)
        self.program = ActorProgram(guest("chat"))
        self.granted: dict[str, Any] = {"models": {"default": self.model}}
        self.store = DirectoryStore(setting.store)

    def __enter__(self) -> _Models:
        return self

    def __exit__(self, *_: object) -> None:
        self.model.close()
        self._device.close()

    def ask(self, actor: Actor, question: str) -> Reply:
        """Send a question, and wait for the whole reply."""
        text = actor.send(question).read()
        return Reply(text, self.model.tokenizer.encode(text.decode(errors="replace")))


def begin(setting: Setting, conversations: Sequence[Sequence[str]], args: Sequence[str]) -> list[list[Reply]]:
    """Make an actor for each conversation, store it, and have the conversation with it, without freezing it again."""
    with _Models(setting) as on:
        replies = []
        for number, questions in enumerate(conversations):
            with Actor(on.program, id=f"a{number}", args=args, **on.granted) as actor:
                with on.store.lease(actor.id) as lease, on.store.saving(actor.id, lease) as saving:
                    saving.commit(actor.freeze_into(saving).to_json())
                replies.append([on.ask(actor, question) for question in questions])
        return replies


def go_on(setting: Setting, questions: dict[int, str]) -> dict[int, Reply]:
    """Thaw each actor of these conversations from the store, send it its question, and store it again."""
    with _Models(setting) as on:
        replies = {}
        for number, question in questions.items():
            with on.store.lease(f"a{number}") as lease, on.store.load(f"a{number}", lease) as stored:
                snapshot = Snapshot(Manifest.from_json(stored.manifest), stored)
                with Actor.thaw(snapshot, on.program, **on.granted) as actor:
                    replies[number] = on.ask(actor, question)
                    with on.store.saving(actor.id, lease) as saving:
                        saving.commit(actor.freeze_into(saving).to_json())
        return replies


def in_a_new_process(function: Callable[..., T], *args: object) -> T:
    """What a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def converse(
    setting: Setting, devices: Sequence[str], conversations: Sequence[Sequence[str]], args: Sequence[str]
) -> list[Difference]:
    """Have all conversations, message by message; the first difference of each, after which it ends."""
    expected = in_a_new_process(begin, replace(setting, device=devices[0]), conversations, args)
    differences: list[Difference] = []
    for message in range(max(map(len, conversations))):
        ended = {found.conversation for found in differences}
        questions = {
            number: texts[message]
            for number, texts in enumerate(conversations)
            if message < len(texts) and number not in ended
        }
        here = replace(setting, device=devices[message % len(devices)])
        for number, got in in_a_new_process(go_on, here, questions).items():
            wanted = expected[number][message]
            if got.text != wanted.text:
                token = _common(got.tokens, wanted.tokens)
                differences.append(Difference(number, message, token, got.text, wanted.text))
    return differences


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def chosen(count: int, texts: Sequence[str], seed: int) -> list[list[str]]:
    """So many conversations of one to five random questions."""
    draw = random.Random(seed)
    return [[draw.choice(texts) for _ in range(draw.randint(1, 5))] for _ in range(count)]


def run(
    count: int,
    devices: Sequence[str],
    model: str | None = None,
    *,
    greedy: bool = False,
    raw: bool = False,
    kv_type: str | None = None,
    max_tokens: int = 8,
    seed: int = 1,
) -> tuple[int, list[Difference]]:
    """Have so many conversations: how many messages they have, and what differs. Without a model, with a tiny one."""
    conversations = chosen(count, QUESTIONS[0 if model else 1], seed)
    args = ("--max-tokens", str(max_tokens), *(("--greedy",) if greedy else SAMPLED), *["--raw"] * raw)
    with tempfile.TemporaryDirectory() as folder:
        model = model or str(write_tiny_llama(Path(folder, "tiny.gguf"), context=512))
        setting = Setting(str(Path(folder, "store")), model, kv_type)
        return sum(map(len, conversations)), converse(setting, devices, conversations, args)


def main() -> int:
    """The command line; the exit status is 1 if a reply differs on one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--device", action="append", help="several: messages go to one after the other")
    parser.add_argument("--model", help="[default: a small random one]")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--raw", action="store_true", help="for a model without a chat template")
    parser.add_argument("--kv-type", help="[default: the device's own]")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    devices, begun = options.device or ["cpu"], time.monotonic()
    messages, differences = run(
        options.conversations,
        devices,
        options.model,
        greedy=options.greedy,
        raw=options.raw,
        kv_type=options.kv_type,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    print(*differences, sep="\n", end="\n" if differences else "")
    seconds = time.monotonic() - begun
    print(f"{options.conversations} conversations, {messages} messages, {len(differences)} differ ({seconds:.0f} s)")
    return int(bool(differences) and len(devices) == 1)


if __name__ == "__main__":
    sys.exit(main())
