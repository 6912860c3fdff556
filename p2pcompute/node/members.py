"""Who is who to this node: levels, and what follows when they change.

What is decided here takes effect at once: channels are closed, contacts passed over, the jobs of those who may not have
them run here any more are ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.host.interfaces import Host
from p2pcompute.ids import short_device_id
from p2pcompute.limits import REASON_CHARS_MAX
from p2pcompute.node.facade import TrustView
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.node.network import Network
from p2pcompute.scheduler.service import Scheduler
from p2pcompute.scheduler.terms import JobEnvelope
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.trust.levels import Level, LevelNote


class Members:
    """The installations that this node knows."""

    def __init__(
        self, host: Host, credentials: GroupCredentials, channels: Channels, network: Network, scheduler: Scheduler
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._levels = credentials.levels
        self._channels = channels
        self._network = network
        self._scheduler = scheduler
        self._own = credentials.identity.installation
        scheduler.may_submit = self._may_submit
        self._apply()

    def is_refused(self, installation: bytes) -> bool:
        """Whether nothing is to be had from an installation and nothing given to it."""
        return self._levels.is_blocked(installation)

    def admits(self, channel: Channel) -> bool:
        """Look at a channel that has just opened: its handshake may have begun before it was refused."""
        if not self.is_refused(channel.peer.installation):
            return True
        channel.abort("refused meanwhile")
        return False

    def _may_submit(self, job: JobEnvelope) -> bool:
        return not self.is_refused(job.submitter)

    def _apply(self) -> None:
        """Let what is refused now be refused everywhere."""
        self._network.peers.refuse(key for key in self._levels.notes if self.is_refused(key))
        self._channels.cut(self.is_refused)
        self._scheduler.drop_refused()

    # --- levels -----------------------------------------------------------------------------------

    def set_level(self, key: bytes, level: Level, *, reason: str = "") -> TrustView:
        """Set how far an installation is trusted; one that is blocked is cut off.

        Raises:
            UsageError, IdentityError: as `Levels.set`; nothing was changed.
        """
        reason = "".join(char for char in reason if char.isprintable()).strip()[:REASON_CHARS_MAX]
        name = self._network.name_of(key)
        self._levels.set(key, LevelNote(level=level, name=name, reason=reason, set_at=self._host.clock.wall()))
        self._apply()
        return self._view(key)

    def views(self) -> Sequence[TrustView]:
        """Return this node first, then all that are known, by name."""
        keys = dict.fromkeys([*self._credentials.members(), *self._network.peers, *self._levels.notes])
        sessions = {
            channel.peer.key for channel in self._channels.all() if channel.peer.installation != channel.peer.key
        }
        passed = {self._own, self._credentials.identity.public_key, *sessions}
        others = [self._view(key) for key in keys if key not in passed]
        return [self._view(self._own), *sorted(others, key=lambda view: (view.name, view.key))]

    def _view(self, key: bytes) -> TrustView:
        note = self._levels.notes.get(key)
        member = self._credentials.membership_of(key)
        is_self = key == self._own
        if is_self and member is None:
            member = self._credentials.own_membership_if_any()
        inviter = b"" if member is None or member.inviter == key else member.inviter
        return TrustView(
            key=key,
            name=self._name(key),
            level=self._levels.level_of(key),
            is_self=is_self,
            is_up=is_self or self._network.is_up(key),
            roles=None if member is None else member.roles,
            inviter=self._name(inviter) if inviter else "",
            inviter_key=inviter,
            reason="" if note is None else note.reason,
            set_at=None if note is None else note.set_at,
        )

    def _name(self, key: bytes) -> str:
        if key == self._own:
            return self._credentials.name
        note = self._levels.notes.get(key)
        return self._network.name_of(key) or (note.name if note is not None else "") or short_device_id(key)
