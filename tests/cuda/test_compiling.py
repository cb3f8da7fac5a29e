"""NVRTC compiles every kernel, which needs no GPU."""

from __future__ import annotations

import pytest

from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, Kernel

pytest.importorskip("cuda.bindings")
pytest.importorskip("cuda.pathfinder")

from wasmetal.device.cuda import pipeline
from wasmetal.device.cuda.pipeline import compile_kernel

KERNELS = [kernel for kernel in CATALOG.values() if "cuda" in kernel.targets]
_QUICK = (
    *("add", "gemm_coopmat64_f16", "norm_gemv_q4_0", "sliced_gated_gemv_q4_0"),
    *("shuffled2_attention_split_f16", "matrix64_prefill_attention_f16", "top_logits_part"),
)
QUICK = [CATALOG[name] for name in _QUICK]
"""Of the kernels that have a feature of CUDA's or Slang's of their own, one each."""


@pytest.mark.parametrize(
    "kernel",
    [pytest.param(kernel, id=kernel.name, marks=[] if kernel in QUICK else [pytest.mark.slow]) for kernel in KERNELS],
)
def test_compiles(kernel: Kernel) -> None:
    image = compile_kernel(kernel, "sm_90")
    assert image.startswith(b"\x7fELF")
    assert kernel.name.encode() in image


def test_an_architecture_that_the_compiler_does_not_know() -> None:
    with pytest.raises(DeviceError, match="NVRTC") as caught:
        compile_kernel(CATALOG["add"], "sm_1")
    assert "\n" not in str(caught.value)


def test_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "compiled_code", lambda kernel, target: b"this is no program")
    with pytest.raises(DeviceError, match="does not compile kernel add: ") as caught:
        compile_kernel(CATALOG["add"], "sm_90")
    assert "\n" not in str(caught.value)


def test_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.pathfinder

    pipeline._compiler.cache_clear()
    monkeypatch.setattr(cuda.pathfinder, "find_nvidia_header_directory", lambda name: None)
    with pytest.raises(DeviceError, match=r"headers are not installed: pip install 'wasmetal\[cuda\]'"):
        compile_kernel(CATALOG["add"], "sm_90")
    pipeline._compiler.cache_clear()
