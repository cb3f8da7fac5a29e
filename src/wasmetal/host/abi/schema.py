"""The terms in which the guest ABI is described: types, structs, enumerations, functions and ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from wasmetal.host.abi.errors import Errno

PTR, SIZE, U32, U64 = "ptr", "size", "u32", "u64"
"""How a parameter is passed. ``ptr`` and ``size`` are as wide as an address of the guest's own memory."""


class CType(Protocol):
    """A type that a parameter or a field has, or that a parameter points to."""

    @property
    def c(self) -> str:
        """Its name in C."""

    @property
    def witx(self) -> str:
        """Its name in witx."""

    @property
    def kind(self) -> str:
        """How a parameter of this type is passed by value; empty if it never is."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its layout."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type that C has already."""

    c: str
    witx: str
    kind: str
    dtype: np.dtype[Any]


VOID = Scalar("void", "u8", "", np.dtype("u1"))
CHAR = Scalar("char", "u8", "", np.dtype("u1"))
FLOAT = Scalar("float", "f32", "", np.dtype("<f4"))
UINT8 = Scalar("uint8_t", "u8", "", np.dtype("u1"))
UINT32 = Scalar("uint32_t", "u32", U32, np.dtype("<u4"))
UINT64 = Scalar("uint64_t", "u64", U64, np.dtype("<u8"))
SIZE_T = Scalar("size_t", "$size", SIZE, np.dtype(np.uintp))  # 32 bits wide in a 32-bit guest
_WORD = UINT32.dtype


@dataclass(frozen=True)
class Named:
    """What the ABI has a name for."""

    name: str
    namespace: str = field(default="wm", kw_only=True)
    """What names in C begin with."""

    @property
    def c(self) -> str:
        """Such as ``wm_name``."""
        return f"{self.namespace}_{self.name}"

    @property
    def witx(self) -> str:
        """``$name``."""
        return f"${self.name}"


@dataclass(frozen=True)
class Handle(Named):
    """A name for one of the guest's objects."""

    kind: str = U32
    dtype: np.dtype[Any] = _WORD


class Alias(Handle):
    """A name for the type of a number that is not a handle, such as a token."""


@dataclass(frozen=True)
class Enumeration(Named):
    """Named numbers. In C they are macros: the namespace, ``prefix`` and the member's name, as in ``WM_USAGE_READ``."""

    members: type[Enum]
    prefix: str = ""
    doc: str = ""
    """Empty: that of the Python class."""
    flags: bool = False
    """A parameter is a set of them."""
    kind: str = U32
    dtype: np.dtype[Any] = _WORD

    @property
    def c(self) -> str:
        """The type of a parameter."""
        return UINT32.c


@dataclass(frozen=True, slots=True)
class Constant:
    """A number by itself."""

    name: str
    value: int
    doc: str = ""


@dataclass(frozen=True)
class Union(Named):
    """32 bits that are one type or another."""

    members: tuple[tuple[Scalar, str], ...]
    doc: str
    kind: str = ""
    dtype: np.dtype[Any] = _WORD

    @property
    def witx(self) -> str:
        """witx has no such unions."""
        return UINT32.witx


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a struct."""

    name: str
    type: CType
    doc: str = ""
    count: int | Constant = 0
    """Elements of an array; 0: no array."""

    @property
    def length(self) -> int:
        """The number of elements of the array."""
        return self.count.value if isinstance(self.count, Constant) else self.count


@dataclass(frozen=True)
class Struct(Named):
    """A record in the guest's memory, laid out as C does, on wasm32 and wasm64 alike."""

    doc: str
    fields: tuple[Field, ...]
    kind: str = ""

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the record."""
        members = [(f.name, f.type.dtype, (f.length,)) if f.count else (f.name, f.type.dtype) for f in self.fields]
        return np.dtype(members, align=True)


class Direction(Enum):
    """What a parameter is for."""

    VALUE = "passed by value"
    IN = "points to what the function reads"
    OUT = "points to room for what the function writes"
    RESULT = "points to the place for one value that the function returns"


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter. Its type is that of what it points to, if it is a pointer."""

    name: str
    type: CType
    direction: Direction = Direction.VALUE

    @property
    def pointer(self) -> bool:
        """True unless the parameter is passed by value."""
        return self.direction is not Direction.VALUE

    @property
    def kind(self) -> str:
        """How the parameter is passed."""
        return PTR if self.pointer else self.type.kind


def reads(name: str, type_: CType) -> Param:
    """A pointer to what the function reads."""
    return Param(name, type_, Direction.IN)


def writes(name: str, type_: CType) -> Param:
    """A pointer to room for what the function writes."""
    return Param(name, type_, Direction.OUT)


def returns(name: str, type_: CType) -> Param:
    """A pointer to the place for one value that the function returns."""
    return Param(name, type_, Direction.RESULT)


@dataclass(frozen=True)
class Function(Named):
    """A host function. It returns an errno. In C it is called ``wm_name``; the module imports it as ``name``."""

    params: tuple[Param, ...]
    doc: str
    errors: Mapping[Any, str] = field(default_factory=dict)
    """The errnos that the function gives besides the common ones, with the reasons, unless the errno says enough."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """How its parameters are passed."""
        return tuple(param.kind for param in self.params)

    @cached_property
    def all_errors(self) -> Mapping[Any, str]:
        """``errors``, and those that handles and pointers cause; every call can give IO and NODEV, too."""
        implied = []
        if any(type(param.type) is Handle for param in self.params if not param.pointer):
            implied.append(Errno.BADF)
        pointers = [param.type for param in self.params if param.pointer]
        if pointers:
            implied.append(Errno.FAULT)
        if any(each.dtype.alignment > 1 for each in pointers):
            implied.append(Errno.INVAL)
        return {**dict.fromkeys(implied, ""), **self.errors}


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that an op takes."""

    name: str
    """Also the name of the parameter of the Python function in ``wasmetal.ops``; so for flags and attributes."""
    doc: str
    """Its dtype and shape."""
    read: bool = True
    written: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """A bit of a command's flags."""

    name: str
    bit: int
    doc: str

    @property
    def c(self) -> str:
        """``WM_NAME``."""
        return f"WM_{self.name.upper()}"


@dataclass(frozen=True, slots=True)
class Attribute:
    """A number, float32, that an op takes."""

    name: str
    doc: str


@dataclass(frozen=True, slots=True)
class Op:
    """An operation that commands name, computed by the function of the same name in ``wasmetal.ops``."""

    number: int
    name: str
    doc: str
    operands: tuple[Operand, ...]
    flags: tuple[Flag, ...] = ()
    attributes: tuple[Attribute, ...] = ()


@dataclass(frozen=True, slots=True)
class Ops:
    """All ops, and what holds for each."""

    doc: str
    ops: tuple[Op, ...]


Item = Handle | Enumeration | Constant | Union | Struct | Function | Ops


@dataclass(frozen=True)
class Interface:
    """Functions that are imported from one module, and what they need, in the order in which the header shows them."""

    name: str
    """The module's name."""
    short: str
    doc: str
    items: tuple[Item, ...]

    @property
    def functions(self) -> tuple[Function, ...]:
        """Its functions."""
        return tuple(item for item in self.items if isinstance(item, Function))
