"""``wasmetal run``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import Device, pairs, size
from wasmetal.cli.output import writer

if TYPE_CHECKING:
    from wasmetal import Guest


def run(
    guest: Annotated[Path, typer.Argument(metavar="GUEST.wasm", help="A WASI module.", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="The guest's arguments.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=MODEL", help="Grant a model: the guest's name for it, and its own."),
    ] = None,
    directory: Annotated[
        list[str] | None,
        typer.Option("--dir", metavar="HOST::GUEST", help="Grant a directory, and the guest's name for it."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="Set a variable.")] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most linear memory, for example 64MiB.")
    ] = None,
    device_memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most device memory, for example 1GiB.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="Longest time to run.")] = None,
    device: Device = None,
) -> None:
    """Run a guest, and exit with its exit code.

    It gets standard input and output, a device, and what the options grant; nothing else. Options of wasmetal go before
    GUEST.wasm: all that follows it is the guest's.
    """
    from wasmetal import Guest, Limits

    limits = {}
    if memory_limit:
        limits["memory_bytes"] = size(memory_limit)
    if device_memory_limit:
        limits["device_bytes"] = size(device_memory_limit)
    with Guest(
        guest,
        device=device,
        models=dict(pairs(model, "=", "NAME=MODEL")),
        args=arguments or [],
        env=dict(pairs(env, "=", "KEY=VALUE")),
        dirs={inside: outside for outside, inside in pairs(directory, "::", "HOST::GUEST")},
        limits=Limits(**limits, wall_seconds=timeout),
        stdin="inherit",
        stdout=writer(sys.stdout),
        stderr=writer(sys.stderr),
    ) as running:
        code = run_or_leave(running)
    raise typer.Exit(code)


def run_or_leave(guest: Guest) -> int:
    """Run the guest, and return its exit code. Ctrl-C ends the process then and there: exit code 130.

    A guest that waits for a line of input cannot be stopped, so closing it in good order would take until it gets one.
    """
    try:
        return guest.run()
    except KeyboardInterrupt:
        os._exit(130)
