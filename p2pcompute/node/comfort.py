"""The machine owner's comfort: how much of this machine the work of others may take now, and why.  Pure.

A machine belongs to a person, who must not notice that it works for others.  Two shares of its cores hold, one while
the person is there and one while not; rules may stop the work of others altogether; the person may, too, at any moment.
Each rule stands alone: none takes another one's effect, and each is shown with what it sees.  What cannot be seen is
unknown: a machine that does not say whether it runs on battery is taken to have none, and one that cannot tell whether
somebody is there is taken to be left alone.

The person's own jobs are not held back by rules, only by `pause`.

Source: BOINC's preferences and what their users ask for (research on peers): two limits instead of all or nothing, no
rules that contradict one another unnoticed, a pause that says when it ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import floor
from typing import Final

from p2pcompute.errors import ConfigError, UsageError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60
AUTO: Final = "auto"

PROFILES: Final[Mapping[str, Mapping[str, str]]] = {
    "laptop": {"battery": "off", "in_use": "25%", "idle": "90%"},
    "desktop": {"battery": "on", "in_use": "25%", "idle": "90%"},
    "server": {"battery": "on", "in_use": "90%", "idle": "90%"},
    "always": {"battery": "on", "in_use": "100%", "idle": "100%"},
}
"""What the rules are that were not set one by one."""


@dataclass(frozen=True, slots=True)
class Hours:
    """When the work of others may run: minutes of the week, local time."""

    text: str
    spans: tuple[tuple[int, int, int], ...] = ()
    """(day of the week from Monday = 0, first minute, minute after the last) of each span; empty: always."""

    def holds(self, day: int, minute: int) -> bool:
        """Whether they include a minute of a day."""
        return not self.spans or any(day == one and first <= minute < end for one, first, end in self.spans)


def parse_hours(text: str) -> Hours:
    """Return the hours of "any", "18-8", "mon-fri 19:00-7:30, sat-sun".

    A span that ends before it begins goes on into the next day.

    Raises:
        UsageError: it is none of these.
    """
    spans: list[tuple[int, int, int]] = []
    if text.strip() in ("", "any"):
        return Hours("any")
    for part in text.split(","):
        match = re.fullmatch(
            r"\s*(?:([a-z]{3})(?:-([a-z]{3}))?)?\s*(?:(\d{1,2})(?::(\d\d))?-(\d{1,2})(?::(\d\d))?)?\s*", part.lower()
        )
        if match is None or not any(match.groups()) or {match[1], match[2]} - {None, *DAYS}:
            raise _bad_hours(text, part)
        first_day = DAYS.index(match[1]) if match[1] else 0
        last_day = DAYS.index(match[2]) if match[2] else first_day if match[1] else 6
        begin, end = 0, _DAY_MINUTES
        if match[3]:
            begin, end = int(match[3]) * 60 + int(match[4] or 0), int(match[5]) * 60 + int(match[6] or 0)
            if max(begin, end) > _DAY_MINUTES or begin == end or int(match[4] or 0) > 59 or int(match[6] or 0) > 59:
                raise _bad_hours(text, part)
        for step in range((last_day - first_day) % 7 + 1):
            day = (first_day + step) % 7
            if begin < end:
                spans.append((day, begin, end))
            else:
                spans += [(day, begin, _DAY_MINUTES), ((day + 1) % 7, 0, end)]
    return Hours(
        ", ".join(part.strip() for part in text.split(",")), tuple(span for span in spans if span[1] < span[2])
    )


def _bad_hours(text: str, part: str) -> UsageError:
    return UsageError(
        f'"{text}" are not hours',
        f'"{part.strip()}" is not a span of days and times',
        "write them like any, 18-8, or mon-fri 19:00-7:30, sat-sun",
        code="hours",
    )


def parse_share(text: str) -> float:
    """Return 0.25 of "25%".

    Raises:
        UsageError: it is not a share from 0 % to 100 %.
    """
    match = re.fullmatch(r"([0-9]{1,3})%", text.strip())
    if match is None or int(match[1]) > 100:
        raise UsageError(f'"{text}" is not a share', "", "write it like 25%, from 0% to 100%", code="share")
    return int(match[1]) / 100


@dataclass(frozen=True, slots=True)
class Rules:
    """What the machine's owner wants."""

    in_use: float = 0.25
    """Share of the cores for others while somebody is there."""
    idle: float = 0.9
    """The same while nobody is."""
    on_battery: bool = True
    """Whether others' work runs on battery."""
    hours: Hours = Hours("any")

    def __post_init__(self) -> None:
        """Refuse what would never let anything run.

        Raises:
            ConfigError: with these rules no work of others ever runs, and taking none is another setting.
        """
        if self.in_use == 0.0 and self.idle == 0.0:
            raise ConfigError(
                "with these settings this machine would never work for others",
                "cpu.in_use and cpu.idle are both 0%",
                "set one of them, or say so: p2pc node set accept=none",
                code="never",
            )


def profile_for(senses: Senses) -> str:
    """Return the profile of a machine whose owner has not chosen one.

    One with a battery is carried about; one that cannot tell whether somebody is there, or never sees anybody, is left
    to its work.
    """
    if senses.has_battery or senses.on_battery:
        return "laptop"
    return "always" if senses.is_present is None else "desktop"


