"""Tokens per second of one model on one device: driven by the chat guest, by plain Python, and by llama.cpp."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from wasmetal.bench import bandwidth
from wasmetal.conversation import Conversation
from wasmetal.device.base import Device
from wasmetal.errors import GuestError
from wasmetal.models import Model, load_model
from wasmetal.models.files import store

TEXT = "The old lighthouse keeper climbed the stairs every evening and lit the lamp for the ships out at sea. "


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second, and the time to the first token."""

    engine: str
    """``guest``, ``python`` or ``llama.cpp``."""
    prefill: float
    decode: float
    first_token: float
    """Seconds from the prompt to the logits of its last token: from its text, but for ``llama.cpp`` from its tokens."""


@dataclass(frozen=True, slots=True)
class Result:
    """Speeds, and the bound on decoding that memory bandwidth sets, since every token reads all weights once."""

    speeds: list[Speed]
    weight_bytes: int
    """Bytes of weights on the device that a token reads."""
    bandwidth: float
    """Bytes per second that the device reads from its memory, measured in the same run."""

    @property
    def bound(self) -> float:
        """Tokens per second at which decoding would read weights at the measured bandwidth."""
        return self.bandwidth / self.weight_bytes


def measure(
    device: Device,
    source: str,
    prompt_tokens: int = 128,
    tokens: int = 64,
    repeats: int = 3,
    *,
    kv_type: str | None = None,
    quantize: str | None = None,
    llama_cpp: bool = True,
) -> Result:
    """Prefill ``prompt_tokens`` and greedily decode ``tokens`` with each engine; medians of ``repeats`` runs.

    ``kv_type``, ``quantize``: as for :func:`load_model`. ``llama_cpp``: with ``llama-bench`` too, if it is on PATH.
    """
    with load_model(source, device, kv_type=kv_type, quantize=quantize) as model:
        prompt = prompt_of(model, prompt_tokens)
        runs: list[tuple[Speed, Speed]] = []
        for _ in range(repeats + 1):  # alternating, so that both meet the same disturbances; the first warms up
            guest, decoded = _guest(model, prompt, tokens)
            runs.append((guest, _python(model, prompt, decoded)))
        speeds = [_median(speeds) for speeds in zip(*runs[1:], strict=True)]
        weight_bytes = model.weight_bytes
    if llama_cpp and (peer := _llama_cpp(store.resolve(source), prompt_tokens, tokens)):
        speeds.append(peer)
    return Result(speeds, weight_bytes, bandwidth.measure(device))


def prompt_of(model: Model, count: int, number: int = 0) -> str:
    """A text of ``count`` tokens. Those of different numbers, up to the length of TEXT, begin differently."""
    ids = model.tokenizer.encode((TEXT * (count + 1))[number % len(TEXT) :])[:count]
    return model.tokenizer.decode(ids)


def _guest(model: Model, prompt: str, tokens: int) -> tuple[Speed, int]:
    """The speed, and how many tokens were decoded before the model ended its text."""
    errors = bytearray()
    arguments = ["--raw", "--greedy", "--max-tokens", str(tokens + 1)]
    with Conversation(model, device=model.device, arguments=arguments, stderr=errors.extend) as conversation:
        opened = conversation.open() == 0
        begin = time.perf_counter()
        if not opened or not conversation.ask(prompt):
            raise GuestError(f"the chat guest failed: {errors.decode(errors='replace').strip()}")
        first = time.perf_counter() - begin
        while conversation.go_on():
            pass
        stats = conversation.stats()
    prefill, decode = stats.prefill_tokens / stats.prefill_seconds, stats.decode_tokens / stats.decode_seconds
    return Speed("guest", prefill, decode, first), stats.decode_tokens


def _python(model: Model, prompt: str, tokens: int) -> Speed:
    logits = model.logits()
    scores = logits.numpy()
    with model.session() as session:
        asked = time.perf_counter()
        ids = model.tokenizer.encode(prompt)
        begin = time.perf_counter()
        session.forward(ids, logits)
        decoding = time.perf_counter()
        for _ in range(tokens):
            session.forward([int(scores.argmax())], logits)
        end = time.perf_counter()
    return Speed("python", len(ids) / (decoding - begin), tokens / (end - decoding), decoding - asked)


def _llama_cpp(path: Path, prompt_tokens: int, tokens: int) -> Speed | None:
    """The speed that ``llama-bench`` reports for the same file, with a thread per core; None if it is not on PATH."""
    program = shutil.which("llama-bench")
    if program is None:
        return None
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        return llama_bench(program, path, prompt_tokens, tokens, "-t", threads)
    except subprocess.CalledProcessError:
        return None


def llama_bench(program: str | Path, path: Path, prompt_tokens: int, tokens: int, *options: str | int) -> Speed:
    """The speed that llama.cpp's ``llama-bench`` reports with these options. Raises CalledProcessError."""
    return speed_of(llama_bench_rows(program, path, prompt_tokens, tokens, *options))


def llama_bench_rows(
    program: str | Path, path: Path, prompt_tokens: int, tokens: int, *options: str | int
) -> list[dict[str, Any]]:
    """What ``llama-bench`` writes as JSON: a row for the prompt, one for decoding. Raises CalledProcessError."""
    command = [program, "-m", path, "-p", prompt_tokens, "-n", tokens, "-o", "json", *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def speed_of(rows: Sequence[dict[str, Any]]) -> Speed:
    """The speed in rows of ``llama-bench``."""
    prompt, decode = sorted(rows, key=lambda row: not row["n_prompt"])
    return Speed("llama.cpp", prompt["avg_ts"], decode["avg_ts"], prompt["n_prompt"] / prompt["avg_ts"])


def _median(speeds: Sequence[Speed]) -> Speed:
    return Speed(
        speeds[0].engine,
        median(one.prefill for one in speeds),
        median(one.decode for one in speeds),
        median(one.first_token for one in speeds),
    )
