"""Signed records and the bounded store of those kept for others.  Pure.

A record is an envelope over ``[public key, key, salt, seq, issued, ttl, value]``.  Its content type says which of
two kinds it is:

* a *record* (job, pool, membership) lives under `record_key(publisher, salt)`; storers check that;
* an *ad* may be put under any key, by any number of publishers, one ad each.

The highest sequence number wins.  A record expires at min(issued + ttl, arrival + RECORD_TTL_S_MAX), and passing
it on changes neither publisher nor expiry.  A record that is refused leaves the one that is held untouched.

Source: BEP 44 for mutable items with salt and seq.
Deviations: the signature covers a canonical envelope that is kept and passed on as bytes, never re-encoded.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from p2pcompute.errors import InvariantViolation, LocalProtocolError, RemoteProtocolError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.ids import DHT_ID_BYTES, PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    RECORD_BYTES_MAX,
    RECORD_SALT_BYTES_MAX,
    RECORD_SKEW_S_MAX,
    RECORD_TTL_S_MAX,
    RECORD_VALUE_BYTES_MAX,
    RECORDS_MAX,
    RECORDS_PER_KEY_MAX,
    RECORDS_PER_PUBLISHER_MAX,
    RECORDS_REPLY_BYTES_MAX,
)
from p2pcompute.wire import cbor, envelope
from p2pcompute.wire.fields import listed

_KEY_DOMAIN: Final = b"p2pc record key"
_INTEGER_MAX: Final = 2**63 - 1
_OPENED_MAX: Final = 512
"""Records whose signature is not checked again: 1 MiB."""
_LIST_HEAD_BYTES: Final = 3
_ITEM_HEAD_BYTES: Final = 3


class Refusal(StrEnum):
    """Why a record of a peer is refused: the code of the error that `open_record` raises."""

    OVERSIZE = "record-oversize"
    MALFORMED = "record-malformed"
    FORGED = "record-forged"
    """Signed by nobody, or by another than whose place it takes."""
    FUTURE = "record-future"
    EXPIRED = "record-expired"


class RecordKind(StrEnum):
    """Content types of the envelope."""

    RECORD = "p2pc/record"
    AD = "p2pc/ad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record whose signature and form have been checked, or that this node made."""

    kind: RecordKind
    publisher: bytes
    """Public key of the signer: 32 bytes."""
    key: bytes
    """Where it lives: 20 bytes."""
    salt: bytes
    """Tells the records of one publisher apart; empty in an ad."""
    seq: int
    """Greater means newer."""
    issued: int
    """Unix seconds by the publisher's clock."""
    ttl_s: int
    value: bytes
    """Opaque here; at most RECORD_VALUE_BYTES_MAX bytes."""
    raw: bytes
    """The envelope as it travels."""

    @property
    def version(self) -> tuple[int, int, bytes]:
        """What decides between two records of one publisher under one key: the greater wins, everywhere."""
        return (self.seq, self.issued, self.raw)

    def remaining_s(self, wall: float) -> float:
        """Seconds until it expires, at most RECORD_TTL_S_MAX; not positive when it has expired."""
        return min(self.issued + self.ttl_s - wall, RECORD_TTL_S_MAX)


def record_key(publisher: bytes, salt: bytes) -> bytes:
    """Return where a publisher's record with this salt lives: 20 bytes."""
    return hashlib.sha256(_KEY_DOMAIN + publisher + salt).digest()[:DHT_ID_BYTES]


def make_record(
    sign_envelope: Callable[[str, Any], bytes],
    publisher: bytes,
    *,
    salt: bytes,
    seq: int,
    wall: float,
    ttl_s: float,
    value: bytes,
) -> Record:
    """Return a signed record under its derived key.

    Args:
        sign_envelope: as `Identity.sign_envelope`, with the key `publisher`.
        salt: at most RECORD_SALT_BYTES_MAX bytes.
        seq: above that of every earlier record with this salt.
        wall: Unix seconds.
        ttl_s: 1 to RECORD_TTL_S_MAX.

    Raises:
        LocalProtocolError: something is out of bounds (our bug).
    """
    key = record_key(publisher, salt)
    return _signed(RecordKind.RECORD, sign_envelope, [publisher, key, salt, seq, int(wall), int(ttl_s), value])


def make_ad(
    sign_envelope: Callable[[str, Any], bytes],
    publisher: bytes,
    *,
    key: bytes,
    seq: int,
    wall: float,
    ttl_s: float,
    value: bytes,
) -> Record:
    """Return a signed ad under `key`.  Arguments and errors as in `make_record`."""
    return _signed(RecordKind.AD, sign_envelope, [publisher, key, b"", seq, int(wall), int(ttl_s), value])


def _signed(kind: RecordKind, sign_envelope: Callable[[str, Any], bytes], fields: list[Any]) -> Record:
    try:
        return _record(kind, fields[0], fields, sign_envelope(kind.value, fields))
    except RemoteProtocolError as error:
        raise LocalProtocolError("a record that others would refuse", error.what) from error


