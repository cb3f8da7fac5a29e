"""All that a guest holds beside its stack and code is inside ``memory_bytes``, or a known part of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wasmetal import Guest, Limits
from wasmetal.errors import GuestError, LimitError
from wasmetal.host.runtime import runtime

PAGE = 65536
MIB = 1 << 20


def module(*fields: str) -> bytes:
    return f"(module {' '.join(fields)})".encode()


def test_memories_share_the_limit() -> None:
    code = module(
        '(memory $a (export "memory") 2) (memory $b 1)',
        '(func (export "a") (param i32) (result i32) (memory.grow $a (local.get 0)))',
        '(func (export "b") (param i32) (result i32) (memory.grow $b (local.get 0)))',
    )
    with Guest(code, limits=Limits(memory_bytes=5 * PAGE, memories=2)) as guest:
        assert guest.call("b", 3) == -1
        assert guest.call("b", 1) == 1
        assert guest.call("a", 2) == -1
        assert guest.call("a", 1) == 2
        assert guest.call("b", 1) == -1


def test_initial_memories_share_the_limit() -> None:
    with pytest.raises(LimitError, match="196608 bytes of linear memory"):
        Guest(module("(memory 2) (memory 2)"), limits=Limits(memory_bytes=3 * PAGE, memories=2))


def test_a_guest_that_failed_takes_nothing_from_the_next() -> None:
    for _ in range(3):
        with pytest.raises(LimitError):
            Guest(module("(memory 3)"), limits=Limits(memory_bytes=2 * PAGE))
        Guest(module("(memory 2)"), limits=Limits(memory_bytes=2 * PAGE)).close()


@pytest.mark.parametrize("kind", ["", "i64"])
def test_no_more_is_reserved_than_the_limit(kind: str) -> None:
    before = {region.address for region in runtime().creator.regions()}
    with Guest(module(f"(memory {kind} 1)"), limits=Limits(memory_bytes=MIB)):
        (region,) = [each for each in runtime().creator.regions() if each.address not in before]
        assert region.capacity == MIB


def test_growth_that_the_system_refuses_is_not_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    code = module('(memory (export "memory") 1) (func (export "grow") (result i32) (memory.grow (i32.const 1)))')

    def full(*_: object) -> None:
        raise MemoryError

    with Guest(code, limits=Limits(memory_bytes=2 * PAGE)) as guest:
        with monkeypatch.context() as patch:
            patch.setattr("wasmetal.memory.pages.Pages.open", full)
            assert guest.call("grow") == -1
        assert guest.call("grow") == 1


@pytest.mark.parametrize("kind", ["funcref", "externref"])
def test_tables(kind: str) -> None:
    """Each of the four grows to one element for each 2 KiB of the limit."""
    null = "func" if kind == "funcref" else "extern"
    code = module(
        f"(table $t 0 {kind}) (table 0 {kind}) (table 0 {kind}) (table 0 {kind})",
        f'(func (export "grow") (param i32) (result i32) (table.grow $t (ref.null {null}) (local.get 0)))',
    )
    with Guest(code, limits=Limits(memory_bytes=64 * MIB)) as guest:
        assert guest.call("grow", 32768) == 0
        assert guest.call("grow", 1) == -1
    with Guest(code, limits=Limits(memory_bytes=0)) as guest:
        assert guest.call("grow", 1024) == 0
        assert guest.call("grow", 1) == -1


def test_number_of_tables() -> None:
    Guest(module("(table 1 funcref)" * 4)).close()
    with pytest.raises(GuestError, match="table count too high"):
        Guest(module("(table 1 funcref)" * 5))


@pytest.mark.parametrize(
    "body",
    [
        '(type $a (array (mut i8))) (func (export "f") (drop (array.new_default $a (i32.const 1000000))))',
        '(tag $t) (func (export "f") (throw $t))',
        "(type $f (func)) (func (param (ref $f)) (call_ref $f (local.get 0)))",
    ],
    ids=["gc", "exceptions", "function references"],
)
def test_no_second_heap(body: str) -> None:
    with pytest.raises(GuestError):
        Guest(module(body))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory() -> None:
    """Linear memory and tables, all filled: what the system counts."""
    tables = "".join(f"(table $t{i} 0 funcref)" for i in range(4))
    grow = "".join(
        f"(loop (br_if 0 (i32.ne (table.grow $t{i} (ref.func $f) (i32.const 1024)) (i32.const -1))))" for i in range(4)
    )
    code = module(
        f'(memory (export "memory") 1) {tables} (func $f) (elem declare func $f)',
        f'(func (export "fill") (result i32) {grow} (drop (memory.grow (i32.const 2047)))',
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 134217728)) (memory.size))",
    )
    with Guest(code, limits=Limits(memory_bytes=128 * MIB)) as guest:
        before = resident()
        assert guest.call("fill") == 2048
        assert 128 * MIB <= resident() - before + 4 * MIB < (128 + 2 + 16) * MIB


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
