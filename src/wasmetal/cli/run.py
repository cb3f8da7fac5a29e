"""``wasmetal run``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.models import progress
from wasmetal.cli.options import (
    Context,
    Device,
    DeviceMemoryLimit,
    Directories,
    DiskLimit,
    Environment,
    KvType,
    MemoryLimit,
    Models,
    Nn,
    NnModelLimit,
    NnPreload,
    Quantize,
    directories_of,
    limits_of,
    nn_models,
    pairs,
)
from wasmetal.cli.output import writer

if TYPE_CHECKING:
    from wasmetal import Guest


def run(
    guest: Annotated[
        Path, typer.Argument(metavar="GUEST.wasm", help="A WASI module or component.", show_default=False)
    ],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="The guest's arguments.")] = None,
    model: Models = None,
    nn: Nn = None,
    nn_preload: NnPreload = None,
    nn_model_limit: NnModelLimit = None,
    directory: Directories = None,
    env: Environment = None,
    memory_limit: MemoryLimit = None,
    device_memory_limit: DeviceMemoryLimit = None,
    disk_limit: DiskLimit = None,
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
    from wasmetal import Guest

    limits = limits_of(timeout, memory_limit, device_memory_limit, disk_limit, nn_model_limit)
    loading = {"context": context, "kv_type": kv_type, "quantize": quantize}
    with ExitStack() as stack:
        with progress("quantizing") if quantize and not isolate else nullcontext() as report:
            running = stack.enter_context(
                Guest(
                    guest,
                    device=device,
                    models=dict(pairs(model, "=", "NAME=MODEL")),
                    loading=loading | ({"progress": report} if report else {}),
                    nn=nn_models(nn, nn_preload),
                    args=arguments or [],
                    env=dict(pairs(env, "=", "KEY=VALUE")),
                    dirs=directories_of(directory),
                    limits=limits,
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
