"""Compare perplexities with llama.cpp's, for each type of weights.

    python tests/reference/check_perplexity.py --llama-perplexity PROGRAM --llama-quantize PROGRAM [--device cpu]

SmolLM2 (``wasmetal pull smollm2:135m``) is quantized to each type by llama.cpp; the text is this project's
documentation. Both engines read it in windows of 512 tokens, and are judged by the second half of each, as
``llama-perplexity`` does. Ours runs the first half as a prompt and the second token by token, so that the kernels for
both take part. 1 if a perplexity is more than 1.002 times llama.cpp's.

SmolLM2's rows have 576 weights: for types with blocks of 256 it is padded first (``padded_model.py``). 1, too, if that
changes the perplexity of F16 by more than 0.1 %.

With quantized weights, llama.cpp rounds activations, which moves a perplexity by a few tenths of a percent, either way.
With ``--dequantized`` it reads each file's weights as float32, which it makes of them itself.

On a machine without llama.cpp: ``--files FOLDER --known FILE --text FILE``, with the files, the JSON and the text of a
run on another machine, where ``--files`` keeps the files.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.reference.padded_model import pad
from wasmetal import load_model, open_device
from wasmetal.models.files import store

PADDED = "F16-padded"
TYPES = (
    *("F32", "F16", PADDED, "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "MXFP4"),
    *("Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K"),
)
NAMES = {"MXFP4": "MXFP4_MOE"}
"""Of types that ``llama-quantize`` calls otherwise."""
WINDOW = 512
MOST = 1.002
TRIES = 5
"""Of ``llama-perplexity``, which may end before it has printed all."""
PADDING = 1e-3
"""How much padding may change the perplexity of F16: only its norms are rounded anew."""


def text() -> str:
    """What is read."""
    folder = Path(__file__).parents[2]
    return "\n".join(path.read_text() for path in [folder / "README.md", *sorted((folder / "docs").glob("*.md"))])


def matrices(path: Path) -> list[tuple[str, int]]:
    """The type of each matrix of a file, and the weights in its rows."""
    return [(t.tensor_type.name, int(t.shape[0])) for t in GGUFReader(path).tensors if len(t.shape) > 1]


def quantized(program: Path, model: Path, folder: Path, kind: str) -> Path:
    """The file of this type in ``folder``, which is made if it is missing."""
    path = folder / f"{kind}.gguf"
    if path.exists():
        return path
    if kind == PADDED:
        pad(model, path)
        return path
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    fits = all(columns % block == 0 for _, columns in matrices(model))
    source = model if fits else quantized(program, model, folder, PADDED)
    command = [program, "--allow-requantize", "--pure", source, path, NAMES.get(kind, kind), "2"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    if others := {other for other, _ in matrices(path)} - {kind, "F32"}:  # F32: routers of experts
        raise SystemExit(f"{program} made {', '.join(sorted(others))} of some matrices, not {kind}")
    return path


def dequantized(program: Path, path: Path, target: Path) -> Path:
    """The same weights as float32."""
    subprocess.run([program, "--allow-requantize", path, target, "F32", "2"], check=True, capture_output=True)
    return target


def ours(path: Path, device: str, precision: str, some: str, windows: int) -> float:
    """The perplexity of the second halves of the first windows."""
    losses: list[float] = []
    with open_device(device, precision) as opened, load_model(path, opened, context=WINDOW) as model:
        ids = model.tokenizer.encode(some, parse_special=False)
        logits = model.logits()
        scores = logits.numpy()
        for begin in range(0, windows * WINDOW, WINDOW):
            window = ids[begin : begin + WINDOW]
            with model.session() as session:
                session.forward(window[: WINDOW // 2 + 1], logits)
                for here, after in zip(window[WINDOW // 2 + 1 :], [*window[WINDOW // 2 + 2 :], None], strict=True):
                    values = scores.astype(np.float64)
                    peak = values.max()
                    losses.append(peak + np.log(np.exp(values - peak).sum()) - values[here])
                    if after is not None:
                        session.forward([here], logits)
    return float(np.exp(np.mean(losses)))


def theirs(program: Path, path: Path, some: Path, windows: int) -> float:
    """What ``llama-perplexity`` says."""
    command = [program, "-m", path, "-f", some, "-c", WINDOW, "-b", WINDOW, "--chunks", windows]
    for _ in range(TRIES):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        if found := re.search(rf"(?:Final estimate: PPL = |\[{windows}\])([\d.]+)", done.stdout + done.stderr):
            return float(found[1])
    raise SystemExit(f"{program} gave no estimate: {done.stderr[-300:]}")


def main() -> int:
    """Print a line for each type."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-perplexity", type=Path, metavar="PROGRAM")
    parser.add_argument("--llama-quantize", type=Path, metavar="PROGRAM")
    parser.add_argument("--dequantized", action="store_true", help="llama.cpp reads the same weights as float32")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="of TYPE.gguf, which are made if they are missing")
    parser.add_argument("--known", type=Path, metavar="FILE", help="JSON of another run, with llama.cpp's perplexities")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what is read; default: this project's documentation")
    parser.add_argument("--model", default="smollm2:135m", help="a language model; default: %(default)s")
    parser.add_argument("--types", default=",".join(TYPES), help="default: %(default)s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["exact", "standard", "fast"], default="standard")
    parser.add_argument("--windows", type=int, default=24, help=f"of {WINDOW} tokens; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args()
    known = json.loads(options.known.read_text()) if options.known else {}
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        some = Path(temporary, "text")
        some.write_text(options.text.read_text() if options.text else text())
        for kind in options.types.split(","):
            folder = Path(options.files or temporary)
            path = quantized(options.llama_quantize, store.resolve(options.model), folder, kind)
            mine = ours(path, options.device, options.precision, some.read_text(), options.windows)
            if kind in known:
                other = known[kind]["llama.cpp"]
            else:
                read = path
                if options.dequantized:
                    read = dequantized(options.llama_quantize, path, Path(temporary, "dequantized.gguf"))
                other = theirs(options.llama_perplexity, read, some, options.windows)
            if not options.files and kind != PADDED:
                path.unlink()
            results[kind] = {"ours": mine, "llama.cpp": other, "ratio": mine / other}
            if not options.json:
                print(f"{kind:10} {mine:9.4f}  llama.cpp {other:9.4f}  ratio {mine / other:.5f}", flush=True)
    if options.json:
        print(json.dumps(results, indent=1))
    wrong = any(not result["ratio"] <= MOST for result in results.values())
    if {"F16", PADDED} <= results.keys():
        wrong |= not abs(results[PADDED]["ours"] / results["F16"]["ours"] - 1) <= PADDING
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
