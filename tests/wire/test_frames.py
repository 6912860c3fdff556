"""Frames: the cuts of the network do not matter, and a hostile length ends the stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.limits import FRAME_BYTES_MAX
from p2pcompute.wire.frames import FrameReader, frame


def test_cut_at_every_byte() -> None:
    """A frame is lost or torn when the network cuts inside its length."""
    bodies = [b"a", b"bc" * 40, b"\x00\x00\x00\x01", b"d"]
    stream = b"".join(map(frame, bodies))
    for cut in range(len(stream) + 1):
        reader = FrameReader()
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == bodies


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.data())
def test_any_cuts(bodies: list[bytes], data: st.DataObject) -> None:
    """Some split of the stream gives other frames."""
    stream = b"".join(map(frame, bodies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = FrameReader()
    got: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:end])
    assert got == bodies


def test_byte_by_byte() -> None:
    """A slow sender breaks the reader."""
    reader = FrameReader()
    got: list[bytes] = []
    for byte in frame(b"hello") + frame(b"world"):
        got += reader.feed(bytes([byte]))
    assert got == [b"hello", b"world"]


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_junk_raises_only_the_documented_error(chunks: list[bytes]) -> None:
    """Junk on a channel crashes the node, or makes it hoard."""
    reader = FrameReader(frame_bytes_max=64)
    try:
        for chunk in chunks:
            for body in reader.feed(chunk):
                assert 0 < len(body) <= 64
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            reader.feed(b"")


@pytest.mark.parametrize("size", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_hostile_lengths_are_refused_before_the_body_comes(size: int) -> None:
    """Four bytes make us wait for, and keep, four gigabytes."""
    with pytest.raises(RemoteProtocolError):
        FrameReader().feed(size.to_bytes(4, "big"))


def test_largest_frame_passes_and_a_larger_one_is_our_bug() -> None:
    """The limit differs between the two ends."""
    body = bytes(FRAME_BYTES_MAX)
    assert FrameReader().feed(frame(body)) == [body]
    for wrong in (b"", body + b"x"):
        with pytest.raises(LocalProtocolError):
            frame(wrong)


@given(st.lists(st.integers(1, 70_000), max_size=4), st.lists(st.integers(1, 40_000), min_size=1, max_size=8))
def test_large_frames_in_pieces_of_any_size(sizes: list[int], pieces: list[int]) -> None:
    """A chunk of a blob comes torn, or its pieces in another order."""
    bodies = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    stream = b"".join(map(frame, bodies))
    reader = FrameReader()
    got: list[bytes] = []
    position, turn = 0, 0
    while position < len(stream):
        got += reader.feed(stream[position : position + pieces[turn % len(pieces)]])
        position += pieces[turn % len(pieces)]
        turn += 1
    assert got == bodies
    assert reader.feed(b"") == []


def test_a_sender_of_single_bytes_costs_no_more_memory_than_it_sends() -> None:
    """A megabyte sent byte by byte makes us hold fifty."""
    reader = FrameReader()
    for byte in frame(bytes(20_000))[:-1]:
        reader.feed(bytes([byte]))
    assert len(reader._pieces) == 1
    assert reader.feed(b"\0") == [bytes(20_000)]
