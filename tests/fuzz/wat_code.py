"""Code of a random WebAssembly module, in the text format: it runs, traps, loops and calls the host."""

from __future__ import annotations

from random import Random
from typing import Protocol

from tests.fuzz import noise

NUMERIC = ("i32", "i64", "f32", "f64")
Signature = tuple[list[str], list[str]]
"""Parameters and results."""
BINARY = {
    "i32": ("add", "sub", "mul", "div_s", "rem_u", "and", "shl", "shr_s", "rotl", "eq", "lt_u"),
    "i64": ("add", "sub", "mul", "div_u", "rem_s", "or", "shr_u", "rotr"),
    "f32": ("add", "sub", "mul", "div", "min", "copysign"),
    "f64": ("add", "sub", "mul", "div", "max", "copysign"),
}
UNARY = {
    "i32": ("i32.clz", "i32.eqz", "i32.extend8_s"),
    "i64": ("i64.ctz", "i64.popcnt", "i64.extend32_s"),
    "f32": ("f32.sqrt", "f32.nearest", "f32.neg"),
    "f64": ("f64.sqrt", "f64.trunc", "f64.abs"),
}
CONVERSIONS = {
    "i32": (("i32.wrap_i64", "i64"), ("i32.trunc_f64_s", "f64"), ("i32.reinterpret_f32", "f32")),
    "i64": (("i64.extend_i32_u", "i32"), ("i64.trunc_sat_f32_u", "f32")),
    "f32": (("f32.demote_f64", "f64"), ("f32.convert_i32_s", "i32")),
    "f64": (("f64.promote_f32", "f32"), ("f64.convert_i64_u", "i64")),
}


class Scope(Protocol):
    """What the code of a module can use."""

    random: Random
    address: str
    """The type of an address in memory."""
    has_memory: bool
    table_size: int
    imports: list[tuple[str, str, list[str]]]
    functions: list[Signature]
    globals: list[str]


