"""``wasmetal embed``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from wasmetal.cli.options import Device, Json
from wasmetal.cli.output import print_json


def embed(
    model: Annotated[
        str, typer.Argument(help="An embedding model: a name, a GGUF file or a folder.", show_default=False)
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; without any, each line of standard input.", show_default=False)
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut off texts that are too long.")] = False,
    as_json: Json = False,
    device: Device = None,
) -> None:
    """Print a vector of length 1 for each text, on a line of numbers each."""
    from wasmetal import load_embedder
    from wasmetal.device import open_device

    texts = texts or [line.rstrip("\n") for line in sys.stdin]
    with open_device(device) as opened, load_embedder(model, opened) as embedder:
        vectors = embedder.embed(texts, truncate=truncate)
    if as_json:
        print_json(vectors.tolist())
        return
    for vector in vectors:
        print(*(f"{value:.7g}" for value in vector))
