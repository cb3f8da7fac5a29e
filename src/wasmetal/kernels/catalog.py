"""The catalog of kernel entry points: what each binds, takes as parameters and how many threads a group has.

A kernel is written once, in ``<source>.slang`` beside this file, and compiled ahead of time into ``generated/`` (see
``compile.py``). In Slang an entry point takes its buffers first, in the order of ``buffers``, and then one struct of
parameters, all of them entry-point ``uniform``s: those become descriptor bindings 0, 1, … of set 0 and push constants
in SPIR-V; ``buffer(1)``, ``buffer(2)``, … and ``buffer(0)`` in Metal; plain kernel arguments in CUDA. The CPU device
has a NumPy function of the same name with the same arguments (``wasmetal.kernels.reference``), which is the oracle.

The struct begins with ``<buffer>_offset`` for each buffer: the tensor's first element in its binding, since bindings
have coarser alignment than tensors. Strides are in elements (of the tensor, not of the binding) from row to row. The
tensors' first row is row ``batch_row`` of the batch metadata.

Groups are numbered in one dimension, whatever the grid: see :func:`grid`.
"""

from __future__ import annotations

import struct
from collections.abc import KeysView
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from importlib import resources
from types import SimpleNamespace
from typing import Any

from wasmetal.kernels.dtypes import FLOATS, KV, WEIGHTS, DType


class Access(Enum):
    """What a kernel does with one of its buffers."""

    READ = "read"
    WRITE = "write"
    READ_WRITE = "read-write"


TARGETS = {"spirv": "spv", "metal": "metal", "cuda": "cu", "wgsl": "wgsl"}
"""Compilation targets and the file suffix of each under ``generated/<target>/``."""

COOPMAT_TILES = (64, 128)
"""Rows and columns of the output that a group computes with cooperative matrices."""

FEW_ROWS = 64
"""Rows up to which the ``gemm_few`` kernels take the place of a GEMM."""
FEW_ACROSS = {1: 4, 4: 2}
"""The ``gemm_few`` kernels by how many subgroups of a group are side by side, and how many groups each group of the
GEMM becomes."""

MATRIX_HEADS = (64, 128, 256)
"""The kernels of attention on matrix units, by the elements of the largest head that they are for."""

SLICE = 2048
"""Elements of the vector that a subgroup of the ``sliced`` kernels has: a group has a slice for each at most."""

CUDA_PRELUDE = "prelude.cuh"
"""The file under ``generated/cuda/`` that every kernel there includes."""

THREADS = 128
"""Threads of a group of most kernels: a multiple of any device's subgroup size, since kernels divide by that."""

_ONLY: dict[str, tuple[str, ...]] = {
    "simdgroup_matrix": ("metal",),
    "cooperative_matrix": ("spirv", "cuda"),
    "mma": ("cuda",),
    "joins": ("spirv", "cuda"),
    "slices": ("cuda",),
    "shuffles": ("spirv", "metal", "cuda"),
}
"""The targets of kernels with certain features, if those are not all."""

WORD = 4
"""Bytes of the smallest unit that kernels read; the length of a binding is a multiple of it."""

GRID_WIDTH = 32768
"""Groups in a row of the grid; every device allows 65,535. ``common.slang`` has the same number."""

NO_BATCH = 0xFFFFFFFF
"""``batch_offset`` of a kernel without batch metadata: all its rows are valid, and the buffer that is bound
instead of the metadata is not read."""

NO_SINKS = 0xFFFFFFFF
"""``sinks_offset`` of attention without sinks; the buffer that is bound instead of them is not read."""


NO_BIAS = 0xFFFFFFFF
"""``bias_offset`` of a product without a bias; the buffer that is bound instead of it is not read."""

ACTIVATIONS = ("silu", "gelu")
"""What the gate of ``gated_gemv`` can be activated by, in the order of their numbers; GELU in its tanh form."""


NEXT_TOKEN_SETTINGS = 6
"""Words of a row's settings of ``next_token``, before its random numbers; the last of them says how many tokens."""

GEMV_ROWS = 2
"""Rows of a weight that a group of the ``gemv`` kernels multiplies by one reading of the vector."""

SUBGROUP_ROWS = 2
"""Rows of a weight that a subgroup of the other kernels of a single row does; twice as many if ``wide``."""

