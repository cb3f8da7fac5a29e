"""Model text on a terminal: harmless and wrapped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from wasmetal.cli.terminal import Plain, Wrapped, harmless

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]


def wrapped(text: str | bytes, width: int, pieces: int = 1) -> str:
    shown: list[str] = []
    out = Wrapped(shown.append, lambda: width)
    data = text.encode() if isinstance(text, str) else text
    for at in range(0, len(data), pieces):
        out(data[at : at + pieces])
    out.close()
    return "".join(shown)


def test_no_control_character_is_left() -> None:
    for c in CONTROLS:
        for shown in (harmless(f"a{c}b"), wrapped(f"a{c}b", 40)):
            assert not set(CONTROLS) & set(shown)
            assert len(shown) == 3
    assert harmless("\x1b]0;title\x07\x7f\x9b31m") == "␛]0;title␇␡\ufffd31m"
    assert harmless("tab\tline\nü 🚀") == "tab\tline\nü 🚀"


def test_a_control_character_split_over_writes_is_still_one() -> None:
    shown: list[str] = []
    out = Plain(shown.append)
    for byte in "\x9b\x1bé".encode() + b"\xe2\x82":
        out(bytes([byte]))
    out.close()
    assert "".join(shown) == "\ufffd␛é\ufffd"


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("the quick brown fox", 10, "the quick\nbrown fox"),
        ("the quick brown fox", 9, "the quick\nbrown fox"),
        ("the quick brown fox", 8, "the\nquick\nbrown\nfox"),
        ("a  b\n\n    code  here\n", 40, "a  b\n\n    code  here\n"),
        ("one    two", 6, "one\ntwo"),
        ("abcdefghij xy", 4, "abcd\nefgh\nij\nxy"),
        ("a\tb", 40, "a       b"),
        ("ends in space \nnext", 40, "ends in space\nnext"),
        ("日本語の文", 5, "日本\n語の\n文"),
        ("x 日本", 4, "x 日\n本"),
        ("cafe\u0301 au lait", 7, "cafe\u0301 au\nlait"),
        ("\u0301\ta", 2, "\u0301\na"),
        (b"cut \xe2\x82", 40, "cut \ufffd"),
    ],
)
def test_wrapping(text: str | bytes, width: int, shown: str) -> None:
    assert wrapped(text, width) == shown
    assert wrapped(text, width, pieces=100) == shown


@given(st.text("ab \n\t日\u0301\x1b.", max_size=60), st.integers(2, 12), st.integers(1, 7))
def test_lines_fit_and_nothing_but_space_changes(text: str, width: int, pieces: int) -> None:
    shown = wrapped(text, width, pieces)
    assert all(cell_len(line.lstrip(" ")) <= width for line in shown.split("\n"))
    assert "".join(shown.split()) == "".join(harmless(text).split())
    assert shown.count("\n") >= text.count("\n")


def test_a_word_is_written_when_it_is_whole() -> None:
    shown: list[str] = []
    out = Wrapped(shown.append, lambda: 40)
    for piece in (b"hel", b"lo", b" wor", b"ld", b"\n"):
        out(piece)
    assert shown == ["hello", " world\n"]


def test_the_width_may_change_meanwhile() -> None:
    shown: list[str] = []
    widths = iter([40] * 3 + [5] * 100)
    out = Wrapped(shown.append, lambda: next(widths))
    out(b"a b c d e f g h i j k l m n\n")
    assert "\n" in "".join(shown)[:-1]
