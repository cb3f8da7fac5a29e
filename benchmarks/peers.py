"""What other engines reach on the same model, or on one of the same shape. Each runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.random_model import CONTEXT, SHAPES
from benchmarks.workload import (
    BYTES,
    DECODE,
    FIRST,
    PREFILL,
    PROMPT,
    PROMPT_S,
    TOKENS,
    TOKENS_S,
    Measured,
    NotMeasuredError,
    together,
)
from wasmetal.bench.llm import llama_bench_rows, speed_of

LLAMA_CPP = "llama.cpp"
FRAMEWORKS = {"transformers": "transformers_peer.py", "vllm": "vllm_peer.py"}
"""Engines that a Python runs, and the programs that measure them. They know nothing of wasmetal."""
PATIENCE = 900
"""Seconds for one run of an engine."""


def llama_bench(program: Path, model: Path, shape: str, kind: str) -> Measured:
    """One sequence alone, with flash attention and all layers on the GPU. Raises NotMeasuredError."""
    try:
        rows = llama_bench_rows(program, model, PROMPT, TOKENS, "-fa", 1, "-ngl", 99, "-r", 3)
        speed = speed_of(rows)
        about = {LLAMA_CPP: "build {build_number} ({build_commit}), {backends}".format(**rows[0])}
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError) as error:
        raise NotMeasuredError(_line(error)) from error
    figures = {DECODE: speed.decode, PREFILL: speed.prefill, FIRST: speed.first_token}
    return Measured({LLAMA_CPP: figures | {BYTES: SHAPES[shape].bytes_a_token(kind)}}, about)


def llama_batched_bench(program: Path, model: Path, sessions: int) -> Measured:
    """So many sequences at once, each of which decodes one token in every batch. Raises NotMeasuredError."""
    # The first of three warms up, and the last may be missing: the program does not wait for its log when it exits. The
    # context is divided among the sequences, in multiples of 256 tokens.
    context = sessions * -(-(PROMPT_S + TOKENS_S) // 256) * 256
    options = f"-npp {PROMPT_S} -ntg {TOKENS_S} -npl {','.join(3 * [str(sessions)])} -c {context} -ngl 99 -fa on"
    command = [str(program), "-m", str(model), *options.split(), "--output-format", "jsonl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(rows) < 2:
            raise ValueError("it wrote too few figures")
        speed = median(row["speed_tg"] for row in rows[1:])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise NotMeasuredError(_line(error)) from error
    return Measured({LLAMA_CPP: {together(sessions): speed}})


def framework(name: str, python: str, shape: str, sessions: Sequence[int]) -> Measured:
    """All figures of one of FRAMEWORKS that this Python can import, with floats. Raises NotMeasuredError."""
    program = Path(__file__).with_name(FRAMEWORKS[name])
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "model", Path(temporary) / "out.json"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(configuration(shape)))
        request = {
            "folder": str(folder),
            "out": str(out),
            "alone": [1, PROMPT, TOKENS],
            "together": [[number, PROMPT_S, TOKENS_S] for number in sessions],
        }
        command = [python, str(program), json.dumps(request)]
        try:
            # Its messages are not part of this program's output, which may be JSON.
            done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=PATIENCE)
        except (OSError, subprocess.SubprocessError) as error:
            raise NotMeasuredError(_line(error)) from error
        answer = json.loads(out.read_text()) if out.exists() else {}
    if "error" in answer or done.returncode or not answer:
        raise NotMeasuredError(answer.get("error", f"failed (exit code {done.returncode})"))
    read = SHAPES[shape].bytes_a_token(answer["type"])
    figures = {}
    for engine, runs in answer["engines"].items():
        first, decode = runs["alone"]
        figures[engine] = {DECODE: decode, PREFILL: PROMPT / first, FIRST: first, BYTES: read}
        for number, (_, speed) in zip(sessions, runs["together"], strict=True):
            figures[engine][together(number)] = speed
    return Measured(figures, answer["versions"])


def configuration(name: str) -> dict[str, object]:
    """The config.json, as of Hugging Face, of a model of this shape."""
    shape = SHAPES[name]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "torch_dtype": "float16",  # the name before transformers 5
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": not shape.own_output,
        "bos_token_id": 0,
        "eos_token_id": shape.vocabulary - 1,
    }


def _line(error: Exception) -> str:
    """The last thing that the program said, or else the error, in one line."""
    said = getattr(error, "stderr", None)
    text = said if isinstance(said, str) and said.strip() else str(error)
    return text.strip().splitlines()[-1]
