"""Settings of clusters, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from wasmetal.cluster.settings import ClusterSettings, ClusterType
from wasmetal.errors import ClusterError

GOOD = """
store = "s3://bucket/actors"
store_options = { anon = true }
[host]
resident = 8
idle_seconds = 60
[types.chat]
program = "chat.wasm"
models = { default = "smollm2:135m" }
args = ["--max-tokens", "40"]
resources = { GPU = 1, big = 0.5 }
"""


def read(folder: Path, text: str) -> ClusterSettings:
    Path(folder, "chat.wasm").write_bytes(b"module")
    Path(folder, "cluster.toml").write_text(text)
    return ClusterSettings.read(folder / "cluster.toml")


def test_all_of_it(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == ClusterSettings(
        store="s3://bucket/actors",
        store_options={"anon": True},
        host={"resident": 8, "idle_seconds": 60},
        types={
            "chat": ClusterType(
                program=b"module",
                models={"default": "smollm2:135m"},
                args=("--max-tokens", "40"),
                resources={"GPU": 1, "big": 0.5},
            )
        },
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("store =", "stor ="), "the file has `stor`, which is not known here; there are store, types"),
        (('store = "s3://bucket/actors"', ""), "it has no `store`"),
        (("resident = 8", 'resident = "8"'), "[host] has a `resident` that is not a whole number"),
        (("resident = 8", "resident = true"), "[host] has a `resident` that is not a whole number"),
        (("resident = 8", "residents = 8"), "[host] has `residents`, which is not known here"),
        (('program = "chat.wasm"', ""), "[types.chat] has no `program`"),
        (("chat.wasm", "none.wasm"), "cannot read the program of [types.chat]: No such file"),
        (('"smollm2:135m"', "1"), "[types.chat] models has a `default` that is not a text"),
        (('"40"', "40"), "[types.chat] args are no texts"),
        (("GPU = 1", 'GPU = "1"'), "[types.chat] resources has a `GPU` that is not a number"),
        (("[types.chat]", "[[types.chat]]"), "[types.chat] is no table"),
        (("[host]", "[host"), "Expected"),
    ],
)
def test_a_wrong_file(change: tuple[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as caught:
        read(tmp_path, GOOD.replace(*change))
    assert str(caught.value).startswith(f"{tmp_path}/cluster.toml: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"^cannot read .*cluster.toml: No such file"):
        ClusterSettings.read(tmp_path / "cluster.toml")
