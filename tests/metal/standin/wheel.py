"""What PyObjC says of the selectors of Metal and of Metal Performance Shaders, read out of its wheels for macOS.

A wheel has two descriptions, and neither needs a Mac to read. ``Metal/_metadata.py`` has the types of arguments and
results of every selector of Metal's protocols, the constants, functions and structs. The extension module ``_Metal``
has been compiled with protocols, so its Objective-C sections tell which of them has which selectors; but with those
protocols alone that nothing else brings into the process (the encoder is one, the device is not). Of classes, and
Metal Performance Shaders are classes, ``_metadata.py`` names some selectors, and corrects the types of some arguments.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = "12.2.2"
SIGNATURES = Path(__file__).with_name("signatures.txt")
FRAMEWORKS = ("Metal", "MetalPerformanceShaders")
DOWNLOADS = Path(__file__).parents[3] / "build" / "wheels"

_CPU_ARM64 = 0x0100000C
_LC_SEGMENT_64 = 0x19


@dataclass
class Wheel:
    """What one wheel says."""

    constants: dict[str, int] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    """Result and argument types, by function."""
    structs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields, by struct."""
    methods: dict[str, str] = field(default_factory=dict)
    """Result and argument types, by selector."""
    protocols: dict[str, set[str]] = field(default_factory=dict)
    """Selectors, inherited ones too, of each protocol that the extension module was compiled with."""
    named: dict[tuple[str, str], dict[int, str]] = field(default_factory=dict)
    """Class and selector where only those are told; where told, types by argument."""


def download(framework: str = "Metal") -> Path:
    """The wheel for macOS on arm64. Raises subprocess.CalledProcessError where it cannot be had."""
    pattern = f"pyobjc_framework_{framework.lower()}-{VERSION}-*.whl"
    if not list(DOWNLOADS.glob(pattern)):
        options = ("--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version=3.13")
        source = ("--platform=macosx_11_0_arm64", f"--dest={DOWNLOADS}", f"pyobjc-framework-{framework}=={VERSION}")
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, *source], check=True)
    return next(DOWNLOADS.glob(pattern))


def read(path: Path, framework: str = "Metal") -> Wheel:
    """Everything that a wheel says."""
    with zipfile.ZipFile(path) as wheel:
        module = rf"{framework}/_{framework}\..*\.so"
        name = next(name for name in wheel.namelist() if re.fullmatch(module, name))
        extension, metadata = wheel.read(name), wheel.read(f"{framework}/_metadata.py").decode()
    found = _metadata(metadata)
    found.protocols = _protocols(extension)
    return found


def _metadata(source: str) -> Wheel:
    """What ``_metadata.py`` tells PyObjC, by running it with a recorder in PyObjC's place."""
    found = Wheel()

    class Recorder(types.ModuleType):
        arch = "arm64"

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

        def registerMetaDataForSelector(self, kind: bytes, selector: bytes, told: dict[str, Any]) -> None:
            # The protocols' selectors are registered for NSObject; those of classes only where they need a word.
            if kind == b"NSObject" and "retval" in told:
                found.methods[selector.decode()] = _types(told)
            elif kind != b"NSObject":
                arguments = told.get("arguments", {}).items()
                self._name(kind.decode(), selector.decode()).update(
                    {index - 2: _text(argument["type"]) for index, argument in arguments if "type" in argument}
                )

        def registerNewKeywordsFromSelector(self, kind: str, selector: bytes) -> None:
            self._name(kind, selector.decode())

        def registerNewKeywords(self, kind: str, keywords: tuple[str, ...], method: str) -> None:
            self._name(kind, method.replace("_", ":"))

        def _name(self, kind: str, selector: str) -> dict[int, str]:
            return found.named.setdefault((kind, selector), {})

        def createStructType(self, name: str, encoding: bytes, fields: list[str]) -> None:
            found.structs[name.removeprefix("Metal.")] = tuple(fields)

    saved = sys.modules.get("objc")
    sys.modules["objc"] = Recorder("objc")
    try:
        namespace: dict[str, Any] = {}
        exec(compile(source, "_metadata.py", "exec"), namespace)
    finally:
        if saved is None:
            del sys.modules["objc"]
        else:
            sys.modules["objc"] = saved
    for name, told in namespace["functions"].items():
        found.functions[name] = " ".join(_split(told[0].decode()))
    for constant in filter(None, namespace["enums"].split("$")):
        name, _, value = constant.partition("@")
        found.constants[name] = int(value)
    return found


def _types(told: dict[str, Any]) -> str:
    """Result and arguments on one line: ``v @ Q``; ``o^@`` is given back, ``n^v[1]`` is as many bytes as argument 1."""
    arguments = told.get("arguments", {})
    parts = [_text(told["retval"]["type"])]
    for index in sorted(arguments):
        argument = arguments[index]
        text = _text(argument.get("type_modifier", "")) + _text(argument["type"])
        if "c_array_length_in_arg" in argument:
            text += f"[{argument['c_array_length_in_arg'] - 2}]"  # self and the selector come first
        parts.append(text)
    return " ".join(parts)


def _text(encoding: bytes | str) -> str:
    return encoding.decode() if isinstance(encoding, bytes) else encoding


def _split(encoding: str) -> Iterator[str]:
    """The types that are written one after another in an encoding."""
    while encoding:
        end = len(re.match(r"[\^nor]*", encoding)[0])
        if encoding[end] == "{":
            depth = 0
            for end in range(end, len(encoding)):  # noqa: B020
                depth += (encoding[end] == "{") - (encoding[end] == "}")
                if depth == 0:
                    break
        elif encoding[end : end + 2] == "@?":
            end += 1
        yield encoding[: end + 1]
        encoding = encoding[end + 1 :]


