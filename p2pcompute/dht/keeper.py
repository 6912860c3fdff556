"""What this node does for others' records: takes them in, part by part, and gives them out, page by page.

Passive: told of messages, it returns replies.  Checks of what comes from peers are here and in `records`.
"""

from __future__ import annotations

from p2pcompute.dht.exchange import DhtCounters
from p2pcompute.dht.messages import Ack, AckStatus, Put, Values, page_of
from p2pcompute.dht.records import PutOutcome, Record, RecordStore, Refusal, open_record, pack_records, unpack_records
from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Clock, Crypto
from p2pcompute.limits import DHT_PARTIAL_PUTS_MAX


class Keeper:
    """The records kept here, and the puts of which a part is still missing."""

    def __init__(self, clock: Clock, crypto: Crypto, counters: DhtCounters) -> None:
        self.records = RecordStore()
        self._clock = clock
        self._crypto = crypto
        self._counters = counters
        self._partial: dict[tuple[bytes, bytes], dict[int, bytes]] = {}

    def take_part(self, sender: bytes, transaction: bytes, message: Put) -> Ack | None:
        """Take in a part of a record; return what to reply once it is whole, else None."""
        if message.parts == 1:
            return self._take(message.key, message.chunk)
        slot = (sender, transaction)
        parts = self._partial.setdefault(slot, {})
        parts[message.part] = message.chunk
        if len(parts) == message.parts:
            del self._partial[slot]
            return self._take(message.key, b"".join(parts[index] for index in sorted(parts)))
        while len(self._partial) > DHT_PARTIAL_PUTS_MAX:
            del self._partial[next(iter(self._partial))]
            self._counters.dropped_parts += 1
        return None

    def keep(self, record: Record) -> Ack:
        """Keep a checked record, if it is newer than what is held and there is room."""
        match self.records.put(record, now=self._clock.now(), wall=self._clock.wall()):
            case PutOutcome.STORED:
                self._counters.records_stored += 1
                return Ack(AckStatus.OK, record.seq)
            case PutOutcome.SAME:
                self._counters.records_repeated += 1
                return Ack(AckStatus.OK, record.seq)
            case PutOutcome.STALE:
                self._counters.records_stale += 1
                return Ack(AckStatus.STALE, self.records.held_seq(record.key, record.publisher))
            case PutOutcome.EXPIRED:
                self._counters.records_expired += 1
                return Ack(AckStatus.REFUSED)
            case PutOutcome.FULL:
                self._counters.records_full += 1
                return Ack(AckStatus.FULL)

    def page(self, key: bytes, offset: int) -> Values | None:
        """Return a page of what is held under `key`; None when nothing is."""
        held = self.records.get(key, now=self._clock.now())
        return page_of(pack_records(record.raw for record in held), offset) if held else None

    def check(self, key: bytes, blob: bytes) -> list[Record]:
        """Return the valid records of `key` in a holder's list; the others are counted."""
        wall = self._clock.wall()
        try:
            raws = unpack_records(blob)
        except RemoteProtocolError:
            self._counters.records_invalid += 1
            return []
        records = []
        for raw in raws:
            try:
                record = open_record(self._crypto, raw, wall=wall)
            except RemoteProtocolError:
                self._counters.records_invalid += 1
                continue
            if record.key == key:
                records.append(record)
            else:
                self._counters.records_invalid += 1
        return records

    def expire(self) -> None:
        """Drop what has reached the end of its life."""
        self.records.expire(self._clock.now())

    def _take(self, key: bytes, raw: bytes) -> Ack:
        try:
            record = open_record(self._crypto, raw, wall=self._clock.wall())
            if record.key != key:  # the token was for that one
                raise RemoteProtocolError("a record of another key", code=Refusal.FORGED)
        except RemoteProtocolError as error:
            self._refuse(error.code)
            return Ack(AckStatus.REFUSED)
        return self.keep(record)

    def _refuse(self, code: str) -> None:
        counters = self._counters
        match code:
            case Refusal.OVERSIZE:
                counters.records_oversize += 1
            case Refusal.FORGED:
                counters.records_forged += 1
            case Refusal.FUTURE:
                counters.records_future += 1
            case Refusal.EXPIRED:
                counters.records_expired += 1
            case _:
                counters.records_malformed += 1
