"""Which kernels a layer's attention takes. (What they compute is tested in tests/ops, and in all of test_llama.)"""

from dataclasses import replace

import pytest

from wasmetal.device import Device
from wasmetal.models.architectures.network import Inputs
from wasmetal.models.architectures.self_attention import SelfAttention
from wasmetal.models.buffers import BufferGroup
from wasmetal.ops import DType, Recorder, batch_shape, sequences_shape

APPEND = ["kv_append_f16"]
ROPE_APPEND = ["rope_append_f16"]
SPLIT = ["attention_part_f16", "attention_merge"]


@pytest.mark.parametrize(
    ("fuses", "rows", "turns", "kernels"),
    [
        ("joins", 1, True, ["rope_attention_part_f16", "attention_merge"]),
        ("joins", 64, True, [*ROPE_APPEND, "attention_split_f16"]),
        (False, 1, True, ["rope", *APPEND, "attention_f16"]),
        (False, 65, False, [*APPEND, "attention_f16"]),
        (True, 1, True, ["rope_attention_part_f16", "attention_merge"]),
        (True, 1, False, [*APPEND, *SPLIT]),
        (True, 2, True, [*ROPE_APPEND, *SPLIT]),
        (True, 64, False, [*APPEND, *SPLIT]),
        (True, 65, True, [*ROPE_APPEND, "prefill_attention_f16"]),
        (True, 65, False, [*APPEND, "prefill_attention_f16"]),
    ],
)
def test_kernels(
    reference: Device, monkeypatch: pytest.MonkeyPatch, fuses: bool | str, rows: int, turns: bool, kernels: list[str]
) -> None:
    names: list[str] = []
    rec = Recorder(replace(reference.info, fuses=bool(fuses), joins=fuses == "joins"), reference.record())
    monkeypatch.setattr(rec, "dispatch", lambda name, *_, **__: names.append(name))
    buffers, heads, kv_heads, head_dim = BufferGroup(reference), 6, 2, 8
    attend = SelfAttention.allocate(buffers, 65, heads, kv_heads, head_dim, 1.0, interleaved=False)
    batch, sequences = (buffers.tensor(*shape, dtype=DType.I32) for shape in (batch_shape(rows), sequences_shape(1, 1)))
    pools = (
        buffers.tensor(1, 32, kv_heads, head_dim, dtype=DType.F16),
        buffers.tensor(1, 32, kv_heads, head_dim, dtype=DType.F16),
    )
    attend(
        rec,
        buffers.tensor(rows, (heads + 2 * kv_heads) * head_dim),
        pools,
        Inputs(buffers.tensor(rows, dtype=DType.I32), batch, sequences),
        buffers.tensor(rows, heads * head_dim),
        table=buffers.tensor(9, 4, 2) if turns else None,
        window=None,
        sinks=None,
    )
    assert names == kernels
    buffers.close()
