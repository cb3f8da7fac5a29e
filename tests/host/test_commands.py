"""Every op of the interface, submitted by a guest, against NumPy: operands, flags and attributes are the right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.host.probe import PAGE, Probe, command, tensor
from wasmetal.device import Device
from wasmetal.host import abi
from wasmetal.host.errno import Errno

NUMBERS = {op.name: number for number, op in abi.OPS.items()}
rng = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


x, y, weight, out = normal(3, 8), normal(3, 8), normal(5, 8), normal(3, 5)
ids = np.array([4, 0, 2], np.int32)
batch = np.array([[2, 0], [1, 0], [2, 0], [0, 0]], np.int32)  # two valid rows of sequence 0, at positions 1 and 2
heads, table = normal(3, 2, 4), normal(6, 2, 2)
keys, values = normal(3, 2, 1, 4), normal(3, 2, 1, 4)  # pages of two positions
pages = np.array([2, 0, 1], np.int32)
sequences = np.array([[3, *pages]], np.int32)
mixed = np.array([[2, 0], [4, 0], [1, 1], [0, 0]], np.int32)  # two valid rows, of two sequences
both = np.array([[5, *pages], [2, *pages[1:], 0]], np.int32)


def rotated(interleaved: bool) -> np.ndarray:
    result = heads.copy()
    for t in range(2):
        for i in range(2):
            one, other = (2 * i, 2 * i + 1) if interleaved else (i, i + 2)
            cos, sin = table[1 + t, i]
            a, b = heads[t, :, one], heads[t, :, other]
            result[t, :, one], result[t, :, other] = a * cos - b * sin, a * sin + b * cos
    return result


def appended(pool: np.ndarray, rows: np.ndarray) -> np.ndarray:
    result = pool.copy()
    for t in range(2):
        result[pages[(1 + t) // 2], (1 + t) % 2] = rows[t]
    return result


def attended(*places: tuple[int, np.ndarray]) -> np.ndarray:
    """Rows at these positions of sequences with these pages."""
    result = np.zeros((3, 8), np.float32)
    for t, (position, table) in enumerate(places):
        k, v = keys[table].reshape(-1, 4), values[table].reshape(-1, 4)
        for head in range(2):
            seen = position + 1
            result[t, 4 * head : 4 * head + 4] = softmax(0.5 * k[:seen] @ heads[t, head]) @ v[:seen]
    return result


def rows(valid: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` rows; the others stay 0."""
    result = np.zeros_like(valid)
    result[:count] = valid[:count]
    return result


rms = x / np.sqrt((x**2).mean(-1, keepdims=True) + np.float32(0.5))
k_new, v_new = normal(3, 1, 4), normal(3, 1, 4)
NEW = np.zeros
CASES: dict[str, tuple[str, list[Any], dict[str, Any], int, Callable[[], np.ndarray]]] = {
    # name: (op, operands, flags and attributes, which operand is compared, expected)
    "matmul": ("matmul", [x, weight.T.copy(), NEW((3, 5))], {}, 2, lambda: x @ weight.T),
    "matmul, a transposed": (
        "matmul",
        [x.T.copy(), weight.T.copy(), NEW((3, 5))],
        {"flags": 1},
        2,
        lambda: x @ weight.T,
    ),
    "matmul, b transposed": ("matmul", [x, weight, NEW((3, 5))], {"flags": 2}, 2, lambda: x @ weight.T),
    "linear": ("linear", [x, weight, NEW((3, 5))], {}, 2, lambda: x @ weight.T),
    "linear, accumulating": ("linear", [x, weight, out], {"flags": 1}, 2, lambda: out + x @ weight.T),
    "linear, two rows": ("linear", [x, weight, NEW((3, 5)), batch], {}, 2, lambda: rows(x @ weight.T, 2)),
    "embed": ("embed", [weight, ids, NEW((3, 8))], {}, 2, lambda: weight[ids]),
    "embed, two rows": ("embed", [weight, ids, NEW((3, 8)), batch], {}, 2, lambda: rows(weight[ids], 2)),
    "rms_norm": ("rms_norm", [x, weight[0], NEW((3, 8))], {"attributes": (0.5,)}, 2, lambda: rms * weight[0]),
    "rms_norm, two rows": (
        *("rms_norm", [x, weight[0], NEW((3, 8)), batch], {"attributes": (0.5,)}, 2),
        lambda: rows(rms * weight[0], 2),
    ),
    "rope": ("rope", [heads, table, batch], {}, 0, lambda: rotated(False)),
    "rope, interleaved": ("rope", [heads, table, batch], {"flags": 1}, 0, lambda: rotated(True)),
    "kv_append, keys": (
        "kv_append",
        [k_new, v_new, keys, values, batch, sequences],
        {},
        2,
        lambda: appended(keys, k_new),
    ),
    "kv_append, values": (
        "kv_append",
        [k_new, v_new, keys, values, batch, sequences],
        {},
        3,
        lambda: appended(values, v_new),
    ),
    "attention": (
        *("attention", [heads, keys, values, batch, sequences, NEW((3, 8))], {"attributes": (0.5,)}, 5),
        lambda: attended((1, pages), (2, pages)),
    ),
    "attention, two sequences": (
        *("attention", [heads, keys, values, mixed, both, NEW((3, 8))], {"attributes": (0.5,)}, 5),
        lambda: attended((4, pages), (1, pages[1:])),
    ),
    "silu_mul": ("silu_mul", [x, y, NEW((3, 8))], {}, 2, lambda: silu(x) * y),
    "silu_mul, two rows": ("silu_mul", [x, y, NEW((3, 8)), batch], {}, 2, lambda: rows(silu(x) * y, 2)),
    "add": ("add", [x, y, NEW((3, 8))], {}, 2, lambda: x + y),
    "add, a vector to every row": ("add", [x, y[0], NEW((3, 8))], {}, 2, lambda: x + y[0]),
    "scale": ("scale", [x, NEW((3, 8))], {"attributes": (-2.5,)}, 1, lambda: x * np.float32(-2.5)),
    "softmax": ("softmax", [x, NEW((3, 8))], {}, 1, lambda: softmax(x)),
    "argmax": ("argmax", [x, NEW(3, np.int32)], {}, 1, lambda: x.argmax(-1)),
}


