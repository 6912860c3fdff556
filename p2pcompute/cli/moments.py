"""Moments that people write: how long from now, or when."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from p2pcompute.errors import UsageError

_YEAR_END: Final = 2199
"""Moments are before it, wherever the clock stands: MOMENT_S_MAX."""


def parse_deadline(text: str, now: datetime, *, flag: str = "--deadline", past: str = "nothing would run") -> datetime:
    """Return the moment that a duration from now (2h, 1d12h), a time of day (18:30: the next one) or a date with one
    (2026-11-30T18:30, its zone if it says so) means.

    Args:
        now: with the zone in which times without one are meant.
        flag, past: for the error: what it was given to, and what a past moment would mean.

    Raises:
        UsageError: it is neither, or past.
    """
    from p2pcompute.config import parse_duration

    moment = _time(text, now)
    if moment is None:
        try:
            moment = now + timedelta(seconds=parse_duration(text))
        except (UsageError, OverflowError) as error:
            if isinstance(error, OverflowError) or error.code == "too-long":
                raise UsageError(f"{flag} {text} is too far away", "", "name a sooner one", code="deadline") from None
            raise UsageError(
                f"{flag} {text!r} is no moment", "", "write it like 2h, 18:30 or 2026-11-30T18:30", code="deadline"
            ) from None
    if moment.year >= _YEAR_END:
        raise UsageError(f"{flag} {text} is too far away", "", "name a sooner one", code="deadline")
    if moment <= now:
        raise UsageError(f"{flag} {text} is past", past, "name a later one", code="deadline")
    return moment


def _time(text: str, now: datetime) -> datetime | None:
    try:
        if ":" in text and "-" not in text[:8]:
            time = datetime.strptime(text, "%H:%M")
            moment = now.replace(hour=time.hour, minute=time.minute, second=0, microsecond=0)
            return moment if moment > now else moment + timedelta(days=1)
        if "-" not in text[:8]:
            return None
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=now.tzinfo)
