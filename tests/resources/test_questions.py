"""Questions between nodes: hostile bodies raise one error, and what is kept of others stays within its bounds."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError, UsageError
from p2pcompute.limits import (
    ATTRIBUTES_BYTES_MAX,
    EXPRESSION_CHARS_MAX,
    QUESTION_WAIT_S_MAX,
    QUESTION_WORD_CHARS_MAX,
    QUESTION_WORDS_MAX,
)
from p2pcompute.resources.attributes import Attribute
from p2pcompute.resources.known import Knowledge, KnownNodes
from p2pcompute.resources.questions import (
    Query,
    Verdict,
    condition,
    describe_body,
    parse_changed,
    parse_describe,
    parse_description,
    parse_query,
    parse_verdict,
    query_body,
    ranking,
)

ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=6,
)
PARSERS = (parse_changed, parse_describe, parse_description, parse_query, parse_verdict)


@given(st.sampled_from(PARSERS), ANY)
def test_junk_raises_one_error(parse: Any, body: Any) -> None:
    """A peer's message ends the node's task, or is believed."""
    with contextlib.suppress(RemoteProtocolError):
        parse(body)


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (parse_describe, [["x"] * (QUESTION_WORDS_MAX + 1)]),
        (parse_describe, [["x" * (QUESTION_WORD_CHARS_MAX + 1)]]),
        (parse_describe, [[b"x"]]),
        (parse_changed, [["x"] * (QUESTION_WORDS_MAX + 1), b""]),
        (parse_changed, [["x"], bytes(ATTRIBUTES_BYTES_MAX + 1)]),
        (parse_changed, [["x"]]),
        (parse_description, [bytes(ATTRIBUTES_BYTES_MAX + 1)]),
        (parse_description, [None]),
        (parse_query, ["x" * (EXPRESSION_CHARS_MAX + 1), "", 0]),
        (parse_query, ["true", "x" * (EXPRESSION_CHARS_MAX + 1), 0]),
        (parse_query, ["true", None, 0]),
        (parse_query, ["true", "", int(QUESTION_WAIT_S_MAX * 1000) + 1]),
        (parse_query, ["true", "", -1]),
        (parse_query, ["true", "", True]),
        (parse_verdict, [1, b""]),
        (parse_verdict, [0, b"x"]),
        (parse_verdict, [True, b"x"]),
        (parse_verdict, [3, b""]),
        (parse_verdict, [1, bytes(ATTRIBUTES_BYTES_MAX + 1)]),
    ],
)
def test_each_rule_is_kept(parse: Any, body: Any) -> None:
    """A peer makes us look for ten thousand programs, wait for a year or keep a megabyte."""
    with pytest.raises(RemoteProtocolError):
        parse(body)


def test_what_is_sent_is_understood() -> None:
    assert parse_describe(describe_body(["ffmpeg", "sh", "sh"])) == ("ffmpeg", "sh")
    assert parse_describe(describe_body(["x" * 65, *map(str, range(99))])) == tuple(map(str, range(QUESTION_WORDS_MAX)))
    query = Query(expression=condition("cpus>=8 && has=gcc"), rank=ranking("has=ffmpeg"))
    assert parse_query(query_body(query, 1.5)) == ("cpus>=8 && has=gcc", "has=ffmpeg", 1.5)
    assert query.names == ("cpus", "has") and query.words == ("gcc", "ffmpeg")
    assert parse_query(query_body(Query(expression=condition("cpus>=8")), 0)) == ("cpus>=8", "", 0.0)
    assert parse_verdict([int(Verdict.of(None)), b""]) == (Verdict.UNKNOWN, b"")
    assert parse_verdict([int(Verdict.of(True)), b"x"]) == (Verdict.TRUE, b"x")


def test_people_are_told_what_cannot_be() -> None:
    """A question that no node could ever answer costs its time."""
    for text in ("cpuss>=4", "cpus", "cpus>="):
        with pytest.raises(UsageError):
            condition(text)
    with pytest.raises(UsageError):
        ranking("name")
    assert ranking("-load").rank({"load": 2.0}) == -2.0


# --- what is kept ---------------------------------------------------------------------------------


def knowledge(size: int = 100, heard_s: float = 0.0, words: tuple[str, ...] = (), **values: Any) -> Knowledge:
    attributes = {name: Attribute(value, 1000.0, 60.0) for name, value in values.items()}
    return Knowledge(attributes, heard_s, frozenset(words), size)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 400), st.booleans()), max_size=60))
def test_bounds_of_what_is_known(steps: list[tuple[int, int, bool]]) -> None:
    """Members with many names, or with long descriptions, make a node grow."""
    known = KnownNodes(count_max=5, bytes_max=1000)
    model: dict[bytes, int] = {}
    for number, size, is_put in steps:
        key = bytes([number])
        model.pop(key, None)
        if is_put:
            known.put(key, knowledge(size))
            model[key] = size
            while len(model) > 5 or sum(model.values()) > 1000:
                del model[next(iter(model))]
        else:
            known.forget(key)
        known.check_invariants()
        assert list(known) == list(model)
    known.clear()
    known.check_invariants()


def test_an_application_that_was_not_asked_for_is_unknown() -> None:
    """A node is said not to have what nobody asked it for."""
    said = knowledge(has=("ffmpeg",), cpus=4, words=("ffmpeg", "sox"))
    assert said.view(1000.0, ["ffmpeg"])["has"] == ("ffmpeg",)
    assert said.view(1000.0, ["sox"])["has"] == ("ffmpeg",)
    assert "has" not in said.view(1000.0, ["sox", "gcc"])
    assert said.view(1061.0) == {}
