"""What a decoded token costs the host: the number of Objective-C calls, and that no new objects are passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.metal.standin import bridge
from tests.metal.standin.framework import ComputeCommandEncoder
from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device
from wasmetal.models import Model, load_model

PER_STEP = 12
"""Calls of a submission and its wait: a command buffer, an encoder, an event, the times."""
PER_DISPATCH = 9
"""A pipeline, a barrier, the dispatch, and the buffers that differ from the last kernel's."""


@pytest.fixture(params=[2, 5])
def model(request: pytest.FixtureRequest, emulated: Device, tmp_path: Path) -> Iterator[Model]:
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf", blocks=request.param), emulated) as loaded:
        yield loaded


def decode(model: Model, tokens: int) -> Counter[str]:
    """The calls for decoding ``tokens`` tokens, after a warm-up that is not counted."""
    with model.session() as session:
        logits = model.logits()
        for token in (5, 6):
            session.forward([token], logits)
        before = Counter(bridge.calls)
        dispatches = model.device.counters.dispatches
        for token in range(tokens):
            session.forward([token], logits)
        assert model.device.counters.dispatches == dispatches + tokens * (2 + 1 + 6 * model.config.block_count)
        # How often residency is requested depends on time, not on tokens (test_metal_residency.py).
        return Counter({name: count for name, count in (bridge.calls - before).items() if name != "requestResidency"})


def test_calls_per_token(model: Model) -> None:
    one = decode(model, 1)
    kernels = one["dispatchThreadgroups:threadsPerThreadgroup:"]
    print(f"{model.config.block_count} layers: {one.total()} calls per token, {kernels} kernels")
    assert one.total() <= PER_STEP + PER_DISPATCH * kernels
    assert one["commit"] == one["commandBufferWithUnretainedReferences"] == 1
    assert one["waitUntilSignaledValue:timeoutMS:"] == 1
    assert Counter({name: 7 * count for name, count in one.items()}) == decode(model, 7)


def test_nothing_is_made_for_a_token(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer, pipeline or struct: every argument to the encoder is the same object as for the token before."""
    seen: list[tuple[object, ...]] = []
    names = [name for name in vars(ComputeCommandEncoder) if name.endswith("_") and name[0] != "_"]
    for name in names:
        method = getattr(ComputeCommandEncoder, name)

        def spy(self: object, *arguments: object, method: object = method) -> object:
            seen.append(arguments)
            return method(self, *arguments)

        monkeypatch.setattr(ComputeCommandEncoder, name, spy)
    calls = decode(model, 2)
    assert not [name for name in calls if name.startswith(("new", "MTL")) or name in ("addAllocation:", "contents")]
    # The second token is encoded twice, once ahead of the third; and each after that, ahead of the next.
    each = len(seen) // 5
    last, before = seen[4 * each :], seen[3 * each : 4 * each]
    assert len(last) == len(before) > 0
    for one, other in zip(last, before, strict=True):
        assert all(a is b for a, b in zip(one, other, strict=True))
