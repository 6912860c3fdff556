"""How far this installation trusts others: trusted, member or blocked.

Levels are local and nobody else's business: a member of a group is a `member` here until its machine's owner says
otherwise.  They are about installations; programs that embed the library have the level of their installation.
Credibility, which results earn, is another thing.

Trust ends for good when its installation is removed from the group: it may have been stolen, and whoever may invite
could bring it back.  So a note names the removals that were known when it was made; one that is learned later ends it.

`save_levels` and `load_levels` are the only I/O.  Bound: LEVELS_MAX installations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import IdentityError, ProtocolError, RemoteProtocolError, UsageError
from p2pcompute.identity.files import read_private, replace_private
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    LEVELS_MAX,
    NODE_NAME_CHARS_MAX,
    REASON_CHARS_MAX,
    REMOVALS_NOTED_MAX,
    TRUST_FILE_BYTES_MAX,
)
from p2pcompute.wire import cbor

__all__ = ["LEVELS_FILE", "Level", "LevelNote", "Levels", "load_levels", "read_removals", "save_levels"]

LEVELS_FILE: Final = "levels.cbor"
_FORMAT: Final = 1
_REMOVAL_BYTES: Final = 32


class Level(StrEnum):
    """What an installation is to this one."""

    TRUSTED = "trusted"
    """As good as this machine: its results are believed."""
    MEMBER = "member"
    """Its work runs in a sandbox, and its results are checked until they are credible."""
    STRANGER = "stranger"
    """Of a member for whom nobody vouches, in an open group: only WASM modules of it run, and it gets only work that
    may be done by anybody.  Nobody sets it."""
    BLOCKED = "blocked"
    """Nothing: no connection, no work, no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelNote:
    """A level that somebody has set."""

    level: Level
    name: str = ""
    """What the node was called then."""
    reason: str = ""
    set_at: float = 0.0
    """Unix seconds."""
    is_mine: bool = False
    """It was said to be a computer of this one's owner; whatever its level is now."""
    removals: tuple[bytes, ...] = ()
    """Ids of its removals from the group that were known to who said this (`GroupLog.removals_of`)."""


class Levels:
    """The levels that were set here; every other installation is a member, and this one is trusted."""

    def __init__(
        self,
        own: bytes,
        notes: Mapping[bytes, LevelNote] | None = None,
        keep: Callable[[Mapping[bytes, LevelNote]], None] = lambda _notes: None,
        *,
        default: Level = Level.MEMBER,
    ) -> None:
        """Args:
        own: this installation.
        notes: of an earlier life, by installation.
        keep: stores them whenever they change.
        default: of those of whom nobody has said anything.
        """
        self._default = default
        self._own = own
        self._notes = dict(notes or {})
        self._keep = keep

    @property
    def notes(self) -> Mapping[bytes, LevelNote]:
        """What was set, by installation, in the order in which it was."""
        return self._notes

    def level_of(self, node_id: bytes) -> Level:
        """Return the level of an installation, by its public key."""
        if node_id == self._own:
            return Level.TRUSTED
        note = self._notes.get(node_id)
        return self._default if note is None else note.level

    def is_blocked(self, node_id: bytes) -> bool:
        return self.level_of(node_id) is Level.BLOCKED

    def set(self, node_id: bytes, note: LevelNote) -> None:
        """Set and keep the level of another installation, also when it is that of all others: nobody else's word counts
        against it then.

        Raises:
            UsageError: it is this one, or LEVELS_MAX others have one and none of them is a plain member.
            IdentityError: it cannot be kept; the old one stays.
        """
        if node_id == self._own:
            raise UsageError("this is this computer itself", "it always trusts itself", None, code="self")
        changed = {key: known for key, known in self._notes.items() if key != node_id}
        changed[node_id] = note
        plain = next((key for key, known in changed.items() if known.level is Level.MEMBER and key != node_id), None)
        if len(changed) > LEVELS_MAX and plain is not None:
            del changed[plain]
        elif len(changed) > LEVELS_MAX:
            raise UsageError(
                f"{LEVELS_MAX} nodes have a level here, the most there may be",
                "each is kept until it is a plain member again",
                "set some of them back: p2pc trust set NODE member",
                code="levels-full",
            )
        self._keep(changed)
        self._notes = changed

    def end_removed(self, is_removed_since: Callable[[bytes, tuple[bytes, ...]], bool]) -> list[bytes]:
        """End the trust in those that were removed since it was said; who is blocked stays so.

        Args:
            is_removed_since: as `GroupLog.is_removed_since`.

        Returns the installations of which something has ended.  Where it cannot be kept it has ended all the same: the
        log of the group ends it again in the next life.
        """
        ended = [
            key
            for key, note in self._notes.items()
            if (note.level is Level.TRUSTED or note.is_mine) and is_removed_since(key, note.removals)
        ]
        if ended:
            left = {key: replace(note, is_mine=note.is_mine and key not in ended) for key, note in self._notes.items()}
            self._notes = {
                key: note for key, note in left.items() if key not in ended or note.level is not Level.TRUSTED
            }
            with contextlib.suppress(IdentityError):
                self._keep(self._notes)
        return ended


