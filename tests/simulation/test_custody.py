"""Owners that go away: if these fail, a job dies with the machine that submitted it, or work is lost or repeated."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pcompute.host.blob_digest import ref_of
from p2pcompute.identity.keys import delegate
from p2pcompute.limits import LEASE_S_MIN
from p2pcompute.scheduler.owner_service import OwnerService
from p2pcompute.simulation.custody_runs import run_custody
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.simulation.scenario import load_scenario, with_values
from p2pcompute.simulation.storage import SimBlobs
from tests.simulation.test_glossary import glossary


def keepers(mesh: Mesh, owner: Member, job_id: bytes) -> list[Member]:
    """The custodians of a job, by rank."""
    keys = owner.running.scheduler.owner.books[job_id].job.envelope.terms.custodians
    by_key = {member.identity.public_key: member for member in mesh.members}
    return [by_key[key] for key in keys]


def acting(mesh: Mesh, job_id: bytes) -> list[Member]:
    found = []
    for member in mesh.members:
        custody = member.node.scheduler.custody if member.node is not None else None
        charge = custody.charges.get(job_id) if custody is not None else None
        if charge is not None and charge.is_acting:
            found.append(member)
    return found


def runs(mesh: Mesh) -> int:
    return sum(member.host.tally.runs_ok for member in mesh.members)


def done_at(member: Member, job_id: bytes) -> int:
    view = member.running.job(job_id.hex())
    return view.done


@pytest.mark.parametrize("seed", range(2))
def test_a_custodian_takes_over_and_the_owner_takes_its_job_back(seed: int) -> None:
    with Simulation(seed) as simulation:
        mesh = Mesh(simulation, 5, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[1]
            job_id = await mesh.submit(owner, [2.0] * 400)
            await asyncio.sleep(15)
            first, second = keepers(mesh, owner, job_id)
            before = done_at(owner, job_id)
            mesh.crash(owner)
            died = simulation.now
            await asyncio.sleep(10)
            for keeper in (first, second):
                told = keeper.running.job(job_id.hex()).coordinator
                assert told is not None and told.is_owner and told.away_since is not None and told.next_at is not None
                assert (told.name, told.next_name) == (owner.host.name, first.host.name)
                assert abs(told.next_at - told.away_since - LEASE_S_MIN) <= 1
            while not acting(mesh, job_id):
                await asyncio.sleep(0.5)
                assert simulation.now - died < 2 * LEASE_S_MIN
            assert acting(mesh, job_id) == [first]
            await asyncio.sleep(20)
            told = second.running.job(job_id.hex()).coordinator
            assert told is not None and (told.name, told.away_since) == (first.host.name, None)
            held = first.running.scheduler.worker.core.held
            assert 2 <= len(held) <= 4, f"{len(held)} tasks at the worker of who coordinates them: two run"
            between = done_at(first, job_id)
            assert between > before + 40, "work goes on"
            await mesh.restart(owner)
            await asyncio.sleep(15)
            assert acting(mesh, job_id) == [owner]
            assert done_at(owner, job_id) >= between, "what was done meanwhile is the owner's"
            view = await mesh.wait_for(owner, job_id, limit_s=300)
            assert view.state == "done" and view.failed == 0 and view.done == 400
            await mesh.check_values(owner, job_id, 400)
            await asyncio.sleep(30)
            assert not acting(mesh, job_id) or acting(mesh, job_id) == [owner]
            for member in keepers(mesh, owner, job_id):
                kept = member.running.job(job_id.hex())
                assert (kept.done, kept.claimed, kept.state) == (400, 0, "done")
            assert runs(mesh) <= 400 + 16, f"{runs(mesh)} good runs of 400 tasks"

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def test_an_owner_that_is_just_back_cancels_only_what_nobody_has_done() -> None:
    """Broken: results that a custodian took are thrown away, because their owner heard of them after the command."""
    with Simulation(3) as simulation:
        mesh = Mesh(simulation, 5, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[1]
            job_id = await mesh.submit(owner, [2.0] * 400)
            await asyncio.sleep(15)
            first, _second = keepers(mesh, owner, job_id)
            before = done_at(owner, job_id)
            mesh.crash(owner)
            await asyncio.sleep(2 * LEASE_S_MIN + 20)
            between = done_at(first, job_id)
            assert before < between < 400
            await mesh.restart(owner)
            await owner.running.cancel(job_id, now=True)
            view = await mesh.wait_for(owner, job_id, limit_s=10)
            assert view.state == "cancelled" and view.done >= between and view.done + view.cancelled == 400

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


@pytest.mark.parametrize("away_s", [1.0, 90.0])
def test_what_ran_when_a_job_was_cancelled_ends_although_its_owners_node_is_killed(away_s: float) -> None:
    """So it was promised.  In a minute and a half a custodian has taken over, and the results are there."""
    with Simulation(3) as simulation:
        mesh = Mesh(simulation, 5, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[1]
            job_id = await mesh.submit(owner, [20.0] * 100)
            await asyncio.sleep(15)
            await owner.running.cancel(job_id)
            view = owner.running.job(job_id.hex())
            there = sum(share.running for share in view.by_node if share.public_key != owner.identity.public_key)
            assert there >= 6 and view.done == 0
            mesh.crash(owner)
            await asyncio.sleep(away_s)
            await mesh.restart(owner)
            view = await mesh.wait_for(owner, job_id, limit_s=60)
            assert view.state == "cancelled" and view.done == there and view.done + view.cancelled == 100

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


@pytest.mark.parametrize(("play", "seed"), [("partition", 1), ("blackout", 2), ("turns", 3), ("turns", 4)])
def test_nothing_is_lost_or_accepted_twice(play: str, seed: int) -> None:
    """Two halves that both work, all coordinators gone, and two that crash and return in turn: see `custody_runs`."""
    values = {"play": play, "tasks": "300", "away_s": "60", "nodes": "7"}
    result = run_custody(with_values(load_scenario("custody"), values), seed)
    assert not result.problems
    bare = {metric.removesuffix("_p50").removesuffix("_p95").removesuffix("_max") for metric in result.metrics}
    assert bare <= glossary().keys()


def running(mesh: Mesh) -> tuple[Member, int, bytes | tuple[bytes, int]]:
    """The only run of the mesh: at whom, its id, and what it goes on from."""
    found = []
    for member in mesh.members:
        if member.node is not None:
            batches = [batch for batch in member.host.runner._slots if batch is not None]
            found += [(member, run.run_id, run.cookie_blob or run.cookie) for batch in batches for run in batch.runs]
    (only,) = found
    return only


@pytest.mark.parametrize("size", [20, 200_000])
def test_what_a_task_has_saved_outlives_its_coordinator_and_its_worker(size: int) -> None:
    """Without copies a task of hours begins anew whenever its coordinator and its node go away together."""
    cookies = [name * size for name in (b"a", b"b", b"c", b"d")]

    def is_at(found: bytes | tuple[bytes, int], cookie: bytes) -> bool:
        return found in (cookie, ref_of(cookie))

    with Simulation(3) as simulation:
        mesh = Mesh(simulation, 6, runner=[RunnerModel(slot_count=0), *[RunnerModel(slot_count=1)] * 5])

        async def save(*these: bytes) -> Member:
            worker, run_id, _found = running(mesh)
            for cookie in these:
                worker.host.runner.on_saved(run_id, cookie)
                await asyncio.sleep(4)
            return worker

        async def runs_again(worker: Member, limit_s: float) -> bytes | tuple[bytes, int]:
            until = simulation.now + limit_s
            while simulation.now < until:
                await asyncio.sleep(1)
                busy = [one for one in mesh.members if one.node is not None and one.host.runner.busy_count]
                if busy and busy != [worker]:
                    return running(mesh)[2]
            raise TimeoutError

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [300.0])
            await asyncio.sleep(5)
            worker = await save(cookies[0], cookies[1])
            mesh.crash(owner, worker)
            assert is_at(await runs_again(worker, 4 * LEASE_S_MIN), cookies[1])
            (keeper,) = acting(mesh, job_id)
            assert keeper is not owner
            worker = await save(cookies[2], cookies[3])
            mesh.crash(*{id(one): one for one in (worker, keeper)}.values())
            await mesh.restart(owner)
            assert is_at(await runs_again(worker, 4 * LEASE_S_MIN), cookies[3])
            view = await mesh.wait_for(owner, job_id, limit_s=1000)
            assert view.done == 1
            await asyncio.sleep(30)
            for member in mesh.members:
                if member.node is not None:
                    assert not member.node.scheduler.owner.core.checkpoints.tasks(job_id), "the end frees it"

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def test_custodians_keep_no_more_than_their_people_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of what tasks save are bounded by a share of the room for files; what was kept before stays."""
    monkeypatch.setattr(SimBlobs, "bytes_max", property(lambda _self: 1_000_000))
    with Simulation(3) as simulation:
        mesh = Mesh(simulation, 4, runner=[RunnerModel(slot_count=0), *[RunnerModel(slot_count=1)] * 3])

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [300.0])
            await asyncio.sleep(5)
            worker, run_id, _found = running(mesh)
            for size in (70_000, 100_000, 150_000):
                worker.host.runner.on_saved(run_id, bytes(size))
                await asyncio.sleep(5)
            found = keepers(mesh, owner, job_id)
            for keeper in found:
                custody = keeper.running.scheduler.custody
                assert custody is not None and custody.counters.blobs_missing_count > 0
                assert 100_000 <= custody.kept_bytes < 110_000 and custody.room_bytes < 100_000
            mesh.crash(owner)
            for keeper in found:
                await keeper.host.call(keeper.running.scheduler.owner.drop_replica(job_id))
                custody = keeper.running.scheduler.custody
                assert custody is not None and custody.kept_bytes == 0, "room comes back with the job's end"

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()


