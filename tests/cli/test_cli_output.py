"""Sizes, pairs and tables: what options mean and how results look when piped."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wasmetal.cli.options import OptionError, pairs, size
from wasmetal.cli.output import in_bytes, print_table

BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
DECIMAL = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@given(st.integers(0, 10**6), st.sampled_from(sorted(BINARY | DECIMAL)), st.sampled_from(["", " "]))
def test_size_is_number_times_unit(number: int, unit: str, space: str) -> None:
    assert size(f"{number}{space}{unit}") == number * (BINARY | DECIMAL)[unit]
    assert size(f"{number}{space}{unit.lower()}") == number * (BINARY | DECIMAL)[unit]


@given(st.integers(0, 2**62))
def test_size_without_unit_is_exact(nbytes: int) -> None:
    assert size(str(nbytes)) == nbytes


@given(st.text())
def test_size_of_anything_else_is_refused_in_one_line(text: str) -> None:
    assume(not set(text) & set("0123456789"))
    with pytest.raises(OptionError) as refusal:
        size(text)
    assert repr(text) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_size_takes_fractions() -> None:
    assert size("1.5GiB") == 3 * 2**29


@given(st.integers(0, 2**49))
def test_size_reads_back_what_is_printed(nbytes: int) -> None:
    assert abs(size(in_bytes(nbytes)) - nbytes) <= max(1, nbytes / 1000)


def test_pairs_split_at_the_first_separator() -> None:
    assert pairs(["a=b=c", "d=e"], "=", "K=V") == [("a", "b=c"), ("d", "e")]
    assert pairs(["/tmp::/data"], "::", "H::G") == [("/tmp", "/data")]
    assert pairs(None, "=", "K=V") == []


@pytest.mark.parametrize("value", ["", "a", "a=", "=a", "="])
def test_pairs_need_both_sides(value: str) -> None:
    with pytest.raises(OptionError, match="K=V"):
        pairs([value], "=", "K=V")


def test_piped_table_has_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "long heading", "c"), [("1", "2", "3"), ("[bold]", "x", "")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["a       long heading  c", "1       2             3", "[bold]  x"]
