"""The documentation: its Python runs as written, its links lead somewhere, its commands and options exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wasmetal.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) for every fenced block in that language."""
    return [
        (page.name, code) for page in PAGES for code in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)
    ]


@pytest.mark.model
@pytest.mark.parametrize(
    ("page", "code"),
    [
        each for each in blocks("python") if each[0] != "serve.md"
    ],  # which needs a server: tests/serve/test_serve_docs.py
    ids=lambda value: value.splitlines()[-1][:40],
)
def test_python_runs_as_written(page: str, code: str, smollm2: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) > 1  # a model spoke
    if "guest.counters)" in code:
        assert "bytes_copied=0" in done.stdout


def test_readme_has_an_example() -> None:
    assert [page for page, _ in blocks("python")].count("README.md") == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_commands_and_options_exist() -> None:
    lines = {line for _, code in blocks("sh") for line in re.split("\n|&&", code) if "wasmetal " in line}
    assert len(lines) > 5
    for line in lines:
        words = line.partition("wasmetal ")[2].partition("#")[0].partition(".wasm")[0].split()
        command = words[:2] if words[0] in ("actor", "bench", "models", "sdk") else words[:1]
        shown = CliRunner().invoke(app, [*command, "--help"])
        assert shown.exit_code == 0, line
        for option in (word for word in words if word.startswith("-")):
            assert option in shown.stdout, line