def test_an_owner_whose_custodian_never_comes_back_is_worked_for_again() -> None:
    """Workers know an epoch that the owner has not heard of, and nobody is left to tell it but they."""
    with Simulation(5) as simulation:
        models = [RunnerModel(slot_count=0), *[RunnerModel(slot_count=1)] * 3]
        mesh = Mesh(simulation, 4, runner=models, custodians=1)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [2.0] * 120)
            await asyncio.sleep(10)
            (keeper,) = keepers(mesh, owner, job_id)
            mesh.crash(owner)
            await asyncio.sleep(LEASE_S_MIN + 15)
            assert acting(mesh, job_id) == [keeper]
            mesh.crash(keeper, is_silent=True)
            await asyncio.sleep(5)
            await mesh.restart(owner)
            view = await mesh.wait_for(owner, job_id, limit_s=300)
            assert (view.done, view.failed) == (120, 0)
            await mesh.check_values(owner, job_id, 120)

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()


def test_a_custodian_of_which_workers_know_a_later_one_is_worked_for() -> None:
    """It comes back after another has coordinated, and that one is gone: only workers know of its epoch."""
    with Simulation(6) as simulation:
        mesh = Mesh(simulation, 6, runner=RunnerModel(slot_count=1))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [2.0] * 500)
            await asyncio.sleep(10)
            first, second = keepers(mesh, owner, job_id)
            mesh.crash(owner, first)
            await asyncio.sleep(2 * LEASE_S_MIN)
            assert acting(mesh, job_id) == [second]
            mesh.crash(second, is_silent=True)
            await asyncio.sleep(5)
            await mesh.restart(first)
            await asyncio.sleep(LEASE_S_MIN + 15)
            assert acting(mesh, job_id) == [first]
            before = runs(mesh)
            await asyncio.sleep(30)
            assert runs(mesh) - before > 40, "four slots, two seconds a task"
            await mesh.restart(owner)
            view = await mesh.wait_for(owner, job_id, limit_s=500)
            assert (view.done, view.failed) == (500, 0)
            await mesh.check_values(owner, job_id, 500)

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()


