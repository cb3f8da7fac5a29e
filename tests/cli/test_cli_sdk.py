from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cli.command import SCRIPT, wasmetal
from wasmetal import Guest

ROOT = Path(__file__).parents[2]


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", folder, f"PYTHON={sys.executable}", f"WASMETAL={SCRIPT}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_new_guest_builds_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_DEVICE", "cpu")
    created = wasmetal("sdk", "new", "my-guest_2", "--dir", tmp_path / "some" / "where")
    folder = tmp_path / "some" / "where" / "my-guest_2"
    assert (created.returncode, created.stderr) == (0, "")
    assert str(folder) in created.stdout
    built = make(folder, "test", "CFLAGS=-std=gnu17 -O2 -Wall -Wextra -Werror")
    assert built.returncode == 0, built.stderr
    assert "my-guest_2: 16384 elements doubled in place, 0 bytes copied" in built.stdout
    assert not any("{{name}}" in path.read_text() for path in folder.iterdir() if path.suffix != ".wasm")
    with Guest(folder / "my-guest_2.wasm", device="cpu") as guest:
        assert guest.run() == 0
    assert (guest.counters.dispatches, guest.counters.bytes_shared) == (1, 65536)


def test_a_guest_with_the_library(tmp_path: Path) -> None:
    assert wasmetal("sdk", "new", "words", "--dir", tmp_path).returncode == 0
    (tmp_path / "words" / "words.c").write_text(
        """
        #include <stdio.h>
        #include "wasmetal/sampler.h"
        #include "wasmetal/text.h"

        int main(void) {
          float logits[] = {0, 1, 3, 2};
          uint32_t scratch[4];
          Sampler greedy = {.top_p = 1, .repeat_penalty = 1};
          Text text = {0};
          text_add_json(&text, "say \\"hi\\"", 8);
          printf("%.*s %u\\n", (int)text.len, text.data, sample(&greedy, logits, 4, scratch, NULL, 0));
        }
        """
    )
    sources = "SOURCES=words.c $(SDK_LIB)/text.c $(SDK_LIB)/sampler.c"
    built = make(tmp_path / "words", "test", sources, "CFLAGS=-O2 -msimd128")
    assert built.returncode == 0, built.stderr
    assert r'"say \u0022hi\u0022" 2' in built.stdout


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    refused = wasmetal("sdk", "new", "here", "--dir", tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"wasmetal: {tmp_path / 'here'} exists already")
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("name", ["", "../up", "a/b", "9lives", "two words", "-x.y", "naïve"])
def test_a_bad_name(name: str, tmp_path: Path) -> None:
    refused = wasmetal("sdk", "new", "--dir", tmp_path, "--", name)
    assert refused.returncode == 2
    assert f"{name!r} cannot be a guest's name" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = wasmetal("sdk", "new", "guest", "--dir", tmp_path / "file")
    assert refused.returncode == 2
    assert "Not a directory" in refused.stderr


def test_where_things_are() -> None:
    assert Path(wasmetal("sdk", "include-dir").stdout.strip(), "wasmetal.h").is_file()
    assert Path(wasmetal("sdk", "lib-dir").stdout.strip(), "text.c").is_file()


def test_make_says_so_if_wasmetal_is_missing(tmp_path: Path) -> None:
    assert wasmetal("sdk", "new", "guest", "--dir", tmp_path).returncode == 0
    built = make(tmp_path / "guest", "WASMETAL=/nowhere/wasmetal")
    assert built.returncode == 2
    assert "/nowhere/wasmetal does not run" in built.stderr


def test_the_wheel_carries_the_sdk(tmp_path: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, ROOT], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    carried = zipfile.ZipFile(wheel).namelist()
    source = ROOT / "src"
    sdk = [path for path in (source / "wasmetal" / "sdk").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {str(path.relative_to(source)) for path in sdk} <= set(carried)
    assert {f"wasmetal/guests/{name}.wasm" for name in ("chat", "complete", "converse")} <= set(carried)
