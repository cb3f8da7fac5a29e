"""Spreading items over containers of limited size."""

from __future__ import annotations

from wasmetal.device.bins import Bins


def bins(most: int, available: int) -> Bins[str]:
    names = iter("abcdef"[:available])
    return Bins(10, most, lambda: next(names, None))


def test_an_item_goes_where_there_is_room() -> None:
    spread = bins(6, 6)
    assert [spread.add(i, nbytes) for i, nbytes in enumerate((6, 6, 4, 25, 1))] == ["a", "b", "a", "c", "b"]
    assert spread.remove(0) == "a"
    assert spread.add(5, 6) == "a"


def test_the_least_full_container_takes_what_has_no_room() -> None:
    for spread in (bins(2, 6), bins(6, 2)):
        assert [spread.add(i, nbytes) for i, nbytes in enumerate((9, 8, 5))] == ["a", "b", "b"]
        assert spread.bins == ["a", "b"]


def test_only_containers_with_items_are_used() -> None:
    spread = bins(6, 6)
    assert (spread.bins, spread.used) == (["a"], [])
    spread.add("long", 30)
    spread.add("short", 1)
    spread.remove("long")
    assert (spread.bins, spread.used) == (["a", "b"], ["b"])
    assert bins(6, 0).bins == []
