"""``wasmetal sdk``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

sdk = typer.Typer(help="Write guests: a header, a library and a template in C.", no_args_is_help=True)


@sdk.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The guest's name.", show_default=False)],
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to create the folder NAME.")] = Path(),
) -> None:
    """Create a folder with a guest in C: source, Makefile and README.

    The guest builds and runs as it is; `make test` in the folder does both.
    """
    from wasmetal.sdk import create

    folder = create(name, directory)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print("To build and run the guest, run `make test` in the folder. That needs a C compiler: pip install ziglang.")


@sdk.command()
def include_dir() -> None:
    """Print the folder of wasmetal.h, for the compiler's -I."""
    from wasmetal.sdk import INCLUDE

    print(INCLUDE)


@sdk.command()
def lib_dir() -> None:
    """Print the folder of the C library's sources.

    Compile them with a guest that includes wasmetal/text.h, wasmetal/sampler.h or wasmetal/speculate.h.
    """
    from wasmetal.sdk import LIBRARY

    print(LIBRARY)
