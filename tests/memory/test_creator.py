"""Guests on our memory: the same bytes on both sides, growth, traps, refusals, and everything given back."""

import ctypes
import gc
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import wasmtime

from tests.memory.conftest import MAPS, Guest, accessors
from wasmetal import wasmtime_c
from wasmetal.errors import AddressSpaceError, MemoryCountError, MemoryRefusedError, MemorySizeError
from wasmetal.memory import creator as creator_module
from wasmetal.memory.creator import MemoryCreator
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region
from wasmetal.memory.wasmtime_engine import new_engine
from wasmetal.wasmtime_c import memory_refusals

Load = Callable[..., Guest]
Access = Callable[[int], str]

WASM_PAGE = 65536
GIB = 1 << 30

ONE = f'(module (memory $a (export "memory") 1) {accessors("a", "i32")})'
SEVERAL = f"""(module
  (memory $a (export "a") 1 4)
  (memory $b (export "b") i64 2 5)
  (memory $c (export "c") 0)
  (memory $d (export "d") i64 0 0)
  {accessors("a", "i32")} {accessors("b", "i64")} {accessors("c", "i32")} {accessors("d", "i64")})"""


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """After every test, Wasmtime has given back every memory."""
    yield
    gc.collect()
    assert [thing for thing in wasmtime_c.lent.values() if not isinstance(thing, MemoryCreator)] == []


# ---- the same bytes ----


@pytest.mark.parametrize("index", ["i32", "i64"])
def test_the_memory_is_the_mapping(load: Load, access: Access, index: str) -> None:
    """Also a regression test for wasmtime issue 12053: host memory that the guest's writes no longer reached."""
    guest = load(
        f'(module (memory $a (export "memory") {index} 2 3) (data ({index}.const 5) "hi") {accessors("a", index)})'
    )
    region = guest.region()
    assert region.address == guest.address()
    assert (region.size, region.capacity) == (2 * WASM_PAGE, 3 * WASM_PAGE)
    assert access(region.address + region.size - 1) == "rw-p"
    view = region.view()
    assert bytes(view[4:8]) == b"\0hi\0"
    assert view.sum() == ord("h") + ord("i")
    guest.call("store_a", 70_000, 201)
    assert view[70_000] == 201
    view[70_001] = 202
    assert guest.call("load_a", 70_001) == 202
    assert ctypes.c_ubyte.from_address(guest.address() + 70_001).value == 202


