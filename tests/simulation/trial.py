"""One small mesh for a minute: jobs, and what is asked for of crashes and hostile nodes, under all checks."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass, field

from p2pcompute.dht.records import make_record
from p2pcompute.errors import StoreError
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.simulation.faults import FaultSettings
from p2pcompute.simulation.host import HostDown
from p2pcompute.simulation.hostile import HostileSettings
from p2pcompute.simulation.mesh_run import MeshRun
from p2pcompute.simulation.mesh_settings import CheckSettings, MeshSettings
from p2pcompute.simulation.population import PopulationSettings
from p2pcompute.simulation.world import WorldJob

CHECKS = {"watch_s": 30.0, "over_s": 200.0, "rest_s": 100.0, "meet_s": 100.0, "lookups": 10, "probes": 2}
FAULTY_S = 60.0
"""How long a trial goes wrong."""
BATCH = 20
EVENTS_MAX = 1_000_000
"""A sound trial takes less than a fifth of that."""
MIXED = (0.01, 0.3, 1.0, 0.05, 0.6) * 20


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What happens to a mesh besides its jobs."""

    nodes: int = 6
    works: tuple[float, ...] = MIXED
    """Tasks of each job, seconds."""
    job_count: int = 2
    is_calm: bool = False
    """Nothing goes wrong, and this is known from the start."""
    crashes: bool = True
    """A worker and an owner crash and come back, another node stops and starts."""
    stays_down: bool = False
    """The last node crashes and does not come back."""
    crash_at_ack: bool = False
    """The owner crashes when it has acknowledged its last tasks, on a slow disk."""
    records: bool = False
    """Each honest node puts a record."""
    hostile: dict[str, float] = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    off: tuple[str, ...] = ()
    """Invariants that are left out."""

    def __hash__(self) -> int:
        return id(self)


def run_trial(trial: Trial, seed: int, *, until: str = "") -> MeshRun:
    """Run a trial; what broke is in `problems` of the world, also an exception that ended it.

    Args:
        until: name of an invariant; when it is broken, that is enough.
    """
    checks = CHECKS | ({"settle_s": 0.0} if trial.is_calm else {}) | trial.checks
    settings = MeshSettings(
        nodes=trial.nodes,
        hours=FAULTY_S / 3600,
        lan=True,
        population=PopulationSettings(cores=2, speeds="lognormal", speed_sigma=0.2),
        faults=FaultSettings(sync_s=0.5 if trial.crash_at_ack else 0.002),
        hostile=HostileSettings(**trial.hostile),  # type: ignore[arg-type]
        checks=CheckSettings(off=trial.off, **checks),  # type: ignore[arg-type]
    )
    world = MeshRun(settings, seed)
    try:
        with world.simulation:
            world.simulation.run(_Run(world, trial).run(until), time_s_max=3000, events_max=EVENTS_MAX)
    except Exception as error:
        world.problem("ended by " + "".join(traceback.format_exception(error))[-3000:])
    return world


def is_of(problem: str, invariant: str) -> bool:
    """Whether a problem is about this invariant."""
    return f" s: {invariant}: " in problem


class _Run:
    def __init__(self, world: MeshRun, trial: Trial) -> None:
        self.world = world
        self.trial = trial

    async def run(self, until: str) -> None:
        work = self.world.spawn(self._go(), "trial")
        while not work.done():
            if until and any(is_of(problem, until) for problem in self.world.problems):
                work.cancel()
            await asyncio.sleep(0.25)

    async def _go(self) -> None:
        world, trial = self.world, self.trial
        for number in range(trial.nodes):
            await world.start(number)
        if trial.is_calm:
            world.checks.calm()
        sampler = world.spawn(self._sample(), "sample")
        await asyncio.sleep(5)
        if trial.records:
            await self._put_all()
        for number in range(trial.job_count):
            await self._submit(number % 2)
            if trial.crash_at_ack:
                await self._bounce(number % 2, 1.0)
        if trial.crashes and not trial.is_calm:
            await self._crash()
        if trial.stays_down:
            await asyncio.sleep(10)
            await world.crash(trial.nodes - 1, is_silent=True)
        await asyncio.sleep(max(0.0, FAULTY_S - world.now) + 2)
        await world.checks.eventually()
        sampler.cancel()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(self.world.settings.checks.every_s)
            self.world.checks.always()

    async def _bounce(self, number: int, down_s: float) -> None:
        await self.world.crash(number)
        await asyncio.sleep(down_s)
        await self.world.start(number)

    async def _crash(self) -> None:
        world = self.world
        honest = [number for number in range(2, self.trial.nodes) if number not in world.hostile]
        await asyncio.sleep(3)
        await self._bounce(honest[0], 2.0)
        await self._bounce(0, 1.0)
        await asyncio.sleep(3)
        await world.stop(honest[-1])
        await asyncio.sleep(1)
        await world.start(honest[-1])

    async def _put_all(self) -> None:
        for number in range(self.trial.nodes):
            if number in self.world.hostile:
                continue
            member = self.world.mesh.members[number]
            dht, identity = member.running.network.dht, member.identity
            assert dht is not None
            wall = member.host.clock.wall()
            record = make_record(
                identity.sign_envelope, identity.public_key, salt=b"", seq=1, wall=wall, ttl_s=900, value=b"kept"
            )
            await member.host.call(dht.put(record))

    async def _submit(self, number: int) -> None:
        member, works = self.world.mesh.members[number], self.trial.works
        node = member.running
        spec = JobSpec(kind=TaskKind.SIMULATED)
        try:
            job_id = await member.host.call(node.submit_job(JobTerms(), spec))
            job = WorldJob(number, job_id, list(works))
            self.world.jobs.append(job)
            for start in range(0, len(works), BATCH):
                payloads = [encode_payload(TaskPayload(work_s=work)) for work in works[start : start + BATCH]]
                await member.host.call(node.add_tasks(job_id, payloads))
                job.acknowledged += len(payloads)
            if not self.trial.crash_at_ack:
                await member.host.call(node.seal_job(job_id))
        except (HostDown, StoreError) as error:
            self.world.problem(f"a submission failed: {error}")
