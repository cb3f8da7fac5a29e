"""Makes a module export all of its state, under names of our own, as Wizer does.

Exported so, memories, tables and mutable globals can be read and written from outside, also those that the module keeps
to itself. Nothing else changes but for the start function, which the host calls instead, when an actor is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wasmetal.actor.wasm_binary import Kind, Reader, ValueType, leb
from wasmetal.actor.wasm_code import changes_tables
from wasmetal.errors import GuestError
from wasmetal.host.sections import MAX_ITEMS

PREFIX = "wasmetal:"
"""Of the names that are added. A module that has such an export itself is refused."""
START = PREFIX + "start"

_MAGIC = b"\0asm\1\0\0\0"
_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START, _ELEMENT, _CODE, _DATA, _DATA_COUNT = (
    range(13)
)
_ORDER = (
    *(_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START, _ELEMENT),
    *(_DATA_COUNT, _CODE, _DATA),
)
"""In which the sections come."""
_MAX_ELEMENTS = 1 << 20
"""In all segments together: as many as a table may have."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a module."""

    kind: ValueType
    """Of its elements."""
    changes: bool
    """Whether the module's code may change it: it changes one table or another."""


@dataclass(frozen=True, slots=True)
class State:
    """The state that an instance of a module has, by its index spaces."""

    memories: int
    globals: dict[int, ValueType]
    """The mutable ones, by index."""
    tables: tuple[Table, ...]
    functions: tuple[int, ...]
    """Those that a reference may name, if references can be moved at all; in ascending order."""
    memory: int | None
    """Which memory is exported as "memory", and so used by host functions."""
    starts: bool
    """Whether there is a start function, exported as START."""


def name_of(kind: Kind, index: int) -> str:
    """The name under which a part of the state is exported."""
    return f"{PREFIX}{kind.name.lower()}:{index}"


def export_state(code: bytes) -> tuple[bytes, State]:
    """The module, changed, and the state that it has. Raises GuestError if it is malformed, or unfit for an actor.

    What is not looked at here (types, data, what functions compute) is for the compiler to check.
    """
    sections = list(_sections(code))
    module = _Module()
    for section in sections:
        if read := module.readers.get(section.number):
            reader = Reader(code, section.begin, section.end)
            read(reader)
            if reader.more:
                raise reader.error("a section is longer than what it holds")
    state = module.state()
    added = _added(state, module.start)
    return b"".join(_rewritten(code, sections, added, module.exports)), state


@dataclass(frozen=True, slots=True)
class _Section:
    number: int
    first: int
    """Where its number is."""
    begin: int
    """Where its content is."""
    end: int


def _sections(code: bytes) -> Iterator[_Section]:
    reader = Reader(code, 0, len(code))
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise GuestError("the module is no core module of version 1")
    latest = -1
    while reader.more:
        first = reader.position
        number = reader.byte()
        size = reader.u32()
        begin = reader.position
        reader.skip(size)
        if number != _CUSTOM:
            if number not in _ORDER:
                raise reader.error(f"section {number} is not known")
            if _ORDER.index(number) <= latest:
                raise reader.error(f"section {number} comes too late, or twice")
            latest = _ORDER.index(number)
        yield _Section(number, first, begin, reader.position)


def _added(state: State, start: int | None) -> list[tuple[str, Kind, int]]:
    """The exports that are added."""
    parts = [(Kind.MEMORY, index) for index in range(state.memories)]
    parts += [(Kind.GLOBAL, index) for index in state.globals]
    parts += [(Kind.TABLE, index) for index, table in enumerate(state.tables) if table.changes]
    parts += [(Kind.FUNCTION, index) for index in state.functions]
    added = [(name_of(kind, index), kind, index) for kind, index in parts]
    return [*added, (START, Kind.FUNCTION, start)] if start is not None else added


def _rewritten(
    code: bytes, sections: list[_Section], added: list[tuple[str, Kind, int]], present: int
) -> Iterator[bytes]:
    """The parts of the changed module. ``present``: how many exports it has."""
    entries = b"".join(leb(len(name)) + name.encode() + bytes([kind]) + leb(index) for name, kind, index in added)
    yield _MAGIC
    written = False
    for section in sections:
        comes = _ORDER.index(section.number) - _ORDER.index(_EXPORT) if section.number != _CUSTOM else -1
        if comes >= 0 and not written:
            own = Reader(code, section.begin, section.end)
            if comes == 0:
                own.u32()
            content = leb(present + len(added)) + (code[own.position : section.end] if comes == 0 else b"") + entries
            yield bytes([_EXPORT]) + leb(len(content)) + content
            written = True
        if section.number not in (_EXPORT, _START):
            yield code[section.first : section.end]
    if not written:
        content = leb(len(added)) + entries
        yield bytes([_EXPORT]) + leb(len(content)) + content