def test_every_op_is_tried() -> None:
    assert {case[0] for case in CASES.values()} == NUMBERS.keys()


@pytest.mark.parametrize("case", CASES)
def test_op(case: str, device: Device) -> None:
    op, arrays, settings, compared, expected = CASES[case]
    with Probe(device) as probe:
        buffer, operands = probe.share(), []
        for i, array in enumerate(arrays):
            typed = array if array.dtype == np.int32 else array.astype(np.float32)
            probe.put(PAGE + 4096 * i, typed)
            operands.append(tensor(buffer, typed.shape, 4096 * i, 26 if typed.dtype == np.int32 else 0))
        probe.run(command(NUMBERS[op], *operands, **settings))
        result = probe.bytes[PAGE + 4096 * compared :][
            : operands[compared]["shape"][: operands[compared]["rank"]].prod() * 4
        ]
        wanted = expected()
        result = result.view(np.int32 if wanted.dtype.kind == "i" else np.float32).reshape(wanted.shape)
        np.testing.assert_allclose(result, wanted, rtol=2e-5, atol=2e-5)
        assert probe.guest.counters.bytes_copied == 0


def test_strided_rows(device: Device) -> None:
    """A slice of columns of a wider matrix is a tensor, too."""
    with Probe(device) as probe:
        buffer = probe.share()
        wide = normal(3, 32)
        probe.put(PAGE, wide)
        left, right = (tensor(buffer, (3, 16), offset, row_stride=32) for offset in (0, 64))
        probe.run(command(NUMBERS["add"], left, right, tensor(buffer, (3, 16), 4096)))
        result = probe.floats(PAGE + 4096, 48).reshape(3, 16)
        np.testing.assert_array_equal(result, wide[:, :16] + wide[:, 16:])


@pytest.mark.parametrize("field", [name for name in abi.TENSOR.names if name != "buffer"])
def test_an_operand_without_a_buffer_must_be_zero_in_every_field(field: str) -> None:
    from wasmetal.device.cpu.device import CpuDevice

    with Probe(CpuDevice()) as probe:
        value = tensor(probe.share(), (4,))
        wrong = command(NUMBERS["add"], value, value, value)
        wrong["t"][5][field] = 1
        assert probe.try_submit(wrong) == Errno.INVAL


def test_commands_of_a_list_take_effect_in_order(device: Device) -> None:
    with Probe(device) as probe:
        buffer = probe.share()
        probe.put(PAGE, np.ones(4, np.float32))
        value = tensor(buffer, (4,))
        probe.run(*[command(NUMBERS["add"], value, value, value) for _ in range(100)])
        assert (probe.floats(PAGE, 4) == 2.0**100).all()


def test_two_buffers_on_the_same_pages_are_ordered(device: Device) -> None:
    with Probe(device) as probe:
        one, other = (tensor(probe.share(), (4,)) for _ in range(2))
        probe.put(PAGE, np.ones(4, np.float32))
        probe.run(*[command(NUMBERS["add"], a, a, b) for a, b in [(one, one), (other, other)] * 10])
        assert (probe.floats(PAGE, 4) == 2.0**20).all()


def test_what_a_device_cannot_do_is_not_supported() -> None:
    from wasmetal.device.cpu.device import CpuDevice
    from wasmetal.errors import DeviceError

    class Small(CpuDevice):
        def record(self) -> Any:
            commands = super().record()

            def refuse(*_: object) -> None:
                raise DeviceError("too large a grid")

            commands.dispatch = refuse  # type: ignore[method-assign]
            return commands

    with Probe(Small()) as probe:
        value = tensor(probe.share(), (4,))
        assert probe.try_submit(command(NUMBERS["add"], value, value, value)) == Errno.NOTSUP
