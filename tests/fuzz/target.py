"""What a fuzz target is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Protocol, cast

from wasmetal.errors import WasmetalError

NAMES = (
    *("host_calls", "wasi_calls", "modules", "actors", "manifests", "snapshots"),
    *("gguf_files", "hf_folders", "tokenizers", "chat_templates", "sessions", "batches"),
)
"""Every target: a module of ``tests.fuzz.targets``."""
CASES = Path(__file__).parent / "cases"
"""Inputs that are replayed by the tests, in a folder for each target: what was found once, and a few to begin with."""

Run = Callable[[bytes], "Counter[str]"]
"""Gives wasmetal one input. Returns how often what happened; raises whatever should not."""


class Target(Protocol):
    """A kind of input: how it is made, what is done with it, and what it may cost."""

    SECONDS: float
    """A case that takes longer is a finding. Generous, since machines are busy."""
    MEMORY: int
    """Resident bytes, of the process and those that it starts, beyond which a case is a finding."""

    def generate(self, random: Random) -> bytes:
        """The exact input of one case."""

    def opened(self, device: str) -> AbstractContextManager[Run]:
        """What many cases share, such as an open device, for as long as it is entered."""


def find(name: str) -> Target:
    """The target of that name."""
    return cast(Target, import_module(f"tests.fuzz.targets.{name}"))


def generate(name: str, seed: int, index: int) -> bytes:
    """The input of one case of a run: the same for the same arguments."""
    return find(name).generate(Random(f"{name} {seed} {index}"))


def refusal(stage: str, error: WasmetalError) -> str:
    """The outcome of a case that was refused. Fails if the message is not one line."""
    assert "\n" not in str(error), "a message of several lines"
    return f"{stage}: {type(error).__name__}"


def kept(name: str) -> list[Path]:
    """The target's kept cases."""
    return sorted((CASES / name).glob("*"))
