"""What peers say of themselves: only what is as it should be is kept."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.limits import HELLO_SLOTS_MAX, HELLO_TEXT_CHARS_MAX
from p2pcompute.node.hellos import checked_hello

GOOD: dict[str, Any] = {
    "boot": b"eight by",
    "build": "0.1.0",
    "python": [3, 11],
    "slots": 4,
    "port": 7878,
    "keeps": True,
    "log": bytes(16),
    "proofs": b"",
    "machine": "linux x86_64",
}


def test_what_nodes_say_is_kept_and_nothing_else() -> None:
    assert checked_hello({**GOOD, "name": "ada", "chain": [], "of another build": 1}) == (GOOD, 0)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("boot", [[1], "x", None, bytes(33)]),
        ("build", ["\x1b]0;PWN\x07", "9" * (HELLO_TEXT_CHARS_MAX + 1), {"a": [1]}, None, "", "two\nlines"]),
        ("python", [["\x1b[31mEVIL", "\x07"], [-1, 0], [3], [3, 11, 2], [True, 1], [[], {}], "3.11", [1000, 0]]),
        ("slots", [-5, -1, 2**62, HELLO_SLOTS_MAX + 1, True, "4", None, 1.5]),
        ("port", [-1, 65536, 2**40, "x", True]),
        ("keeps", [{}, 1, None]),
        ("log", [[], "x", bytes(33)]),
        ("proofs", [5, None, bytes(33)]),
        ("machine", [5, "\x1b[2J", "x" * (HELLO_TEXT_CHARS_MAX + 1), ""]),
    ],
)
def test_a_wrong_field_is_left_out_and_counted(field: str, values: list[Any]) -> None:
    for value in values:
        left = {word: GOOD[word] for word in GOOD if word != field}
        assert checked_hello({**GOOD, field: value}) == (left, 1), value
