"""Arbitrary integers into every host function: each call gives an errno, and the guest's memory is as it was.

Around the guest under attack lie another guest's buffers, and pages of its own that it has not shared: all poisoned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from wasmetal import Limits, load_model
from wasmetal.device import Device, open_device
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.memory.pages import page_size

POISON = 0xA5
SIZE = 8 * PAGE
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The attacked guest, with live handles of every kind, and its neighbour."""
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    limits = Limits(device_bytes=1 << 20, handles=64, commands=256)
    with open_device("cpu") as device, load_model(path, device) as model:
        grants = {"models": {"m": model}, "limits": limits}
        with Probe(device, **grants) as attacker, Probe(device, **grants) as neighbour:
            yield attacker, neighbour, handles(attacker), handles(neighbour)


def handles(probe: Probe) -> list[int]:
    probe.put(128, b"m")
    found = [probe.share(PAGE, PAGE), probe.allocate(256)]
    assert probe.model_open(128, 1, probe.OUT) == Errno.SUCCESS
    found.append(probe.u32())
    assert probe.session_open(found[-1], probe.OUT) == Errno.SUCCESS
    return [*found, probe.u32()]


numbers = st.one_of(
    st.sampled_from([0, 1, 2, 3, 64, PAGE, 2 * PAGE, SIZE, SIZE - 4, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1]),
    st.builds(lambda n, by: max(n + by, 0), st.sampled_from([0, SIZE, 2**32]), st.integers(-64, 64)),
    st.integers(0, 2**64 - 1),
)
MAKERS = {
    "buffer_create": "buffer_destroy",
    "buffer_create_device": "buffer_destroy",
    "session_open": "session_close",
    "session_fork": "session_close",
}
FUNCTIONS = {function.name: function for interface in abi.DESCRIPTION for function in interface.functions}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arbitrary_integers(scene: Any, name: str) -> None:
    attacker, neighbour, live, stolen = scene
    handle = st.sampled_from([*live, *stolen])
    function = FUNCTIONS[name]
    documented = {Errno.SUCCESS, *function.all_errors}

    @QUIET
    @given(st.tuples(*[st.one_of(handle, numbers) if kind == abi.U32 else numbers for kind in function.kinds]))
    def attack(values: tuple[int, ...]) -> None:
        if name in ("session_close", "buffer_destroy") and values[0] in live:
            return
        memory, around = attacker.bytes, neighbour.bytes
        memory[:] = POISON
        around[:] = POISON
        errno = getattr(attacker, name)(*values)
        assert errno in documented
        assert (around == POISON).all()
        assert attacker.region.size == SIZE
        if errno not in (Errno.SUCCESS, Errno.OVERFLOW):
            assert (memory == POISON).all()
        if errno == Errno.SUCCESS and name in MAKERS:
            assert getattr(attacker, MAKERS[name])(attacker.u32(values[-1] % 2**32)) == Errno.SUCCESS

    attack()


shapes = st.lists(st.one_of(st.integers(0, 8), numbers.map(lambda n: n % 2**32)), min_size=4, max_size=4)
tensors = st.builds(
    lambda buffer, dtype, offset, rank, stride, shape: (buffer, dtype, offset, rank, stride, shape),
    st.integers(0, 5),
    st.one_of(st.sampled_from([0, 0, 0, 1, 2, 3, 8, 26]), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 64).map(lambda n: 16 * n), numbers),
    st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1)),
    st.one_of(st.just(0), st.integers(0, 64), st.integers(0, 2**32 - 1)),
    shapes,
)
commands = st.tuples(
    st.one_of(st.sampled_from(list(abi.OPS)), st.integers(0, 2**32 - 1)),
    st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 2**32 - 1)),
    st.lists(tensors, min_size=1, max_size=6),
)


