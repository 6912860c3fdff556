"""Members tell one another what they know of their group: the log of removals, and who is a member.

Each says in its hello what it holds, as a digest.  What takes rights away is told at once to all who are connected, and
passed on by those to whom it was new; who comes back and holds another log is asked at once.  Who else is a member may
wait: as long as a connected peer is not known to hold the same, now and then one of them is told the digest, and where
it differs the two exchange what either lacks.  So in a group where all meet all, hardly anything is told twice.
Everything is checked before it is taken in.  Messages may have more parts than this build knows: they are passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from p2pcompute.errors import P2pcError, RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Host, Timer
from p2pcompute.host.tasks import TaskScope
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import LOG_ENTRIES_MAX, ROSTER_SHARED_MAX
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.trust.log import Added
from p2pcompute.trust.roster import Roster

LOG_SYNC: Final = 73
"""request: [beginnings of the ids of entries, marks of members] → [[entry, …], [chain, …]] that are not among them, as
many as fit, [those among them that are not here], whether all fitted]"""
LOG_NEWS: Final = 74
"""[[entry, …], [chain, …]]: this is new here, or was wanted"""
LOG_DIGEST: Final = 79
"""[digest]: so much is held here"""
NETWORK_KEY: Final = 76
"""request: [digest] → [the network key with this digest]"""
MEMBER: Final = 75
"""request: [installation] → [its admit chain]"""
SYNC_BYTES_MAX: Final = 256 * 1024
"""Of entries, and of chains, in one answer."""
SYNC_ROUNDS_MAX: Final = 32
"""Questions to one peer: GROUP_LOG_BYTES_MAX, a part at a time."""
SYNC_S: Final = 10.0
COMPARE_S: Final = 4.0
"""From learning something to telling the first peer the digest, and then two more, and four; up to half of it less, by
chance."""
_PAIR: Final = 2
"""Members that a node knows which has met one."""
_ID_BYTES: Final = 8
_MARK_BYTES: Final = 16


class LogExchange:
    """Keeps the log and the roster of this node's group as complete as those of its peers."""

    def __init__(
        self,
        host: Host,
        credentials: GroupCredentials,
        channels: Channels,
        scope: TaskScope,
        on_news: Callable[[bool], None],
        size: Callable[[], int],
    ) -> None:
        """Args:
        on_news: called after something was learned; with True when the log has grown.
        size: says how many members there are, as far as that can be seen.
        """
        self._host = host
        self._credentials = credentials
        self._channels = channels
        self._scope = scope
        self._on_news = on_news
        self._size = size
        self._rng = host.rng.stream("members")
        self._syncing: dict[Channel, None] = {}
        self._same: dict[Channel, bytes] = {}
        """The digest that the peer holds, or would have contradicted; only open channels."""
        self._digest = b""
        """The digest when a peer was last looked for that holds another one."""
        self._turn_count = 1
        """Peers that are told the digest next."""
        self._timer: Timer | None = None
        self.told_count = 0
        """Messages of this exchange that were sent, replies not counted."""
        channels.on_request(LOG_SYNC, self._on_sync)
        channels.on_message(LOG_NEWS, self._on_told)
        channels.on_message(LOG_DIGEST, self._on_digest)
        channels.on_request(MEMBER, self._on_member)
        channels.on_request(NETWORK_KEY, self._on_network_key)

    def channel_opened(self, channel: Channel) -> None:
        """Compare with a new peer; at once when its log is another one, or when it is the first that is met."""
        roster, said = self._credentials.roster, channel.peer.hello.get("log")
        roster.note_size(self._size())
        is_first = roster.is_shared and len(roster) <= _PAIR
        if said == roster.digest:
            self._same[channel] = said
        elif is_first or not isinstance(said, bytes) or not said.startswith(roster.log.digest):
            self._ask(channel)
        self.compare()

    def channel_lost(self, channel: Channel) -> None:
        """Forget what its peer held."""
        self._same.pop(channel, None)

    def close(self) -> None:
        """Compare no more."""
        if self._timer is not None:
            self._timer.cancel()

    def compare(self) -> None:
        """Tell others soon what is known here, if that has changed or not all of them are known to hold the same."""
        digest = self._credentials.roster.digest
        if digest != self._digest:
            self._digest, self._turn_count = digest, 1
        if self._timer is None:
            self._timer = self._host.clock.call_later(COMPARE_S * self._rng.uniform(0.5, 1.0), self._tell_some)

    def _tell_some(self) -> None:
        """Tell the digest to some of whom it is not known that they hold the same; nobody is left: rest."""
        self._timer = None
        digest, channels = self._credentials.roster.digest, self._channels.all()
        # An answer may have come with the end of its channel.
        self._same = {channel: self._same[channel] for channel in channels if channel in self._same}
        others = [channel for channel in channels if self._same.get(channel) != digest]
        if not others:
            return
        for channel in self._rng.sample(others, min(self._turn_count, len(others))):
            self._same[channel] = digest
            self.told_count += 1
            channel.send(LOG_DIGEST, [digest])
        self._turn_count *= 2
        self.compare()

    def _on_digest(self, channel: Channel, body: Any) -> None:
        if not (isinstance(body, list) and body and isinstance(body[0], bytes)):
            raise RemoteProtocolError("not a digest of a group")
        if body[0] == self._credentials.roster.digest:
            self._same[channel] = body[0]
        else:
            self._ask(channel)

    def _ask(self, channel: Channel) -> None:
        if channel not in self._syncing:
            self._syncing[channel] = None
            self._scope.spawn(self._sync(channel), "log-sync")

    async def _sync(self, channel: Channel) -> None:
        """Ask until nothing more comes, and give what the peer lacks."""
        try:
            for _ in range(SYNC_ROUNDS_MAX):
                roster = self._credentials.roster
                self.told_count += 1
                answer = await channel.request(LOG_SYNC, [_beginnings(roster), roster.marks()], timeout_s=SYNC_S)
                if roster is not self._credentials.roster:
                    return
                if not (isinstance(answer, list) and len(answer) >= 4):
                    raise RemoteProtocolError("not what is missing")
                entries, chains, wanted, is_all = answer[:4]
                is_new = self._take(channel, [entries, chains])
                self._give(channel, wanted)
                if not is_new or is_all is True:
                    self._same[channel] = roster.digest
                    return
        except (P2pcError, TimeoutError):
            return  # the next channel, or the next comparison, brings what is missing
        finally:
            self._syncing.pop(channel, None)

    async def _on_sync(self, channel: Channel, body: Any) -> Any:
        ids, marks = _two_lists(body)
        _check(ids, _ID_BYTES, LOG_ENTRIES_MAX)
        _check(marks, _MARK_BYTES, ROSTER_SHARED_MAX)
        roster = self._credentials.roster
        own, theirs = {*_beginnings(roster), *roster.marks()}, {*ids, *marks}
        entries = roster.log.missing_of(ids, bytes_max=SYNC_BYTES_MAX)
        chains = roster.missing_of(marks, bytes_max=SYNC_BYTES_MAX)
        wanted = [one for one in (*ids, *(marks if roster.is_shared else ())) if one not in own]
        is_all = len(entries) + len(chains) == len(own - theirs)
        return [entries, [list(chain) for chain in chains], wanted, is_all]

    def _give(self, channel: Channel, wanted: Any) -> None:
        """Send what a peer has not, of what it was told to be here."""
        if not isinstance(wanted, list) or len(wanted) > LOG_ENTRIES_MAX + ROSTER_SHARED_MAX:
            raise RemoteProtocolError("not what is wanted")
        if not all(isinstance(one, bytes) for one in wanted):
            raise RemoteProtocolError("not what is wanted")
        roster, wanted = self._credentials.roster, dict.fromkeys(wanted)
        entries = roster.log.missing_of(
            [one for one in _beginnings(roster) if one not in wanted], bytes_max=SYNC_BYTES_MAX
        )
        chains = roster.missing_of([one for one in roster.marks() if one not in wanted], bytes_max=SYNC_BYTES_MAX)
        if entries or chains:
            self.told_count += 1
            channel.send(LOG_NEWS, [entries, [list(chain) for chain in chains]])

    def _on_told(self, channel: Channel, body: Any) -> None:
        self._take(channel, body)

    def _take(self, channel: Channel, body: Any) -> bool:
        """Take in what a peer sent; returns whether any of it was new.

        Raises:
            RemoteProtocolError: malformed or forged.  What stood before it is taken in, what stands behind it is not
                looked at: a forged entry costs its sender a message.
        """
        entries, chains = _two_lists(body)
        roster, wall = self._credentials.roster, self._host.clock.wall()
        new_entries: list[Any] = []
        new_chains = 0
        try:
            try:
                for wire in entries:
                    added = roster.add(wire, wall)
                    if added is Added.NEW:
                        new_entries.append(wire)
                    elif added is Added.EARLIER_MISSING:
                        self._ask(channel)
            finally:
                if new_entries:
                    roster.reassess(wall)
            for chain in chains:
                with contextlib.suppress(TrustError):  # it was removed, which the peer does not know yet
                    if roster.learn(chain, wall) is not None:
                        new_chains += 1
        finally:
            if new_entries or new_chains:
                self.tell(new_entries, [], but=channel)
                self._on_news(bool(new_entries))
                self.compare()
        return bool(new_entries or new_chains)

    def heard(self, entries: Sequence[Any]) -> int:
        """Take in entries that were found, not told by a peer; returns how many were new.

        Those that are forged, or name others that are not here, are left out, whoever published them.
        """
        roster, wall, new = self._credentials.roster, self._host.clock.wall(), []
        for wire in entries:
            with contextlib.suppress(RemoteProtocolError):
                if roster.add(wire, wall) is Added.NEW:
                    new.append(wire)
        if new:
            roster.reassess(wall)
            self.tell(new, [])
            self._on_news(True)
            self.compare()
        return len(new)

    def tell(self, entries: Sequence[Any], chains: Sequence[Any], *, but: Channel | None = None) -> None:
        """Tell all who are connected at once."""
        if not self._credentials.roster.is_shared:
            chains = ()
        for channel in self._channels.all() if entries or chains else ():
            if channel is not but:
                self.told_count += 1
                channel.send(LOG_NEWS, [list(entries), [list(chain) for chain in chains]])

    # --- the network key --------------------------------------------------------------------------

    @property
    def wanted_key(self) -> bytes:
        """The digest of the network key that the group uses and this node has not; empty: it has it."""
        rotations = self._credentials.roster.log.rotations()
        own = hashlib.sha256(self._credentials.group.network_key).digest()
        return rotations[-1].key_digest if rotations and rotations[-1].key_digest != own else b""

    async def ask_key(self) -> bytes:
        """Return the network key that is wanted, from the first peer that gives it; empty: nobody does."""
        for channel in self._channels.all():
            wanted = self.wanted_key
            if not wanted:
                break
            try:
                answer = await channel.request(NETWORK_KEY, [wanted], timeout_s=SYNC_S)
            except (P2pcError, TimeoutError):
                continue
            match answer:
                case [bytes(key), *_] if hashlib.sha256(key).digest() == wanted:
                    return key
        return b""

    async def _on_network_key(self, _channel: Channel, body: Any) -> Any:
        """Give a member a key; who is on a control channel is one."""
        if not (isinstance(body, list) and body):
            raise RemoteProtocolError("not a question about a network key")
        for key in self._credentials.network_keys():
            if hashlib.sha256(key).digest() == body[0]:
                return [key]
        raise TrustError("no such network key is known here", code="no-key")

    # --- one member -------------------------------------------------------------------------------

    async def introduce(self, channel: Channel, installation: bytes) -> None:
        """Ask a peer for the membership of an installation that is not known here; it stays unknown if it is none."""
        try:
            answer = await channel.request(MEMBER, [installation], timeout_s=SYNC_S)
            if isinstance(answer, list) and answer:
                self._credentials.roster.learn(answer[0], self._host.clock.wall(), is_asked=True)
        except (P2pcError, TimeoutError):
            return

    async def _on_member(self, _channel: Channel, body: Any) -> Any:
        if not (isinstance(body, list) and body):
            raise RemoteProtocolError("not a question about a member")
        _check(body[:1], PUBLIC_KEY_BYTES, 1)
        chain = self._credentials.chain_of(body[0])
        if chain is None:
            raise TrustError("no such member is known here", code="no-member")
        return [list(chain)]


def _beginnings(roster: Roster) -> list[bytes]:
    return [entry.id[:_ID_BYTES] for entry in roster.log]


def _two_lists(body: Any) -> tuple[list[Any], list[Any]]:
    if not (isinstance(body, list) and len(body) >= 2 and all(isinstance(part, list) for part in body[:2])):
        raise RemoteProtocolError("not news of a group")
    return body[0], body[1]


def _check(items: list[Any], size: int, count_max: int) -> None:
    if len(items) > count_max or not all(isinstance(item, bytes) and len(item) == size for item in items):
        raise RemoteProtocolError("not a list of marks")
