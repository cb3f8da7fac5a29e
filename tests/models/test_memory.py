"""What a loaded model keeps in memory, and what it does not."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from tests.security.apart import run_apart
from wasmetal.device import Device
from wasmetal.models import Embedder, Model
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.resident import resident_bytes


@pytest.mark.parametrize(("write", "model"), [(write_tiny_llama, Model), (write_tiny_bert, Embedder)])
def test_the_file_is_given_up(cpu: Device, tmp_path: Path, write: Callable[..., Path], model: Any) -> None:
    """A vocabulary takes tens of MiB, and every part of a split model a descriptor."""
    file = GGUFFile(write(tmp_path / "tiny.gguf"))
    file_gone, source_gone = weakref.ref(file), weakref.ref(file.sources[0])
    with model(file, "tiny", cpu):
        del file
        gc.collect()
        assert file_gone() is source_gone() is None


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_resident_memory(smollm2: Path) -> None:
    """Weights are in the file's pages, and little else takes memory: about 0.18 of the file and the KV cache."""
    resident, needed = map(int, run_apart(decode, str(smollm2)).split())
    assert resident < 1.25 * needed


def decode(path: str) -> None:
    """In a process of its own: print what loading a model and decoding 100 tokens added to its resident memory, and
    the bytes of the model's file and of the positions in its KV cache.
    """
    from wasmetal import load_model, open_device

    with open_device("cpu") as device:
        before = resident_bytes()
        with load_model(path, device) as model, model.session() as session:
            logits = model.logits()
            for token in range(100):
                session.forward([token], logits)
            file = Path(path).stat().st_size if device.info.wraps_files else 1 << 40
            print(resident_bytes() - before, file + 100 * model.cache.position_bytes)


VULKAN = pytest.mark.vulkan


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("name", "tokens"), [("cpu", 10_000), pytest.param("vulkan", 1_500, marks=VULKAN)])
def test_thousands_of_tokens(request: pytest.FixtureRequest, name: str, tokens: int) -> None:
    """Neither the process nor the device holds more after them."""
    device = request.getfixturevalue(name)  # skips, or fails, if there is none
    before, after, buffers = map(int, run_apart(decode_many, device.info.spec, str(tokens), timeout=500).split())
    assert after - before < 16 << 20  # 2 KiB for each token would be more
    assert buffers <= 8  # a few that nobody has closed yet, whatever the number of tokens


def decode_many(spec: str, tokens: str) -> None:
    """Four guests and a session on threads decode so many tokens in all. Print the resident memory after a fifth and at
    the end, and how many device buffers there are more.
    """
    import ctypes
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    from tests.host.probe import Probe
    from wasmetal import load_model, open_device

    share = int(tokens) // 50
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-8, 1)  # one heap, or what the heaps of many threads keep would look like a leak
    with tempfile.TemporaryDirectory() as folder, open_device(spec) as device:
        path = write_tiny_llama(Path(folder, "tiny.gguf"), blocks=1, context=512)
        with load_model(path, device, contexts=6) as model, ThreadPoolExecutor(5) as threads:

            def guest(count: int) -> None:
                with Probe(device, models={"m": model}) as probe:
                    probe.put(128, b"m")
                    probe.model_open(128, 1, probe.OUT)
                    probe.session_open(probe.u32(), probe.OUT)
                    session = probe.u32()
                    for number in range(count):
                        if number % 400 == 0:
                            probe.session_truncate(session, 0)
                        if number % 2:
                            assert probe.session_forward(session, 512, 1, 1 << 17) == 0
                        else:
                            assert probe.session_forward_top(session, 512, 1, 1, 40, 1024, 2048) == 0

            def here(count: int) -> None:
                with model.session() as session:
                    logits = model.logits()
                    for number in range(count):
                        if number % 400 == 0:
                            session.truncate(0)
                        session.forward([number % 200], logits)

            def run(count: int) -> tuple[int, int]:
                list(threads.map(lambda work: work(count), [guest, guest, guest, guest, here]))
                gc.collect()
                return resident_bytes(), len(device._buffers)  # type: ignore[attr-defined]

            run(share)
            before, buffers = run(share)
            after, more = run(8 * share)
            print(before, after, more - buffers - 1)  # one array of logits lives as long as the model
