"""The experiment `custody`: what becomes of a job whose coordinators go away, in one of four plays.

* owner: its owner is killed, and comes back after `away_s`.
* partition: its owner and half of the others lose everybody else for `away_s`.
* blackout: its owner and all its custodians are killed; they come back after `away_s`, the owner last.
* turns: two coordinators crash and return in turn while whoever looks on, and the workers, see different halves.

Whole nodes on a simulated network, and a member that looks on with a ticket.  The oracle checks that every task has
its value, that the owner accepted each once, by its disk, and that all keepers agree with it in the end.

Source of the last play: the scenario of RPC-V (Djilali et al. 2004).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from p2pcompute.ids import JOB_ID_BYTES
from p2pcompute.limits import LEASE_S_MIN
from p2pcompute.scheduler.ledger import FactKind
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.metrics import Metrics
from p2pcompute.simulation.paths import Partition
from p2pcompute.simulation.result import EVENTS_MAX, PROBLEMS_MAX, RunResult, Watch
from p2pcompute.simulation.runner import RunnerModel, simulated_value
from p2pcompute.simulation.scenario import Scenario
from p2pcompute.store.journal import FACTS
from p2pcompute.wire import cbor

Play: TypeAlias = Literal["owner", "partition", "blackout", "turns"]

FIRST_S: Final = 20.0
"""The job runs undisturbed for so long."""
SEEN_S: Final = 60.0
"""Within which all keepers know all of it in the end."""
LOOK_S: Final = 0.5
LIMIT_S: Final = 4 * 3600.0


class CustodySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `custody`."""

    play: Annotated[Play, Meta(description="what happens to the coordinators")] = "turns"
    nodes: Annotated[int, Meta(ge=5, le=1000, description="installations of the group")] = 8
    slots: Annotated[int, Meta(ge=1, le=64, description="tasks at once on each")] = 2
    tasks: Annotated[int, Meta(ge=1, le=100_000, description="of the job")] = 1500
    work_s: Annotated[float, Meta(gt=0, le=3600, description="seconds of each task")] = 2.0
    away_s: Annotated[float, Meta(gt=0, le=86400, description="how long coordinators are away, seconds")] = 90.0


def accepted(owner: Member, job_id: bytes) -> Counter[int]:
    """How often each task of a job was accepted, as its owner's disk has it."""
    times: Counter[int] = Counter()
    facts = owner.host.disk.tables[FACTS].rows
    for key in sorted(facts):
        payload = cbor.decode(cbor.decode(facts[key])[2])
        if key[:JOB_ID_BYTES] == job_id and payload.get("kind") == FactKind.ACCEPT:
            times.update(index for index, _generation, _digest in payload["body"])
    return times


