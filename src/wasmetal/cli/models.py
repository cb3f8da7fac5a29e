"""``wasmetal pull`` and ``wasmetal models``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import Json
from wasmetal.cli.output import in_bytes, print_json, print_table

if TYPE_CHECKING:
    from wasmetal.models.files.store import Progress


def pull(name: Annotated[str, typer.Argument(help="The model, for example smollm2:135m.", show_default=False)]) -> None:
    """Download a model. An interrupted download resumes; the file is verified."""
    from wasmetal.models.files import store

    with progress(name) as report:
        path = store.pull(name, report)
    print(path)


def models(as_json: Json = False) -> None:
    """List the models that can be pulled, and which are on this machine."""
    from wasmetal.models.files import store

    present = {model.name: model for model in store.models()}
    if as_json:
        print_json(
            [
                {"name": known.name, "bytes": known.nbytes, "path": str(known.path) if known.name in present else None}
                for known in store.CATALOG.values()
            ]
        )
        return
    print_table(
        ("model", "size", "file"),
        [
            (known.name, in_bytes(known.nbytes), str(known.path) if known.name in present else "not pulled yet")
            for known in store.CATALOG.values()
        ],
    )


@contextmanager
def progress(name: str) -> Iterator[Progress]:
    """Show a download on stderr: a bar on a terminal, otherwise a line for every 10 %."""
    if not sys.stderr.isatty():
        tenths = 0

        def line(done: int, total: int) -> None:
            nonlocal tenths
            if total and done * 10 // total > tenths:
                tenths = done * 10 // total
                print(f"{name}: {tenths * 10} % of {in_bytes(total)}", file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
