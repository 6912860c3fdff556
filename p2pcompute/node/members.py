"""Who is who to this node: levels, roles, removals, and what follows when they change.

What is decided takes effect at once: channels are closed, contacts passed over, the jobs of those who may not have them
run here any more are ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from p2pcompute.errors import IdentityError, RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.interfaces import Host, Timer
from p2pcompute.host.tasks import TaskScope
from p2pcompute.ids import PUBLIC_KEY_BYTES, short_device_id
from p2pcompute.limits import REASON_CHARS_MAX
from p2pcompute.node.facade import PolicyView, TrustView
from p2pcompute.node.log_exchange import LogExchange
from p2pcompute.node.log_records import LogRecords
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.node.network import Network
from p2pcompute.node.own_machines import OwnMachines
from p2pcompute.scheduler.service import Scheduler
from p2pcompute.scheduler.terms import JobEnvelope
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.trust.groups import NETWORK_KEY_BYTES, Membership, admit, check_may_grant, name_heir
from p2pcompute.trust.levels import Level, LevelNote, read_removals
from p2pcompute.trust.log import CLOSED, REMOVED, Added, LogEntry, make_limit, make_policy, make_rotation
from p2pcompute.trust.policy import GroupPolicy

LEVEL: Final = 77
"""[installation, level, [removal that was known, …]], a node → programs that embed the library under its key"""
KEEP_AGAIN_S: Final = 30.0
KEEP_S: Final = 2.0
"""News about members is written down together; removals are at once."""
_CANNOT: Final = {
    "submit": "may not have work done by others (its jobs run here only)",
    "work": "is given no work of others",
}


def clean_reason(text: str) -> str:
    """Return a reason as it may be shown."""
    return "".join(char for char in text if char.isprintable()).strip()[:REASON_CHARS_MAX]


class Members:
    """The installations that this node knows."""

    def __init__(
        self,
        host: Host,
        credentials: GroupCredentials,
        channels: Channels,
        network: Network,
        scheduler: Scheduler,
        scope: TaskScope,
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._levels = credentials.levels
        self._removed: Mapping[bytes, LogEntry] = {}
        self._over: Collection[bytes] = ()
        """Strangers that are in the group no longer."""
        self._is_out = False
        """This node was removed from the group itself: the work of its members is none of its business."""
        self._channels = channels
        self._network = network
        self._scheduler = scheduler
        self._own = credentials.identity.installation
        self._keeping: Timer | None = None
        self._kept = credentials.roster.digest
        """Digest of what is known of the group, as it was written down last."""
        self._scope = scope
        self._is_asking = False
        self._told_removed = ""
        """What a peer said that did not take us for a member any more."""
        self.on_policy: Callable[[GroupPolicy], None] = lambda _policy: None
        """Called with the policy of the group when it may have changed."""
        self.exchange = LogExchange(host, credentials, channels, scope, self._on_heard, lambda: len(network.peers) + 1)
        self.records = LogRecords(host, credentials, channels, network, self.exchange, scope)
        self._own_machines = OwnMachines(
            channels,
            self._levels,
            self._own,
            host.clock.wall,
            lambda: credentials.roster.log,
            self._own_machines_changed,
        )
        scheduler.may_submit = self._may_submit
        scheduler.victim.may_work = self._may_work
        if scheduler.custody is not None:
            scheduler.custody.installation_of = credentials.installation_of
        scheduler.introduce = self.exchange.introduce
        channels.on_refused = self._on_refused
        channels.on_message(LEVEL, self._on_level)
        self._look()

    def group_changed(self) -> None:
        """Be told that this node is in another group now."""
        self._told_removed = ""
        self._apply()

    def close(self) -> None:
        """Write down what was learned last."""
        self.exchange.close()
        if self._keeping is not None or self._kept != self._credentials.roster.digest:
            self._keep_or_retry()
            if self._keeping is not None:
                self._keeping.cancel()

    def is_refused(self, installation: bytes) -> bool:
        """Whether nothing is to be had from an installation and nothing given to it."""
        is_out = installation in self._removed or installation in self._over
        return self._levels.is_blocked(installation) or (is_out and installation not in self._credentials.roster)

    def admits(self, channel: Channel) -> bool:
        """Look at a channel that has just opened: its handshake may have begun before it was refused."""
        if not self.is_refused(channel.peer.installation):
            return True
        channel.abort("refused meanwhile")
        return False

    def channel_opened(self, channel: Channel) -> None:
        """Compare what is known of the group with a new peer; who was not known before is told to the others."""
        self._told_removed = ""
        self._mind_invited()
        if self._kept != self._credentials.roster.digest:  # or who is away could not be removed after a restart
            self._keep_soon()
        self.exchange.channel_opened(channel)
        self._own_machines.channel_opened(channel)
        self._mind_key()
        self._tell_program(channel, self._levels.notes)  # those set since it has read them

    def _on_refused(self, _key: bytes, refusal: TrustError) -> None:
        if refusal.code in (REMOVED, CLOSED):
            self._told_removed = refusal.what.removeprefix("refused: ")

    def _may_submit(self, job: JobEnvelope) -> bool | None:
        """Whether the submitter of a job has the role submit, and is not refused; None: nothing is known of it."""
        if job.submitter == self._own:
            return True
        if self._is_out or (job.terms.group and job.terms.group != self._credentials.group.group_id):
            return False
        if self.is_refused(job.submitter):
            return False
        member = self._credentials.membership_of(job.submitter)
        return None if member is None else "submit" in member.roles

    def _may_work(self, installation: bytes) -> bool:
        member = self._credentials.membership_of(installation)
        if installation == self._own:
            return True
        return not self.is_refused(installation) if member is None else "work" in member.roles

    @property
    def removed_text(self) -> str:
        """Who has removed this node from its group, as far as it knows; empty: it was not removed."""
        if not self._credentials.group.is_open_to_others:
            return ""
        try:
            self._credentials.own_membership()
        except TrustError as error:
            return error.what.removeprefix("refused: ") if error.code in (REMOVED, CLOSED) else ""
        return self._told_removed

    def notes(self) -> list[str]:
        """What the owner of this machine should know of its place in the group."""
        name = self._credentials.group.name
        if text := self.removed_text:
            return [f"{text.replace('the group', f'group {name}', 1)}; a new invitation brings it back: p2pc join"]
        own = self._credentials.own_membership_if_any()
        if own is None:
            return [f"the membership in group {name} has ended: it was not renewed in time; ask for a new invitation"]
        missing = [word for role, word in _CANNOT.items() if role not in own.roles]
        notes = [f"in group {name} this computer {' and '.join(missing)}"] if missing else []
        log = self._credentials.roster.log
        if count := len(log.not_understood()):
            what = f"group {name} uses something that this version of p2pcompute does not know ({count} in its log)"
            lost = ", so no work of others is taken here" if log.is_beyond else ""
            notes.append(f"{what}{lost}: update it, then p2pc node restart")
        return notes

    # --- what was learned -------------------------------------------------------------------------

    def _on_heard(self, has_grown: bool) -> None:
        """Let what others have told take effect, and write it down: removals at once."""
        self._adopt()
        if has_grown:
            self._apply()
            self._mind_key()
            self._keep_or_retry()
            return
        self._mind_invited()
        self._keep_soon()
        self._scheduler.wake()

    def _keep_soon(self) -> None:
        if self._keeping is None:
            self._keeping = self._host.clock.call_later(KEEP_S, self._keep_or_retry)

    def _keep_or_retry(self) -> None:
        """Write down what is known, or again in a while when the disk takes nothing: the others know it too."""
        try:
            self._keep()
        except IdentityError:
            self._keeping = self._host.clock.call_later(KEEP_AGAIN_S, self._keep_or_retry)

    def _mind_invited(self) -> None:
        """Pass those over no longer that were removed and are members again."""
        if any(key in self._credentials.roster for key in (*self._removed, *self._over)):
            self._apply()

    def _mind_key(self) -> None:
        """Get the network key that the group uses, if this node has not got it."""
        if self.exchange.wanted_key and not self._is_asking:
            self._is_asking = True
            self._scope.spawn(self._ask_key(), "network-key")

    async def _ask_key(self) -> None:
        try:
            key = await self.exchange.ask_key()
        finally:
            self._is_asking = False
        if key and key != self._credentials.group.network_key:
            self._use_key(key)

    def _use_key(self, key: bytes) -> None:
        credentials = self._credentials
        credentials.group = credentials.group.rekeyed(key, self._host.clock.wall())
        self._network.on_change()
        self._network.rekey()

    def _keep(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        self._credentials.keep_roster()
        self._kept = self._credentials.roster.digest

    def _adopt(self) -> None:
        """Show the chain from now on that an administrator has given us, if it is worth more."""
        chain, member = self._credentials.roster.chain_of(self._own), self._credentials.membership_of(self._own)
        if chain is None or member is None or chain == self._credentials.group.chain:
            return
        own = self._credentials.own_membership_if_any()
        is_worse = own is not None and member.is_stranger and not own.is_stranger
        if own is None or (not is_worse and (set(member.roles) > set(own.roles) or member.rank < own.rank)):
            self._credentials.group = self._credentials.group.with_chain(chain)
            self._network.on_change()

    def _apply(self) -> None:
        """Let what is refused now be refused everywhere, and the policy of the group hold."""
        self._look()
        self.records.publish()
        self.on_policy(self._credentials.roster.log.policy())
        self._channels.cut(self.is_refused)
        self._scheduler.drop_refused()

    def _look(self) -> None:
        """See who is refused, and hear of them no more."""
        self._scheduler.owner.core.group = self._credentials.group.group_id
        self._credentials.know_self()
        self._end_levels()
        self._removed = self._credentials.roster.removed()
        self._over = frozenset(self._credentials.roster.over)
        self._is_out = self._own in self._removed or self._own in self._over
        blocked = [key for key in self._levels.notes if self._levels.is_blocked(key)]
        self._network.peers.refuse([*blocked, *self._removed, *self._over])

    def _end_levels(self) -> None:
        """Trust those no longer that were removed since it was said, also when they are members again already."""
        ended = self._levels.end_removed(self._credentials.roster.log.is_removed_since)
        self._own_machines.ended(ended)
        for channel in self._channels.all() if ended else ():
            self._tell_program(channel, ended)

    # --- administration ---------------------------------------------------------------------------

    def remove(self, key: bytes, *, reason: str = "") -> TrustView:
        """Remove a member from the group, for all members and until somebody invites it again.

        Raises:
            UsageError: it is no member that is known here.
            TrustError: this node may not remove it.
        """
        member = self._member(key)
        self._limit(member, (), reason)
        self.rotate()
        return self._view(key)

    def rotate(self) -> None:
        """Put another network key in use: who was removed knows the present one.

        Raises:
            TrustError: this node may not do that.
        """
        credentials, roster, wall = self._credentials, self._credentials.roster, self._host.clock.wall()
        key = self._host.crypto.random_bytes(NETWORK_KEY_BYTES)
        entry = make_rotation(credentials.identity, credentials.group, roster.log, self._host.crypto, key, wall=wall)
        if roster.add(entry, wall) is not Added.NEW:
            return  # the log is full; the key is a filter, and the removal counts
        self._use_key(key)
        self.exchange.tell([entry], [])
        self._keep()

    def set_roles(self, key: bytes, roles: Sequence[str], *, reason: str = "") -> TrustView:
        """Let a member do this in the group, and nothing else.

        Raises:
            UsageError: it is no member that is known here.
            TrustError: this node may not say so, or lacks a role that it would grant.
        """
        member = self._member(key)
        kept = [role for role in member.roles if role in roles]
        if not roles:
            raise UsageError("a member that may do nothing is none", "", f"p2pc group remove {short_device_id(key)}")
        own = self._credentials.own_membership()
        check_may_grant(own, roles)
        if len(kept) < len(member.roles):
            self._limit(member, kept or roles, reason)
        if set(roles) - set(member.roles):
            self._grant(member, roles)
        return self._view(key)

    def name_heir(self, key: bytes) -> TrustView:
        """Let a member act as the founder does when the founder's key is lost.

        Raises:
            UsageError: it is no member that is known here.
            TrustError: this node is neither the founder nor an heir.
        """
        member = self._member(key)
        credentials, roster, wall = self._credentials, self._credentials.roster, self._host.clock.wall()
        entry = name_heir(
            credentials.identity,
            credentials.group,
            self._host.crypto,
            key,
            wall=wall,
            log=roster.log,
            former=member,
        )
        self._show(key, (*credentials.group.chain, entry))
        return self._view(key)

    # --- policy -----------------------------------------------------------------------------------

    def policy(self) -> PolicyView:
        """What holds for all members of the group."""
        group, log = self._credentials.group, self._credentials.roster.log
        made = log.policies()
        own = self._credentials.own_membership_if_any()
        return PolicyView(
            group=group.name,
            in_force=log.policy(),
            set_by=tuple(self._name(entry.signer) for entry in made),
            set_at=float(max(entry.issued for entry in made)) if made else None,
            unknown_count=len(log.not_understood()),
            is_beyond=log.is_beyond,
            may_change=own is not None and "admin" in own.roles,
        )

    def set_policy(self, policy: GroupPolicy) -> None:
        """Let something else hold for all members.

        Raises:
            TrustError: this node may not say so, or the log is full.
        """
        credentials, roster, wall = self._credentials, self._credentials.roster, self._host.clock.wall()
        is_closing = roster.log.policy().is_open and not policy.is_open
        self._write(
            make_policy(credentials.identity, credentials.group, roster.log, self._host.crypto, policy, wall=wall)
        )
        if is_closing:
            self.rotate()  # everybody could have the present key

    def _member(self, key: bytes) -> Membership:
        member = self._credentials.membership_of(key)
        if member is None:
            why = "it was removed already" if key in self._removed else "its membership was not seen by this node"
            raise UsageError(f"{self._name(key)} is no member of the group", why, "see: p2pc group members")
        return member

    def _limit(self, member: Membership, roles: Sequence[str], reason: str) -> None:
        credentials, roster, wall = self._credentials, self._credentials.roster, self._host.clock.wall()
        entry = make_limit(
            credentials.identity,
            credentials.group,
            roster.log,
            self._host.crypto,
            member,
            roles=roles,
            accepts=roster.signed_by(member.installation),
            name=self._name(member.installation),
            reason=clean_reason(reason),
            wall=wall,
        )
        self._write(entry)

    def _write(self, entry: Any) -> None:
        """Put an entry of ours into the log, tell it, and let it take effect."""
        roster, wall = self._credentials.roster, self._host.clock.wall()
        if roster.add(entry, wall) is not Added.NEW:
            raise TrustError(
                "the log of the group is full", f"{len(roster.log)} entries", "make a new group", code="log-full"
            )
        roster.reassess(wall)
        self.exchange.tell([entry], [])
        self._apply()
        self._keep()

    def _grant(self, member: Membership, roles: Sequence[str]) -> None:
        """Admit a member anew, with other roles."""
        credentials, roster, wall = self._credentials, self._credentials.roster, self._host.clock.wall()
        entry = admit(
            credentials.identity,
            credentials.group,
            self._host.crypto,
            member.installation,
            roles=roles,
            wall=wall,
            log=roster.log,
            former=member,
        )
        self._show(member.installation, (*credentials.group.chain, entry))

    def _show(self, key: bytes, chain: tuple[bytes, ...]) -> None:
        """Know a member by a chain that was just made, and tell the others."""
        self._credentials.roster.replace(key, chain, self._host.clock.wall())
        self.exchange.tell([], [chain])
        self._keep()

    # --- levels -----------------------------------------------------------------------------------

    def set_level(self, key: bytes, level: Level, *, reason: str = "") -> TrustView:
        """Set how far an installation is trusted; one that is blocked is cut off, for any other a ban is over.

        Raises:
            UsageError, IdentityError: as `Levels.set`; nothing was changed.
        """
        known, before = self._levels.notes.get(key), self._levels.level_of(key)
        note = LevelNote(
            level=level,
            name=self._network.name_of(key),
            reason=clean_reason(reason),
            set_at=self._host.clock.wall(),
            is_mine=known is not None and known.is_mine,
            removals=self._credentials.roster.log.removals_of(key),
        )
        self._levels.set(key, note)
        self._pardon(key, before, Level.TRUSTED if level is Level.MEMBER else level)
        self._apply()
        for channel in self._channels.all():
            self._tell_program(channel, [key])
        self._scheduler.wake()
        return self._view(key)

    def _pardon(self, key: bytes, before: Level, level: Level) -> None:
        """Who is trusted is banned no longer.  Nor is who was until now, for what it did before: a lie of an earlier
        time may have come out meanwhile."""
        if Level.TRUSTED in (before, level):
            self._scheduler.owner.pardon(key)

    def _own_machines_changed(self) -> None:
        """More are trusted: they may keep and check what they could not."""
        self._apply()
        for channel in self._channels.all():
            self._tell_program(channel, self._levels.notes)
        self._scheduler.wake()

    def _tell_program(self, channel: Channel, keys: Iterable[bytes]) -> None:
        """Let a program of this machine go by the same levels as its node."""
        if channel.peer.installation == self._own:
            for key in keys:
                note = self._levels.notes.get(key)
                removals = () if note is None else note.removals
                channel.send(LEVEL, [key, str(self._levels.level_of(key)), list(removals)])

    def _on_level(self, channel: Channel, body: Any) -> None:
        """Take over what was set at the node of this program's installation."""
        match body:
            case [bytes(key), str(level), *more] if len(key) == PUBLIC_KEY_BYTES and level in set(Level):
                removals = read_removals(more[0]) if more else ()
                if channel.peer.key == self._own and key != self._own:
                    before = self._levels.level_of(key)
                    self._levels.set(key, LevelNote(level=Level(level), removals=removals))
                    self._pardon(key, before, Level(level))
                    self._apply()
            case _:
                raise RemoteProtocolError("not a level")

    def views(self) -> Sequence[TrustView]:
        """Return this node first, then all that are known, by name."""
        keys = dict.fromkeys([*self._credentials.roster, *self._network.peers, *self._levels.notes, *self._removed])
        sessions = {
            channel.peer.key for channel in self._channels.all() if channel.peer.installation != channel.peer.key
        }
        passed = {self._own, self._credentials.identity.public_key, *sessions}
        others = [self._view(key) for key in keys if key not in passed]
        return [self._view(self._own), *sorted(others, key=lambda view: (view.name, view.key))]

    def _view(self, key: bytes) -> TrustView:
        note, removal = self._levels.notes.get(key), self._removed.get(key)
        member = self._credentials.membership_of(key)
        is_self, is_up = key == self._own, self._network.is_up(key)
        if is_self and member is None:
            member = self._credentials.own_membership_if_any()
        inviter = b"" if member is None or member.inviter == key else member.inviter
        reason = "" if note is None else note.reason
        return TrustView(
            key=key,
            name=self._name(key),
            level=self._credentials.level_of(key),
            is_self=is_self,
            is_up=is_self or is_up,
            roles=None if member is None else member.roles,
            inviter=self._name(inviter) if inviter else "",
            inviter_key=inviter,
            is_removed=removal is not None,
            reason=reason if removal is None else removal.reason,
            set_at=None if note is None else note.set_at,
            heard=None if is_self or is_up else self._network.heard_s(key),
            banned=self._scheduler.acceptance.ban_of(key),
        )

    def _name(self, key: bytes) -> str:
        if key == self._own:
            return self._credentials.name
        note, removal = self._levels.notes.get(key), self._removed.get(key)
        noted = (note.name if note is not None else "") or (removal.name if removal is not None else "")
        return self._network.name_of(key) or noted or short_device_id(key)
