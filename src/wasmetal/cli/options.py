"""Options that several commands share, and parsing their values."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wasmetal.errors import WasmetalError

if TYPE_CHECKING:
    from wasmetal import Dir, Limits, NnModel

UNITS = {"": 1, "B": 1}
UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}


class OptionError(WasmetalError):
    """An option has an invalid value."""


def size(text: str) -> int:
    """Bytes in a size such as ``64MiB``, ``1.5GB`` or ``65536``. Raises OptionError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-zA-Z]*)", text.strip())
    if found is None or (unit := found[2].upper()) not in UNITS:
        raise OptionError(f"{text!r} is not a size; write a number of bytes, or for example 64MiB")
    return int(Decimal(found[1]) * UNITS[unit])


def pairs(values: list[str] | None, separator: str, form: str) -> list[tuple[str, str]]:
    """Each value split at its first separator. Raises OptionError if either side is empty."""
    found = []
    for value in values or []:
        left, _, right = value.partition(separator)
        if not (left and right):
            raise OptionError(f"{value!r} has not the form {form}")
        found.append((left, right))
    return found


def directories_of(values: list[str] | None) -> dict[str, Dir]:
    """What ``--dir`` grants, by the guest's names: as we write it, or as WasmEdge does. Raises OptionError."""
    from wasmetal import Dir

    found = {}
    for value in values or []:
        if edge := re.fullmatch("([^:]+):([^:]+)(:readonly)?", value):
            found[edge[1]] = Dir(edge[2], read_only=bool(edge[3]))
        else:
            ((outside, inside),) = pairs([value], "::", "HOST::GUEST[:ro]")
            found[inside.removesuffix(":ro")] = Dir(outside, read_only=inside.endswith(":ro"))
    return found


def nn_models(values: list[str] | None, preloaded: list[str] | None) -> dict[str, NnModel]:
    """What ``--nn`` and ``--nn-preload`` grant, by the guest's names. Raises GuestError."""
    from wasmetal.host.nn.grants import parse, parse_preload

    return dict([*map(parse, values or []), *map(parse_preload, preloaded or [])])


def limits_of(
    timeout: float | None, memory: str | None, device_memory: str | None, disk: str | None, nn_model: str | None = None
) -> Limits:
    """The limits that are given, the others as they are by default. Raises OptionError."""
    from wasmetal import Limits

    given = {"memory_bytes": memory, "device_bytes": device_memory, "disk_bytes": disk, "nn_model_bytes": nn_model}
    return Limits(**{name: size(text) for name, text in given.items() if text}, wall_seconds=timeout)


DEFAULT_MODEL = "smollm2:135m"

Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, vulkan, or one that `wasmetal devices` lists  [default: WASMETAL_DEVICE, or auto]",
    ),
]
Precise = Literal["exact", "standard", "fast"]
Precision = Annotated[
    Precise | None,
    typer.Option(
        "--precision",
        help="What activations may be rounded to: nothing; on GPUs float16 (on matrix units) or 8 bits (cuda: weights "
        "in Q8_0 and Q4_0); or 8 bits also on the CPU  [default: WASMETAL_PRECISION, or standard]",
    ),
]
KvType = Annotated[
    str | None,
    typer.Option(
        "--kv-type",
        metavar="TYPE",
        help="Type of the key-value cache: f32, f16 or q8_0  [default: f16 on GPUs, f32 elsewhere]",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", metavar="N", help="Tokens that a session may have  [default: 4096, or what it was trained for]"
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="TYPE", help="Quantize float weights while loading: q8_0, q4_0 or q4_k."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME=MODEL",
        help="Grant a model: the guest's name for it, and the model's name or path.",
    ),
]
Nn = Annotated[
    list[str] | None,
    typer.Option(
        "--nn",
        metavar="NAME=PATH[:OPTION=VALUE…]",
        help="Grant a model to wasi-nn: the guest's name for it, its path or name, and options.",
    ),
]
NnPreload = Annotated[
    list[str] | None,
    typer.Option("--nn-preload", metavar="NAME:ENCODING:TARGET:PATH", help="The same, as WasmEdge has it."),
]
NnModelLimit = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Let the guest bring models to wasi-nn, of up to this size  [default: none]"),
]
Directories = Annotated[
    list[str] | None,
    typer.Option(
        "--dir",
        metavar="HOST::GUEST[:ro]",
        help="Grant a directory: its path, and the guest's name for it; ':ro' for reading only. Or as WasmEdge has it: "
        "GUEST:HOST[:readonly].",
    ),
]
Environment = Annotated[
    list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="Set an environment variable.")
]
MemoryLimit = Annotated[str | None, typer.Option(metavar="SIZE", help="Limit on linear memory, for example 64MiB.")]
DeviceMemoryLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Limit on device memory, for example 1GiB.")
]
DiskLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Limit on what the guest adds to files  [default: 1GiB]")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
