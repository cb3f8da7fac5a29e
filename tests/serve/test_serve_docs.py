"""docs/serve.md: its Python and its curl commands run as written, but for the port (JavaScript: test_ai_package.py)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.serving import Serving, serving
from wasmetal import ActorProgram, Dir, load_model
from wasmetal.cli.serve_guests import guest_spec
from wasmetal.device import Device
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.limits import ServerLimits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text()
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server(smollm2: Path, cpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with load_model("smollm2:135m", cpu, context=1536, contexts=5) as model:
        (line,) = re.findall(r"^  --guest (library\S+)", PAGE, re.M)
        spec = guest_spec(line)
        assert spec.models == {"default": model.name}
        dirs = {name: Dir(ROOT / given.path, given.read_only) for name, given in spec.dirs.items()}
        guests = [GuestModel(spec.name, ActorProgram(ROOT / spec.file), {"default": model}, dirs)]
        actors = tmp_path_factory.mktemp("actors")
        with serving(Engine([model], ServerLimits(running=2, resident=2), guests=guests, actors=actors)) as server:
            yield server


def blocks(language: str, server: Serving) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return [code.replace("http://127.0.0.1:8080", server.url) for code in found]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("stream = client.chat", r"\w+ \w+"),
        ("response_format", "Paris"),
        ("tool_calls[0]", r'get_weather {"city": "Paris"}\n.*\S'),
        ('model="library"', r"From: [\w-]+\.md"),
        ("X-Wasmetal-Actor", r"(?m)^[1-9]\d+$"),
        ("previous_response_id", r"(?m)[1-9]\d+\n.*\S"),
        ("function_call_output", r'get_weather {"city": "Paris"}\n.*\S'),
    ],
)
def test_the_client(server: Serving, about: str, said: str) -> None:
    (code,) = (code for code in blocks("python", server) if about in code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(said, done.stdout), done.stdout


def test_all_examples_are_tested() -> None:
    assert len(re.findall("```python", PAGE)) == 7


def test_curl(server: Serving) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    (code,) = (code for code in blocks("sh", server) if "curl" in code)
    done = subprocess.run(["bash", "-ec", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "data: [DONE]" in done.stdout
    assert '"text_completion"' in done.stdout
    assert '"count":2' in done.stdout
