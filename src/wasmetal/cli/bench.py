"""``wasmetal bench``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import DEFAULT_MODEL, Device, Json, KvType, Precision, Quantize, size
from wasmetal.cli.output import in_bytes, print_json, print_table

if TYPE_CHECKING:
    from wasmetal.device import DeviceInfo

bench = typer.Typer(
    help="Measure what sharing saves, what round trips, new guests and frozen actors cost, and how fast a model runs."
)


@bench.command()
def zerocopy(
    device: Device = None,
    largest: Annotated[str, typer.Option(metavar="SIZE", help="Stop at this size.")] = "1GiB",
    as_json: Json = False,
) -> None:
    """Shared against copied: the device works on an array in place, or on a copy that is copied back."""
    from wasmetal.bench import zerocopy
    from wasmetal.device import open_device

    most = size(largest)
    with open_device(device) as opened:
        info = opened.info
        measured = list(zerocopy.measure(opened, [nbytes for nbytes in zerocopy.SIZES if nbytes <= most]))
    rows = [row for row in measured if isinstance(row, zerocopy.Row)]
    skipped = [row for row in measured if isinstance(row, zerocopy.Skipped)]
    if as_json:
        print_json({**_named(info), "rows": list(map(asdict, rows)), "skipped": list(map(asdict, skipped))})
        return
    print(f"{info.spec}  {info.name}")
    print_table(
        ("size", "shared ms", "copied ms", "copied / shared", "bytes copied", "wrap ms, once", "read GB/s"),
        [
            (
                in_bytes(row.nbytes),
                f"{row.shared_ms:.3f}",
                f"{row.copied_ms:.3f}",
                f"{row.copied_ms / row.shared_ms:.2f}",
                f"{row.bytes_copied_shared} against {row.bytes_copied_copied}",
                f"{row.wrap_ms:.3f}",
                f"{row.read_gbs:.1f}",
            )
            for row in rows
        ],
    )
    for row in skipped:
        print(f"{in_bytes(row.nbytes)} skipped: {row.reason}")


@bench.command()
def dispatch(device: Device = None, as_json: Json = False) -> None:
    """One round trip guest → device → guest with one small kernel: where its time goes."""
    from wasmetal.bench import dispatch
    from wasmetal.device import open_device

    with open_device(device) as opened:
        info = opened.info
        splits = dispatch.measure(opened)
    if as_json:
        print_json({**_named(info), **{name: asdict(split) for name, split in splits.items()}})
        return
    print(f"{info.spec}  {info.name}: medians in µs")
    parts = ("total", "host_call", "encode", "submit", "wait")
    print_table(
        ("command list", *(part.replace("_", " ") for part in parts)),
        [(name, *(f"{getattr(split, part + '_us'):.1f}" for part in parts)) for name, split in splits.items()],
    )


@bench.command()
def instantiate(device: Device = None, as_json: Json = False) -> None:
    """From a module to a guest: compiling, loading compiled code from the cache, creating and closing an instance."""
    from wasmetal.bench import instantiate
    from wasmetal.device import open_device

    with open_device(device) as opened:
        info = opened.info
        measured = instantiate.measure(opened)
    if as_json:
        print_json({**_named(info), **{step: asdict(times) for step, times in measured.items()}})
        return
    print(f"{info.spec}  {info.name}: the chat guest, in ms")
    print_table(
        ("step", "median", "95 % within"),
        [(step, f"{1e3 * times.median:.3f}", f"{1e3 * times.p95:.3f}") for step, times in measured.items()],
    )


@bench.command()
def nn(as_json: Json = False) -> None:
    """An ONNX model run on a guest's image: copied, bound where it lies, and ONNX Runtime called plainly."""
    from wasmetal.bench import nn

    rows = nn.measure()
    if as_json:
        print_json({"rows": list(map(asdict, rows))})
        return
    print(f"an image of {in_bytes(4 * prod(nn.SHAPE))} to {in_bytes(4 * prod(nn.RESULT))}")
    print_table(
        ("way", "µs", "processor", "of plain", "bytes copied"),
        [
            (row.way, f"{row.microseconds:.0f}", f"{row.processor:.0f}", f"{row.of_plain:.3f}", str(row.bytes_copied))
            for row in rows
        ],
    )


