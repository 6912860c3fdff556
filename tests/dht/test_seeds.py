"""What a domain may say about first contacts.  If these fail, a hostile domain decides what nodes do."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.dht.seeds import groups_named, in_order, is_usable, lasting_s, may_be_private
from p2pcompute.host.interfaces import SrvRecord
from p2pcompute.limits import SEED_TARGETS_MAX, SEED_TEXT_BYTES_MAX, SEED_TEXTS_MAX, SEED_TTL_S_MAX, SEED_TTL_S_MIN

HINT = bytes.fromhex("6f1c09aa")


def test_text_records_name_groups() -> None:
    for texts in (
        [(b"v=p2pc1", b"group=6f1c09aa")],
        [(b"v=p2pc1 group=00000000,6F1C09AA later=word",)],
        [(b"v=spf1 -all",), (b"v=p2pc1 group=00000000",), (b"v=p2pc1", b"group=6f1c09aa")],
    ):
        hints = groups_named(texts, Counter())
        assert hints is not None and HINT in hints, texts
    assert groups_named([(b"v=p2pc1 group=6f1c09",)], Counter()) == frozenset(), "a group that is none"


def test_other_text_records_say_nothing() -> None:
    """If it broke: a record of the next version, or of somebody else, locks a group out."""
    ignored: Counter[str] = Counter()
    others = [(b"v=p2pc2 group=00000000",), (b"group=00000000 v=p2pc1",), (b"\xff\x00",), (), (b"",), (b"v=p2pc1",)]
    assert groups_named(others, ignored) is None
    assert ignored == {"other TXT record": 5}
    long = b"v=p2pc1 group=00000000 " + b"x" * SEED_TEXT_BYTES_MAX
    assert groups_named([(long,)], ignored) is None and ignored["long TXT record"] == 1
    assert groups_named([(b"",)] * SEED_TEXTS_MAX + [(b"v=p2pc1 group=00000000",)], ignored) is None
    assert ignored["too many TXT records"] == 1


@given(st.lists(st.lists(st.binary(max_size=300), max_size=4), max_size=12))
def test_any_text_is_read(texts: list[list[bytes]]) -> None:
    hints = groups_named(texts, Counter())
    assert hints is None or all(len(hint) == 4 for hint in hints)


def test_records_come_by_priority_and_then_by_weight() -> None:
    """If it broke: every node falls upon the same first contact."""
    rng = random.Random(1)
    records = [SrvRecord(10, 90, 1, "often"), SrvRecord(10, 10, 1, "seldom"), SrvRecord(20, 100, 1, "last")]
    firsts = Counter(in_order(records, rng, Counter())[0].target for _ in range(1000))
    assert firsts.keys() == {"often", "seldom"} and 850 < firsts["often"] < 950, firsts
    assert all(in_order(records, rng, Counter())[2].target == "last" for _ in range(20))
    idle = [SrvRecord(0, 0, 1, "a"), SrvRecord(0, 0, 1, "b")]
    assert {in_order(idle, rng, Counter())[0].target for _ in range(50)} == {"a", "b"}


SRV = st.builds(
    SrvRecord,
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.one_of(st.text(max_size=300), st.from_regex(r"[a-z0-9.-]{1,80}", fullmatch=True)),
)


@given(st.lists(SRV, max_size=64), st.integers())
def test_any_records_are_put_in_order(records: list[SrvRecord], seed: int) -> None:
    """A target is asked for and shown: nothing but a plain host name gets through, and never more than the bound."""
    ignored: Counter[str] = Counter()
    found = in_order(records, random.Random(seed), ignored)
    assert len(found) <= SEED_TARGETS_MAX
    assert len(found) + ignored.total() == len(set(records))
    assert [record.priority for record in found] == sorted(record.priority for record in found)
    for record in found:
        assert record.target.isascii() and record.target.isprintable() and " " not in record.target
        assert 0 < record.port < 65536 and len(record.target) <= 253


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "192.0.2.1",
        "64:ff9b::a00:1", "2002:a00:1::1",
        "224.0.0.1", "239.1.2.3", "ff02::1", "255.255.255.255", "::", "240.0.0.1", "not an address", "",
    ],
)  # fmt: skip
def test_a_public_name_leads_to_public_addresses_only(host: str) -> None:
    """If it broke: a domain makes every node of a group knock at its own router, or at a cloud's metadata."""
    ignored: Counter[str] = Counter()
    assert not is_usable(host, "mesh.example.org", ignored) and ignored.total() == 1


@pytest.mark.parametrize("domain", ["mesh.test", "lab.internal", "nas.home.arpa", "printer.local", "localhost"])
def test_a_name_of_this_network_leads_to_it(domain: str) -> None:
    assert may_be_private(domain)
    for host in ("127.0.0.1", "192.168.1.1", "fd00::1", "8.8.8.8"):
        assert is_usable(host, domain, Counter())
    for host in ("224.0.0.1", "255.255.255.255", "::", "0.0.0.0", "x"):
        assert not is_usable(host, domain, Counter())


def test_public_addresses_are_used_from_any_name() -> None:
    for host in ("8.8.8.8", "2606:4700::1111"):
        assert is_usable(host, "mesh.example.org", Counter())
    assert not may_be_private("latest") and not may_be_private("test.example.org") and not may_be_private("atest")


def test_an_answer_lasts_within_bounds() -> None:
    assert (lasting_s(0), lasting_s(300), lasting_s(2**31)) == (SEED_TTL_S_MIN, 300, SEED_TTL_S_MAX)
