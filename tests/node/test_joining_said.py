"""What somebody is told who finds nobody to join.  If these fail, people try a dead code again and again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pcompute.errors import ChannelLost, NodeUnavailable
from p2pcompute.host.interfaces import Address
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.node.joining import Joining, _silent
from p2pcompute.trust.admission import STANDING
from p2pcompute.trust.invites import Invites
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
    joining._host = cast("Any", SimpleNamespace(clock=SimpleNamespace(now=lambda: 100.0, wall=lambda: 5000.0)))
    invites = joining._credentials.invites = Invites(RealCrypto())
    assert joining.notes() == [] and joining.open_invites() == []
    token = invites.create(100.0, uses=20, expires_s=3600.0, is_mine=True)
    token.admitted[b"a" * 32] = None
    handle = token.id.hex()[:8]
    [note] = joining.notes()
    assert f"1 invitation is open ({handle} as your own): 19 may join, within 60 min" in note
    assert f"p2pc invite --withdraw {handle} takes it back" in note
    code = invites.create(100.0, words=3, roles=("work",))
    assert [view.handle for view in joining.open_invites()] == [handle, str(code.number)]
    assert [view.expires for view in joining.open_invites()] == [8600.0, 5600.0]
    [note] = joining.notes()
    assert f"2 invitations are open ({handle} as your own, {code.number} to work): 20 may join" in note
    assert "--withdraw NUMBER takes one back, --withdraw all takes all back" in note


@pytest.mark.parametrize("method", STANDING)
def test_who_lets_nobody_in_by_a_standing_way_is_told_how_to(method: str) -> None:
    error = _silent("nova:7878", [Address("192.0.2.1", 7878)], ChannelLost("reset"), method)
    assert error.code == "no-inviter" and "invit" not in f"{error.why} {error.fix}"
    with pytest.raises(NodeUnavailable) as caught:
        asyncio.run(alone().doors(method, ""))
    for fix in (str(error.fix), str(caught.value.fix)):
        assert "admit." in fix or "group policy open=true" in fix