def test_every_memory_of_a_guest_is_a_region_of_its_own(load: Load, creator: MemoryCreator) -> None:
    guest = load(SEVERAL)
    regions = [guest.region(name) for name in "abcd"]
    assert creator.regions() == regions
    assert [region.size // WASM_PAGE for region in regions] == [1, 2, 0, 0]
    spans = sorted((region.address, region.address + 4 * GIB) for region in regions)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    for name, value in (("a", 1), ("b", 2)):
        guest.call(f"store_{name}", 0, value)
    assert [int(region.view().sum()) for region in regions] == [1, 2, 0, 0]


def test_two_instances_share_nothing(load: Load) -> None:
    one, two = load(ONE), load(ONE)
    one.call("store_a", 0, 1)
    assert one.region() is not two.region()
    assert two.call("load_a", 0) == 0


def test_an_address_that_is_no_base_is_a_key_error(load: Load, creator: MemoryCreator) -> None:
    guest = load(ONE)
    for address in (0, guest.address() + page_size()):
        with pytest.raises(KeyError):
            creator.region_at(address)


# ---- growth ----


def test_small_steps_by_guest_and_host_with_live_apertures(load: Load) -> None:
    guest = load('(module (memory $a (export "memory") 0 64)' + accessors("a", "i32") + ")")
    region = guest.region()
    memory = guest.instance.exports(guest.store)["memory"]
    base = guest.address()
    live: list[tuple[int, Any, Any]] = []
    for page in range(64):
        grown_by_guest = page % 2 == 0
        previous = guest.call("grow_a", 1) if grown_by_guest else memory.grow(guest.store, 1)
        assert previous == page
        assert (guest.address(), region.address, region.size) == (base, base, (page + 1) * WASM_PAGE)
        guest.call("store_a", page * WASM_PAGE + 17, page + 1)
        aperture = region.aperture(page * WASM_PAGE, WASM_PAGE)
        live.append((page, aperture, aperture.view()))
        for earlier, borrowed, view in live:
            assert borrowed.address == base + earlier * WASM_PAGE
            assert (view[17], int(view.sum())) == (earlier + 1, earlier + 1)
    for page, _, view in live:
        view[18] = 100 + page
        assert guest.call("load_a", page * WASM_PAGE + 18) == 100 + page


@pytest.mark.parametrize(("index", "pages"), [("i32", 65536), ("i64", 131072)])
def test_one_large_step(load: Load, index: str, pages: int) -> None:
    guest = load(f'(module (memory $a (export "memory") {index} 1) {accessors("a", index)})')
    aperture = guest.region().aperture(0, WASM_PAGE)
    guest.call("store_a", 3, 4)
    assert guest.call("grow_a", pages - 1) == 1
    last = pages * WASM_PAGE - 1
    signed = last - (1 << 32) if index == "i32" else last
    guest.call("store_a", signed, 5)
    assert guest.region().view()[last] == 5
    assert aperture.view()[3] == 4


def test_growth_ends_at_the_declared_maximum(load: Load) -> None:
    guest = load(SEVERAL)
    for name, size, maximum in (("a", 1, 4), ("b", 2, 5), ("d", 0, 0)):
        assert guest.call(f"grow_{name}", maximum - size + 1) == -1
        assert guest.region(name).size == size * WASM_PAGE
        assert guest.call(f"grow_{name}", maximum - size) == size
        assert guest.call(f"grow_{name}", 1) == -1
        assert guest.call(f"size_{name}") == maximum
        assert guest.region(name).size == guest.region(name).capacity == maximum * WASM_PAGE


def test_growth_ends_at_the_stores_limit(load: Load) -> None:
    guest = load(ONE, memory_size=3 * WASM_PAGE)
    assert guest.call("grow_a", 3) == -1
    assert guest.call("grow_a", 2) == 1
    assert guest.call("grow_a", 1) == -1
    assert guest.region().size == 3 * WASM_PAGE


@pytest.mark.parametrize("declared", ["1", "1 0x1000000000000"])
def test_growth_of_a_memory64_ends_at_the_creators_limit(declared: str) -> None:
    """Its declared maximum, none or 2^64 bytes, is no amount of address space to reserve."""
    creator = MemoryCreator(max_capacity=4 * WASM_PAGE)
    engine = new_engine(creator)
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1)
    module = wasmtime.Module(engine, f'(module (memory $a (export "memory") i64 {declared}) {accessors("a", "i64")})')
    guest = Guest(creator, store, wasmtime.Instance(store, module, []))
    for pages in (4, 0x1000000000000, -1):
        assert guest.call("grow_a", pages) == -1
    assert guest.call("grow_a", 3) == 1
    assert guest.call("grow_a", 1) == -1
    assert guest.region().size == 4 * WASM_PAGE
    with pytest.raises(wasmtime.Trap, match="out of bounds memory access"):
        guest.call("load_a", 4 * WASM_PAGE)


def test_growth_that_the_system_refuses_is_minus_one(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = load(ONE)

    def refuse(region: Region, size: int) -> None:
        raise MemoryRefusedError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Region, "grow", refuse)
        assert guest.call("grow_a", 1) == -1
        memory = guest.instance.exports(guest.store)["memory"]
        with pytest.raises(MemoryRefusedError, match="failed to grow memory"), memory_refusals():
            memory.grow(guest.store, 1)
    assert guest.call("size_a") == 1
    assert guest.call("grow_a", 1) == 1


# ---- traps ----


@pytest.mark.parametrize("grown", [0, 1, 3])
@pytest.mark.parametrize(("name", "size"), [("a", 1), ("b", 2), ("c", 0), ("d", 0)])
def test_the_first_byte_past_the_end_traps(load: Load, name: str, size: int, grown: int) -> None:
    guest = load(SEVERAL)
    if name == "d" and grown:
        return  # it cannot grow
    assert guest.call(f"grow_{name}", grown) == size
    end = (size + grown) * WASM_PAGE
    if end:
        guest.call(f"store_{name}", end - 1, 1)
        assert guest.call(f"load_{name}", end - 1) == 1
    far = [end + page_size(), 4 * WASM_PAGE + end, (1 << 31) - 1, -1]
    if name in "bd":
        far += [4 * GIB, 4 * GIB + (32 << 20), 64 * GIB, (1 << 63) - 1]
    for address in (end, *far):
        for access in (lambda at: guest.call(f"load_{name}", at), lambda at: guest.call(f"store_{name}", at, 1)):
            with pytest.raises(wasmtime.Trap, match="out of bounds memory access") as trap:
                access(address)
            assert trap.value.trap_code == wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS


# ---- refusals ----


