"""``wasmetal chat``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from wasmetal.cli.models import progress
from wasmetal.cli.options import DEFAULT_MODEL, Device
from wasmetal.cli.output import in_bytes, writer
from wasmetal.cli.run import run_or_leave


def chat(
    model: Annotated[str, typer.Argument(help="A model that `wasmetal models` lists, or a GGUF file.")] = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Answer this, and nothing more.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is to be.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the text as it stands, without a chat template.")
    ] = False,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, max=2**32 - 1, help="Longest reply.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**53, help="Make the choice of tokens repeatable.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=100, help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Choose among so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="… among the likeliest of this share.")] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="… at least this likely, next to the best.")] = None,
    repeat_penalty: Annotated[float | None, typer.Option(min=0.01, max=100, help="1 is none.")] = None,
    device: Device = None,
    counters: Annotated[bool, typer.Option("--counters", help="Then print what was copied, shared and run.")] = False,
) -> None:
    """Chat with a model, inside a sandboxed guest. With -p, print the reply and nothing else."""
    from wasmetal import Guest, packaged

    if prompt is None:
        _offer_to_pull(model)
    values = {
        "-p": prompt,
        "--system": system,
        "--max-tokens": max_tokens,
        "--seed": seed,
        "--temperature": temperature,
        "--top-k": top_k,
        "--top-p": top_p,
        "--min-p": min_p,
        "--repeat-penalty": repeat_penalty,
    }
    arguments = [text for name, value in values.items() if value is not None for text in (name, str(value))]
    arguments += [name for name, given in {"--raw": raw, "--greedy": greedy}.items() if given]
    with Guest(
        packaged.guest("chat"),
        device=device,
        models={"default": model},
        args=arguments,
        stdin="inherit",
        stdout=writer(sys.stdout),
        stderr=writer(sys.stderr),
    ) as guest:
        code = run_or_leave(guest)
        if counters:
            print()
            totals = guest.counters.as_dict()
            totals["bytes_copied"] = totals.pop("bytes_copied")  # the point of it all comes last
            for name, total in totals.items():
                print(name.replace("_", " "), f"{total:.3f}" if isinstance(total, float) else total)
    raise typer.Exit(code)


def _offer_to_pull(name: str) -> None:
    """On a terminal, ask whether to bring a known model that is not on this machine yet."""
    from wasmetal.models.files import store

    known = store.CATALOG.get(name)
    if known is None or known.path.exists() or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if typer.confirm(f"{name} is not on this machine yet. Download {in_bytes(known.nbytes)}?", default=True, err=True):
        with progress(name) as report:
            store.pull(name, report)
