import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.hostile import reading
from tests.models.tiny import vocabulary, write_tiny_llama
from wasmetal.errors import ModelError
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.ops.tensor import DType

STRING, ARRAY, UINT32, UINT64 = 8, 9, 4, 10


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def field(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def header(tensors: list[bytes], fields: list[bytes], version: int = 3) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(fields))
    return b"GGUF" + counts + b"".join(fields) + b"".join(tensors)


def padded(head: bytes, data: bytes = bytes(4096), alignment: int = 32) -> bytes:
    return head + bytes(-len(head) % alignment) + data


F32, Q4_1 = 0, 3
ALIGNMENT = "general.alignment"

BAD = {
    "empty": (b"", "empty file"),
    "magic": (b"GGML" + bytes(100), r"begins with b'GGML'"),
    "magic alone": (b"GGUF", "truncated"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0), "version 1; supported: 2, 3"),
    "version 99": (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99"),
    "more fields than bytes": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**16), "truncated"),
    "more tensors than bytes": (b"GGUF" + struct.pack("<IQQ", 3, 2**16, 0), "truncated"),
    "endless fields": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "18446744073709551615 metadata fields; at most"),
    "endless tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0), "18446744073709551615 tensors and 0"),
    "endless key": (header([], [struct.pack("<Q", 2**63)]), "a key of 9223372036854775808 bytes"),
    "endless string": (header([], [field("k", STRING, struct.pack("<Q", 2**63))]), "'k' of 9223372036854775808 bytes"),
    "string past the end": (header([], [field("k", STRING, struct.pack("<Q", 2**20))]), "end of the file"),
    "endless array": (header([], [field("k", ARRAY, struct.pack("<IQ", UINT64, 2**61))]), "end of the file"),
    "strings past the end": (header([], [field("k", ARRAY, struct.pack("<IQ", STRING, 2**20))]), "end of the file"),
    "endless array of strings": (
        header([], [field("k", ARRAY, struct.pack("<IQ", STRING, 2**62))]),
        "strings; at most",
    ),
    "array of arrays": (header([], [field("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "array of arrays"),
    "value type": (header([], [field("k", 77, bytes(8))]), "'k' has the unknown type 77"),
    "element type": (header([], [field("k", ARRAY, struct.pack("<IQ", 77, 1) + bytes(8))]), "unknown type 77"),
    "key twice": (header([], [field("k", UINT32, bytes(4))] * 2), "'k' occurs twice"),
    "key not text": (header([], [field(b"\xff", UINT32, bytes(4))]), "a key is not valid UTF-8"),
    "string not text": (header([], [field("k", STRING, string(b"\xff"))]), "'k' is not valid UTF-8"),
    "key of two lines": (header([], [field("a\nb", STRING, string(b"\xff"))]), r"'a\\nb' is not valid UTF-8"),
    "alignment 0": (header([], [field(ALIGNMENT, UINT32, bytes(4))]), "alignment is 0"),
    "alignment 24": (header([], [field(ALIGNMENT, UINT32, struct.pack("<I", 24))]), "alignment is 24"),
    "alignment huge": (header([], [field(ALIGNMENT, UINT32, struct.pack("<I", 1 << 31))]), "alignment is 2147483648"),
    "alignment a string": (header([], [field(ALIGNMENT, STRING, string("x"))]), "should be of type int, not str"),
    "no dimensions": (padded(header([tensor("t", [], F32, 0)], [])), "0 dimensions"),
    "many dimensions": (header([string("t") + struct.pack("<I", 2**32 - 1)], []), "4294967295 dimensions"),
    "dimension 0": (padded(header([tensor("t", [4, 0], F32, 0)], [])), "empty"),
    "product overflows": (padded(header([tensor("t", [2**33, 2**33], F32, 0)], [])), "past the end of the file"),
    "product wraps to 0": (padded(header([tensor("t", [2**32, 2**32], F32, 0)], [])), "past the end of the file"),
    "data past the end": (padded(header([tensor("t", [1025], F32, 0)], [])), "past the end of the file"),
    "offset past the end": (padded(header([tensor("t", [1], F32, 4096)], [])), "past the end of the file"),
    "offset overflows": (padded(header([tensor("t", [1], F32, 2**64 - 32)], [])), "past the end of the file"),
    "offset misaligned": (padded(header([tensor("t", [1], F32, 4)], [])), "misaligned"),
    "overlap": (padded(header([tensor("t", [16], F32, 0), tensor("u", [1], F32, 32)], [])), "'u' overlaps"),
    "tensor twice": (padded(header([tensor("t", [8], F32, 0), tensor("t", [8], F32, 32)], [])), "'t' occurs twice"),
    "known type": (padded(header([tensor("t", [256], 19, 0)], [])), "type IQ1_S; supported: F32, F16, Q4_0, "),
    "unknown type": (padded(header([tensor("t", [256], 4096, 0)], [])), "of type number 4096; supported"),
    "part of a block": (padded(header([tensor("t", [33], Q4_1, 0)], [])), "not a whole number of Q4_1 blocks"),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD.keys())
def test_bad_file_is_one_clear_line_and_no_allocation(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=said) as caught:
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith("bad.gguf: ")
    assert "\n" not in str(caught.value)


def test_a_huge_sparse_file_with_a_huge_header_is_refused_in_little_memory(tmp_path: Path) -> None:
    """Each length is backed by bytes of the file here: 16 GiB that take no room on disk. The limit is the header's."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(header([], [field("k", ARRAY, struct.pack("<IQ", UINT64, 2**30))]))
    os.truncate(path, 1 << 34)
    program = (
        "import resource, sys; from wasmetal.errors import ModelError\n"
        "from wasmetal.models.files.gguf import GGUFFile\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: GGUFFile(sys.argv[1])\n"
        "except ModelError as e: print(e, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "goes past the supported 67108864 bytes" in run.stderr
    assert int(run.stdout) < 4 << (20 if sys.platform == "darwin" else 10)  # kilobytes on Linux


@pytest.mark.parametrize(("path", "said"), [("no-such.gguf", "No such file"), (".", "not a regular file")])
def test_what_is_no_file(tmp_path: Path, path: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        GGUFFile(tmp_path / path)


def test_metadata(tmp_path: Path) -> None:
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    w.add_uint8("u8", 200)
    w.add_int64("i64", -(2**62))
    w.add_float32("f32", 0.5)
    w.add_bool("yes", True)
    w.add_string("text", "größe")
    w.add_array("strings", ["a", "", "ü"])
    w.add_array("numbers", [1, -2, 3])
    w.add_array("none", [])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.require("general.architecture", str) == "llama"
    assert (file.require("u8", int), file.require("i64", int), file.require("f32", float)) == (200, -(2**62), 0.5)
    assert file.require("yes", bool) is True
    assert file.require("text", str) == "größe"
    assert file.require("strings", list) == ["a", "", "ü"]
    np.testing.assert_array_equal(file.require("numbers", np.ndarray), [1, -2, 3])
    assert file.get("absent", int, 7) == 7
    assert file.tensors == {}
    with pytest.raises(ModelError, match="metadata has no absent"):
        file.require("absent", int)
    with pytest.raises(ModelError, match="yes should be of type int, not bool"):
        file.get("yes", int, 0)


@pytest.mark.parametrize("qtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "MXFP4"])
def test_tensors_agree_with_the_gguf_package(tmp_path: Path, qtype: str) -> None:
    path = write_tiny_llama(tmp_path / "t.gguf", qtype=qtype)
    ours = GGUFFile(path)
    theirs = gguf.GGUFReader(path)
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        mine = ours.tensors[t.name]
        assert mine.dtype == DType(t.tensor_type)
        assert mine.shape == tuple(reversed(t.shape.tolist()))
        np.testing.assert_array_equal(mine.data, t.data.reshape(-1).view(np.uint8))
        np.testing.assert_array_equal(
            mine.dequantize(), gguf.quants.dequantize(t.data, t.tensor_type).reshape(mine.shape)
        )
    assert ours.require("tokenizer.ggml.tokens", list) == vocabulary()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", blocks=1)


@settings(max_examples=300)
@given(data=st.data())
def test_any_mutation_loads_or_is_refused(tiny: Path, data: st.DataObject) -> None:
    content = bytearray(tiny.read_bytes())
    size = len(content)
    for _ in range(data.draw(st.integers(0, 4), "edits")):
        # Half of the edits in the first 1 KiB, where counts, keys and types are; the rest anywhere.
        at = data.draw(st.one_of(st.integers(0, 1023), st.integers(0, size - 1)), "at")
        edit = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8)]), "edit")
        content[at : at + len(edit)] = edit
    keep = data.draw(st.one_of(st.just(size), st.integers(0, size)), "keep")
    path = tiny.with_name("mutated.gguf")
    path.write_bytes(content[:keep])
    with reading(1 << 20):
        for t in GGUFFile(path).tensors.values():
            assert t.data.nbytes <= keep
