"""The small generator of simulated hosts."""

from __future__ import annotations

import random
import statistics
import sys
from typing import cast

from p2pcompute.simulation.host import SmallRandom


def test_it_offers_what_the_library_offers() -> None:
    """If it broke: code that draws in another way would run on real hosts only."""
    small = cast(random.Random, SmallRandom("seed"))
    draws = [small.random() for _ in range(10_000)]
    assert 0 <= min(draws) < 0.01 and 0.99 < max(draws) < 1 and abs(statistics.fmean(draws) - 0.5) < 0.02
    assert sorted(small.sample(range(10), 10)) == list(range(10))
    numbers = list(range(50))
    small.shuffle(numbers)
    assert sorted(numbers) == list(range(50)) != numbers
    assert all(3 <= small.randint(3, 5) <= 5 and 0 <= small.randrange(7) < 7 for _ in range(100))
    assert small.choice("abc") in "abc" and len(small.choices("abc", k=4)) == 4 and len(small.randbytes(33)) == 33
    assert abs(statistics.fmean(small.expovariate(2.0) for _ in range(5000)) - 0.5) < 0.05
    assert abs(statistics.fmean(small.normalvariate(1.0, 1.0) for _ in range(5000)) - 1.0) < 0.1
    assert small.lognormvariate(0, 1) > 0 and 1 <= small.uniform(1, 2) <= 2 and isinstance(small.gauss(0, 1), float)
    assert 0 <= small.getrandbits(3) < 8 and small.getrandbits(200) < 1 << 200


def test_streams_are_independent_of_each_other_and_the_same_for_one_seed() -> None:
    one, same, other = SmallRandom("a"), SmallRandom("a"), SmallRandom("b")
    drawn = [one.getrandbits(64) for _ in range(100)]
    assert drawn == [same.getrandbits(64) for _ in range(100)]
    assert not set(drawn) & {other.getrandbits(64) for _ in range(100)}
    assert len(set(drawn)) == 100
    assert sys.getsizeof(one) < 100
