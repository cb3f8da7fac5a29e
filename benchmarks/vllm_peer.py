"""vLLM on a Llama of random weights, in float16: greedy, offline, with its defaults but for the cache of prefixes.

Run by ``benchmarks.peers``, perhaps with another Python than wasmetal's.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

REPEATS = 3


def main() -> None:
    """Measure what the request in the first argument asks for."""
    request = json.loads(sys.argv[1])
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm  # noqa: PLC0415
    except ImportError as error:
        answer: dict[str, Any] = {"error": f"not importable ({error})"}
    else:
        workloads = [request["alone"], *request["together"]]
        engine = vllm.LLM(
            model=request["folder"],
            load_format="dummy",  # random weights
            skip_tokenizer_init=True,
            dtype="float16",
            max_model_len=max(prompt + tokens for _, prompt, tokens in workloads) + 1,
            enable_prefix_caching=False,  # the same prompts come again
        )
        vocabulary = json.loads((Path(request["folder"]) / "config.json").read_text())["vocab_size"]
        alone, *together = [generate(vllm, engine, vocabulary, *each) for each in workloads]
        engines = {"vllm": {"alone": alone, "together": together}}
        answer = {"engines": engines, "versions": {"vllm": vllm.__version__}, "type": "F16"}
    Path(request["out"]).write_text(json.dumps(answer))


def generate(vllm: Any, engine: Any, vocabulary: int, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and decoded tokens a second, of a batch of prompts; medians, after a warm-up.

    The time of decoding is that of a call for ``tokens`` + 1 tokens, less that of one for the first token alone.
    """
    some = random.Random(0)
    prompts = [{"prompt_token_ids": [some.randrange(vocabulary) for _ in range(prompt)]} for _ in range(batch)]

    def seconds(most: int) -> float:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        engine.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - begin

    runs = [(seconds(1), seconds(tokens + 1)) for _ in range(1 + REPEATS)][1:]
    first = median(run[0] for run in runs)
    return first, batch * tokens / median(whole - begin for begin, whole in runs)


if __name__ == "__main__":
    main()
