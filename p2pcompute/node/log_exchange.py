"""Members tell one another what they know of their group: the log of removals, and who is a member.

Each says in its hello what it holds, as a digest.  Where two differ, each asks the other for what it lacks; what is
new is told to all who are connected, and passed on by those to whom it was new.  Everything is checked before it is
taken in.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from p2pcompute.errors import P2pcError, RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import LOG_ENTRIES_MAX, ROSTER_SHARED_MAX
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.trust.log import Added

LOG_SYNC: Final = 73
"""request: [beginnings of the ids of entries, marks of members] → [[entry, …], [chain, …]] that are not among them"""
LOG_NEWS: Final = 74
"""[[entry, …], [chain, …]]: this is new here"""
NETWORK_KEY: Final = 76
"""request: [digest] → [the network key with this digest]"""
MEMBER: Final = 75
"""request: [installation] → [its admit chain]"""
SYNC_BYTES_MAX: Final = 256 * 1024
"""Of entries, and of chains, in one answer."""
SYNC_ROUNDS_MAX: Final = 32
"""Questions to one peer: GROUP_LOG_BYTES_MAX, a part at a time."""
SYNC_S: Final = 10.0
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
    ) -> None:
        """Args:
        on_news: called after something was learned; with True when the log has grown.
        """
        self._host = host
        self._credentials = credentials
        self._channels = channels
        self._scope = scope
        self._on_news = on_news
        self._syncing: dict[Channel, None] = {}
        channels.on_request(LOG_SYNC, self._on_sync)
        channels.on_message(LOG_NEWS, self._on_told)
        channels.on_request(MEMBER, self._on_member)
        channels.on_request(NETWORK_KEY, self._on_network_key)

    def channel_opened(self, channel: Channel) -> None:
        """Ask a peer that holds something else than this node; tell the others who was met."""
        self.tell_met()
        if channel.peer.hello.get("log") != self._credentials.roster.digest:
            self._ask(channel)

    def _ask(self, channel: Channel) -> None:
        if channel not in self._syncing:
            self._syncing[channel] = None
            self._scope.spawn(self._sync(channel), "log-sync")

    async def _sync(self, channel: Channel) -> None:
        """Ask until nothing more comes."""
        try:
            for _ in range(SYNC_ROUNDS_MAX):
                roster = self._credentials.roster
                ids = [entry.id[:_ID_BYTES] for entry in roster.log]
                answer = await channel.request(LOG_SYNC, [ids, roster.marks()], timeout_s=SYNC_S)
                if roster is not self._credentials.roster or not self._take(channel, answer):
                    return
        except (P2pcError, TimeoutError):
            return  # the next channel, or the next news, brings what is missing
        finally:
            self._syncing.pop(channel, None)

    async def _on_sync(self, channel: Channel, body: Any) -> Any:
        ids, marks = _two_lists(body)
        _check(ids, _ID_BYTES, LOG_ENTRIES_MAX)
        _check(marks, _MARK_BYTES, ROSTER_SHARED_MAX)
        roster = self._credentials.roster
        return [
            roster.log.missing_of(ids, bytes_max=SYNC_BYTES_MAX),
            [list(chain) for chain in roster.missing_of(marks, bytes_max=SYNC_BYTES_MAX)],
        ]

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
        new_chains: list[Any] = []
        try:
            for wire in entries:
                added = roster.add(wire, wall)
                if added is Added.NEW:
                    new_entries.append(wire)
                elif added is Added.EARLIER_MISSING:
                    self._ask(channel)
            if new_entries:
                roster.reassess(wall)
            for chain in chains:
                with contextlib.suppress(TrustError):  # it was removed, which the peer does not know yet
                    if roster.learn(chain, wall) is not None:
                        new_chains.append(chain)
        finally:
            if new_entries or new_chains:
                roster.reassess(wall)
                self.tell(new_entries, new_chains, but=channel)
                self._on_news(bool(new_entries))
        return bool(new_entries or new_chains)

    def tell(self, entries: Sequence[Any], chains: Sequence[Any], *, but: Channel | None = None) -> None:
        """Tell all who are connected what is new here."""
        if not self._credentials.roster.is_shared:
            chains = ()
        for channel in self._channels.all() if entries or chains else ():
            if channel is not but:
                channel.send(LOG_NEWS, [list(entries), [list(chain) for chain in chains]])

    def tell_met(self) -> None:
        """Tell the others whom this node has met, admitted or become itself."""
        self.tell([], self._credentials.roster.take_met())

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
                case [bytes(key)] if hashlib.sha256(key).digest() == wanted:
                    return key
        return b""

    async def _on_network_key(self, _channel: Channel, body: Any) -> Any:
        """Give a member a key; who is on a control channel is one."""
        if not (isinstance(body, list) and len(body) == 1):
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
            if isinstance(answer, list) and len(answer) == 1:
                self._credentials.roster.learn(answer[0], self._host.clock.wall(), is_asked=True)
        except (P2pcError, TimeoutError):
            return

    async def _on_member(self, _channel: Channel, body: Any) -> Any:
        if not (isinstance(body, list) and len(body) == 1 and isinstance(body[0], bytes)):
            raise RemoteProtocolError("not a question about a member")
        _check(body, PUBLIC_KEY_BYTES, 1)
        chain = self._credentials.chain_of(body[0])
        if chain is None:
            raise TrustError("no such member is known here", code="no-member")
        return [list(chain)]


def _two_lists(body: Any) -> tuple[list[Any], list[Any]]:
    if not (isinstance(body, list) and len(body) == 2 and all(isinstance(part, list) for part in body)):
        raise RemoteProtocolError("not news of a group")
    return body[0], body[1]


def _check(items: list[Any], size: int, count_max: int) -> None:
    if len(items) > count_max or not all(isinstance(item, bytes) and len(item) == size for item in items):
        raise RemoteProtocolError("not a list of marks")
