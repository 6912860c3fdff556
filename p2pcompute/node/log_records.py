"""The end of the group's log in the DHT: for a member that meets nobody who knows what happened while it was away.

Who meets a member compares logs with it (`log_exchange`); this is for the rest.  A few members, the *keepers*, publish
the last entries as records under their own keys, in pieces, and only they can write there.  A node that has no channel
to the founder, an heir or an administrator asks for them now and then.  What it finds is checked as from any peer.

Keepers are the founder, members with the role admin, and those whose hash with the group's id is smallest, so that all
who know about the same members look at about the same places.
Where nobody was removed yet, as far as a node knows, it asks one keeper, a few times a day: each question that finds
nothing is some fifty datagrams.  Soon after the start asks only who was here before, since it may have been away for
long; who is new has the log from the member that admitted it, and thousands may be new at once.

Bounds: LOG_RECORDS_MAX records of one keeper; LOG_KEEPERS_ASKED questions an hour.
Not for: an attacker that holds all places near to a key, or fills the stores of those who do; then it is as if there
were no records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from p2pcompute.dht.records import Record, record_key
from p2pcompute.dht.service import Dht
from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    LOG_ENTRIES_MAX,
    LOG_KEEPERS_ASKED,
    LOG_KEEPERS_DRAWN,
    LOG_RECORDS_MAX,
    RECORD_VALUE_BYTES_MAX,
)
from p2pcompute.node.log_exchange import LogExchange
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.node.network import Network
from p2pcompute.transport.channels import Channels
from p2pcompute.trust.groups import ADMIN_RANK
from p2pcompute.trust.log import GroupLog
from p2pcompute.wire import cbor

_SALT: Final = b"group log "
_HEAD_BYTES: Final = 32
"""Of a piece: digest, number and count, as CBOR."""
_PIECE_BYTES: Final = RECORD_VALUE_BYTES_MAX - _HEAD_BYTES
_DIGEST_BYTES: Final = 8
LOOK_FIRST_S: Final = 60.0
LOOK_AGAIN_S: Final = 3600.0
LOOK_AGAIN_EMPTY_S: Final = 6 * 3600.0
"""While no log is known."""


def pieces_of(log: GroupLog) -> list[bytes]:
    """Return the values of the records that hold the last entries of a log, as many as fit; none of an empty one."""
    kept: list[Any] = []
    left = LOG_RECORDS_MAX * _PIECE_BYTES - 8
    for entry in reversed(list(log)):
        left -= len(cbor.encode(entry.wire))
        if left < 0:
            break
        kept.append(entry.wire)
    if not kept:
        return []
    data = cbor.encode(kept[::-1])
    parts = [data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]
    return [cbor.encode([log.digest, number, len(parts), part]) for number, part in enumerate(parts)]


def read_piece(value: bytes) -> tuple[bytes, int, int, bytes]:
    """Return (digest of the log, number, count, bytes) of a record.

    Raises:
        RemoteProtocolError: not a piece of a log.
    """
    match cbor.decode(value):
        case [bytes(digest), int(number), int(count), bytes(part), *_] if (
            len(digest) == _DIGEST_BYTES and 0 <= number < count <= LOG_RECORDS_MAX
        ):
            return digest, number, count, part
    raise RemoteProtocolError("not a piece of a group's log")


def join_pieces(parts: Sequence[bytes]) -> list[Any]:
    """Return the entries, of which nothing is checked yet.

    Raises:
        RemoteProtocolError: the pieces do not belong together.
    """
    entries = cbor.decode(b"".join(parts))
    if not isinstance(entries, list) or len(entries) > LOG_ENTRIES_MAX:
        raise RemoteProtocolError("not a group's log")
    return entries


class LogRecords:
    """Publishes the end of the log, if this node is a keeper, and looks for it where it meets nobody who knows."""

    def __init__(
        self,
        host: Host,
        credentials: GroupCredentials,
        channels: Channels,
        network: Network,
        exchange: LogExchange,
        scope: TaskScope,
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._channels = channels
        self._network = network
        self._exchange = exchange
        self._scope = scope
        self._rng = host.rng.stream("log-records")
        self._published: tuple[Dht, bytes, int] | None = None
        """Where, which log, in how many pieces."""
        self.asked_count = 0
        """Keepers whose records were asked for."""
        self.learned_count = 0
        """Entries that were learned in this way."""

    def start(self) -> None:
        self._scope.spawn(self._run(), "log-records")

    async def _run(self) -> None:
        wait_s = LOOK_FIRST_S
        if not self._network.was_here:
            await self._host.clock.sleep(LOOK_FIRST_S)
            self.publish()
            wait_s = self._again_s()
        while True:
            await self._host.clock.sleep(wait_s * self._rng.uniform(0.5, 1.0))
            self.publish()
            if not self._meets_administrators():
                await self.look()
            wait_s = self._again_s()

    def _again_s(self) -> float:
        return LOOK_AGAIN_S if len(self._credentials.roster.log) else LOOK_AGAIN_EMPTY_S

    def keepers(self) -> list[bytes]:
        """Return the installations whose records are worth asking for, as far as this node knows the group."""
        roster = self._credentials.roster
        ranked = [key for key in roster if (member := roster.get(key)) is not None and member.rank <= ADMIN_RANK]
        founder, drawn = self._credentials.group.founder, roster.drawn(LOG_KEEPERS_DRAWN)
        return list(dict.fromkeys([founder, *ranked[:LOG_RECORDS_MAX], *drawn]))

    def _meets_administrators(self) -> bool:
        roster = self._credentials.roster
        members = [roster.get(channel.peer.installation) for channel in self._channels.all()]
        return any(member is not None and member.rank <= ADMIN_RANK for member in members)

    def publish(self) -> None:
        """Say what the log holds, if this node is a keeper and that has changed."""
        dht, log, identity = self._network.dht, self._credentials.roster.log, self._credentials.identity
        if dht is None or not len(log) or identity.delegation is not None:
            return
        if identity.public_key not in self.keepers():
            return
        known = self._published if self._published is not None and self._published[0] is dht else None
        if known is not None and known[1] == log.digest:
            return
        pieces = pieces_of(log)
        for number, piece in enumerate(pieces):
            dht.publish(_salt(number), piece)
        for number in range(len(pieces), 0 if known is None else known[2]):
            dht.withdraw(_salt(number))
        self._published = (dht, log.digest, len(pieces))

    async def look(self) -> None:
        """Ask a few keepers for what they hold, or one while no log is known, and take in what is new."""
        own = self._credentials.identity.installation
        keepers = [key for key in self.keepers() if key != own]
        count = LOG_KEEPERS_ASKED if len(self._credentials.roster.log) else 1
        for keeper in self._rng.sample(keepers, min(count, len(keepers))):
            self.asked_count += 1
            try:
                entries = await self._entries_of(keeper)
            except RemoteProtocolError:
                continue  # a keeper that publishes nonsense is one less to ask
            self.learned_count += self._exchange.heard(entries)

    async def _entries_of(self, keeper: bytes) -> list[Any]:
        first = await self._piece(keeper, 0)
        if first is None or first[0] == self._credentials.roster.log.digest:
            return []
        parts = [first[3]]
        for number in range(1, first[2]):
            piece = await self._piece(keeper, number)
            if piece is None or piece[:3] != (first[0], number, first[2]):
                return []  # it is being written anew
            parts.append(piece[3])
        return join_pieces(parts)

    async def _piece(self, keeper: bytes, number: int) -> tuple[bytes, int, int, bytes] | None:
        dht = self._network.dht
        found: list[Record] = [] if dht is None else await dht.get(record_key(keeper, _salt(number)))
        records = [record for record in found if record.publisher == keeper and record.salt == _salt(number)]
        return read_piece(records[0].value) if records else None


def _salt(number: int) -> bytes:
    return _SALT + bytes([number])
