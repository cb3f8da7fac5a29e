"""What is generated is what the catalog says, and what the sources say now."""

import importlib.util
import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.kernels.spirv import parse
from wasmetal.device import sliced
from wasmetal.device.matrix_units import SUBGROUP
from wasmetal.kernels import compile as compiling
from wasmetal.kernels.catalog import (
    ACTIVATIONS,
    CATALOG,
    GRID_WIDTH,
    MATRIX_HEADS,
    NO_BATCH,
    NO_BIAS,
    NO_SINKS,
    SLICE,
    TARGETS,
    THREADS,
    Access,
    grid,
)
from wasmetal.kernels.reference import KERNELS
from wasmetal.kernels.reference.split_attention import TILE
from wasmetal.kernels.reference.top_logits import RUN
from wasmetal.ops.attention import MAX_HEAD_DIM
from wasmetal.ops.linear import GEMM_TILE
from wasmetal.ops.matmul import MATMUL_TILE
from wasmetal.ops.prefill_attention import QUERIES
from wasmetal.ops.split_attention import HEADS
from wasmetal.ops.top_logits import MOST


def each(*targets):
    """Every kernel that is compiled for all of these."""
    some = [kernel for kernel in CATALOG.values() if set(targets) <= set(kernel.targets)]
    return pytest.mark.parametrize("kernel", some, ids=lambda kernel: kernel.name)


kernels = each()
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("slangpy") is None, reason="the Slang compiler is not installed"
)

SHADER, FLOAT16, SUBGROUPS, SUBGROUP_ARITHMETIC, SUBGROUP_SHUFFLE, STORAGE16 = 1, 9, 61, 63, 65, 4434
VULKAN_MODEL, VULKAN_MODEL_DEVICE_SCOPE, COOPERATIVE_MATRIX = 5345, 5346, 6022
CAPABILITIES = {
    "float16": {FLOAT16},
    "storage16": {STORAGE16},
    "shuffles": {SUBGROUP_SHUFFLE},
    "joins": set(),
    "cooperative_matrix": {FLOAT16, VULKAN_MODEL, VULKAN_MODEL_DEVICE_SCOPE, COOPERATIVE_MATRIX},
}
"""Those of SPIR-V that a feature of a kernel needs."""


@each("spirv")
def test_spirv_is_as_catalogued(kernel):
    module = parse(kernel.code("spirv"))
    assert module.entry_point == "main"
    assert module.local_size == kernel.threads
    assert module.bindings == {
        (0, i): (buffer.element, buffer.access is not Access.READ) for i, buffer in enumerate(kernel.buffers)
    }
    assert module.params == [(name, kind, 4 * i) for i, (name, kind) in enumerate(kernel.params)]
    needed = module.capabilities - {SHADER, SUBGROUPS, SUBGROUP_ARITHMETIC}
    assert needed == set().union(*(CAPABILITIES[name] for name in kernel.features))
    assert module.source_language == 0


@pytest.mark.parametrize("kernel", [kernel for kernel in CATALOG.values() if "joins" in kernel.features])
def test_what_groups_read_of_each_other_is_coherent(kernel):
    words = np.frombuffer(kernel.code("spirv"), "<u4").tolist()
    bindings, coherent, at = {}, set(), 5
    while at < len(words):
        if words[at] & 0xFFFF == compiling._DECORATE:
            target, decoration = words[at + 1 : at + 3]
            coherent |= {target} if decoration == compiling._COHERENT else set()
            bindings |= {target: words[at + 3]} if decoration == compiling._BINDING else {}
        at += words[at] >> 16
    shared = {i for i, buffer in enumerate(kernel.buffers) if buffer.access is Access.READ_WRITE}
    assert {bindings[target] for target in coherent} == shared == {5, 6}


