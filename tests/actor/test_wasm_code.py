"""The scan of instructions knows where each begins, whatever its immediates: compared with what wabt assembles."""

from __future__ import annotations

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from wasmetal.actor.wasm_exports import export_state

# Each leaves the stack as it was. Immediates hold bytes that are opcodes of table.set (0x26) and of the prefix (0xfc).
HARMLESS = (
    "(drop (i32.const 0x26))",
    "(drop (i32.const -62))",
    "(drop (i64.const 0xfc0dfc0926))",
    "(drop (f32.const 1.1e-30))",
    "(drop (f64.const 0x1.cfcfc26262626p+1))",
    "(drop (v128.const i8x16 0xfc 0x0d 0x26 0xfc 9 0x26 0xfc 0x0c 0xfc 0x0e 0xfc 0x0f 0xfc 0x11 0x26 0x26))",
    "(drop (i8x16.shuffle 9 13 31 30 1 2 3 4 5 6 7 8 9 10 11 12 (v128.const i64x2 1 2) (v128.const i64x2 3 4)))",
    "(drop (i32x4.extract_lane 2 (v128.load offset=0xfc26 align=4 (i32.const 0))))",
    "(drop (v128.load8_lane offset=38 13 (i32.const 0) (v128.const i64x2 1 2)))",
    "(v128.store64_lane $other offset=38 1 (i32.const 0) (v128.const i64x2 1 2))",
    "(drop (v128.load32_zero (i32.const 0)))",
    "(drop (i32x4.trunc_sat_f64x2_u_zero (v128.const f64x2 1 2)))",
    "(drop (i32x4.relaxed_trunc_f32x4_s (v128.const f32x4 1 2 3 4)))",
    "(drop (i16x8.relaxed_dot_i8x16_i7x16_s (v128.const i64x2 1 2) (v128.const i64x2 1 2)))",
    "(drop (i32.load $other offset=9999 (i32.const 0)))",
    "(i64.store offset=0x26fc (i32.const 0) (i64.const 38))",
    "(drop (memory.size $other))",
    "(drop (memory.grow (i32.const 0)))",
    "(memory.copy $other 0 (i32.const 0) (i32.const 0) (i32.const 0))",
    "(memory.fill $other (i32.const 0) (i32.const 0) (i32.const 0))",
    "(memory.init $other 0 (i32.const 0) (i32.const 0) (i32.const 0))",
    "(block (block (block (br_table 0 1 2 0 1 (i32.const 1)))))",
    "(block (br_if 0 (i32.const 38)))",
    "(loop (if (i32.const 0) (then (br 1)) (else (nop))))",
    "(drop (if (result i32) (i32.const 1) (then (i32.const 38)) (else (i32.const 252))))",
    "(drop (select (result i32) (i32.const 1) (i32.const 2) (i32.const 38)))",
    "(drop (select (i64.const 1) (i64.const 2) (i32.const 38)))",
    "(call $f)",
    "(call_indirect 0 (type $unit) (i32.const 0))",
    "(drop (ref.is_null (table.get 0 (i32.const 0))))",
    "(drop (ref.func $f))",
    "(drop (ref.null extern))",
    "(drop (table.size 0))",
    "(drop (i32.trunc_sat_f64_u (f64.const 38)))",
    "(drop (i64.extend8_s (i64.const 38)))",
    "(drop (f64.promote_f32 (f32.copysign (f32.const 1) (f32.const 2))))",
    "(drop (i32x4.dot_i16x8_s (v128.const i64x2 1 2) (v128.const i64x2 1 2)))",
    "(local.set 1 (local.tee 1 (local.get 1)))",
    "(global.set $g (global.get $g))",
    "(if (i32.const 0) (then (return_call $f)))",
    "(if (i32.const 0) (then (return_call_indirect 0 (type $unit) (i32.const 0))))",
    "(if (i32.const 0) (then unreachable))",
    "(if (i32.const 1) (then return))",
)
CHANGES = (
    "(table.set 0 (i32.const 0) (ref.null func))",
    "(drop (table.grow 0 (ref.null func) (i32.const 0)))",
    "(table.fill 0 (i32.const 0) (ref.null func) (i32.const 0))",
    "(table.copy 0 1 (i32.const 0) (i32.const 0) (i32.const 0))",
    "(table.init 0 $e (i32.const 0) (i32.const 0) (i32.const 0))",
)


def changes(body: str) -> bool:
    text = f"""(module (type $unit (func)) (memory 1) (memory $other 1) (table 1 funcref) (table 1 funcref)
        (global $g (mut i32) (i32.const 0)) (data "x") (elem $e func $f) (elem declare func $f)
        (func $f (param) (local i64 f32 v128) {body}))"""
    _, state = export_state(bytes(wasmtime.wat2wasm(text)))
    return any(table.changes for table in state.tables)


@pytest.mark.parametrize("instruction", HARMLESS)
def test_what_changes_no_table(instruction: str) -> None:
    assert not changes(instruction)


@pytest.mark.parametrize("instruction", CHANGES)
def test_what_changes_a_table(instruction: str) -> None:
    assert changes(instruction)


@given(st.lists(st.sampled_from(HARMLESS + CHANGES), max_size=30))
def test_a_change_is_found_wherever_it_stands(body: list[str]) -> None:
    assert changes(" ".join(body)) == any(each in CHANGES for each in body)
