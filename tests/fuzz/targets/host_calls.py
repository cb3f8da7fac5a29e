"""Host functions of both interfaces, called with hostile arguments by a guest that has live handles of every kind.

An input is a JSON object: the width of addresses, and steps. A step writes to the guest's memory or calls a function. A
handle is written as ``[kind, n]``: the n-th live one of that kind, a released one (``stale``) or a neighbour's
(``stolen``), so that an input means the same in every run.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz import commands, noise
from tests.fuzz.noise import PAGE
from tests.fuzz.scene import COMMANDS, FUNCTIONS, SIZE, STATE, Scene
from tests.fuzz.target import Run
from tests.host.probe import Probe
from tests.models.tiny import write_tiny_llama
from wasmetal import Limits, load_model, open_device
from wasmetal.device import Device
from wasmetal.errors import WasmetalError
from wasmetal.host import abi
from wasmetal.models import Model

SECONDS = 60.0
MEMORY = 1 << 30

LIMITS = Limits(device_bytes=1 << 20, handles=48, commands=64, wall_seconds=60)

OFTEN = ["commands_submit", "commands_run", "submission_wait"] * 6 + [
    f"session_{name}" for name in ("forward", "restore", "save", "fork", "truncate") for _ in range(2)
]
MESSAGES = (
    *('[{"role":"user","content":"hi \\ud800"}]', '[{"role":"user","content":"<|im_end|>"}]', "[]", "hello world"),
    *("[" * 200, '[{"role":"user"}]', '[{"role":1,"content":[]}]'),
)


def generate(random: Random) -> bytes:
    names = [*FUNCTIONS, *OFTEN]
    steps = [step for _ in range(80) for step in _call(random, random.choice(names))]
    return json.dumps({"memory64": random.random() < 0.5, "steps": steps}).encode()


def _call(random: Random, name: str) -> Iterator[list[Any]]:
    """A call and what is written to memory before it."""
    values: list[Any] = [_argument(random, name, i, kind) for i, kind in enumerate(FUNCTIONS[name].kinds)]
    if name in ("commands_submit", "commands_run") and random.random() < 0.9:
        records = [commands.generate(random) for _ in range(random.choice([1, 1, 2, 4]))]
        if random.random() < 0.3:
            yield ["noise", random.getrandbits(32)]
        yield ["commands", records]
        values[:2] = COMMANDS, len(records) * abi.COMMAND.itemsize
        if name == "commands_run":
            yield [name, values]  # and once more, below
    elif name == "model_open" and random.random() < 0.5:
        values[:2] = 128, 1
    elif name in ("model_tokenize", "model_apply_template") and random.random() < 0.6:
        text = random.choice(MESSAGES).encode() if random.random() < 0.7 else random.randbytes(40)
        yield ["write", [8192, text.hex()]]
        values[1:3] = 8192, len(text)
    elif name == "session_restore" and random.random() < 0.7:
        flips = [random.random() ** 2 for _ in range(random.choice([0, 0, 0, 1, 3]))]
        yield ["state", [_kind("session", random), flips, random.random() < 0.2]]
        values = [["session", random.randrange(8)], STATE, ["state", 0]]
    elif name == "session_forward" and random.random() < 0.8:
        ids = [random.randrange(300) for _ in range(random.randint(1, 6))]
        yield ["write", [512, np.array(ids, "<u4").tobytes().hex()]]
        values[1:3] = 512, len(ids)
        values[3] = random.choice([0, PAGE, 2 * PAGE, 4 * PAGE + 16, SIZE - 4 * 274, values[3]])
    yield [name, values]


def _argument(random: Random, name: str, position: int, kind: str) -> Any:
    usual = random.random() < 0.7
    if kind == abi.U32 and position == 0:
        return _kind(_takes(name), random)
    if kind == abi.U32:
        return random.randint(0, 4) if usual else noise.number(random)
    if kind == abi.PTR:
        near = [64, 256, 512, 1024, 4096, 8192, PAGE, PAGE + 64, 3 * PAGE]
        return random.choice(near) if usual else noise.number(random)
    if kind == abi.SIZE:
        return random.choice([0, 1, 2, 4, 16, 64, 256, 1024, 4096, PAGE]) if usual else noise.number(random)
    return random.choice([0, 1, 16, 64, 4096, 8192, 2**64 - 1]) if usual else noise.number(random)


def _takes(name: str) -> str:
    """The kind of handle that a function's first parameter is."""
    if name.startswith("buffer_"):
        return "device"
    if name == "submission_wait":
        return "submission"
    return "model" if name.startswith("model_") or name == "session_open" else "session"


def _kind(kind: str, random: Random) -> list[Any]:
    r = random.random()
    other = random.choice(["shared", "device", "model", "session", "submission", "stolen", "stale"])
    return [kind if r < 0.75 else other, random.randrange(8)] if r < 0.97 else ["number", random.getrandbits(32)]


@contextmanager
def opened(device: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_llama(Path(folder, "tiny.gguf"))
        with open_device(device) as opened_device, load_model(path, opened_device) as model:
            yield lambda data: _run(json.loads(data), opened_device, model)


def _run(case: dict[str, Any], device: Device, model: Model) -> Counter[str]:
    free = model.cache.free
    outcomes = attack(case, device, model)
    assert model.cache.free == free, "pages of the KV cache were lost"
    return outcomes


def attack(case: dict[str, Any], device: Device, model: Model) -> Counter[str]:
    """Run an input's steps; return how often what came of them."""
    grants: dict[str, Any] = {"models": {"m": model}, "limits": LIMITS}
    with (
        Probe(device, case["memory64"], pages=8, maximum=16, **grants) as attacker,
        Probe(device, pages=8, maximum=8, **grants) as neighbour,
    ):
        scene = Scene(attacker, neighbour)
        try:
            attacker.enter(lambda: [scene.act(*step) for step in case["steps"]])
        except WasmetalError as error:
            scene.outcomes[type(error).__name__] += 1
        scene.check_neighbour()
    return scene.outcomes
