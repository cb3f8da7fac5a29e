from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from tests.serve.serving import Serving, serving
from wasmetal import load_embedder, load_model
from wasmetal.device import Device
from wasmetal.models import Embedder, Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.limits import ServerLimits


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("serve") / "tiny.gguf", context=4096, blocks=1)


@pytest.fixture(scope="session")
def tiny(tiny_path: Path, cpu: Device) -> Iterator[Model]:
    """A tiny model; what it says depends on nothing else that runs."""
    with load_model(tiny_path, cpu, contexts=9, deterministic=True) as model:
        yield model


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory, cpu: Device) -> Iterator[Embedder]:
    path = write_tiny_bert(tmp_path_factory.mktemp("serve") / "vectors.gguf")
    with load_embedder(path, cpu) as model:
        yield model


@pytest.fixture(scope="module")
def served(tiny: Model, embedder: Embedder) -> Iterator[Serving]:
    """Both, on a server."""
    with serving(Engine([tiny, embedder], ServerLimits(running=4, waiting=8))) as server:
        yield server
