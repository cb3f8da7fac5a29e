"""``wasmetal doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from wasmetal.cli.options import Device, Json
from wasmetal.cli.output import print_json

if TYPE_CHECKING:
    from wasmetal.doctor import Report


def doctor(device: Device = None, as_json: Json = False) -> None:
    """Prove, link by link, that guest, host and device work on the same bytes. Exits with 1 if a link fails."""
    from wasmetal.device import list_devices, open_device
    from wasmetal.doctor import prove

    reports = []
    for spec in [device] if device else [info.spec for info in list_devices()]:
        with open_device(spec) as opened:
            reports.append(prove(opened))
        if not as_json:
            _show(reports[-1])
    if as_json:
        print_json({"devices": [report.as_dict() for report in reports]})
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def _show(report: Report) -> None:
    print(f"{report.spec}  {report.name}")
    print(f"  uses    {', '.join(report.features)}")
    for link in report.links:
        print(f"  {'ok    ' if link.ok else 'FAILED'}  {link.name:<10} {link.saw}")
