"""The node's presence in its group: endpoints, DHT, LAN discovery, channels, peers.

Made anew when the group changes (join, leave) or opens (first invite): everything in here belongs to one group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from p2pcompute.dht.contacts import Contact, range_of
from p2pcompute.dht.service import Dht
from p2pcompute.errors import ChannelLost, ConfigError, P2pcError, StoreError
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.ids import dht_id
from p2pcompute.limits import (
    CHANNEL_PING_S,
    CONTACTS_SAVED_MAX,
    DHT_K,
    NEARBY_MAX,
    PEERS_MAX,
    PEERS_MET_MAX,
    SEED_PATIENCE_S,
    SEED_RETRY_S_MAX,
    SEED_RETRY_S_MIN,
)
from p2pcompute.node.lan import LanPresence
from p2pcompute.node.membership import GroupCredentials, clean_name
from p2pcompute.node.names import Names
from p2pcompute.node.seeds import Seed
from p2pcompute.store.journal import Journal
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.transport.credentials import group_hint
from p2pcompute.transport.datagrams import Datagrams, KeyedPort

SAVE_CONTACTS_S = 600.0
SAVE_FIRST_S = 5.0
"""After the start, and after a member was met that is new here: others of that moment are written with it."""
SAVE_PAUSE_S = 30.0
"""Between two writes because of new members: a crash forgets those of half a minute at most."""
"""After the start: who crashes early finds the group again."""
RENEW_CHECK_S = 3600.0
MEET_DELAY_S = 0.1
"""Peers seen within this time are met together."""
PORT_TRIES = 16
"""Ports tried for one that is free for both UDP and TCP."""
NOT_SEEN_S = 25.0
"""A peer silent for longer is shown as not seen; within a minute it is no contact any more."""
ACQUAINT_S = 3.0
"""Mean pause between dials to contacts that have not shown yet that they are members, in a small group."""
AWAY_S = 3600.0
"""Members that fell silent are known for so long."""
OWN_ADDRESSES_S = 5.0
"""How long this machine's addresses are believed."""
CONTACTS_META = "contacts"
NAMES_META = "names"
NAMES_AGE_S = 3600
"""A node that rests writes no more often when members were heard."""
PORT_META = "port"
LOOPBACK = "127.0.0.1"


def source_range(address: Address) -> bytes:
    """Return what names the owner of an address; on loopback, where several nodes of a test are, that of the port."""
    if address.host.startswith("127.") or address.host == "::1":
        return str(address).encode()
    return range_of(address.host).encode()


class Peers(Mapping[bytes, tuple[Address, ...]]):
    """Members that can be reached, and where: the contacts of the DHT, and those met over a channel alone.

    Bound: the routing table and PEERS_MET_MAX; the one met first goes.
    """

    def __init__(self) -> None:
        self.dht: Dht | None = None
        self._met: dict[bytes, Address] = {}
        self._only_met: tuple[bytes, ...] | None = ()
        """Those that are no contacts; None: to be looked up."""
        self.refused: frozenset[bytes] = frozenset()
        """Those that are passed over: blocked here, or removed from the group."""

    def __getitem__(self, key: bytes) -> tuple[Address, ...]:
        contact = self.dht.knows(key) if self.dht is not None else None
        if contact is None:
            return (self._met[key],)
        met = self._met.get(key, contact.address)
        return (contact.address,) if met == contact.address else (contact.address, met)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, bytes) or key in self.refused:
            return False
        return key in self._met or (self.dht is not None and key in self.dht)

    def __iter__(self) -> Iterator[bytes]:
        only_met = self._others()
        contacts = self.dht.keys() if self.dht is not None else ()
        yield from contacts if not self.refused else [key for key in contacts if key not in self.refused]
        yield from only_met

    def __len__(self) -> int:
        count = len(self._others()) + (0 if self.dht is None else self.dht.contact_count)
        if self.dht is None or not self.refused:
            return count
        return count - sum(key in self.dht for key in self.refused)

    def _others(self) -> tuple[bytes, ...]:
        if self._only_met is None:
            dht = self.dht
            others = [key for key in self._met if key not in self.refused]
            self._only_met = tuple(key for key in others if dht is None or key not in dht)
        return self._only_met

    def contacts_changed(self, key: bytes | None = None) -> None:
        """Be told that a peer has become a contact of the DHT or is none any more; None: any of them."""
        if key is None or key in self._met:
            self._only_met = None

    def refuse(self, keys: Iterable[bytes]) -> None:
        """Pass these over from now on, and no others."""
        self.refused = frozenset(keys)
        self._only_met = None

    def meet(self, key: bytes, address: Address) -> None:
        self._met.pop(key, None)
        self._met[key] = address
        if len(self._met) > PEERS_MET_MAX:
            del self._met[next(iter(self._met))]
            self._only_met = None
        elif self._only_met is not None:
            is_other = key not in self.refused and (self.dht is None or key not in self.dht)
            self._only_met = (*[one for one in self._only_met if one != key], *([key] if is_other else ()))

    def forget(self, key: bytes) -> None:
        if self._met.pop(key, None) is not None:
            self._only_met = None

    def clear(self) -> None:
        self.dht = None
        self._met.clear()
        self._only_met = None


