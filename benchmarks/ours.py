"""Our devices: one sequence alone, from the chat guest and from plain Python, or many guests at once on one model.

Each measurement is a process of its own: this module, run with the device and the model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.workload import (
    BANDWIDTH,
    BYTES,
    DECODE,
    FIRST,
    PREFILL,
    PROMPT,
    PROMPT_S,
    TOKENS,
    TOKENS_S,
    Figures,
    Measured,
    NotMeasuredError,
    together,
)
from wasmetal import load_model, open_device
from wasmetal.bench import llm
from wasmetal.cli.app import SWITCH_SECONDS
from wasmetal.conversation import Conversation
from wasmetal.device import Device
from wasmetal.errors import GuestError
from wasmetal.models import Model

WARM_UP = 8
"""Tokens that guests decode together before they are measured."""

HOUR_MS = 3_600_000
"""For how long a guest may decode in one call."""


def measure(device: str, model: Path, precision: str, sessions: int | None = None) -> Measured:
    """One sequence alone or, with ``sessions``, so many guests at once. Raises NotMeasuredError."""
    command = [sys.executable, "-m", "benchmarks.ours", device, str(model), "--precision", precision]
    if sessions is not None:
        command += ["--sessions", str(sessions)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise NotMeasuredError(f"failed (exit code {done.returncode})")
    return Measured(**json.loads(done.stdout))


def main() -> None:
    """Measure in this process, and print what is :class:`Measured` as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("device")
    parser.add_argument("model")
    parser.add_argument("--precision", choices=["exact", "standard", "fast"], default="standard")
    parser.add_argument("--sessions", type=int, help="so many guests at once; default: one sequence alone")
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)
    with open_device(options.device, options.precision) as device:
        about = {options.device: device.info.name}
        if options.sessions is None:
            figures = _alone(device, options.model)
        else:
            figures = {"guest": {together(options.sessions): _together(device, options.model, options.sessions)}}
    figures = {f"{options.device} from {engine}": each for engine, each in figures.items()}
    print(json.dumps({"figures": figures, "about": about}))


def _alone(device: Device, source: str) -> dict[str, Figures]:
    result = llm.measure(device, source, PROMPT, TOKENS, 1, llama_cpp=False)
    return {
        speed.engine: {
            DECODE: speed.decode,
            PREFILL: speed.prefill,
            FIRST: speed.first_token,
            BYTES: result.weight_bytes,
            BANDWIDTH: result.bandwidth,
        }
        for speed in result.speeds
    }


def _together(device: Device, source: str, guests: int) -> float:
    """Tokens a second of all guests together, from when all have run their prompts until all have decoded theirs."""
    # One context for each guest, and one for the process itself, which is guaranteed an equal share of the cache.
    with load_model(source, device, context=PROMPT_S + TOKENS_S, contexts=guests + 1) as model:
        decode(model, guests, WARM_UP)
        marks: list[float] = []
        decode(model, guests, TOKENS_S, lambda: marks.append(time.perf_counter()))
        begin, end = marks
        return guests * TOKENS_S / (end - begin)


def decode(model: Model, guests: int, tokens: int, mark: Callable[[], object] = lambda: None) -> None:
    """Have so many guests, each on a thread of its own, decode. They begin when all of them have run their prompts.

    ``mark`` is called when they begin, and again when all have ended.
    """
    ready, over = threading.Barrier(guests, mark), threading.Barrier(guests, mark)

    def run(number: int) -> None:
        arguments = ["--raw", "--seed", str(number), "--max-tokens", str(tokens + 1)]
        try:
            with Conversation(model, device=model.device, arguments=arguments, stdout=lambda _: None) as chat:
                if chat.open() or not chat.ask(llm.prompt_of(model, PROMPT_S, number)):
                    raise GuestError("the chat guest failed")
                ready.wait()
                chat.guest.call("chat_continue", HOUR_MS)
                over.wait()
                decoded = chat.stats().decode_tokens
        except BaseException:
            ready.abort()  # the others would wait for ever
            over.abort()
            raise
        if decoded != tokens:
            raise GuestError(f"the model ended a guest's text after {decoded} tokens")

    with ThreadPoolExecutor(guests) as threads:
        runs = [threads.submit(run, number) for number in range(guests)]
    errors = [error for each in runs if (error := each.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the first that is not another's consequence


if __name__ == "__main__":
    main()
