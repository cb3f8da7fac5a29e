"""The container and the systemd unit, as far as they can be tried without either."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import SCRIPT, wasmetal
from tests.serve.serving import PATIENCE, serving
from wasmetal.models import Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.keys import new_key

FOLDER = Path(__file__).parents[2] / "packaging"


def instructions(name: str) -> str:
    """The arguments of the Dockerfile's last instruction of that name."""
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())
    return re.findall(rf"^{name} (.*)$", text, re.M)[-1].strip()


def test_the_container_asks_for_a_key() -> None:
    command, *fixed = json.loads(instructions("ENTRYPOINT"))
    assert command == SCRIPT.name
    done = wasmetal(*fixed, *json.loads(instructions("CMD")))
    assert done.returncode == 2
    assert "--api-key" in done.stderr


def test_the_container_knows_whether_it_is_well(tiny: Model) -> None:
    check = json.loads(instructions("HEALTHCHECK").partition("CMD ")[2])

    def healthy(url: str) -> bool:
        command = [sys.executable, *(part.replace("http://127.0.0.1:8080", url) for part in check[1:])]
        return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode == 0

    with serving(Engine([tiny])) as server:
        assert healthy(server.url)
        server.engine.admission.draining = True
        assert not healthy(server.url)
        server.engine.admission.draining = False
        url = server.url
    assert not healthy(url)


def test_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "wasmetal.service"
    unit.write_text((FOLDER / unit.name).read_text().replace("/opt/wasmetal/bin/wasmetal", str(SCRIPT)))

    def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["systemd-analyze", *arguments, str(unit)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    done = analyze("verify")
    if "Failed to initialize manager" in done.stderr:
        pytest.skip("systemd does not work here")
    assert (done.returncode, done.stderr) == (0, "")
    exposure = analyze("security", "--offline=true", "--threshold=20")  # of 100: what the unit leaves open
    assert exposure.returncode == 0, exposure.stdout


def test_the_units_command(tmp_path: Path, tiny_path: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", (FOLDER / "wasmetal.service").read_text(), re.M)
    (tmp_path / "keys").write_text(new_key("ann")[1])
    command = shlex.split(line.replace("%d", str(tmp_path)).replace("smollm2:135m", str(tiny_path)))
    done = subprocess.Popen(
        [SCRIPT, *command[1:], "--port", "0", "--device", "cpu"], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    with done as process:
        try:
            assert process.stderr
            assert "wasmetal serves tiny" in json.loads(process.stderr.readline())["message"]
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