class _Run:
    """One run under way."""

    def __init__(self, settings: CustodySettings, seed: int, watch: Watch | None) -> None:
        self.settings = settings
        self.watch = watch
        self.metrics = Metrics()
        self.problems: list[str] = []
        self.simulation = Simulation(seed)
        self.mesh = Mesh(self.simulation, settings.nodes, runner=RunnerModel(slot_count=settings.slots))
        self.job_id = b""
        self.owner = self.mesh.members[1]
        self.keepers: list[Member] = []
        """Custodians, by rank."""
        self.onlooker = self.mesh.members[0]
        self._looked = -1
        self._began = time.perf_counter()

    # --- the play -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Submit, let things happen, wait for the end, check."""
        await self.mesh.start()
        await asyncio.sleep(5.0)
        began = self.simulation.now
        self.job_id = await self.mesh.submit(self.owner, [self.settings.work_s] * self.settings.tasks)
        await self._cast()
        await asyncio.sleep(FIRST_S)
        await {"owner": self._owner, "partition": self._partition, "blackout": self._blackout, "turns": self._turns}[
            self.settings.play
        ]()
        view = await self.mesh.wait_for(self.owner, self.job_id, limit_s=LIMIT_S)
        took_s = self.simulation.now - began
        self.metrics.set("makespan_s", took_s)
        self.metrics.set("makespan_ratio", took_s / self._bound_s())
        if (view.done, view.failed) != (self.settings.tasks, 0):
            self._problem(f"{view.done} of {self.settings.tasks} done, {view.failed} failed")
        await self._check()

    async def _cast(self) -> None:
        """Find out who keeps the job; somebody else looks on."""
        keys = self.owner.running.scheduler.owner.books[self.job_id].job.envelope.terms.custodians
        by_key = {member.identity.public_key: member for member in self.mesh.members}
        self.keepers = [by_key[key] for key in keys]
        taken = [self.owner, *self.keepers]
        self.onlooker = next(member for member in self.mesh.members if all(member is not one for one in taken))
        ticket = self.owner.running.ticket(self.job_id).text
        await self.onlooker.host.call(self.onlooker.running.attach(ticket))

    async def _owner(self) -> None:
        self.mesh.crash(self.owner)
        await self._takeover(self.keepers)
        await self._work(self.settings.away_s)
        await self.mesh.restart(self.owner)
        await self._return()

    async def _partition(self) -> None:
        others = [one for one in self.mesh.members if one is not self.owner and one not in self.keepers]
        partition = self._part([self.owner, *others[::2]], [*self.keepers, *others[1::2]])
        await self._takeover(self.keepers)
        await self._work(self.settings.away_s)
        self.simulation.network.join(partition)
        await self._return()

    async def _blackout(self) -> None:
        coordinators = [self.owner, *self.keepers]
        self.mesh.crash(*coordinators)
        await self._work(self.settings.away_s)
        for member in reversed(coordinators):
            await self.mesh.restart(member)
            await asyncio.sleep(1.0)
        await self._return()

    async def _turns(self) -> None:
        first, second = self.keepers[:2]
        others = [one for one in self.mesh.members if one is not self.owner and one not in self.keepers]
        away_s = self.settings.away_s
        partition = self._part([self.owner, *others[::2]], [first, second, *others[1::2]])
        await self._takeover([first])
        await self._work(away_s / 2)
        self.mesh.crash(self.owner)
        self.simulation.network.join(partition)
        await self._work(away_s / 2)
        self.mesh.crash(first)
        await self._takeover([second])
        partition = self._part([self.owner, first, *others[1::2]], [second, *others[::2]])
        await self.mesh.restart(first)
        await self._work(away_s)
        self.mesh.crash(second)
        self.simulation.network.join(partition)
        await self._work(away_s / 2)
        await self.mesh.restart(self.owner)
        await self._return()
        await self.mesh.restart(second)

    def _part(self, *sides: Sequence[Member]) -> Partition:
        self._record("partition")
        return self.simulation.network.part(*[[member.host.machine for member in side] for side in sides])

    # --- what is seen ---------------------------------------------------------------------------------

    def _acting(self) -> Iterator[Member]:
        for member in self.mesh.members:
            custody = member.node.scheduler.custody if member.node is not None else None
            charge = custody.charges.get(self.job_id) if custody is not None else None
            if charge is not None and charge.is_acting:
                yield member

    async def _takeover(self, candidates: Sequence[Member]) -> None:
        """Wait until one of these coordinates the job; the time counts."""
        began = self.simulation.now
        self._record("coordinator away")

        def is_over() -> bool:
            return all(member.running.job(self.job_id.hex()).is_over for member in candidates)

        await self._until(
            lambda: is_over() or any(member in candidates for member in self._acting()), 4 * LEASE_S_MIN, "takeover"
        )
        if is_over():
            return  # nothing is left to be coordinated
        took_s = self.simulation.now - began
        self._record("takeover")
        self.metrics.sample("takeover_leases", took_s / LEASE_S_MIN)
        if took_s > 2 * LEASE_S_MIN:
            self._problem(f"nobody took over within {2 * LEASE_S_MIN:g} s")

    async def _return(self) -> None:
        """Wait until the owner alone coordinates its job again."""
        began = self.simulation.now
        await self._until(lambda: list(self._acting()) == [self.owner], 4 * LEASE_S_MIN, "return")
        self._record("return")
        self.metrics.sample("return_s", self.simulation.now - began)

    async def _until(self, is_true: Callable[[], bool], limit_s: float, what: str) -> None:
        until = self.simulation.now + limit_s
        while not is_true():
            if self.simulation.now > until:
                self._problem(f"no {what} within {limit_s:g} s")
                return
            await self._work(LOOK_S)

    async def _work(self, duration_s: float) -> None:
        """Let time pass; whoever looks on never sees less than before."""
        until = self.simulation.now + duration_s
        while self.simulation.now < until:
            await asyncio.sleep(LOOK_S)
            done = self.onlooker.running.job(self.job_id.hex()).done
            if done < self._looked:
                self._problem(f"the onlooker saw {self._looked} done, and then {done}")
            self._looked = done
            if self.watch is not None:
                self.watch.progress(self.simulation.now, time.perf_counter() - self._began)

    # --- the oracle -----------------------------------------------------------------------------------

    async def _check(self) -> None:
        count = self.settings.tasks
        try:
            await self.mesh.check_values(self.owner, self.job_id, count)
        except AssertionError as error:
            self._problem(str(error)[:300])
        times = accepted(self.owner, self.job_id)
        if sorted(times) != list(range(count)) or set(times.values()) != {1}:
            twice = sum(number > 1 for number in times.values())
            self._problem(f"{len(times)} of {count} tasks were accepted, {twice} of them more than once")
        await self._until(lambda: not list(self._behind()), SEEN_S, "agreement")
        for text in self._behind():
            self._problem(text)
        for text in await self._seen():
            self._problem(text)
        good = sum(member.host.tally.runs_ok for member in self.mesh.members)
        self.metrics.set("duplicate_runs", good - count)
        self.metrics.set("repeated_ratio", (good - count) / count)
        for member in self.mesh.members:
            for text in member.errors:
                self._problem(f"{member.host.name}: {text}")

    def _behind(self) -> Iterator[str]:
        """Keepers that do not know that all is judged."""
        for member in (*self.keepers, self.onlooker):
            if member.node is None:
                continue
            view = member.node.job(self.job_id.hex())
            if (view.done, view.claimed) != (self.settings.tasks, 0):
                yield f"{member.host.name} knows {view.done} done, {view.claimed} of them not judged"

    async def _seen(self) -> list[str]:
        """What is wrong with the values that the onlooker has."""
        node = self.onlooker.running
        await self.onlooker.host.call(node.scheduler.owner.committed())  # what is not in the store is not listed
        ends = await self.onlooker.host.call(node.tasks(self.job_id, limit=self.settings.tasks))
        wrong = [end for end in ends if end.outcome is None or end.outcome.value != simulated_value(end.index)]
        return [f"the onlooker has {len(wrong)} wrong values, like {wrong[0]}"] if wrong else []

    def _bound_s(self) -> float:
        """All slots at work all the time."""
        rounds = math.ceil(self.settings.tasks / (self.settings.nodes * self.settings.slots))
        return rounds * self.settings.work_s

    def _problem(self, text: str) -> None:
        self.problems.append(f"{self.simulation.now:.3f} s: {text}")

    def _record(self, kind: str) -> None:
        self.simulation.note(kind)
        if self.watch is not None:
            self.watch.record({"t": self.simulation.now, "kind": kind, "node": ""})


def run_custody(
    scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None
) -> RunResult:
    """Run one seed of a scenario about custody.

    Args:
        until_s: without effect: a play is played to its end.
    """
    settings = scenario.settings
    assert isinstance(settings, CustodySettings)
    began = time.perf_counter()
    run = _Run(settings, seed, watch)
    simulation = run.simulation
    with simulation:
        try:
            simulation.run(run.run(), time_s_max=2 * LIMIT_S, events_max=EVENTS_MAX)
        except TimeoutError as error:
            run.problems.append(f"{simulation.now:.3f} s: {error}")
        trace, events, simulated_s = simulation.trace_hash(), simulation.loop.events, simulation.now
        messages = simulation.network.counters.datagrams_sent
    return RunResult(
        scenario=scenario.name,
        seed=seed,
        nodes=settings.nodes,
        trace_hash=trace,
        events=events,
        messages=messages,
        wall_s=time.perf_counter() - began,
        simulated_s=simulated_s,
        metrics=run.metrics.result(),
        fired={},
        problems=tuple(run.problems[:PROBLEMS_MAX]),
    )
