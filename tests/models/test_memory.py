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


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))
