"""Compiling generated kernels for CUDA with clang, out of the ``ziglang`` package, and running them on warps.h."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wasmetal.device.base import Bytes
from wasmetal.kernels.catalog import Kernel

SHIM = Path(__file__).parent
needs_ziglang = pytest.mark.skipif(
    sys.platform != "linux" or importlib.util.find_spec("ziglang") is None, reason="needs ziglang, on Linux"
)
_FLAGS = (
    *("-x", "c++", "-std=c++20", "-nostdinc++", "-fno-exceptions", "-fno-rtti"),
    *("-O1", "-shared", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-w"),
)
_ENTRY = """
static void* buffers[{count}];
static size_t sizes[{count}];
static {params} params;
static void thread() {{
    {kernel}({arguments}, params);
    done[current] = true;
}}
static void clear() {{
{clear}
}}
extern "C" void run(uint groups, void** given, const size_t* bytes, const void* with) {{
    memcpy(buffers, given, sizeof buffers);
    memcpy(sizes, bytes, sizeof sizes);
    memcpy(&params, with, sizeof params);
    launch(groups, {spread}, thread, clear);
}}
"""


class CudaShim:
    """A kernel, compiled for this machine."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        with tempfile.TemporaryDirectory() as folder:
            source, built = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
            source.write_text(_translated(kernel))
            threads = f"-DTHREADS={kernel.threads[0]}"
            command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, threads, "-I", SHIM, source, "-lm", "-o", built]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            self._library = ctypes.CDLL(str(built))

    def run(self, groups: int, params: SimpleNamespace, *arrays: Bytes) -> None:
        """Run so many groups. Ends the process if a thread reads or writes outside of the arrays."""
        count = len(arrays)
        addresses = (ctypes.c_void_p * count)(*[array.ctypes.data for array in arrays])
        sizes = (ctypes.c_size_t * count)(*[array.size for array in arrays])
        self._library.run(groups, addresses, sizes, self._kernel.pack(**vars(params)))


@functools.cache
def compiled(kernel: Kernel) -> CudaShim:
    """A kernel, compiled once."""
    return CudaShim(kernel)


def _translated(kernel: Kernel) -> str:
    text = kernel.code("cuda").decode().replace('#include "prelude.cuh"', '#include "warps.h"')
    # Inline PTX, which warps.h has in C++.
    text = re.sub(r"^static __forceinline__ .*?^}$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = text.replace('extern "C" __global__', "__global__")
    found = re.search(rf"void {kernel.name}\((.*)\)", text)
    assert found
    *types, params = (argument.strip().rsplit(" ", 1)[0] for argument in found[1].split(", "))
    arguments = [
        f"{kind}{{({_element(kind)}*)buffers[{i}], sizes[{i}] / sizeof({_element(kind)})}}"
        for i, kind in enumerate(types)
    ]
    shared: list[Any] = re.findall(r"__shared__ .* (\w+);", text)
    names = {
        "count": len(types),
        "params": params,
        "kernel": kernel.name,
        "spread": str(kernel.spread),
        "arguments": ", ".join(arguments),
        "clear": "\n".join(f"    memset((void*)&{name}, 0xff, sizeof {name});" for name in shared),
    }
    return text + _ENTRY.format(**names)


def _element(buffer: str) -> str:
    return buffer[buffer.index("<") + 1 : buffer.rindex(">")].strip()
