"""Names of members that are away.  If these fail, a restart turns those who are away into numbers nobody knows."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from p2pcompute.errors import UsageError
from p2pcompute.limits import NAMES_SAVED_MAX, NODE_NAME_CHARS_MAX
from p2pcompute.node.facade import PeerView, TrustView
from p2pcompute.node.names import Names
from p2pcompute.node.network import SAVE_FIRST_S, SAVE_PAUSE_S
from p2pcompute.node.views import find_node, find_nodes
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.trust.levels import Level

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.mark.parametrize("is_crash", [False, True])
def test_who_is_away_keeps_its_name_when_the_node_restarts(is_crash: bool) -> None:
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 3)
        seen: list[TrustView] = []

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(30)  # it writes down whom it knows
            owner, other = mesh.members[0], mesh.members[1]
            key = other.identity.public_key
            await mesh.stop(other)
            left_wall_s = owner.host.clock.wall()
            await asyncio.sleep(100)
            if is_crash:
                mesh.crash(owner)
            else:
                await mesh.stop(owner)
            await mesh.restart(owner)
            await asyncio.sleep(5)
            seen.extend(view for view in owner.running.trust() if view.key == key)
            assert seen[0].heard is not None
            assert abs(seen[0].heard - left_wall_s) < 60
            assert owner.running.name_of(key) == other.host.name
            await mesh.restart(other)
            await asyncio.sleep(10)
            seen.extend(view for view in owner.running.trust() if view.key == key)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
        assert [view.name for view in seen] == [mesh.members[1].host.name] * 2
        assert [view.is_up for view in seen] == [False, True]
        assert seen[1].heard is None, "who is up has no age"


def test_who_came_lately_keeps_its_name_when_the_node_crashes() -> None:
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 3)

        async def main() -> None:
            owner, other, late = mesh.members
            await mesh.start([owner, other])
            await asyncio.sleep(60)
            await mesh.start([late])
            await asyncio.sleep(SAVE_FIRST_S + SAVE_PAUSE_S + 5)
            key = late.identity.public_key
            assert owner.running.name_of(key) == late.host.name
            await mesh.stop(late)
            mesh.crash(owner)
            await mesh.restart(owner)
            await asyncio.sleep(5)
            assert owner.running.name_of(key) == late.host.name

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def test_who_was_let_in_is_known_after_a_restart_though_it_is_away() -> None:
    """Or nobody could remove it."""
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 2)
        known: list[bytes] = []

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(10)
            await mesh.stop(mesh.members[1])
            mesh.crash(mesh.members[0])
            founder = await mesh.restart(mesh.members[0])
            known.extend(view.key for view in founder.trust() if view.roles is not None)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
        assert mesh.members[1].identity.public_key in known


def test_what_was_stored_is_not_believed_blindly() -> None:
    names = Names()
    names.note(OTHER, "now", 50.0)
    long = "n" * 200
    names.restore([[KEY, f"\x1b[1m{long}", 900], [OTHER, "then", 10], [b"short", "x", 1], "junk", [KEY]], 100.0)
    heard = names.get(KEY)
    assert heard is not None
    assert heard.name == f"[1m{long}"[:NODE_NAME_CHARS_MAX]
    assert heard.wall_s == 100.0, "nobody was heard in the future"
    assert names.get(OTHER) == replace(heard, name="now", wall_s=50.0), "what was heard since is newer"
    names.restore(None, 100.0)
    assert len(names) == 2


def test_the_last_heard_are_stored_and_no_more() -> None:
    names = Names()
    for number in range(NAMES_SAVED_MAX + 10):
        names.note(number.to_bytes(32, "big"), f"n{number}", float(number))
    saved = names.saved(lambda key: key[-1] != 5)
    assert len(saved) == NAMES_SAVED_MAX
    assert saved[-1][1] == f"n{NAMES_SAVED_MAX + 9}"
    assert all(key[-1] != 5 for key, _name, _wall in saved)


def test_a_name_that_is_away_or_mistyped_is_told_apart() -> None:
    peers = [PeerView(name="nova", public_key=OTHER, state="self")]
    known = [TrustView(key=KEY, name="atlas", level=Level.MEMBER, roles=("work",), heard=1.0)]
    with pytest.raises(UsageError, match="atlas is away") as caught:
        find_nodes(peers, ["atlas"], known)
    assert caught.value.code == "no-such-node"
    assert find_nodes(peers, ["atlas"], known, is_to_avoid=True) == (KEY,)
    with pytest.raises(UsageError, match="there is no node 'atls'") as caught:
        find_node(peers, "atls", known)
    assert caught.value.fix is not None
    assert "did you mean atlas?" in caught.value.fix
