"""``wasmetal chat``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.models import progress
from wasmetal.cli.options import DEFAULT_MODEL, Context, Device, KvType, Precision, Quantize
from wasmetal.cli.output import guest_output, in_bytes, text_writer
from wasmetal.cli.run import run_or_leave

if TYPE_CHECKING:
    from wasmetal import Counters
    from wasmetal.models import Model


def chat(
    model: Annotated[str, typer.Argument(help="A model that `wasmetal models` lists, or a GGUF file.")] = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Answer this prompt and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the text without a chat template.")] = False,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    # Numbers stay text here: the guest checks them and reports their ranges.
    max_tokens: Annotated[str | None, typer.Option(metavar="N", help="Most tokens of an answer.")] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="Seed of the random choice of tokens, for repeatable answers.")
    ] = None,
    temperature: Annotated[str | None, typer.Option(metavar="T", help="Randomness of the choice; 0 is greedy.")] = None,
    top_k: Annotated[
        str | None, typer.Option(metavar="K", help="Choose among the K likeliest tokens; 0 is all.")
    ] = None,
    top_p: Annotated[
        str | None,
        typer.Option(metavar="P", help="Choose among the likeliest tokens with this total probability; 1 is all."),
    ] = None,
    min_p: Annotated[
        str | None,
        typer.Option(metavar="P", help="Choose among tokens at least this likely, relative to the likeliest."),
    ] = None,
    repeat_penalty: Annotated[
        str | None, typer.Option(metavar="R", help="Penalty on recent tokens; 1 is none.")
    ] = None,
    draft_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="D",
            help="Guess up to D tokens at a time from what was said before, and verify them together; 0 is off.",
        ),
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Let this model guess them: a smaller one with the same vocabulary."),
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Render the model's chat template without limits on time and memory.")
    ] = False,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Write the conversation as a family of models does, such as chatml."),
    ] = None,
    context: Context = None,
    kv_type: KvType = None,
    quantize: Quantize = None,
    device: Device = None,
    precision: Precision = None,
    stats: Annotated[
        bool,
        typer.Option("--stats", help="At the end, print tokens, seconds and context use as JSON on standard error."),
    ] = False,
    counters: Annotated[
        bool,
        typer.Option(
            "--counters", help="At the end, print the counters: bytes copied and shared, host calls, kernels run."
        ),
    ] = False,
) -> None:
    """Chat with a model, inside a sandboxed guest.

    At a terminal, /help lists the commands (/system, /reset, /save, /load, /stats, /bye), the arrow keys bring back
    earlier messages, Ctrl-C stops an answer, and Ctrl-D leaves. With -p, or if standard input or output is no terminal,
    it answers the prompt, or each line of standard input, and prints the answers and nothing else.
    """
    from wasmetal.device import open_device
    from wasmetal.models import load_model

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
        "--draft-tokens": draft_tokens,
        "--draft-model": draft_model and "draft",
    }
    arguments = [text for name, value in values.items() if value is not None for text in (name, value)]
    arguments += [name for name, given in {"--raw": raw, "--greedy": greedy, "--stats": stats}.items() if given]
    if prompt is None:
        _offer_to_pull(model)
    at_terminal = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    with ExitStack() as stack:
        opened = stack.enter_context(open_device(device, precision))
        options = partial(
            load_model, context=context, kv_type=kv_type, trusted=trusted or None, chat_template=chat_template
        )
        with progress(f"quantizing {model}") if quantize else nullcontext() as report:
            loaded = stack.enter_context(options(model, opened, quantize=quantize, progress=report))
        models = {"default": loaded}
        if draft_model:
            models["draft"] = stack.enter_context(options(draft_model, opened))
        code, totals = (_at_terminal if at_terminal else _as_filter)(model, models, arguments)
        for each in models.values():
            totals.add(each.counters)
    if counters:
        _print_counters(totals)
    raise typer.Exit(code)


def _as_filter(name: str, models: dict[str, Model], arguments: Sequence[str]) -> tuple[int, Counters]:
    """Answer the prompt, or each line of standard input. Returns the exit code and the counters."""
    from wasmetal import Guest, packaged

    with Guest(
        packaged.guest("chat"),
        device=models["default"].device,
        models=models,
        args=arguments,
        trusted=True,  # wasmetal's own guest
        stdin="inherit",
        stdout=guest_output(sys.stdout),
        stderr=guest_output(sys.stderr),
    ) as guest:
        return run_or_leave(guest), guest.counters


def _at_terminal(name: str, models: dict[str, Model], arguments: Sequence[str]) -> tuple[int, Counters]:
    """Converse with the user. Returns the exit code and the counters."""
    from wasmetal.cli import interactive
    from wasmetal.cli.prompt import prompt_reader
    from wasmetal.cli.terminal import Wrapped
    from wasmetal.conversation import Conversation
    from wasmetal.home import home

    model, draft_model = models["default"], models.get("draft")
    out = Wrapped(text_writer(sys.stdout), interactive.columns)
    with Conversation(
        model,
        draft_model=draft_model,
        device=model.device,
        arguments=arguments,
        stdout=out,
        stderr=guest_output(sys.stderr),
    ) as conversation:
        if not (code := conversation.open()):
            print(interactive.greeting(name, model.device.info, conversation.stats()))
            interactive.converse(conversation, out, prompt_reader(home() / "chat-history"))
        return code, conversation.guest.counters


def _print_counters(counters: Counters) -> None:
    print()
    totals = counters.as_dict()
    totals["bytes_copied"] = totals.pop("bytes_copied")  # the most important one last
    for name, total in totals.items():
        print(name.replace("_", " "), f"{total:.3f}" if isinstance(total, float) else total)


def _offer_to_pull(name: str) -> None:
    """On a terminal, offer to download a known model that is not on this machine yet."""
    from wasmetal.models.files import store

    known = store.CATALOG.get(name)
    if known is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if (found := store.find(name)) and found.complete:
        return
    size = f" {in_bytes(known.nbytes)}" if known.nbytes else " it"
    asks = f" and accept its licence, {terms}" if (terms := known.terms) else ""
    if typer.confirm(f"{name} is not on this machine yet. Download{size}{asks}?", default=not asks, err=True):
        with progress(name) as report:
            store.pull(name, report, accept_licence=True, notice=lambda text: print(text, file=sys.stderr))
