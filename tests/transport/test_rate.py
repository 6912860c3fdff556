"""Rate limits per source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.transport.rate import Crowd, TokenBuckets, source_of


def test_a_burst_passes_then_only_the_rate() -> None:
    buckets = TokenBuckets(rate_per_s=10, burst=5, sources_max=8)
    assert [buckets.take("a", 0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert buckets.refused == 2
    assert not buckets.take("a", 0.05)
    assert buckets.take("a", 0.15)
    assert buckets.take("b", 0.15), "another source has its own"


def test_a_crowd_of_one_source_keeps_no_other_out() -> None:
    crowd: Crowd[int] = Crowd(3)
    assert [crowd.add(number, "greedy") for number in range(3)] == [None] * 3
    assert crowd.add(10, "other") == 0, "the oldest of who has most"
    assert [crowd.add(number, "greedy") for number in (3, 4, 5)] == [1, 2, 3], "its own, and never the other's"
    crowd.discard(10)
    crowd.discard(10)
    assert len(crowd) == 2 and crowd.add(6, "greedy") is None


def test_a_full_table_forgets_the_least_recently_seen_and_blocks_nobody() -> None:
    buckets = TokenBuckets(rate_per_s=1, burst=1, sources_max=2)
    assert buckets.take("a", 0.0) and buckets.take("b", 0.0)
    assert not buckets.take("a", 0.0)
    assert buckets.take("c", 0.0)
    assert len(buckets) == 2
    assert not buckets.take("a", 0.0), "seen after b, so still known"
    assert buckets.take("b", 0.0), "forgotten, so full again"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=200))
def test_no_source_ever_gets_more_than_burst_and_rate(steps: list[tuple[str, float]]) -> None:
    buckets = TokenBuckets(rate_per_s=3, burst=4, sources_max=3)
    now, taken = 0.0, dict.fromkeys("abc", 0)
    for source, delay in steps:
        now += delay
        taken[source] += buckets.take(source, now)
    assert all(count <= 4 + 3 * now + 1e-6 for count in taken.values())


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="needed"):
        TokenBuckets(rate_per_s=0, burst=1, sources_max=1)


def test_sources_are_ipv4_addresses_ipv6_networks_and_loopback_ports() -> None:
    assert source_of("192.0.2.1", 1) == source_of("192.0.2.1", 2)
    assert source_of("127.0.0.1", 1) != source_of("127.0.0.1", 2)
    assert source_of("::1", 1) != source_of("::1", 2)
    assert source_of("2001:db8:1:2::5", 1) == source_of("2001:db8:1:2:ffff::1", 9)
    assert source_of("2001:db8:1:2::5", 1) != source_of("2001:db8:1:3::5", 1)
    assert source_of("2001:db8::1", 1) == source_of("2001:db8:0:0:9::1", 1)
