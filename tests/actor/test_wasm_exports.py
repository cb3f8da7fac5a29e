"""The rewriter of modules: what it exports runs as before, and what is malformed is one clear error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from wasmetal.actor.wasm_binary import ValueType, leb
from wasmetal.actor.wasm_exports import PREFIX, START, export_state
from wasmetal.errors import GuestError
from wasmetal.host.runtime import runtime

GUESTS = Path(__file__).parents[2] / "guests"
EVERYTHING = """(module
  (type $unit (func))
  (import "wasmetal_actor" "random_fill" (func $random (param i32 i32) (result i32)))
  (table $fixed 2 funcref)
  (table $outside 1 4 externref)
  (memory $first 1 3)
  (memory (export "memory") 2)
  (global $a (mut i32) (i32.const 7))
  (global $b i64 (i64.const -1))
  (global $c (mut f32) (f32.const nan:0x200001))
  (global $d (mut f64) (f64.const -0))
  (global $e (mut v128) (v128.const i32x4 1 2 3 4))
  (global $f (mut funcref) (ref.func $g))
  (global $h (mut externref) (ref.null extern))
  (elem (table $fixed) (i32.const 0) func $g $start)
  (elem declare func $declared)
  (elem $passive funcref (ref.func $g) (ref.null func))
  (data (memory $first) (i32.const 8) "initial")
  (func $g)
  (func $start (global.set $a (i32.add (global.get $a) (i32.const 1))))
  (func $declared)
  (func (export "swap") (table.set $fixed (i32.const 0) (ref.func $declared)))
  (start $start))"""


def names(module: bytes) -> set[str]:
    return {each.name for each in wasmtime.Module(runtime().engine, module).exports}


def test_all_state_is_exported_under_reserved_names() -> None:
    module, state = export_state(bytes(wasmtime.wat2wasm(EVERYTHING)))
    kinds = [ValueType.I32, ValueType.F32, ValueType.F64, ValueType.V128, ValueType.FUNCREF, ValueType.EXTERNREF]
    assert state.globals == dict(zip([0, 2, 3, 4, 5, 6], kinds, strict=True))
    assert state.memories == 2
    assert state.memory == 1
    assert state.starts
    assert [(table.kind, table.changes) for table in state.tables] == [
        (ValueType.FUNCREF, True),
        (ValueType.EXTERNREF, True),
    ]
    assert state.functions == (1, 2, 3, 4)  # $random is imported, and nothing refers to it
    added = {*(f"global:{i}" for i in state.globals), "memory:0", "memory:1", "table:0", "table:1"}
    added |= {f"function:{i}" for i in state.functions}
    assert names(module) == {"memory", "swap", START, *(PREFIX + name for name in added)}


def test_the_start_function_does_not_run_by_itself() -> None:
    text = "(module (global $n (mut i32) (i32.const 1)) (func $s (global.set $n (i32.const 2))) (start $s))"
    module, _ = export_state(bytes(wasmtime.wat2wasm(text)))
    store = wasmtime.Store(runtime().engine)
    store.set_epoch_deadline(1 << 40)
    exports = wasmtime.Instance(store, wasmtime.Module(runtime().engine, module), []).exports(store)
    number, start = exports[PREFIX + "global:0"], exports[START]
    assert isinstance(number, wasmtime.Global)
    assert isinstance(start, wasmtime.Func)
    assert number.value(store) == 1
    start(store)
    assert number.value(store) == 2


def test_a_module_without_an_export_section_gets_one_in_its_place() -> None:
    for text in ("(module)", "(module (memory 1))", '(module (memory 1) (data (i32.const 0) "x"))'):
        module, state = export_state(bytes(wasmtime.wat2wasm(text)))
        assert names(module) == {PREFIX + f"memory:{i}" for i in range(state.memories)}


@pytest.mark.parametrize("name", ["chat", "tree", "matmul", "attacker"])
def test_guests_keep_their_exports_and_code(name: str) -> None:
    code = (GUESTS / f"{name}.wasm").read_bytes()
    module, state = export_state(code)
    assert names(module) == names(code) | {PREFIX + "memory:0", PREFIX + "global:0"}
    assert state.functions == ()  # no table changes, so references need no names


@pytest.mark.skipif(not shutil.which("wasm-objdump"), reason="needs wabt")
def test_wabt_finds_the_same_state(tmp_path: Path) -> None:
    binary = tmp_path / "module.wasm"
    binary.write_bytes(export_state((GUESTS / "chat.wasm").read_bytes())[0])
    listing = subprocess.run(
        ["wasm-objdump", "-x", "-j", "Export", binary], capture_output=True, text=True, check=True
    ).stdout
    assert f'memory[0] -> "{PREFIX}memory:0"' in listing
    assert f'global[0] -> "{PREFIX}global:0"' in listing


def test_the_exports_of_an_exporting_module_are_reserved() -> None:
    module, _ = export_state(bytes(wasmtime.wat2wasm("(module (memory 1))")))
    with pytest.raises(GuestError, match="reserved"):
        export_state(module)


@pytest.mark.parametrize("item", ["(memory 1)", "(table 1 funcref)", "(global i32)"])
def test_only_functions_can_be_imported(item: str) -> None:
    with pytest.raises(GuestError, match=r"a\.b is a \w+; a guest can import functions only"):
        export_state(bytes(wasmtime.wat2wasm(f'(module (import "a" "b" {item}))')))


@pytest.mark.parametrize(("segment", "drop"), [('(data "x") (memory 1)', "data.drop"), ("(elem func)", "elem.drop")])
def test_dropping_a_segment_is_refused(segment: str, drop: str) -> None:
    with pytest.raises(GuestError, match=rf"{drop} in the code.*no snapshot records"):
        export_state(bytes(wasmtime.wat2wasm(f"(module {segment} (func ({drop} 0)))")))


HEADER = b"\0asm\1\0\0\0"


def section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb(len(content)) + content


@pytest.mark.parametrize(
    ("module", "complaint"),
    {
        "empty": (b"", "ends early"),
        "a component": (b"\0asm\x0d\0\1\0", "core module"),
        "a section past the end": (HEADER + b"\5\x7f", "ends early"),
        "a section's size of 2^40": (HEADER + b"\5\xff\xff\xff\xff\xff\xff\0", "too large"),
        "sections in the wrong order": (HEADER + section(5, b"\0") + section(4, b"\0"), "too late"),
        "a section twice": (HEADER + section(5, b"\0") * 2, "too late, or twice"),
        "an unknown section": (HEADER + section(99, b""), "section 99"),
        "4 billion memories": (HEADER + section(5, b"\xff\xff\xff\xff\x0f"), "items; there is room for 0"),
        "more in a section than it says": (HEADER + section(5, b"\0\0"), "longer than"),
        "limits with unknown flags": (HEADER + section(5, b"\1\x08\1"), "flags 0x8"),
        "a table of numbers": (HEADER + section(4, b"\1\x7f\0\1"), "a table of I32"),
        "an unknown value type": (HEADER + section(6, b"\1\x40\0\x41\0\x0b"), "value type 0x40"),
        "a constant with a call": (HEADER + section(6, b"\1\x7f\1\x10\0\x0b"), "0x10 in a constant"),
        "a constant without an end": (HEADER + section(6, b"\1\x7f\1\x41\0"), "ends early"),
        "an export of nothing": (HEADER + section(7, b"\1\1x\0\0"), "nothing that the module has"),
        "a start function that is not there": (HEADER + section(8, b"\0"), "no function 0"),
        "an element of the ninth form": (HEADER + section(9, b"\1\x08"), "form 8"),
        "a name that is not UTF-8": (HEADER + section(7, b"\1\1\xff\0\0"), "not UTF-8"),
        "a body past the end": (HEADER + section(10, b"\1\x7f"), "ends early"),
        "an unknown instruction": (HEADER + section(10, b"\1\2\0\xff"), "0xff"),
        "a br_table without labels": (HEADER + section(10, b"\1\3\0\x0e\xff"), "ends early"),
    }.values(),
)  # fmt: skip
def test_what_is_malformed_is_named(module: bytes, complaint: str) -> None:
    with pytest.raises(GuestError, match=complaint):
        export_state(module)


SEEDS = [bytes(wasmtime.wat2wasm(EVERYTHING)), (GUESTS / "sampler.wasm").read_bytes()]


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), st.data())
def test_no_bytes_break_the_parser(seed: bytes, changes: list[tuple[int, int]], data: st.DataObject) -> None:
    """Whatever Wasmtime accepts of what comes out, it accepted of what went in: the rewriter mends nothing."""
    code = bytearray(seed)
    for where, value in changes:
        code[where % len(code)] = value
    code = code[: data.draw(st.integers(0, len(code)) | st.just(len(code)))]
    try:
        module, _ = export_state(bytes(code))
    except GuestError:
        return
    engine = runtime().engine

    def valid(binary: bytes) -> bool:
        try:
            wasmtime.Module.validate(engine, binary)
        except wasmtime.WasmtimeError:
            return False
        return True

    assert valid(module) == valid(bytes(code))