EMBED_COLUMNS = 2048
"""Columns of a row that a group of the ``embed`` kernels copies: a multiple of four for each of its threads."""


def grid(groups: int) -> tuple[int, int, int]:
    """A grid of at least ``groups`` groups; surplus groups return without doing anything."""
    return (groups, 1, 1) if groups <= GRID_WIDTH else (GRID_WIDTH, -(-groups // GRID_WIDTH), 1)


@dataclass(frozen=True, slots=True)
class Argument:
    """One buffer that a kernel takes."""

    name: str
    access: Access
    element: int
    """Bytes of an element as the kernel declares the buffer, which is the unit of ``<name>_offset``."""


@dataclass(frozen=True, eq=False)  # compared by identity, so that looking one up costs nothing
class Kernel:
    """One entry point."""

    name: str
    source: str
    """The Slang file, without its suffix."""
    buffers: tuple[Argument, ...]
    """In binding order."""
    fields: tuple[tuple[str, str], ...]
    """(field, "u32" or "f32") of the parameters after the offsets, in the order of the Slang struct."""
    defines: tuple[tuple[str, str], ...] = ()
    """Macros for compiling the Slang file, if one entry point serves several kernels. ``KERNEL``, the name of the entry
    point, is always defined."""
    features: tuple[str, ...] = ()
    """Device features that not every device has: ``float16`` (arithmetic type), ``storage16`` (in buffers);
    ``simdgroup_matrix``, for kernels that are compiled for Metal only; ``cooperative_matrix``, for SPIR-V and CUDA;
    ``mma``, CUDA's matrix instructions; ``slices``, vectors in the registers of its subgroups; ``integer_dot``, its
    products of four bytes; ``shuffles``, subgroups of at least 32 threads, which read each other's values; ``joins``,
    groups that read what others of the same dispatch have written."""
    ahead: tuple[str, ...] | None = None
    """If not None, the kernel itself waits until the one before it has ended, and may begin earlier (programmatic
    dependent launch of CUDA). These are the buffers that it reads before it waits."""
    size: int = THREADS
    """Threads of a group."""
    spread: int = 1
    """Groups, along the third side of the grid, for each group of the kernel that this one takes the place of."""
    resident: int = 0
    """Groups that a multiprocessor of CUDA's must have registers for at a time; 0 leaves it to the compiler."""
    most: int = 0
    """If not 0, the grid has so many groups at most, each of which does what the kernel's parameters leave for it."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Those of TARGETS that the kernel is compiled for. The CPU device has the kernels that are for all."""
        return next((_ONLY[feature] for feature in self.features if feature in _ONLY), tuple(TARGETS))

    @property
    def threads(self) -> tuple[int, int, int]:
        """Threads of a group."""
        return (self.size, 1, 1)

    @cached_property
    def access(self) -> tuple[Access, ...]:
        """One entry per buffer, in binding order."""
        return tuple(buffer.access for buffer in self.buffers)

    @cached_property
    def params(self) -> tuple[tuple[str, str], ...]:
        """(field, "u32" or "f32"), in the order of the Slang struct; 4 bytes each, at most 128 in all."""
        return tuple((f"{buffer.name}_offset", "u32") for buffer in self.buffers) + self.fields

    @cached_property
    def params_size(self) -> int:
        """Bytes of the parameter struct."""
        return self._layout.size

    def pack(self, **values: float) -> bytes:
        """The parameter struct's bytes. Exactly its fields must be given."""
        if values.keys() != self._fields:
            raise TypeError(f"{self.name} takes {[name for name, _ in self.params]}, not {list(values)}")
        return self._layout.pack(*[values[name] for name in self._fields])

    def unpack(self, params: bytes) -> SimpleNamespace:
        """The fields of a packed parameter struct, by name."""
        return SimpleNamespace(**dict(zip(self._fields, self._layout.unpack(params), strict=True)))

    def code(self, target: str) -> bytes:
        """The compiled kernel for one of TARGETS. Raises FileNotFoundError if it is not compiled for that target."""
        suffix = TARGETS[target]
        return (resources.files("wasmetal.kernels") / "generated" / target / f"{self.name}.{suffix}").read_bytes()

    @cached_property
    def _fields(self) -> KeysView[str]:
        return dict(self.params).keys()

    @cached_property
    def _layout(self) -> struct.Struct:
        return struct.Struct("<" + "".join({"u32": "I", "f32": "f"}[kind] for _, kind in self.params))


def _u32(names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "u32") for name in names.split())


def _read(name: str, element: int = 4) -> Argument:
    return Argument(name, Access.READ, element)


def _write(name: str, element: int = 4) -> Argument:
    return Argument(name, Access.WRITE, element)


def _update(name: str, element: int = 4) -> Argument:
    return Argument(name, Access.READ_WRITE, element)


def _attended(pools: int, queries: int = 4) -> tuple[Argument, ...]:
    """What attention reads: queries, and a cache's pools, of elements of so many bytes."""
    return _read("q", queries), _read("k_pages", pools), _read("v_pages", pools), *_PAGED


_ELEMENTS = {DType.F32: "Float32", DType.F16: "Float16", DType.Q8_0: "Blocks8"}
"""Slang's names for the element types of float operands, and of the pools of a KV cache."""
_POOLS = tuple(zip(KV, (16, 8, 4), strict=True))
"""The types of pools, and the bytes of four elements, which is the unit that kernels address."""

_THREAD_TILES: dict[str, Any] = {"defines": (("TILES", "ThreadTiles"),)}
_SIMDGROUP_TILES: dict[str, Any] = {
    "defines": (("SIMDGROUPS", "1"), ("TILES", "SimdgroupTiles")),
    "features": ("simdgroup_matrix",),
}
_HALF_TILES = {**_SIMDGROUP_TILES, "defines": (("HALVES", "1"), *_SIMDGROUP_TILES["defines"])}
_VARIANTS = {"": _THREAD_TILES, "_simdgroup": _SIMDGROUP_TILES, "_simdgroup16": _HALF_TILES}
"""The ways to compute a GEMM, by what they add to a kernel's name. With ``simdgroup16`` operands are float16."""

SHUFFLED = (2, 4, 8)
"""The kernels of attention in which threads read each other's values, by how many vectors of a head each of eight
threads has: those are for heads of up to 64, 128 and 256 elements."""
_EXCHANGES: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "": ((), ()),
    **{f"shuffled{vectors}_": ((("VECTORS", str(vectors)),), ("shuffles",)) for vectors in SHUFFLED},
}
"""The ways in which threads exchange what they have in attention to a part of a context: what they add to a kernel's
name, and the macros and features."""