class _Image:
    """The arm64 part of a Mach-O file, by address. Layouts: <mach-o/loader.h> and objc4's objc-runtime-new.h."""

    def __init__(self, data: bytes) -> None:
        self._bytes = _arm64(data)
        self._segments: list[tuple[int, int, int]] = []
        self.sections: dict[str, tuple[int, int]] = {}
        commands = struct.unpack_from("<I", self._bytes, 16)[0]
        at = 32
        for _ in range(commands):
            command, size = struct.unpack_from("<2I", self._bytes, at)
            if command == _LC_SEGMENT_64:
                address, length, offset = struct.unpack_from("<3Q", self._bytes, at + 24)
                self._segments.append((address, length, offset))
                for section in range(struct.unpack_from("<I", self._bytes, at + 64)[0]):
                    header = at + 72 + 80 * section
                    name = self._bytes[header : header + 16].rstrip(b"\0").decode()
                    self.sections[name] = struct.unpack_from("<2Q", self._bytes, header + 32)
            at += size

    def unpack(self, layout: str, address: int) -> tuple[Any, ...]:
        return struct.unpack_from(layout, self._bytes, self._offset(address))

    def pointer(self, address: int) -> int:
        return self.unpack("<Q", address)[0]

    def text(self, address: int) -> str:
        start = self._offset(address)
        return self._bytes[start : self._bytes.index(b"\0", start)].decode()

    def _offset(self, address: int) -> int:
        for start, length, offset in self._segments:
            if start <= address < start + length:
                return address - start + offset
        raise ValueError(f"no segment has address {address:#x}")


def _arm64(data: bytes) -> bytes:
    """One architecture out of a universal binary."""
    count = struct.unpack_from(">I", data, 4)[0]
    for architecture in range(count):
        cpu, _, offset, size = struct.unpack_from(">4I", data, 8 + 20 * architecture)
        if cpu == _CPU_ARM64:
            return data[offset : offset + size]
    raise ValueError("no arm64 code")


def _protocols(extension: bytes) -> dict[str, set[str]]:
    """The selectors of each protocol that a module was compiled with."""
    image = _Image(extension)
    start, size = image.sections["__objc_protolist"]
    return {
        image.text(image.pointer(protocol + 8)): set(_selectors(image, protocol))
        for protocol in (image.pointer(entry) for entry in range(start, start + size, 8))
    }


def _selectors(image: _Image, protocol: int) -> Iterator[str]:
    # isa, name, inherited protocols, then lists of methods: required of instances, of classes; optional of both.
    _, _, inherited, *lists = image.unpack("<7Q", protocol)
    if inherited:
        for index in range(image.pointer(inherited)):
            yield from _selectors(image, image.pointer(inherited + 8 + 8 * index))
    for methods in filter(None, lists):
        yield from _methods(image, methods)


def _methods(image: _Image, methods: int) -> Iterator[str]:
    flags, count = image.unpack("<2I", methods)
    for index in range(count):
        if flags & 0x80000000:  # a list of offsets: of a reference to the name, of the types, of nothing
            entry = methods + 8 + 12 * index
            yield image.text(image.pointer(entry + image.unpack("<i", entry)[0]))
        else:
            yield image.text(image.pointer(methods + 8 + 24 * index))


def generate() -> str:
    """signatures.txt, with what the stand-in needs and no more."""
    from tests.metal.standin import framework, shaders

    wheel, other = (read(download(name), name) for name in FRAMEWORKS)
    wheel.constants |= other.constants
    wheel.functions |= other.functions
    lines = [
        f"Generated by `python -m tests.metal.standin`; do not edit. From pyobjc-framework-Metal and "
        f"pyobjc-framework-MetalPerformanceShaders {VERSION} for macOS.",
    ]
    lines += [f"constant {name} {wheel.constants[name]}" for name in sorted(_constants(wheel))]
    functions = framework.FUNCTIONS + shaders.FUNCTIONS
    lines += [f"function {name} {wheel.functions[name]}" for name in sorted(functions)]
    lines += [f"struct {name} {' '.join(wheel.structs[name])}" for name in sorted(framework.STRUCTS)]
    for selector in sorted(framework.selectors()):
        lines.append(f"method {selector} {wheel.methods[selector]}")
    for protocol, selectors in framework.protocols().items():
        told = wheel.protocols.get(protocol)
        if told is not None:
            lines.append(f"protocol {protocol} {' '.join(sorted(selectors & told))}")
    for kind, selector in sorted(shaders.selectors() & other.named.keys()):
        types = (f"{index}={encoding}" for index, encoding in sorted(other.named[kind, selector].items()))
        lines.append(" ".join(["named", kind, selector, *types]))
    return "\n".join([*lines, ""])


def _constants(wheel: Wheel) -> set[str]:
    """Those that the device and the stand-in name."""
    root = Path(__file__).parents[3]
    device = root / "src/wasmetal/device"
    sources = [*device.glob("metal/*.py"), device / "libraries/mps.py", *Path(__file__).parent.glob("*.py")]
    named = {name for path in sources for name in re.findall(r"\bM(?:TL|PS)\w+", path.read_text())}
    return {name for name in wheel.constants if name in named or re.match(r"MTLGPUFamily(Apple|Metal)\d", name)}
