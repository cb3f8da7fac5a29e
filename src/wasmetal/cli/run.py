"""``wasmetal run``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.models import progress
from wasmetal.cli.options import Context, Device, KvType, Quantize, pairs, size
from wasmetal.cli.output import writer

if TYPE_CHECKING:
    from wasmetal import Guest


def run(
    guest: Annotated[Path, typer.Argument(metavar="GUEST.wasm", help="A WASI module.", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="The guest's arguments.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=MODEL",
            help="Grant a model: the guest's name for it, and the model's name or path.",
        ),
    ] = None,
    directory: Annotated[
        list[str] | None,
        typer.Option(
            "--dir",
            metavar="HOST::GUEST[:ro]",
            help="Grant a directory: its path, and the guest's name for it; ':ro' for reading only.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="Set an environment variable.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Limit on linear memory, for example 64MiB.")
    ] = None,
    device_memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Limit on device memory, for example 1GiB.")
    ] = None,
    disk_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Limit on what the guest adds to files  [default: 1GiB]")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="Limit on the running time.")] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Compile the guest without limits on the compiler's time and memory.")
    ] = False,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Run the guest, with a device of its own, in a process of its own.")
    ] = False,
    context: Context = None,
    kv_type: KvType = None,
    quantize: Quantize = None,
    device: Device = None,
) -> None:
    """Run a guest, and exit with its exit code.

    The guest gets standard input and output, a device, and what the options grant; nothing else. Options of wasmetal
    must come before GUEST.wasm; everything after it is passed to the guest.
    """
    from wasmetal import Dir, Guest, Limits

    limits = {}
    if memory_limit:
        limits["memory_bytes"] = size(memory_limit)
    if device_memory_limit:
        limits["device_bytes"] = size(device_memory_limit)
    if disk_limit:
        limits["disk_bytes"] = size(disk_limit)
    loading = {"context": context, "kv_type": kv_type, "quantize": quantize}
    with ExitStack() as stack:
        with progress("quantizing") if quantize and not isolate else nullcontext() as report:
            running = stack.enter_context(
                Guest(
                    guest,
                    device=device,
                    models=dict(pairs(model, "=", "NAME=MODEL")),
                    loading=loading | ({"progress": report} if report else {}),
                    args=arguments or [],
                    env=dict(pairs(env, "=", "KEY=VALUE")),
                    dirs={
                        inside.removesuffix(":ro"): Dir(outside, read_only=inside.endswith(":ro"))
                        for outside, inside in pairs(directory, "::", "HOST::GUEST[:ro]")
                    },
                    limits=Limits(**limits, wall_seconds=timeout),
                    trusted=trusted,
                    isolation="process" if isolate else None,
                    stdin="inherit",
                    stdout=writer(sys.stdout),
                    stderr=writer(sys.stderr),
                )
            )
        code = run_or_leave(running)
    raise typer.Exit(code)


def run_or_leave(guest: Guest) -> int:
    """Run the guest and return its exit code. Ctrl-C ends the process immediately, with exit code 130.

    A guest in a long kernel of the CPU device cannot be stopped, so closing it properly would have to wait for that.
    """
    try:
        return guest.run()
    except KeyboardInterrupt:
        os._exit(130)
