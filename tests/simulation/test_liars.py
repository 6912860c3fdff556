"""Whole nodes whose owners trust nobody: if it broke, members that lie would get wrong results accepted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload
from p2pcompute.host.runs import Outcome, TaskRun
from p2pcompute.scheduler.bundles import find_equivocation
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.messages import CLAIMS_CONTENT_TYPE
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.mesh_run import MeshRun, run_mesh
from p2pcompute.simulation.mesh_settings import MeshSettings
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.simulation.scenario import load_scenario, with_values
from p2pcompute.trust.levels import Level, LevelNote

SMALL = {"nodes": 12, "tasks": 150, "churn": 0.2, "hours": 0.1, "warm": "false", "workload.0.work_s": 2}


def run(seed: int, **values: object) -> RunResult:
    return run_mesh(with_values(load_scenario("liars"), {key: str(v) for key, v in {**SMALL, **values}.items()}), seed)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_wrong_result_is_accepted_while_nodes_come_and_go(seed: int) -> None:
    result = run(seed, colluding=2, wrong=1)
    assert result.problems == ()
    assert result.fired["hostile.colluding"] > 0 and result.metrics["tasks_done"] == 150
    assert result.metrics.get("wrong_accepted", 0) == 0


def test_without_checks_they_would_be() -> None:
    result = run(1, colluding=2, wrong=1, trust="trusted", **{"checks.wrong_values": "false"})
    assert result.metrics["wrong_accepted"] > 0


def test_what_belief_costs_is_measured_by_one_setting() -> None:
    """Or nothing would tell what checks cost; nor that nodes which are trusted pay nothing for them."""
    off = {"checks.wrong_values": "false", "colluding": 0, "wrong": 0, "churn": 1000, "nodes": 6}
    runs = {(trust, verify): run(1, trust=trust, verify=verify, **off).metrics["runs"]
            for trust in ("trusted", "member") for verify in ("true", "false")}  # fmt: skip
    assert runs["trusted", "true"] == runs["trusted", "false"] < 165
    assert runs["member", "false"] < 165 and runs["member", "true"] > 280


def test_who_comes_first_while_the_founder_is_away_finds_the_others() -> None:
    """Through the founder alone it would not, and a job that takes longer would be done by ever fewer nodes."""
    scenario = with_values(load_scenario("liars"), {**{key: str(v) for key, v in SMALL.items()}, "contacts": "3"})
    assert isinstance(scenario.settings, MeshSettings)
    found: list[int] = []

    class WithoutFounder(MeshRun):
        async def _main(self, until_s: float | None, faults: Any, plans: Any) -> None:
            self.spawn(self.leave_and_come(), "test")
            await super()._main(until_s, faults, plans)

        async def leave_and_come(self) -> None:
            await asyncio.sleep(20)
            await self.stop(0)
            down = [number for number, member in enumerate(self.mesh.members) if member.node is None and number]
            for number in down:
                await self.start(number)
            await asyncio.sleep(60)
            found.extend(len(self.mesh.members[number].running.channels.all()) for number in down)

    world = WithoutFounder(scenario.settings, 1)
    world.run(100.0)
    assert world.problems == [] and found and all(found)


def test_an_owner_that_was_away_knows_whom_it_has_banned() -> None:
    """Or whoever is found out lies again after each restart of an owner."""
    with Simulation(3) as simulation:
        mesh = Mesh(simulation, 7, runner=RunnerModel(slot_count=2), level=Level.MEMBER, custodians=0)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            random_values(mesh, 3, mesh.members[5:])
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [0.5] * 400)
            records = owner.running.scheduler.acceptance.records
            while sum(record.banned != "" for record in records.values()) < 2:
                await asyncio.sleep(1)
            await asyncio.sleep(2)
            known = {key: (record.banned, record.claims) for key, record in records.items() if record.banned}
            mesh.crash(owner)
            await mesh.restart(owner)
            records = owner.running.scheduler.acceptance.records
            assert {key: (records[key].banned, records[key].claims) for key in known} == known
            await mesh.wait_for(owner, job_id, limit_s=600)
            await mesh.check_values(owner, job_id, 400)

        simulation.run(main(), time_s_max=2000)


# --- nobody honest is framed ----------------------------------------------------------------------


def random_values(mesh: Mesh, seed: int, members: Sequence[Member] | None = None) -> None:
    """Let every run of every task, at these members or at all, find something else."""
    rng = random.Random(seed)
    for member in mesh.members if members is None else members:
        draw = member.host.runner._draw

        def drawn(run: TaskRun, draw: Callable[[TaskRun], Outcome] = draw) -> Outcome:
            return replace(draw(run), value=rng.randbytes(8))

        member.host.runner._draw = drawn  # type: ignore[method-assign]


def test_an_owner_that_leases_a_task_twice_gets_no_second_signature() -> None:
    """Two signed results under one lease are taken as proof of a lie, by everybody."""
    with Simulation(4) as simulation:
        mesh = Mesh(simulation, 2, runner=RunnerModel(slot_count=1), level=Level.MEMBER, custodians=0)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            random_values(mesh, 1)
            owner, worker = mesh.members
            framing = owner.running.scheduler
            seen: list[tuple[int, bytes]] = []
            take = framing.owner.intake

            def note(thief: bytes, installation: bytes, job_id: bytes, raw: bytes, pairs: Any, **kept: Any) -> int:
                seen.extend((claim[2], claim[4]) for claim, _outcome in pairs)
                taken = take(thief, installation, job_id, raw, pairs, **kept)
                job = framing.owner.core.jobs[job_id]
                if len(seen) < 3 and job.checked is not None:  # as if it had never been given out
                    framing.acceptance.ended_otherwise(job, 0)
                    job.checked.attempts.clear()
                    job.ready.appendleft(0)
                return taken

            framing.owner.intake = note  # type: ignore[method-assign]
            framing.victim._feed_local = lambda now: None  # type: ignore[method-assign]
            await mesh.submit(owner, [0.5])
            await asyncio.sleep(60)
            assert worker.running.scheduler.worker.counters.second_results_count > 0
            assert len(dict(seen)) == len(dict.fromkeys(seen)), "one result for each lease"

        simulation.run(main(), time_s_max=200)


def test_a_crash_between_signing_and_sending_frames_nobody() -> None:
    """It has signed a result that it does not remember, and after its restart signs another one."""
    with Simulation(6) as simulation:
        mesh = Mesh(simulation, 3, runner=RunnerModel(slot_count=1), level=Level.MEMBER, custodians=0)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            random_values(mesh, 2)
            owner, victim = mesh.members[0], mesh.members[1]
            sign = victim.identity.sign_envelope
            signed: list[bytes] = []

            def sign_and_crash(content_type: str, payload: Any) -> bytes:
                raw = sign(content_type, payload)
                if content_type == CLAIMS_CONTENT_TYPE:
                    signed.append(raw)
                    if len(signed) == 1:
                        mesh.crash(victim)
                return raw

            worker = victim.running.scheduler.worker.sender

            class Crasher:
                def __getattr__(self, name: str) -> Any:
                    return getattr(victim.identity, name)

                sign_envelope = staticmethod(sign_and_crash)

            worker._identity = Crasher()  # type: ignore[assignment]
            job_id = await mesh.submit(owner, [0.5] * 12)
            await asyncio.sleep(20)
            assert signed
            await mesh.restart(victim)
            await mesh.wait_for(owner, job_id, limit_s=600)
            records = owner.running.scheduler.acceptance.records
            assert not any(record.banned for record in records.values())
            raws = [*signed, *[raw async for raw in owner.running._journal.facts(job_id)]]  # type: ignore[union-attr]
            assert find_equivocation(owner.host.crypto, raws, victim.identity.public_key) is None

        simulation.run(main(), time_s_max=2000)


# --- owners that are away -------------------------------------------------------------------------


def test_a_custodian_has_results_checked_while_the_owner_is_away() -> None:
    """Or a job would rest, computed once, until its owner is back, and all of it be computed again then."""
    with Simulation(5) as simulation:
        mesh = Mesh(simulation, 7, runner=RunnerModel(slot_count=2), level=Level.MEMBER, custodians=1)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner, keeper, liar = mesh.members[1], mesh.members[2], mesh.members[6]
            owner.running.credentials.levels.set(keeper.identity.installation, LevelNote(level=Level.TRUSTED))
            random_values(mesh, 4, [liar])
            payloads = [encode_payload(TaskPayload(work_s=1.0)) for _ in range(300)]

            async def submit() -> bytes:
                terms = JobTerms(name="away", replicas=2)
                job_id = await owner.running.submit_job(terms, JobSpec(kind=TaskKind.SIMULATED))
                await owner.running.add_tasks(job_id, payloads)
                await owner.running.seal_job(job_id)
                return job_id

            job_id = await owner.host.call(submit())
            await asyncio.sleep(15)
            mesh.crash(owner)
            kept = keeper.running.scheduler.owner.books[job_id].job
            assert kept.is_checked and kept.ledger.counts[TaskState.OPEN]
            runs = sum(member.host.tally.runs_ok for member in mesh.members)
            for _ in range(400):
                await asyncio.sleep(1)
                if not kept.ledger.counts[TaskState.OPEN]:
                    break
            assert kept.ledger.counts[TaskState.CLAIMED] + kept.ledger.counts[TaskState.DONE] == 300
            await asyncio.sleep(10)
            between = sum(member.host.tally.runs_ok for member in mesh.members) - runs
            await mesh.restart(owner)
            owner.running.credentials.levels.set(keeper.identity.installation, LevelNote(level=Level.TRUSTED))
            await mesh.wait_for(owner, job_id, limit_s=60)
            await mesh.check_values(owner, job_id, 300)
            after = sum(member.host.tally.runs_ok for member in mesh.members) - runs - between
            assert between > 300 and after < 40, (between, after)

        simulation.run(main(), time_s_max=2000)
