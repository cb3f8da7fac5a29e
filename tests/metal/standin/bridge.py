"""How PyObjC carries a call across: names, numbers and kinds of arguments, results; and autorelease pools.

Every public method of a class derived from :class:`Object` stands for a selector, with its name as PyObjC writes it. A
call is checked against signatures.txt, and counted.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from tests.metal.standin.wheel import SIGNATURES


class RuleError(AssertionError):
    """One of Metal's or Objective-C's rules was broken. A Mac would end the process, or go on with wrong results."""


@dataclass
class Table:
    """signatures.txt."""

    constants: dict[str, int] = field(default_factory=dict)
    functions: dict[str, list[str]] = field(default_factory=dict)
    structs: dict[str, list[str]] = field(default_factory=dict)
    methods: dict[str, list[str]] = field(default_factory=dict)
    protocols: dict[str, list[str]] = field(default_factory=dict)
    """Selectors of a protocol: those that the stand-in has and the wheel knows to be the protocol's."""
    named: dict[tuple[str, str], dict[int, str]] = field(default_factory=dict)
    """Class and selector of what a wheel names without describing it; of some, the types of some arguments."""


@cache
def table() -> Table:
    read = Table()
    for line in SIGNATURES.read_text().splitlines()[1:]:
        kind, name, *rest = line.split()
        if kind == "constant":
            read.constants[name] = int(rest[0])
        elif kind == "function":
            read.functions[name] = rest
        elif kind == "struct":
            read.structs[name] = rest
        elif kind == "method":
            read.methods[name] = rest
        elif kind == "named":
            told = (word.split("=") for word in rest[1:])
            read.named[name, rest[0]] = {int(index): encoding for index, encoding in told}
        else:
            read.protocols[name] = rest
    return read


class Pool:
    """``objc.autorelease_pool``."""

    _depth = threading.local()

    def __enter__(self) -> None:
        Pool._depth.value = Pool.depth() + 1

    def __exit__(self, *_: object) -> None:
        Pool._depth.value -= 1

    @staticmethod
    def depth() -> int:
        return getattr(Pool._depth, "value", 0)


calls: Counter[str] = Counter()
"""How often each selector was called."""


def not_in_wheel(*types: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a selector that the wheel does not describe, with its types from Apple's documentation.

    PyObjC needs no words for the plain properties of classes: it asks the Objective-C runtime.
    """

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.types = list(types)
        return method

    return mark


def as_the_runtime_says(*types: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a selector whose types PyObjC takes from the Objective-C runtime, since the wheel's do not fit those."""

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.types = list(types)
        method.in_wheel = True
        return method

    return mark


def selector(name: str) -> str:
    """The selector that a PyObjC name stands for."""
    return name.replace("_", ":")


class Object:
    """Anything of Objective-C's."""

    protocol = ""
    """The Metal protocol that it stands for; a class, where there is none."""
    described: tuple[str, ...] = ()
    """The selectors of a class that the wheel describes."""

    def __init_subclass__(cls) -> None:
        described = []
        for name, member in list(vars(cls).items()):
            of_class = isinstance(member, classmethod)
            method = member.__func__ if of_class else member
            if name.startswith("_") or not callable(method) or isinstance(method, type):
                continue
            types = getattr(method, "types", None)
            if types is None or getattr(method, "in_wheel", False):
                described.append(selector(name))
            crossing = _crossing(cls, selector(name), method, types)
            setattr(cls, name, classmethod(crossing) if of_class else crossing)
        cls.described = tuple(described)

    @classmethod
    def new(cls) -> Any:
        calls["new"] += 1
        _needs_pool("new")
        return cls()

    @classmethod
    def alloc(cls) -> Any:
        """An object that is nothing until it has been sent a selector that begins with ``init``."""
        calls["alloc"] += 1
        _needs_pool("alloc")
        return cls.__new__(cls)


def _needs_pool(name: str) -> None:
    """What makes or changes something may autorelease objects, on threads that have no pool. Plain getters do not."""
    if Pool.depth() == 0:
        raise RuleError(f"{name}: called with no pool in place, so that what it autoreleases is leaked")


def _crossing(cls: type[Object], name: str, method: Callable[..., Any], types: list[str] | None) -> Callable[..., Any]:
    """A method, as the bridge lets it be called."""

    @functools.wraps(method)
    def cross(self: Object, *args: Any) -> Any:
        result_type, *argument_types = types or table().methods[name]
        if name in cls.described and name not in table().protocols.get(cls.protocol, cls.described):
            raise AttributeError(f"{cls.protocol} has no {name}")
        if len(args) != len(argument_types):
            raise TypeError(f"{name}: need {len(argument_types)} arguments, got {len(args)}")
        for position, (value, kind) in enumerate(zip(args, argument_types, strict=True)):
            _check(f"{name}, argument {position}", value, kind, args)
        calls[name] += 1
        if args or result_type in ("v", "@"):
            _needs_pool(name)
        result = method(self, *(value for value, kind in zip(args, argument_types, strict=True) if kind[0] != "o"))
        outs = sum(kind[0] == "o" for kind in argument_types)
        assert (len(result) if outs else 0) == (outs + 1 if outs else 0), (
            f"the stand-in's {name} has {outs} out-arguments"
        )
        return result

    return cross


_INTEGERS = {"Q": (0, 2**64), "q": (-(2**63), 2**63), "I": (0, 2**32)}


def _check(what: str, value: Any, kind: str, args: tuple[Any, ...]) -> None:
    """Whether PyObjC would take a value for an argument of a kind. Raises ValueError."""
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        good = type(value) is int and low <= value < high
    elif kind == "d":
        good = type(value) in (int, float)
    elif kind in ("Z", "B"):
        good = type(value) is bool
    elif kind == "@":
        good = value is None or isinstance(value, Object | str | list | tuple)
    elif kind in ("o^@", "^@"):
        good = value is None
    elif kind == "@?":
        good = value is None or callable(value)
    elif kind.startswith("n^v["):
        length = args[int(kind[4:-1])]
        good = isinstance(value, bytes | memoryview | np.ndarray) and memoryview(value).contiguous
        good = good and memoryview(value).nbytes >= length
    elif kind.startswith("n^@["):
        good = isinstance(value, list) and len(value) == args[int(kind[4:-1])]
        good = good and all(isinstance(item, Object) for item in value)
    elif kind.startswith("{"):
        good = isinstance(value, Struct) and value.encoding == kind
    else:
        raise NotImplementedError(f"{what}: the stand-in does not know arguments of type {kind}")
    if not good:
        raise ValueError(f"{what} is {value!r}, where {kind} is expected")


class Struct(tuple):
    """A C struct of whole numbers, all of them Q."""

    encoding = ""


def struct(name: str) -> type[Struct]:
    """The type of a struct of the wheel's."""
    fields = table().structs[name]
    members = {field: property(lambda self, i=i: self[i]) for i, field in enumerate(fields)}
    return type(name, (Struct,), {"encoding": f"{{{name}={'Q' * len(fields)}}}", **members})


class Varlist:
    """A C array of unknown length, as PyObjC gives it: ``objc.varlist``."""

    def __init__(self, whole: memoryview) -> None:
        self._whole = whole

    def as_buffer(self, count: int) -> memoryview:
        return self._whole[:count]
