"""``wasmetal bench``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import DEFAULT_MODEL, Device, Json, KvType, Precision, Quantize, size
from wasmetal.cli.output import in_bytes, print_json, print_table

if TYPE_CHECKING:
    from wasmetal.device import DeviceInfo

bench = typer.Typer(
    help="Measure what sharing saves, what a round trip and a new guest cost, and how fast a model runs."
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
        ("size", "shared ms", "copied ms", "copied / shared", "bytes copied", "wrap ms, once"),
        [
            (
                in_bytes(row.nbytes),
                f"{row.shared_ms:.3f}",
                f"{row.copied_ms:.3f}",
                f"{row.copied_ms / row.shared_ms:.2f}",
                f"{row.bytes_copied_shared} against {row.bytes_copied_copied}",
                f"{row.wrap_ms:.3f}",
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


def _named(info: DeviceInfo) -> dict[str, str]:
    return {"device": info.spec, "name": info.name}
