"""Valid WebAssembly modules at random: every kind of section, and code that runs, traps, loops and calls the host."""

from __future__ import annotations

from random import Random

from tests.fuzz import noise
from tests.fuzz.wat_code import NUMERIC, Code, literal, locals_text, params, results_text
from wasmetal.host import abi

WASI = {
    "fd_write": ("i32",) * 4,
    "fd_read": ("i32",) * 4,
    "fd_close": ("i32",),
    "path_open": ("i32", "i32", "i32", "i32", "i32", "i64", "i64", "i32", "i32"),
    "clock_time_get": ("i32", "i64", "i32"),
    "random_get": ("i32", "i32"),
    "poll_oneoff": ("i32",) * 4,
    "args_get": ("i32", "i32"),
    "fd_prestat_dir_name": ("i32",) * 3,
}


def module(random: Random) -> str:
    """The text of a module."""
    return _Module(random).text()


class _Module:
    """What a module declares, and code that uses it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.memory64 = random.random() < 0.3
        self.address = "i64" if self.memory64 else "i32"
        self.imports = self._imports() if random.random() < 0.8 else []
        self.types = [self._signature() for _ in range(random.randint(1, 5))]
        self.functions = [random.choice(self.types) for _ in range(random.randint(1, 6))]
        self.globals = [random.choice(NUMERIC) for _ in range(random.randint(0, 4))]
        self.table_size = random.choice([0, 1, 4, 16])
        self.pages = random.choice([0, 1, 1, 2, 16, 64, 65])
        self.has_memory = random.random() < 0.95
        self.has_data = self.has_memory and random.random() < 0.7

    def text(self) -> str:
        """All sections."""
        r = self.random
        parts = [
            f'(import "{where}" "{name}" (func {params(types)} (result i32)))' for where, name, types in self.imports
        ]
        if self.has_memory:
            most = f" {self.pages + r.choice([0, 1, 100])}" if r.random() < 0.7 else ""
            name = r.choice(["memory", "memory", "memory", "other"])
            parts.append(f'(memory (export "{name}") {"i64" if self.memory64 else ""} {self.pages}{most})')
        parts.append(f"(table {self.table_size} {self.table_size + 8} funcref)")
        parts += [f"(global (mut {kind}) ({kind}.const {literal(r, kind)}))" for kind in self.globals]
        first = len(self.imports)
        parts += [self._function(i, signature) for i, signature in enumerate(self.functions)]
        parts.append(self._start_function())
        if self.table_size:
            named = [str(r.randrange(first + len(self.functions))) for _ in range(r.randint(1, self.table_size))]
            parts.append(f"(elem (i32.const 0) func {' '.join(named)})")
        if self.has_data:
            at = r.choice([0, 0, 1024, 65535, 2**31]) if r.random() < 0.9 else noise.number(r) % 2**31
            data = "".join(f"\\{byte:02x}" for byte in r.randbytes(r.randint(0, 64)))
            parts.append(f'(data ({self.address}.const {at}) "{data}")')
        if r.random() < 0.1:
            parts.append(f"(start {first + len(self.functions)})")
        return "(module\n" + "\n".join(parts) + "\n)"

    def _imports(self) -> list[tuple[str, str, list[str]]]:
        r, found = self.random, []
        for where, functions in abi.INTERFACES.items():
            for name in r.sample(sorted(functions), r.randint(0, 3)):
                kinds = functions[name]
                found.append((where, name, [f"i{abi.width(kind, self.memory64)}" for kind in kinds]))
        for name in r.sample(sorted(WASI), r.randint(0, 3)):
            found.append(("wasi_snapshot_preview1", name, list(WASI[name])))
        if found and r.random() < 0.05:  # one that does not exist, or of another type
            where, name, types = found[-1]
            found[-1] = (where, name + r.choice(["", "x"]), types[1:])
        return found

    def _signature(self) -> tuple[list[str], list[str]]:
        r = self.random
        return [r.choice(NUMERIC) for _ in range(r.randint(0, 4))], [
            r.choice(NUMERIC) for _ in range(r.choice([0, 1, 1, 2]))
        ]

    def _function(self, index: int, signature: tuple[list[str], list[str]]) -> str:
        parameters, results = signature
        own = [self.random.choice(NUMERIC) for _ in range(self.random.choice([0, 1, 3, 20]))]
        code = Code(self, [*parameters, *own])
        body = [code.statement(3) for _ in range(self.random.randint(0, 4))]
        body += [code.value(kind, 3) for kind in results]
        declared = f"(func {params(parameters)} {results_text(results)} {locals_text(own)}"
        return declared + "\n " + "\n ".join(body) + ")"

    def _start_function(self) -> str:
        code = Code(self, ["i32", "i64"])
        body = [code.statement(4) for _ in range(self.random.randint(1, 8))]
        return '(func (export "_start") (local i32 i64)\n ' + "\n ".join(body) + ")"
