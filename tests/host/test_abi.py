"""The C compiler and the host agree about the ABI, and the generated files are current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import wasmtime

from wasmetal import Guest, sdk
from wasmetal.host import abi
from wasmetal.host.abi.__main__ import generate, main
from wasmetal.host.abi.schema import Constant, Direction, Enumeration, Ops, Param, Struct
from wasmetal.host.errno import Errno

ITEMS = [item for interface in abi.DESCRIPTION for item in interface.items]
FUNCTIONS = [function for interface in abi.DESCRIPTION for function in interface.functions]

wasm32_and_wasm64 = pytest.mark.parametrize("memory64", [False, True], ids=["wasm32", "wasm64"])


def compile_c(folder: Path, source: str, memory64: bool) -> Path:
    """A module made of C alone, with no C library."""
    target = "wasm64-freestanding" if memory64 else "wasm32-freestanding"
    (folder / "probe.c").write_text(f'#include "wasmetal.h"\n{source}')
    flags = ["-target", target, "-nostdlib", "-Wl,--no-entry", "-Wall", "-Wextra", "-Werror", "-I", sdk.INCLUDE]
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", *flags, "probe.c", "-o", "probe.wasm"], cwd=folder, check=True
    )
    return folder / "probe.wasm"


def test_generated_files_are_current() -> None:
    for path, text in generate().items():
        assert (sdk.FOLDER / path).read_text() == text, f"{path}: run make abi"
        assert "Generated" in text.partition("\n")[0]


def test_a_stale_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("include", "witx"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(sys, "argv", ["abi"])
    assert main(tmp_path) == 0
    monkeypatch.setattr(sys, "argv", ["abi", "--check"])
    assert main(tmp_path) == 0
    header = tmp_path / "include" / "wasmetal.h"
    header.write_text(header.read_text().replace("WM_TOOBIG 1", "WM_TOOBIG 2"))
    assert main(tmp_path) == 1
    assert "wasmetal.h is not current" in capsys.readouterr().err


@wasm32_and_wasm64
def test_the_compiler_lays_out_structs_and_numbers_as_the_host_does(memory64: bool, tmp_path: Path) -> None:
    facts = {f"WM_{each.name}": each.value for each in Errno}
    for item in ITEMS:
        match item:
            case Struct():
                facts[f"sizeof({item.c})"] = item.dtype.itemsize
                facts[f"_Alignof({item.c})"] = item.dtype.alignment
                for name, (dtype, offset, *_) in item.dtype.fields.items():
                    facts[f"offsetof({item.c}, {name})"] = offset
                    facts[f"sizeof((({item.c} *)0)->{name})"] = dtype.itemsize
            case Enumeration():
                facts |= {f"WM_{item.prefix}{each.name}": each.value for each in item.members}
            case Constant():
                facts[f"WM_{item.name}"] = item.value
            case Ops():
                facts |= {f"WM_OP_{op.name.upper()}": op.number for op in item.ops}
                facts |= {flag.c: flag.bit for op in item.ops for flag in op.flags}
    # Not assertions of the compiler's: the module says what it found, so that a failure shows both numbers.
    body = "".join(
        f'__attribute__((export_name("fact{i}"))) uint64_t fact{i}(void) {{ return {fact}; }}\n'
        for i, fact in enumerate(facts)
    )
    with Guest(compile_c(tmp_path, body, memory64), device="cpu") as guest:
        found = {fact: guest.call(f"fact{i}") % 2**64 for i, fact in enumerate(facts)}
    assert found == facts


@wasm32_and_wasm64
def test_every_function_links_with_its_signature_in_c(memory64: bool, tmp_path: Path) -> None:
    def declared(param: Param) -> str:
        const = "const " if param.direction is Direction.IN else ""
        return f"{const}{param.type.c} {'*' if param.pointer else ''}{param.name}"

    body = ""
    for function in FUNCTIONS:
        parameters = ", ".join(map(declared, function.params))
        arguments = ", ".join(param.name for param in function.params)
        body += f'__attribute__((export_name("{function.name}")))\n'
        body += f"wm_errno call_{function.name}({parameters}) {{ return {function.c}({arguments}); }}\n"
    path = compile_c(tmp_path, body, memory64)
    imported = wasmtime.Module(wasmtime.Engine(), path.read_bytes()).imports
    assert {(each.module, each.name) for each in imported} == {
        (name, function) for name, functions in abi.INTERFACES.items() for function in functions
    }
    with Guest(path, device="cpu") as guest:  # the host's types are those of the C prototypes, or this fails
        for function in FUNCTIONS:
            # Every pointer is misaligned or outside, every handle 0.
            values = [-1 if param.pointer else 0 for param in function.params]
            assert guest.call(function.name, *values) in function.all_errors


def test_each_interface_is_described_once() -> None:
    names = [function.name for function in FUNCTIONS]
    assert len(set(names)) == len(names)
    numbers = [op.number for item in ITEMS if isinstance(item, Ops) for op in item.ops]
    assert len(set(numbers)) == len(numbers)
