"""C code of guests (the library, chat, the replies of complete), with sanitizers, given random inputs.

A C compiler from the system finds accesses outside of objects and undefined behaviour. Without one, ziglang's finds
undefined behaviour alone.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

ROOT = Path(__file__).parents[2]
SDK = ROOT / "src/wasmetal/sdk"
HERE = Path(__file__).parent / "sanitized"
SOURCES = (
    HERE / "harness.c",
    *(SDK / f"lib/{name}.c" for name in ("json", "sampler", "speculate", "text")),
    *(ROOT / f"guests/chat/{name}.c" for name in ("chat", "drafting")),
    ROOT / "guests/complete/reply.c",
)
KINDS = ("sampler", "text", "chat", "speculate", "reply", "json")
FLAGS = (
    *("-std=gnu17", "-g", "-O1", "-D_GNU_SOURCE", "-fno-sanitize-recover=all", "-Wall", "-Wextra"),
    *("-Wno-unknown-attributes", "-Wno-attributes", f"-I{HERE}", f"-I{SDK / 'include'}", f"-I{ROOT / 'guests'}"),
)
PIECES = (b"<|end|>", b"\xe2\x82", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\n\n", b'"\\', b"\xff" * 4, b"\0", b"wm")
INPUTS = 20_000


def compilers() -> list[tuple[str, ...]]:
    """Compilers with their sanitizers, the most thorough first."""
    found = [(path, "-fsanitize=address,undefined") for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    return [*found, (sys.executable, "-m", "ziglang", "cc", "-fsanitize=undefined")]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sanitized") / "harness"
    for command in compilers():
        done = subprocess.run(
            [*command, *FLAGS, *SOURCES, "-lm", "-o", out], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return out
    pytest.fail(done.stderr[-2000:])


def an_input(random: Random, what: int) -> bytes:
    parts = [random.choice(PIECES) if random.random() < 0.3 else random.randbytes(random.randint(1, 40))]
    parts *= random.choice([1, 1, 3])
    parts += [random.randbytes(random.randint(0, 200)), random.choice(PIECES)] * random.randint(0, 4)
    return bytes([what]) + b"".join(parts)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", KINDS)
def test_random_inputs(harness: Path, tmp_path: Path, what: str) -> None:
    """If this fails, ``inputs`` in the test's folder has what it was given."""
    random, number = Random(what), KINDS.index(what)
    inputs = [an_input(random, number) for _ in range(INPUTS)]
    path = tmp_path / "inputs"
    path.write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in inputs))
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # which needs ptrace, and containers may forbid that
    with path.open("rb") as stdin:
        done = subprocess.run(
            [harness], stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, check=False
        )
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if not line.startswith("chat: ")]
    assert (done.returncode, said) == (0, [f"{INPUTS} inputs"]), "\n".join(said[:40])
