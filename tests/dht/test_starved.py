"""Nodes that cannot keep up: they wait longer and ask less, until they can."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest
from mesh import Mesh

from tests.dht.test_real import RealPeer

COUNT = 40
HOGS = 2
CPU_S_MAX = 80.0
"""Processor time of all nodes together until they know one another: four minutes at a third of a core.  How long that
takes is up to others who use the machine."""


def test_a_request_that_was_lost_stretches_nothing_and_one_that_is_answered_twice_does() -> None:
    """If it broke: where packets are lost, requests are sent so rarely that live peers are given up."""

    async def stretches(mesh: Mesh) -> tuple[float, int]:
        await mesh.grow(10)
        await asyncio.sleep(300)
        exchanges = [peer.dht._exchange for peer in mesh.peers]
        return max(one.stretch for one in exchanges if one), sum(peer.dht.counters.replies_late for peer in mesh.peers)

    with Mesh(loss=0.1) as mesh:
        assert mesh.simulation.run(stretches(mesh))[0] == 1.0
    # Round trips of about a second: all that is sent before the first answer is answered several times.
    with Mesh(median_s=0.5) as mesh:
        longest, late_count = mesh.simulation.run(stretches(mesh))
        assert longest > 1.0 and late_count > 50
        assert mesh.all_know_all() and sum(peer.dht.counters.contacts_removed for peer in mesh.peers) == 0


def test_who_answers_too_late_is_known_all_the_same() -> None:
    """If it broke: nodes that are slow for a while never meet."""

    async def main() -> None:
        first, second = mesh.add(), mesh.add()
        await mesh.on(first, first.start())
        await mesh.on(second, second.start([first.address]))
        await mesh.wait(mesh.all_know_all, 20, "knowing each other at a round trip beyond the timeout")
        assert second.dht.counters.requests_timed_out and second.dht.counters.replies_late

    with Mesh(median_s=3.0) as mesh:
        mesh.simulation.run(main())


def test_a_hundred_nodes_that_start_at_once_on_one_busy_core_come_to_rest() -> None:
    """A datagram takes a millisecond.  If it broke: they probe those that cannot answer, and never know anybody."""

    async def main() -> None:
        peers = await mesh.grow(100)
        await mesh.wait(
            lambda: min(peer.dht.contact_count for peer in peers) >= 60, 150, "everybody knowing 60 at least"
        )

    with Mesh(median_s=0.0001, handling_s=0.001, cores=1) as mesh:
        mesh.simulation.run(main())


def test_forty_nodes_that_nobody_answers_for_minutes_know_one_another_when_it_is_over() -> None:
    """A datagram takes eight milliseconds.  If it broke: some know 25 of 39, and look around again after hours."""

    async def main() -> None:
        peers = await mesh.grow(40, gap_s=0.0)
        await asyncio.sleep(60)
        assert min(peer.dht.contact_count for peer in peers) < 10
        await mesh.wait(mesh.all_know_all, 480, "everybody knowing everybody")
        await mesh.wait(lambda: all(peer.dht._stretch() == 1.0 for peer in peers), 120, "being at rest")
        assert mesh.all_know_all()

    with Mesh(median_s=0.0001, handling_s=0.008, cores=1) as mesh:
        mesh.simulation.run(main())


@pytest.mark.drill
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux: a process is bound to one core")
async def test_forty_real_nodes_on_a_core_that_others_use_too_know_one_another() -> None:
    """If it broke: many nodes that start on a small machine, as after a power cut, ask and ask, and never join."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(HOGS)]
    peers = [RealPeer() for _ in range(COUNT)]
    try:
        await peers[0].start(0, [])
        await asyncio.gather(*(peer.start(number, [peers[0].address]) for number, peer in enumerate(peers) if number))
        cpu_s = time.process_time() + CPU_S_MAX

        def check_time() -> None:
            known = sorted(peer.dht.contact_count for peer in peers)
            stretch = max(peer.dht._stretch() for peer in peers)
            assert time.process_time() < cpu_s, f"{known} known, {stretch:.1f} stretched"

        while min(peer.dht.contact_count for peer in peers) < 0.8 * COUNT:
            check_time()
            await asyncio.sleep(0.2)
        while [contact.name for contact in (await peers[7].dht.find(peers[8].dht._own_id))[:1]] != ["peer-8"]:
            check_time()  # a lookup looks past who does not keep up
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        os.sched_setaffinity(0, allowed)
        for peer in peers:
            await peer.stop()
