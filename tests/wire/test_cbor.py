"""Canonical CBOR: what is accepted has exactly one form, and junk never does more than raise one error."""

from __future__ import annotations

import contextlib
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.limits import CBOR_DEPTH_MAX
from p2pcompute.wire import cbor

INTEGERS = st.integers(min_value=-(2**64), max_value=2**64 - 1)
KEYS = st.one_of(INTEGERS, st.text(max_size=8), st.binary(max_size=8))
LEAVES = st.one_of(INTEGERS, st.text(max_size=20), st.binary(max_size=20), st.booleans(), st.none())


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    value = leaves
    for _ in range(CBOR_DEPTH_MAX - 1):
        value = st.one_of(leaves, st.lists(value, max_size=3), st.dictionaries(KEYS, value, max_size=3))
    return value


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max((depth(item) for item in value), default=0)
    if isinstance(value, dict):
        return 1 + max((depth(item) for item in value.values()), default=0)
    return 0


def same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from True and 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@given(nested(LEAVES))
def test_round_trip(value: Any) -> None:
    """A message arrives as another value than was sent."""
    assert same(cbor.decode(cbor.encode(value)), value)


@given(nested(st.one_of(LEAVES, st.floats(allow_nan=False))))
def test_floats_pass_only_where_asked_for(value: Any) -> None:
    """A float sneaks into a signed object, where two writers could disagree about its form."""
    data = cbor.encode(value)
    assert same(cbor.decode(data, allow_float=True), value)
    if "." in repr(value) or "inf" in repr(value) or "e" in repr(value):
        try:
            assert not _has_float(cbor.decode(data))
        except RemoteProtocolError:
            assert _has_float(value)


def _has_float(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_float, value))
    if isinstance(value, dict):
        return any(map(_has_float, value.values()))
    return isinstance(value, float)


@given(st.dictionaries(KEYS, st.integers(0, 9), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_order_of_insertion_does_not_matter(value: dict[Any, int], random: Any) -> None:
    """Two nodes write the same object differently, and its hash differs."""
    items = list(value.items())
    random.shuffle(items)
    assert cbor.encode(dict(items)) == cbor.encode(value)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff")
@example(b"\x9b" + b"\xff" * 8)
@example(b"\x5b" + b"\xff" * 8)
@example(b"\x81" * 5000)
def test_junk_raises_only_the_documented_error(data: bytes) -> None:
    """Bytes from a peer crash the node, or an accepted message has two forms."""
    try:
        value = cbor.decode(data, allow_float=True)
    except RemoteProtocolError:
        return
    assert cbor.encode(value) == data
    assert depth(value) <= CBOR_DEPTH_MAX


@given(nested(LEAVES), st.data())
def test_mutations_raise_or_are_canonical(value: Any, data: st.DataObject) -> None:
    """A flipped byte crashes the decoder."""
    raw = bytearray(cbor.encode(value))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        assert cbor.encode(cbor.decode(bytes(raw), allow_float=True)) == raw


@given(nested(LEAVES))
def test_every_cut_and_every_tail_is_refused(value: Any) -> None:
    """A truncated message passes for a shorter one."""
    raw = cbor.encode(value)
    for end in range(len(raw)):
        with pytest.raises(RemoteProtocolError):
            cbor.decode(raw[:end])
    with pytest.raises(RemoteProtocolError):
        cbor.decode(raw + b"\x00")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("1800", "an integer longer than it has to be"),
        ("190017", "an integer longer than it has to be"),
        ("1b00000000ffffffff", "an integer longer than it has to be"),
        ("5800", "a length longer than it has to be"),
        ("9f00ff", "a list of indefinite length"),
        ("bf0000ff", "a map of indefinite length"),
        ("5f4100ff", "bytes of indefinite length"),
        ("7f6161ff", "text of indefinite length"),
        ("a200010002", "one key twice"),
        ("a201000000", "keys out of order"),
        ("a262616100616100", "keys out of order"),
        ("c000", "a tag"),
        ("c249010000000000000000", "a bignum tag"),
        ("d81c8100", "a shared value"),
        ("d81d00", "a reference to a shared value"),
        ("f7", "undefined"),
        ("f818", "a simple value"),
        ("e0", "a simple value"),
        ("61ff", "text that is not UTF-8"),
        ("63eda080", "a surrogate in UTF-8"),
        ("a1f600", "null as a key"),
        ("a1f400", "a boolean as a key"),
        ("a18000", "a list as a key"),
        ("a1a000", "a map as a key"),
        ("1c", "a reserved head"),
    ],
)
def test_other_forms_are_refused(data: str, what: str) -> None:
    """One object has two encodings, so a copy with another hash passes the same signature check."""
    with pytest.raises(RemoteProtocolError):
        cbor.decode(bytes.fromhex(data))


@pytest.mark.parametrize("data", ["fb3ff0000000000000", "fa3f800000", "f97e01", "fb7ff8000000000000", "a1f93c0000"])
def test_floats_have_one_form(data: str) -> None:
    """1.0 can be written in three widths."""
    with pytest.raises(RemoteProtocolError):
        cbor.decode(bytes.fromhex(data), allow_float=True)


def test_depth_is_bounded_in_values_and_not_in_keys() -> None:
    """Deep nesting exhausts the stack of the decoder."""
    value: Any = 0
    for _ in range(CBOR_DEPTH_MAX):
        value = [value]
    assert cbor.decode(cbor.encode(value)) == value
    with pytest.raises(RemoteProtocolError):
        cbor.decode(cbor.encode([value]))
    assert cbor.decode(cbor.encode([[0], [1]]), depth_max=2) == [[0], [1]]


def test_a_claimed_length_costs_nothing() -> None:
    """Nine bytes make us reserve gigabytes."""
    for head in (b"\x9b", b"\xbb", b"\x5b", b"\x7b"):
        with pytest.raises(RemoteProtocolError):
            cbor.decode(head + (2**40).to_bytes(8, "big"))


def test_our_own_mistakes_are_ours() -> None:
    """A bug of ours is blamed on the peer."""
    with pytest.raises(LocalProtocolError):
        cbor.encode(object())


def test_agrees_with_plain_cbor2_on_the_bytes() -> None:
    """Other implementations cannot read us."""
    value = {"b": [1, b"x"], "aa": None, 3: True}
    assert cbor2.loads(cbor.encode(value)) == value


@pytest.mark.parametrize("size", [0, 16_383, 16_384, 65_535, 65_536, 524_288])
@pytest.mark.parametrize("rest", [[], [65, 7], [[1, b"x"], {"b": 1, "a": 2.5}, "t", None], [0] * 22, [0] * 23])
def test_long_bytes_at_the_end_are_written_as_cbor2_writes_them(size: int, rest: list[Any]) -> None:
    """Frames with chunks are refused by every other implementation."""
    value = [*rest, bytes(size)]
    assert cbor.encode(value) == cbor2.dumps(value, canonical=True)
    assert cbor.decode(cbor.encode(value), allow_float=True) == value
    with pytest.raises(RemoteProtocolError):
        cbor.decode(cbor2.dumps(value)[:-1])
    with pytest.raises(LocalProtocolError):
        cbor.encode([object(), bytes(size)])
