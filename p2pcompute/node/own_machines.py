"""All computers of one owner trust each other, though each was invited by one of them only.

`p2pc invite --mine` makes two computers trust each other.  Each tells its owner's others which ones it knows, and takes
over what they tell, unless something was said here about a computer (`p2pc trust set`): then that counts.  With each
go the removals from the group that were known to who trusts it: what was said before a removal brings nothing back.

Why: ten computers would else need forty-five invitations, and a job submitted on one of them would check the results of
all but one.  Price: who takes over one computer can have any other one trusted; he could have every wrong result
believed before.

Bound: OWN_MACHINES_TOLD_MAX in a message; what is taken over is among the LEVELS_MAX levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from p2pcompute.errors import P2pcError, RemoteProtocolError
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import LEVELS_MAX, OWN_MACHINES_TOLD_MAX, REMOVALS_NOTED_MAX
from p2pcompute.node.membership import clean_name
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.trust.levels import Level, LevelNote, Levels, read_removals
from p2pcompute.trust.log import GroupLog

OWN_MACHINES: Final = 78
"""[[installation, name, [removal, …]], …]: a computer → another one of its owner"""
BY_OWN: Final = "a computer of this owner, as {} says"


class OwnMachines:
    """Exchanges with the owner's other computers which ones there are."""

    def __init__(
        self,
        channels: Channels,
        levels: Levels,
        own: bytes,
        wall: Callable[[], float],
        log: Callable[[], GroupLog],
        changed: Callable[[], None],
    ) -> None:
        """Args:
        own: this installation.
        wall: Unix seconds.
        log: of the group.
        changed: called when others are trusted from now on.
        """
        self._channels = channels
        self._levels = levels
        self._own = own
        self._wall = wall
        self._log = log
        self._changed = changed
        self._told: set[bytes] = set()
        """Of whom the others were told since the start: not again with each channel.  At most LEVELS_MAX."""
        channels.on_message(OWN_MACHINES, self._on_told)

    def _is_mine(self, channel: Channel) -> bool:
        note = self._levels.notes.get(channel.peer.key)
        return note is not None and note.is_mine and note.level is Level.TRUSTED

    def channel_opened(self, channel: Channel) -> None:
        """Tell another computer of this owner which ones there are; the others of a new one."""
        if self._is_mine(channel):
            self._tell(channel)
            if channel.peer.key not in self._told:
                self._tell_all_but(channel)

    def ended(self, keys: Iterable[bytes]) -> None:
        """These are none of this owner's computers any more; the others are told if they become it again."""
        self._told.difference_update(keys)

    def _tell_all_but(self, told: Channel) -> None:
        for channel in self._channels.all():
            if channel is not told and self._is_mine(channel):
                self._tell(channel)

    def _tell(self, channel: Channel) -> None:
        known = {
            key: [key, note.name, list(note.removals)]
            for key, note in self._levels.notes.items()
            if note.is_mine and note.level is Level.TRUSTED and key != channel.peer.key
        }
        self._told |= known.keys()
        if known:
            channel.send(OWN_MACHINES, list(known.values())[:OWN_MACHINES_TOLD_MAX])

    def _on_told(self, channel: Channel, body: Any) -> None:
        if not isinstance(body, list) or len(body) > OWN_MACHINES_TOLD_MAX:
            raise RemoteProtocolError("not a list of computers")
        told: dict[bytes, LevelNote] = {}
        reason = BY_OWN.format(channel.peer.name)
        for item in body:
            match item:
                case [bytes(key), str(name), *more] if len(key) == PUBLIC_KEY_BYTES:
                    told[key] = LevelNote(
                        level=Level.TRUSTED,
                        name=clean_name(name),
                        reason=reason,
                        set_at=self._wall(),
                        is_mine=True,
                        removals=read_removals(more[0]) if more else (),
                    )
                case _:
                    raise RemoteProtocolError("not a list of computers")
        if not self._is_mine(channel):
            return  # who only says so
        new = False
        try:
            for key, note in told.items():
                if key != self._own and not self._log().is_removed_since(key, note.removals):
                    new |= self._take(key, note)
        except P2pcError:
            return  # no disk: told again with the next channel
        finally:
            if new:
                self._changed()
                self._tell_all_but(channel)

    def _take(self, key: bytes, told: LevelNote) -> bool:
        """Trust a computer unless something was said of it here; returns whether it was not trusted before."""
        known = self._levels.notes.get(key)
        if known is None and len(self._levels.notes) < LEVELS_MAX:  # what was said here does not make room for it
            self._levels.set(key, told)
            return True
        if known is not None and known.level is Level.TRUSTED and not set(told.removals) <= set(known.removals):
            # Trusted again by one that knew of a removal, of which this node hears later.
            removals = tuple(dict.fromkeys([*known.removals, *told.removals]))[-REMOVALS_NOTED_MAX:]
            self._levels.set(key, replace(known, removals=removals))
        return False