class _Module:
    """What is learnt of a module, section by section."""

    def __init__(self) -> None:
        self.exports = 0
        """How many there are."""
        self.start: int | None = None
        self.readers: dict[int, Callable[[Reader], None]] = {
            _IMPORT: self._imports,
            _FUNCTION: self._functions,
            _TABLE: self._tables,
            _MEMORY: self._memories,
            _GLOBAL: self._globals,
            _EXPORT: self._exports,
            _START: self._start,
            _ELEMENT: self._elements,
            _CODE: self._code,
        }
        """What reads each section; the others are not looked at."""
        self._counts = dict.fromkeys(Kind, 0)
        """Of each index space."""
        self._mutable: dict[int, ValueType] = {}
        self._table_kinds: list[ValueType] = []
        self._named: set[int] = set()
        """Functions that references may name."""
        self._elements_seen = 0
        self._memory: int | None = None
        self._changes = False

    def state(self) -> State:
        """What was learnt."""
        moves = self._changes or ValueType.FUNCREF in self._mutable.values()
        return State(
            memories=self._counts[Kind.MEMORY],
            globals=self._mutable,
            tables=tuple(Table(kind, self._changes) for kind in self._table_kinds),
            functions=tuple(sorted(self._named)) if moves else (),
            memory=self._memory,
            starts=self.start is not None,
        )

    def _imports(self, reader: Reader) -> None:
        for _ in range(_count(reader)):
            module, name = reader.name(), reader.name()
            if (kind := reader.byte()) != Kind.FUNCTION:
                what = f"a {Kind(kind).name.lower()}" if kind in list(Kind) else f"something of kind {kind}"
                raise reader.error(f"{module}.{name} is {what}; a guest can import functions only")
            reader.u32()
            self._counts[Kind.FUNCTION] += 1

    def _functions(self, reader: Reader) -> None:
        count = _count(reader)
        self._counts[Kind.FUNCTION] += count
        for _ in range(count):
            reader.u32()

    def _tables(self, reader: Reader) -> None:
        for _ in range(_count(reader)):
            self._table_kinds.append(reader.reference_type())
            reader.limits()
        self._counts[Kind.TABLE] = len(self._table_kinds)

    def _memories(self, reader: Reader) -> None:
        self._counts[Kind.MEMORY] = _count(reader)
        for _ in range(self._counts[Kind.MEMORY]):
            reader.limits()

    def _globals(self, reader: Reader) -> None:
        self._counts[Kind.GLOBAL] = _count(reader)
        for index in range(self._counts[Kind.GLOBAL]):
            kind, mutable = reader.value_type(), reader.byte()
            if mutable > 1:
                raise reader.error(f"a global of mutability {mutable}")
            if mutable:
                self._mutable[index] = kind
            self._constant(reader)

    def _exports(self, reader: Reader) -> None:
        self.exports = _count(reader)
        for _ in range(self.exports):
            name, kind, index = reader.name(), reader.byte(), reader.u32()
            if name.startswith(PREFIX):
                raise reader.error(f"it has an export {name!r}: names that begin with {PREFIX!r} are reserved")
            if kind not in list(Kind) or index >= self._counts[Kind(kind)]:
                raise reader.error(f"the export {name!r} is nothing that the module has")
            if kind == Kind.FUNCTION:
                self._named.add(index)
            if kind == Kind.MEMORY and name == "memory":
                self._memory = index

    def _start(self, reader: Reader) -> None:
        self.start = self._function(reader)

    def _elements(self, reader: Reader) -> None:
        """Element segments, of eight forms: three bits say which parts there are."""
        for _ in range(_count(reader)):
            form = reader.u32()
            if form > 7:
                raise reader.error(f"an element segment of form {form}")
            active, explicit, expressions = not form & 1, form & 2, form & 4
            if active:
                if explicit:
                    reader.u32()  # the table
                self._constant(reader)
            if form & 3:
                if expressions:
                    reader.reference_type()
                elif reader.byte():
                    raise reader.error("an element segment of an unknown kind")
            count = _count(reader)
            self._elements_seen += count
            if self._elements_seen > _MAX_ELEMENTS:
                raise reader.error(f"more than {_MAX_ELEMENTS} elements of tables")
            for _ in range(count):
                if expressions:
                    self._constant(reader)
                else:
                    self._named.add(self._function(reader))

    def _code(self, reader: Reader) -> None:
        for _ in range(_count(reader)):
            size = reader.u32()
            body = Reader(reader.code, reader.position, reader.position + size)
            reader.skip(size)
            body.locals(body.u32())
            self._changes |= changes_tables(body)

    def _function(self, reader: Reader) -> int:
        index = reader.u32()
        if index >= self._counts[Kind.FUNCTION]:
            raise reader.error(f"there is no function {index}")
        return index

    def _constant(self, reader: Reader) -> None:
        """A constant expression."""
        while (opcode := reader.byte()) != 0x0B:
            match opcode:
                case 0x41:  # i32.const
                    reader.signed(32)
                case 0x42:  # i64.const
                    reader.signed(64)
                case 0x43:  # f32.const
                    reader.skip(4)
                case 0x44:  # f64.const
                    reader.skip(8)
                case 0x23:  # global.get
                    reader.u32()
                case 0xD0:  # ref.null
                    reader.reference_type()
                case 0xD2:  # ref.func
                    self._named.add(self._function(reader))
                case 0xFD if reader.u32() == 12:  # v128.const
                    reader.skip(16)
                case 0x6A | 0x6B | 0x6C | 0x7C | 0x7D | 0x7E:  # sums and products
                    pass
                case _:
                    raise reader.error(f"the instruction {opcode:#04x} in a constant is not known")


def _count(reader: Reader) -> int:
    """How many items follow. Each takes a byte at least, so that there are no more than bytes."""
    count = reader.u32()
    if count > min(MAX_ITEMS, reader.end - reader.position):
        raise reader.error(f"{count} items; there is room for {min(MAX_ITEMS, reader.end - reader.position)}")
    return count
