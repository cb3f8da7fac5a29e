"""Runs WebAssembly's own test suite on wasmetal's linear memory.

    git clone https://github.com/WebAssembly/testsuite
    python tests/spec/runner.py testsuite --filter memory

Each ``.wast`` script goes through wabt's ``wast2json`` and is then executed command by command: every module is
instantiated by the engine that guests run on, so every linear memory, the host's ``spectest`` one included, is a region
of ours. Prints passed and failed commands per file; the exit status is 1 when a command failed.

What wabt's version cannot parse is cut out, command by command, and counted as "not converted".
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._func import enter_wasm

from wasmetal.memory.creator import MemoryCreator
from wasmetal.memory.wasmtime_engine import new_engine

FEATURES = ("--enable-memory64", "--enable-multi-memory", "--enable-extended-const", "--enable-tail-call")

# What the suite expects of its host, as a module, so that its memory too comes from our creator.
SPECTEST = """
(module
  (global (export "global_i32") i32 (i32.const 666))
  (global (export "global_i64") i64 (i64.const 666))
  (global (export "global_f32") f32 (f32.const 666.6))
  (global (export "global_f64") f64 (f64.const 666.6))
  (table (export "table") 10 20 funcref)
  (table (export "table64") i64 10 20 funcref)
  (memory (export "memory") 1 2)
  (func (export "print"))
  (func (export "print_i32") (param i32))
  (func (export "print_i64") (param i64))
  (func (export "print_f32") (param f32))
  (func (export "print_f64") (param f64))
  (func (export "print_i32_f32") (param i32 f32))
  (func (export "print_f64_f64") (param f64 f64)))
"""


# ---- from .wast to commands ----


@dataclass
class Converted:
    commands: list[dict[str, Any]]
    dropped: int
    """Top-level forms that wabt could not parse, and those that depend on them."""


def forms(text: str) -> list[tuple[int, int]]:
    """Start and end of every top-level parenthesized form."""
    spans, depth, comments, start = [], 0, 0, 0
    for token in re.finditer(r'\(;|;\)|;;[^\n]*|"(?:[^"\\]|\\.)*"|[()]', text):
        match token[0]:
            case "(;":
                comments += 1
            case ";)":
                comments -= 1
            case "(" if not comments:
                start = start if depth else token.start()
                depth += 1
            case ")" if not comments:
                depth -= 1
                if not depth:
                    spans.append((start, token.end()))
    return spans


def convert(wast: Path, folder: Path) -> Converted:
    """The script's commands; the modules they name are written into ``folder``."""
    text = wast.read_text(encoding="utf-8")
    spans = forms(text)
    dropped: set[int] = set()
    source, result = folder / "script.wast", folder / "script.json"
    while True:
        source.write_text(text, encoding="utf-8")
        run = subprocess.run(
            ["wast2json", *FEATURES, str(source), "-o", str(result)], capture_output=True, text=True, check=False
        )
        if run.returncode == 0:
            return Converted(json.loads(result.read_text())["commands"], len(dropped))
        lines = {int(line) for line in re.findall(r"script\.wast:(\d+):\d+: error", run.stderr)}
        starts = [0, *(newline.end() for newline in re.finditer("\n", text))]
        hit = {
            i
            for i, (start, end) in enumerate(spans)
            for line in lines
            if i not in dropped
            and start < (starts[line] if line < len(starts) else len(text))
            and end > starts[line - 1]
        }
        if not hit:  # an error outside of every form: nothing to cut out
            return Converted([], len(spans))
        dropped |= with_dependents(text, spans, hit)
        for i in dropped:
            start, end = spans[i]
            text = text[:start] + re.sub(r"\S", " ", text[start:end]) + text[end:]


def with_dependents(text: str, spans: list[tuple[int, int]], hit: set[int]) -> set[int]:
    """A module that goes takes along what acts on it: the forms up to the next module, and users of its names."""
    gone, names = set(hit), set[str]()
    without_module = False
    for i, (start, end) in enumerate(spans):
        form = text[start:end]
        if form.startswith("(module") and not re.match(r"\(module\s+(definition|instance)\b", form):
            without_module = i in hit
        elif without_module:
            gone.add(i)
        if names.intersection(re.findall(r'"[^"]*"|\$[^\s()"]+', form)):
            gone.add(i)
        if i in gone and (
            named := re.match(r'\((?:register|module(?: definition| instance)?)\s+("[^"]*"|\$\S+)', form)
        ):
            names.add(named[1])
    return gone


# ---- values, bit for bit (Python's floats would lose the payload of a NaN) ----

