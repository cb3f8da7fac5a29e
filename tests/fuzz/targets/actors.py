"""Modules as actors: their state exported, a message handled, frozen and thawed. The thawed actor is the frozen one.

An input is a module, valid or damaged. The rewriter mends nothing: what comes out of it is as valid as what went in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random

import wasmtime

from tests.fuzz import noise, wat
from tests.fuzz.target import Run, refusal
from wasmetal import Actor, ActorProgram, Limits, Snapshot, open_device
from wasmetal.actor.manifest import Manifest, Used
from wasmetal.actor.wasm_exports import export_state
from wasmetal.device import Device
from wasmetal.errors import GuestError, WasmetalError
from wasmetal.host.runtime import runtime

SECONDS = 60.0
MEMORY = 2 << 30

LIMITS = Limits(memory_bytes=4 << 20, device_bytes=1 << 20, handles=16, commands=64, wall_seconds=0.2)
CHANGING = '(func (export "change") (table.set 0 (i32.const 0) (ref.null func)))'


def generate(random: Random) -> bytes:
    text = wat.module(random).replace('(export "_start")', '(export "_start") (export "wm_actor_message")')
    if random.random() < 0.4:
        text = f"{text.rstrip()[:-1]} {CHANGING})"
    module = bytes(wasmtime.wat2wasm(text))
    return noise.mutated(random, module) if random.random() < 0.4 else module


@contextmanager
def opened(device: str) -> Iterator[Run]:
    with open_device(device) as opened_device:
        yield lambda module: Counter([outcome(module, opened_device)])


def outcome(module: bytes, device: Device) -> str:
    """Take a module as far as it goes; return how far that is."""
    stage = "rewrite"
    try:
        rewritten, _ = export_state(module)
        assert _valid(rewritten) == _valid(module)
        stage = "compile"
        program = ActorProgram(module)
        stage = "start"
        with Actor(program, device=device, limits=LIMITS) as actor:
            stage = "message"
            handled = True
            try:
                actor.send("message").read()
            except GuestError:
                handled = False
            if not handled:
                return "message: failed"
            stage = "freeze"
            snapshot = actor.freeze()
            manifest = Manifest.from_json(json.loads(json.dumps(snapshot.manifest.to_json())))
            assert manifest == snapshot.manifest
            stage = "thaw"
            with Actor.thaw(Snapshot(manifest, snapshot.chunks), program, device=device, limits=LIMITS) as thawed:
                assert _lasting(thawed.freeze().manifest) == _lasting(manifest), "the thawed actor is another one"
    except WasmetalError as error:
        return refusal(stage, error)
    return "thawed"


def _lasting(manifest: Manifest) -> Manifest:
    """What does not change by itself."""
    return replace(manifest, clock=0, used=Used())


def _valid(module: bytes) -> bool:
    try:
        wasmtime.Module.validate(runtime().engine, module)
    except wasmtime.WasmtimeError:
        return False
    return True
