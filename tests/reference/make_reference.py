"""Write, or check, the float32 reference that the tests hold the models against.

    python tests/reference/make_reference.py MODEL.gguf [--check] [--device cpu] [--out FILE]

Needs torch and transformers (``pip install -e .[reference]``). The model is transformers' own LlamaForCausalLM in
float32 on the CPU, with the GGUF's weights dequantized by ``gguf.quants``; of wasmetal, nothing takes part in it.
``--check`` computes it again and compares it with the file. ``--device`` also compares wasmetal on that device, over
the whole vectors of logits. Relative error is ‖ours − reference‖ / ‖reference‖, per step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

PROMPT = "The capital of France is"
PROMPT_IDS = [504, 3575, 282, 4649, 314]
GREEDY = 48
"""Tokens decoded greedily."""
LOGITS = 24
"""Decoded tokens whose logits are kept, after those of the prompt."""
SAMPLE = 400
"""Logits kept of each vector, at fixed random places."""
TOLERANCE = 1e-4
"""Between two runs of the reference, on whatever machines."""


def llama_of(path: Path) -> transformers.LlamaForCausalLM:
    """The file as a transformers model."""
    file = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        return file.fields[f"llama.{name}"].contents()

    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    config = transformers.LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings="output.weight" not in [t.name for t in file.tensors],
        attn_implementation="eager",
    )
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {}
    for tensor in file.tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if parts[-1] in ("attn_q", "attn_k"):
            weights = halves_of(weights, heads if parts[-1] == "attn_q" else kv_heads)
        state[f"{prefix}{names[parts[-1]]}.weight"] = torch.from_numpy(weights.copy())
    model = transformers.LlamaForCausalLM(config).to(torch.float32).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else []), missing
    model.tie_weights()
    return model


def halves_of(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from GGUF's order, RoPE pairs side by side, to transformers': first halves, then second."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


@torch.inference_mode()
def run(path: Path) -> tuple[list[int], NDArray[np.float32]]:
    """The greedy ids, and the logits [LOGITS + 1, vocab] after the prompt and after each decoded token."""
    model = llama_of(path)
    ids, logits, past = [], [], None
    tokens = PROMPT_IDS
    while len(ids) < GREEDY:
        output = model(torch.tensor([tokens]), past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits.append(output.logits[0, -1].numpy())
        tokens = [int(logits[-1].argmax())]
        ids += tokens
    return ids, np.stack(logits[: LOGITS + 1])


def sampled_places(vocab: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).choice(vocab, SAMPLE, replace=False))


def text_of(path: Path, ids: list[int], logits: NDArray[np.float32]) -> str:
    """The reference as JSON, a line per entry and per vector."""
    places = sampled_places(logits.shape[1])
    entries = {
        "generated": f"by tests/reference/make_reference.py from {path.name}; do not edit",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "gguf": version("gguf")},
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "prompt": PROMPT,
        "prompt_ids": PROMPT_IDS,
        "greedy_ids": ids,
        "norms": [float(f"{np.linalg.norm(v.astype(np.float64)):.9g}") for v in logits],
        "places": places.tolist(),
    }
    vectors = ",\n".join("  [" + ",".join(f"{x:.8g}" for x in v[places]) + "]" for v in logits)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
    return "{\n" + ",\n".join(lines) + ',\n "logits": [\n' + vectors + "\n ]\n}\n"


def errors(ours: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Relative error of each row."""
    distance = np.linalg.norm(ours.astype(np.float64) - reference, axis=-1)
    return distance / np.linalg.norm(reference.astype(np.float64), axis=-1)


def wasmetal_logits(path: Path, device: str, ids: list[int]) -> NDArray[np.float32]:
    """What wasmetal gives for the same tokens."""
    from wasmetal.device import open_device
    from wasmetal.models import load_model

    with open_device(device) as opened, load_model(path, opened) as model, model.session() as session:
        logits = model.logits()
        rows = []
        for tokens in (PROMPT_IDS, *([i] for i in ids[:LOGITS])):
            session.forward(tokens, logits)
            rows.append(logits.buffer.view().view(np.float32).copy())
    return np.stack(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("smollm2_135m.json"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--device", action="append", default=[])
    options = parser.parse_args()

    ids, logits = run(options.model)
    agreed = True
    if options.check:
        kept = json.loads(options.out.read_text())
        error = errors(logits[:, kept["places"]], np.array(kept["logits"])).max()
        agreed = kept["greedy_ids"] == ids and error < TOLERANCE
        print(f"{options.out}: ids {'agree' if kept['greedy_ids'] == ids else 'differ'}, relative error {error:.2e}")
    else:
        options.out.write_text(text_of(options.model, ids, logits))
    for device in options.device:
        each = errors(wasmetal_logits(options.model, device, ids), logits)
        print(f"wasmetal on {device}: relative error at most {each.max():.2e}, after the prompt {each[0]:.2e}")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