def save_levels(directory: Path, notes: Mapping[bytes, LevelNote]) -> None:
    """Write the levels (mode 0600) into the installation's directory, whole or not at all.

    Raises:
        IdentityError: they cannot be written; the old ones stay.
    """
    rows = [
        [key, str(note.level), note.name, note.reason, int(note.set_at), note.is_mine, list(note.removals)]
        for key, note in notes.items()
    ]
    replace_private(directory / LEVELS_FILE, cbor.encode({"format": _FORMAT, "levels": rows}), unique="levels")


def load_levels(directory: Path) -> dict[bytes, LevelNote]:
    """Return the levels kept in the installation's directory.

    Raises:
        IdentityError: damaged, of another user, or readable by others.
    """
    path = directory / LEVELS_FILE
    data = read_private(path, bytes_max=TRUST_FILE_BYTES_MAX)
    if data is None:
        return {}
    try:
        body = cbor.decode(data)
        if not isinstance(body, dict) or body.get("format") != _FORMAT or not isinstance(body.get("levels"), list):
            raise RemoteProtocolError("its format is unknown to this build")
        return dict(_note_of(row) for row in body["levels"])
    except ProtocolError as error:
        raise IdentityError(
            f"the file {path} is damaged",
            f"{error.what}; whom you have blocked is in it, so it is not passed over",
            f"restore it from a backup, or move it away and set the levels again: mv {path} {path}.damaged",
        ) from error


def read_removals(value: Any) -> tuple[bytes, ...]:
    """Return the removals that somebody says were known to him.

    Raises:
        RemoteProtocolError: malformed.
    """
    if not isinstance(value, list) or len(value) > REMOVALS_NOTED_MAX:
        raise RemoteProtocolError("not a list of removals")
    if not all(isinstance(item, bytes) and len(item) == _REMOVAL_BYTES for item in value):
        raise RemoteProtocolError("not the id of a removal")
    return tuple(value)


def _note_of(row: Any) -> tuple[bytes, LevelNote]:
    match row:
        # Of before 2026-11-23: no removals.  Trust of that time ends if its node was ever removed.
        case [bytes(key), str(level), str(name), str(reason), int(set_at), bool(is_mine), *more] if (
            len(key) == PUBLIC_KEY_BYTES and len(more) <= 1
        ):
            if level in set(Level):
                note = LevelNote(
                    level=Level(level),
                    name=name[:NODE_NAME_CHARS_MAX],
                    reason=reason[:REASON_CHARS_MAX],
                    set_at=float(set_at),
                    is_mine=is_mine,
                    removals=read_removals(more[0]) if more else (),
                )
                return key, note
    raise RemoteProtocolError("a level that cannot be read")
