"""The kernels of ``wasmetal.kernels.catalog`` in NumPy.

Each takes the unpacked parameters and the bound bytes, once, and returns the function that runs it: views, shapes and
scratch arrays are prepared when a list is recorded, so that little Python runs for each submission. They compute in
float32, as GPU kernels do. The single-row case decodes tokens, and has its own code paths.
"""

from collections.abc import Callable

from wasmetal.kernels.reference import (
    attention,
    elementwise,
    embed,
    experts,
    fused,
    linear,
    matmul,
    next_token,
    reduce,
    rope,
    split_attention,
    top_logits,
)

KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    "add": elementwise.add,
    "scale": elementwise.scale,
    "copy": elementwise.copy,
    "silu_mul": elementwise.silu_mul,
    "gelu_mul": elementwise.gelu_mul,
    "swiglu_oai": elementwise.swiglu_oai,
    "gelu": elementwise.gelu,
    "rms_norm": reduce.rms_norm,
    "layer_norm": reduce.layer_norm,
    "softmax": reduce.softmax,
    "argmax": reduce.argmax,
    **attention.KERNELS,
    **embed.KERNELS,
    **experts.KERNELS,
    **fused.KERNELS,
    **linear.KERNELS,
    **matmul.KERNELS,
    **rope.KERNELS,
    **next_token.KERNELS,
    **split_attention.KERNELS,
    **top_logits.KERNELS,
}
"""The kernels, by their names in the catalog."""
