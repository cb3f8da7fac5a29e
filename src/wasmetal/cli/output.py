"""Printing: JSON, tables, sizes, and guests' output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from wasmetal.host.wasi import Output


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: ruled on a terminal, columns padded with spaces if the output is piped."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns)
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for cells in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def in_bytes(count: int) -> str:
    """A number of bytes in the largest binary unit that fits it: ``16 MiB``, ``1.5 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}"


def in_thousands(count: int) -> str:
    """A number in the largest of these units that fits it: ``512``, ``135 M``, ``1.24 G``."""
    value, unit = float(count), ""
    for larger in (" k", " M", " G", " T"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}{unit}"


def writer(stream: TextIO) -> Callable[[bytes], object]:
    """A function that passes a guest's output on to a standard stream, byte for byte and at once."""

    def write(data: bytes) -> None:
        stream.buffer.write(data)
        stream.flush()

    return write


def text_writer(stream: TextIO) -> Callable[[str], object]:
    """A function that writes text to a standard stream at once. Characters that its encoding lacks become ``?``."""
    write = writer(stream)
    return lambda text: write(text.encode(stream.encoding, "replace"))


def guest_output(stream: TextIO) -> Output:
    """The function that prints a guest's output: unchanged into files and pipes, harmless on a terminal."""
    if not stream.isatty():
        return writer(stream)
    from wasmetal.cli.terminal import Plain

    return Plain(text_writer(stream))
