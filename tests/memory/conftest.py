"""What the memory tests share: what the system says of our pages, and small guests on the product's own engine."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from wasmetal.memory.creator import MemoryCreator
from wasmetal.memory.region import Region
from wasmetal.memory.wasmtime_engine import new_engine

MAPS = Path("/proc/self/maps")


@pytest.fixture
def access() -> Callable[[int], str]:
    """The system's word on one address: "rw-p", "---p", or "" where nothing is mapped."""
    if not MAPS.exists():
        pytest.skip("no /proc/self/maps on this system")

    def look_up(address: int) -> str:
        for line in MAPS.read_text().splitlines():
            span, permissions = line.split()[:2]
            start, end = (int(bound, 16) for bound in span.split("-"))
            if start <= address < end:
                return permissions
        return ""

    return look_up


@dataclass
class Guest:
    """One instance, and the shortest way to what it exports."""

    creator: MemoryCreator
    store: wasmtime.Store
    instance: wasmtime.Instance

    def call(self, name: str, *arguments: Any) -> Any:
        return self.instance.exports(self.store)[name](self.store, *arguments)

    def address(self, memory: str = "memory") -> int:
        exported = self.instance.exports(self.store)[memory]
        return ctypes.addressof(exported.data_ptr(self.store).contents)

    def region(self, memory: str = "memory") -> Region:
        return self.creator.region_at(self.address(memory))


@pytest.fixture
def creator() -> MemoryCreator:
    return MemoryCreator()


@pytest.fixture
def engine(creator: MemoryCreator) -> wasmtime.Engine:
    return new_engine(creator)


@pytest.fixture
def load(creator: MemoryCreator, engine: wasmtime.Engine) -> Callable[[str], Guest]:
    """Instantiate a module, given as text, in a store of its own."""

    def instantiate(text: str, **limits: int) -> Guest:
        store = wasmtime.Store(engine)
        store.set_epoch_deadline(1)
        store.set_limits(**limits)
        return Guest(creator, store, wasmtime.Instance(store, wasmtime.Module(engine, text), []))

    return instantiate


@pytest.fixture
def python() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a program in an interpreter of its own, for what would end this one."""

    def run(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)

    return run


def accessors(memory: str, index: str) -> str:
    """Functions load_NAME, store_NAME (one byte), grow_NAME and size_NAME for one memory of a module."""
    return f"""
      (func (export "load_{memory}") (param {index}) (result i32) (i32.load8_u ${memory} (local.get 0)))
      (func (export "store_{memory}") (param {index} i32) (i32.store8 ${memory} (local.get 0) (local.get 1)))
      (func (export "grow_{memory}") (param {index}) (result {index}) (memory.grow ${memory} (local.get 0)))
      (func (export "size_{memory}") (result {index}) (memory.size ${memory}))"""