_READS, _READS_OF_ROWS = 8, 4
"""Vectors of keys, and of values, that a thread reads at once in the kernels of attention in which threads read each
other's values: for a single row, and for several, of which more groups fit a multiprocessor with fewer registers."""
_RESIDENT = 5
"""Groups of the latter that a multiprocessor has room for, with heads of up to 64: more than there are for each of a
large GPU's."""
_JOINS: dict[str, tuple[tuple[Argument, ...], tuple[tuple[str, str], ...]]] = {
    "part": ((_write("scratch", 16),), ()),
    "split": (
        (_update("scratch", 16), _update("counters"), _read("sinks"), _write("out")),
        (("JOINS", "1"),),
    ),
}
"""The kernels of attention to a part of a context, and those that also join the parts: what they have besides its
operands, and the macros."""

_BATCH = _read("batch")
_PAGED = (_BATCH, _read("sequences"))
_CONTEXT = (*_u32("pages page_size sequence_count table_length"), ("scale", "f32"), ("window", "u32"))
"""What the kernels of attention are told of the context. A ``window`` of 0 is unlimited."""


def _variant(variant: str, defines: tuple[tuple[str, str], ...], features: tuple[str, ...] = (), **of: Any) -> Kernel:
    more = _VARIANTS[variant]
    return Kernel(defines=defines + more["defines"], features=more.get("features", ()) + features, **of)


def _eights(name: str, dtype: DType) -> Argument:
    """A weight as kernels read it that take eight weights at a time."""
    return _read(name, dtype.gemv_unit)


@dataclass(frozen=True, slots=True)
class _Slices:
    """How a group of a ``sliced`` kernel is made: as was fastest on an H200, which has 132 multiprocessors."""

    size: int
    """Threads of a group."""
    at_once: int
    """Rows that a subgroup reads at a time."""
    most: int
    """The most groups, each of which reads the vector: one or two for a multiprocessor."""
    resident: int
    """As in :class:`Kernel`."""


