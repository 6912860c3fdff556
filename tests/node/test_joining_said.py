"""What somebody is told who finds nobody to join.  If these fail, people try a dead code again and again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pcompute.errors import ChannelLost, NodeUnavailable
from p2pcompute.host.interfaces import Address
from p2pcompute.node.joining import Joining, _silent
from p2pcompute.trust.admission import STANDING
from p2pcompute.trust.words import parse_code


async def nobody(*_args: Any, **_options: Any) -> list[Any]:
    return []


def alone() -> Joining:
    """Return what joins, on a network where nobody is."""
    made = object.__new__(Joining)
    made._network = cast("Any", SimpleNamespace(lan=SimpleNamespace(look_around=nobody)))
    made._credentials = cast("Any", SimpleNamespace(group=SimpleNamespace(is_open_to_others=False)))
    return made


def test_of_a_code_that_nobody_announces_it_is_not_said_that_it_is_good() -> None:
    code = parse_code("9-corrosion-reward-aggregate")
    with pytest.raises(NodeUnavailable) as caught:
        asyncio.run(alone().join(code))
    said = f"{caught.value.why} {caught.value.fix}"
    assert "still good" not in said and "expired" in said and "@HOST:PORT" in said and "p2pc invite" in said


def test_open_invitations_are_said() -> None:
    """One that went to the wrong person is good for a day, and nothing else shows it."""
    joining = alone()
    joining._host = cast("Any", SimpleNamespace(clock=SimpleNamespace(now=lambda: 100.0)))
    found: list[Any] = []
    joining._credentials.invites = cast("Any", SimpleNamespace(open_invites=lambda _now: found))
    assert joining.notes() == []
    found.append(SimpleNamespace(uses=20, admitted={b"a": None}, expires=3700.0, is_mine=True))
    [note] = joining.notes()
    assert "1 invitation is open: 19 may join, some as your own, within 60 min" in note and "takes all back" in note


@pytest.mark.parametrize("method", STANDING)
def test_who_lets_nobody_in_by_a_standing_way_is_told_how_to(method: str) -> None:
    error = _silent("nova:7878", [Address("192.0.2.1", 7878)], ChannelLost("reset"), method)
    assert error.code == "no-inviter" and "invit" not in f"{error.why} {error.fix}"
    with pytest.raises(NodeUnavailable) as caught:
        asyncio.run(alone().doors(method, ""))
    for fix in (str(error.fix), str(caught.value.fix)):
        assert "admit." in fix or "group policy open=true" in fix
