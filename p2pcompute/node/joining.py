"""How a node gets into a group, and lets others in: tokens for scripts, a few words for people, and standing ways.

By words the inviter is found on the local network by the number of the invitation, which it announces (the words are
never announced), or at the address that goes along with the code.  Standing ways (`trust.admission.STANDING`) are open
as long as a member's settings say so; it announces them too.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from p2pcompute.config import parse_peer
from p2pcompute.errors import ChannelLost, NodeUnavailable, TrustError, UsageError
from p2pcompute.host.interfaces import Address, Host, LanSighting, Timer
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import INVITE_NEWS_MAX, INVITES_CLOSED_MAX, INVITES_OPEN_MAX
from p2pcompute.node.doors import JOIN, MEET, Doors, Visitor
from p2pcompute.node.facade import AdmittedView, DoorView, InviteState, InviteView, JoinView, OpenInviteView
from p2pcompute.node.membership import Admitted, GroupCredentials, Joined
from p2pcompute.node.network import Network
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.transport.messages import Purpose
from p2pcompute.trust.admission import KEY, NEARBY, OPEN, PSK, Entry
from p2pcompute.trust.groups import MEMBER_ROLES, Group, check_may_admit, check_may_grant
from p2pcompute.trust.invites import Invite, Token, format_token, parse_token
from p2pcompute.trust.levels import Level, LevelNote
from p2pcompute.trust.open_door import next_start, read_challenge, work
from p2pcompute.trust.pins import Pins
from p2pcompute.trust.words import Code, is_code, parse_code

BY_INVITATION: Final = "invited as mine"
FIND_INVITER_S_MAX: Final = 10.0
"""How long the local network is searched for the number of an invitation."""
ENTRIES_TRIED_MAX: Final = 8
"""Members at which a pre-shared key is tried: those of other groups have another one."""
_WAYS: Final = {
    PSK: "p2pc config set admit.psk FILE; p2pc node restart",
    KEY: "p2pc config set admit.keys FILE; p2pc node restart",
    NEARBY: "p2pc config set admit.nearby true; p2pc node restart",
    OPEN: "p2pc group policy open=true",
}
"""What a member's owner does so that others may come in by a method."""
HANDLE_CHARS: Final = 8
"""Of the id of an invitation by token, as people type it."""
INVITES_SHOWN_MAX: Final = 6
"""Invitations that `status` names; `p2pc invite --withdraw` knows all."""
MEET_ATTEMPTS: Final = 5
"""Connections to an inviter that are made when it cuts them off."""


def _handle(invite: Invite) -> str:
    """Return what people call an invitation: the number of its code, or for a token the beginning of its id."""
    return str(invite.number) if invite.number else invite.id.hex()[:HANDLE_CHARS]


