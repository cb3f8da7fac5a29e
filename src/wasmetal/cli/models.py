"""``wasmetal pull`` and ``wasmetal models``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wasmetal.cli.options import Context, Json, KvType, Quantize
from wasmetal.cli.output import in_bytes, in_thousands, print_json, print_table
from wasmetal.errors import WasmetalError, printable

if TYPE_CHECKING:
    from wasmetal.models.files.store import Progress, StoredModel
    from wasmetal.models.summary import Summary


def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="A name that `wasmetal models` lists; hf:ORG/REPO, hf:ORG/REPO:FILE or hf:ORG/REPO:Q4_K_M on the "
            "Hugging Face Hub, GGUF files or a folder of safetensors; or the URL of a GGUF file.",
            show_default=False,
        ),
    ],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the model's licence, where it asks for that.")
    ] = False,
) -> None:
    """Download a model, verify it, and print its path. The licence is shown before."""
    from wasmetal.models.files import store

    with progress(name.rpartition("/")[2].partition("?")[0]) as report:
        path = store.pull(name, report, accept_licence=accept_licence, notice=lambda text: print(text, file=sys.stderr))
    print(path)


models = typer.Typer(help="The models on this machine, and those that can be pulled by name.")


@models.callback(invoke_without_command=True)
def listed(context: typer.Context, as_json: Json = False) -> None:
    """List the models on this machine, and those that can be pulled by name."""
    from wasmetal.models.files import store

    if context.invoked_subcommand:
        return
    rows = [_entry(model) for model in store.models()]
    here = {row["name"] for row in rows}
    rows += [
        {"name": known.name, "bytes": known.nbytes, "licence": known.licence, "source": known.origin, "path": None}
        for known in store.CATALOG.values()
        if known.name not in here
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("model", "size", "licence", "file"),
        [
            (
                row["name"],
                in_bytes(row["bytes"]) if row["bytes"] else "",
                row["licence"] or "",
                row["path"] or ("not pulled yet" if row["name"] not in here else "missing: pull it again"),
            )
            for row in rows
        ],
    )


@models.command()
def show(
    model: Annotated[str, typer.Argument(help="A model on this machine, a GGUF file or a folder.", show_default=False)],
    context: Context = None,
    sessions: Annotated[int, typer.Option(metavar="M", help="Sessions at the same time.")] = 1,
    kv_type: KvType = None,
    quantize: Quantize = None,
    as_json: Json = False,
) -> None:
    """Show what a model is, and the memory that it takes for so many sessions of so many tokens."""
    from wasmetal.device import list_devices
    from wasmetal.models.files import store
    from wasmetal.models.files.quantize import quantize as quantize_file
    from wasmetal.models.hf_folder import open_model_file
    from wasmetal.models.summary import memory_needed, shortage, summarize

    file = open_model_file(store.resolve(model))
    if quantize is not None:
        quantize_file(file, quantize)
    summary = summarize(file)
    stored = store.find(model)
    licence = (stored.licence if stored else None) or summary.licence
    memory, refusal, short = None, None, {}
    try:
        memory = memory_needed(file, context, sessions, kv_type)
        short = {info.spec: shortage(file, memory, info, kv_type) for info in list_devices()}
    except WasmetalError as error:
        if (context, sessions, kv_type) != (None, 1, None):
            raise
        refusal = str(error)
    if as_json:
        types = {name: {"tensors": count, "bytes": nbytes} for name, (count, nbytes) in summary.types.items()}
        needed = None if memory is None else asdict(memory) | {"total": memory.total}
        shown = asdict(summary) | {"path": str(file.path), "licence": licence, "types": types}
        print_json(shown | {"memory": needed, "short": short, "refusal": refusal})
        return
    lines = [
        ("file", str(file.path) + (f", in {len(file.sources)} parts" if len(file.sources) > 1 else "")),
        ("name", printable(summary.title or "")),
        ("architecture", printable(summary.architecture)),
        ("parameters", in_thousands(summary.parameters)),
        ("experts", _experts(summary)),
        ("licence", printable(licence or "not named")),
        ("trained for", f"{summary.context} tokens" if summary.context else "not named"),
        ("vocabulary", f"{summary.vocabulary} tokens" if summary.vocabulary else "none"),
    ]
    lines += [
        (f"weights {name}", f"{in_bytes(nbytes)} in {count} tensor{'' if count == 1 else 's'}")
        for name, (count, nbytes) in summary.types.items()
    ]
    if memory:
        expanding = ", ".join(info.spec for info in list_devices() if info.expands_weights)
        lines += [
            ("memory", f"{in_bytes(memory.total)} for {memory.sessions} × {memory.context} tokens"),
            ("  weights", in_bytes(memory.weights)),
            ("  scratch", in_bytes(memory.scratch)),
        ]
        if memory.kv_type:
            lines.append(("  KV cache", f"{in_bytes(memory.kv_cache)} in {memory.kv_type}, when it is full"))
        if expanding:
            lines.append((f"  weights on {expanding}", f"{in_bytes(memory.expanded_weights)}, expanded to float32"))
        lines += [(f"not on {spec}", problem) for spec, problem in short.items() if problem]
    else:
        lines.append(("cannot be used", refusal or ""))
    print_table(("property", "value"), [line for line in lines if line[1]])


@models.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models on this machine.", show_default=False)],
) -> None:
    """Remove models from this machine."""
    from wasmetal.models.files import store

    for name in names:
        model = store.remove(name)
        print(f"removed {model.name}, {in_bytes(model.nbytes)}")


@models.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Models on this machine; by default all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the files with the checksums that they had when they were pulled. Exits with 1 if one differs."""
    from wasmetal.models.files import store

    found = [store.here(name) for name in names] if names else store.models()
    wrong = {model.name: store.verify(model) for model in found}
    if as_json:
        print_json([{"name": name, "ok": not lines, "errors": lines} for name, lines in wrong.items()])
    else:
        print_table(
            ("model", "result"), [(name, line) for name, lines in wrong.items() for line in lines or ["unchanged"]]
        )
    raise typer.Exit(any(wrong.values()))


def _experts(summary: Summary) -> str:
    if not summary.experts:
        return ""
    active = in_thousands(summary.active_parameters)
    return f"{summary.experts} in each layer, {summary.experts_used} used by each token: {active} parameters active"


def _entry(model: StoredModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "bytes": model.nbytes,
        "licence": model.licence,
        "source": model.source,
        "path": str(model.path) if model.complete else None,
    }


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

    columns = (TextColumn(name, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
