"""What is known of a node: one wire form, and hostile bytes raise one error."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.config import parse_labels
from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.host.interfaces import RUNTIMES
from p2pcompute.host.real_probe import MACHINE_NAMES
from p2pcompute.limits import (
    ATTRIBUTE_NAME_CHARS_MAX,
    ATTRIBUTE_TEXT_CHARS_MAX,
    ATTRIBUTE_WORDS_MAX,
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_MAX,
    QUESTION_WORD_CHARS_MAX,
    QUESTION_WORDS_MAX,
)
from p2pcompute.resources.attributes import (
    Attribute,
    Attributes,
    Value,
    age_s,
    decode_attributes,
    encode_attributes,
    is_believed,
    values,
)
from p2pcompute.wire import cbor

NOW = 1_800_000_000.0
WORD = st.text(st.characters(categories=["L", "N", "P"]), max_size=12)
VALUE: st.SearchStrategy[Value] = st.one_of(
    st.booleans(),
    st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    WORD,
    st.lists(WORD, max_size=5, unique=True).map(tuple),
)
MS = st.integers(min_value=0, max_value=10**10)
ATTRIBUTE = st.builds(
    lambda value, age, lifetime, accuracy: Attribute(
        value, NOW - age / 1000, None if lifetime is None else lifetime / 1000, accuracy
    ),
    VALUE,
    MS,
    st.none() | MS,
    st.none() | st.floats(min_value=0, allow_infinity=False, allow_nan=False),
)
NAME = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)
ATTRIBUTES = st.dictionaries(st.one_of(NAME, NAME.map(lambda name: f"label.{name}")), ATTRIBUTE, max_size=8).map(
    lambda found: {name: item for name, item in found.items() if name != "label"}
)


def plain(value: Value = 1, age_s: float = 0.0, lifetime_s: float | None = None) -> Attribute:
    return Attribute(value, NOW - age_s, lifetime_s)


@given(ATTRIBUTES)
def test_round_trip(attributes: dict[str, Attribute]) -> None:
    """A node is thought to have something else than it said, or to have measured it at another time."""
    found = decode_attributes(encode_attributes(attributes, NOW))
    assert list(found) == sorted(attributes)
    for name, item in attributes.items():
        other = found[name]
        assert (type(other.value), other.value) == (type(item.value), item.value)
        assert other.measured_s == pytest.approx(item.measured_s, abs=0.001)
        assert (other.lifetime_s, other.accuracy) == (item.lifetime_s, item.accuracy)


@given(st.binary(max_size=64))
def test_junk_raises_one_error(data: bytes) -> None:
    """A peer's bytes raise something that nobody catches."""
    with contextlib.suppress(RemoteProtocolError):
        decode_attributes(data)


@given(ATTRIBUTES, st.data())
def test_a_changed_byte_is_refused_or_still_attributes(attributes: dict[str, Attribute], data: st.DataObject) -> None:
    """As above, near what is valid; and what passes can be said again."""
    body = bytearray(encode_attributes(attributes, NOW))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode_attributes(bytes(body))
    except RemoteProtocolError:
        return
    encode_attributes(found, max([NOW, *(item.measured_s for item in found.values())]))


BAD: list[Any] = [
    [],
    {},
    [1],
    [-1, {}],
    [True, {}],
    [2**60, {}],
    [1, []],
    [1, {b"os": ["linux", 0, None, None]}],
    [1, {"Os": ["linux", 0, None, None]}],
    [1, {"a-b": ["linux", 0, None, None]}],
    [1, {"a..b": ["linux", 0, None, None]}],
    [1, {"": ["linux", 0, None, None]}],
    [1, {"a" * (ATTRIBUTE_NAME_CHARS_MAX + 1): [1, 0, None, None]}],
    [1, {"os": "linux"}],
    [1, {"os": ["linux", 0, None]}],
    [1, {"os": [None, 0, None, None]}],
    [1, {"os": [b"linux", 0, None, None]}],
    [1, {"os": ["li\x1bnux", 0, None, None]}],
    [1, {"os": ["x" * (ATTRIBUTE_TEXT_CHARS_MAX + 1), 0, None, None]}],
    [1, {"has": [["a", 1], 0, None, None]}],
    [1, {"has": [["a", "a"], 0, None, None]}],
    [1, {"has": [[["a"]], 0, None, None]}],
    [1, {"has": [[f"{n}" for n in range(ATTRIBUTE_WORDS_MAX + 1)], 0, None, None]}],
    [1, {"cpus": [float("nan"), 0, None, None]}],
    [1, {"cpus": [float("inf"), 0, None, None]}],
    [1, {"cpus": [2**63, 0, None, None]}],
    [1, {"cpus": [1, -1, None, None]}],
    [1, {"cpus": [1, 0.0, None, None]}],
    [1, {"cpus": [1, False, None, None]}],
    [1, {"cpus": [1, 0, -1, None]}],
    [1, {"cpus": [1, 0, 10**15, None]}],
    [1, {"cpus": [1, 0, None, 1]}],
    [1, {"cpus": [1, 0, None, -1.0]}],
    [1, {"cpus": [1, 0, None, float("inf")]}],
    [1, {"mem": [1, 0, None, None], "mem.free": [1, 0, None, None]}],
    [1, {f"n{number}": [1, 0, None, None] for number in range(ATTRIBUTES_MAX + 1)}],
    [1, {f"n{number}": ["x" * ATTRIBUTE_TEXT_CHARS_MAX, 0, None, None] for number in range(ATTRIBUTES_MAX)}],
]


