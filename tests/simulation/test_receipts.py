"""Receipts between whole nodes.  If these fail, what one node has given is not what the other one says it got."""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.scheduler.messages import Message
from p2pcompute.scheduler.receipts import RECEIPT_S
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel


def test_workers_get_receipts_for_what_they_did_over_restarts_too() -> None:
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 3, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner, *workers = mesh.members
            job_id = await mesh.submit(owner, [0.3] * 200)
            view = await mesh.wait_for(owner, job_id, limit_s=60)
            await asyncio.sleep(2 * RECEIPT_S)
            done = {share.public_key: share.done for share in view.by_node}
            for again in (False, True):
                if again:
                    mesh.crash(*mesh.members)
                    for member in mesh.members:
                        await mesh.restart(member)
                for worker in workers:
                    books = worker.running.scheduler.receipts.core
                    receipt, _raw = books.given[owner.identity.installation]
                    assert receipt.tasks == done[worker.identity.public_key]
                    assert books.given_s == pytest.approx(0.3 * receipt.tasks, rel=0.01)
                    assert worker.running.status().cpu_given_s == books.given_s
                given_s = sum(worker.running.scheduler.receipts.core.given_s for worker in workers)
                assert owner.running.status().cpu_taken_s == pytest.approx(given_s)

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()


def test_a_forged_receipt_is_refused_and_nothing_is_lost() -> None:
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 2)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            forger, victim = mesh.members
            for channel in forger.running.channels.all():
                channel.send(Message.RECEIPT, [b"worth a million hours"])
            await asyncio.sleep(2)
            assert victim.running.scheduler.receipts.core.refused_count == 1
            job_id = await mesh.submit(forger, [0.3] * 20)
            view = await mesh.wait_for(forger, job_id, limit_s=60)
            assert view.done == 20

        simulation.run(main(), time_s_max=200)
        mesh.check_errors()
