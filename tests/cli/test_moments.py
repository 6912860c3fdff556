"""Deadlines as people write them.  If these fail, a job is given up at another time than its submitter meant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from p2pcompute.cli.moments import parse_deadline
from p2pcompute.errors import UsageError

NOW = datetime(2026, 11, 22, 17, 30, 10, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90", NOW + timedelta(seconds=90)),
        ("1h30m", NOW + timedelta(minutes=90)),
        ("2d", NOW + timedelta(days=2)),
        ("18:30", NOW.replace(hour=18, minute=30, second=0)),
        ("09:15", NOW.replace(day=23, hour=9, minute=15, second=0)),
        ("2026-11-30T18:30", NOW.replace(day=30, hour=18, minute=30, second=0)),
        ("2026-11-30 18:30:05", NOW.replace(day=30, hour=18, minute=30, second=5)),
        ("2026-11-30T18:30:00Z", datetime(2026, 11, 30, 18, 30, tzinfo=UTC)),
        ("2026-12-01", NOW.replace(month=12, day=1, hour=0, minute=0, second=0)),
    ],
)
def test_moments(text: str, meant: datetime) -> None:
    assert parse_deadline(text, NOW) == meant


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "25:00", "2026-13-01", "2026-11-22T17:30", "1999-01-01"])
def test_what_is_no_later_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="deadline"):
        parse_deadline(text, NOW)


def test_what_is_too_far_away_is_said_to_be() -> None:
    """Else people look for a mistake in how they wrote it."""
    for text in ("99999999999h", "90000d23h", "9999-12-31T23:59"):
        with pytest.raises(UsageError, match="too far away"):
            parse_deadline(text, NOW)
