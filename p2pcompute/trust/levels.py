"""How far this installation trusts others: trusted, member or blocked.

Levels are local and nobody else's business: a member of a group is a `member` here until its machine's owner says
otherwise.  They are about installations; programs that embed the library have the level of their installation.
Credibility, which results earn, is another thing.

`save_levels` and `load_levels` are the only I/O.  Bound: LEVELS_MAX installations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import IdentityError, ProtocolError, RemoteProtocolError, UsageError
from p2pcompute.identity.files import read_private, replace_private
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import LEVELS_MAX, NODE_NAME_CHARS_MAX, REASON_CHARS_MAX, TRUST_FILE_BYTES_MAX
from p2pcompute.wire import cbor

__all__ = ["LEVELS_FILE", "Level", "LevelNote", "Levels", "load_levels", "save_levels"]

LEVELS_FILE: Final = "levels.cbor"
_FORMAT: Final = 1


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
        """Set and keep the level of another installation.

        Raises:
            UsageError: it is this one, or LEVELS_MAX others have one.
            IdentityError: it cannot be kept; the old one stays.
        """
        if node_id == self._own:
            raise UsageError("this is this computer itself", "it always trusts itself", None, code="self")
        changed = {key: known for key, known in self._notes.items() if key != node_id}
        if note.level is not Level.MEMBER or note.reason or note.is_mine:
            changed[node_id] = note
        if len(changed) > LEVELS_MAX:
            raise UsageError(
                f"{LEVELS_MAX} nodes have a level here, the most there may be",
                "each is kept until it is a plain member again",
                "set some of them back: p2pc trust set NODE member",
                code="levels-full",
            )
        self._keep(changed)
        self._notes = changed


def save_levels(directory: Path, notes: Mapping[bytes, LevelNote]) -> None:
    """Write the levels (mode 0600) into the installation's directory, whole or not at all.

    Raises:
        IdentityError: they cannot be written; the old ones stay.
    """
    rows = [
        [key, str(note.level), note.name, note.reason, int(note.set_at), note.is_mine] for key, note in notes.items()
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


def _note_of(row: Any) -> tuple[bytes, LevelNote]:
    match row:
        case [bytes(key), str(level), str(name), str(reason), int(set_at), bool(is_mine)] if (
            len(key) == PUBLIC_KEY_BYTES
        ):
            if level in set(Level):
                note = LevelNote(
                    level=Level(level),
                    name=name[:NODE_NAME_CHARS_MAX],
                    reason=reason[:REASON_CHARS_MAX],
                    set_at=float(set_at),
                    is_mine=is_mine,
                )
                return key, note
    raise RemoteProtocolError("a level that cannot be read")
