"""A model that is run on an image in a guest's memory, through wasi-nn: copied in and out, and bound where it lies."""

from __future__ import annotations

import struct
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from wasmetal.errors import GuestError
from wasmetal.host.guest import Guest
from wasmetal.host.nn.grants import NnModel

SHAPE, RESULT = (1, 3, 224, 224), (1, 32, 1, 1)
MODEL = b64decode(
    "CAg6twIKMgoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlKhkKBXZhbHVlKg0IARABIgQK1yM8QgF2oAEECksKAXgKAXcSAWMiBENvbnYqFQoMa2Vy"
    "bmVsX3NoYXBlQAdAB6ABByoRCgRwYWRzQANAA0ADQAOgAQcqEAoHc3RyaWRlc0ACQAKgAQcKSwoBYxIBcCIHTWF4UG9vbCoVCgxrZXJuZWxf"
    "c2hhcGVAA0ADoAEHKhEKBHBhZHNAAUABQAFAAaABByoQCgdzdHJpZGVzQAJAAqABBwoZCgFwEgF5IhFHbG9iYWxBdmVyYWdlUG9vbBIBZyoN"
    "CAQQBzoEIAMHB0IBc1odCgF4EhgKFggBEhIKAggBCgIIAwoDCOABCgMI4AFiGwoBeRIWChQIARIQCgIIAQoCCCAKAggBCgIIAUIECgAQEQ=="
)
"""ONNX, opset 17, float32: a convolution of 7 × 7 to 32 channels, as image models begin, and pooling of all pixels."""
ROUNDS = 150
REPEATS = 9
_INPUT, _OUTPUT = 64, 96
_IMAGE = 65536
_RESULT = 16 * 65536


@dataclass(frozen=True, slots=True)
class Row:
    """A way of running the model."""

    way: str
    """"plain": ONNX Runtime called from Python on an array; "copied", "bound": from a guest."""
    microseconds: float
    """For one run; the median over many."""
    processor: float
    """Microseconds of processor time, likewise: what others do on the machine hardly matters to it."""
    of_plain: float
    """How many times as much processor time as a plain run it took: the median of the ratios to the plain runs next to
    it."""
    bytes_copied: int
    """Of tensors, for one run."""


def measure() -> list[Row]:
    """The model run in each way, by turns, on one thread: several would wait for one another.

    Raises GuestError without ONNX Runtime.
    """
    try:
        import onnxruntime  # noqa: PLC0415 (an extra)
    except ImportError:
        raise GuestError("ONNX Runtime is not here; pip install 'wasmetal[onnx]'") from None
    from wasmetal.nn.onnx.backend import session_options  # noqa: PLC0415 (imports the extra)

    image = np.random.default_rng(1).random(SHAPE, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(MODEL)
        session = onnxruntime.InferenceSession(MODEL, session_options(1), providers=["CPUExecutionProvider"])
        expected = session.run(None, {"x": image})[0]
        with Guest(_module(), nn={"m": NnModel(path, {"threads": 1})}) as guest:
            guest.write(_IMAGE, image.tobytes())

            def plain() -> None:
                for _ in range(ROUNDS):
                    session.run(None, {"x": image})

            ways: dict[str, Callable[[], Any]] = {
                "plain": plain,
                "copied": lambda: guest.call("copied", ROUNDS),
                "bound": lambda: guest.call("bound", ROUNDS),
            }
            copied: dict[str, int] = {}
            for way, action in ways.items():
                before = guest.counters.bytes_copied
                action()
                copied[way] = (guest.counters.bytes_copied - before) // ROUNDS
                if way != "plain" and guest.read(_RESULT, expected.nbytes) != expected.tobytes():
                    raise GuestError(f"{way}: the guest has another result than ONNX Runtime gives")
            times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            order = list(ways)
            for _ in range(REPEATS):
                for way in order:
                    begin = time.perf_counter(), time.process_time()
                    ways[way]()
                    elapsed = time.perf_counter() - begin[0], time.process_time() - begin[1]
                    times[way].append((1e6 * elapsed[0] / ROUNDS, 1e6 * elapsed[1] / ROUNDS))
                order = order[1:] + order[:1]  # each comes after each
    rows = []
    for way, each in times.items():
        wall, processor = zip(*each, strict=True)
        ratios = [mine / plain[1] for mine, plain in zip(processor, times["plain"], strict=True)]
        rows.append(Row(way, median(wall), median(processor), median(ratios), copied[way]))
    return rows


def _module() -> bytes:
    nbytes = 4 * int(np.prod(RESULT))
    text = resources.files("wasmetal.bench").joinpath("nn.wat").read_text()
    values = {
        "PAGES": 32,
        "INPUT": _INPUT,
        "OUTPUT": _OUTPUT,
        "INPUT_RECORD": _record(128, SHAPE, _IMAGE),
        "OUTPUT_RECORD": _record(160, RESULT, _RESULT),
        "RESULT": _RESULT,
        "RESULT_SIZE": nbytes,
    }
    for at, shape in ((128, SHAPE), (160, RESULT)):
        dims = "".join(f"\\{byte:02x}" for byte in struct.pack("<4I", *shape))
        text = text.replace("  (global $handle", f'  (data (i32.const {at}) "{dims}")\n  (global $handle', 1)
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text.encode()


def _record(dims: int, shape: tuple[int, ...], data: int) -> str:
    """The record of a float32 tensor, as text of the module."""
    packed = struct.pack("<IIB3xII", dims, len(shape), 1, data, 4 * int(np.prod(shape)))
    return "".join(f"\\{byte:02x}" for byte in packed)
