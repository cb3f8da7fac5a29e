"""Check embeddings against transformers, on a small random BERT.

    python tests/reference/check_embeddings.py [--device cpu]...

Needs torch and transformers (``pip install -e .[reference]``). The model is transformers' own, initialised at random in
float32; its weights are written to a GGUF file, which wasmetal loads. Relative error is ‖ours − reference‖ /
‖reference‖, per text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.models.tiny_bert import TOKENS, add_tokenizer
from wasmetal import load_embedder, open_device

TOLERANCE = 1e-3
TEXTS = ["the world", "a", "a b, c " * 20, "the world, a c", ""]
NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
"""GGUF's name for each of transformers' modules."""


def write(model: BertModel, path: Path, pooling: int) -> None:
    c = model.config
    w = gguf.GGUFWriter(path, "bert")
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_layer_norm_eps(c.layer_norm_eps)
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType(pooling))
    add_tokenizer(w)
    for name, values in model.state_dict().items():
        module, _, part = name.rpartition(".")
        if module.startswith("encoder.layer."):
            _, _, number, module = module.split(".", 3)
            w.add_tensor(f"blk.{number}.{NAMES[module]}.{part}", values.numpy())
        else:
            w.add_tensor(f"{NAMES[module]}.{part}", values.numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", action="append", help="default: cpu")
    devices = parser.parse_args().device or ["cpu"]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENS),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=160,
        max_position_embeddings=128,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():  # biases and norms too, which are initialised to 0 and 1
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for pooling, device in ((p, d) for p in (1, 2) for d in devices):
            path = Path(folder, f"{pooling}.gguf")
            write(model, path, pooling)
            with open_device(device) as opened, load_embedder(path, opened) as embedder:
                ours = embedder.embed(TEXTS)
                for number, text in enumerate(TEXTS):
                    ids = torch.tensor([embedder._tokens(text, number, False)])
                    with torch.no_grad():
                        states = model(ids).last_hidden_state[0].double().numpy()
                    of = states.mean(axis=0) if pooling == 1 else states[0]
                    of /= np.linalg.norm(of)
                    worst = max(worst, error := float(np.linalg.norm(ours[number] - of)))
                    print(f"{device} {embedder.pooling} {ids.shape[1]:3} tokens: {error:.1e}")
    print(f"worst {worst:.1e}, at most {TOLERANCE:.0e} is allowed")
    return worst > TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