class Network:
    """Everything that has a socket."""

    def __init__(
        self,
        host: Host,
        credentials: GroupCredentials,
        channels: Channels,
        journal: Journal | None,
        scope: TaskScope,
        *,
        discover: bool,
        port_wanted: int,
        first_contacts: Sequence[Address],
        seeds: Sequence[tuple[str, int | None]] = (),
    ) -> None:
        self._host = host
        self._credentials = credentials
        self.channels = channels
        self._journal = journal
        self._scope = scope
        self._discover = discover
        self._port_wanted = port_wanted
        self._first_contacts = list(first_contacts)
        self.seeds = [Seed(host, name, port) for name, port in seeds]
        self._is_seeking = False
        self.datagrams = Datagrams(host, scope)
        self._dht_scope = TaskScope("dht")
        self.dht: Dht | None = None
        self.port = 0
        self._own: tuple[float, list[Address]] = (0.0, [])
        """Addresses of this machine, and until when they are taken for them."""
        self.is_on_network = False
        self.was_here = False
        """It had contacts in this group in an earlier life."""
        self._saved = b""
        """Digest of the contacts that were saved last."""
        self._saved_at = -SAVE_PAUSE_S
        self._is_saving = False
        self._to_meet: dict[Address, None] = {}
        self.names = Names()
        self.silent_since: dict[bytes, float] = {}
        """Contacts whose last channel broke, and when."""
        self._away: dict[bytes, Contact] = {}
        """Members that fell silent and are no contacts any more; see `away`."""
        self._unmet: dict[bytes, None] = {}
        """Contacts that are to be dialled to see whether they are members; at most DHT_K."""
        self.peers = Peers()
        self.lan = LanPresence(host, credentials, lambda: self.port, self._meet)
        self.on_peer: Callable[[bytes], None] = lambda _key: None
        """A member can be reached, at an address that may be new."""
        self.on_peer_gone: Callable[[bytes], None] = lambda _key: None
        self.on_change: Callable[[], None] = lambda: None

    # --- life -------------------------------------------------------------------------------------

    async def start(self, more_contacts: Sequence[Address] = ()) -> None:
        """Bind, listen, join the DHT of the group, announce on the LAN.

        A node that is alone in its group stays on loopback: nobody else may join it, so nobody needs to reach it.

        Raises:
            ChannelLost: no port could be bound.
        """
        group = self._credentials.group
        loopback_only = not group.is_open_to_others
        await self._bind(loopback_only)
        self.is_on_network = not loopback_only
        self._dht_scope = TaskScope("dht")
        port = KeyedPort(self.datagrams, self._credentials.network_keys(), self._receive)
        self.dht = Dht(
            self._host,
            self._credentials.identity,
            port,
            self._dht_scope,
            group_id=group.group_id,
            name=self._credentials.name,
            is_open=self._credentials.is_open,
            is_founder=group.founder == self._credentials.identity.public_key,
        )
        self._dht_port = port
        self.peers.dht = self.dht
        self.peers.contacts_changed()
        self.dht.on_contact = self._contact
        self.dht.on_contact_gone = self._contact_gone
        self.dht.on_contact_silent = self._contact_silent
        await self.restore_names()
        saved = await self._saved_contacts()
        self.was_here = bool(saved)
        await self.dht.start([], [*saved, *self._first_contacts, *more_contacts])
        if self._discover and not loopback_only:
            self.lan.start(self._dht_scope)
        self._dht_scope.spawn(self._upkeep(), "upkeep")
        self._seek_if_lost()

    @property
    def is_open(self) -> bool | None:
        """Whether the DHT knows that everybody may be in it; None: there is none."""
        return None if self.dht is None else self.dht.is_open

    def rekey(self) -> None:
        """Use the group's present network key, and accept only those that are still accepted."""
        if self.dht is not None:
            self._dht_port.rekey(self._credentials.network_keys())
            self.lan.changed()

    def range_of(self, key: bytes) -> bytes:
        """Return what names the address range in which a node was seen; empty: it was not."""
        addresses = self.peers.get(key, ())
        return source_range(addresses[0]) if addresses else b""

    def _receive(self, body: bytes, source: Address) -> None:
        if self.dht is not None:
            self.dht.receive(body, source)

    async def locate(self, key: bytes) -> list[Address]:
        """Ask the group where a member is; empty when nobody knows."""
        if self.dht is None:
            return []
        return [contact.address for contact in await self.dht.find(dht_id(key)) if contact.key == key]

    async def stop(self) -> None:
        """Say goodbye, withdraw the announcement, close everything."""
        if self.dht is None:
            return
        await self.save_contacts(is_last=True)
        await self.lan.stop()
        await self.dht.leave()
        await self._dht_scope.close()
        self._dht_port.close()
        for channel in self.channels.all():
            channel.close()
        await self.channels.stop_listening()
        self.datagrams.stop()
        self.dht = None
        self.peers.clear()
        self._to_meet.clear()
        self._unmet.clear()
        self._away.clear()
        self.is_on_network = False

    async def _bind(self, loopback_only: bool) -> None:
        """Use the port of last time, or choose one that is free for UDP and TCP and keep it."""
        kept = await self._journal.meta(PORT_META) if self._journal is not None else None
        wanted = self._port_wanted or (kept if isinstance(kept, int) else 0)
        for attempt in range(PORT_TRIES):
            port = 0
            try:
                port = await self.datagrams.start(wanted, loopback_only=loopback_only)
                self.port = await self.channels.listen(port, loopback_only=loopback_only)
                break
            except (ChannelLost, ConfigError) as error:
                if port:
                    self.datagrams.stop()
                if error.code == "interface":
                    raise  # another port would not help
                if self._port_wanted or attempt == PORT_TRIES - 1:
                    raise ChannelLost(
                        f"port {wanted or 'any'} cannot be used",
                        str(error),
                        "choose another: p2pc config set node.port N",
                        code="port",
                    ) from error
                wanted = 0  # the kept port is taken by somebody else now: take another one and keep that
        if self._journal is not None and self.port != kept:
            await self._host.store.commit([self._journal.meta_write(PORT_META, self.port)])

    # --- contacts ---------------------------------------------------------------------------------

    async def _saved_contacts(self) -> list[Address]:
        if self._journal is None:
            return []
        saved = await self._journal.meta(CONTACTS_META)
        group_id = self._credentials.group.group_id
        if not (isinstance(saved, list) and len(saved) == 2 and saved[0] == group_id):
            return []
        return [Address(host, port) for host, port in saved[1]]

    async def restore_names(self) -> None:
        """Know again what members are called that may be away now."""
        kept = None if self._journal is None else await self._journal.meta(NAMES_META)
        if isinstance(kept, list) and len(kept) == 2 and kept[0] == self._credentials.group.group_id:
            self.names.restore(kept[1], self._host.clock.wall())

    def _names_kept(self) -> list[Any]:
        """Return what members are called and when they were heard: those that are up, now."""
        wall, credentials = self._host.clock.wall(), self._credentials
        for key in self.peers:
            if self.is_up(key) and credentials.membership_of(key) is not None and (name := self.name_of(key)):
                self.names.note(key, name, wall)
        return self.names.saved(lambda key: credentials.membership_of(key) is not None)

    async def save_contacts(self, *, is_last: bool = False) -> None:
        """Keep who answered and what members are called, for the next start.

        Args:
            is_last: the node stops: also when nothing has changed but when members were heard.
        """
        if self._journal is None or self.dht is None:
            return
        group_id = self._credentials.group.group_id
        contacts = [[one.address.host, one.address.port] for one in self.dht.contacts(CONTACTS_SAVED_MAX)]
        names = self._names_kept()
        told = [(key, name, wall_s // NAMES_AGE_S) for key, name, wall_s in names]
        digest = hashlib.sha256(repr((group_id, contacts, sorted(told))).encode()).digest()
        if digest == self._saved and not is_last:
            return
        writes = [
            self._journal.meta_write(CONTACTS_META, [group_id, contacts]),
            self._journal.meta_write(NAMES_META, [group_id, names]),
        ]
        try:
            await self._host.store.commit(writes)
            self._saved, self._saved_at = digest, self._host.clock.now()
        except StoreError:
            return  # the store's trouble is reported where it matters; contacts are found again

    def _note_news(self, key: bytes, name: str) -> None:
        """Have a member's name written soon that is new here: a crash would make it a number that nobody knows."""
        known = self.names.get(key)
        is_news = bool(name) and (known is None or known.name != name) and self.dht is not None
        if is_news and not self._is_saving and self._credentials.membership_of(key) is not None:
            self._is_saving = True
            self._dht_scope.spawn(self._save_news(), "save names")

    async def _save_news(self) -> None:
        try:
            await self._host.clock.sleep(max(SAVE_FIRST_S, self._saved_at + SAVE_PAUSE_S - self._host.clock.now()))
        finally:
            self._is_saving = False
        await self.save_contacts()

    async def _upkeep(self) -> None:
        since_renewal = RENEW_CHECK_S
        await self._host.clock.sleep(SAVE_FIRST_S)
        await self.save_contacts()
        while True:
            await self._host.clock.sleep(SAVE_CONTACTS_S)
            await self.save_contacts()
            self._seek_if_lost()
            since_renewal += SAVE_CONTACTS_S
            self._dht_port.rekey(self._credentials.network_keys())  # a former one may have ended
            if since_renewal >= RENEW_CHECK_S and await self._renewed():
                since_renewal = 0.0

    @property
    def is_lost(self) -> bool:
        """Whether nobody answers, of all who are known."""
        return self.dht is not None and (self.dht.is_alone or self.dht.is_link_down)

    def _seek_if_lost(self) -> None:
        if self.seeds and self.is_on_network and self.is_lost and not self._is_seeking:
            self._is_seeking = True
            self._dht_scope.spawn(self._seek(), "seek")

    async def _seek(self) -> None:
        """Ask seed after seed until somebody answers.  Saved contacts and the local network get some time first."""
        clock, rng = self._host.clock, self._host.rng.stream("seeds")
        hint = group_hint(self._credentials.group.network_key)
        pause_s = SEED_RETRY_S_MIN
        try:
            await clock.sleep(SEED_PATIENCE_S)
            while self.dht is not None and self.is_lost:
                for seed in self.seeds:
                    addresses = await seed.ask(hint, self.own_addresses())
                    if addresses and self.dht is not None and await self.dht.join(addresses):
                        break
                if self.is_lost:
                    await clock.sleep(pause_s * rng.uniform(0.8, 1.2))
                    pause_s = min(2 * pause_s, SEED_RETRY_S_MAX)
        finally:
            self._is_seeking = False

    async def _renewed(self) -> bool:
        """Have our membership renewed by a peer when half of it is over; True when there is nothing to do."""
        credentials = self._credentials
        try:
            if not credentials.own_membership().wants_renewal(self._host.clock.wall()):
                return True
        except P2pcError:
            pass  # it has ended: renewal may still be granted
        for channel in self.channels.all():
            member = credentials.membership_of(channel.peer.installation)
            if member is None or not member.may_admit:
                continue
            try:
                credentials.group = await credentials.request_renew(channel)
            except (P2pcError, TimeoutError):
                continue
            self.on_change()
            return True
        return False

    def _contact(self, contact: Contact) -> None:
        self._note_news(contact.key, clean_name(contact.name))
        self._away.pop(contact.key, None)  # whoever says goodbye next time is not away
        self.peers.contacts_changed(contact.key)
        if contact.key not in self.peers.refused:
            self.on_peer(contact.key)
        if self.dht is not None and self.dht.contact_count <= DHT_K and not self.is_met(contact.key):
            self._unmet[contact.key] = None
            if len(self._unmet) == 1:
                self._dht_scope.spawn(self._acquaint(self.dht), "acquaint")

    async def _acquaint(self, dht: Dht) -> None:
        """Dial contacts that nobody had a reason to dial: who has the network key alone is no member."""
        rng = self._host.rng.stream("acquaint")
        while self._unmet:
            await self._host.clock.sleep(ACQUAINT_S * rng.uniform(0.5, 1.5))
            key = next(iter(self._unmet), b"")  # none is left when it was met meanwhile
            if key in self.peers and not self.is_met(key) and dht.contact_count <= DHT_K:
                await self.channels.dial(key, self.peers[key])
            self._unmet.pop(key, None)

    def is_met(self, key: bytes) -> bool:
        """Whether a peer has shown in this life of the node that it is a member, or speaks for one."""
        return self.channels.get(key) is not None or self._credentials.installation_of(key) is not None

    def _contact_gone(self, contact: Contact) -> None:
        self.silent_since.pop(contact.key, None)
        self._note_name(contact)
        self.peers.contacts_changed(contact.key)
        self.peers.forget(contact.key)
        channel = self.channels.get(contact.key)
        if channel is not None:
            channel.probe()  # it may have died with its node and not know yet
        self.on_peer_gone(contact.key)
        self._seek_if_lost()

    def _contact_silent(self, contact: Contact) -> None:
        """Keep a member that was met and does not answer any more: it may come back.  A session's key dies with it."""
        if self._credentials.membership_of(contact.key) is None:
            return
        self._away.pop(contact.key, None)
        self._away[contact.key] = contact
        if len(self._away) > PEERS_MAX:
            del self._away[next(iter(self._away))]

    def away(self) -> Mapping[bytes, Contact]:
        """Return the members that fell silent within AWAY_S, as they were last heard; bound: PEERS_MAX."""
        now, wall = self._host.clock.now(), self._host.clock.wall()
        for key, contact in list(self._away.items()):
            member = self._credentials.membership_of(key)
            is_member = member is not None and member.expires > wall
            if key in self.peers or not is_member or now - contact.seen > AWAY_S:
                del self._away[key]
        return self._away

    def is_up(self, key: bytes) -> bool:
        """Whether a peer was heard lately, and has not left a sign of life owing on its channel."""
        channel = self.channels.get(key)
        silent_since = self.silent_since.get(key, 0.0) if channel is None else channel.unanswered_since
        if silent_since is None:
            return True
        contact = self.dht.knows(key) if self.dht is not None else None
        if self.dht is None or contact is None or not contact.seen:
            return False
        is_late = self._host.clock.now() - contact.seen >= NOT_SEEN_S * self.dht.patience
        return not is_late and contact.seen > silent_since

    def seen_s(self, key: bytes) -> float | None:
        """Return how many seconds ago a peer was heard last, in this life of the node; None: never."""
        channel, contact = self.channels.get(key), self._away.get(key)
        if contact is None and self.dht is not None:
            contact = self.dht.knows(key)
        ages = [] if channel is None else [channel.heard_s]
        if contact is not None and contact.seen:
            ages.append(self._host.clock.now() - contact.seen)
        return min(ages, default=None)

    def ask_for_signs(self) -> None:
        """Have peers of which nothing has come for CHANNEL_PING_S say that they are there: somebody looks."""
        for channel in self.channels.all():
            if channel.heard_s >= CHANNEL_PING_S:
                channel.probe()

    def silent(self) -> set[bytes]:
        """Return the members that are known and were not heard lately."""
        return {key for key in (*self.peers, *self.away()) if not self.is_up(key)}

    def name_of(self, key: bytes) -> str:
        """What a peer calls itself, also one that has left; empty when it has never said so."""
        contact = self.dht.knows(key) if self.dht is not None else None
        if contact is not None and contact.name:
            return clean_name(contact.name)
        heard = self.names.get(key)
        return "" if heard is None else heard.name

    def heard_s(self, key: bytes) -> float | None:
        """Return when a peer was heard last, in Unix seconds, also in earlier lives; None: that is not known."""
        seen_s = self.seen_s(key)
        if seen_s is not None:
            return self._host.clock.wall() - seen_s
        heard = self.names.get(key)
        return None if heard is None else heard.wall_s

    def _note_name(self, contact: Contact) -> None:
        """Remember what a contact was called that is none any more."""
        if contact.name and contact.seen:
            wall_s = self._host.clock.wall() - (self._host.clock.now() - contact.seen)
            self.names.note(contact.key, clean_name(contact.name), wall_s)

    def _meet(self, key: bytes, addresses: Sequence[Address]) -> None:
        """Knock at a peer's addresses unless it is a contact already; those of one moment share one look around."""
        if self.dht is None or self.dht.knows(key) is not None or len(self._to_meet) >= NEARBY_MAX:
            return
        is_first = not self._to_meet
        self._to_meet.update(dict.fromkeys(addresses))
        if is_first and self._to_meet:
            self._dht_scope.spawn(self._meet_all(self.dht), "meet")

    async def _meet_all(self, dht: Dht) -> None:
        await self._host.clock.sleep(MEET_DELAY_S)
        addresses, self._to_meet = list(self._to_meet), {}
        await dht.join(addresses)

    def channel_lost(self, channel: Channel) -> None:
        """Doubt a peer whose channel broke until it is heard again."""
        key = channel.peer.key
        self.names.note(key, channel.peer.name, self._host.clock.wall())
        if self.dht is not None and self.dht.knows(key) is not None and self.channels.get(key) is None:
            self.silent_since[key] = self._host.clock.now()

    def channel_opened(self, channel: Channel) -> None:
        """Learn a peer's name and address from a channel: a peer whose datagrams do not come through is met too."""
        self._note_news(channel.peer.key, channel.peer.name)
        self.names.note(channel.peer.key, channel.peer.name, self._host.clock.wall())
        port = channel.peer.hello.get("port")
        if type(port) is int and 0 < port < 65536:
            address = Address(channel.address.host, port)
            self.peers.meet(channel.peer.key, address)
            self.on_peer(channel.peer.key)
            self._meet(channel.peer.key, [address])

    def own_addresses(self) -> list[Address]:
        """Where peers may reach this node."""
        if not self.is_on_network:
            return [Address(LOOPBACK, self.port)]
        now = self._host.clock.now()
        if now >= self._own[0]:  # asking the system takes longer than granting a task
            addresses = [Address(host, self.port) for host in self._host.net.local_addresses()]
            self._own = (now + OWN_ADDRESSES_S, addresses)
        return self._own[1]
