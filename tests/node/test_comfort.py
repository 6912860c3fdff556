"""The rules of a machine's owner."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import ConfigError, UsageError
from p2pcompute.node.comfort import (
    DAYS,
    PROFILES,
    Hours,
    Pause,
    Rules,
    Senses,
    judge,
    parse_hours,
    parse_share,
    profile_for,
    rules_of,
    slots_of,
)

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
"""A Monday."""
AWAY, ACTIVE = Senses(False, False), Senses(False, True)


def verdict(rules: Rules, senses: Senses = AWAY, pause: Pause | None = None, at: datetime = NOON) -> tuple[float, str]:
    found = judge(rules, senses, pause, wall_s=at.timestamp(), local=at)
    assert (found.why == "") <= (found.resumes == "") and len(found.lines) == 4
    return found.others_share, found.why


def test_two_limits_instead_of_all_or_nothing() -> None:
    assert verdict(Rules()) == (0.9, "")
    assert verdict(Rules(), ACTIVE) == (0.25, "you are active")
    assert verdict(Rules(), Senses()) == (0.9, ""), "who cannot be seen is not there"
    assert verdict(Rules(in_use=0.0), ACTIVE) == (0.0, "you are active")
    assert verdict(Rules(in_use=0.5, idle=0.0), AWAY) == (0.0, "nobody is there")


def test_battery_and_hours_stop_the_work_of_others_and_only_theirs() -> None:
    rules = Rules(on_battery=False, hours=parse_hours("18-8"))
    assert verdict(rules, Senses(True, False), at=NOON + timedelta(hours=8)) == (0.0, "on battery")
    assert verdict(rules, Senses(None, False), at=NOON + timedelta(hours=8)) == (0.9, "")
    assert verdict(rules) == (0.0, "outside its hours")
    assert judge(rules, AWAY, None, wall_s=NOON.timestamp(), local=NOON).own_runs


def test_a_pause_stops_everything_and_says_when_it_ends() -> None:
    now = NOON.timestamp()
    for_ever = judge(Rules(), AWAY, Pause(now - 60), wall_s=now, local=NOON)
    assert (for_ever.others_share, for_ever.own_runs, for_ever.why) == (0.0, False, "by you")
    assert "p2pc resume" in for_ever.resumes
    short = Pause(now - 60, until_s=now + 3600)
    assert "13:00" in judge(Rules(), AWAY, short, wall_s=now, local=NOON).resumes
    assert judge(Rules(), AWAY, short, wall_s=now + 3600, local=NOON).own_runs, "it has ended by itself"


def test_rules_that_never_let_anything_run_are_refused() -> None:
    with pytest.raises(ConfigError, match="never work"):
        Rules(in_use=0.0, idle=0.0)
    with pytest.raises(ConfigError, match="never work"):
        rules_of("desktop", in_use="0%", idle="0%", battery="", hours="any")
    with pytest.raises(ConfigError, match="no profile"):
        rules_of("tablet", in_use="", idle="", battery="", hours="any")


def test_profiles_are_what_was_not_set() -> None:
    assert rules_of("laptop", in_use="", idle="", battery="", hours="") == Rules(on_battery=False)
    assert rules_of("laptop", in_use="", idle="", battery="on", hours="").on_battery
    assert all(rules_of(name, in_use="", idle="", battery="", hours="") for name in PROFILES)
    charging, server = Senses(False, None, has_battery=True), Senses(False, None, has_battery=False)
    seen = (Senses(True, None), charging, Senses(None, False), server, Senses())
    assert [profile_for(one) for one in seen] == ["laptop", "laptop", "desktop", "always", "always"]


def test_the_weight_of_a_group_is_said() -> None:
    """If it broke: a node of weight 0 says that it works for others, and none of their work ever runs."""
    now = NOON.timestamp()
    none = judge(Rules(), AWAY, None, wall_s=now, local=NOON, group_share=0.0)
    assert (none.others_share, none.own_runs, none.why) == (
        0.0,
        True,
        "its weight is 0",
    ) and "set weight" in none.resumes
    half = judge(Rules(), ACTIVE, None, wall_s=now, local=NOON, group_share=0.5)
    assert (half.others_share, half.why, half.resumes) == (0.125, "you are active", "45% when you are away.")
    assert half.lines[-1].result == "part 50%"


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("any", "mon 00:00 sun 23:59", ""),
        ("18-8", "mon 18:00 mon 23:59 tue 00:00 tue 07:59", "mon 08:00 mon 17:59"),
        ("mon-fri 19:30-7", "mon 19:30 sat 06:59 fri 23:00", "mon 06:59 sat 19:30 sun 03:00"),
        ("sat-sun, mon-fri 20-22", "sat 00:00 sun 23:59 wed 20:00", "wed 22:00 fri 23:00"),
        ("fri-mon", "fri 12:00 sun 12:00 mon 12:00", "tue 12:00"),
        ("0-24", "mon 00:00 sun 23:59", ""),
    ],
)
def test_hours(text: str, yes: str, no: str) -> None:
    hours = parse_hours(text)

    def holds(words: list[str]) -> list[bool]:
        moments = [(DAYS.index(day), *map(int, at.split(":"))) for day, at in zip(words[::2], words[1::2], strict=True)]
        return [hours.holds(day, 60 * hour + minute) for day, hour, minute in moments]

    assert all(holds(yes.split())) and not any(holds(no.split()))


@pytest.mark.parametrize("text", ["25", "8-25", "8:61-9", "monday", "mon-xyz", "8-8", "mon 8", ",", "8-9-10"])
def test_hours_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="are not hours"):
        parse_hours(text)


@given(st.text(max_size=20))
def test_any_text_is_hours_or_a_clear_error(text: str) -> None:
    try:
        assert isinstance(parse_hours(text), Hours)
    except UsageError as error:
        assert error.why and error.fix


def test_shares() -> None:
    assert parse_share(" 25% ") == 0.25 and parse_share("0%") == 0.0 and parse_share("100%") == 1.0
    for text in ("25", "101%", "-1%", "a%", ""):
        with pytest.raises(UsageError, match="is not a share"):
            parse_share(text)


@given(st.floats(0.0, 1.0), st.integers(1, 256), st.integers(0, 256))
def test_a_share_is_never_exceeded_by_more_than_a_quarter_of_a_core(share: float, cores: int, slots: int) -> None:
    count, part = slots_of(share, cores, slots)
    assert 0 <= count <= slots and 0.0 < part <= 1.0
    assert count * part <= cores * share + 0.25
    assert count == 0 or share > 0.0


def test_shares_of_common_machines() -> None:
    assert slots_of(0.25, 8, 8) == (2, 1.0)
    assert slots_of(0.25, 2, 2) == (1, 0.5)
    assert slots_of(0.9, 2, 2) == (2, 1.0)
    assert slots_of(1.0, 4, 4) == (4, 1.0)
