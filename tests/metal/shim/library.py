"""Compiling Metal sources with clang, out of the ``ziglang`` package, and running their kernels on runtime.cpp."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hashlib
import math
import platform
import subprocess
import sys
import tempfile
import threading
from importlib import metadata
from pathlib import Path

from tests.metal.shim.source import Signature, SourceError, translate

SHIM = Path(__file__).parent
CACHE = SHIM.parents[2] / "build" / "metal-shim"

_RUNNING = threading.Lock()  # runtime.cpp runs one launch at a time.

MAX_BUFFERS = 31
MAX_THREADS = 1024

_KERNEL_FLAGS = (
    # C++ for OpenCL, without double, and without pointers that name no address space.
    *("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant"),
    *("-Xclang", "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space"),
    *("-Wno-unknown-attributes", "-Wno-double-promotion", "-Wno-unused-value"),
    # Metal with fast-math off. No vectorization, so that loads and stores stay as they were written.
    *("-O1", "-fPIC", "-ffp-contract=off", "-fno-vectorize", "-fno-slp-vectorize", "-ftrivial-auto-var-init=pattern"),
    # Calls to runtime.cpp before each load and store, and on undefined behaviour.
    *("-Xclang", "-fsanitize=thread"),
    *("-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm", "-tsan-instrument-read-before-write=1"),
    "-fsanitize=integer-divide-by-zero,bounds,float-cast-overflow,return",
    *("-fsanitize-minimal-runtime", "-fno-sanitize-recover=all"),
)
_HALF = ("-mf16c",) if platform.machine() in ("x86_64", "AMD64") else ()  # Conversion of half in hardware.
_RUNTIME_FLAGS = (
    *("-x", "c++", "-std=c++20", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti"),
    *("-Wall", "-Werror", "-Wno-format-security"),
)


class ShimError(Exception):
    """A kernel did what it must not; or it was given what it cannot take."""


class ShimCompileError(ShimError):
    """Clang refused the source; the message is what it said."""


class _Buffer(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("nbytes", ctypes.c_uint64))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("buffers", _Buffer * MAX_BUFFERS),
        ("buffer_count", ctypes.c_uint32),
        ("groups", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("seed", ctypes.c_uint32),
        ("error", ctypes.c_char * 512),
    )


class Function:
    """One kernel of a library."""

    def __init__(self, library: ctypes.CDLL, signature: Signature):
        self.name = signature.name
        self.buffers = signature.buffers
        self._launch = library.shim_launch
        self._kernel = ctypes.cast(library[f"shim_kernel_{signature.name}"], ctypes.c_void_p)

    def run(
        self,
        buffers: dict[int, tuple[int, int]],
        threadgroups: tuple[int, int, int],
        threads: tuple[int, int, int],
        *,
        seed: int = 0,
    ) -> None:
        """Run the kernel, with buffers as (address, bytes) by index.

        ``seed`` varies the order in which groups run, and threads within a group: forwards, backwards or shuffled.
        Raises ShimError for a buffer that is not bound, an access outside the bound ones, a divergent barrier, …
        """
        if missing := sorted(set(self.buffers) - buffers.keys()):
            raise ShimError(f"{self.name}: buffer {missing[0]} is not bound")
        if not (1 <= math.prod(threads) <= MAX_THREADS and min(threads) > 0 and min(threadgroups) >= 0):
            raise ShimError(f"{self.name}: {threadgroups} groups of {threads} threads; a group has 1 to {MAX_THREADS}")
        count = max(self.buffers, default=-1) + 1
        launch = _Launch(self._kernel, buffer_count=count, groups=threadgroups, threads=threads, seed=seed)
        for index in self.buffers:
            launch.buffers[index] = buffers[index]
        with _RUNNING:
            failed = self._launch(ctypes.byref(launch))
        if failed:
            raise ShimError(f"{self.name}: {launch.error.decode()}")


class Library:
    """The kernels of one source."""

    def __init__(self, path: Path, signatures: list[Signature]):
        library = ctypes.CDLL(str(path))
        self.functions = {signature.name: Function(library, signature) for signature in signatures}


@functools.cache
def compile_library(source: str) -> Library:
    """The kernels of a Metal source. What was compiled before is taken from the cache. Raises ShimCompileError."""
    try:
        text, signatures = translate(source)
    except SourceError as error:
        raise ShimCompileError(str(error)) from error
    path = CACHE / f"{_digest(text)}.so"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            kernels = Path(folder, "kernels.o")
            _clang(text, kernels, *_KERNEL_FLAGS, *_HALF, "-I", str(SHIM))
            built = Path(folder, "kernels.so")
            undefined = ("-Wl,-undefined,dynamic_lookup",) if sys.platform == "darwin" else ()
            _zig("cc", "-target", _target()[1], "-shared", "-nostdlib", *undefined, kernels, _runtime(), "-o", built)
            built.replace(path)
    _load_math()
    return Library(path, signatures)


@functools.cache
def _runtime() -> Path:
    """runtime.cpp, compiled."""
    source = (SHIM / "runtime.cpp").read_text()
    path = CACHE / f"{_digest(source)}.o"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            built = Path(folder, "runtime.o")
            _clang(source, built, *_RUNTIME_FLAGS)
            built.replace(path)
    return path


@functools.cache
def _load_math() -> None:
    """The C library's mathematics, which compiled kernels call, for all libraries to see."""
    ctypes.CDLL(ctypes.util.find_library("m"), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def _tools() -> bytes:
    """All that a compiled kernel depends on, besides its source."""
    files = sorted(path for path in SHIM.iterdir() if path.is_file())
    return metadata.version("ziglang").encode() + b"".join(path.read_bytes() for path in files)


def _digest(text: str) -> str:
    return hashlib.sha256(_tools() + text.encode()).hexdigest()[:32]


def _target() -> tuple[str, str]:
    """This machine, as clang calls it and as Zig does."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    if sys.platform == "darwin":
        return f"{machine}-apple-macos13", f"{machine}-macos"
    return f"{machine}-linux-gnu", f"{machine}-linux-gnu"


def _clang(source: str, out: Path, *flags: str) -> None:
    _zig("clang", "-target", _target()[0], *flags, "-c", "-", "-o", out, text=source)


def _zig(*arguments: str | Path, text: str | None = None) -> None:
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ShimCompileError(done.stderr.strip())