def open_record(crypto: Crypto, raw: bytes, *, wall: float) -> Record:
    """Return the record in an envelope from a peer.

    Args:
        wall: Unix seconds now.

    Raises:
        RemoteProtocolError: malformed, wrongly signed, under a key that is not its own, expired, or from the
            future; its code is a `Refusal`.
    """
    if len(raw) > RECORD_BYTES_MAX:
        raise RemoteProtocolError(f"a record of {len(raw)} bytes", code=Refusal.OVERSIZE)
    try:
        record = _opened(crypto, raw)
    except RemoteProtocolError as error:
        is_forged = error.code in (envelope.FORGED, Refusal.FORGED)
        code = Refusal.FORGED if is_forged else Refusal.MALFORMED
        raise RemoteProtocolError(error.what, error.why, code=code) from error
    if record.issued > wall + RECORD_SKEW_S_MAX:
        raise RemoteProtocolError("a record from the future", code=Refusal.FUTURE)
    if record.remaining_s(wall) <= 0:
        raise RemoteProtocolError("an expired record", code=Refusal.EXPIRED)
    return record


@lru_cache(maxsize=_OPENED_MAX)
def _opened(crypto: Crypto, raw: bytes) -> Record:
    """The record in an envelope; remembered, because the same one comes from each of its holders."""
    kind = _kind_of(raw)
    opened = envelope.open_envelope(crypto, raw, kind.value, bytes_max=RECORD_BYTES_MAX)
    return _record(kind, opened.signer, opened.payload, raw)


def _kind_of(raw: bytes) -> RecordKind:
    """The kind that the envelope claims; `open_envelope` checks the header for good."""
    outer = cbor.decode(raw)
    header = cbor.decode(outer[0]) if isinstance(outer, list) and outer and isinstance(outer[0], bytes) else None
    content_type = header.get(envelope.CONTENT_TYPE) if isinstance(header, dict) else None
    for kind in RecordKind:
        if content_type == kind.value:
            return kind
    raise RemoteProtocolError("an envelope that is no record")


def _record(kind: RecordKind, signer: bytes, fields: Any, raw: bytes) -> Record:
    publisher, key, salt, seq, issued, ttl_s, value = listed(fields, 7, "record")
    if publisher != signer or not isinstance(publisher, bytes) or len(publisher) != PUBLIC_KEY_BYTES:
        raise RemoteProtocolError("a record signed by another than its publisher", code=Refusal.FORGED)
    if not isinstance(key, bytes) or len(key) != DHT_ID_BYTES:
        raise RemoteProtocolError("a record without a key")
    if not isinstance(salt, bytes) or len(salt) > RECORD_SALT_BYTES_MAX:
        raise RemoteProtocolError("a salt that is too long")
    if not isinstance(value, bytes) or len(value) > RECORD_VALUE_BYTES_MAX:
        raise RemoteProtocolError("a value that is too long")
    if not all(_is_integer(number, 0, _INTEGER_MAX) for number in (seq, issued)):
        raise RemoteProtocolError("seq and issued are integers from 0")
    if not _is_integer(ttl_s, 1, int(RECORD_TTL_S_MAX)):
        raise RemoteProtocolError("a life out of bounds")
    if kind is RecordKind.RECORD and key != record_key(publisher, salt):
        raise RemoteProtocolError("a record under a key that is not its publisher's", code=Refusal.FORGED)
    if kind is RecordKind.AD and salt:
        raise RemoteProtocolError("an ad with a salt")
    return Record(
        kind=kind, publisher=publisher, key=key, salt=salt, seq=seq, issued=issued, ttl_s=ttl_s, value=value, raw=raw
    )