_INTEGERS = dict.fromkeys(("gemv", "norm_gemv", "gated_gemv"), _Slices(512, 2, 132, 1))
_FLOATS = dict.fromkeys(("gemv", "norm_gemv", "gated_gemv"), _Slices(256, 2, 132, 1))
_SLICED = {
    DType.Q8_0: ("Q8_0Integers", _INTEGERS),
    DType.Q4_0: ("Q4_0Integers", _INTEGERS),
    DType.F16: ("Half", _FLOATS),
    DType.BF16: ("BFloat", _FLOATS),
}
"""The weight types whose products with a single row can be computed by slices, with the name of the format there."""


def _sliced(kernel: Kernel, dtype: DType) -> Kernel:
    """The variant of a kernel of a single row that keeps the row in registers, quantized if the weights are."""
    name, groups = _SLICED[dtype]
    how, integers = groups[kernel.source], groups is _INTEGERS
    given = {"FORMAT": name, "GROUP": how.size, "AT_ONCE": how.at_once, "MOST": how.most}
    return replace(
        kernel,
        name=f"sliced_{kernel.name}",
        source=f"sliced_{kernel.source}",
        defines=tuple((name, str(value)) for name, value in (given | ({"INTEGERS": 1} if integers else {})).items()),
        features=("slices", *(("integer_dot",) if integers else ())),
        ahead=tuple(name for name in ("weight", "gate", "up") if name in [buffer.name for buffer in kernel.buffers]),
        size=how.size,
        resident=how.resident,
        most=how.most,
    )


def _by_eights(dtype: DType) -> tuple[tuple[str, str], ...]:
    return ("FORMAT", f"{dtype.name}Eights"), ("GEMV_ROWS", str(GEMV_ROWS)), ("SUBGROUP_ROWS", str(SUBGROUP_ROWS))


