"""The closed form of values: what it carries comes back the same, and nothing else comes back at all."""

from __future__ import annotations

import pickle
import struct
import time
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.execution import codec
from p2pcompute.execution.codec import HEAD, CannotDecode, CannotEncode, decode, encode, is_encoded

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
)
keys = st.text() | st.integers() | st.binary() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner) | st.sets(keys) | st.frozensets(keys)
    ),
    max_leaves=20,
)


@given(values)
def test_round_trip(value: Any) -> None:
    data = encode(value)
    again = decode(data)
    assert again == value and type(again) is type(value) and encode(again) == data
    assert is_encoded(data) and not is_encoded(pickle.dumps(value, 5))


@given(st.binary() | st.lists(st.sampled_from([*range(256)]), max_size=40).map(bytes))
def test_junk(data: bytes) -> None:
    """Whatever bytes come, a value or the documented error."""
    for head in (HEAD, HEAD + b"\xd9\x70", HEAD + b"\x82", b""):
        try:
            decode(head + data)
        except CannotDecode:
            continue


@given(values, st.data())
def test_damaged(value: Any, draw: st.DataObject) -> None:
    data = bytearray(encode(value))
    data[draw.draw(st.integers(3, len(data) - 1)) if len(data) > 3 else 2] = draw.draw(st.integers(0, 255))
    try:
        decode(bytes(data))
    except CannotDecode:
        return


def test_bombs() -> None:
    """Short bytes that stand for much, or take long, are refused at once."""
    started = time.process_time()
    deep = HEAD + b"\x81" * 100_000 + b"\xf6"
    long = HEAD + b"\x9b" + struct.pack(">Q", 1 << 40) + b"\xf6"
    number = HEAD + b"\xc2\x5a" + struct.pack(">I", 1 << 20) + b"\xff" * (1 << 20)
    shaped = [b"\x63<f8", b"\x82\x1b" + struct.pack(">Q", 1 << 62) + b"\x1b" + struct.pack(">Q", 1 << 62), b"\x40"]
    lying = HEAD + b"\xd9" + struct.pack(">H", 28727) + b"\x83" + b"".join(shaped)
    objects = lying.replace(b"\x63<f8", b"\x62|O")
    twins = {n * (2**61 - 1): None for n in range(1, 3)}
    colliding = HEAD + b"\xb9\x27\x10" + b"".join(encode(n * (2**61 - 1))[3:] + b"\xf6" for n in range(10_000))
    for bomb in (deep, long, number, lying, objects, colliding, HEAD + b"\xc4\x82\x00\x01", HEAD + b"\xd8\x1d\x00"):
        with pytest.raises(CannotDecode):
            decode(bomb)
    assert time.process_time() - started < 5, "a bomb takes long"
    assert decode(encode(twins)) == twins


@dataclass
class Point:
    x: int


Pair = namedtuple("Pair", "a b")


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (Point(1), "dataclasses.asdict"),
        (Pair(1, 2), "tuple(value)"),
        (Colour.RED, "value.value"),
        (OrderedDict(a=1), "list(value)"),
        (Fraction(1, 3), "numbers"),
        (len, "numbers"),
        ([{"deep": Point(1)}], "dataclasses.asdict"),
        (range(3), "list(value)"),
    ],
)
def test_what_is_no_data(value: Any, fix: str) -> None:
    """It says what it is and what to return instead; types that are nearly data are not passed off as data."""
    with pytest.raises(CannotEncode) as raised:
        encode(value)
    assert fix in str(raised.value), str(raised.value)


def test_numbers_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lists of numbers are fast, and come back as what they were."""
    for value in (
        [0.1] * 16,
        [float("inf"), -0.0] * 10,
        list(range(-9, 9)),
        [2**63, *range(20)],
        [True] * 20,
        (1,) * 17,
    ):
        again = decode(encode(value))
        assert again == value and [type(item) for item in again] == [type(item) for item in value]
    assert len(encode([1.5] * 1000)) < 8100
    with pytest.raises(CannotDecode):
        decode(HEAD + b"\xd9" + struct.pack(">H", codec._FLOATS) + b"\x43abc")
    monkeypatch.setattr(codec, "_BYTES_MAX", 1 << 16)
    shared = ["x" * 1000] * 100
    with pytest.raises(CannotEncode, match="write it to a file"):
        encode([[shared] * 2] * 100)


def test_loops_and_depth() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CannotEncode, match="holds itself"):
        encode(loop)


def test_moments() -> None:
    for moment in (datetime(2024, 1, 2, 3, 4, 5, 6, UTC), date(2024, 2, 29), clock(1, 2, 3, fold=1), timedelta(-1, 5)):
        assert decode(encode(moment)) == moment
    import zoneinfo

    try:
        named = datetime(2024, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    except zoneinfo.ZoneInfoNotFoundError:
        return
    with pytest.raises(CannotEncode, match="UTC"):
        encode(named)


def test_arrays() -> None:
    numpy = pytest.importorskip("numpy")
    for array in (
        numpy.arange(24, dtype="f4").reshape(2, 3, 4)[:, ::2],
        numpy.array(5, dtype=">i2"),
        numpy.zeros((0, 3)),
        numpy.array(["a", "längst"]),
        numpy.array([True, False]),
        numpy.array(["2024-01-01"], dtype="M8[ns]"),
    ):
        again = decode(encode({"a": [array]}))["a"][0]
        assert again.dtype == array.dtype and again.shape == array.shape and (again == array).all()
        assert again.flags.writeable and encode(again) == encode(array)
    for scalar in (numpy.float32(1.5), numpy.int64(-3), numpy.bool_(True), numpy.str_("x")):
        again = decode(encode(scalar))
        assert again == scalar and type(again) is type(scalar)
    for bad in (numpy.array([object()]), numpy.zeros(2, dtype="i4,f4"), numpy.ma.masked_array([1])):
        with pytest.raises(CannotEncode):
            encode(bad)


def test_frames() -> None:
    pandas = pytest.importorskip("pandas", reason="runs with pandas, which dev.py test installs")
    frame = pandas.DataFrame(
        {"n": [1, 2], "x": [0.5, None], "text": ["a", None]}, index=pandas.Index(["p", "q"], name="key")
    )
    pandas.testing.assert_frame_equal(decode(encode(frame)), frame)
    plain = pandas.DataFrame({"n": [1, 2]})
    pandas.testing.assert_frame_equal(decode(encode(plain)), plain)
    pandas.testing.assert_series_equal(decode(encode(frame["n"])), frame["n"])
    with pytest.raises(CannotEncode, match="neither numbers nor text"):
        encode(pandas.DataFrame({"o": [object()]}))
    with pytest.raises(CannotDecode):
        decode(HEAD + b"\xd9" + struct.pack(">H", codec._FRAME) + b"\x83\x81\x61a\x81\x81\x01\xf6")
