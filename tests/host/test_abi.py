"""The header, the witx files and the host's tables say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wasmetal.host import abi
from wasmetal.host.commands import _COMMAND, OPS
from wasmetal.host.errno import Errno
from wasmetal.ops import DType

ABI = Path(__file__).parents[2] / "abi"
HEADER = (ABI / "wasmetal.h").read_text()
STRUCTS = {
    "wm_tensor": abi.TENSOR,
    "wm_command": abi.COMMAND,
    "wm_device_info": abi.DEVICE_INFO,
    "wm_counters": abi.COUNTERS,
    "wm_model_info": abi.MODEL_INFO,
}
C_KINDS = {"size_t": abi.SIZE, "uint64_t": abi.U64, "uint32_t": abi.U32}


def parse(text: str) -> list:
    """S-expressions as nested lists."""
    stack: list[list] = [[]]
    for token in re.findall(r'"[^"]*"|[()]|[^\s()]+', re.sub(r";;.*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token.strip('"'))
    return stack[0]


@pytest.fixture(scope="module")
def witx() -> list:
    return parse((ABI / "wasi_ephemeral_gpu.witx").read_text()) + parse((ABI / "wasmetal_llm.witx").read_text())


def witx_constants(witx: list, typename: str) -> dict[str, int]:
    entries = [e for e in witx if e[:3] == ["@witx", "const", f"${typename}"]]
    return {name.removeprefix("$").upper(): int(value) for _, _, _, name, value in entries}


def witx_record(witx: list, typename: str) -> list[str]:
    (record,) = [e[2] for e in witx if e[:2] == ["typename", f"${typename}"]]
    return [name.removeprefix("$") for _, name, _ in record[1:]]


def defines(prefix: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(rf"#define {prefix}(\w+) (\d+)u?\b", HEADER)}


def header_functions() -> dict[str, dict[str, tuple[str, ...]]]:
    """Parameter kinds of every function that the header declares, by interface."""
    interfaces: dict[str, dict[str, tuple[str, ...]]] = {abi.GPU: {}, abi.LLM: {}}
    for interface, name, parameters in re.findall(r"^WM_(GPU|LLM)\((\w+)\)\s+wm_errno \w+\(([^)]*)\);", HEADER, re.M):
        kinds = []
        for parameter in parameters.split(","):
            kind = parameter.replace("const", "").split()[0]
            kinds.append(abi.PTR if "*" in parameter else C_KINDS.get(kind, abi.U32))
        interfaces[getattr(abi, interface)][name] = tuple(kinds)
    return interfaces


def witx_functions(witx: list) -> dict[str, dict[str, tuple[str, ...]]]:
    kinds = {"u32": abi.U32, "u64": abi.U64}
    for entry in witx:
        if entry[0] == "typename":
            body = entry[2]
            if body == ["@witx", "usize"]:
                kinds[entry[1]] = abi.SIZE
            elif isinstance(body, str):
                kinds[entry[1]] = kinds[body]
            elif body[0] in ("handle", "flags"):
                kinds[entry[1]] = abi.U32
    interfaces = {}
    for module in (e for e in witx if e[0] == "module"):
        functions = interfaces[module[1].removeprefix("$")] = {}
        for function in module[3:]:
            _, _, (_, name), *rest = function[1:] if function[0] != "@interface" else function
            parameters = []
            for part in rest:
                if part[0] == "param":
                    pointer = isinstance(part[2], list) and part[2][1] in ("pointer", "const_pointer")
                    parameters.append(abi.PTR if pointer else kinds[part[2]])
                elif len(part[2]) == 3:  # (expected $value (error $errno)): the value goes through a pointer
                    parameters.append(abi.PTR)
            functions[name] = tuple(parameters)
    return interfaces


def test_functions_agree(witx: list) -> None:
    assert header_functions() == abi.INTERFACES
    assert witx_functions(witx) == abi.INTERFACES


def test_errnos_agree(witx: list) -> None:
    expected = {errno.name: errno.value for errno in Errno}
    block = HEADER[HEADER.index("typedef uint32_t wm_errno") : HEADER.index("---- wasi_ephemeral_gpu")]
    assert {n: int(v) for n, v in re.findall(r"#define WM_(\w+) (\d+)", block)} == expected
    assert witx_constants(witx, "errno") == expected


def test_ops_and_dtypes_agree(witx: list) -> None:
    ops = {op.name.upper(): number for number, op in OPS.items()}
    assert defines("WM_OP_") == ops
    assert witx_constants(witx, "op") == ops
    dtypes = {dtype.name: dtype.value for dtype in DType}
    assert witx_constants(witx, "dtype") == dtypes
    assert {name: defines("WM_")[name] for name in dtypes} == dtypes


def test_flags_and_constants_agree(witx: list) -> None:
    defined = defines("WM_")
    for name in (
        *("USAGE_READ", "USAGE_WRITE", "TRANSPOSE_A", "TRANSPOSE_B", "ACCUMULATE", "INTERLEAVED"),
        *("PARSE_SPECIAL", "ADD_BOS", "GENERATION_PROMPT"),
    ):
        assert defined[name] == getattr(abi, name)
    backends = {f"{name.upper()}": i for i, name in enumerate(abi.BACKENDS)}
    assert defines("WM_BACKEND_") == backends == witx_constants(witx, "backend")
    assert re.search(r"#define WM_FOREVER UINT64_MAX", HEADER)
    assert abi.FOREVER == 2**64 - 1


def test_witx_records_are_the_structs(witx: list) -> None:
    assert witx_record(witx, "counters") == list(abi.COUNTERS.names)
    assert witx_record(witx, "model_info") == list(abi.MODEL_INFO.names)
    assert witx_record(witx, "device_info") == [name for name in abi.DEVICE_INFO.names if name != "name"]
    flat = [re.sub(r"_\d$", "", name) for name in witx_record(witx, "tensor")]
    assert list(dict.fromkeys(flat)) == list(abi.TENSOR.names)


def test_records_are_parsed_as_they_are_laid_out() -> None:
    data = np.arange(abi.COMMAND.itemsize // 4, dtype=np.uint32).tobytes()
    record = np.frombuffer(data, abi.COMMAND)[0]
    op, flags, *words = _COMMAND.unpack(data)
    assert (op, flags, *words[:6]) == (record["op"], record["flags"], *record["attributes"])
    for i, operand in enumerate(record["t"]):
        fields = [operand[name] for name in ("buffer", "dtype", "offset", "rank", "row_stride")]
        assert words[6 + 9 * i : 15 + 9 * i] == [*fields, *operand["shape"]]


@pytest.mark.parametrize("target", ["wasm32-wasi", "wasm64-freestanding"])
def test_c_lays_the_structs_out_like_the_host(target: str, tmp_path: Path) -> None:
    lines = ['#include "wasmetal.h"']
    for name, dtype in STRUCTS.items():
        lines.append(f'_Static_assert(sizeof({name}) == {dtype.itemsize}, "size of {name}");')
        lines.append(f'_Static_assert(_Alignof({name}) == {dtype.alignment}, "alignment of {name}");')
        for field, (_, offset, *_) in dtype.fields.items():
            lines.append(f'_Static_assert(offsetof({name}, {field}) == {offset}, "{name}.{field}");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines))
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        target,
        "-I",
        ABI,
        "-c",
        source,
        "-o",
        tmp_path / "layout.o",
    ]
    subprocess.run(command, check=True)
