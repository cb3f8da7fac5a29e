"""Compare perplexities with llama.cpp's, for each type of weights.

    python tests/reference/check_perplexity.py --llama-perplexity PROGRAM --llama-quantize PROGRAM [--device cpu]

SmolLM2 (``wasmetal pull smollm2:135m``) is quantized to each type by llama.cpp; the text is this project's
documentation. Both engines read it in windows of 512 tokens, and are judged by the second half of each, as
``llama-perplexity`` does. Ours runs the first half as a prompt and the second token by token, so that the kernels for
both take part. 1 if a perplexity is more than 1.002 times llama.cpp's.

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

from wasmetal import load_model, open_device
from wasmetal.models.files import store

TYPES = "F16", "Q8_0", "Q5_0", "Q4_1", "Q4_0"
"""SmolLM2's rows have 576 weights, which are no whole number of the other types' blocks."""
WINDOW = 512
MOST = 1.002


def text() -> str:
    """What is read."""
    folder = Path(__file__).parents[2]
    return "\n".join(path.read_text() for path in [folder / "README.md", *sorted((folder / "docs").glob("*.md"))])


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
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    if not found:
        raise SystemExit(f"{program} gave no estimate: {done.stderr[-300:]}")
    return float(found[1])


def main() -> int:
    """Print a line for each type."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-perplexity", type=Path, metavar="PROGRAM")
    parser.add_argument("--llama-quantize", type=Path, metavar="PROGRAM")
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
            path = Path(options.files or temporary, f"{kind}.gguf")
            if not path.exists():
                quantize = [options.llama_quantize, "--allow-requantize", "--pure", store.resolve(options.model), path]
                subprocess.run([*quantize, kind, "2"], check=True, capture_output=True)
            mine = ours(path, options.device, options.precision, some.read_text(), options.windows)
            if kind in known:
                other = known[kind]["llama.cpp"]
            else:
                other = theirs(options.llama_perplexity, path, some, options.windows)
            if not options.files:
                path.unlink()
            results[kind] = {"ours": mine, "llama.cpp": other, "ratio": mine / other}
            if not options.json:
                print(f"{kind:6} {mine:9.4f}  llama.cpp {other:9.4f}  ratio {mine / other:.5f}", flush=True)
    if options.json:
        print(json.dumps(results, indent=1))
    return int(any(not result["ratio"] <= MOST for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