@kernels
def test_parameters_are_small_and_pack(kernel):
    names = [name for name, _ in kernel.params]
    assert len(names) == len(set(names))
    packed = kernel.pack(**{name: i for i, name in enumerate(names)})
    assert len(packed) == 4 * len(names) <= 128
    assert list(vars(kernel.unpack(packed)).values()) == list(range(len(names)))
    with pytest.raises(TypeError):
        kernel.pack(**dict.fromkeys([*names, "more"], 0))


@each("metal")
def test_metal_binds_as_documented(kernel):
    metal = kernel.code("metal").decode()
    entry = re.search(rf"\[\[kernel\]\] void {kernel.name}\((.*)\)", metal)[1]
    slots = [int(slot) for slot in re.findall(r"\[\[buffer\((\d+)\)\]\]", entry)]
    assert slots == list(range(len(kernel.buffers) + 1))
    assert "EntryPointParams_0 constant* entryPointParams_1 [[buffer(0)]]" in entry


@each("cuda")
def test_cuda_binds_as_documented(kernel):
    cuda = kernel.code("cuda").decode()
    bounds = rf"__launch_bounds__\({kernel.size}, {kernel.resident}\) " if kernel.resident else ""
    arguments = re.search(rf'extern "C" __global__ void {bounds}{kernel.name}\((.*)\)', cuda)[1].split(", ")
    writable = [argument.startswith("RWStructuredBuffer<") for argument in arguments[:-1]]
    assert writable == [buffer.access is not Access.READ for buffer in kernel.buffers]
    assert re.search(r"Params_0 p_\d+$", arguments[-1])


def test_cuda_prelude_is_whole():
    prelude = (compiling.GENERATED / "cuda" / "prelude.cuh").read_text()
    opened = re.findall(r"^ *# *if", prelude, re.MULTILINE)
    closed = re.findall(r"^ *# *endif", prelude, re.MULTILINE)
    assert len(opened) == len(closed) > 0
    for kernel in (kernel for kernel in CATALOG.values() if "cuda" in kernel.targets):
        lines = re.findall(r"^#.*", kernel.code("cuda").decode(), re.MULTILINE)
        assert lines == ['#include "prelude.cuh"']


@kernels
def test_every_kernel_is_compiled_for_its_targets_and_the_cpu(kernel):
    for target in TARGETS:
        if target in kernel.targets:
            assert kernel.code(target)
        else:
            with pytest.raises(FileNotFoundError):
                kernel.code(target)
    assert (kernel.name in KERNELS) == (kernel.targets == tuple(TARGETS))


@each("metal")
def test_simdgroup_matrices_are_an_extra(kernel):
    """Only kernels for Metal alone use them, with sums of floats, and each has its like without."""
    used = set(re.findall(r"simdgroup_matrix<(\w+), int\((\d)\), int\((\d)\)>", kernel.code("metal").decode()))
    kinds = {"float", "half"} if "simdgroup16" in kernel.name else {"float"}
    assert used == ({(kind, "8", "8") for kind in kinds} if "simdgroup_matrix" in kernel.features else set())
    if used:
        plain = CATALOG[re.sub("_simdgroup(16)?", "", kernel.name)]
        assert (plain.buffers, plain.fields) == (kernel.buffers, kernel.fields)
        assert "simdgroup_matrix" not in plain.features


def test_text_says_that_it_is_generated():
    for path in compiling.GENERATED.rglob("*"):
        if path.is_file() and path.suffix != ".spv":
            text = path.read_text()
            assert "Generated by" in text.partition("\n")[0], path
            assert "#line" not in text, path
            assert str(compiling.SOURCES) not in text, path


