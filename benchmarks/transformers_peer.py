"""Hugging Face's transformers on a Llama of random weights: greedy, with a static KV cache.

In float16 on a GPU; on the CPU, where PyTorch is an order of magnitude slower with that, in float32.

Run by ``benchmarks.peers``, perhaps with another Python than wasmetal's. On a GPU it is measured as it is, and with its
decoding step compiled, which then runs as a CUDA graph.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

REPEATS = {"cuda": 3, "cpu": 1}
WARM_UP = 2
"""Runs before those that are measured: a compiled step is compiled in the first, and once more in the second."""


def main() -> None:
    """Measure what the request in the first argument asks for."""
    request = json.loads(sys.argv[1])
    try:
        import torch  # noqa: PLC0415
        import transformers  # noqa: PLC0415
    except ImportError as error:
        answer: dict[str, Any] = {"error": f"not importable ({error})"}
    else:
        device, kind = ("cuda", "F16") if torch.cuda.is_available() else ("cpu", "F32")
        dtype = torch.float16 if kind == "F16" else torch.float32
        config = transformers.AutoConfig.from_pretrained(request["folder"])
        torch.manual_seed(0)
        with torch.device(device), torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
            engines = {"transformers": measure(model, request, model)}
            if device == "cuda":
                try:
                    compiled = torch.compile(model, mode="reduce-overhead", dynamic=False)
                    engines["transformers compiled"] = measure(model, request, compiled)
                except Exception as error:  # the figures without it remain
                    print(f"transformers compiled: {str(error).splitlines()[0]}", file=sys.stderr)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        answer = {"engines": engines, "versions": versions, "type": kind}
    Path(request["out"]).write_text(json.dumps(answer))


def measure(model: Any, request: dict[str, Any], step: Callable[..., Any]) -> dict[str, Any]:
    """Seconds to the first token and decoded tokens a second, for each workload. ``step`` decodes a token."""
    return {
        "alone": generate(model, step, *request["alone"]),
        "together": [generate(model, step, *each) for each in request["together"]],
    }


def generate(model: Any, step: Callable[..., Any], batch: int, prompt: int, tokens: int) -> tuple[float, float]:
    """Medians for a batch of prompts and so many tokens decoded after each."""
    import torch  # noqa: PLC0415
    from transformers import StaticCache  # noqa: PLC0415

    ids = torch.randint(model.config.vocab_size, (batch, prompt))
    cache = StaticCache(config=model.config, max_cache_len=prompt + tokens)
    runs = []
    for _ in range(WARM_UP + REPEATS[model.device.type]):
        cache.reset()
        _wait()
        begin = time.perf_counter()
        token = _best(model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1))
        _wait()
        first = time.perf_counter()
        for _ in range(tokens):
            torch.compiler.cudagraph_mark_step_begin()
            token = _best(step(token, past_key_values=cache, use_cache=True))
        _wait()
        runs.append((first - begin, batch * tokens / (time.perf_counter() - first)))
    return median(run[0] for run in runs[WARM_UP:]), median(run[1] for run in runs[WARM_UP:])


def _best(output: Any) -> Any:
    """The token after each sequence: [batch, 1]."""
    return output.logits[:, -1].argmax(-1, keepdim=True)


def _wait() -> None:
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
