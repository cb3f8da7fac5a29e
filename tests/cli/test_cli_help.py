from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from wasmetal.cli import app


@pytest.mark.parametrize(
    "command",
    [
        "",
        "chat",
        "run",
        "pull",
        "models",
        "models show",
        "models rm",
        "models verify",
        "actor",
        "actor run",
        "actor freeze",
        "actor thaw",
        "actor send",
        "actor fork",
        "actor list",
        "actor show",
        "actor export",
        "actor import",
        "actor rm",
        "actor gc",
        "devices",
        "doctor",
        "bench",
        "bench zerocopy",
        "bench dispatch",
        "bench instantiate",
        "bench nn",
        "bench llm",
        "bench actor",
        "serve",
        "sdk",
        "sdk new",
        "sdk include-dir",
        "sdk lib-dir",
    ],
)
def test_help_says_what_it_does(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"])
    assert shown.exit_code == 0
    usage, _, rest = shown.stdout.partition("\n\n")
    assert f"wasmetal {command}".strip() in usage
    assert rest.strip()[0].isupper()


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"wasmetal {version('wasmetal')}\n"


def test_help_loads_neither_engine_nor_arrays() -> None:
    code = "import json, sys, wasmetal.cli; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert not {"numpy", "wasmtime", "vulkan", "gguf", "tokenizers", "jinja2", "prompt_toolkit"} & set(loaded)