class Code:
    """The body of a function: folded instructions that leave values of the right types."""

    def __init__(self, module: Scope, local_types: list[str]) -> None:
        self.module, self.random, self.locals = module, module.random, local_types
        self.depth = 0

    def value(self, kind: str, budget: int) -> str:
        """An expression of that type."""
        r = self.random
        usable = [i for i, each in enumerate(self.locals) if each == kind]
        if budget <= 0 or r.random() < 0.2:
            return (
                f"(local.get {r.choice(usable)})"
                if usable and r.random() < 0.6
                else f"({kind}.const {literal(r, kind)})"
            )
        choices = [self._binary, self._unary, self._convert, self._if, self._select]
        if self.module.has_memory:
            choices += [self._load, self._load]
        if callable_ := self._calls([kind]):
            choices.append(lambda kind, budget: self._call(r.choice(callable_), budget))
        if kind == "i32" and self.module.imports:
            choices += [self._host, self._host]
        return r.choice(choices)(kind, budget - 1)

    def statement(self, budget: int) -> str:
        """Code that leaves nothing."""
        r = self.random
        kind = r.choice(NUMERIC)
        if budget <= 0:
            return "(nop)"
        usable = [i for i, each in enumerate(self.locals) if each == kind]
        options = [
            lambda: f"(drop {self.value(kind, budget)})",
            lambda: f"(block {self._inside(budget)})",
            lambda: f"(loop {self._inside(budget)} (br_if 0 {self.value('i32', budget - 2)}))",
            lambda: f"(if {self.value('i32', budget - 1)} (then {self._inside(budget)}) (else {self._inside(budget)}))",
            lambda: "(unreachable)" if r.random() < 0.05 else "(nop)",
        ]
        if usable:
            options.append(lambda: f"(local.set {r.choice(usable)} {self.value(kind, budget)})")
        if kind in self.module.globals:
            options.append(lambda: f"(global.set {self.module.globals.index(kind)} {self.value(kind, budget)})")
        if self.module.has_memory:
            options += [lambda: self._store(kind, budget)] * 2 + [lambda: self._bulk(budget)]
        if self.depth:
            options.append(lambda: f"(br_if {r.randrange(self.depth)} {self.value('i32', budget - 1)})")
        if empty := self._calls([]):
            options.append(lambda: self._call(r.choice(empty), budget - 1))
        return r.choice(options)()

    def _inside(self, budget: int) -> str:
        self.depth += 1
        body = " ".join(self.statement(budget - 1) for _ in range(self.random.randint(0, 3)))
        self.depth -= 1
        return body

    def _calls(self, results: list[str]) -> list[int]:
        return [i for i, (_, gives) in enumerate(self.module.functions) if gives == results]

    def _call(self, index: int, budget: int) -> str:
        parameters, _ = self.module.functions[index]
        given = " ".join(self.value(kind, budget - 1) for kind in parameters)
        number = len(self.module.imports) + index
        if self.module.table_size and self.random.random() < 0.2:
            signature = f"{params(parameters)} {results_text(self.module.functions[index][1])}"
            return f"(call_indirect {signature} {given} {self.value('i32', budget - 1)})"
        return f"(call {number} {given})"

    def _host(self, kind: str, budget: int) -> str:
        index = self.random.randrange(len(self.module.imports))
        given = " ".join(self.value(kind, min(budget, 1)) for kind in self.module.imports[index][2])
        return f"(call {index} {given})"

    def _binary(self, kind: str, budget: int) -> str:
        op = self.random.choice(BINARY[kind])
        return f"({kind}.{op} {self.value(kind, budget)} {self.value(kind, budget)})"

    def _unary(self, kind: str, budget: int) -> str:
        return f"({self.random.choice(UNARY[kind])} {self.value(kind, budget)})"

    def _convert(self, kind: str, budget: int) -> str:
        op, given = self.random.choice(CONVERSIONS[kind])
        return f"({op} {self.value(given, budget)})"

    def _if(self, kind: str, budget: int) -> str:
        then, other = self.value(kind, budget), self.value(kind, budget)
        return f"(if (result {kind}) {self.value('i32', budget)} (then {then}) (else {other}))"

    def _select(self, kind: str, budget: int) -> str:
        return f"(select {self.value(kind, budget)} {self.value(kind, budget)} {self.value('i32', budget)})"

    def _load(self, kind: str, budget: int) -> str:
        if kind in ("i32", "i64") and self.random.random() < 0.3:
            if kind == self.module.address and self.random.random() < 0.5:
                return f"(memory.grow {self._few()})"
            return f"({kind}.load8_u {self._address(budget)})"
        return f"({kind}.load offset={self.random.choice([0, 4, 65535, 2**31])} {self._address(budget)})"

    def _store(self, kind: str, budget: int) -> str:
        return f"({kind}.store {self._address(budget)} {self.value(kind, budget - 1)})"

    def _bulk(self, budget: int) -> str:
        count = self._few() if self.random.random() < 0.7 else self._address(0)
        if self.random.random() < 0.5:
            return f"(memory.fill {self._address(budget)} {self.value('i32', 0)} {count})"
        return f"(memory.copy {self._address(budget)} {self._address(budget)} {count})"

    def _few(self) -> str:
        return f"({self.module.address}.const {self.random.choice([0, 1, 2, 16, 1000])})"

    def _address(self, budget: int) -> str:
        kind = self.module.address
        if self.random.random() < 0.7:
            return f"({kind}.const {self.random.randrange(0, 65536, 4)})"
        return self.value(kind, min(budget, 1))


def literal(random: Random, kind: str) -> str:
    """A number as an instruction gives it."""
    if kind[0] == "f":
        return random.choice(["0", "-0", "1", "-1.5", "inf", "-inf", "nan", "1e30", "1e-30"])
    return str(noise.number(random) % (1 << int(kind[1:])))


def params(types: list[str] | tuple[str, ...]) -> str:
    return f"(param {' '.join(types)})" if types else ""


def results_text(types: list[str]) -> str:
    return f"(result {' '.join(types)})" if types else ""


def locals_text(types: list[str]) -> str:
    return f"(local {' '.join(types)})" if types else ""
