"""The npm packages ``ai`` and ``@ai-sdk/openai-compatible``, unmodified: ``npm install --prefix tests/serve/ai``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.serving import PATIENCE, Serving
from tests.serve.test_serve_docs import PAGE

HERE = Path(__file__).parent / "ai"


def node(*args: str) -> str:
    """What it prints, in the folder of the packages. Without those, the test is skipped."""
    program = shutil.which("node")
    if not (program and (HERE / "node_modules" / "ai").exists()):
        reason = "node is not installed, or npm install --prefix tests/serve/ai has not been run"
        if os.environ.get("WASMETAL_REQUIRE_AI") == "1":
            pytest.fail(f"WASMETAL_REQUIRE_AI=1, but {reason}")
        pytest.skip(reason)
    done = subprocess.run([program, *args], capture_output=True, text=True, check=False, timeout=2 * PATIENCE, cwd=HERE)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_generate_stream_tools_and_structured_output(served: Serving) -> None:
    found = json.loads(node("client.mjs", f"{served.url}/v1", "tiny"))
    expected = served.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], temperature=0, max_tokens=8
    )
    assert found["said"] == found["streamed"] == expected.choices[0].message.content
    assert expected.usage
    assert found["usage"] == {"input": expected.usage.prompt_tokens, "output": expected.usage.completion_tokens}
    (call,) = found["calls"]
    assert (call["name"], found["reason"]) == ("getWeather", "tool-calls")
    assert call["input"]["city"] in ("Paris", "Rome")
    assert found["results"] == [f"22 degrees in {call['input']['city']}"]
    assert found["streamedCalls"] == [call]
    assert found["steps"] == 2
    assert found["form"]["city"] in ("Paris", "Rome")


def test_the_example_of_the_documentation(served: Serving) -> None:
    (code,) = re.findall(r"```js\n(.*?)```", PAGE, re.S)
    code = code.replace("http://127.0.0.1:8080", served.url).replace("smollm2:135m", "tiny")
    assert node("--input-type=module", "--eval", code)
