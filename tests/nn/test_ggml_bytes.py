"""GGUF models of the guest's own, given as bytes."""

from __future__ import annotations

import gc
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.host.probe import PAGE
from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from tests.nn.probe import OK, NnProbe
from wasmetal import Limits, NnModel, load_embedder
from wasmetal.device import Device
from wasmetal.nn.errors import NnErrno

AT = 8 * PAGE
OPTIONS = b'{"temp": 0, "n-predict": 6}'


class OwnProbe(NnProbe):
    """Has a model in its memory, and options behind it."""

    def give(self, model: bytes, options: bytes = OPTIONS) -> NnErrno:
        pages = -(-(AT + len(model) + len(options)) // PAGE)
        memory = self.guest._calls.enter(lambda: self.guest._memory(0, 0))
        if (missing := pages - memory.data_len(self.guest._store) // PAGE) > 0:
            self.guest._calls.enter(lambda: memory.grow(self.guest._store, missing))
        self.guest.write(AT, model + options)
        parts = struct.pack("<4I", AT, len(model), AT + len(model), len(options))
        self.put(self.TEXT, parts)
        return self.load(self.TEXT, 2, 6, 0, self.OUT)


def own(cpu: Device, most: int = 1 << 22, **limits: Any) -> OwnProbe:
    return OwnProbe(cpu, limits=Limits(nn_model_bytes=most, **limits))


def answer(probe: NnProbe, graph: int, prompt: bytes = b"hello") -> bytes:
    context = probe.context(graph)
    assert probe.set(context, 0, prompt) == OK
    assert probe.compute(context) == OK
    return probe.output(context)


def target(fd: str) -> str:
    """What a descriptor is of."""
    try:
        return os.readlink(f"/dev/fd/{fd}")
    except OSError:
        return ""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf")


def test_it_answers_as_a_granted_one(cpu: Device, tiny: Path) -> None:
    with NnProbe(cpu, nn={"m": NnModel(tiny, {"temp": 0, "n-predict": 6})}) as granted:
        expected = answer(granted, granted.graph())
    with own(cpu) as probe:
        account = probe.guest._account
        for _ in range(2):
            assert probe.give(tiny.read_bytes()) == OK
            graph = probe.u32()
            assert account.device_bytes > tiny.stat().st_size
            assert answer(probe, graph) == expected
            assert probe.unload(graph) == OK
            assert account.device_bytes == 0
        assert probe.give(tiny.read_bytes(), b"{}") == OK  # and is closed with the guest
    assert account.device_bytes == 0
    gc.collect()
    assert not [name for name in map(target, os.listdir("/dev/fd")) if "memfd:wasmetal" in name]


def test_an_embedding_model(cpu: Device, tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf")
    with load_embedder(path, cpu) as model:
        expected = model.embed(["a b"])[0]
    with own(cpu) as probe:
        assert probe.give(path.read_bytes()) == OK
        found = json.loads(answer(probe, probe.u32(), b"a b"))["embedding"]
    assert np.allclose(found, expected, atol=1e-6)


def test_refusals(cpu: Device, tiny: Path) -> None:
    content = tiny.read_bytes()
    with own(cpu, most=len(content) - 1) as probe:
        assert probe.give(content) == NnErrno.TOO_LARGE
        assert probe.give(content[:-1]) == NnErrno.INVALID_ENCODING
        assert probe.give(b"GGUF" + bytes(200)) == NnErrno.INVALID_ENCODING
        assert probe.guest._account.device_bytes == 0
    with OwnProbe(cpu) as probe:
        assert probe.give(content) == NnErrno.UNSUPPORTED_OPERATION
    with OwnProbe(limits=Limits(nn_model_bytes=1 << 22)) as probe:  # which has no device
        assert probe.give(content) == NnErrno.UNSUPPORTED_OPERATION
    split = content.replace(b"general.name", b"split.count0")  # another key of as many bytes, of the wrong type
    with own(cpu) as probe:
        assert probe.give(split) in (OK, NnErrno.INVALID_ENCODING)


def test_all_that_it_takes_is_charged(cpu: Device, tiny: Path) -> None:
    content = tiny.read_bytes()
    with own(cpu) as probe:
        assert probe.give(content) == OK
        most = probe.guest._account.device_bytes
    for limit in (len(content) - 1, len(content) + 4096, most // 2, most - 1):
        with own(cpu, device_bytes=limit) as probe:
            assert probe.give(content) == NnErrno.TOO_LARGE
            assert probe.guest._account.device_bytes == 0
    with own(cpu, device_bytes=most) as probe:
        assert probe.give(content) == OK
