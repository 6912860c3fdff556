"""Output of tasks on a terminal: text, and nothing that commands the terminal."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pcompute.cli.terminal_text import SafeStream, safe_text


class Screen(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m\n", "red\n"),
        ("a\x1b[2J\x1b[Hb", "ab"),
        ("\x1b]0;title\x07x\x1b]8;;http://x\x1b\\y", "xy"),
        ("\x1bP1$qm\x1b\\z\x1b_apc\x1b\\", "z"),
        ("\x9b5nq\x85", "�5nq�"),
        ("safe\u202eelif.txt\u2066", "safe�elif.txt�"),
        ("over\rwritten\b\b\x00\x7f\ttab", "overwritten\ttab"),
        ("\x1bcreset \x1b(0drawn", "reset drawn"),
        ("ünï → 漢字 é", "ünï → 漢字 é"),
    ],
)
def test_what_is_left(text: str, shown: str) -> None:
    assert safe_text(text) == shown


PIECES = st.sampled_from(
    [b"\xc2", b"\x9b", b"\x00", b"\x1b[0m", b"\x1b", b"[", b"m", b"\xe2", b"\x80", b"\x81", b"\xae"]
)


@given(st.binary() | st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 200)))
@example(b"\xc2\x00\x9b", [])
@example(b"\xc2\xc2\x9b\x9b", [2])
@example(b"\xc2\x1b[0m\x9b", [4])
def test_cut_anywhere(data: bytes, cuts: list[int]) -> None:
    """However the bytes come, no control character but line ends and tabs is left, and pipes get all."""
    screen, pipe = Screen(), io.BytesIO()
    safe, plain = SafeStream(screen), SafeStream(pipe)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(places):
        safe.write(data[start:end])
        plain.write(data[start:end])
    assert pipe.getvalue() == data
    shown = screen.getvalue()
    assert not any(byte < 0x20 and byte not in b"\n\t" for byte in shown) and b"\x7f" not in shown
    assert re.search(rb"\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]", shown) is None


def test_an_unfinished_sequence_hides_nothing_of_others() -> None:
    screen = Screen()
    stream = SafeStream(screen)
    stream.write(b"one\x1b]0;")
    stream.begin()
    stream.write(b"two\n")
    assert screen.getvalue() == b"onetwo\n"
    stream.write(b"\x1b]" + b"x" * 10_000 + b"\nthree\n")
    assert screen.getvalue().endswith(b"\nthree\n"), "something without an end hides all that comes"
