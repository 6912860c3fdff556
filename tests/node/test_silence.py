"""Nodes that say nothing any more.  If these fail, people wait for a node that is shown as if it were there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from p2pcompute.limits import CHANNEL_ANSWER_S, CHANNEL_PING_S
from p2pcompute.node.facade import PeerView
from p2pcompute.node.views import find_node
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.runner import RunnerModel

LOOKS_S = 1.0
"""As often as `p2pc status -w` looks."""


def play(scene: Callable[[Mesh], Awaitable[None]]) -> None:
    with Simulation(5) as simulation:
        mesh = Mesh(simulation, 3, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            await scene(mesh)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def look(owner: Member, other: Member) -> PeerView:
    return find_node(owner.running.peers(), other.host.name)


@pytest.mark.parametrize("idle_s", [20.0, 400.0])
def test_a_node_that_stands_still_is_not_seen_as_soon_as_it_owes_an_answer(idle_s: float) -> None:
    """A channel outlives a node that was stopped (SIGSTOP, a computer that hangs) by half a minute and more; by much
    more where nothing had passed on it for long."""

    async def scene(mesh: Mesh) -> None:
        owner, frozen, other = mesh.members
        await mesh.submit(owner, [0.1] * 20)
        await asyncio.sleep(idle_s)
        frozen.host.suspend()
        waited_s = 0.0
        while (seen := look(owner, frozen)).state == "up":
            assert waited_s <= CHANNEL_PING_S + CHANNEL_ANSWER_S + LOOKS_S, "it owes an answer"
            await asyncio.sleep(LOOKS_S)
            waited_s += LOOKS_S
        network = owner.running.network
        assert network.channels.get(frozen.identity.public_key) is not None
        assert seen.state == "not seen" and seen.seen_s is not None
        assert CHANNEL_ANSWER_S <= seen.seen_s <= waited_s + CHANNEL_PING_S
        assert seen.path == "" and network.silent() == {frozen.identity.public_key}
        assert look(owner, other).state == "up"
        frozen.host.resume()
        await asyncio.sleep(LOOKS_S)
        assert look(owner, frozen).state == "up"

    play(scene)


def test_who_is_up_is_never_shown_as_silent() -> None:
    async def scene(mesh: Mesh) -> None:
        owner = mesh.members[0]
        for _ in range(300):
            assert [one.state for one in owner.running.peers()] == ["self", "up", "up"]
            await asyncio.sleep(LOOKS_S)

    play(scene)


def test_who_came_back_and_says_goodbye_is_not_away() -> None:
    """It had fallen silent before, and nobody looked since."""

    async def scene(mesh: Mesh) -> None:
        owner, other = mesh.members[0], mesh.members[1]
        mesh.crash(other, is_silent=True)
        await asyncio.sleep(120)
        assert look(owner, other).state == "not seen"
        await mesh.restart(other)
        await asyncio.sleep(60)
        await mesh.stop(other)
        await asyncio.sleep(30)
        assert other.identity.public_key not in [one.public_key for one in owner.running.peers()]
        assert other.identity.public_key not in owner.running.network.away()

    play(scene)
