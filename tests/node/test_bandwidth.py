"""What is said of bandwidth is what transfers got, and as old as they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.limits import BLOB_CHUNK_BYTES
from p2pcompute.node.bandwidth import SAMPLE_BYTES_MIN, SAMPLE_S, SAMPLES_MAX, BandwidthMeter

MB = 1_000_000


def test_transfers_that_overlap_count_together() -> None:
    meter = BandwidthMeter()
    assert meter.measured() is None
    meter.began(10.0)
    meter.began(10.5)
    meter.ended(11.0, 3 * MB)
    assert meter.measured() is None, "more is under way"
    meter.ended(12.0, 5 * MB)
    found = meter.measured()
    assert found is not None and (found.bytes_per_s, found.accuracy, found.at) == (4 * MB, None, 12.0)
    meter.began(100.0)
    meter.ended(102.0, 4 * MB)
    found = meter.measured()
    assert found is not None and (found.bytes_per_s, found.accuracy, found.at) == (3 * MB, 1 * MB, 102.0)


def test_what_is_small_or_fails_says_nothing() -> None:
    meter = BandwidthMeter()
    for size in (SAMPLE_BYTES_MIN - 1, 0):
        meter.began(1.0)
        meter.ended(2.0, size)
    meter.began(3.0)
    meter.ended(3.0, 100 * MB)
    assert meter.measured() is None


def test_a_long_transfer_is_known_before_its_end() -> None:
    meter = BandwidthMeter()
    meter.began(0.0)
    for second in range(1, 100):
        meter.began(float(second))
        meter.ended(float(second), MB)
        assert (meter.measured() is not None) == (second >= SAMPLE_S)
    found = meter.measured()
    assert found is not None and found.bytes_per_s == pytest.approx(MB) and found.at >= 95


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans(), st.integers(0, BLOB_CHUNK_BYTES * 4)), max_size=100))
def test_any_course_of_transfers_gives_a_rate_that_can_be(events: list[tuple[float, bool, int]]) -> None:
    meter, now, under_way = BandwidthMeter(), 0.0, 0
    for pause_s, begins, size in events:
        now += pause_s
        if begins or not under_way:
            meter.began(now)
            under_way += 1
        else:
            meter.ended(now, size)
            under_way -= 1
    found = meter.measured()
    assert len(meter._samples) <= SAMPLES_MAX
    assert found is None or (found.bytes_per_s > 0 and found.at <= now and (found.accuracy or 0) >= 0)
