"""The puzzle of open groups: if it broke, anybody could try keys until he surrounds a record."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.dht.contacts import number_of
from p2pcompute.dht.puzzle import is_solved, solve, solved_bits
from p2pcompute.simulation.dht_nodes import DhtNodes, grind
from p2pcompute.simulation.host import Simulation

KEYS = [hashlib.sha256(b"%d" % number).digest() for number in range(4096)]


@given(st.binary(min_size=32, max_size=32), st.integers(0, 30))
def test_more_bits_are_harder(key: bytes, bits: int) -> None:
    assert is_solved(key, bits) == (solved_bits(key) >= bits)
    assert is_solved(key, 0)


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_one_key_in_so_many_counts_and_is_anywhere(bits: int) -> None:
    solved = [key for key in KEYS if is_solved(key, bits)]
    assert len(solved) == pytest.approx(len(KEYS) / 2**bits, rel=0.35)
    high = sum(number_of(key) >> 159 for key in solved)
    assert 0.3 < high / len(solved) < 0.7, "the place must not follow from the puzzle"


def test_a_key_is_found_or_not() -> None:
    seed = solve(lambda one: one, KEYS, 8)
    assert seed is not None and is_solved(seed, 8)
    assert solve(lambda one: one, KEYS, 60) is None


def test_unsolved_keys_are_neither_heard_nor_named_nor_asked() -> None:
    with Simulation(1) as simulation:
        nodes = DhtNodes(simulation, is_open=True, puzzle_bits=5)

        async def main() -> None:
            first = await nodes.add()
            unsolved = next(key for key in KEYS if not is_solved(_public(key), 5))
            intruder = await nodes.add(secret=unsolved, addresses=[first.address])
            others = [await nodes.add(addresses=[first.address]) for _ in range(3)]
            import asyncio

            await asyncio.sleep(10)
            honest = [first, *others]
            assert all(is_solved(one.identity.public_key, 5) for one in honest)
            for one in honest:
                keys = {contact.key for contact in one.dht.contacts()}
                assert keys == {other.identity.public_key for other in honest if other is not one}
            assert first.dht.counters.dropped_puzzle > 0 and not intruder.dht.contacts()

        simulation.run(main())
    assert not nodes.errors


def _public(seed: bytes) -> bytes:
    from p2pcompute.simulation.host import SeededBytes, SimCrypto

    return SimCrypto(SeededBytes(""), {}).public_key(seed)


def test_the_same_work_crowds_a_key_less() -> None:
    """The attacker's budget is tries, not keys."""
    key = bytes(20)

    def reach(bits: int) -> int:
        made = grind("s", key, 40, nodes=200, puzzle_bits=bits)
        return max(number_of(_public(seed)) for seed in made)

    assert reach(4) > 8 * reach(0)
