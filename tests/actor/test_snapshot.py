"""What a snapshot holds: memories, globals, tables, handles, buffers, descriptors; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.actor.guests import COUNTER, MESSAGE, imports, probe, probe_program, wat
from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from tests.security.wasi_probe import WasiProbe
from tests.security.wasi_probe import module as wasi_module
from wasmetal import Actor, ActorProgram, Dir, Limits, Snapshot, load_model
from wasmetal.actor.chunks import MemoryChunks
from wasmetal.actor.manifest import BLOCK_BYTES, Manifest
from wasmetal.device import Device
from wasmetal.errors import LimitError, SnapshotError
from wasmetal.host import abi
from wasmetal.host.errno import Errno, WasiErrno

ADD = next(op.number for op in abi.OPS.values() if op.name == "add")
TWO_MEMORIES = Limits(memories=2)


def through_json(snapshot: Snapshot) -> Snapshot:
    """As if it came from a file."""
    return Snapshot(Manifest.from_json(json.loads(json.dumps(snapshot.manifest.to_json()))), snapshot.chunks)


def numbers(reply: bytes) -> list[int]:
    return np.frombuffer(reply, "<u4").tolist()


# ---- Memories, globals, tables


def test_private_globals_and_a_stack_pointer_that_is_not_at_rest() -> None:
    program = wat(COUNTER)
    actor = Actor(program, limits=TWO_MEMORIES)
    for count in range(1, 6):
        assert numbers(actor.send("").read()) == [count, count - 1, 1, 10 * count]
        snapshot = through_json(actor.freeze())
        actor.close()
        actor = Actor.thaw(snapshot, program, limits=TWO_MEMORIES)
    actor.close()
    stack = 131056 - 5 * 16
    values = [int.from_bytes(bytes.fromhex(str(each.value)), "little") for each in snapshot.manifest.globals]
    assert values == [5, stack, 1]


def test_only_pages_that_differ_from_the_initial_image_are_chunks() -> None:
    text = f"""(module {imports("message_read")} (memory (export "memory") 1000)
        (data (i32.const 65536) "initial") (data (i32.const 131072) "initial")
        {MESSAGE}
          (drop (call $message_read (i32.const 327680) (i32.const 9) (i32.const 327700)))
          (i64.store (i32.const 65536) (i64.const 0))
          (i32.store8 (i32.const 196608) (i32.const 0))
          (drop (memory.grow (i32.const 2)))))"""
    program = wat(text)
    with Actor(program) as actor:
        new = actor.freeze().manifest
        assert new.memories[0].content.named == ()
        assert new.chunks() == []
        actor.send("different").read()
        snapshot = actor.freeze()
        memory = snapshot.manifest.memories[0]
        assert memory.pages == 1002
        # Page 1 has become zero, and so needs no chunk; page 2 is as it was; page 3 was written to, but is zero still.
        assert [(page, chunk is None) for page, chunk in memory.content.named] == [(1, True), (5, False)]
        with Actor.thaw(through_json(snapshot), program) as thawed:
            assert (thawed._guest.state.regions[0].view() == actor._guest.state.regions[0].view()).all()
            assert thawed.freeze().manifest.memories == snapshot.manifest.memories


def test_every_kind_of_global_keeps_its_bits() -> None:
    bits = {"f32": "010020ff", "f64": "010000000000f47f", "v128": "0102030405060708090a0b0c0d0e0f10"}
    f32, f64 = (int.from_bytes(bytes.fromhex(bits[kind]), "little") for kind in ("f32", "f64"))
    text = f"""(module (memory (export "memory") 1)
        (global $a (mut i64) (i64.const 0)) (global $b (mut f32) (f32.const 0)) (global $c (mut f64) (f64.const 0))
        (global $d (mut v128) (v128.const i64x2 0 0)) (global $e (mut funcref) (ref.null func))
        (global $f (mut externref) (ref.null extern)) (global $g (mut funcref) (ref.func $m))
        (func $m (export "wm_actor_message")
          (global.set $a (i64.const -2))
          (global.set $b (f32.reinterpret_i32 (i32.const {f32})))
          (global.set $c (f64.reinterpret_i64 (i64.const {f64})))
          (global.set $d (v128.const i8x16 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16))
          (global.set $e (ref.func $m)) (global.set $g (ref.null func))))"""
    program = wat(text)
    expected = ["fe" + "ff" * 7, bits["f32"], bits["f64"], bits["v128"], 0, None, None]
    with Actor(program) as actor:
        assert [each.value for each in actor.freeze().manifest.globals][4:] == [None, None, 0]
        actor.send("").read()
        snapshot = actor.freeze()
        assert [each.value for each in snapshot.manifest.globals] == expected
        with Actor.thaw(through_json(snapshot), program) as thawed:
            assert thawed.freeze().manifest.globals == snapshot.manifest.globals


def test_tables_that_the_code_changes() -> None:
    text = f"""(module {imports("message_read", "reply_write")} (memory (export "memory") 1)
        (type $f (func (result i32))) (table $t 1 10 funcref) (table $u 1 externref)
        (elem (table $t) (i32.const 0) func $one)
        (elem declare func $two)
        (func $one (result i32) (i32.const 49)) (func $two (result i32) (i32.const 50))
        {MESSAGE}
          (drop (call $message_read (i32.const 0) (i32.const 8) (i32.const 8)))
          (if (i32.load (i32.const 8))
            (then
              (drop (table.grow $t (ref.null func) (i32.const 2)))
              (drop (table.grow $u (ref.null extern) (i32.const 5)))
              (table.set $t (i32.const 2) (ref.func $two)))
            (else
              (i32.store8 (i32.const 0) (call_indirect $t (type $f) (i32.const 0)))
              (i32.store8 (i32.const 1) (call_indirect $t (type $f) (i32.const 2)))
              (drop (call $reply_write (i32.const 0) (i32.const 2)))))))"""
    program = wat(text)
    with Actor(program) as actor:
        actor.send("change").read()
        snapshot = actor.freeze()
        assert [table.size for table in snapshot.manifest.tables] == [3, 6]
        with Actor.thaw(through_json(snapshot), program) as thawed, actor.fork() as fork:
            assert actor.send("").read() == thawed.send("").read() == fork.send("").read() == b"12"
            assert thawed.freeze().manifest.tables == snapshot.manifest.tables


@pytest.mark.parametrize("memory64", [False, True], ids=["wasm32", "wasm64"])
def test_an_actor_of_either_width(memory64: bool, cpu: Device) -> None:
    program = probe_program(memory64)
    with Actor(program, device=cpu) as actor:
        p = probe(actor, memory64)
        assert p.guest.call("grow", 3) == 8
        p.bytes[10 * PAGE :] = 7
        with Actor.thaw(through_json(actor.freeze()), program, device=cpu) as thawed:
            assert (probe(thawed, memory64).bytes == p.bytes).all()


# ---- Handles and buffers


def test_buffers_are_thawed_with_handles_and_contents(device: Device) -> None:
    program = probe_program()
    data = np.random.default_rng(0).bytes(BLOCK_BYTES + 4096)
    with Actor(program, device=device) as actor:
        p = probe(actor)
        gone, kept = p.allocate(64), p.allocate(3 * BLOCK_BYTES + 4096, usage=1)
        shared = p.share(PAGE, PAGE)
        assert p.buffer_destroy(gone) == Errno.SUCCESS
        p.run(command(ADD, *[tensor(shared, (4,)), tensor(shared, (4,)), tensor(shared, (4,), offset=64)]))
        p.guest.call("grow", 24)
        p.put(2 * PAGE, data)
        assert p.buffer_write(kept, 2 * BLOCK_BYTES, 2 * PAGE, len(data)) == Errno.SUCCESS
        snapshot = through_json(actor.freeze())
        content = next(held.content for held in snapshot.manifest.handles.held.values() if hasattr(held, "content"))
        assert [index for index, _ in content.named] == [2, 3]  # what is zero costs nothing
        with Actor.thaw(snapshot, program, device=device) as thawed, actor.fork() as fork:
            for each in (thawed, fork):
                assert each.counters.host_calls == actor.counters.host_calls
                q = probe(each)
                q.bytes[2 * PAGE :] = 0
                assert q.buffer_read(kept, 2 * BLOCK_BYTES, 2 * PAGE, len(data)) == Errno.SUCCESS
                assert bytes(q.bytes[2 * PAGE : 2 * PAGE + len(data)]) == data
                assert q.buffer_write(kept, 0, 0, 16) == Errno.SUCCESS
                assert q.buffer_read(gone, 0, 0, 16) == Errno.BADF
                # The shared buffer is the new guest's own memory, at the same place.
                q.bytes[PAGE : PAGE + 16].view(np.float32)[:] = [1, 2, 3, 4]
                q.run(command(ADD, *[tensor(shared, (4,)), tensor(shared, (4,)), tensor(shared, (4,), offset=64)]))
                assert q.floats(PAGE + 64, 4).tolist() == [2, 4, 6, 8]
                assert q.allocate(64) not in (gone, kept, shared)
            assert (p.floats(PAGE + 64, 4) == 0).all()


def test_handles_go_on_as_they_would_have(cpu: Device) -> None:
    program = probe_program()
    with Actor(program, device=cpu) as actor:
        p = probe(actor)
        handles = [p.allocate(64) for _ in range(5)]
        for handle in (handles[3], handles[1]):
            p.buffer_destroy(handle)
        with Actor.thaw(through_json(actor.freeze()), program, device=cpu) as thawed:
            q = probe(thawed)
            assert [q.allocate(64) for _ in range(4)] == [p.allocate(64) for _ in range(4)]


def test_device_memory_stays_charged(cpu: Device) -> None:
    program = probe_program()
    limits = Limits(device_bytes=1 << 20)
    with Actor(program, device=cpu, limits=limits) as actor:
        buffer = probe(actor).allocate(3 << 18)
        snapshot = actor.freeze()
        with Actor.thaw(snapshot, program, device=cpu, limits=limits) as thawed:
            q = probe(thawed)
            assert (thawed.memory_bytes, thawed.device_bytes) == (8 * PAGE, 3 << 18)
            assert q.buffer_create_device(1 << 19, 3, q.OUT) == Errno.NOMEM
            q.buffer_destroy(buffer)
            q.allocate(1 << 19)
        with pytest.raises(SnapshotError, match="786432 bytes on the device; the limit is 1000"):
            Actor.thaw(snapshot, program, device=cpu, limits=Limits(device_bytes=1000))
        with pytest.raises(SnapshotError, match="1 handles; the limit is 0"):
            Actor.thaw(snapshot, program, device=cpu, limits=Limits(handles=0))
        with pytest.raises(SnapshotError, match="524288 bytes of memory; the limit is 65536"):
            Actor.thaw(snapshot, program, device=cpu, limits=Limits(memory_bytes=65536))


def test_a_pending_submission_is_refused(cpu: Device) -> None:
    with Actor(probe_program(), device=cpu) as actor:
        p = probe(actor)
        shared = p.share(PAGE, PAGE)
        submission = p.start(command(ADD, *[tensor(shared, (4,), offset=16 * i) for i in range(3)]))
        for refused in (actor.freeze, actor.fork):
            with pytest.raises(SnapshotError, match=f"a pending submission, {submission:#x}"):
                refused()
        p.submission_wait(submission, abi.FOREVER)
        actor.freeze()


# ---- Files and clocks


def wasi_actor(folder: Path, **options: Any) -> tuple[ActorProgram, Actor, WasiProbe]:
    program = ActorProgram(wasi_module().rstrip()[:-1] + f"{MESSAGE}))".encode())
    actor = Actor(program, dirs={"/data": folder}, **options)
    made = WasiProbe.__new__(WasiProbe)
    made.guest = actor._guest
    return program, actor, made


def test_an_open_file_is_refused_and_folders_must_be_granted_again(tmp_path: Path) -> None:
    program, actor, wasi = wasi_actor(tmp_path)
    with actor:
        snapshot = through_json(actor.freeze())
        wasi.path_open(3, 0, "file", 1, (1 << 1) | (1 << 6), 0, 0, 64)
        with pytest.raises(SnapshotError, match="an open file, descriptor 4"):
            actor.freeze()
        with pytest.raises(SnapshotError, match="an open file, descriptor 4"):
            actor.fork()
        wasi.fd_close(4)
        actor.freeze()
    with pytest.raises(SnapshotError, match="granted a folder as '/data': grant it again"):
        Actor.thaw(snapshot, program)
    with pytest.raises(SnapshotError, match="has no folder '/more'"):
        Actor.thaw(snapshot, program, dirs={"/data": tmp_path, "/more": tmp_path})
    other = tmp_path / "other"
    other.mkdir()
    with Actor.thaw(snapshot, program, dirs={"/data": Dir(other, read_only=True)}) as thawed:
        wasi.guest = thawed._guest
        with pytest.raises(OSError, match="ROFS"):
            wasi.path_create_directory(3, "new")


def test_descriptors_keep_their_numbers(tmp_path: Path) -> None:
    program, actor, wasi = wasi_actor(tmp_path)
    with actor:
        wasi.fd_renumber(3, 0)
        wasi.fd_close(2)
        with Actor.thaw(through_json(actor.freeze()), program, dirs={"/data": tmp_path}) as thawed:
            wasi.guest = thawed._guest
            wasi.path_create_directory(0, "new")
            assert (tmp_path / "new").is_dir()
            for closed in (2, 3):
                with pytest.raises(OSError, match=WasiErrno.BADF.name):
                    wasi.fd_close(closed)
            wasi.fd_close(1)


def test_the_monotonic_clock_goes_on_and_limits_on_files_too(tmp_path: Path) -> None:
    program, actor, wasi = wasi_actor(tmp_path)
    with actor:
        wasi.path_create_directory(3, "new")
        before = actor._guest.clocks.elapsed
        snapshot = through_json(actor.freeze())
    with Actor.thaw(snapshot, program, dirs={"/data": tmp_path}, limits=Limits(files=1)) as thawed:
        assert thawed._guest.clocks.elapsed >= before
        wasi.guest = thawed._guest
        with pytest.raises(OSError, match="DQUOT"):
            wasi.path_create_directory(3, "another")


# ---- What does not fit


def test_another_program_is_refused() -> None:
    with Actor(wat(COUNTER), limits=TWO_MEMORIES) as actor:
        snapshot = actor.freeze()
    with pytest.raises(SnapshotError, match="another program, guest"):
        Actor.thaw(snapshot, wat(COUNTER.replace("initial", "INITIAL")), limits=TWO_MEMORIES)
    with pytest.raises(LimitError, match="1 linear memories"):
        Actor.thaw(snapshot, wat(COUNTER))


def test_models_must_be_granted_again_and_be_the_same(tmp_path: Path, cpu: Device) -> None:
    program = probe_program()
    one, two = (write_tiny_llama(tmp_path / f"{seed}.gguf", seed=seed) for seed in (1, 2))
    with load_model(one, cpu) as model, load_model(two, cpu) as other, load_model(one, cpu, context=32) as short:
        with Actor(program, models={"m": model}) as actor:
            p = probe(actor)
            session = open_session(p)
            tokens = np.arange(50, dtype=np.uint32)
            assert p.session_forward(session, 1024, p.put(1024, tokens) // 4, 0) == Errno.SUCCESS
            snapshot = through_json(actor.freeze())
        with pytest.raises(SnapshotError, match="granted a model as 'm': grant it again"):
            Actor.thaw(snapshot, program, device=cpu)
        with pytest.raises(SnapshotError, match="granted as 'm' is 2; the actor was frozen with another, 1"):
            Actor.thaw(snapshot, program, models={"m": other})
        with pytest.raises(SnapshotError, match="50 tokens, and here the context of 1 has 32"):
            Actor.thaw(snapshot, program, models={"m": short})
        with Actor.thaw(snapshot, program, models={"m": model, "more": other}) as thawed:
            q = probe(thawed)
            assert q.session_length(session, q.OUT) == Errno.SUCCESS
            assert q.u32() == 50


def open_session(p: Probe, name: bytes = b"m") -> int:
    assert p.model_open(128, p.put(128, name), p.OUT) == Errno.SUCCESS
    assert p.session_open(p.u32(), p.OUT) == Errno.SUCCESS
    return p.u32()


def test_damaged_chunks_are_refused(cpu: Device) -> None:
    program = wat(COUNTER)
    with Actor(program, limits=TWO_MEMORIES) as actor:
        actor.send("").read()
        snapshot = actor.freeze()
    with pytest.raises(SnapshotError, match="is missing"):
        Actor.thaw(Snapshot(snapshot.manifest, MemoryChunks()), program, limits=TWO_MEMORIES)