@bench.command()
def llm(
    model: Annotated[str, typer.Argument(help="A model that `wasmetal models` lists, or a GGUF file.")] = DEFAULT_MODEL,
    device: Device = None,
    precision: Precision = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens to prefill.")] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the median is reported.")] = 3,
    kv_type: KvType = None,
    quantize: Quantize = None,
    as_json: Json = False,
) -> None:
    """Tokens per second from the chat guest and from plain Python; from llama.cpp too if llama-bench is on PATH."""
    from wasmetal.bench import llm
    from wasmetal.device import open_device

    with open_device(device, precision) as opened:
        info = opened.info
        result = llm.measure(opened, model, prompt_tokens, tokens, repeats, kv_type=kv_type, quantize=quantize)
    shares = [speed.decode / result.bound for speed in result.speeds]
    if as_json:
        print_json(
            {
                **_named(info),
                "model": model,
                "weight_bytes": result.weight_bytes,
                "bandwidth_bytes_per_second": result.bandwidth,
                "decode_bound_tokens_per_second": result.bound,
                "engines": [
                    {
                        "engine": speed.engine,
                        "prefill_tokens_per_second": speed.prefill,
                        "decode_tokens_per_second": speed.decode,
                        "decode_share_of_bound": share,
                        "first_token_seconds": speed.first_token,
                    }
                    for speed, share in zip(result.speeds, shares, strict=True)
                ],
            }
        )
        return
    print(f"{info.spec}  {info.name}: {model}")
    print_table(
        (
            "engine",
            f"prefill {prompt_tokens}, tokens/s",
            f"decode {tokens}, tokens/s",
            "share of bound",
            "first token, ms",
        ),
        [
            (
                speed.engine,
                f"{speed.prefill:.0f}",
                f"{speed.decode:.1f}",
                f"{share:.2f}",
                f"{1e3 * speed.first_token:.1f}",
            )
            for speed, share in zip(result.speeds, shares, strict=True)
        ],
    )
    print(
        f"bound: {in_bytes(result.weight_bytes)} of weights a token at {result.bandwidth / 1e9:.1f} GB/s, "
        f"as measured, would be {result.bound:.1f} tokens/s"
    )


@bench.command()
def actor(
    model: Annotated[str, typer.Argument(help="A model that `wasmetal models` lists, or a GGUF file.")] = DEFAULT_MODEL,
    device: Device = None,
    precision: Precision = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens of a conversation; may be given several times  [default: 24, 512, 4096]"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the median is reported.")] = 3,
    folder: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Save to the disk of this folder  [default: that of temporary files]"
        ),
    ] = None,
    kv_type: KvType = None,
    quantize: Quantize = None,
    as_json: Json = False,
) -> None:
    """Freezing, thawing and forking a conversation in the chat guest, against prefilling the same tokens."""
    from wasmetal.bench import actor
    from wasmetal.device import open_device

    with open_device(device, precision) as opened:
        info = opened.info
        rows = actor.measure(
            opened, model, tokens or actor.TOKENS, repeats, kv_type=kv_type, quantize=quantize, folder=folder
        )
    if as_json:
        measured = [
            asdict(row)
            | {
                "thaw_of_prefill": row.thaw / row.prefill,
                "thaw_first_token_of_prefill": row.thaw_first_token / row.prefill,
                "thaw_first_token_beyond_awake": row.thaw_first_token - row.awake_first_token,
                "load_first_token_beyond_awake": row.load_first_token - row.awake_first_token,
                "freeze_bytes_per_second": row.nbytes / row.freeze,
            }
            for row in rows
        ]
        print_json({**_named(info), "model": model, "repeats": repeats, "rows": measured})
        return
    print(f"{info.spec}  {info.name}: {model}; medians of {repeats} in ms")

    def moved(row: actor.Row, seconds: float) -> str:
        return f"{1e3 * seconds:.2f} ({row.nbytes / seconds / 1e9:.2f} GB/s)"

    lines: list[tuple[str, Callable[[actor.Row], str]]] = [
        ("bytes", lambda row: in_bytes(row.nbytes)),
        ("bytes, new one message later", lambda row: in_bytes(row.later_nbytes)),
        ("prefill to the first token", lambda row: f"{1e3 * row.prefill:.2f}"),
        ("freeze", lambda row: moved(row, row.freeze)),
        ("freeze, one message later", lambda row: f"{1e3 * row.freeze_later:.2f}"),
        ("freeze to the disk", lambda row: moved(row, row.save)),
        ("freeze to the disk, one message later", lambda row: f"{1e3 * row.save_later:.2f}"),
        ("thaw", lambda row: f"{1e3 * row.thaw:.2f}"),
        ("thaw to the first token", lambda row: f"{1e3 * row.thaw_first_token:.2f}"),
        ("  beyond that of an actor awake", lambda row: f"{1e3 * (row.thaw_first_token - row.awake_first_token):.2f}"),
        ("  of the time of prefill", lambda row: f"{row.thaw_first_token / row.prefill:.4f}"),
        ("thaw from a store", lambda row: moved(row, row.load)),
        ("thaw from a store to the first token", lambda row: f"{1e3 * row.load_first_token:.2f}"),
        ("  beyond that of an actor awake", lambda row: f"{1e3 * (row.load_first_token - row.awake_first_token):.2f}"),
        ("fork", lambda row: f"{1e3 * row.fork:.2f}"),
    ]
    print_table(("", *(f"{row.tokens} tokens" for row in rows)), [(name, *map(of, rows)) for name, of in lines])


def _named(info: DeviceInfo) -> dict[str, str]:
    return {"device": info.spec, "name": info.name}