class Joining:
    """Invitations made here, and the way into another group."""

    def __init__(
        self,
        host: Host,
        identity: Identity,
        credentials: GroupCredentials,
        channels: Channels,
        network: Network,
        change_group: Callable[[Group, Sequence[Address]], Awaitable[None]],
        pins: Pins,
    ) -> None:
        self._host = host
        self._identity = identity
        self._credentials = credentials
        self._channels = channels
        self._network = network
        self._change_group = change_group
        self._pins = pins
        self._doors = Doors(host, credentials)
        self._visitor = Visitor(host, credentials)
        self._admitted: dict[bytes, list[Admitted]] = {}
        """Invitation → whom it let in; of at most as many invitations as are remembered."""
        self._refused: list[tuple[float, str]] = []
        """When, who did not know the words, and what it was told."""
        self._ending: Timer | None = None
        self.is_out: Callable[[], bool] = lambda: False
        """Says whether this node is no member of its group any more."""
        credentials.on_admitted = self._on_admitted
        credentials.on_refused = self._on_refused
        channels.on_request(JOIN, self._on_join)
        channels.on_request(MEET, self._on_meet)

    # --- inviting ---------------------------------------------------------------------------------

    async def invite(
        self, *, uses: int, expires_s: float, words: int, roles: Sequence[str] = MEMBER_ROLES, is_mine: bool = False
    ) -> InviteView:
        """Open an invitation.  The first one opens the group: from then on this node listens on the network."""
        if self._identity.delegation is not None:
            raise TrustError("an embedded node cannot invite", "only the installation may", "run: p2pc invite")
        invites = self._credentials.invites
        invites.check_terms(uses=uses, expires_s=expires_s, roles=roles, words=words)
        roles = self._grantable(roles, is_mine=is_mine)
        group = self._credentials.group
        if not group.is_open_to_others:
            await self._change_group(group.opened(), ())
        elsewhere = await self._network.lan.invites_nearby() if words else ()
        now = self._host.clock.now()
        invite = invites.create(
            now,
            uses=uses,
            expires_s=expires_s,
            roles=roles,
            words=words,
            numbers_elsewhere=elsewhere,
            removals=frozenset(entry.id for entry in self._credentials.roster.removed().values()),
            is_mine=is_mine,
        )
        addresses = tuple(self._network.own_addresses())
        expires = int(self._host.clock.wall() + expires_s)
        token = code = ""
        if words:
            code = str(invite.code)
            self._numbers_changed()
        else:
            token = format_token(
                Token(
                    addresses=addresses,
                    inviter=self._identity.public_key,
                    secret=invite.secret,
                    group_name=self._credentials.group.name,
                    expires=expires,
                )
            )
        return InviteView(
            id=invite.id,
            token=token,
            code=code,
            addresses=tuple(map(str, addresses)),
            expires=float(expires),
            group=self._credentials.group.name,
            uses=invite.uses,
            handle=_handle(invite),
        )

    def _grantable(self, roles: Sequence[str], *, is_mine: bool) -> Sequence[str]:
        """Return what an invitation grants: what was asked for, or for a computer of ours all that we may do.

        Raises:
            TrustError: this node may not invite, or lacks a role that it would grant.
        """
        own = self._credentials.own_membership()
        check_may_admit(own)
        granted = own.roles if is_mine else roles
        check_may_grant(own, granted)
        return granted

    def state(self, invitation: bytes) -> InviteState:
        """What has become of an invitation.

        Raises:
            UsageError: it is not known, or no longer.
        """
        invite = self._credentials.invites.find(self._host.clock.now(), invitation)
        if invite is None:
            raise UsageError("this invitation is not known here", "the node was restarted since, or it is long over")
        admitted = tuple(AdmittedView(one.key, one.name, one.address) for one in self._admitted.get(invitation, ()))
        return InviteState(
            ending="" if invite.ending is None else str(invite.ending),
            admitted=admitted,
            tries_left=invite.failures_left,
            refused=tuple(text for at, text in self._refused if at >= invite.created),
        )

    def notes(self) -> list[str]:
        """Say what is open: whoever has such a code or token comes in."""
        now = self._host.clock.now()
        found = self._credentials.invites.open_invites(now)
        if not found:
            return []
        many = "1 invitation is" if len(found) == 1 else f"{len(found)} invitations are"
        handles = ", ".join(map(_shown, found[:INVITES_SHOWN_MAX])) + ", …" * (len(found) > INVITES_SHOWN_MAX)
        places = sum(invite.uses - len(invite.admitted) for invite in found)
        minutes = math.ceil(max(invite.expires - now for invite in found) / 60)
        which = _handle(found[0]) if len(found) == 1 else "NUMBER takes one back, --withdraw all"
        back = f"p2pc invite --withdraw {which} takes {'it' if len(found) == 1 else 'all'} back"
        return [f"{many} open ({handles}): {places} may join, within {minutes} min; {back}"]

    def open_invites(self) -> list[OpenInviteView]:
        """Return the invitations that can still be used, oldest first."""
        now, wall = self._host.clock.now(), self._host.clock.wall()
        return [
            OpenInviteView(
                id=invite.id,
                handle=_handle(invite),
                uses_left=invite.uses_left,
                expires=wall + invite.expires - now,
                is_mine=invite.is_mine,
                roles=invite.roles,
            )
            for invite in self._credentials.invites.open_invites(now)
        ]

    def withdraw(self, invitation: bytes) -> bool:
        """Take an invitation back; returns whether it was open."""
        was_open = self._credentials.invites.withdraw(self._host.clock.now(), invitation)
        self._numbers_changed()
        return was_open

    def _on_admitted(self, invite: Invite | None, admission: Admitted) -> None:
        if invite is None:
            return
        if invite.is_mine:
            removals = self._credentials.roster.log.removals_of(admission.key)
            self._trust(admission.key, admission.name, removals)
        known = self._admitted.setdefault(invite.id, [])
        if all(one.key != admission.key for one in known):
            known.append(admission)
        while len(self._admitted) > INVITES_OPEN_MAX + INVITES_CLOSED_MAX:
            del self._admitted[next(iter(self._admitted))]
        self._numbers_changed()

    def _on_refused(self, address: str, refusal: TrustError) -> None:
        self._refused.append((self._host.clock.now(), f"{address}: {refusal.what}"))
        del self._refused[:-INVITE_NEWS_MAX]
        self._numbers_changed()

    def _numbers_changed(self) -> None:
        """Announce what is open, and again when the next one ends."""
        self._network.lan.invites_changed()
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        now = self._host.clock.now()
        ends = [invite.expires for invite in self._credentials.invites.open_invites(now) if invite.number]
        if ends:
            self._ending = self._host.clock.call_later(max(0.0, min(ends) - now), self._numbers_changed)

    def close(self) -> None:
        """Nothing is announced any more."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    # --- those who come ---------------------------------------------------------------------------

    def _contacts(self) -> list[Address]:
        dht = self._network.dht
        return [contact.address for contact in dht.contacts()] if dht is not None else []

    async def _on_join(self, channel: Channel, body: Any) -> Any:
        return self._doors.answer_join(channel, body, self._contacts())

    async def _on_meet(self, channel: Channel, body: Any) -> Any:
        return self._doors.answer_meet(channel, body)

    # --- joining ----------------------------------------------------------------------------------

    def read(self, text: str) -> Code | Token:
        """Return the invitation that was typed, if it can be of use here; nothing is tried yet.

        Raises:
            UsageError: it is none, or was made here.
            TrustError: this node is in a group already.
        """
        invitation = parse_code(text) if is_code(text) else parse_token(text)
        self._must_be_alone()
        if isinstance(invitation, Token) and invitation.inviter == self._identity.public_key:
            raise UsageError(
                "this token was made on this node", "it is for another computer", "run it there", code="own-token"
            )
        return invitation

    def _must_be_alone(self) -> None:
        if self._credentials.group.is_open_to_others and not self.is_out():
            raise TrustError(
                f"this node is in group {self._credentials.group.name!r} already",
                "each further group of a computer has a node of its own",
                "to be in both: p2pc group create NAME, then p2pc -g NAME join …; to give this one up: p2pc leave",
                code="in-group",
            )

    async def join(self, invitation: Code | Token | Entry) -> JoinView:
        """Join the group of an invitation, or of a member that lets others in.

        Raises:
            TrustError: the inviter refused, or cannot be told from another one.
            NodeUnavailable: the inviter cannot be found or does not answer.
        """
        if isinstance(invitation, Code):
            return await self._join_by_words(invitation)
        if isinstance(invitation, Entry):
            return await self._join_by_entry(invitation)
        return await self._join_by_token(invitation)

    async def doors(self, method: str, via: str) -> list[DoorView]:
        """Return the members that let others in by a method: on the local network, or the one at an address.

        Raises:
            NodeUnavailable: there is none.
            TrustError: this node is in a group already, or was refused.
        """
        self._must_be_alone()
        return [
            DoorView(
                name=name, key=key, address=", ".join(map(str, addresses)), pinned=self._pins.get(_label(name, via))
            )
            for name, key, addresses in await self._places(method, via)
        ]

    async def _places(self, method: str, via: str) -> list[tuple[str, bytes, list[Address]]]:
        """Name, key and addresses of those that let others in by a method."""
        if via:
            addresses = await self._resolve(via)
            try:
                channel = await self._channels.meet(addresses)
            except (ChannelLost, TimeoutError) as error:
                raise _silent(via, addresses, error, method) from error
            channel.close()
            return [(channel.peer.name, channel.peer.key, addresses)]
        found = await self._network.lan.look_around(lambda said: method in said.admits, time_s_max=FIND_INVITER_S_MAX)
        if not found:
            raise NodeUnavailable(
                "nobody on this network lets others in that way",
                f"looked for {FIND_INVITER_S_MAX:.0f} s by multicast DNS",
                f"is it elsewhere, give its address: --via HOST:PORT; else let others in there: {_WAYS[method]}",
                code="no-inviter",
            )
        return [(one.announcement.name, one.announcement.public_key, _addresses(one)) for one in found]

    async def _join_by_entry(self, entry: Entry) -> JoinView:
        self._must_be_alone()
        places = await self._places(entry.method, entry.via)
        if entry.inviter is not None:
            places = [place for place in places if place[1] == entry.inviter]
        if not places:
            raise TrustError(
                "the node that was meant is not there",
                "others answer, with other keys",
                "look: p2pc join",
                code="no-inviter",
            )
        for place, (name, key, addresses) in enumerate(places[:ENTRIES_TRIED_MAX], 1):
            try:
                return await self._enter_at(entry, name, key, addresses)
            except TrustError as refusal:
                if refusal.code != "psk-wrong" or place == min(len(places), ENTRIES_TRIED_MAX):
                    raise
        raise AssertionError("unreachable")

    async def _enter_at(self, entry: Entry, name: str, key: bytes, addresses: Sequence[Address]) -> JoinView:
        proof = entry.proof
        if entry.method == OPEN and key:
            proof = await self._work(key, addresses)
        if entry.method != PSK:
            if entry.inviter is None:
                raise UsageError("whose key must the other computer have?", "", "--inviter ID", code="which-inviter")
            self._pins.check(_label(name, entry.via), key, who=entry.via or name)
        try:
            channel = await self._channels.meet(addresses, key)
        except (ChannelLost, TimeoutError) as error:
            raise _silent(name, addresses, error, entry.method) from error
        try:
            if entry.method == PSK:
                joined = await self._visitor.join_by_psk(channel, entry.proof)
            else:
                joined = await self._visitor.join_with(channel, entry.method, proof)
            return await self._enter(joined, channel, addresses)
        finally:
            channel.close()

    async def _work(self, key: bytes, addresses: Sequence[Address]) -> bytes:
        """Do what an open group asks for at its door; a channel of a joiner does not wait so long."""
        channel = await self._channels.meet(addresses, key)
        try:
            group_id, bits = read_challenge(await self._visitor.ask_open(channel))
        finally:
            channel.close()
        start = int.from_bytes(self._host.crypto.random_bytes(4), "big") << 24
        while (number := work(group_id, self._identity.public_key, bits, start)) is None:
            start = next_start(start)
            await self._host.clock.sleep(0)
        return number

    async def _join_by_token(self, token: Token) -> JoinView:
        addresses: list[Address] = []
        for address in token.addresses:
            addresses += await self._host.net.resolve(address.host, address.port)
        try:
            channel = await self._channels.connect(
                token.inviter, addresses, purpose=Purpose.JOIN, invite_secret=token.secret
            )
        except (ChannelLost, TimeoutError) as error:
            token.check_expiry(self._host.clock.wall())
            raise _silent(f"the inviter of group {token.group_name!r}", addresses, error) from error
        try:
            joined = await self._visitor.join_by_token(channel, token)
        finally:
            channel.close()
        return await self._enter(joined, channel, addresses)

    async def _join_by_words(self, code: Code) -> JoinView:
        addresses, key = await self._addresses_of(code)
        for attempt in range(MEET_ATTEMPTS):
            try:
                channel = await self._channels.meet(addresses, key)
            except (ChannelLost, TimeoutError) as error:
                raise _silent("the inviter", addresses, error) from error
            try:
                joined = await self._visitor.join_by_words(channel, code)
                return await self._enter(joined, channel, addresses)
            except ChannelLost:  # others crowd in there, and this one had to make room
                if attempt == MEET_ATTEMPTS - 1:
                    raise
                await self._host.clock.sleep(self._host.rng.stream("joining").uniform(0.2, 1.0))
            finally:
                channel.close()
        raise AssertionError("unreachable")

    async def _addresses_of(self, code: Code) -> tuple[list[Address], bytes | None]:
        """Where the inviter is, and its key if it has announced itself."""
        if code.address:
            return await self._resolve(code.address), None
        inviters = await self._network.lan.look_around(
            lambda said: code.number in said.invites, time_s_max=FIND_INVITER_S_MAX
        )
        if not inviters:
            raise NodeUnavailable(
                f"nobody on this network has an open invitation {code.number}",
                f"looked for {FIND_INVITER_S_MAX:.0f} s by multicast DNS, and tried nothing; one that was used, "
                "taken back or has expired is not open any more",
                "if it is open there still and that computer is elsewhere, give its address: "
                f"p2pc join {code.number}-…@HOST:PORT; else make a NEW one there: p2pc invite",
                code="no-inviter",
            )
        if len(inviters) > 1:
            names = ", ".join(sorted(f"{one.announcement.name} ({one.addresses[0]})" for one in inviters))
            raise TrustError(
                f"{len(inviters)} nodes announce invitation {code.number}: {names}",
                "one of them may want to be taken for the other; nothing was tried",
                f"say which: p2pc join {code.number}-…@HOST:PORT",
                code="two-inviters",
            )
        return _addresses(inviters[0]), inviters[0].announcement.public_key

    async def _resolve(self, text: str) -> list[Address]:
        host, port = parse_peer(text)
        found = await self._host.net.resolve(host, port)
        if not found:
            raise NodeUnavailable(f"{host} has no address", "", "check the name, or give an address")
        return found

    async def _enter(self, joined: Joined, channel: Channel, addresses: Sequence[Address]) -> JoinView:
        inviter = channel.peer
        if joined.is_mine:
            self._trust(inviter.key, inviter.name, joined.removals)
        await self._change_group(joined.group, [*addresses, *joined.contacts])
        return JoinView(
            group=joined.group.name,
            inviter=inviter.name,
            inviter_key=inviter.key,
            address=str(channel.address),
            is_mine=joined.is_mine,
        )

    def _trust(self, key: bytes, name: str, removals: tuple[bytes, ...]) -> None:
        """Trust the other side of an invitation that says that both computers are of one owner."""
        wall = self._host.clock.wall()
        note = LevelNote(
            level=Level.TRUSTED, name=name, reason=BY_INVITATION, set_at=wall, is_mine=True, removals=removals
        )
        self._credentials.levels.set(key, note)


def _silent(who: str, addresses: Sequence[Address], error: Exception, method: str = "") -> NodeUnavailable:
    """Say that nobody answered; a node answers those who are no members only as long as there is a way in.

    Args:
        method: the standing way in that was tried; empty: an invitation.
    """
    only = "while it lets others in" if method else "while the invitation is open"
    remedy = f"let others in there: {_WAYS[method]}" if method else "make a new one there: p2pc invite"
    return NodeUnavailable(
        f"{who} does not answer",
        f"tried {', '.join(str(address) for address in addresses) or 'no address'}: {error}."
        f" A node answers only {only}",
        f"check that it runs and can be reached, or {remedy}",
        code="no-inviter",
    )


def _addresses(sighting: LanSighting) -> list[Address]:
    return [Address(host, sighting.announcement.port) for host in sighting.addresses]


def _shown(invite: Invite) -> str:
    """Its handle, and what it grants where that is not what a plain member may."""
    if invite.is_mine:
        return f"{_handle(invite)} as your own"
    return _handle(invite) + ("" if invite.roles == MEMBER_ROLES else f" to {' and '.join(invite.roles)}")


def _label(name: str, via: str) -> str:
    """Under which the key of a member is remembered: what people go by."""
    return f"node {via or name}"
