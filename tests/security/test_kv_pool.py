"""The KV cache that guests share: each pays for whole pages, and none can take what others are guaranteed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.probe import PAGE, Probe
from tests.models.tiny import write_tiny_llama
from wasmetal import Limits, load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.host.errno import Errno
from wasmetal.models import Model
from wasmetal.models.lm.kv_cache import PAGE_SIZE
from wasmetal.models.lm.quota import Holder, Quota

CONTEXT = 8 * PAGE_SIZE
POOL = 2 * 8
"""Pages."""


@pytest.fixture(scope="module")
def model(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_tiny_llama(tmp_path_factory.mktemp("pool") / "tiny.gguf", context=CONTEXT)
    with load_model(path, device) as model:
        assert model.cache.free == POOL
        yield model


class Hoarder:
    """A guest that opens sessions."""

    def __init__(self, model: Model, limits: Limits | None = None) -> None:
        self.guest = Probe(model.device, models={"tiny": model}, limits=limits)
        self.guest.put(128, b"tiny")
        assert self.guest.model_open(128, 4, self.guest.OUT) == Errno.SUCCESS
        self._model = self.guest.u32()

    def open(self) -> int:
        assert self.guest.session_open(self._model, self.guest.OUT) == Errno.SUCCESS
        return self.guest.u32()

    def forward(self, session: int, count: int = 1) -> Errno:
        self.guest.put(PAGE, np.ones(count, np.uint32))
        return self.guest.session_forward(session, PAGE, count, 0)

    def hoard(self) -> int:
        """Sessions of one token each, until the last is refused; return how many it has."""
        count = 0
        while self.forward(self.open()) == Errno.SUCCESS:
            count += 1
        return count

    @property
    def charged(self) -> int:
        return self.guest.guest._account.device_bytes

    def __enter__(self) -> Hoarder:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.guest.close()


def test_tokens_are_charged_by_the_page(model: Model) -> None:
    """So a limit on device memory limits what a guest holds, and not only what it uses of it."""
    page = model.cache.page_bytes
    with Hoarder(model, Limits(device_bytes=3 * page)) as guest:
        assert guest.hoard() == 3
        assert guest.charged == 3 * page
        assert model.cache.free == POOL - 3
    assert model.cache.free == POOL


def test_a_hoarder_leaves_others_their_share(model: Model) -> None:
    """Others can have an equal share, whatever it does, and so can who loaded the model."""
    with Hoarder(model) as guest, Hoarder(model) as other, model.session() as mine:
        share = POOL // 3
        assert guest.hoard() == POOL - 2 * share
        assert other.forward(other.open(), share * PAGE_SIZE) == Errno.SUCCESS
        assert other.forward(other.open()) == Errno.NOMEM
        mine.forward([1] * share * PAGE_SIZE, None)
        with pytest.raises(OutOfDeviceMemoryError, match="no room for"):
            mine.forward([1], None)
    assert model.cache.free == POOL


def test_one_guest_may_fill_a_context(model: Model) -> None:
    """The default pool has two contexts: for one guest, and for who loaded the model."""
    with Hoarder(model) as guest, model.session() as mine:
        session = guest.open()
        assert guest.forward(session, CONTEXT) == Errno.SUCCESS
        assert guest.forward(guest.open()) == Errno.NOMEM
        mine.forward([1] * CONTEXT, None)


def test_a_guest_that_comes_late_gets_a_share_of_what_is_left(model: Model) -> None:
    """Pages are not taken back. Those that are given back are for those who have fewest."""
    with Hoarder(model) as guest:
        sessions = [guest.open() for _ in range(POOL)]
        held = sum(guest.forward(each) == Errno.SUCCESS for each in sessions)
        assert held == POOL // 2
        with Hoarder(model) as late:
            assert late.forward(late.open(), POOL // 4 * PAGE_SIZE) == Errno.SUCCESS
            assert late.forward(session := late.open()) == Errno.NOMEM
            for each in sessions[:2]:
                assert guest.guest.session_close(each) == Errno.SUCCESS
            assert guest.forward(sessions[-1]) == Errno.NOMEM
            assert late.forward(session) == Errno.SUCCESS


def test_a_guest_for_whom_there_is_no_page_is_refused(model: Model) -> None:
    with Hoarder(model) as guest, model.session() as mine:
        guest.hoard()
        mine.forward([1] * CONTEXT, None)
        with pytest.raises(OutOfDeviceMemoryError, match="no page for another guest: 0 of 16 are free, and 2"):
            Hoarder(model)
        gc.collect()
    with Hoarder(model) as guest:
        assert guest.forward(guest.open()) == Errno.SUCCESS


def test_shares_of_closed_guests_are_there_for_others(model: Model) -> None:
    for _ in range(POOL + 1):
        Hoarder(model).guest.guest.close()
    with Hoarder(model) as guest:
        assert guest.forward(guest.open(), CONTEXT) == Errno.SUCCESS


def test_a_larger_pool(cpu: Device, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=CONTEXT)
    with load_model(path, cpu, contexts=4) as model, Hoarder(model) as one, Hoarder(model) as two:
        for guest in (one, two):
            assert guest.forward(guest.open(), CONTEXT) == Errno.SUCCESS
    with pytest.raises(ModelError, match="a cache of 0 contexts"):
        load_model(path, cpu, contexts=0)


# ---- The rule


@given(st.lists(st.integers(0, 40), min_size=2, max_size=6), st.data())
def test_what_is_guaranteed_can_be_had(demands: list[int], data: st.DataObject) -> None:
    """Holders take and give back pages in any order. At any time, all who have less than a share can fill it up."""
    pages = 60
    quota = Quota(pages)
    holders = [quota.join(lambda nbytes: None) for _ in demands]
    share = pages // len(holders)

    def free() -> int:
        return pages - sum(holder.held for holder in holders)

    def take(holder: Holder, count: int) -> bool:
        if count > quota.room(holder, free()):
            return False
        holder.held += count
        return True

    for holder, demand in zip(holders, demands, strict=True):
        take(holder, demand)
        data.draw(st.sampled_from(holders)).held //= 2
    for holder in data.draw(st.permutations(holders)):
        if holder.held < share:
            assert take(holder, share - holder.held)
    assert free() >= 0


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_late_comers_divide_what_is_left(held: list[int]) -> None:
    """However much others hold, no free page is denied to everybody, and nobody gets a page that does not exist."""
    pages = 60
    quota = Quota(pages)
    holders = [quota.join(lambda nbytes: None) for _ in held]
    free = pages
    for holder, wanted in zip(holders, held, strict=True):
        holder.held = min(wanted, free)
        free -= holder.held
    assert all(0 <= quota.room(holder, free) <= free for holder in holders)
    poorest = min(holders, key=lambda holder: holder.held)
    assert quota.room(poorest, free) >= -(-free // len(holders))
