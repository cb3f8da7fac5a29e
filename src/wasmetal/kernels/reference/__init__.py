"""The kernels of ``wasmetal.kernels.catalog`` in NumPy.

Each takes the unpacked parameters and the bound bytes, once, and returns the function that runs it: whatever can be
worked out when a list is recorded (views, shapes, scratch arrays) is, so that little Python is left for each step.
They compute in float32, as GPU kernels do. The single-row case is the one that decodes tokens, and has its own paths.
"""

from collections.abc import Callable

from wasmetal.kernels.reference import attention, elementwise, embed, linear, matmul, reduce, rope

KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    "add": elementwise.add,
    "scale": elementwise.scale,
    "silu_mul": elementwise.silu_mul,
    "rms_norm": reduce.rms_norm,
    "softmax": reduce.softmax,
    "argmax": reduce.argmax,
    "rope": rope.rope,
    **attention.KERNELS,
    **embed.KERNELS,
    **linear.KERNELS,
    **matmul.KERNELS,
}
"""By the catalog's names."""
