"""Models split into several files, which the ``gguf`` package writes; and what is no such model."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.hostile import reading
from tests.models.split import write_split_llama
from tests.models.test_gguf_file import F32, UINT32, field, header, padded, tensor
from tests.models.tiny import write_tiny_llama
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.files.gguf_header import Bounds


@pytest.mark.parametrize("small_first", [False, True])
def test_any_part_opens_all(tmp_path: Path, small_first: bool) -> None:
    whole = GGUFFile(write_tiny_llama(tmp_path / "whole.gguf"))
    parts = write_split_llama(tmp_path / "split.gguf", small_first=small_first)
    assert [part.name for part in parts][:2] == [f"split-0000{i}-of-0000{len(parts)}.gguf" for i in (1, 2)]
    assert len(parts) > 2
    files = [GGUFFile(part) for part in parts]
    assert len({file.digest() for file in files}) == 1
    for file in files:
        assert list(file.tensors) == list(whole.tensors)
        assert file.require("tokenizer.ggml.tokens", list) == whole.require("tokenizer.ggml.tokens", list)
        for name, found in file.tensors.items():
            assert (found.dtype, found.shape) == (whole.tensors[name].dtype, whole.tensors[name].shape)
            np.testing.assert_array_equal(found.data, whole.tensors[name].data)
        assert [source.size for source in file.sources] == [part.stat().st_size for part in parts]


def test_a_split_model_computes_what_the_whole_one_does(device: Device, tmp_path: Path) -> None:
    paths = write_tiny_llama(tmp_path / "whole.gguf"), write_split_llama(tmp_path / "split.gguf")[1]
    found = []
    for path in paths:
        for each in tmp_path.iterdir():
            each.chmod(0o644)
        with load_model(path, device) as model, model.session() as session:
            logits = model.logits()
            session.forward([3, 1, 4, 1, 5], logits)
            found.append(logits.numpy().copy())
            if device.info.wraps_files:
                assert model.counters.bytes_shared > 0
                assert model.counters.bytes_loaded < path.stat().st_size / 2
    np.testing.assert_array_equal(*found)


def number(value: int) -> bytes:
    return struct.pack("<I", value)


def part(no: int, count: int, name: str = "t", tensors: int = 2) -> bytes:
    """A part with one tensor."""
    fields = [("split.no", no), ("split.count", count), ("split.tensors.count", tensors)]
    return padded(header([tensor(name, [8], F32, 0)], [field(key, UINT32, number(value)) for key, value in fields]))


ONE, TWO = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"
BAD = {
    "a part is missing": ({ONE: part(0, 2)}, f"{TWO}: No such file"),
    "the first is missing": ({TWO: part(1, 2)}, f"{ONE}: No such file"),
    "the same part twice": (
        {ONE: part(0, 2), TWO: part(0, 2, "u")},
        f"{TWO}: this is part 1 of 2; part 2 of 2 is expected",
    ),
    "of another model": ({ONE: part(0, 2), TWO: part(1, 3, "u")}, f"{TWO}: this is part 2 of 3; part 2 of 2"),
    "not split": ({ONE: part(0, 2), TWO: part(0, 1, "u")}, f"{TWO}: this is part 1 of 1; part 2 of 2"),
    "renamed": ({"m.gguf": part(0, 2)}, "m.gguf: this is part 1 of 2 .* its name should end in -00001-of-00002.gguf"),
    "tensor twice": ({ONE: part(0, 2), TWO: part(1, 2)}, f"{TWO}: tensor 't' is in another part, too"),
    "too few tensors": ({ONE: part(0, 2, "t", 9), TWO: part(1, 2, "u")}, "2 tensors in all parts; 9 are expected"),
    "part 9 of 2": ({ONE: part(8, 2)}, "part 9 of 2 of a split file"),
    "too many": ({"m-00001-of-65535.gguf": part(0, 65535)}, "part 1 of 65535 of a split file; at most 256"),
    "a cut part": ({ONE: part(0, 2), TWO: part(1, 2, "u")[:60]}, f"{TWO}: truncated"),
    "past the end": ({ONE: part(0, 2), TWO: part(1, 2, "u")[:-4090]}, f"{TWO}: tensor 'u' .* past the end"),
}


@pytest.mark.parametrize(("files", "said"), BAD.values(), ids=BAD.keys())
def test_what_is_refused(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=said) as refused:
        GGUFFile(tmp_path / next(iter(files)))
    assert "\n" not in str(refused.value)


def test_a_name_like_a_part_s_is_no_split_file(tmp_path: Path) -> None:
    assert GGUFFile(write_tiny_llama(tmp_path / TWO)).tensors


def test_all_headers_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that the first part's header respects, and the first two do not."""
    first, second, *_ = write_split_llama(tmp_path / "split.gguf")
    begin = next(iter(GGUFFile(first).tensors.values())).offset
    for bounds, says in ((Bounds(tensors=12), "8 tensors and"), (Bounds(nbytes=begin + 100), "goes past")):
        monkeypatch.setattr("wasmetal.models.files.gguf.Bounds", lambda bounds=bounds: bounds)
        with pytest.raises(ModelError, match=f"{second.name}.*{says}"):
            GGUFFile(first)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_split_llama(tmp_path_factory.mktemp("split") / "tiny.gguf", blocks=1)


@settings(max_examples=150)
@given(data=st.data())
def test_any_mutation_of_a_part_loads_or_is_refused(tiny: list[Path], data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(tiny), "part")
    original = changed.read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(0, 4), "edits")):
        at = data.draw(st.one_of(st.integers(0, 300), st.integers(0, len(original) - 1)), "at")
        edit = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8)]), "edit")
        content[at : at + len(edit)] = edit
    keep = data.draw(st.one_of(st.just(len(original)), st.integers(0, len(original))), "keep")
    opened = data.draw(st.sampled_from(tiny), "opened")
    changed.write_bytes(content[:keep])
    sizes = sum(path.stat().st_size for path in tiny)
    try:
        with reading(1 << 20):
            for each in GGUFFile(opened).tensors.values():
                assert each.data.nbytes <= sizes
    finally:
        changed.write_bytes(original)
