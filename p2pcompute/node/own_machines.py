"""All computers of one owner trust each other, though each was invited by one of them only.

`p2pc invite --mine` makes two computers trust each other.  Each tells its owner's others which ones it knows, and takes
over what they tell, unless something was said here about a computer (`p2pc trust set`): then that counts.

Why: ten computers would else need forty-five invitations, and a job submitted on one of them would check the results of
all but one.  Price: who takes over one computer can have any other one trusted; he could have every wrong result
believed before.

Bound: OWN_MACHINES_TOLD_MAX in a message; what is taken over is among the LEVELS_MAX levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from p2pcompute.errors import P2pcError, RemoteProtocolError
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import OWN_MACHINES_TOLD_MAX
from p2pcompute.node.membership import clean_name
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.trust.levels import Level, LevelNote, Levels

OWN_MACHINES: Final = 78
"""[[installation, name], …]: a computer → another one of its owner"""
BY_OWN: Final = "a computer of this owner, as {} says"


class OwnMachines:
    """Exchanges with the owner's other computers which ones there are."""

    def __init__(
        self, channels: Channels, levels: Levels, own: bytes, wall: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        """Args:
        own: this installation.
        wall: Unix seconds.
        changed: called when others are trusted from now on.
        """
        self._channels = channels
        self._levels = levels
        self._own = own
        self._wall = wall
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

    def _tell_all_but(self, told: Channel) -> None:
        for channel in self._channels.all():
            if channel is not told and self._is_mine(channel):
                self._tell(channel)

    def _tell(self, channel: Channel) -> None:
        known = {
            key: note.name
            for key, note in self._levels.notes.items()
            if note.is_mine and note.level is Level.TRUSTED and key != channel.peer.key
        }
        self._told |= known.keys()
        if known:
            channel.send(OWN_MACHINES, [list(item) for item in known.items()][:OWN_MACHINES_TOLD_MAX])

    def _on_told(self, channel: Channel, body: Any) -> None:
        if not isinstance(body, list) or len(body) > OWN_MACHINES_TOLD_MAX:
            raise RemoteProtocolError("not a list of computers")
        told: dict[bytes, str] = {}
        for item in body:
            match item:
                case [bytes(key), str(name), *_] if len(key) == PUBLIC_KEY_BYTES:
                    told[key] = clean_name(name)
                case _:
                    raise RemoteProtocolError("not a list of computers")
        if not self._is_mine(channel):
            return  # who only says so
        new = {key: name for key, name in told.items() if key != self._own and key not in self._levels.notes}
        reason = BY_OWN.format(channel.peer.name)
        try:
            for key, name in new.items():
                note = LevelNote(level=Level.TRUSTED, name=name, reason=reason, set_at=self._wall(), is_mine=True)
                self._levels.set(key, note)
        except P2pcError:
            return  # no room, or no disk: told again with the next channel
        if new:
            self._changed()
            self._tell_all_but(channel)
