"""Levels of trust: what is kept, for how long, and how many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2pcompute.errors import IdentityError, UsageError
from p2pcompute.limits import LEVELS_MAX
from p2pcompute.trust.levels import LEVELS_FILE, Level, LevelNote, Levels, load_levels, save_levels
from p2pcompute.wire import cbor

OWN, ADA, BOB, CAT, DAN = (bytes([number]) * 32 for number in range(1, 6))
REMOVAL = b"r" * 32


def note(level: Level, *, is_mine: bool = False, removals: tuple[bytes, ...] = ()) -> LevelNote:
    return LevelNote(level=level, is_mine=is_mine, removals=removals)


def test_a_removal_ends_trust_and_nothing_else(tmp_path: Path) -> None:
    """Those of whom it was said since keep it, who is blocked stays so, what was said about members stays said."""
    notes = {
        ADA: note(Level.TRUSTED, is_mine=True),
        BOB: note(Level.TRUSTED, removals=(REMOVAL,)),
        CAT: note(Level.BLOCKED, is_mine=True),
        DAN: note(Level.MEMBER),
    }
    levels = Levels(OWN, notes, lambda kept: save_levels(tmp_path, kept))
    ended = levels.end_removed(lambda _key, known: REMOVAL not in known)
    assert ended == [ADA, CAT]
    left = {BOB: notes[BOB], CAT: replace(notes[CAT], is_mine=False), DAN: notes[DAN]}
    assert levels.notes == left == load_levels(tmp_path)
    assert levels.level_of(ADA) is Level.MEMBER and levels.is_blocked(CAT)
    assert levels.end_removed(lambda _key, known: REMOVAL not in known) == []


def test_trust_ends_also_when_the_disk_is_full() -> None:
    def full(_notes: object) -> None:
        raise IdentityError("no room")

    levels = Levels(OWN, {ADA: note(Level.TRUSTED)}, full)
    assert levels.end_removed(lambda _key, _known: True) == [ADA]
    assert levels.level_of(ADA) is Level.MEMBER


def test_who_was_said_to_be_a_member_makes_room_for_others() -> None:
    levels = Levels(OWN)
    for number in range(LEVELS_MAX - 1):
        levels.set(number.to_bytes(32, "big"), note(Level.BLOCKED))
    levels.set(DAN, note(Level.MEMBER))
    levels.set(ADA, note(Level.TRUSTED))
    assert len(levels.notes) == LEVELS_MAX and DAN not in levels.notes
    with pytest.raises(UsageError, match="most there may be"):
        levels.set(BOB, note(Level.TRUSTED))


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / LEVELS_FILE
    path.write_bytes(cbor.encode({"format": 1, "levels": [[ADA, "trusted", "ada", "why", 5, True]]}))
    path.chmod(0o600)
    assert load_levels(tmp_path)[ADA] == LevelNote(
        level=Level.TRUSTED, name="ada", reason="why", set_at=5.0, is_mine=True
    )
