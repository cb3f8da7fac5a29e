"""Models at URLs, from a server on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.hub import Hub, serving
from tests.models.split import write_split_llama
from tests.models.tiny import write_tiny_llama
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.files import download, store
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.files.records import models_directory

FOLDER = "/org/m/resolve/main"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as server:
        server.repositories["org/m"] = {"tiny.gguf": write_tiny_llama(tmp_path / "tiny.gguf").read_bytes()}
        monkeypatch.setenv("WASMETAL_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(download, "CHUNK", 4096)
        yield server


def files(server: Hub) -> dict[str, bytes]:
    return server.repositories["org/m"]


def test_pull_use_and_remove(server: Hub, cpu: Device) -> None:
    url = f"{server.url}{FOLDER}/tiny.gguf"
    seen: list[tuple[int, int]] = []
    path = store.pull(f"{url}?token=secret", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == files(server)["tiny.gguf"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert seen[-1] == (path.stat().st_size,) * 2
    [model] = store.models()
    assert (model.name, model.source, model.path) == ("tiny", url, path)
    assert model.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "secret" not in "".join(each.read_text() for each in (models_directory() / "records").iterdir())
    asked = len(server.asked)
    assert store.pull(url) == store.pull(f"{url}?token=other") == store.resolve(url) == store.resolve("tiny") == path
    assert len(server.asked) == asked
    with load_model("tiny", cpu) as loaded:
        assert loaded.chat_template is not None
        assert loaded.chat_template._compiled is None  # not trusted
    store.remove("tiny")
    assert store.models() == []
    assert not path.parent.exists()


def test_a_model_of_the_catalogue_is_not_replaced(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL whose file is called as that of a trusted name."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    files(server)[name] = files(server)["tiny.gguf"]
    store.pull(f"{server.url}{FOLDER}/{name}")
    assert store.find("smollm2:135m") is None
    with pytest.raises(ModelError, match="smollm2:135m is not on this machine yet"):
        store.resolve("smollm2:135m")


def test_an_interrupted_pull_goes_on_where_it_stopped(server: Hub) -> None:
    url = f"{server.url}{FOLDER}/tiny.gguf"
    size = len(files(server)["tiny.gguf"])
    server.cut = [50_000]
    with pytest.raises(ModelError, match=f"ended after 50000 of {size} bytes; pull again to resume"):
        store.pull(url)
    with pytest.raises(ModelError, match="is not on this machine yet"):
        store.resolve(url)
    assert store.pull(url).read_bytes() == files(server)["tiny.gguf"]
    assert server.downloads() == [("tiny.gguf", None), ("tiny.gguf", "bytes=50000-")]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Hub, tmp_path: Path) -> None:
    url = f"{server.url}{FOLDER}/tiny.gguf"
    server.cut = [50_000]
    with pytest.raises(ModelError):
        store.pull(url)
    files(server)["tiny.gguf"] = write_tiny_llama(tmp_path / "other.gguf", seed=1).read_bytes()
    assert store.pull(url).read_bytes() == files(server)["tiny.gguf"]


def test_all_parts_of_a_split_model(server: Hub, tmp_path: Path) -> None:
    parts = write_split_llama(tmp_path / "split.gguf")
    files(server).update({part.name: part.read_bytes() for part in parts})
    path = store.pull(f"{server.url}{FOLDER}/{parts[1].name}")
    [model] = store.models()
    assert model.name == "split"
    assert [Path(file.path).name for file in model.files] == [part.name for part in parts]
    assert GGUFFile(path).tensors.keys() == GGUFFile(parts[0]).tensors.keys()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("page.gguf", "page.gguf: begins with b'<htm', not b'GGUF'"),
        ("cut.gguf", "cut.gguf: .* past the end of the file"),
        ("missing.gguf", "could not pull http://.*/missing.gguf: HTTP Error 404"),
        ("tiny.bin", "the URL of a model ends in the name of its file, such as name.gguf"),
        ("", "the URL of a model ends in the name of its file"),
        ("%2e%2e%2fx.gguf", "the URL of a model ends in the name of its file"),
        (".gguf", "the URL of a model ends in the name of its file"),
    ],
)
def test_what_is_no_model(server: Hub, file: str, said: str) -> None:
    files(server).update({"page.gguf": b"<html>an error page</html>", "cut.gguf": files(server)["tiny.gguf"][:-9000]})
    with pytest.raises(ModelError, match=said) as refused:
        store.pull(f"{server.url}{FOLDER}/{file}?secret")
    assert "secret" not in str(refused.value)
    assert store.models() == []
    assert not list(models_directory().rglob("*.gguf"))


def test_two_urls_whose_files_have_one_name(server: Hub) -> None:
    server.repositories["org/n"] = dict(files(server))
    store.pull(f"{server.url}{FOLDER}/tiny.gguf")
    with pytest.raises(
        ModelError, match=r"there is a model tiny already, from http.*; remove it: wasmetal models rm tiny"
    ):
        store.pull(f"{server.url}/org/n/resolve/main/tiny.gguf")


def test_damage_and_loss_are_found(server: Hub) -> None:
    path = store.pull(f"{server.url}{FOLDER}/tiny.gguf")
    [model] = store.models()
    assert store.verify(model) == []
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert store.verify(model) == [f"{path}: its SHA-256 differs"]
    path.write_bytes(content[:-1])
    assert store.verify(model) == [f"{path}: {len(content) - 1} bytes; {len(content)} are expected"]
    path.unlink()
    assert store.verify(model) == [f"{path}: No such file or directory"]
    with pytest.raises(ModelError, match="tiny is not on this machine yet"):
        store.resolve("tiny")
    assert store.pull(model.source) == path
    assert store.verify(model) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1, "source": 2, "licence": null, "files": []}', "\0"])
def test_a_record_that_is_no_record(server: Hub, text: str) -> None:
    store.pull(f"{server.url}{FOLDER}/tiny.gguf")
    [path] = (models_directory() / "records").iterdir()
    path.write_text(text)
    with pytest.raises(ModelError, match=f"the record {path} of a model .*; remove it and pull the model again"):
        store.models()
