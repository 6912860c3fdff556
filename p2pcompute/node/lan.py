"""What a node says and hears on the local network: its group, its port, its open invitations; and those of others.

Nothing that is heard is believed: it says where to knock, and who answers proves what it is.

Bound: NEARBY_MAX nodes of other groups, and as many that announce invitations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from p2pcompute.host.interfaces import Address, Host, LanAnnouncement, LanSighting
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import LAN_INVITES_MAX, NEARBY_MAX
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.transport.credentials import group_hint
from p2pcompute.trust.admission import STANDING

LISTEN_S = 1.0
"""After so long who is on the local network has been heard."""
INVITER_SETTLE_S = 1.5
"""Once a node with the invitation was found: how long another one with the same number may take to show."""


class LanPresence:
    """Announces this node while it is to be found, and listens."""

    def __init__(
        self,
        host: Host,
        credentials: GroupCredentials,
        port: Callable[[], int],
        meet: Callable[[bytes, Sequence[Address]], None],
    ) -> None:
        """`meet` is told of nodes that say they are of our group, and where they are."""
        self._host = host
        self._credentials = credentials
        self._port = port
        self._meet = meet
        self.nearby: dict[bytes, LanSighting] = {}
        """Announced here and not in our group."""
        self._scope: TaskScope | None = None
        """While this node is to be found."""
        self._announcing = asyncio.Lock()
        self._announced_invites: list[int] = []
        self._invites_nearby: dict[bytes, tuple[int, ...]] = {}
        """Numbers of invitations that others announce."""
        self._listening_since: float | None = None

    def start(self, scope: TaskScope) -> None:
        """Listen, and be found; mDNS probes for a second first."""
        self._scope = scope
        scope.spawn(self._start(), "announce")

    async def _start(self) -> None:
        await self._host.net.browse(self._sighted)
        self._listening_since = self._host.clock.now()
        await self._announce()

    async def stop(self) -> None:
        """Withdraw the announcement, and forget what was heard."""
        async with self._announcing:
            self._scope = None
            await self._host.net.announce(None)
        await self._host.net.browse(None)
        self.nearby.clear()
        self._invites_nearby.clear()
        self._listening_since = None

    def changed(self) -> None:
        """Say anew what is announced, if anything is."""
        if self._scope is not None:
            self._scope.spawn(self._announce(), "announce")

    def invites_changed(self) -> None:
        """Say which invitations by words are open, if that is not what was said last."""
        if self._credentials.invites.numbers(self._host.clock.now()) != self._announced_invites:
            self.changed()

    async def _announce(self) -> None:
        async with self._announcing:
            if self._scope is None:
                return
            numbers = self._credentials.invites.numbers(self._host.clock.now())
            self._announced_invites = numbers
            await self._host.net.announce(
                LanAnnouncement(
                    public_key=self._credentials.identity.public_key,
                    name=self._credentials.name,
                    port=self._port(),
                    group_hint=group_hint(self._credentials.group.network_key),
                    invites=tuple(numbers[:LAN_INVITES_MAX]),
                    admits=tuple(way for way in self._credentials.open_ways() if way in STANDING),
                )
            )

    async def invites_nearby(self) -> set[int]:
        """Return the numbers of invitations that others announce.

        A node that has just begun to listen waits until it has heard them, 2 * LISTEN_S at most.
        """
        clock = self._host.clock
        give_up_at = clock.now() + 2 * LISTEN_S
        while self._scope is not None and clock.now() < give_up_at:
            if self._listening_since is not None and clock.now() - self._listening_since >= LISTEN_S:
                break
            await clock.sleep(LISTEN_S / 10)
        return {number for numbers in self._invites_nearby.values() for number in numbers}

    async def look_around(
        self, is_wanted: Callable[[LanAnnouncement], bool], *, time_s_max: float
    ) -> list[LanSighting]:
        """Return the nodes whose announcement says what is wanted.

        For a node that is alone: it does not look around otherwise.  Once one is found it waits for INVITER_SETTLE_S:
        two that announce the same invitation are a reason to join neither.
        """
        found: dict[tuple[bytes, int, tuple[str, ...]], LanSighting] = {}
        is_there = asyncio.Event()

        def seen(sighting: LanSighting) -> None:
            said = sighting.announcement
            if sighting.is_present and is_wanted(said) and len(found) < NEARBY_MAX:
                found[said.public_key, said.port, sighting.addresses] = sighting  # a key is announced by anybody
                is_there.set()

        await self._host.net.browse(seen)
        try:
            async with self._host.clock.timeout(time_s_max):
                await is_there.wait()
            await self._host.clock.sleep(INVITER_SETTLE_S)
        except TimeoutError:
            pass
        finally:
            await self._host.net.browse(None)
        return list(found.values())

    def _sighted(self, sighting: LanSighting) -> None:
        announcement = sighting.announcement
        key = announcement.public_key
        if key == self._credentials.identity.public_key:
            return
        if not sighting.is_present:
            self.nearby.pop(key, None)
            self._invites_nearby.pop(key, None)
            return
        if key in self._invites_nearby or len(self._invites_nearby) < NEARBY_MAX:
            self._invites_nearby[key] = announcement.invites
        if announcement.group_hint in map(group_hint, self._credentials.network_keys()):
            self._meet(key, [Address(host, announcement.port) for host in sighting.addresses])
        elif key in self.nearby or len(self.nearby) < NEARBY_MAX:
            self.nearby[key] = sighting