def rules_of(profile: str, *, in_use: str, idle: str, battery: str, hours: str) -> Rules:
    """Return the rules of settings, those that are empty as the profile has them.

    Raises:
        UsageError: one cannot be read.
        ConfigError: there is no such profile, or nothing would ever run.
    """
    if profile not in PROFILES:
        raise ConfigError(f'there is no profile "{profile}"', "", f"one of: {', '.join(PROFILES)}", code="profile")
    preset = PROFILES[profile]
    return Rules(
        in_use=parse_share(in_use or preset["in_use"]),
        idle=parse_share(idle or preset["idle"]),
        on_battery=(battery or preset["battery"]) == "on",
        hours=parse_hours(hours),
    )


@dataclass(frozen=True, slots=True)
class Pause:
    """The machine's owner wants quiet."""

    since_s: float
    """Wall clock, Unix seconds."""
    until_s: float | None = None
    """When it ends by itself; None: by `resume` only."""


@dataclass(frozen=True, slots=True)
class Senses:
    """What can be seen of the machine and its owner; None: cannot be seen."""

    on_battery: bool | None = None
    is_present: bool | None = None
    """Somebody has touched keyboard, mouse or a terminal within minutes."""
    has_battery: bool | None = None
    """Whether there is one, charged or not."""


@dataclass(frozen=True, slots=True)
class RuleLine:
    """One rule, what it sees, and what follows."""

    rule: str
    now: str
    result: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How much runs now."""

    others_share: float
    """Of the cores, for the work of others: 0 to 1."""
    own_runs: bool
    """Whether the machine owner's own jobs run."""
    why: str
    """Why nothing, or less, runs: "on battery"; empty when the machine works as much as it ever may."""
    resumes: str
    """What ends that; empty when nothing has to."""
    lines: tuple[RuleLine, ...]


def slots_of(share: float, cores: float, slot_count: int) -> tuple[int, float]:
    """Return (slots, part of the time) that a share of a machine is for its slots, to a quarter of a core.

    25 % of 8 cores are 2 slots; of 2 cores 1 slot for half of the time; 90 % of 2 cores are both slots.
    """
    cores_allowed = cores * share
    if cores_allowed <= 0.0 or not slot_count:
        return 0, 1.0
    whole = floor(cores_allowed + 0.25)
    if whole == 0:
        return 1, cores_allowed
    # A slot is a core, unless the owner gave the node fewer of them, or more.
    return min(slot_count, whole), 1.0


def judge(
    rules: Rules, senses: Senses, pause: Pause | None, *, wall_s: float, local: datetime, group_share: float = 1.0
) -> Verdict:
    """Return how much runs now.

    Args:
        group_share: part of the machine for this group, where others have nodes on it, too; 0: its weight is 0.
        wall_s: wall clock, Unix seconds.
        local: the same in the machine's time zone.
    """
    lines: list[RuleLine] = []
    stops: list[tuple[str, str]] = []
    is_paused = pause is not None and (pause.until_s is None or wall_s < pause.until_s)
    if pause is not None and is_paused:
        stops.append(
            ("by you", "You resume it: p2pc resume." if pause.until_s is None else _until(pause.until_s, local))
        )
    battery = {True: "on battery", False: "on mains", None: "cannot be seen"}[senses.on_battery]
    if senses.on_battery is False and senses.has_battery is False:
        battery = "there is none"
    has_stopped = not rules.on_battery and senses.on_battery is True
    lines.append(
        RuleLine(f"battery = {'on' if rules.on_battery else 'off'}", battery, "PAUSE" if has_stopped else "ok")
    )
    if has_stopped:
        stops.append(("on battery", "Resumes when the charger is connected."))
    is_in = rules.hours.holds(local.weekday(), local.hour * 60 + local.minute)
    now = "–" if not rules.hours.spans else f"{DAYS[local.weekday()]} {local:%H:%M}"
    lines.append(RuleLine(f"hours = {rules.hours.text}", now, "ok" if is_in else "PAUSE"))
    if not is_in:
        stops.append(("outside its hours", f"Resumes within the hours {rules.hours.text}."))
    in_use = senses.is_present is True
    share = rules.in_use if in_use else rules.idle
    seen = {True: "you are active", False: "you are away", None: "cannot be seen"}[senses.is_present]
    for name, value, holds in (("in_use", rules.in_use, in_use), ("idle", rules.idle, not in_use)):
        result = "–" if not holds else "PAUSE" if value == 0.0 else f"limit {value:.0%}"
        lines.append(RuleLine(f"cpu.{name} = {value:.0%}", seen if holds else "–", result))
    if share == 0.0:
        stops.append(
            ("you are active", "Resumes when you are away.")
            if in_use
            else ("nobody is there", "Resumes when you are active.")
        )
    if group_share < 1.0:
        now = "other groups work here" if group_share else "0"
        lines.append(RuleLine("weight", now, f"part {group_share:.0%}" if group_share else "PAUSE"))
    if group_share == 0.0:
        stops.append(("its weight is 0", "Resumes with another one: p2pc node set weight=1, and p2pc node restart."))
    if stops:
        return Verdict(0.0, not is_paused, stops[0][0], stops[0][1], tuple(lines))
    best = max(rules.in_use, rules.idle) * group_share
    share *= group_share
    why = "" if share >= best else "you are active" if in_use else "you are away"
    return Verdict(
        share, True, why, f"{best:.0%} when you are {'away' if in_use else 'active'}." if why else "", tuple(lines)
    )


def _until(until_s: float, local: datetime) -> str:
    end = datetime.fromtimestamp(until_s, tz=local.tzinfo)
    is_soon = until_s - local.timestamp() < 600.0
    text = f"{end:%H:%M:%S}" if is_soon else f"{end:%H:%M}" if end.date() == local.date() else f"{end:%Y-%m-%d %H:%M}"
    return f"Resumes at {text}."
