"""The function of `p2pc demo`.  It travels by value, so it stands alone."""

from __future__ import annotations


def estimate(seed: int, samples: int) -> int:
    """Throw `samples` darts at the unit square; return how many land within the quarter circle."""
    import random

    throw = random.Random(seed).random
    return sum(throw() ** 2 + throw() ** 2 <= 1.0 for _ in range(samples))