@pytest.mark.parametrize("body", BAD, ids=lambda body: repr(body)[:40])
def test_each_rule_is_kept(body: Any) -> None:
    """A peer makes us remember or print what no node may say."""
    with pytest.raises(RemoteProtocolError):
        decode_attributes(cbor.encode(body))


def test_too_many_bytes_are_not_even_read() -> None:
    with pytest.raises(RemoteProtocolError, match="too many bytes"):
        decode_attributes(bytes(ATTRIBUTES_BYTES_MAX + 1))


def test_what_may_not_travel_is_our_own_error() -> None:
    """A bug here looks like a peer's fault there."""
    for attributes in ({"Name": plain()}, {"cpus": plain(float("nan"))}, {"a": plain(), "a.b": plain()}):
        with pytest.raises(LocalProtocolError):
            encode_attributes(attributes, NOW)


def test_ages_are_by_the_receivers_clock() -> None:
    """A node whose clock is an hour wrong seems to know only old things, or things of the future."""
    sent: Attributes = {"load": plain(1.0, age_s=3.0, lifetime_s=10.0)}
    received = decode_attributes(encode_attributes(sent, NOW), received_s=NOW - 3600)["load"]
    assert age_s(received, NOW - 3600) == pytest.approx(3.0)
    ahead = decode_attributes(encode_attributes({"load": plain(1.0, age_s=-50.0)}, NOW))["load"]
    assert age_s(ahead, NOW) == 0.0


def test_old_values_are_unknown() -> None:
    """A job is sent where memory was free a minute ago."""
    attributes = {
        "cpus": plain(4, age_s=9000.0),
        "load": plain(1.0, age_s=5.0, lifetime_s=10.0),
        "mem.free": plain(7, age_s=11.0, lifetime_s=10.0),
    }
    assert values(attributes, NOW) == {"cpus": 4, "load": 1.0}
    assert values(attributes, NOW, age_s_max=2.0) == {"cpus": 4}
    assert is_believed(attributes["load"], NOW, age_s_max=60.0)


def test_the_most_that_a_node_may_say_can_be_sent() -> None:
    """A node with long labels, a plugin that says much and a question about many programs can say nothing at all."""
    labels = parse_labels([f"{'k' * 30}{number}={chr(0x1F600) * 64}" for number in range(10, 42)])
    attributes = {f"label.{key}": plain(value, lifetime_s=1e7) for key, value in labels.items()}
    attributes |= {f"p{number}": plain("x" * 50, age_s=1e6, lifetime_s=1e7) for number in range(8 * 1024 // 54)}
    programs = tuple("p" * (QUESTION_WORD_CHARS_MAX - 2) + str(number) for number in range(10, 10 + QUESTION_WORDS_MAX))
    attributes |= {"has": plain((*RUNTIMES, *programs)), "python": plain(tuple(f"3.{minor}" for minor in range(32)))}
    attributes |= {name: plain(chr(0xE9) * 256) for name in ("gpu.model", "accepts", "name")}
    attributes |= {name: plain(2**60, age_s=1e6, lifetime_s=1e7) for name in MACHINE_NAMES if name not in attributes}
    assert len(decode_attributes(encode_attributes(attributes, NOW))) == len(attributes)
