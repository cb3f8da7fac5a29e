"""``wasmetal pull`` and ``wasmetal models``, as their users run them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import wasmetal
from tests.cli.pseudoterminal import CTRL_D, PROMPT, Terminal
from tests.models.hub import Hub, serving
from tests.models.tiny import write_tiny_llama


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    path = write_tiny_llama(tmp_path_factory.mktemp("server") / "tiny.gguf")
    with serving() as server:
        server.repositories["org/m"] = {"tiny.gguf": path.read_bytes()}
        yield server


def test_from_pull_to_rm(server: Hub, tmp_path: Path) -> None:
    settings = {"WASMETAL_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}

    def models() -> list[dict[str, Any]]:
        return json.loads(wasmetal("models", "--json", **settings).stdout)

    pulled = wasmetal("pull", f"{server.url}/org/m/resolve/main/tiny.gguf", **settings)
    assert pulled.returncode == 0, pulled.stderr
    path = Path(pulled.stdout.strip())
    assert "tiny.gguf: 100 % of" in pulled.stderr
    first, *others = models()
    assert (first["name"], first["path"], first["bytes"]) == ("tiny", str(path), path.stat().st_size)
    assert {other["path"] for other in others} == {None}
    assert {"smollm2:135m", "llama3.2:1b"} <= {other["name"] for other in others}
    assert f" {path}\n" in wasmetal("models", **settings).stdout

    shown = json.loads(
        wasmetal("models", "show", "tiny", "--context", 64, "--sessions", 2, "--json", **settings).stdout
    )
    assert (shown["architecture"], shown["path"], shown["refusal"]) == ("llama", str(path), None)
    assert shown["memory"]["kv_cache"] == 2 * 2 * 2 * 64 * 2 * 16 * 4
    assert sum(each["bytes"] for each in shown["types"].values()) == shown["bytes"] == shown["memory"]["weights"]
    assert shown["experts"] is None
    assert "for 1 × 256 tokens" in wasmetal("models", "show", path, **settings).stdout
    mixture = write_tiny_llama(tmp_path / "mixture.gguf", architecture="qwen3moe")
    assert "7 in each layer, 2 used by each token: " in wasmetal("models", "show", mixture, **settings).stdout

    good = wasmetal("models", "verify", **settings)
    assert (good.returncode, good.stdout) == (0, "model  result\ntiny   unchanged\n")
    with path.open("ab") as file:
        file.write(b"more")
    bad = wasmetal("models", "verify", "tiny", "--json", **settings)
    assert bad.returncode == 1
    [found] = json.loads(bad.stdout)
    assert (found["name"], found["ok"]) == ("tiny", False)

    assert wasmetal("models", "rm", "tiny", **settings).stdout.startswith("removed tiny, ")
    assert not path.exists()
    assert {model["path"] for model in models()} == {None}


def test_a_licence_to_accept(tmp_path: Path) -> None:
    refused = wasmetal("pull", "llama3.2:1b", WASMETAL_HOME=str(tmp_path))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "llama.com/llama3_2/license/, and pull again with --accept-licence\n" in refused.stderr


@pytest.mark.parametrize("accepts", [False, True])
def test_chat_offers_to_pull_and_names_the_licence_to_accept(server: Hub, tmp_path: Path, accepts: bool) -> None:
    """A known name of the hub, which stands for a tiny model here."""
    server.repositories["ggml-org/gemma-3-1b-it-GGUF"] = {
        "gemma-3-1b-it-Q4_K_M.gguf": server.repositories["org/m"]["tiny.gguf"]
    }
    settings = {name: str(tmp_path / name) for name in ("WASMETAL_HOME", "HF_HOME")}
    settings |= {"HF_ENDPOINT": server.url, "NO_PROXY": "127.0.0.1"}
    with Terminal("chat", "gemma3:1b", "--device", "cpu", columns=300, **settings) as terminal:
        terminal.until(b"Download it and accept its licence, https://ai.google.dev/gemma/terms? [y/N]:")
        terminal.type(b"y\r" if accepts else b"\r")
        if accepts:
            terminal.until(PROMPT)
            terminal.type(CTRL_D)
            terminal.rest()
            assert terminal.wait() == 0
        else:
            assert b"gemma3:1b is not on this machine yet; get it with: wasmetal pull gemma3:1b" in terminal.rest()
            assert terminal.wait() == 2