@QUIET
@given(st.lists(commands, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_arbitrary_commands(scene: Any, commands: list[Any], seed: int) -> None:
    """Records close to right, on buffers full of noise. What is refused changes nothing; what runs stays inside."""
    attacker, neighbour, live, stolen = scene
    attacker.bytes[:] = POISON
    neighbour.bytes[:] = POISON
    attacker.put(PAGE, np.random.default_rng(seed).bytes(PAGE))  # the shared page alone
    before = attacker.bytes[PAGE : 2 * PAGE].copy()
    records = []
    for number, flags, operands in commands:
        record = command(number, flags=flags)
        for i, (buffer, dtype, offset, rank, stride, shape) in enumerate(operands):
            record["t"][i] = (
                [0, live[0], live[0], live[1], live[2], stolen[0]][buffer],
                dtype,
                offset,
                rank,
                stride,
                shape,
            )
        records.append(record)
    errno = attacker.try_submit(*records)
    if errno == Errno.SUCCESS:
        assert attacker.submission_wait(attacker.u32(), abi.FOREVER) == Errno.SUCCESS
    else:
        assert errno in (Errno.BADF, Errno.INVAL, Errno.NOTSUP, Errno.PERM)
        assert (attacker.bytes[PAGE : 2 * PAGE] == before).all()
    mine = attacker.bytes
    assert (mine[2 * PAGE :] == POISON).all()
    assert (mine[4096 + len(records) * abi.COMMAND.itemsize : PAGE] == POISON).all()
    assert (neighbour.bytes == POISON).all()


@QUIET
@given(st.data())
def test_right_commands_with_hostile_contents(device: Device, data: st.DataObject) -> None:
    """Ids, positions and page numbers that a device reads from a guest's memory lead nowhere outside the tensors."""
    integers = st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 6)
    words = data.draw(st.lists(integers, min_size=16, max_size=16))
    name = data.draw(st.sampled_from(["embed", "rope", "kv_append", "attention", "rms_norm", "linear"]))
    with Probe(device) as probe:
        buffer = probe.share(2 * PAGE, 2 * PAGE)
        probe.bytes[:] = POISON
        probe.put(2 * PAGE, np.zeros(2 * PAGE, np.uint8))
        probe.put(2 * PAGE, np.array(words, np.int32))
        # Tensors at the very end of the buffer, behind which the guest's other pages begin.
        end = 2 * PAGE
        batch, sequences = tensor(buffer, (4, 2), dtype=26), tensor(buffer, (2, 4), 32, dtype=26)
        ids = tensor(buffer, (3,), 16, dtype=26)
        first, last = tensor(buffer, (3, 8), 4096), tensor(buffer, (3, 8), end - 96)
        pool, pool_end = tensor(buffer, (2, 2, 1, 4), 8192), tensor(buffer, (2, 2, 1, 4), end - 64)
        row, heads = tensor(buffer, (3, 1, 4), 12288), tensor(buffer, (3, 2, 4), end - 96)
        operands = {
            "embed": [first, ids, last, batch],
            "rope": [heads, tensor(buffer, (2, 2, 2), 4096), batch],
            "kv_append": [row, row, pool, pool_end, batch, sequences],
            "attention": [heads, pool, tensor(buffer, (2, 2, 1, 4), 16384), batch, sequences, first],
            "rms_norm": [first, tensor(buffer, (8,), 512), last, batch],
            "linear": [first, tensor(buffer, (8, 8), 20480), last, batch],
        }[name]
        number = next(n for n, op in abi.OPS.items() if op.name == name)
        commands = command(number, *operands)
        submitted = probe.try_submit(commands)
        assert submitted == Errno.SUCCESS
        assert probe.submission_wait(probe.u32(), abi.FOREVER) == Errno.SUCCESS
        assert (probe.bytes[4 * PAGE :] == POISON).all()
        assert (probe.bytes[PAGE : 2 * PAGE] == POISON).all()


def test_nothing_is_lost(scene: Any) -> None:
    """After any number of attacks: the live handles still work, and everything else can be had again."""
    attacker, _, live, _ = scene
    shared, own, model, session = live
    attacker.bytes[:] = 0
    value = tensor(shared, (4,))
    attacker.put(PAGE, np.ones(4, np.float32))
    attacker.run(command(9, value, value, tensor(shared, (4,), 64)))
    assert (attacker.floats(PAGE + 64, 4) == 2).all()
    assert attacker.buffer_read(own, 0, PAGE, 256) == Errno.SUCCESS
    assert attacker.model_describe(model, attacker.OUT) == Errno.SUCCESS
    assert attacker.session_close(session) == Errno.SUCCESS
    assert attacker.guest._account.device_bytes == page_size()  # one buffer
    made = []
    while attacker.buffer_create(PAGE, PAGE, 1, attacker.OUT) == Errno.SUCCESS:
        made.append(attacker.u32())
    assert len(made) == 64 - 3
    for buffer in made:  # the other tests may come later
        assert attacker.buffer_destroy(buffer) == Errno.SUCCESS
    assert attacker.session_open(model, attacker.OUT) == Errno.SUCCESS
    live[-1] = attacker.u32()