def _is_integer(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def pack_records(raws: Iterable[bytes]) -> bytes:
    """Return the canonical list of raw records, as many of the first as fit RECORDS_REPLY_BYTES_MAX."""
    chosen: list[bytes] = []
    left = RECORDS_REPLY_BYTES_MAX - _LIST_HEAD_BYTES
    for raw in raws:
        left -= _ITEM_HEAD_BYTES + len(raw)
        if left < 0:
            break
        chosen.append(raw)
    return cbor.encode(chosen)


def unpack_records(blob: bytes) -> list[bytes]:
    """Return the raw records of a list that a holder sent.

    Raises:
        RemoteProtocolError: it is no list of byte strings.
    """
    raws = cbor.decode(blob)
    if not isinstance(raws, list) or not all(isinstance(raw, bytes) for raw in raws):
        raise RemoteProtocolError("a list of records was expected")
    return raws


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the newest record of each publisher and key, ordered by key and publisher."""
    best: dict[tuple[bytes, bytes], Record] = {}
    for record in records:
        held = best.get((record.key, record.publisher))
        if held is None or record.version > held.version:
            best[record.key, record.publisher] = record
    return [best[slot] for slot in sorted(best)]


class PutOutcome(StrEnum):
    """What `RecordStore.put` did."""

    STORED = "stored"
    SAME = "same"
    """Exactly this record is held already."""
    STALE = "stale"
    """A newer one is held."""
    EXPIRED = "expired"
    FULL = "full"
    """It would be the first to expire of a full store or key."""


@dataclass(slots=True)
class _Held:
    record: Record
    expires: float
    stored: float
    """Clock time at which it came."""


class RecordStore:
    """Records kept for others and for this node, bounded, one per key and publisher."""

    def __init__(
        self,
        *,
        records_max: int = RECORDS_MAX,
        per_key_max: int = RECORDS_PER_KEY_MAX,
        per_publisher_max: int = RECORDS_PER_PUBLISHER_MAX,
    ) -> None:
        self._records_max = records_max
        self._per_key_max = per_key_max
        self._per_publisher_max = per_publisher_max
        self._of_publisher: Counter[bytes] = Counter()
        self._keys: dict[bytes, dict[bytes, _Held]] = {}
        self._count = 0
        self.expired_count = 0
        """Records dropped at the end of their life."""
        self.displaced_count = 0
        """Records dropped early because the store or their key was full."""

    def __len__(self) -> int:
        return self._count

    def put(self, record: Record, *, now: float, wall: float) -> PutOutcome:
        """Keep a checked record.

        Args:
            now: clock seconds, in which its life is counted from here on: a stepping wall clock ends nothing.
            wall: Unix seconds.
        """
        remaining = record.remaining_s(wall)
        if remaining <= 0:
            return PutOutcome.EXPIRED
        held = self._keys.get(record.key, {}).get(record.publisher)
        if held is not None and held.expires > now:
            if held.record.raw == record.raw:
                return PutOutcome.SAME
            if held.record.version > record.version:
                return PutOutcome.STALE
        expires = now + remaining
        if held is None and not self._make_room(record, expires, now):
            return PutOutcome.FULL
        if held is None:
            self._count += 1
            self._of_publisher[record.publisher] += 1
        self._keys.setdefault(record.key, {})[record.publisher] = _Held(record, expires, now)
        return PutOutcome.STORED

    def get(self, key: bytes, *, now: float) -> list[Record]:
        """Return the live records under a key, the one that expires last first."""
        live = [held for held in self._keys.get(key, {}).values() if held.expires > now]
        live.sort(key=lambda held: (-held.expires, held.record.publisher))
        return [held.record for held in live]

    def live(self, *, now: float, stored_by: float = math.inf) -> list[Record]:
        """Return all records that have not expired, those that came later than `stored_by` left out."""
        every = (held for publishers in self._keys.values() for held in publishers.values())
        return [held.record for held in every if held.expires > now and held.stored <= stored_by]

    def held_seq(self, key: bytes, publisher: bytes) -> int:
        """Return the sequence number that is held; 0 when none is."""
        held = self._keys.get(key, {}).get(publisher)
        return held.record.seq if held is not None else 0

    def expire(self, now: float) -> None:
        """Drop what has reached the end of its life."""
        dead = [
            (key, publisher)
            for key, publishers in self._keys.items()
            for publisher, held in publishers.items()
            if held.expires <= now
        ]
        for key, publisher in dead:
            self._drop(key, publisher)
        self.expired_count += len(dead)

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless the store is consistent."""
        sizes = [len(publishers) for publishers in self._keys.values()]
        if sum(sizes) != self._count or self._count > self._records_max or max(sizes, default=1) > self._per_key_max:
            raise InvariantViolation(f"record store: {self._count} counted, {sum(sizes)} held")
        of_publisher = Counter(publisher for publishers in self._keys.values() for publisher in publishers)
        if of_publisher != self._of_publisher or max(of_publisher.values(), default=0) > self._per_publisher_max:
            raise InvariantViolation(f"record store: {self._of_publisher} counted, {of_publisher} held")
        if 0 in sizes:
            raise InvariantViolation("record store: a key without records")

    def _make_room(self, record: Record, expires: float, now: float) -> bool:
        """Drop the record that expires first of those that are too many, if the new one expires later."""
        if not self._rivals(record):
            return True
        self.expire(now)
        while rivals := self._rivals(record):
            first, key, publisher = min(rivals)
            if first >= expires:
                return False
            self._drop(key, publisher)
            self.displaced_count += 1
        return True

    def _rivals(self, record: Record) -> list[tuple[float, bytes, bytes]]:
        """(expiry, key, publisher) of those of which one has to go for a new record; none when there is room."""
        key, publisher = record.key, record.publisher
        if len(self._keys.get(key, ())) >= self._per_key_max:
            return [(held.expires, key, one) for one, held in self._keys[key].items()]
        is_greedy = self._of_publisher[publisher] >= self._per_publisher_max
        if not is_greedy and self._count < self._records_max:
            return []
        return [
            (held.expires, place, one)
            for place, publishers in self._keys.items()
            for one, held in publishers.items()
            if not is_greedy or one == publisher
        ]

    def _drop(self, key: bytes, publisher: bytes) -> None:
        publishers = self._keys[key]
        del publishers[publisher]
        self._count -= 1
        self._of_publisher[publisher] -= 1
        if not self._of_publisher[publisher]:
            del self._of_publisher[publisher]
        if not publishers:
            del self._keys[key]
