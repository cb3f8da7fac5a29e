"""``wasmetal devices``."""

from __future__ import annotations

from dataclasses import asdict

from wasmetal.cli.options import Json
from wasmetal.cli.output import in_bytes, print_json


def devices(as_json: Json = False) -> None:
    """List the devices that guests can use, best first."""
    from wasmetal.device import list_devices

    found = list_devices()
    if as_json:
        print_json([{"spec": info.spec, **asdict(info)} for info in found])
        return
    for info in found:
        print(f"{info.spec}  {info.name}")
        print(f"  driver     {info.driver}")
        print(f"  memory     {in_bytes(info.memory_bytes)}, {'unified' if info.unified else 'discrete'}")
        print(f"  alignment  pages {in_bytes(info.page_alignment)}, offsets {in_bytes(info.offset_alignment)}")
        print(f"  features   {', '.join(info.features)}")
