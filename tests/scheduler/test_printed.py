"""What lost attempts have printed, in the owner's books."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.limits import PRINTED_BYTES_MAX, PRINTED_TAIL_BYTES_MAX
from p2pcompute.scheduler.printed import NOTHING, Printed, Tail

JOB = b"j" * 32


@given(pieces=st.lists(st.binary(min_size=1, max_size=9000), max_size=8))
def test_what_comes_piece_by_piece_is_the_end_of_the_whole(pieces: list[bytes]) -> None:
    whole, tail = b"", Tail()
    for piece in pieces:
        tail = tail.then(Tail(len(whole), piece))
        whole += piece
    assert tail.data == whole[-PRINTED_TAIL_BYTES_MAX:] and tail.end == len(whole)


def test_a_hole_is_not_hidden() -> None:
    assert Tail(0, b"one").then(Tail(9, b"nine")) == Tail(9, b"nine")
    assert Tail(0, b"one").then(Tail(0, b"two")) == Tail(0, b"two"), "a repeated message counts once"


def test_another_attempt_begins_anew() -> None:
    books = Printed()
    books.heard(JOB, 0, 1, (Tail(0, b"one"), Tail()))
    books.heard(JOB, 0, 2, (Tail(0, b"two"), Tail()))
    assert books.take(JOB, 0, 1) == NOTHING and books.take(JOB, 0, 2) == NOTHING, "the first question forgot it"
    books.heard(JOB, 0, 3, (Tail(0, b"three"), Tail()))
    assert books.take(JOB, 0, 3)[0].data == b"three"


def test_who_prints_much_takes_no_more_than_its_share() -> None:
    books = Printed()
    full = Tail(0, bytes(PRINTED_TAIL_BYTES_MAX))
    count = PRINTED_BYTES_MAX // (2 * PRINTED_TAIL_BYTES_MAX)
    for index in range(count + 3):
        books.heard(JOB, index, 1, (full, full))
    assert books.dropped_count == 3 and books.take(JOB, 2, 1) == NOTHING
    assert books.take(JOB, count + 2, 1) == (full, full)
