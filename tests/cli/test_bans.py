"""What is said of nodes that get no more work.  If these fail, honest ones lose it and nobody hears of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pcompute.cli.follow import bans_hint
from p2pcompute.cli.run_job import _leave_out_where_varying, _say_few
from p2pcompute.cli.watch_commands import ban_notes, peers_table

WHY = "too many wrong values"


def peer(name: str, *, trust: str = "member", banned: str | None = None) -> dict[str, Any]:
    facts = {"name": name, "id": name.upper(), "short_id": name.upper(), "trust": trust, "banned": banned}
    return {**facts, "state": "up", "slots": 2, "busy": 0, "path": "direct", "version": "0.1.0"}


def test_who_was_banned_during_a_run_is_said_at_its_end_with_the_way_back() -> None:
    before = {"peers": [peer("atlas"), peer("liam", banned=WHY)]}
    assert bans_hint(before, before) == ""
    hint = bans_hint(before, {"peers": [peer("atlas", banned=WHY), peer("liam", banned=WHY)]})
    assert "atlas" in hint and "liam" not in hint and "p2pc trust set NODE member" in hint


def test_status_shows_a_ban() -> None:
    peers = [peer("nova", trust="self"), peer("atlas", banned=WHY)]
    [note] = ban_notes(cast("Any", peers))
    assert WHY in note and "p2pc trust show atlas" in note
    assert "banned" in peers_table(cast("Any", peers), {"version": "0.1.0"}).splitlines()[2]


@pytest.mark.parametrize(
    ("words", "demands", "on", "trust", "wanted"),
    [
        ("echo {} $P2PC_NODE", {}, [], "member", "trusted"),
        ("echo {}", {}, [], "member", None),  # the same everywhere
        ("echo {} $P2PC_NODE", {}, [], "trusted", None),  # no members
        ("echo {} $P2PC_NODE", {"trust": "member"}, [], "member", "member"),  # asked for
        ("echo {} $P2PC_NODE", {"replicas": 2}, [], "member", None),
        ("echo {} $P2PC_NODE", {"verify": "none"}, [], "member", None),
        ("echo {} $P2PC_NODE", {}, ["atlas"], "member", None),  # nobody else could
    ],
)
def test_what_cannot_be_compared_is_not_given_to_members(
    words: str, demands: dict[str, Any], on: list[str], trust: str, wanted: str | None
) -> None:
    """The first command that people try among several computers prints where it ran."""
    request = SimpleNamespace(words=[words], kind="shell", demands=dict(demands), on=on)
    _leave_out_where_varying(cast("Any", request), {"peers": [peer("nova", trust="self"), peer("atlas", trust=trust)]})
    assert request.demands.get("trust") == wanted


@pytest.mark.parametrize(
    ("replicas", "members", "is_said"), [(9, 3, True), (3, 3, False), (1, 0, False), (None, 0, False), (2, 0, True)]
)
def test_more_replicas_than_there_are_members_are_said(
    replicas: int | None, members: int, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asked for nine comparisons and got three would believe more than he may."""
    peers = [peer("nova", trust="self"), peer("mine", trust="trusted"), *(peer(f"m{n}") for n in range(members))]
    request = SimpleNamespace(demands={} if replicas is None else {"replicas": replicas})
    _say_few(cast("Any", request), {"peers": peers})
    assert (f"--replicas {replicas} " in capsys.readouterr().err) is is_said
