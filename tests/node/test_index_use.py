"""Whole nodes of a group larger than k: questions and jobs reach nodes that only the index names."""

from __future__ import annotations

import asyncio

from p2pcompute.dht.peers import PeersChange
from p2pcompute.limits import SEEK_AGAIN_S
from p2pcompute.node import views
from p2pcompute.resources.expressions import compile_expression
from p2pcompute.resources.matching import Needs, compile_needs
from p2pcompute.resources.questions import Query
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel
from tests.node.test_placement import submit

SMALL = RunnerModel(slot_count=1)
LARGE = RunnerModel(slot_count=64, attributes={"gpu.count": 2, "gpu.model": "A100"})
NODES = 26


def test_a_node_that_is_no_contact_is_found_asked_and_made_known_for_a_job() -> None:
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, NODES, runner=[SMALL] * (NODES - 1) + [LARGE])

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(100)
            asker, holder = mesh.members[1], mesh.members[-1]
            dht = asker.running.network.dht
            assert dht is not None and dht.counters.ads_placed == 0 and views.dht(dht).index == "ok"
            key = holder.identity.public_key
            contact = dht.knows(key)
            assert contact is not None and contact.class_bits is not None

            def forget() -> None:
                entry = dht._table._entry(contact.number)
                if entry is not None:
                    dht._apply([PeersChange(dht._table._remove(entry))])
                asker.running.network.peers.forget(key)

            text = "gpu.model=A100 && cpus>=40 && load < 1000000"
            for condition in (text, "gpu.count>=2"):  # by an ad; by an ad or by what others know of their contacts
                asker.host.enter(forget)
                assert key not in asker.running.network.peers
                query = Query(expression=compile_expression(condition), answers_max=1)
                named = await asker.host.call(asker.running.resources.named(query))
                assert [item[0] for item in named] == [key]
                found = await asker.host.call(asker.running.find(query))
                assert [item.key for item in found.found] == [key]
                searches = dht.counters.searches
                found = await asker.host.call(asker.running.find(query))
                assert [item.key for item in found.found] == [key] and found.took_s < 0.01
                assert dht.counters.searches == searches, "what was said a moment ago is answer enough"
                await asyncio.sleep(1)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def test_a_job_makes_the_nodes_known_that_it_needs() -> None:
    with Simulation(2) as simulation:
        mesh = Mesh(simulation, NODES, runner=[SMALL] * (NODES - 1) + [LARGE])

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(100)
            owner, key = mesh.members[1], mesh.members[-1].identity.public_key
            dht = owner.running.network.dht
            assert dht is not None
            contact = dht.knows(key)
            assert contact is not None
            entry = dht._table._entry(contact.number)
            assert entry is not None
            owner.host.enter(lambda: dht._apply([PeersChange(dht._table._remove(entry))]))
            needs = compile_needs(Needs(require=("gpu.model=A100",), cpus=40))
            owner.host.enter(lambda: owner.running.capacity.seek(needs))
            await asyncio.sleep(3)
            assert key in owner.running.network.peers

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def test_out_of_reach_the_status_says_so_and_known_nodes_are_asked() -> None:
    with Simulation(3) as simulation:
        mesh = Mesh(simulation, NODES, runner=[SMALL] * (NODES - 1) + [LARGE])

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(100)
            asker, holder = mesh.members[1], mesh.members[-1]
            node = asker.running
            query = Query(expression=compile_expression("gpu.count>=2"), answers_max=1, time_s=20.0)
            channel = await asker.host.call(node.find(query))
            assert [item.key for item in channel.found] == [holder.identity.public_key]
            mesh.crash(*(one for one in mesh.members if one not in (asker, holder)), is_silent=True)
            unknown = Query(expression=compile_expression("gpu.model=H100"), time_s=4.0)
            assert not (await asker.host.call(node.find(unknown))).found
            for _ in range(2):  # also once those who are silent are no contacts any more
                assert views.dht(node.network.dht).index == "degraded"  # type: ignore[arg-type]
                [note] = node.status().notes
                assert "index of the group is out of reach" in note or "no peer answers" in note
                found = await asker.host.call(node.find(query))
                assert [item.key for item in found.found] == [holder.identity.public_key]
                job_id = await submit(asker, [0.1], require=("gpu.model=A100",))
                assert (await mesh.wait_for(asker, job_id, limit_s=60)).state == "done"
                await asyncio.sleep(60)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def test_offers_go_to_nodes_that_may_fit_and_the_index_is_asked_when_they_do_not_suffice() -> None:
    """Each job of a large group wakes all of it, or asks the index for what everybody knows."""
    with Simulation(4) as simulation:
        mesh = Mesh(simulation, NODES, runner=[SMALL] * (NODES - 1) + [LARGE])

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(100)
            owner, holder = mesh.members[1], mesh.members[-1]
            node = owner.running
            dht = node.network.dht
            assert dht is not None
            offers, clock = node.scheduler.offers.counters, owner.host.clock
            before, began = offers.offers_sent_count, clock.now()
            job_id = await submit(owner, [0.1] * 3, require=("gpu.count>=2",))
            view = await mesh.wait_for(owner, job_id, limit_s=20)
            assert view.state == "done" and clock.now() - began < 2
            assert [share.node for share in view.by_node if share.done] == [holder.running._options.name]
            given = node.scheduler.victim.counters.grants_given_count
            assert offers.offers_sent_count - before <= 2 and given <= 3, "others cannot run it"
            assert dht.counters.searches == 0, "a contact that fits has slots enough"
            job_id = await submit(owner, [0.1], require=("gpu.model=H100",))
            await asyncio.sleep(20)
            assert node.job(job_id.hex()).done == 0 and dht.counters.searches == 1
            await asyncio.sleep(SEEK_AGAIN_S)
            assert dht.counters.searches == 2, "one that fits may have come"
            before = offers.offers_sent_count
            await submit(owner, [0.1])
            assert offers.offers_sent_count - before <= NODES

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def test_a_small_group_is_not_described_and_needs_no_index() -> None:
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 4, runner=[SMALL, SMALL, SMALL, LARGE])

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(100)
            asker = mesh.members[0]
            dht = asker.running.network.dht
            assert dht is not None and not dht.index.is_described and views.dht(dht).index == "unused"
            query = Query(expression=compile_expression("gpu.count>=2"))
            assert await asker.host.call(asker.running.resources.named(query)) == []
            assert len((await asker.host.call(asker.running.find(query))).found) == 1

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