_KERNELS = (
    Kernel(
        name="add",
        source="elementwise",
        buffers=(_read("a"), _read("b"), _write("out")),
        fields=_u32("rows columns a_stride b_stride out_stride"),
    ),
    Kernel(
        name="scale",
        source="elementwise",
        buffers=(_read("x"), _write("out")),
        fields=(*_u32("rows columns x_stride out_stride"), ("factor", "f32")),
    ),
    Kernel(
        name="copy",
        source="elementwise",
        buffers=(_read("x", 16), _write("out", 16)),
        fields=_u32("vectors"),
    ),
    *(
        Kernel(
            name=name,
            source="elementwise",
            buffers=(_read("gate"), _read("up"), _write("out"), _BATCH),
            fields=_u32("batch_row rows columns gate_stride up_stride out_stride"),
        )
        for name in ("silu_mul", "gelu_mul", "swiglu_oai")
    ),
    Kernel(
        name="gelu",
        source="elementwise",
        buffers=(_read("x"), _write("out"), _BATCH),
        fields=_u32("batch_row rows columns x_stride out_stride"),
    ),
    Kernel(
        name="rms_norm",
        source="reduce",
        buffers=(_read("x"), _read("weight"), _write("out"), _BATCH),
        fields=(*_u32("batch_row rows columns x_stride out_stride"), ("eps", "f32"), ("heads", "u32")),
    ),
    Kernel(
        name="layer_norm",
        source="reduce",
        buffers=(_read("x"), _read("weight"), _read("bias"), _write("out"), _BATCH),
        fields=(*_u32("batch_row rows columns x_stride out_stride"), ("eps", "f32")),
    ),
    Kernel(
        name="softmax",
        source="reduce",
        buffers=(_read("x"), _write("out")),
        fields=_u32("rows columns x_stride out_stride"),
    ),
    Kernel(
        name="argmax",
        source="reduce",
        buffers=(_read("x"), _write("out")),
        fields=_u32("rows columns x_stride"),
    ),
    # Scratch memory has, for each row and each of k places, the key of every part that is in that place there: the
    # logit's bits, changed so that they are ordered as unsigned numbers, and ~column; zeros if there is none. Then, for
    # each part, its largest logit and the sum of its exponentials relative to that, as floats.
    Kernel(
        name="top_logits_part",
        source="top_logits",
        buffers=(_read("logits"), _write("scratch", 8)),
        fields=(*_u32("rows columns logits_stride k parts"), ("inverse_temperature", "f32")),
        ahead=(),
    ),
    Kernel(
        name="top_logits_merge",
        source="top_logits",
        buffers=(_read("scratch", 8), _write("ids"), _write("values"), _write("totals")),
        fields=(*_u32("rows k parts"), ("inverse_temperature", "f32")),
        ahead=(),
    ),
    Kernel(
        name="next_token",
        source="next_token",
        buffers=(
            *(_read("ids"), _read("values"), _read("settings")),
            *(_update("tokens"), _update("batch"), _update("sequences"), _write("chosen")),
        ),
        fields=_u32("rows k steps sequence_count table_length"),
        ahead=(),
    ),
    Kernel(
        name="rope",
        source="rope",
        buffers=(_update("x"), _read("table"), _BATCH),
        fields=_u32("batch_row rows heads head_dim x_stride pairs positions interleaved"),
    ),
    *(
        Kernel(
            name=f"kv_append_{dtype.suffix}",
            source="kv_append",
            buffers=(_read("k"), _read("v"), _write("k_pages", vector), _write("v_pages", vector), *_PAGED),
            fields=_u32("batch_row rows columns k_stride v_stride pages page_size sequence_count table_length"),
            defines=(("ELEMENT", _ELEMENTS[dtype]),),
        )
        for dtype, vector in _POOLS
    ),
    *(
        Kernel(
            name=f"rope_append_{dtype.suffix}",
            source="rope_append",
            buffers=(
                *(_update("q"), _read("k"), _read("v"), _read("table")),
                *(_write("k_pages", vector), _write("v_pages", vector), *_PAGED),
            ),
            fields=_u32(
                "batch_row rows heads columns head_dim q_stride k_stride v_stride pairs positions interleaved"
                " pages page_size sequence_count table_length"
            ),
            defines=(("ELEMENT", _ELEMENTS[dtype]),),
        )
        for dtype, vector in _POOLS
    ),
    *(
        Kernel(
            name=f"attention_{dtype.suffix}",
            source="attention",
            buffers=(*_attended(vector), _read("sinks"), _write("out")),
            # Of ``heads`` heads, first_head .. first_head + head_count are computed.
            fields=(
                *_u32("batch_row rows first_head head_count heads kv_heads head_dim q_stride out_stride"),
                *_CONTEXT,
            ),
            defines=(("ELEMENT", _ELEMENTS[dtype]),),
        )
        for dtype, vector in _POOLS
    ),
    *(
        Kernel(
            name=f"prefill_attention_{dtype.suffix}",
            source="prefill_attention",
            buffers=(*_attended(vector), _read("sinks"), _write("out")),
            fields=(*_u32("batch_row rows heads kv_heads head_dim q_stride out_stride"), *_CONTEXT),
            defines=(("ELEMENT", _ELEMENTS[dtype]),),
        )
        for dtype, vector in _POOLS
    ),
    # The same on matrix units: where heads have a multiple of eight elements, and q and the pools begin at 16 bytes.
    *(
        Kernel(
            name=f"matrix{head}_prefill_attention_{dtype.suffix}",
            source="matrix_attention",
            # Offsets are as in the kernel that it takes the place of: of q in words, of the pools in vectors of four.
            buffers=(*_attended(unit, 16), _read("sinks"), _write("out")),
            fields=(*_u32("batch_row rows heads kv_heads head_dim q_stride out_stride"), *_CONTEXT),
            defines=(("HALVES", f"{_ELEMENTS[dtype]}Halves"), ("HEAD", str(head))),
            features=("cooperative_matrix", "shuffles"),
        )
        for head in MATRIX_HEADS
        for dtype, unit in zip(KV, (16, 16, 4), strict=True)
    ),
    # Scratch memory has, for each row, head and part, the sums of its values, and a vector of four: the largest score,
    # the sum of the weights, and 1, or 0 if the part is empty. Of empty parts only this vector is written.
    *(
        Kernel(
            name=f"{variant}attention_{whole}_{dtype.suffix}",
            source="attention_part",
            buffers=(*_attended(vector), *joined),
            fields=(
                *_u32("batch_row rows heads kv_heads head_dim q_stride"),
                *_CONTEXT,
                *_u32("parts groups out_stride" if joins else "parts groups"),
            ),
            defines=(("ELEMENT", _ELEMENTS[dtype]), *more, *joins, ("READS", str(_READS_OF_ROWS))),
            features=(*(name.lower() for name, _ in joins), *features),
            resident=_RESIDENT if variant == "shuffled2_" else 0,
        )
        for whole, (joined, joins) in _JOINS.items()
        for variant, (more, features) in _EXCHANGES.items()
        for dtype, vector in _POOLS
    ),
    *(
        Kernel(
            name=f"{variant}rope_attention_part_{dtype.suffix}",
            source="rope_attention_part",
            buffers=(
                *(_read("q"), _read("k"), _read("v"), _read("table")),
                *(_read("k_pages", vector), _read("v_pages", vector), _write("new_k", vector), _write("new_v", vector)),
                *(*_PAGED, _write("scratch", 16)),
            ),
            fields=(*_u32("heads kv_heads head_dim pairs positions interleaved"), *_CONTEXT, ("parts", "u32")),
            defines=(("ELEMENT", _ELEMENTS[dtype]), *more, ("READS", str(_READS))),
            features=features,
            ahead=("k_pages", "v_pages", "batch", "sequences"),
        )
        for variant, (more, features) in _EXCHANGES.items()
        for dtype, vector in _POOLS
    ),
    Kernel(
        name="attention_merge",
        source="attention_merge",
        buffers=(_read("scratch", 16), _BATCH, _read("sinks"), _write("out")),
        fields=_u32("batch_row rows heads head_dim out_stride parts"),
        ahead=(),
    ),
    *(
        Kernel(
            name=f"embed_{dtype.suffix}",
            source="embed",
            buffers=(_read("table"), _read("ids"), _write("out"), _BATCH),
            # The binding holds rows first_row .. first_row + bound_rows of a table of table_rows.
            fields=_u32("batch_row rows columns out_stride table_rows first_row bound_rows"),
            defines=(("FORMAT", dtype.name), ("EMBED_COLUMNS", str(EMBED_COLUMNS))),
        )
        for dtype in WEIGHTS
    ),
    *(
        Kernel(
            name=f"gemv_{dtype.suffix}",
            source="gemv",
            buffers=(_eights("weight", dtype), _read("x", 16), _update("out")),
            fields=_u32("n k accumulate groups"),
            defines=_by_eights(dtype),
        )
        for dtype in WEIGHTS
    ),
    *(
        Kernel(
            name=f"norm_gemv_{dtype.suffix}",
            source="norm_gemv",
            buffers=(_eights("weight", dtype), _read("x", 16), _read("norm", 16), _read("bias"), _write("out")),
            fields=(*_u32("n k"), ("eps", "f32"), *_u32("wide groups")),
            defines=_by_eights(dtype),
        )
        for dtype in WEIGHTS
    ),
    *(
        Kernel(
            name=f"gated_gemv_{dtype.suffix}",
            source="gated_gemv",
            buffers=(
                *(_eights("gate", dtype), _eights("up", dtype)),
                *(_read("x", 16), _read("norm", 16), _write("out")),
            ),
            fields=(*_u32("n k"), ("eps", "f32"), *_u32("activation wide groups")),
            defines=_by_eights(dtype),
        )
        for dtype in WEIGHTS
    ),
    *(
        _variant(
            variant,
            name=f"gemm{variant}_{dtype.suffix}",
            source="gemm",
            buffers=(_read("x"), _read("weight"), _update("out"), _BATCH),
            fields=_u32("batch_row rows n k x_stride out_stride accumulate"),
            defines=(("FORMAT", dtype.name),),
        )
        for variant in _VARIANTS
        for dtype in WEIGHTS
        if variant != "_simdgroup16" or dtype is not DType.F32  # float16 would round the weights too
    ),
    # The same with cooperative matrices, in tiles of two sizes: only where k is a multiple of 32, and the weights and
    # the rows of x and out begin at 16 bytes.
    *(
        Kernel(
            name=f"gemm_coopmat{tile}_{dtype.suffix}",
            source="matrices",
            # Offsets are in words all the same, as in the kernel that it takes the place of.
            buffers=(_read("x", 16), _eights("weight", dtype), _update("out"), _BATCH),
            fields=_u32("batch_row rows n k x_stride out_stride accumulate"),
            defines=(("FORMAT", f"{dtype.name}Eights"), ("TILE", str(tile))),
            features=("cooperative_matrix",),
        )
        for tile in COOPMAT_TILES
        for dtype in WEIGHTS
        if dtype is not DType.F32  # float16 would round the weights too
    ),
    # Operands for GEMMs by a library.
    Kernel(
        name="halve_rows",
        source="halve",
        buffers=(_read("x", 16), _write("halves", 16), _write("out"), _BATCH),
        fields=_u32("batch_row rows n k x_stride out_stride accumulate"),
        features=("mma",),
    ),
    *(
        Kernel(
            name=f"halve_{dtype.suffix}",
            source="halve",
            buffers=(_eights("weight", dtype), _write("halves", 16)),
            fields=_u32("rows columns"),
            defines=(("FORMAT", f"{dtype.name}Eights"),),
            features=("mma",),
        )
        for dtype in WEIGHTS
        if dtype not in (DType.F32, DType.F16)
    ),
    # The same as the GEMMs on cooperative matrices for few rows, under the same conditions.
    *(
        Kernel(
            name=f"gemm_few{across}_{dtype.suffix}",
            source="few_rows",
            buffers=(_read("x", 16), _eights("weight", dtype), _update("out"), _BATCH),
            fields=_u32("batch_row rows n k x_stride out_stride accumulate"),
            defines=(
                *(("FORMAT", f"{dtype.name}Eights"), ("TILE", str(COOPMAT_TILES[0]))),
                *(("ACROSS", str(across)), ("SPREAD", str(spread))),
            ),
            features=("mma",),
            size=256,
            spread=spread,
        )
        for across, spread in FEW_ACROSS.items()
        for dtype in WEIGHTS
        if dtype is not DType.F32
    ),
    Kernel(
        name="top_k",
        source="routing",
        buffers=(_read("logits"), _write("ids"), _write("weights"), _BATCH),
        fields=_u32("batch_row rows columns slots logits_stride normalized"),
    ),
    Kernel(
        name="weighted_sum",
        source="routing",
        buffers=(_read("x"), _read("weights"), _update("out"), _BATCH),
        fields=_u32("batch_row rows slots columns x_stride out_stride accumulate"),
    ),
    # Of ``experts`` experts, the binding holds first_expert .. first_expert + bound_experts; of each one's n outputs,
    # first_column .. first_column + columns are computed. A slot's x is x_slot elements after the one before it, or the
    # same if that is 0.
    *(
        Kernel(
            name=f"expert_gemv_{dtype.suffix}",
            source="expert_gemv",
            buffers=(_eights("weight", dtype), _read("x", 16), _read("ids"), _update("out")),
            fields=_u32("slots experts first_expert bound_experts n k first_column columns x_slot accumulate groups"),
            defines=_by_eights(dtype),
        )
        for dtype in WEIGHTS
    ),
    *(
        Kernel(
            name=f"expert_gemm_{dtype.suffix}",
            source="expert_gemm",
            buffers=(_read("x"), _read("weight"), _read("ids"), _update("out"), _BATCH),
            fields=_u32(
                "batch_row rows slots experts first_expert bound_experts n k first_column columns x_stride x_slot"
                " out_stride accumulate"
            ),
            defines=(("FORMAT", dtype.name),),
        )
        for dtype in WEIGHTS
    ),
    *(
        _variant(
            variant,
            name=f"matmul{variant}_{dtype.suffix}_{result.suffix}",
            source="matmul",
            buffers=(_read("a"), _read("b"), _write("out", result.block[1])),
            # Strides of a[batch, m, k], b[batch, k, n] and out[batch, m, n] along each; out's columns are contiguous.
            fields=_u32("batch m n k a_batch a_row a_column b_batch b_row b_column out_batch out_row"),
            defines=(("ELEMENT", _ELEMENTS[dtype]), ("RESULT", "float" if result is DType.F32 else "half")),
            features=() if result is DType.F32 else ("float16", "storage16"),
        )
        for variant in ("", "_simdgroup")
        for dtype in FLOATS
        for result in FLOATS
    ),
)


def cuda_prelude() -> bytes:
    """The content of CUDA_PRELUDE."""
    return (resources.files("wasmetal.kernels") / "generated" / "cuda" / CUDA_PRELUDE).read_bytes()


CATALOG: dict[str, Kernel] = {kernel.name: kernel for kernel in _KERNELS}
"""Every kernel, by name."""
CATALOG |= {
    kernel.name: kernel
    for kernel in [_sliced(CATALOG[f"{of}_{dtype.suffix}"], dtype) for of in _FLOATS for dtype in _SLICED]
}
