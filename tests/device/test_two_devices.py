"""Two devices in one process, with the same pages, threads and garbage: each computes as if it were alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.device.harness import Vectors, recorded
from tests.models.tiny import write_tiny_llama
from wasmetal import load_model
from wasmetal.device import Device, MemoryKind, open_device
from wasmetal.errors import DeviceError
from wasmetal.memory.region import Region

COUNT = 256

Pair = tuple[Device, Device]

PAIRS = [
    ("cpu", "vulkan:0"),
    ("vulkan:0", "vulkan:0"),
    ("vulkan:0", "vulkan:1"),
    ("cuda:0", "cuda:0"),
    ("cuda:0", "cuda:1"),
    ("cuda:1", "vulkan:0"),
]
"""Those of which a device is missing are skipped."""


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    opened: list[Device] = []
    try:
        for name in request.param:
            opened.append(open_device(name, "exact"))
        yield opened[0], opened[1]
    except DeviceError as error:
        pytest.skip(str(error))
    finally:
        for device in opened:
            device.close()


def test_pages_of_a_guest(pair: Pair) -> None:
    """Both use them in place; when one lets go of them, they are still the other's."""
    region = Region(1 << 20, 1 << 17)
    buffers = [device.wrap(region.aperture(0, region.size)) for device in pair]
    views = [Vectors(device, 4, COUNT, buffer=buffer) for device, buffer in zip(pair, buffers, strict=True)]
    for first, second in ((0, 1), (1, 0)):
        views[0].view(0)[:], views[0].view(1)[:] = 1, 2
        for which, operands in ((first, (0, 1, 2)), (second, (2, 2, 3))):
            device, vectors = pair[which], views[which]
            device.submit([recorded(device, tuple(vectors[i] for i in operands))]).wait(30)
        assert (views[0].view(3) == 6).all()
    pages = views[0].view(3)
    buffers[0].close()
    pair[0].close()
    del views[0], buffers[0]
    gc.collect()
    vectors = views[0]
    pair[1].submit([recorded(pair[1], (vectors[3], vectors[3], vectors[2]))]).wait(30)
    assert (vectors.view(2) == 2 * pages).all()
    buffers[0].close()
    region.close()


def doubled(device: Device, times: int) -> float:
    """1, doubled so many times by as many new lists in new memory, and by a list that is replayed."""
    vectors = Vectors(device, 1, COUNT, MemoryKind.DEVICE)
    vectors.write(0, 1.0)
    again = recorded(device, (vectors[0], vectors[0], vectors[0]))
    for _ in range(times // 2):
        other = Vectors(device, 2, COUNT, MemoryKind.DEVICE)
        once = recorded(device, (vectors[0], vectors[0], other[0]), (other[0], other[1], vectors[0]))
        device.submit([once]).wait(30)
        device.submit([again]).wait(30)
        once.close()
        other.buffer.close()
    return float(vectors.read(0).min())


def test_threads_at_once(pair: Pair) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda device: doubled(device, 60), pair * 2))
    assert results == [2.0**60] * 4


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_thread_waits_for_both(pair: Pair, order: Sequence[int]) -> None:
    """Garbage of either is collected while the other is given work."""
    for _ in range(10):
        made = []
        for device in pair:
            vectors = Vectors(device, 3, COUNT, MemoryKind.DEVICE)
            vectors.write(0, 1.0)
            vectors.write(1, 2.0)
            commands = recorded(device, (vectors[0], vectors[1], vectors[2]), (vectors[2], vectors[2], vectors[0]))
            made.append((vectors, commands, device.submit([commands])))
        for which in order:
            vectors, commands, submission = made[which]
            submission.wait(30)
            gc.collect()
            assert (vectors.read(0) == 6).all()
            commands.close()
        made.clear()


def test_a_model_on_each(pair: Pair, tmp_path: Path) -> None:
    """Loaded on both and run by turns, it gives the same logits."""
    path, tokens = write_tiny_llama(tmp_path / "tiny.gguf", qtype="Q8_0"), [7, 3, 200, 41, 5, 90]
    found: list[list[np.ndarray]] = [[], []]
    with load_model(path, pair[0], kv_type="f32") as one, load_model(path, pair[1], kv_type="f32") as other:
        models = one, other
        sessions = [model.session() for model in models]
        for begin in range(0, len(tokens), 2):
            for model, session, logits in zip(models, sessions, found, strict=True):
                out = model.logits()
                session.forward(tokens[begin : begin + 2], out)
                logits.append(out.numpy().copy())
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