def test_constants_are_the_same_in_python_and_slang():
    found = {}
    for path in compiling.SOURCES.glob("*.slang"):
        for name, value in re.findall(r"static const uint (\w+) = (\d\w*);", path.read_text()):
            found[path.stem, name] = int(value, 0)
    assert found["common", "THREADS"] == THREADS
    assert found["common", "GRID_WIDTH"] == GRID_WIDTH
    assert found["common", "NO_BATCH"] == NO_BATCH
    assert found["fragments", "LANES"] == found["attention_matrices", "LANES"] == SUBGROUP
    assert found["slices", "LANES"] == sliced.SUBGROUP
    assert 2 * found["slices", "LANES"] * found["integers", "BLOCK"] == found["slices", "SLICE"] == SLICE
    assert found["gemv_params", "NO_BIAS"] == NO_BIAS
    assert found["gemv_params", "GELU"] == ACTIVATIONS.index("gelu")
    assert found["tiles", "TILE"] == GEMM_TILE == MATMUL_TILE
    attentions = "attention", "attention_merge", "prefill_attention", "matrix_attention"
    assert {found[name, "NO_SINKS"] for name in attentions} == {NO_SINKS}
    assert MATRIX_HEADS[-1] == MAX_HEAD_DIM
    assert found["attention", "MAX_VECTORS"] * 4 == found["split", "MAX_VECTORS"] * 4 == MAX_HEAD_DIM
    assert found["prefill_attention", "SLICES"] * found["prefill_attention", "SLICE"] * 4 == MAX_HEAD_DIM
    assert found["prefill_attention", "QUERIES"] == QUERIES
    assert found["split", "HEADS"] == HEADS
    assert found["top_logits", "MOST"] == MOST
    assert found["top_logits", "RUN"] == RUN
    assert found["split", "TILE"] == TILE


@pytest.mark.parametrize("groups", [1, GRID_WIDTH - 1, GRID_WIDTH, GRID_WIDTH + 1, 5 * GRID_WIDTH + 3])
def test_grid(groups):
    x, y, z = grid(groups)
    assert x <= GRID_WIDTH
    assert z == 1
    assert groups <= x * y < groups + GRID_WIDTH


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)  # all kernels, for all targets
def test_generated_files_are_current():
    assert compiling.differences(compiling.generate(compiling.Compiler())) == []


@needs_compiler
def test_check_names_each_difference(tmp_path, monkeypatch, capsys):
    files = {"README": b"same", "spirv/add.spv": b"new", "wgsl/add.wgsl": b"missing"}
    monkeypatch.setattr(compiling, "GENERATED", tmp_path)
    monkeypatch.setattr(compiling, "generate", lambda _: files)
    compiling.write({"README": b"same", "spirv/add.spv": b"old", "metal/stale.metal": b""})
    monkeypatch.setattr("sys.argv", ["compile", "--check"])
    assert compiling.main() == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "generated/wgsl/add.wgsl is missing",
        "generated/metal/stale.metal is not generated",
        "generated/spirv/add.spv differs",
    ]
    monkeypatch.setattr("sys.argv", ["compile"])
    assert compiling.main() == 0
    assert compiling.differences(files) == []


def test_the_compiler_is_pinned(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compile", "--check"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert compiling.main() == 1
    assert capsys.readouterr().err == f"the Slang compiler is not installed; pip install {compiling.SLANGPY}\n"


@needs_compiler
def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(compiling, "SLANG_VERSION", "2020.1")
    with pytest.raises(compiling.CompileError, match=r"is 20\S+, not 2020.1; pip install slangpy=="):
        compiling.Compiler()


@needs_compiler
def test_diagnostics_are_errors(tmp_path, monkeypatch):
    (tmp_path / "elementwise.slang").write_text("void add() { undefined(); }")
    monkeypatch.setattr(compiling, "SOURCES", tmp_path)
    with pytest.raises(compiling.CompileError, match=r"add for spirv, metal, .*: .*undefined"):
        compiling.Compiler().compile(CATALOG["add"])


@pytest.mark.skipif(shutil.which("spirv-val") is None, reason="spirv-val is not installed (Debian: spirv-tools)")
@each("spirv")
def test_spirv_is_valid(kernel):
    if "cooperative_matrix" in kernel.features:
        pytest.skip("the SPIRV-Tools of Debian 12 do not know cooperative matrices")
    run = subprocess.run(
        ["spirv-val", "--target-env", "vulkan1.2", "-"], input=kernel.code("spirv"), capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
