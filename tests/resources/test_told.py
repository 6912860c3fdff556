"""What others were told about applications: a naive model says who must hear of a change."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.limits import QUESTION_WORDS_MAX, TOLD_MAX
from p2pcompute.resources.told import Told

A, B = b"a" * 32, b"b" * 32


def test_who_hears_of_what() -> None:
    """Broken: a job waits for a program that has been installed, or everybody is told what he never asked."""
    told = Told()
    told.note(A, ["ffmpeg", "gcc"], ["gcc", "uv"], 300.0)
    told.note(B, ["gcc"], ["gcc"], 200.0)
    assert told.words == ["ffmpeg", "gcc", "uv"]
    assert told.outdated({"ffmpeg": False, "gcc": True, "uv": True}) == []
    assert told.outdated({}) == [], "of what cannot be found out nothing is said"
    assert told.outdated({"ffmpeg": True, "gcc": True}) == [(A, ("ffmpeg", "gcc"))]
    assert told.outdated({"uv": False}) == [(A, ("ffmpeg", "gcc"))], "that was said without being asked for"
    assert [key for key, _words in told.outdated({"gcc": False})] == [A, B]
    told.note(A, ["ffmpeg"], ["ffmpeg"], 400.0)
    assert [key for key, _words in told.outdated({"gcc": False})] == [B, A], "what was said of gcc holds still"
    told.keep(250.0, lambda _key: True)
    assert len(told) == 1
    told.keep(250.0, lambda key: key != A)
    assert not len(told) and told.words == []


@given(
    st.lists(
        st.tuples(st.integers(0, 2 * TOLD_MAX), st.lists(st.integers(0, 99), unique=True, max_size=QUESTION_WORDS_MAX)),
        max_size=200,
    )
)
def test_bounds(asked: list[tuple[int, list[int]]]) -> None:
    """Peers that ask for ever more fill the memory, or the one that was told last hears of nothing."""
    told = Told()
    for peer, numbers in asked:
        words = [f"w{number}" for number in numbers]
        told.note(bytes([peer]), words, words, 1.0)
        assert len(told) <= TOLD_MAX
        changed = dict(told.outdated(dict.fromkeys(words, False)))
        assert not words or changed[bytes([peer])][: len(words)] == tuple(words)
        assert all(len(each) <= QUESTION_WORDS_MAX for each in changed.values())
