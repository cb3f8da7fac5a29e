"""The script that logs a Mac's capabilities in CI: it runs, and agrees with the device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.metal.devices import EMULATED, environment_for


def test_it_answers_every_question() -> None:
    script = Path(__file__).with_name("capabilities.py")
    environment = os.environ | environment_for("metal")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    answers = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert len(answers) == 10
    assert answers["threads of a simdgroup, and most of a group"].startswith("32, ")
    assert float(answers["seconds of one kernel by the GPU's own clock"]) >= 0
    if EMULATED:
        assert answers["name"] == "emulated Metal"
        assert answers["families"] == "Apple7, Metal3"
