"""Models of the Hugging Face Hub, from a stand-in for it on this machine."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from tests.cli.command import wasmetal
from tests.models.bert_folder import spelled, write_bert_folder
from tests.models.folder import write_folder
from tests.models.hub import Hub, serving
from tests.models.split import write_split_llama
from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from wasmetal import load_embedder, load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.files import catalog, store
from wasmetal.models.files.catalog import KnownModel
from wasmetal.models.files.hub import chosen

REPOSITORY = "org/Model-GGUF"
BIG = np.random.default_rng(0).bytes(3 << 20)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("hub")
    found = {
        f"Model-{kind}.gguf": write_tiny_llama(folder / "m.gguf", qtype=kind, blocks=1).read_bytes()
        for kind in ("Q8_0", "Q4_0", "F16")
    }
    found |= {
        f"parts/{path.name}": path.read_bytes() for path in write_split_llama(folder / "Model-Q4_1.gguf", blocks=1)
    }
    return found | {"mmproj-Model-Q8_0.gguf": b"GGUF", "README.md": b"# Model", "big.bin.gguf": BIG}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        hub.repositories[REPOSITORY] = dict(files)
        monkeypatch.setenv("WASMETAL_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield hub


def test_a_quantization_is_pulled_loaded_listed_and_removed(
    hub: Hub, files: dict[str, bytes], cpu: Device, tmp_path: Path
) -> None:
    name, said, seen = f"hf:{REPOSITORY}:q8_0", [], []
    path = store.pull(name, lambda done, total: seen.append((done, total)), notice=said.append)
    assert path.read_bytes() == files["Model-Q8_0.gguf"]
    assert said == [f"{name}: licence apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0)"]
    size = len(files["Model-Q8_0.gguf"])
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    [model] = store.models()
    assert (model.name, model.source) == (f"hf:{REPOSITORY}:Model-Q8_0.gguf",) * 2
    assert (model.path, model.nbytes, model.licence) == (path, size, "apache-2.0")
    assert [file.sha256 for file in model.files] == [hashlib.sha256(path.read_bytes()).hexdigest()]
    for spelling in (name, f"hf:{REPOSITORY}", model.name):
        assert store.resolve(spelling) == path
    with load_model(name, cpu) as loaded:
        assert loaded.chat_template is not None
        assert not store.trusted(name)
    asked = len(hub.asked)
    assert store.pull(name) == path
    assert len(hub.asked) == asked  # it is here: nothing was asked for
    assert store.verify(model) == []
    store.remove(name)
    assert store.models() == []
    blobs = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.parent.name == "blobs"]
    assert blobs == []


def test_all_parts_of_a_split_model(hub: Hub, files: dict[str, bytes], cpu: Device) -> None:
    path = store.pull(f"hf:{REPOSITORY}:Q4_1")
    [model] = store.models()
    parts = sorted(name for name in files if name.startswith("parts/"))
    assert len(parts) > 1
    assert [Path(file.path).read_bytes() for file in model.files] == [files[name] for name in parts]
    with load_model(path, cpu) as loaded:
        assert loaded.config.block_count == 1


FOLDER = "org/Model"


@pytest.fixture
def folder(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """A repository with a folder of Hugging Face in two parts, and what is not needed of it."""
    made = write_folder(tmp_path / "made", write_tiny_llama(tmp_path / "m.gguf", qtype="F16", blocks=1), 2)
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    needless = {
        "README.md": b"# Model",
        "pytorch_model.bin": BIG,
        "consolidated.safetensors": BIG,
        "onnx/config.json": b"{}",
    }
    hub.repositories[FOLDER] = files | needless | {"model.safetensors": BIG}  # superseded by the index
    return files


def test_a_folder_is_pulled_loaded_listed_verified_and_removed(
    hub: Hub, folder: dict[str, bytes], cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    name, seen = f"hf:{FOLDER}", []
    hub.cut = [10_000, 3000]  # of two files: the connection breaks
    path = store.pull(name, lambda done, total: seen.append((done, total)))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == folder
    total = sum(map(len, folder.values()))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    [model] = store.models()
    assert (model.name, model.path, model.nbytes, model.licence) == (name, path, total, "apache-2.0")
    assert {Path(file.path).name: file.sha256 for file in model.files} == {
        each: hashlib.sha256(data).hexdigest() for each, data in folder.items()
    }
    for spelling in (name, f"{name}:config.json"):
        assert store.resolve(spelling) == path
    with load_model(name, cpu, quantize="q8_0") as loaded:
        assert loaded.name == name
        assert loaded.chat_template is not None
        assert not store.trusted(name)
    asked = len(hub.asked)
    assert store.pull(name) == path
    assert len(hub.asked) == asked
    assert store.verify(model) == []
    shard = next(Path(file.path) for file in model.files if file.path.endswith("2.safetensors"))
    shard.resolve().write_bytes(bytes(shard.stat().st_size))
    assert store.verify(model) == [f"{shard}: its SHA-256 differs"]
    shard.resolve().unlink()
    shard.unlink()
    with pytest.raises(ModelError, match="is not on this machine yet; get it with: wasmetal pull hf:org/Model"):
        store.resolve(name)
    store.pull(name)
    assert store.verify(store.models()[0]) == []
    shown = wasmetal("models", "show", name).stdout
    assert "llama" in shown
    assert "apache-2.0" in shown
    store.remove(name)
    assert store.models() == []
    assert [path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file()] == []


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "vocab.txt"])
def test_a_folder_of_an_embedding_model(hub: Hub, cpu: Device, tmp_path: Path, tokenizer: str) -> None:
    """With the pooling, which is in a folder of its own."""
    made = write_bert_folder(tmp_path / "made-0.5", write_tiny_bert(tmp_path / "m.gguf"), pooling="cls")
    (made / "vocab.txt").write_text("\n".join(spelled()))
    (made / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    wanted = files_of(made)
    if tokenizer == "vocab.txt":
        del wanted["tokenizer.json"]
    hub.repositories[FOLDER] = wanted | {"onnx/model.onnx": BIG, "2_Normalize/config.json": b"{}", "flax_model": BIG}
    if tokenizer == "tokenizer.json":
        del wanted["vocab.txt"]
    name = f"hf:{FOLDER}"
    path = store.pull(name)
    assert files_of(path) == wanted
    assert store.verify(store.models()[0]) == []
    with load_embedder(name, cpu) as pulled, load_embedder(made, cpu) as here:
        assert (pulled.pooling, pulled.context_length) == ("cls", 32)
        assert (pulled.name, here.name) == (name, "made-0.5")
        np.testing.assert_array_equal(pulled.embed(["the world"]), here.embed(["the world"]))
    assert "bert" in wasmetal("models", "show", name).stdout
    store.remove(name)
    assert [path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file()] == []


def test_a_folder_of_gpt_oss(hub: Hub, cpu: Device, tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "m.gguf", architecture="gpt-oss", qtype="F32", expert_qtype="MXFP4")
    made = write_folder(tmp_path / "made", source, 3)
    hub.repositories[FOLDER] = files_of(made) | {"original/model.safetensors": BIG, "metal/model.bin": BIG}
    path = store.pull(f"hf:{FOLDER}")
    assert files_of(path) == files_of(made)
    with load_model(f"hf:{FOLDER}", cpu) as model:
        assert model.config.block_count == 2


def test_a_folder_beside_gguf_files(hub: Hub, folder: dict[str, bytes], files: dict[str, bytes]) -> None:
    """The file is meant, unless the folder is named."""
    hub.repositories[FOLDER]["Model-Q8_0.gguf"] = files["Model-Q8_0.gguf"]
    assert store.pull(f"hf:{FOLDER}").name == "Model-Q8_0.gguf"
    assert store.pull(f"hf:{FOLDER}:config.json").is_dir()
    assert store.resolve(f"hf:{FOLDER}").name == "Model-Q8_0.gguf"
    assert store.resolve(f"hf:{FOLDER}:config.json").is_dir()


@pytest.mark.parametrize("missing", ["tokenizer.json", "model", "config.json"])
def test_what_is_no_folder(hub: Hub, folder: dict[str, bytes], missing: str) -> None:
    files = hub.repositories[FOLDER]
    hub.repositories[FOLDER] = {name: data for name, data in files.items() if not name.startswith(missing)}
    with pytest.raises(ModelError, match="no such GGUF file; the repository has none"):
        store.pull(f"hf:{FOLDER}")
    assert hub.downloads() == []


def test_a_folder_from_the_cache_alone(
    hub: Hub, folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = store.pull(f"hf:{FOLDER}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path / "another"))
    asked = len(hub.asked)
    assert store.pull(f"hf:{FOLDER}") == path
    assert len(hub.asked) == asked


def test_a_damaged_folder_is_refused(hub: Hub, folder: dict[str, bytes]) -> None:
    hub.damaged = True
    with pytest.raises(ModelError, match="is not the published file"):
        store.pull(f"hf:{FOLDER}")
    assert store.models() == []


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("", r"may be any of 5 files: .*Model-F16\.gguf.*; name one after a colon"),
        (":Q4_K_M", r"no such GGUF file; the repository has .*Model-Q8_0\.gguf"),
        (":README.md", "no such GGUF file"),
    ],
)
def test_what_does_not_name_one_model(hub: Hub, choice: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as refused:
        store.pull(f"hf:{REPOSITORY}{choice}")
    assert "\n" not in str(refused.value)
    assert hub.downloads() == []


def test_names_that_several_models_here_have(hub: Hub) -> None:
    for choice in ("Q8_0", "F16"):
        store.pull(f"hf:{REPOSITORY}:{choice}")
    with pytest.raises(ModelError, match=r"any of these that are here: .*Model-F16.gguf, Model-Q8_0.gguf"):
        store.resolve(f"hf:{REPOSITORY}")
    with pytest.raises(ModelError, match=f"not on this machine yet; get it with: wasmetal pull hf:{REPOSITORY}:Q4_0"):
        store.resolve(f"hf:{REPOSITORY}:Q4_0")


@pytest.mark.parametrize("name", ["hf:", "hf:org", "hf:org/", "hf:a/b/c", "hf:../..:x", "hf:a/b?c:d"])
def test_names_of_another_form(hub: Hub, name: str) -> None:
    with pytest.raises(ModelError, match=r"has not the form hf:ORG/REPO|Repo id must"):
        store.pull(name)


def test_a_lost_connection_is_resumed(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 19)
    hub.cut = [2_000_000]
    assert store.pull(f"hf:{REPOSITORY}:big.bin.gguf").read_bytes() == BIG
    (_, first), (_, second) = hub.downloads()
    assert (first, second) == (None, f"bytes={3 << 19}-")


def test_other_bytes_than_the_published_are_thrown_away(hub: Hub, tmp_path: Path) -> None:
    hub.damaged = True
    with pytest.raises(ModelError, match=r"Model-F16\.gguf is not the published file \(its SHA-256 differs\)"):
        store.pull(f"hf:{REPOSITORY}:F16")
    assert store.models() == []
    hub.damaged = False
    assert store.pull(f"hf:{REPOSITORY}:F16").read_bytes()[:4] == b"GGUF"


def test_conditions_and_tokens(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    with pytest.raises(ModelError, match=rf"accept its conditions: do so at {hub.url}/{REPOSITORY}, and set HF_TOKEN"):
        store.pull(f"hf:{REPOSITORY}:F16")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert store.pull(f"hf:{REPOSITORY}:F16").exists()


def test_no_such_repository_and_no_such_server(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=f"no repository org/other at {hub.url}, or it is private"):
        store.pull("hf:org/other:F16")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"could not pull from org/other: .*refused"):
        store.pull("hf:org/other:F16")


def test_offline_the_library_s_cache_is_the_source(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = store.pull(f"hf:{REPOSITORY}:F16")
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert store.pull(f"hf:{REPOSITORY}:F16") == path
    assert len(hub.asked) == asked
    with pytest.raises(ModelError, match=r"no such GGUF file; the repository has Model-F16\.gguf"):
        store.pull(f"hf:{REPOSITORY}:Q8_0")


def test_a_missing_part(hub: Hub) -> None:
    files = hub.repositories[REPOSITORY]
    del files[max(name for name in files if name.startswith("parts/"))]
    with pytest.raises(ModelError, match=r"the part parts/Model-Q4_1-.*\.gguf is not there"):
        store.pull(f"hf:{REPOSITORY}:Q4_1")


def test_without_the_library(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"need the package huggingface_hub: pip install 'wasmetal\[hub\]'"):
        store.pull(f"hf:{REPOSITORY}:F16")


# ---- Licences, and names that stand for files of the hub


@pytest.fixture
def known(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    known = KnownModel("model:1b", "gemma", f"hf:{REPOSITORY}:Model-F16.gguf")
    monkeypatch.setitem(catalog.CATALOG, known.name, known)
    return known


def test_a_licence_that_asks_for_acceptance(hub: Hub, known: KnownModel) -> None:
    hub.licence = "llama3.2"
    for name, terms in ((known.name, "ai.google.dev/gemma"), (f"hf:{REPOSITORY}:Q4_0", "llama.com/llama3_2/license")):
        with pytest.raises(ModelError, match=f"asks that you accept it: read .*{terms}.* --accept-licence"):
            store.pull(name)
        assert hub.downloads() == []
    said: list[str] = []
    store.pull(known.name, accept_licence=True, notice=said.append)
    assert said == ["model:1b: licence gemma (https://ai.google.dev/gemma/terms)"]


def test_a_known_name_whose_hash_is_not_known_is_not_trusted(hub: Hub, known: KnownModel, cpu: Device) -> None:
    path = store.pull(known.name, accept_licence=True)
    assert store.resolve(known.name) == path
    assert not store.trusted(known.name)
    assert store.trusted("smollm2:135m")
    with load_model(known.name, cpu) as model:
        assert model.name == "model:1b"
        assert model.chat_template is not None
        assert model.chat_template._compiled is None  # rendered in another process
    assert [(model.name, model.source) for model in store.models()] == [(known.name, known.source)]


def test_models_that_share_a_file_are_removed_apart(hub: Hub, known: KnownModel) -> None:
    path = store.pull(known.name, accept_licence=True)
    store.records.record(store.StoredModel("other", "hf:x/y:z.gguf", None, store.find(known.name).files))
    store.remove("other")
    assert path.exists()
    store.remove(known.name)
    assert not path.exists()


def test_every_known_model_of_the_hub_is_named_in_full() -> None:
    for model in catalog.CATALOG.values():
        if isinstance(model.source, str):
            assert model.source.startswith("hf:")
            assert model.source.endswith(".gguf")
            assert not model.verified
        assert model.licence in catalog.TEXTS


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ("Q4_K", ["a-Q4_K.gguf"]),
        ("q4_k_m", ["a-Q4_K_M.gguf", "sub/b.q4_k_m.gguf"]),
        ("b.q4_k_m.gguf", ["sub/b.q4_k_m.gguf"]),
        ("IQ4_XS", ["a-IQ4_XS.gguf"]),
        ("Q4_XS", []),
        ("mmproj-a-F16.gguf", ["mmproj-a-F16.gguf"]),
        ("F16", []),
        ("a-Q4_K.GGUF", []),
        ("(", []),
    ],
)
def test_what_a_choice_means(choice: str, found: list[str]) -> None:
    names = ["a-Q4_K.gguf", "a-Q4_K_M.gguf", "sub/b.q4_k_m.gguf", "a-IQ4_XS.gguf", "mmproj-a-F16.gguf", "a.bin"]
    assert [parts[0] for parts in chosen(names, choice)] == found


def test_the_environment_s_settings_and_the_command(hub: Hub, tmp_path: Path) -> None:
    """The mirror, the cache and the token as the library reads them itself."""
    hub.token = "hf_another"
    name = f"hf:{REPOSITORY}:Q8_0"
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_another"}
    done = wasmetal("pull", name, **settings)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "hf")
    assert "licence apache-2.0" in done.stderr
    assert "Model-GGUF:Q8_0: 100 % of" in done.stderr