def test_what_a_program_did_for_a_custodian_counts_as_its_installations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an installation agrees with itself under the names of its programs."""
    told: set[tuple[bytes, bytes]] = set()
    intake = OwnerService.intake

    def noted(self: OwnerService, thief: bytes, installation: bytes, *rest: Any, **more: Any) -> int:
        if more.get("relayed_by") is not None:
            told.add((thief, installation))
        return intake(self, thief, installation, *rest, **more)

    monkeypatch.setattr(OwnerService, "intake", noted)
    with Simulation(4) as simulation:
        mesh = Mesh(simulation, 5, runner=RunnerModel(slot_count=2))
        owner, installation, program = mesh.members[1], mesh.members[3], mesh.members[4]
        crypto, wall = program.host.crypto, program.host.clock.wall()
        program.group = installation.group
        program.identity = delegate(installation.identity, crypto, expires_wall=wall + 86400, roles=("work",))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            job_id = await mesh.submit(owner, [2.0] * 400)
            await asyncio.sleep(15)
            mesh.crash(owner)
            await asyncio.sleep(60)
            await mesh.restart(owner)
            await mesh.wait_for(owner, job_id, limit_s=300)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
    assert program.identity.public_key in {signer for signer, _by in told}
    assert all(by == installation.identity.public_key for signer, by in told if signer == program.identity.public_key)
