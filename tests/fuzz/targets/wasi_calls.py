"""WASI's functions, called with hostile paths, descriptors and pointers by a guest that was granted a directory.

An input is a JSON array of calls. Beside the directory lies a secret, to which a link in the directory points: it may
neither be read nor changed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import wasmtime

from tests.fuzz import noise
from tests.fuzz.target import Run
from wasmetal import Guest, Limits, Program
from wasmetal.errors import WasmetalError

SECONDS = 60.0
MEMORY = 1 << 30

MODULE = "wasi_snapshot_preview1"
SECRET = b"what lies beside the granted directory"
PATHS, VECTORS, SUBSCRIPTIONS, OUT = 1024, 8192, 12288, 16384
PATH_ROOM, MOST_CALLS = 128, 40
PATHS_TRIED = (
    *("a", "b", "sub/c", "sub", ".", "..", "./a", "a/", "", "/", "/d/a", "/etc/passwd", "sub/../a", "../beside/secret"),
    *("out", "out/secret", "loop", "new", "sub/new", "a/b", "..\\a", "a\0b", "x" * 120, "\u202e", "sub/../../beside"),
)
FUNCTIONS = {
    "args_get": "oo",
    "args_sizes_get": "oo",
    "clock_res_get": "no",
    "clock_time_get": "nNo",
    "environ_get": "oo",
    "environ_sizes_get": "oo",
    "fd_advise": "fNNn",
    "fd_allocate": "fNN",
    "fd_close": "f",
    "fd_datasync": "f",
    "fd_fdstat_get": "fo",
    "fd_fdstat_set_flags": "fn",
    "fd_fdstat_set_rights": "fNN",
    "fd_filestat_get": "fo",
    "fd_filestat_set_size": "fN",
    "fd_filestat_set_times": "fNNn",
    "fd_pread": "fvcNo",
    "fd_prestat_dir_name": "foc",
    "fd_prestat_get": "fo",
    "fd_pwrite": "fvcNo",
    "fd_read": "fvco",
    "fd_readdir": "focNo",
    "fd_renumber": "ff",
    "fd_seek": "fNno",
    "fd_sync": "f",
    "fd_tell": "fo",
    "fd_write": "fvco",
    "path_create_directory": "fpl",
    "path_filestat_get": "fnplo",
    "path_filestat_set_times": "fnplNNn",
    "path_link": "fnplfpl",
    "path_open": "fnplnRRno",
    "path_readlink": "fploco",
    "path_remove_directory": "fpl",
    "path_rename": "fplfpl",
    "path_symlink": "plfpl",
    "path_unlink_file": "fpl",
    "poll_oneoff": "soco",
    "random_get": "oc",
    "sched_yield": "",
}
"""Parameters: f descriptor, p path and l its length, v vectors, s subscriptions, c a count, o where output goes, n a
number; N and R, a number and rights of 64 bits."""
OFTEN = ["path_open"] * 10 + ["fd_read", "fd_write", "fd_readdir", "path_symlink", "path_rename", "path_link"] * 2


def generate(random: Random) -> bytes:
    calls = [random.choice([*FUNCTIONS, *OFTEN]) for _ in range(MOST_CALLS)]
    return json.dumps([[name, _arguments(random, FUNCTIONS[name])] for name in calls]).encode()


def _arguments(random: Random, roles: str) -> list[int]:
    values, path = [], 0
    for role in roles:
        if random.random() < 0.03:
            values.append(noise.number(random))
        elif role == "p":
            path = random.randrange(len(PATHS_TRIED))
            values.append(PATHS + PATH_ROOM * path)
        elif role == "l":
            values.append(len(PATHS_TRIED[path].encode()))
        else:
            values.append(_usual(random, role))
    return [value % 2 ** (64 if role in "NR" else 32) for role, value in zip(roles, values, strict=True)]


def _usual(random: Random, role: str) -> int:
    return {
        "f": lambda: random.choice([0, 1, 2, *[3] * 8, 4, 4, 4, 5, 5, 6, 7, 100]),
        "v": lambda: VECTORS + 8 * random.randrange(8),
        "s": lambda: SUBSCRIPTIONS + 48 * random.randrange(4),
        "c": lambda: random.choice([0, 1, 1, 2, 4, 64, 4096]),
        "o": lambda: OUT + 8 * random.randrange(512),
        "n": lambda: random.choice([0, 0, 1, 2, 3, 4, 9, 15]),
        "N": lambda: random.choice([0, 1, 16, 4096, 2**63 - 1, 2**64 - 1]),
        "R": lambda: random.choice([0, 2**64 - 1, 2**64 - 1, 0x1FFFFFFF, 2, 64]),
    }[role]()


def _text() -> str:
    imports, exports = [], []
    for name, roles in FUNCTIONS.items():
        types = " ".join("i64" if role in "NR" else "i32" for role in roles)
        given = " ".join(f"(local.get {i})" for i in range(len(roles)))
        imports.append(f'(import "{MODULE}" "{name}" (func ${name} (param {types}) (result i32)))')
        exports.append(f'(func (export "{name}") (param {types}) (result i32) (call ${name} {given}))')
    return "\n".join(["(module", *imports, '(memory (export "memory") 1 2)', *exports, ")"])


def _memory() -> bytes:
    """Paths, vectors of several kinds and subscriptions, at their addresses."""
    memory = bytearray(65536)
    for i, path in enumerate(PATHS_TRIED):
        data = path.encode()
        memory[PATHS + PATH_ROOM * i : PATHS + PATH_ROOM * i + len(data)] = data
    vectors = [(OUT, 64), (OUT, 4096), (65530, 100), (0, 65536), (2**32 - 8, 16), (OUT, 0), (OUT, 2**32 - 1), (0, 8)]
    memory[VECTORS : VECTORS + 64] = np.array(vectors, "<u4").tobytes()
    kinds = ((0, 0, 10**6), (0, 1, 2**63), (1, 0, 0), (2, 3, 0))  # clocks, reading, writing
    for i, (tag, what, timeout) in enumerate(kinds):
        record = np.array([i, tag, what, timeout, 0, 0], "<u8").tobytes()
        memory[SUBSCRIPTIONS + 48 * i : SUBSCRIPTIONS + 48 * i + 48] = record
    return bytes(memory)


@contextmanager
def opened(device: str) -> Iterator[Run]:
    program, memory = Program(bytes(wasmtime.wat2wasm(_text()))), _memory()
    with tempfile.TemporaryDirectory() as folder:
        yield lambda data: _run(json.loads(data), program, memory, Path(folder))


def _run(calls: list[tuple[str, list[int]]], program: Program, memory: bytes, root: Path) -> Counter[str]:
    granted, beside = root / "granted", root / "beside"
    for directory in (granted, beside):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    (beside / "secret").write_bytes(SECRET)
    (granted / "a").write_bytes(b"a file")
    (granted / "sub").mkdir()
    (granted / "sub/c").write_bytes(bytes(5000))
    (granted / "out").symlink_to("../beside")
    (granted / "loop").symlink_to("loop")
    outcomes: Counter[str] = Counter()
    limits = Limits(wall_seconds=0.5, memory_bytes=1 << 20)
    with Guest(program, dirs={"/d": granted}, limits=limits, stdin=b"typed\n" * 10) as guest:
        guest.write(0, memory)
        try:
            guest._calls.enter(lambda: _call_all(guest, calls, outcomes))
        except WasmetalError as error:
            outcomes[type(error).__name__] += 1
    assert [path.name for path in beside.iterdir()] == ["secret"], "a file was made or removed outside"
    assert (beside / "secret").read_bytes() == SECRET, "a file outside has changed"
    return outcomes


def _call_all(guest: Guest, calls: list[tuple[str, list[int]]], outcomes: Counter[str]) -> None:
    store = guest._store
    exports: Any = guest._instance.exports(store)
    for name, values in calls:
        widths = (64 if role in "NR" else 32 for role in FUNCTIONS[name])
        signed = [(v + (1 << w - 1)) % (1 << w) - (1 << w - 1) for v, w in zip(values, widths, strict=True)]
        outcomes[f"calls of {name}"] += 1
        try:
            errno = exports[name](store, *signed)
        except (wasmtime.Trap, wasmtime.WasmtimeError):  # a pointer out of bounds, or the time is up
            outcomes["traps"] += 1
            continue
        outcomes[f"errno {errno}"] += 1
        assert 0 <= errno <= 76, f"{name} gave {errno}"
        assert SECRET not in exports["memory"].read(store), f"{name} read a file outside"
