"""Records: what is not exactly a publisher's own, or not the newest, or dead, must not be kept or returned."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.dht.records import (
    PutOutcome,
    Record,
    RecordKind,
    RecordStore,
    make_ad,
    make_record,
    newest,
    open_record,
    pack_records,
    record_key,
    unpack_records,
)
from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import (
    RECORD_BYTES_MAX,
    RECORD_SALT_BYTES_MAX,
    RECORD_SKEW_S_MAX,
    RECORD_TTL_S_MAX,
    RECORD_VALUE_BYTES_MAX,
    RECORDS_REPLY_BYTES_MAX,
)

CRYPTO = RealCrypto()
ALICE = Identity(CRYPTO, b"a" * 32)
BOB = Identity(CRYPTO, b"b" * 32)
WALL = 1_750_000_000.0
KEY = bytes(range(20))


def record(who: Identity = ALICE, seq: int = 1, value: bytes = b"v", ttl_s: float = 900, wall: float = WALL) -> Record:
    return make_record(who.sign_envelope, who.public_key, salt=b"s", seq=seq, wall=wall, ttl_s=ttl_s, value=value)


def ad(number: int, key: bytes = KEY, ttl_s: float = 900, seq: int = 1) -> Record:
    """Unsigned, for the store, which is given checked records only."""
    publisher = hashlib.sha256(b"publisher %d" % number).digest()
    raw = b"%d %d %d" % (number, ttl_s, seq)
    return Record(
        kind=RecordKind.AD, publisher=publisher, key=key, salt=b"", seq=seq, issued=int(WALL), ttl_s=int(ttl_s),
        value=b"", raw=raw,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    salt=st.binary(max_size=RECORD_SALT_BYTES_MAX),
    seq=st.integers(0, 2**63 - 1),
    value=st.binary(max_size=RECORD_VALUE_BYTES_MAX),
    ttl_s=st.integers(1, int(RECORD_TTL_S_MAX)),
)
def test_round_trip(salt: bytes, seq: int, value: bytes, ttl_s: int) -> None:
    made = make_record(ALICE.sign_envelope, ALICE.public_key, salt=salt, seq=seq, wall=WALL, ttl_s=ttl_s, value=value)
    assert made.key == record_key(ALICE.public_key, salt)
    assert open_record(CRYPTO, made.raw, wall=WALL) == made


def test_the_largest_record_is_within_its_limit() -> None:
    big = make_record(
        ALICE.sign_envelope,
        ALICE.public_key,
        salt=bytes(RECORD_SALT_BYTES_MAX),
        seq=2**63 - 1,
        wall=WALL,
        ttl_s=RECORD_TTL_S_MAX,
        value=bytes(RECORD_VALUE_BYTES_MAX),
    )
    assert len(big.raw) <= RECORD_BYTES_MAX and open_record(CRYPTO, big.raw, wall=WALL) == big


def fields(**changes: Any) -> list[Any]:
    names = {
        "publisher": ALICE.public_key, "key": record_key(ALICE.public_key, b"s"), "salt": b"s", "seq": 1,
        "issued": int(WALL), "ttl": 900, "value": b"v",
    }  # fmt: skip
    return list({**names, **changes}.values())


@pytest.mark.parametrize(
    "payload",
    [
        fields(publisher=BOB.public_key),
        fields(key=KEY),
        fields(key=b"short"),
        fields(salt=b"other"),
        fields(salt=bytes(65)),
        fields(seq=-1),
        fields(seq=True),
        fields(seq=2**63),
        fields(issued=str(WALL)),
        fields(issued=int(WALL + RECORD_SKEW_S_MAX + 2)),
        fields(issued=int(WALL - 901)),
        fields(ttl=0),
        fields(ttl=int(RECORD_TTL_S_MAX) + 1),
        fields(value=bytes(1001)),
        fields(value="text"),
        fields()[:-1],
        {"value": b"v"},
    ],
)
def test_a_well_signed_record_that_breaks_a_rule_is_refused(payload: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        open_record(CRYPTO, ALICE.sign_envelope(RecordKind.RECORD, payload), wall=WALL)


def test_a_job_record_lives_only_under_its_publishers_key_but_an_ad_anywhere() -> None:
    raw = ALICE.sign_envelope(RecordKind.AD, fields(key=KEY, salt=b""))
    assert open_record(CRYPTO, raw, wall=WALL).kind is RecordKind.AD
    with pytest.raises(RemoteProtocolError):
        open_record(CRYPTO, ALICE.sign_envelope(RecordKind.AD, fields(key=KEY)), wall=WALL)
    with pytest.raises(RemoteProtocolError):
        open_record(CRYPTO, ALICE.sign_envelope("p2pc/other", fields()), wall=WALL)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mutated_records_raise_only_the_documented_error(data: st.DataObject) -> None:
    raw = bytearray(record().raw)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for candidate in (bytes(raw), bytes(raw[:cut])):
        if candidate != record().raw:
            with pytest.raises(RemoteProtocolError):
                open_record(CRYPTO, candidate, wall=WALL)


def test_making_what_others_would_refuse_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        record(value=bytes(1001))
    with pytest.raises(LocalProtocolError):
        make_ad(ALICE.sign_envelope, ALICE.public_key, key=KEY, seq=1, wall=WALL, ttl_s=0.5, value=b"")


# --- store ---


def test_the_highest_seq_wins_and_a_refused_record_leaves_the_held_one_alone() -> None:
    """A store that shortens the life of the held record when it refuses another loses live values."""
    store = RecordStore()
    held = ad(1, seq=5, ttl_s=1000)
    assert store.put(held, now=0, wall=WALL) is PutOutcome.STORED
    assert store.put(held, now=1, wall=WALL + 1) is PutOutcome.SAME
    assert store.put(ad(1, seq=4, ttl_s=5), now=1, wall=WALL + 1) is PutOutcome.STALE
    assert store.get(KEY, now=999) == [held]
    assert store.held_seq(KEY, held.publisher) == 5
    newer = ad(1, seq=6, ttl_s=10)
    assert store.put(newer, now=1, wall=WALL + 1) is PutOutcome.STORED
    assert store.get(KEY, now=9) == [newer] and len(store) == 1
    store.check_invariants()


def test_equal_seq_is_decided_alike_everywhere() -> None:
    one, other = ad(1, ttl_s=10), ad(1, ttl_s=20)
    stores = []
    for order in ((one, other), (other, one)):
        store = RecordStore()
        for item in order:
            store.put(item, now=0, wall=WALL)
        stores.append(store.get(KEY, now=1))
    assert stores[0] == stores[1]


def test_records_end_with_their_life_however_often_they_are_passed_on() -> None:
    store = RecordStore()
    item = ad(1, ttl_s=100)
    for second in range(0, 100, 10):
        store.put(item, now=second, wall=WALL + second)
    assert store.get(KEY, now=99.9) == [item] and store.get(KEY, now=100) == []
    assert store.put(item, now=100, wall=WALL + 100) is PutOutcome.EXPIRED
    store.expire(100)
    assert len(store) == 0 and store.expired_count == 1
    store.check_invariants()


def test_a_publisher_with_a_fast_clock_gets_no_more_than_the_cap() -> None:
    store = RecordStore()
    store.put(ad(1, ttl_s=RECORD_TTL_S_MAX), now=0, wall=WALL - 250)
    assert store.get(KEY, now=RECORD_TTL_S_MAX - 1) != [] and store.get(KEY, now=RECORD_TTL_S_MAX) == []


def test_a_full_store_drops_what_expires_first_and_counts_it() -> None:
    store = RecordStore(records_max=3, per_key_max=3)
    items = [ad(n, key=bytes([n]) * 20, ttl_s=100 + n) for n in range(4)]
    for item in items[1:]:
        assert store.put(item, now=0, wall=WALL) is PutOutcome.STORED
    assert store.put(items[0], now=0, wall=WALL) is PutOutcome.FULL
    late = ad(9, ttl_s=500)
    assert store.put(late, now=0, wall=WALL) is PutOutcome.STORED
    assert store.get(items[1].key, now=1) == [] and store.displaced_count == 1 and len(store) == 3
    store.check_invariants()


def test_a_full_key_does_not_push_out_other_keys() -> None:
    store = RecordStore(records_max=100, per_key_max=2)
    store.put(ad(0, key=bytes(20), ttl_s=10), now=0, wall=WALL)
    for number in range(1, 6):
        store.put(ad(number, ttl_s=100 + number), now=0, wall=WALL)
    assert [r.ttl_s for r in store.get(KEY, now=1)] == [105, 104]
    assert len(store.get(bytes(20), now=1)) == 1
    store.check_invariants()


def test_one_publisher_cannot_fill_a_store() -> None:
    store = RecordStore(records_max=10, per_publisher_max=3)
    for number in range(1, 5):
        store.put(ad(number, ttl_s=10), now=0, wall=WALL)
    for number in range(20):
        store.put(ad(0, key=bytes([number]) * 20, ttl_s=900 - number), now=0, wall=WALL)
    assert len(store.get(KEY, now=1)) == 4 and len(store) == 7
    late = ad(0, key=b"l" * 20, ttl_s=1000)
    assert store.put(late, now=0, wall=WALL) is PutOutcome.STORED and len(store) == 7
    store.check_invariants()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 60), st.integers(0, 9), st.integers(0, 20)),
        max_size=60,
    )
)
def test_the_store_never_grows_and_returns_only_live_records(puts: list[tuple[int, int, int, int, int]]) -> None:
    store = RecordStore(records_max=8, per_key_max=3, per_publisher_max=2)
    now = 0.0
    for publisher, key, ttl_s, seq, wait in puts:
        now += wait
        store.put(ad(publisher, key=bytes([key]) * 20, ttl_s=ttl_s, seq=seq), now=now, wall=WALL + now)
        store.check_invariants()
        for number in range(4):
            live = store.get(bytes([number]) * 20, now=now)
            assert all(item.remaining_s(WALL + now) > 0 for item in live)
            assert len({item.publisher for item in live}) == len(live)


def test_newest_keeps_one_record_per_publisher() -> None:
    assert newest([ad(1, seq=1), ad(2, seq=1), ad(1, seq=3), ad(1, seq=2)]) == sorted(
        [ad(1, seq=3), ad(2, seq=1)], key=lambda item: item.publisher
    )


def test_lists_of_records_are_cut_to_their_limit_and_junk_is_refused() -> None:
    raws = [bytes([n]) * 1300 for n in range(40)]
    packed = pack_records(raws)
    assert len(packed) <= RECORDS_REPLY_BYTES_MAX and unpack_records(packed) == raws[: len(unpack_records(packed))]
    assert len(unpack_records(packed)) == 12
    for junk in (b"", b"\x81\x01", b"\xa0", b"\x82\x41"):
        with pytest.raises(RemoteProtocolError):
            unpack_records(junk)