KINDS = {
    "i32": ffi.WASMTIME_I32,
    "i64": ffi.WASMTIME_I64,
    "f32": ffi.WASMTIME_F32,
    "f64": ffi.WASMTIME_F64,
    "v128": ffi.WASMTIME_V128,
}
REFERENCES = {"funcref": wasmtime.ValType.funcref, "externref": wasmtime.ValType.externref}


def lanes(value: dict[str, Any]) -> list[tuple[str, int]]:
    """(value, bits) of each lane; a scalar is one lane."""
    if value["type"] == "v128":
        return [(lane, int(value["lane_type"][1:])) for lane in value["value"]]
    return [(value["value"], int(value["type"][1:]))]


def encode(store: wasmtime.Store, value: dict[str, Any]) -> ffi.wasmtime_val_t:
    if value["type"] in REFERENCES:
        content = None if value["value"] == "null" else int(value["value"])
        return wasmtime.Val._convert_to_raw(store, REFERENCES[value["type"]](), content)
    raw = b"".join(int(lane).to_bytes(bits // 8, "little") for lane, bits in lanes(value))
    encoded = ffi.wasmtime_val_t(kind=KINDS[value["type"]])
    ctypes.memmove(ctypes.addressof(encoded.of), raw, len(raw))
    return encoded


def agrees(store: wasmtime.Store, expected: dict[str, Any], result: ffi.wasmtime_val_t) -> bool:
    if expected["type"] in REFERENCES:
        content = wasmtime.Val._from_raw(store, result).value
        if expected.get("value") == "null":
            return content is None
        return content == int(expected["value"]) if "value" in expected else content is not None
    if result.kind != KINDS[expected["type"]].value:
        return False
    raw = ctypes.string_at(ctypes.addressof(result.of), 16)
    for lane, bits in lanes(expected):
        number, raw = int.from_bytes(raw[: bits // 8], "little"), raw[bits // 8 :]
        if not same_lane(lane, bits, number):
            return False
    return True


def same_lane(expected: str, bits: int, number: int) -> bool:
    if not expected.startswith("nan:"):
        return int(expected) % (1 << bits) == number
    mantissa = {32: 23, 64: 52}[bits]
    quiet_nan = (1 << (bits - 1)) - (1 << (mantissa - 1))  # exponent and the mantissa's highest bit, all ones
    if expected == "nan:canonical":
        return number & ~(1 << (bits - 1)) == quiet_nan
    return number & quiet_nan == quiet_nan


# ---- execution ----


class Failed(Exception):
    """A command did not do what the suite demands."""


@dataclass
class Script:
    """One script's store, instances and current module."""

    folder: Path
    creator: MemoryCreator
    engine: wasmtime.Engine
    instances: dict[str | None, wasmtime.Instance] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = wasmtime.Store(self.engine)
        self.store.set_epoch_deadline(1)  # nobody advances the epoch: no deadline
        self.linker = wasmtime.Linker(self.engine)
        self.linker.allow_shadowing = True
        spectest = self.linker.instantiate(self.store, wasmtime.Module(self.engine, SPECTEST))
        self.linker.define_instance(self.store, "spectest", spectest)

    def run(self, command: dict[str, Any]) -> None:
        """Execute one command. Raises Failed, or whatever went wrong."""
        getattr(self, "do_" + command["type"])(command)

    def do_module(self, command: dict[str, Any]) -> None:
        self.instances.pop(None, None)
        instance = self.instantiate(command)
        self.instances[None] = instance
        if "name" in command:
            self.instances[command["name"]] = instance

    def do_register(self, command: dict[str, Any]) -> None:
        self.linker.define_instance(self.store, command["as"], self.instances[command.get("name")])

    def do_action(self, command: dict[str, Any]) -> None:
        self.act(command["action"])

    def do_assert_return(self, command: dict[str, Any]) -> None:
        results = self.act(command["action"])
        expected = command["expected"]
        if len(results) != len(expected) or not all(map(self.agrees, expected, results)):
            raise Failed(f"expected {expected}, got {[bytes(result.of).hex() for result in results]}")

    def do_assert_trap(self, command: dict[str, Any]) -> None:
        self.fails(command, wasmtime.Trap, lambda: self.act(command["action"]))

    do_assert_exhaustion = do_assert_trap

    def do_assert_uninstantiable(self, command: dict[str, Any]) -> None:
        self.fails(command, wasmtime.Trap, lambda: self.instantiate(command))

    def do_assert_unlinkable(self, command: dict[str, Any]) -> None:
        self.fails(command, wasmtime.WasmtimeError, lambda: self.instantiate(command))

    def do_assert_invalid(self, command: dict[str, Any]) -> None:
        # Only that it is refused: the wording of a refusal is each implementation's own.
        wasm = (self.folder / command["filename"]).read_bytes()
        try:
            if command["module_type"] == "text":
                wasm = wasmtime.wat2wasm(wasm)
            wasmtime.Module.validate(self.engine, wasm)
        except wasmtime.WasmtimeError:
            return
        raise Failed(f"accepted, though: {command['text']}")

    do_assert_malformed = do_assert_invalid

    def instantiate(self, command: dict[str, Any]) -> wasmtime.Instance:
        wasm = (self.folder / command["filename"]).read_bytes()
        instance = self.linker.instantiate(self.store, wasmtime.Module(self.engine, wasm))
        for export in instance.exports(self.store).by_index:
            if isinstance(export, wasmtime.Memory):
                region = self.creator.region_at(ctypes.addressof(export.data_ptr(self.store).contents))
                if region.size != export.data_len(self.store):
                    raise Failed(f"a memory of {export.data_len(self.store)} bytes on a region of {region.size}")
        return instance

    def fails(self, command: dict[str, Any], kind: type[Exception], action: Any) -> None:
        try:
            action()
        except kind as error:
            if not same_reason(command["text"], str(error)):
                raise Failed(f"expected {command['text']!r}, got {error}") from error
            return
        raise Failed(f"no error, though: {command['text']}")

    def act(self, action: dict[str, Any]) -> list[ffi.wasmtime_val_t]:
        """Call an exported function, or read an exported global."""
        export = self.instances[action.get("module")].exports(self.store)[action["field"]]
        if action["type"] == "get":
            result = ffi.wasmtime_val_t()
            ffi.wasmtime_global_get(self.store._context(), ctypes.byref(export._global), ctypes.byref(result))
            return [result]
        arguments = [encode(self.store, value) for value in action["args"]]
        n_results = len(export.type(self.store).results)
        results = (ffi.wasmtime_val_t * n_results)()
        with enter_wasm(self.store) as trap:
            error = ffi.wasmtime_func_call(
                self.store._context(),
                ctypes.byref(export._func),
                (ffi.wasmtime_val_t * len(arguments))(*arguments),
                len(arguments),
                results,
                n_results,
                trap,
            )
            if error:
                raise wasmtime.WasmtimeError._from_ptr(error)
        return list(results)

    def agrees(self, expected: dict[str, Any], result: ffi.wasmtime_val_t) -> bool:
        return agrees(self.store, expected, result)


def same_reason(expected: str, message: str) -> bool:
    """The suite's wording in Wasmtime's message. The suite may go on with an index that Wasmtime does not tell."""
    return expected in message or re.sub(r" \d+$", "", expected) in message


@dataclass
class Report:
    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    not_converted: int = 0

    def __str__(self) -> str:
        missing = f", {self.not_converted} not converted" if self.not_converted else ""
        return f"{self.name}: {self.passed} passed, {len(self.failures)} failed{missing}"


def run_file(wast: Path) -> Report:
    """Run one script in an engine of its own; afterwards nothing of it may be left."""
    report = Report(wast.name)
    creator = MemoryCreator()
    with tempfile.TemporaryDirectory() as folder:
        converted = convert(wast, Path(folder))
        report.not_converted = converted.dropped
        script = Script(Path(folder), creator, new_engine(creator))
        for command in converted.commands:
            try:
                script.run(command)
            except Exception as error:
                reason = str(error).strip().splitlines() or [""]
                report.failures.append(
                    f"{wast.name}:{command['line']}: {command['type']}: {type(error).__name__}: {reason[0]}"
                )
            else:
                report.passed += 1
        script.instances.clear()
        script.store.close()
    if creator.regions():
        report.failures.append(f"{wast.name}: {len(creator.regions())} memories left behind")
    return report


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run WebAssembly's test suite on wasmetal's linear memory.")
    parser.add_argument("suite", type=Path, help="a folder of .wast files")
    parser.add_argument("--filter", default="", metavar="REGEX", help="run the files whose name matches (default: all)")
    options = parser.parse_args(list(arguments) if arguments is not None else None)
    if shutil.which("wast2json") is None:
        print("wast2json is not on the PATH: install wabt", file=sys.stderr)
        return 2
    files = [file for file in sorted(options.suite.glob("*.wast")) if re.search(options.filter, file.name)]
    if not files:
        print(f"no .wast file in {options.suite} matches {options.filter!r}", file=sys.stderr)
        return 2
    total = Report(f"{len(files)} files")
    for file in files:
        report = run_file(file)
        print(report)
        for failure in report.failures:
            print("  " + failure)
        total.passed += report.passed
        total.failures += report.failures
        total.not_converted += report.not_converted
    print(total)
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
