"""Random conversations whose actor is thawed by a new process for every message, on one device or on several in turn.

Each reply must be that of an actor that is never frozen, on the first device. ::

    python -m tests.actor.moves --conversations 100 --device cpu
    python -m tests.actor.moves --conversations 5 --greedy --device cpu --device vulkan --model smollm2:135m

On several devices replies may differ once the logits of two tokens are as close as the devices' are to each other: then
the first difference is printed, and counted.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

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


@dataclass
class Difference:
    """Where a reply differs from the one that is expected."""

    message: int
    same: int
    """Bytes that the two have in common."""
    got: bytes
    expected: bytes


def converse(
    program: ActorProgram, model: str, devices: Sequence[str], args: Sequence[str], questions: Sequence[str], kv: str
) -> Difference | None:
    """One conversation; the first difference, after which it ends."""
    with tempfile.TemporaryDirectory() as folder:
        common = ("--store", folder, "--model", f"default={model}", "--kv-type", kv)
        _wasmetal("freeze", "--id", "a", "--device", devices[0], *common, "chat", *args)
        expected = []
        with (
            open_device(devices[0]) as device,
            load_model(model, device, kv_type=kv) as loaded,
            DirectoryStore(folder).load("a") as stored,
        ):
            snapshot = Snapshot(Manifest.from_json(stored.manifest), stored)
            with Actor.thaw(snapshot, program, models={"default": loaded}) as actor:
                expected = [actor.send(question).read() for question in questions]
        for number, (question, wanted, spec) in enumerate(zip(questions, expected, cycle(devices), strict=False)):
            got = _wasmetal("send", "--device", spec, *common, "a", question)
            if got != wanted:
                return Difference(number, _common(got, wanted), got, wanted)
    return None


def _common(one: bytes, other: bytes) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _wasmetal(*arguments: str) -> bytes:
    command = [Path(sys.executable).with_name("wasmetal"), "actor", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=600).stdout


def main() -> int:
    """The command line; the exit status is 1 if a reply differs on one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--device", action="append", help="several: messages go to one after the other")
    parser.add_argument("--model", help="[default: a small random one]")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--kv-type", default="f32")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chosen, devices = random.Random(options.seed), options.device or ["cpu"]
    program = ActorProgram(guest("chat"))
    messages = differing = 0
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(write_tiny_llama(Path(folder, "tiny.gguf"), context=512))
        for number in range(1, options.conversations + 1):
            texts = QUESTIONS[0 if options.model else 1]
            questions = [chosen.choice(texts) for _ in range(chosen.randint(1, 5))]
            args = ("--max-tokens", str(options.max_tokens), *(("--greedy",) if options.greedy else SAMPLED))
            found = converse(program, model, devices, args, questions, options.kv_type)
            messages += found.message + 1 if found else len(questions)
            if found:
                differing += 1
                print(f"conversation {number}, message {found.message + 1}: the first {found.same} bytes agree, then")
                print(f"  never frozen: {found.expected!r}\n  thawed:       {found.got!r}")
            if number % 10 == 0 or number == options.conversations:
                print(f"{number} conversations, {messages} messages, {differing} differ", flush=True)
    return int(differing > 0 and len(devices) == 1)


if __name__ == "__main__":
    sys.exit(main())
