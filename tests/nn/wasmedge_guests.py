"""Run guests that were built for WasmEdge, unmodified, with its command lines and a small model in place of theirs.

    git clone --depth 1 https://github.com/second-state/WasmEdge-WASINN-examples
    wasmetal pull smollm2:135m
    python -m tests.nn.wasmedge_guests WasmEdge-WASINN-examples

Says what each has answered, and fails if one has ended otherwise than it does with WasmEdge.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTION = CHAT.format("What is the capital of France?")


@dataclass(frozen=True, slots=True)
class Example:
    """A guest, its arguments, and what its output has if it has done what it is to do."""

    path: str
    arguments: tuple[str, ...] = ("default", QUESTION)
    expected: str = "Paris"
    env: tuple[str, ...] = ("n_predict=40",)
    code: int = 0


GGML = "wasmedge-ggml"
EXAMPLES = (
    Example(f"{GGML}/basic/wasmedge-ggml-basic.wasm"),
    Example(f"{GGML}/llama/wasmedge-ggml-llama.wasm"),
    Example(f"{GGML}/llama-stream/wasmedge-ggml-llama-stream.wasm"),
    Example(f"{GGML}/chatml/wasmedge-ggml-chatml.wasm"),
    Example(f"{GGML}/nnrpc/wasmedge-ggml-nnrpc.wasm"),
    Example(f"{GGML}/grammar/wasmedge-ggml-grammar.wasm", ("default", "A JSON object of capitals:"), "{"),
    Example(
        f"{GGML}/json-schema/wasmedge-ggml-json-schema.wasm",
        ("default", CHAT.format("Apple products?")),
        "output tokens",
    ),
    Example(f"{GGML}/embedding/wasmedge-ggml-llama-embedding.wasm", ("default", "hello world"), "N_Embd: 576"),
    Example(  # which does not compute
        f"{GGML}/test/set-input-twice/wasmedge-ggml-set-input-twice.wasm",
        expected=2 * "[INFO] Number of input tokens: 16\n",
    ),
    Example(f"{GGML}/test/unload/wasmedge-ggml-unload.wasm"),
    Example(f"{GGML}/test/model-not-found/wasmedge-ggml-model-not-found.wasm", ("default",), "Model not found"),
    Example(
        "tflite-birds_v1-image/wasmedge-wasinn-example-tflite-bird-image.wasm",
        ("lite-model_aiy_vision_classifier_birds_V1_3.tflite", "bird.jpg"),
        "1.) [166]",
    ),
)


def run(root: Path, example: Example, model: str) -> tuple[bool, str]:
    """Whether a guest does what it is to do, and what it says."""
    path = root / example.path
    command = [str(Path(sys.executable).with_name("wasmetal")), "run", "--dir", ".:.", "--nn-model-limit", "8MB"]
    if "default" in example.arguments:
        given = "model-not-found.gguf" if "not-found" in path.name else model
        command += ["--nn-preload", f"default:GGML:AUTO:{given}"]
    for each in example.env:
        command += ["--env", each]
    found = subprocess.run(
        [*command, path.name, *example.arguments],
        cwd=path.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    said = found.stdout + found.stderr
    return found.returncode == example.code and example.expected in said, said


def main() -> int:
    """Run all, or those whose paths have ``--only`` in them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a clone of second-state/WasmEdge-WASINN-examples")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    failed = 0
    for example in EXAMPLES:
        if options.only in example.path:
            for _ in range(3):  # they draw tokens at random
                right, said = run(options.folder.resolve(), example, options.model)
                if right:
                    break
            failed += not right
            print(f"{'ok    ' if right else 'FAILED'} {Path(example.path).stem}: {' '.join(said.split())[-160:]}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
