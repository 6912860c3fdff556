"""Write tokens: if they were good for something else or for ever, an address could be forged once and for all."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.dht.tokens import WriteTokens
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import DHT_TOKEN_ROTATE_S

HERE, SENDER, KEY = Address("10.0.0.1", 7878), b"s" * 32, b"k" * 20


@given(issued=st.floats(0, 1e6), age_s=st.floats(0, 5 * DHT_TOKEN_ROTATE_S), asks=st.lists(st.floats(0, 1), max_size=5))
def test_a_token_is_good_for_one_turn_at_least_and_for_two_at_most(
    issued: float, age_s: float, asks: list[float]
) -> None:
    tokens = WriteTokens(random.Random(1).randbytes)
    token = tokens.issue(HERE, SENDER, KEY, now=issued)
    for share in sorted(asks):
        tokens.issue(HERE, SENDER, KEY, now=issued + share * age_s)
    is_good = tokens.accepts(token, HERE, SENDER, KEY, now=issued + age_s)
    if age_s < DHT_TOKEN_ROTATE_S * 0.999:
        assert is_good
    if age_s > 2 * DHT_TOKEN_ROTATE_S * 1.001:
        assert not is_good


def test_a_token_is_for_one_sender_at_one_address_under_one_key_at_one_node() -> None:
    tokens, others = WriteTokens(random.Random(1).randbytes), WriteTokens(random.Random(2).randbytes)
    token = tokens.issue(HERE, SENDER, KEY, now=0.0)
    assert len(token) == 8 and tokens.accepts(token, HERE, SENDER, KEY, now=1.0)
    assert not tokens.accepts(token, Address("10.0.0.1", 7879), SENDER, KEY, now=1.0)
    assert not tokens.accepts(token, HERE, b"t" * 32, KEY, now=1.0)
    assert not tokens.accepts(token, HERE, SENDER, b"l" * 20, now=1.0)
    assert not tokens.accepts(b"", HERE, SENDER, KEY, now=1.0)
    assert not others.accepts(token, HERE, SENDER, KEY, now=1.0)
