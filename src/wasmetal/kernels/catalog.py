"""The catalog of kernel entry points: what each binds, takes as parameters and how many threads a group has.

A kernel is written once, in ``<source>.slang`` beside this file, and compiled ahead of time into ``generated/`` (see
``compile.py``). In Slang an entry point takes its buffers first, in the order of ``access``, and then one struct of
parameters, all of them entry-point ``uniform``s: those become descriptor bindings 0, 1, … of set 0 and push constants in
SPIR-V; ``buffer(1)``, ``buffer(2)``, … and ``buffer(0)`` in Metal; plain kernel arguments in CUDA. The CPU device has a
NumPy function of the same name with the same arguments (``wasmetal.device.cpu``), which is the oracle.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from types import SimpleNamespace


class Access(Enum):
    """What a kernel does with one of its buffers."""

    READ = "read"
    WRITE = "write"
    READ_WRITE = "read-write"


TARGETS = {"spirv": "spv", "metal": "metal", "cuda": "cu", "wgsl": "wgsl"}
"""Compilation targets and the file suffix of each under ``generated/<target>/``."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One entry point."""

    name: str
    source: str
    """The Slang file, without its suffix."""
    access: tuple[Access, ...]
    """One entry per buffer, in binding order."""
    params: tuple[tuple[str, str], ...]
    """(field, "u32" or "f32"), in the order of the Slang struct; 4 bytes each, at most 128 in all."""
    threads: tuple[int, int, int]

    def pack(self, **values: float) -> bytes:
        """The parameter struct's bytes. Every field must be given, and no other."""
        if values.keys() != {name for name, _ in self.params}:
            raise TypeError(f"{self.name} takes {[name for name, _ in self.params]}, not {list(values)}")
        return struct.pack(self._format, *(values[name] for name, _ in self.params))

    def unpack(self, params: bytes) -> SimpleNamespace:
        """The fields of a packed parameter struct, by name."""
        return SimpleNamespace(
            **dict(zip((name for name, _ in self.params), struct.unpack(self._format, params), strict=True))
        )

    def code(self, target: str) -> bytes:
        """The compiled kernel for one of TARGETS. Raises FileNotFoundError where that target has none."""
        suffix = TARGETS[target]
        return (resources.files("wasmetal.kernels") / "generated" / target / f"{self.name}.{suffix}").read_bytes()

    @property
    def _format(self) -> str:
        return "<" + "".join({"u32": "I", "f32": "f"}[kind] for _, kind in self.params)


R, W, RW = Access.READ, Access.WRITE, Access.READ_WRITE

_KERNELS = (
    Kernel(
        name="add",
        source="elementwise",
        access=(R, R, W),
        params=(("n", "u32"), ("a_offset", "u32"), ("b_offset", "u32"), ("out_offset", "u32")),
        threads=(128, 1, 1),
    ),
)

CATALOG: dict[str, Kernel] = {kernel.name: kernel for kernel in _KERNELS}
"""Every kernel, by name."""
