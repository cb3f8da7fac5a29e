"""What /stats says, and to whom."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.serve.serving import Serving, serving, wait_for
from wasmetal.models import Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.keys import read_keys
from wasmetal.serve.limits import ServerLimits

KEYS = {name: f"the long and random key of {name}" for name in ("ann", "bob")}
LONG: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 4000, "logit_bias": {"0": -100, "2": -100}}


def test_a_guest_that_runs_and_one_that_has_ended(served: Serving) -> None:
    before = served.ask("/stats")[1]
    assert served.ask("/v1/completions", LONG | {"max_tokens": 20})[0] == 200
    wait_for(lambda: not served.engine.tasks)
    after = served.ask("/stats")[1]
    assert after["totals"]["completion_tokens"] - before["totals"]["completion_tokens"] == 20
    assert after["totals"]["bytes_copied"] == 0
    assert after["guests"] == []
    last = after["ended"][0]
    assert (last["model"], last["state"], last["tokens"]) == ("tiny", "ended", 20)
    ((address, nbytes),) = last["memory"]["apertures"]  # the logits
    assert 0 < address < address + nbytes <= last["memory"]["bytes"]
    assert set(last["memory"]["cells"]) == {0, 1, 2}
    models = {model["id"]: model for model in after["models"]}
    assert models["tiny"]["batches"] >= 20
    assert models["vectors"]["kind"] == "embeddings"
    assert 0 < after["device"]["used_bytes"] < after["device"]["memory_bytes"]


def test_one_sees_ones_own_guests_alone(tiny: Model, tmp_path: Path) -> None:
    lines = [f"{name} {hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items()]
    (tmp_path / "keys").write_text("\n".join(lines))
    headers = {name: {"Authorization": f"Bearer {key}"} for name, key in KEYS.items()}
    with serving(Engine([tiny], ServerLimits(running=1)), keys=read_keys(None, tmp_path / "keys")) as server:
        assert server.ask("/stats")[0] == 401
        thread = threading.Thread(target=server.ask, args=("/v1/completions", LONG), kwargs={"headers": headers["ann"]})
        thread.start()
        wait_for(lambda: bool(server.ask("/stats", headers=headers["ann"])[1]["guests"]))
        others = server.ask("/stats", headers=headers["bob"])[1]
        assert (others["guests"], others["ended"]) == ([], [])
        thread.join()
        assert server.ask("/stats", headers=headers["ann"])[1]["ended"][0]["tokens"] == 4000
        assert server.ask("/stats", headers=headers["bob"])[1]["ended"] == []
        for path in ("/", "/page/page.js", "/page/page.css"):  # which hold nothing of anybody
            status, _, found = server.ask(path)
            assert status == 200
            assert "default-src 'none'" in found["content-security-policy"]
        assert server.ask("/page/../app.py")[0] == 401
        assert server.ask("/page/%2e%2e/app.py", headers=headers["bob"])[0] == 404


def test_looking_while_guests_come_and_go(tiny: Model) -> None:
    ended = threading.Event()
    with serving(Engine([tiny], ServerLimits(running=4))) as server, ThreadPoolExecutor(6) as pool:

        def look() -> set[int]:
            found = set[int]()
            while not ended.is_set():
                found.add(server.ask("/stats")[0])
            return found

        looking = [pool.submit(look) for _ in range(2)]
        body = LONG | {"max_tokens": 10}
        asked = [pool.submit(server.ask, "/v1/completions", body | {"stream": bool(n % 2)}) for n in range(60)]
        assert {each.result()[0] for each in asked} == {200}
        ended.set()
        assert [each.result() for each in looking] == [{200}] * 2
        wait_for(lambda: not server.engine.tasks)
        totals = server.ask("/stats")[1]["totals"]
        assert (totals["completion_tokens"], totals["bytes_copied"]) == (600, 0)