def test_a_limit_of_the_store_is_a_refusal(load: Load, creator: MemoryCreator) -> None:
    with pytest.raises(MemorySizeError, match="minimum size of 2 pages exceeds memory limits"), memory_refusals():
        load("(module (memory 2))", memory_size=WASM_PAGE)
    with pytest.raises(MemoryCountError, match="memory count too high"), memory_refusals():
        load(SEVERAL, memories=3)
    assert creator.regions() == []


def test_a_minimum_over_the_creators_limit_is_a_refusal(load: Load, creator: MemoryCreator) -> None:
    # The first memory was made, and is given back.
    with pytest.raises(MemoryRefusedError, match=r"^a memory of \d+ bytes is over the limit"), memory_refusals():
        load("(module (memory 1) (memory i64 0x1000000))")
    assert creator.regions() == []


def test_no_address_space_is_a_refusal_with_the_systems_reason() -> None:
    engine = new_engine(MemoryCreator(max_capacity=1 << 62))
    module = wasmtime.Module(engine, "(module (memory i64 1))")
    with pytest.raises(AddressSpaceError, match="Cannot allocate memory") as refusal, memory_refusals():
        wasmtime.Instance(wasmtime.Store(engine), module, [])
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux only")
def test_an_address_space_limit_is_a_refusal(python: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    run = python(
        """
import re, resource
import wasmtime
from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.creator import MemoryCreator
from wasmetal.memory.wasmtime_engine import new_engine
from wasmetal.wasmtime_c import memory_refusals
creator = MemoryCreator()
engine = new_engine(creator)
store = wasmtime.Store(engine)
store.set_epoch_deadline(1)
module = wasmtime.Module(engine, '(module (memory (export "memory") 1))')
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30),) * 2)
first = wasmtime.Instance(store, module, [])
try:
    with memory_refusals():
        wasmtime.Instance(store, module, [])
except MemoryRefusedError as error:
    print(error)
first.exports(store)["memory"].grow(store, 100)
print(creator.regions()[0].size)
"""
    )
    assert run.stderr == ""
    refusal, size = run.stdout.splitlines()
    assert refusal.startswith("cannot reserve")
    assert "Cannot allocate memory" in refusal
    assert int(size) == 101 * WASM_PAGE


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_nothing_is_raised_through_c(
    load: Load, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise failure("on purpose")

    guest = load(ONE)
    with monkeypatch.context() as patch:
        patch.setattr(creator_module, "Region", fail)
        with pytest.raises(MemoryRefusedError, match=failure.__name__), memory_refusals():
            load(ONE)
        patch.setattr(Region, "grow", fail)
        assert guest.call("grow_a", 1) == -1
    assert capsys.readouterr().err == ""  # where ctypes reports what a callback raised
    assert load(ONE).call("grow_a", 1) == 1


def test_other_errors_pass() -> None:
    with pytest.raises(wasmtime.WasmtimeError, match="something else"), memory_refusals():
        raise wasmtime.WasmtimeError("something else")


# ---- everything given back ----


def mappings() -> int:
    if not MAPS.exists():
        pytest.skip("no /proc/self/maps on this system")
    return len(MAPS.read_text().splitlines())


def test_a_thousand_instances_leave_no_mapping_behind(load: Load, creator: MemoryCreator) -> None:
    engine = new_engine(creator)
    module = wasmtime.Module(engine, SEVERAL)

    def cycle() -> None:
        store = wasmtime.Store(engine)
        store.set_epoch_deadline(1)
        guest = Guest(creator, store, wasmtime.Instance(store, module, []))
        guest.call("grow_a", 2)
        guest.call("store_a", 100_000, 1)
        aperture = guest.region("a").aperture(0, WASM_PAGE)
        assert aperture.view()[0] == 0

    for _ in range(20):
        cycle()
    before = mappings()
    for _ in range(1000):
        cycle()
    assert creator.regions() == []
    assert mappings() <= before


def test_dropped_in_any_order(access: Access) -> None:
    for order in itertools.permutations(["store", "engine", "creator", "region", "borrower"]):
        for borrow in (lambda region: region.aperture(0, WASM_PAGE), lambda region: region.view()):
            creator = MemoryCreator()
            engine = new_engine(creator)
            store = wasmtime.Store(engine)
            instance = wasmtime.Instance(store, wasmtime.Module(engine, '(module (memory (export "memory") 1 2))'), [])
            region = Guest(creator, store, instance).region()
            address = region.address
            held = {
                "creator": creator,
                "engine": engine,
                "store": store,
                "region": region,
                "borrower": borrow(region),
            }
            del creator, engine, store, instance, region
            for name in order:
                assert access(address) == "rw-p", order
                if "borrower" in held:
                    borrower = held["borrower"]
                    assert (borrower if hasattr(borrower, "sum") else borrower.view())[0] == 0
                    del borrower
                del held[name]
                if not held.keys() & {"store", "borrower"}:
                    break
            held.clear()
            assert access(address) == "", order


def test_a_borrower_outlives_its_guest(load: Load, creator: MemoryCreator, access: Access) -> None:
    guest = load(ONE)
    guest.call("store_a", 5, 6)
    region = guest.region()
    aperture = region.aperture(0, page_size())
    guest.store.close()
    assert creator.regions() == []
    assert aperture.view()[5] == 6
    with pytest.raises(MemoryRefusedError, match="closed"):
        region.view()
    aperture.close()
    assert access(region.address) == ""


def test_a_region_closed_too_early_stays_with_its_guest(load: Load) -> None:
    guest = load(ONE)
    guest.region().close()
    guest.call("store_a", WASM_PAGE - 1, 3)
    assert guest.call("load_a", WASM_PAGE - 1) == 3
    assert guest.call("grow_a", 1) == -1


def test_a_failed_start_gives_its_memory_back(load: Load, creator: MemoryCreator) -> None:
    for fails in ("(func $f unreachable) (start $f)", '(data (i32.const 65536) "x")'):
        with pytest.raises(wasmtime.Trap):
            load(f"(module (memory 1) {fails})")
        gc.collect()
        assert creator.regions() == []


@pytest.mark.parametrize("last", ["config", "engine", "store", "module"])
def test_the_last_user_of_an_engine_gives_the_creator_back(last: str) -> None:
    creator = MemoryCreator()
    if last == "config":  # never used
        held = {"config": wasmtime.Config()}
        creator.install(held["config"])
    else:
        engine = new_engine(creator)
        held = {"engine": engine, "store": wasmtime.Store(engine), "module": wasmtime.Module(engine, ONE)}
        del engine
    for name in held.keys() - {last}:
        held.pop(name).close()
    assert creator in wasmtime_c.lent.values()
    held.pop(last).close()
    assert creator not in wasmtime_c.lent.values()


def test_one_creator_serves_several_engines(creator: MemoryCreator) -> None:
    engines = [new_engine(creator) for _ in range(3)]
    guests = []
    for engine in engines:
        store = wasmtime.Store(engine)
        guests.append(Guest(creator, store, wasmtime.Instance(store, wasmtime.Module(engine, ONE), [])))
    assert creator.regions() == [guest.region() for guest in guests]
    del engine, store
    engines.pop(0)
    guests.pop(0)
    store = wasmtime.Store(engines[0])
    wasmtime.Instance(store, wasmtime.Module(engines[0], ONE), [])
    assert len(creator.regions()) == 3


def test_threads_instantiate_at_once(creator: MemoryCreator, engine: wasmtime.Engine) -> None:
    module = wasmtime.Module(engine, SEVERAL)
    threads, rounds = 8, 50
    barrier = threading.Barrier(threads)

    def work(thread: int) -> int:
        barrier.wait()
        good = 0
        for i in range(rounds):
            store = wasmtime.Store(engine)
            store.set_epoch_deadline(1)
            guest = Guest(creator, store, wasmtime.Instance(store, module, []))
            value = (thread * rounds + i) % 255 + 1
            guest.call("grow_b", 3)
            guest.call("store_b", 5 * WASM_PAGE - 1, value)
            region = guest.region("b")
            good += int(region.view().sum()) == value and region.size == 5 * WASM_PAGE and guest.call("load_a", 0) == 0
        return good

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(work, range(threads))) == [rounds] * threads
    gc.collect()
    assert creator.regions() == []


@pytest.mark.parametrize(
    "last_words",
    [
        "",
        "import builtins; builtins.kept = (store, instance); del store, instance",
        "import sys; sys.kept = engine, store, instance, view",
        "cycle = [store, instance, aperture]; cycle.append(cycle); del store, instance, aperture",
        "del creator, region",
    ],
)
def test_the_interpreter_ends_quietly(
    last_words: str, python: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    run = python(
        f"""
import ctypes
import wasmtime
from wasmetal.memory.creator import MemoryCreator
from wasmetal.memory.wasmtime_engine import new_engine
creator = MemoryCreator()
engine = new_engine(creator)
store = wasmtime.Store(engine)
instance = wasmtime.Instance(store, wasmtime.Module(engine, '(module (memory (export "memory") 1))'), [])
region = creator.regions()[0]
aperture = region.aperture(0, region.size)
view = aperture.view()
{last_words}
"""
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
