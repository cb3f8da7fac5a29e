"""The comparison of engines: that it runs to its end, and that its figures say what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import gguf
import pytest

from benchmarks import chart, peers, random_model, report
from wasmetal import load_model, open_device

ROOT = Path(__file__).parents[1]


def compare(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.compare", "--types", "Q8_0", "--shape", "tiny", "--json", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_all_of_it_on_a_tiny_model(tmp_path: Path) -> None:
    done = compare("--devices", "cpu", "--sessions", "2", "--rounds", "1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert json.loads((tmp_path / f"{written['date']}-tiny.json").read_text()) == written
    assert written["left out"] == {"Q8_0": {}}
    assert written["machine"]["cpu"]
    guest, python = written["results"]["Q8_0"]["cpu from guest"], written["results"]["Q8_0"]["cpu from python"]
    assert guest.keys() == written["units"].keys()
    assert guest.keys() - python.keys() == {"decode of 2"}
    for figures in (guest, python):
        assert all(value > 0 for value in figures.values())
        assert figures["share of bandwidth"] == pytest.approx(
            figures["decode"] * figures["bytes a token"] / figures["bandwidth"]
        )
        assert figures["first token"] >= 0.99 * 512 / figures["prefill"]
    for name in ("tiny", "tiny-sessions"):
        bars = ElementTree.parse(tmp_path / f"{written['date']}-{name}.svg").getroot().findall("{*}rect")
        assert len(list(bars)) == (2 if name == "tiny" else 1)


def test_an_engine_that_fails_is_left_out(tmp_path: Path) -> None:
    done = compare("--devices", "nowhere", "--rounds", "2", "--llama-bench", tmp_path / "missing")
    assert done.returncode == 1
    written = json.loads(done.stdout)
    assert written["results"] == {"Q8_0": {}}
    assert written["left out"]["Q8_0"].keys() == {"nowhere", "llama-bench"}
    assert "missing" in written["left out"]["Q8_0"]["llama-bench"]


def test_the_hosts_time() -> None:
    command = [sys.executable, "-m", "benchmarks.host_time", "--guests", "1,3", "--tokens", "4", "--rounds", "1"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, three = json.loads(done.stdout)["results"]
    assert (one["guests"], one["rows"], three["guests"]) == (1, 1.0, 3)
    assert 1 <= three["rows"] <= 3
    for figures in (one, three):
        assert figures["tokens_s"] > 0
        assert figures["processor_us"] > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processor times are read as Linux has them")
def test_the_server_under_load(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="wasmetal[serve] is not installed")
    path = tmp_path / "tiny.gguf"
    random_model.write(path, "Q8_0", "tiny")
    command = [
        sys.executable,
        "-m",
        "benchmarks.serve_compare",
        str(path),
        "--clients",
        "1,3",
        "--rounds",
        "1",
        "--json",
    ]
    options = ["--requests", "2", "--prompt-tokens", "9", "--tokens", "20"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    for clients in (1, 3):
        ours = results[str(clients)]["wasmetal"]
        assert (ours["clients"], ours["tokens"]) == (clients, clients * 2 * 20)
        assert 0 < ours["first_p50"] <= ours["first_p99"]
        assert ours["tokens_s"] > 0
        assert 1 <= ours["pieces"] <= 20
        assert ours["batched"] >= ours["batches"] > 0


def test_shares_are_of_the_memory_that_an_engine_reads() -> None:
    gpu = {"vulkan from guest": (2.0, 60.0), "cuda from guest": (3.0, 100.0)}
    results = {"F16": {name: {"decode": speed, "bandwidth": most} for name, (speed, most) in gpu.items()}}
    results["F16"] |= {"cpu from guest": {"decode": 1.0, "bandwidth": 8.0}, "llama.cpp": {"decode": 4.0}}
    for figures in results["F16"].values():
        figures["bytes a token"] = 4.0
    report.add_shares(results)
    shares = {engine: figures["share of bandwidth"] for engine, figures in results["F16"].items()}
    assert shares == pytest.approx(
        {"vulkan from guest": 0.08, "cuda from guest": 0.12, "cpu from guest": 0.5, "llama.cpp": 0.16}
    )
    assert report.ratios(results)["F16"]["cuda from guest"] == {
        "llama.cpp": {"decode": 0.75, "share of bandwidth": 0.75}
    }


def test_without_a_gpu_other_engines_read_the_hosts_memory() -> None:
    figures = {"decode": 1.0, "bytes a token": 4.0}
    results = {"F16": {"cpu from guest": figures | {"bandwidth": 8.0}, "llama.cpp": dict(figures)}}
    report.add_shares(results)
    assert results["F16"]["llama.cpp"]["share of bandwidth"] == 0.5


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1"])
def test_a_random_model_has_the_bytes_it_should_and_no_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tiny.gguf"
    random_model.write(path, kind, "tiny")
    in_file = sum(tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors)
    assert random_model.SHAPES["tiny"].bytes_a_token(kind) == in_file
    with open_device("cpu") as device, load_model(path, device) as model:
        logits = model.logits()
        with model.session() as session:
            session.forward([1, 2, 3], logits)
        scores = logits.numpy()
        end = model.tokenizer.eos
        assert end == model.vocab_size - 1
        assert scores[end] == 0
        assert (scores > scores[end]).sum() > 100


def test_embeddings_that_are_only_looked_up_are_not_counted() -> None:
    shape = random_model.SHAPES["8b"]
    parameters = 8_030_261_248 - shape.vocabulary * shape.width  # of Llama 3.1 8B, without the table
    norms = (2 * shape.layers + 1) * shape.width
    assert shape.bytes_a_token("F16") == 2 * (parameters - norms) + 4 * norms


def test_engines_have_the_same_colour_in_all_groups() -> None:
    drawn = ElementTree.fromstring(chart.draw("<title>", {"a": {"x": 1.0, "y": 2.0}, "b": {"y": 3.0}}))
    colours = [bar.get("fill") for bar in drawn.findall("{*}rect")]
    assert colours[0] != colours[1] == colours[2]


@pytest.mark.parametrize("name", random_model.SHAPES)
def test_other_engines_are_given_the_same_shape(name: str) -> None:
    config, shape = peers.configuration(name), random_model.SHAPES[name]
    width, kv = config["hidden_size"], config["num_key_value_heads"] * config["head_dim"]
    layer = 2 * width * config["num_attention_heads"] * config["head_dim"] + 2 * width * kv
    layer += 3 * width * config["intermediate_size"]
    tables = (1 if config["tie_word_embeddings"] else 2) * config["vocab_size"] * width
    ours = sum(rows * columns for _, rows, columns in shape.matrices())
    assert tables + config["num_hidden_layers"] * layer == ours


def test_a_framework_that_cannot_be_imported_says_so_in_one_line(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # without packages
    python.chmod(0o755)
    for name in peers.FRAMEWORKS:
        with pytest.raises(peers.NotMeasuredError, match=r"^not importable \(No module named .*\)$"):
            peers.framework(name, str(python), "tiny", [])
