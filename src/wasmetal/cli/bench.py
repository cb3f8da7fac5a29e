"""``wasmetal bench``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import Device, Json, size
from wasmetal.cli.output import in_bytes, print_json, print_table

if TYPE_CHECKING:
    from wasmetal.device import DeviceInfo

bench = typer.Typer(help="Measure what sharing saves, what a round trip costs, how fast a model runs.")


@bench.command()
def zerocopy(
    device: Device = None,
    largest: Annotated[str, typer.Option(metavar="SIZE", help="Stop at this size.")] = "1GiB",
    as_json: Json = False,
) -> None:
    """Shared against copied: the device reads and writes an array in place, or in a copy there and back."""
    from wasmetal.bench import zerocopy
    from wasmetal.device import open_device

    most = size(largest)
    with open_device(device) as opened:
        info = opened.info
        measured = list(zerocopy.measure(opened, [nbytes for nbytes in zerocopy.SIZES if nbytes <= most]))
    rows = [row for row in measured if isinstance(row, zerocopy.Row)]
    skipped = [row for row in measured if isinstance(row, zerocopy.Skipped)]
    if as_json:
        print_json({**_named(info), "rows": list(map(asdict, rows)), "skipped": list(map(asdict, skipped))})
        return
    print(f"{info.spec}  {info.name}")
    print_table(
        ("size", "shared ms", "copied ms", "copied / shared", "bytes copied", "wrap ms, once"),
        [
            (
                in_bytes(row.nbytes),
                f"{row.shared_ms:.3f}",
                f"{row.copied_ms:.3f}",
                f"{row.copied_ms / row.shared_ms:.2f}",
                f"{row.bytes_copied_shared} against {row.bytes_copied_copied}",
                f"{row.wrap_ms:.3f}",
            )
            for row in rows
        ],
    )
    for row in skipped:
        print(f"{in_bytes(row.nbytes)} skipped: {row.reason}")


@bench.command()
def dispatch(device: Device = None, as_json: Json = False) -> None:
    """One round trip guest → device → guest with one small kernel: where its time goes."""
    from wasmetal.bench import dispatch
    from wasmetal.device import open_device

    with open_device(device) as opened:
        info = opened.info
        splits = dispatch.measure(opened)
    if as_json:
        print_json({**_named(info), **{name: asdict(split) for name, split in splits.items()}})
        return
    print(f"{info.spec}  {info.name}: medians in µs")
    parts = ("total", "host_call", "encode", "submit", "wait")
    print_table(
        ("command list", *(part.replace("_", " ") for part in parts)),
        [(name, *(f"{getattr(split, part + '_us'):.1f}" for part in parts)) for name, split in splits.items()],
    )


def _named(info: DeviceInfo) -> dict[str, str]:
    return {"device": info.spec, "name": info.name}
