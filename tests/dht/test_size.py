"""The estimate of a group's size: if it were far off, records would be where nobody looks, or everywhere."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from p2pcompute.dht.size import GroupSize, radius_of, size_by
from p2pcompute.limits import DHT_K

SPACE = 1 << 160


def neighbourhood(rng: random.Random, nodes: list[int], count: int = DHT_K) -> tuple[bytes, list[int]]:
    target = rng.getrandbits(160)
    return target.to_bytes(20, "big"), sorted(nodes, key=lambda node: node ^ target)[:count]


@pytest.mark.parametrize("count", [50, 1000, 5000])
def test_the_size_is_found_within_a_quarter_by_the_median_of_several_neighbourhoods(count: int) -> None:
    rng = random.Random(count)
    nodes = [rng.getrandbits(160) for _ in range(count)]
    size = GroupSize()
    for _ in range(16):
        size.note(*neighbourhood(rng, nodes))
    estimate = size.estimate()
    assert estimate is not None and 0.75 * count < estimate < 1.33 * count


def test_about_k_nodes_are_within_the_radius() -> None:
    rng = random.Random(2)
    nodes = [rng.getrandbits(160) for _ in range(2000)]
    radius = radius_of(2000)
    inside = []
    for _ in range(50):
        target, near = neighbourhood(rng, nodes, 60)
        inside.append(sum((node ^ int.from_bytes(target, "big")) <= radius for node in near))
    assert 18 < mean(inside) < 22


def test_who_crowds_around_one_key_does_not_move_the_median() -> None:
    rng = random.Random(3)
    nodes = [rng.getrandbits(160) for _ in range(1000)]
    size = GroupSize()
    for _ in range(8):
        size.note(*neighbourhood(rng, nodes))
    before = size.estimate()
    size.note(bytes(20), range(1, 21))
    after = size.estimate()
    assert before is not None and after is not None and abs(after / before - 1) < 0.3


def test_too_few_say_nothing() -> None:
    assert size_by([5, 6, 7, 8]) is None and size_by([]) is None and size_by([0] * 20) is None
    size = GroupSize()
    assert size.estimate() is None and size.estimate(None) is None and size.estimate(7.0) == 7.0
    assert radius_of(1.0) == SPACE - 1, "in a tiny group everything belongs to everybody"
