"""The C compiler and the host agree about ``wasi_nn.h``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from wasmetal import Guest, sdk
from wasmetal.host.abi.nn import NN
from wasmetal.host.abi.schema import Direction, Enumeration, Param, Struct


def test_structs_numbers_and_signatures(tmp_path: Path) -> None:
    def declared(param: Param) -> str:
        const = "const " if param.direction is Direction.IN else ""
        return f"{const}{param.type.c} {'*' if param.pointer else ''}{param.name}"

    facts = {}
    for item in NN.items:
        match item:
            case Struct():
                facts[f"sizeof({item.c})"] = item.dtype.itemsize
                for name, (_, offset, *_) in item.dtype.fields.items():
                    facts[f"__builtin_offsetof({item.c}, {name})"] = offset
            case Enumeration():
                facts |= {f"NN_{item.prefix}{each.name}": each.value for each in item.members}
    source = '#include "wasi_nn.h"\n'
    for i, fact in enumerate(facts):
        source += f'__attribute__((export_name("fact{i}"))) int fact{i}(void) {{ return {fact}; }}\n'
    for function in NN.functions:
        parameters, arguments = ", ".join(map(declared, function.params)), [param.name for param in function.params]
        source += f'__attribute__((export_name("{function.name}")))\n'
        source += f"nn_errno call_{function.name}({parameters}) {{ return {function.c}({', '.join(arguments)}); }}\n"
    (tmp_path / "probe.c").write_text(source)
    flags = ["-target", "wasm32-freestanding", "-nostdlib", "-Wl,--no-entry", "-Wall", "-Werror", "-I", sdk.INCLUDE]
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "probe.c", "-o", "probe.wasm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with Guest(tmp_path / "probe.wasm") as guest:
        assert {fact: guest.call(f"fact{i}") for i, fact in enumerate(facts)} == facts
        for function in NN.functions:
            values = [-1 if param.pointer else 0 for param in function.params]
            assert guest.call(function.name, *values) in function.all_errors
