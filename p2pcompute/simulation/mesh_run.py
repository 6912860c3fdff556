"""One run of a whole mesh: a world, its population, faults, hostile nodes, workloads, checks and figures.

A run has two parts.  For `hours` the population comes and goes, faults happen and people submit work.  Then everything
heals, whoever should be up is up, and what must come true in the end is waited for.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import math
from collections.abc import Sequence
from typing import Any, Final

from p2pcompute.errors import P2pcError, UsageError
from p2pcompute.node.node import Node
from p2pcompute.simulation.adversaries import arm
from p2pcompute.simulation.faults import Fault, draw_faults
from p2pcompute.simulation.injection import inject
from p2pcompute.simulation.invariants import Checks
from p2pcompute.simulation.measuring import Figures
from p2pcompute.simulation.mesh import Member
from p2pcompute.simulation.mesh_settings import MeshSettings
from p2pcompute.simulation.playing import account, play
from p2pcompute.simulation.population import Event, Leaving, Session, draw_events, draw_rows, sessions, trace_note
from p2pcompute.simulation.result import EVENTS_MAX, RunResult, Watch
from p2pcompute.simulation.scenario import Scenario
from p2pcompute.simulation.workloads import WorkloadPlan, plan
from p2pcompute.simulation.world import START_RETRY_S, World, story

PROGRESS_STEPS: Final = 100
PROGRESS_S_MIN: Final = 0.1
"""How often in one run somebody who watches is told how far it is."""
AFTER_S_MAX: Final = 4 * 3600.0
"""Longest part of a run after its faults; the checks have their own, shorter limits."""


class MeshRun(World):
    """A world on which everything is played that its settings ask for.

    Raises:
        UsageError: a file that the settings name cannot be read.
    """

    def __init__(self, settings: MeshSettings, seed: int, *, watch: Watch | None = None) -> None:
        super().__init__(settings, seed, watch=watch)
        self.checks = Checks(self, settings.checks)
        self._figures = Figures(self)

    # --- the run ----------------------------------------------------------------------------------

    def run(self, until_s: float | None = None) -> None:
        """Run to the end, or until `until_s` of virtual time.  What breaks is in `problems`.

        Raises:
            UsageError: the settings cannot be run with this seed.
        """
        had_gc = gc.isenabled()
        gc.disable()  # between the end of the loop and that of the simulation, which collects, nothing is to be found
        try:
            with self.simulation:
                faults = draw_faults(self.settings.faults, self.rng("faults"), duration_s=self.duration_s)
                plans = [
                    plan(one, self.rng(f"workload {number}"), duration_s=self.duration_s)
                    for number, one in enumerate(self.settings.workload)
                ]
                limit_s = self.duration_s + AFTER_S_MAX
                self.simulation.run(self._main(until_s, faults, plans), time_s_max=limit_s, events_max=EVENTS_MAX)
                # The lights go out.  To end hundreds of tasks in an orderly manner takes longer, and tells nothing:
                # whether nodes can stop is checked while others look on.
                self.simulation.crash(*[host for host in self.simulation.hosts if host.is_up], is_silent=True)
        except UsageError:
            raise
        except P2pcError as error:
            self.problem(story(error))
        finally:
            if had_gc:
                gc.enable()
        if "errors" not in self.settings.checks.off:
            for number, member in enumerate(self.mesh.members):
                for text in member.errors[:1] if number not in self.hostile else ():
                    self.problem(f"{member.host.name}: {text}")

    async def _main(self, until_s: float | None, faults: Sequence[Fault], plans: Sequence[WorkloadPlan]) -> None:
        notes = [trace_note(self.settings.population), *(one.note for one in plans)]
        self.notes += [note for note in notes if note]
        population = self.spawn(self._populate(), "population")
        work = [self.spawn(play(self, one), f"workload {number}") for number, one in enumerate(plans)]
        trouble = [self.spawn(inject(self, fault), f"fault {fault.number}") for fault in faults]
        self.spawn(self._figures.watch_joining(), "joining")
        self.spawn(self._figures.sample(), "sample")
        self.spawn(self._check(), "check")
        if self.watch is not None:
            self.spawn(self._tell(self.watch), "progress")
        end_s = self.duration_s if until_s is None else min(until_s, self.duration_s)
        await asyncio.sleep(max(0.0, end_s - self.now))
        self._figures.traffic()
        self._figures.note_what_was_missing()
        if end_s == self.duration_s:
            await self._heal(population, trouble)
            await self._finish(work)
            self._account()
            await self.checks.eventually()
        else:
            self._account()
        for task in list(self._tasks):
            task.cancel()

    async def _heal(self, population: asyncio.Task[Any], trouble: list[asyncio.Task[Any]]) -> None:
        """Undo every fault, and let everybody be up who should be, who owns a job, and the founder: without somebody
        whom all know, those who were never up together cannot meet."""
        self._healed.set()
        self.record("heal")
        await asyncio.gather(population, *trouble, return_exceptions=True)  # `_ended` has noted what they raised
        self.simulation.network.heal()
        self._wanted.update(dict.fromkeys([0, *(job.owner for job in self.jobs)], True))
        for number in sorted(self._wanted):
            while number in self._busy:  # noqa: ASYNC110 - a stop that drains, at most
                await asyncio.sleep(START_RETRY_S)
            await self.revive(number)

    async def _finish(self, work: list[asyncio.Task[Any]]) -> None:
        """Let what was submitted end, within the bound for jobs."""
        try:
            async with asyncio.timeout(self.settings.checks.over_s):
                await asyncio.gather(*work, return_exceptions=True)
        except TimeoutError:
            _slots, _busy, _ready, is_open = self._figures.look()
            if not is_open and "over" not in self.settings.checks.off:  # else it is up to the check of jobs
                over_s = self.settings.checks.over_s
                self.problem(f"over: workloads have not ended {over_s:g} s after everything has healed")

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self.settings.checks.every_s)
            self.checks.always()

    async def _tell(self, watch: Watch) -> None:
        while True:
            await asyncio.sleep(max(PROGRESS_S_MIN, self.duration_s / PROGRESS_STEPS))
            watch.progress(self.now, self.wall_s())

    # --- population -------------------------------------------------------------------------------

    async def _populate(self) -> None:
        """Let members come and go.  The founder is there from the beginning: it is everybody's first contact."""
        settings = self.settings.population
        events = draw_events(settings, self.rng("events"), duration_s=self.duration_s)
        for event in events:
            self.spawn(self._announce(event), event.kind)
        count = self.settings.nodes
        rows = draw_rows(settings, self.rng("trace"), count)
        lives = [
            sessions(settings, self.rng(f"sessions {number}"), number, events, row=rows[number] if rows else None)
            for number in range(count)
        ]
        queue: list[tuple[float, int, Session | None]] = []
        """(when, who, the session that begins then, or None when the present one ends)"""
        warm: list[int] = []
        for number, life in enumerate(lives):
            session = next(life, None)
            if session is not None:
                begin_s = 0.0 if number == 0 else session.begin_s
                if begin_s == 0.0 and self.settings.warm:
                    warm.append(number)
                elif begin_s == 0.0 and number < len(self.settings.starts_s):
                    begin_s = self.settings.starts_s[number]
                elif begin_s == 0.0:
                    begin_s = self.settings.join_s * number / count
                heapq.heappush(queue, (begin_s, number, session))
        if warm:
            await self._start_warm(warm)
        present: dict[int, Session] = {}
        while queue:
            at_s, number, session = heapq.heappop(queue)
            await self.pause(at_s - self.now)
            if self.is_healing:
                return
            if session is not None:
                present[number] = session
                if math.isfinite(session.end_s):
                    heapq.heappush(queue, (max(at_s, session.end_s), number, None))
                self.spawn(self._come(number), f"come {number}")
            else:
                self.spawn(self._go(number, present.pop(number).leaving), f"go {number}")
                following = next(lives[number], None)
                if following is not None:
                    heapq.heappush(queue, (following.begin_s, number, following))

    async def _announce(self, event: Event) -> None:
        await self.pause(event.at_s - self.now)
        if not self.is_healing:
            self.fired[event.kind] += 1
            self.mass_exit()

    async def _come(self, number: int) -> None:
        self._wanted[number] = True
        if number not in self.claimed:
            await self.start(number)

    async def _go(self, number: int, leaving: Leaving) -> None:
        if self.settings.population.owners_stay and any(job.owner == number for job in self.jobs):
            return
        self._wanted[number] = False
        if number in self.claimed:
            return
        if leaving == "stop":
            await self.stop(number)
        else:
            await self.crash(number, is_silent=leaving == "silent")

    # --- figures ----------------------------------------------------------------------------------

    def mass_exit(self) -> None:
        """Measure how long the others take to carry on without those who have just gone."""
        self.spawn(self._figures.measure_recovery(self.now), "recovery")

    def messages(self) -> int:
        """Datagrams and frames sent so far."""
        return self._figures.messages()

    # --- for whoever looks on ---------------------------------------------------------------------

    def _starts(self, member: Member) -> None:
        self.checks.starting(member)

    def _started(self, number: int, member: Member) -> None:
        self.checks.started(member)
        if number in self.hostile:
            arm(self, member, self.hostile[number], self.settings.hostile)
        self._figures.started(number)

    def _gone(self, number: int, node: Node) -> None:
        self._figures.gone(number, node)

    def _account(self) -> None:
        """Work out what was done in the whole run."""
        account(self)
        self._figures.work()


def run_mesh(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    """Run one seed of a scenario of whole nodes.

    Args:
        until_s: stop at this virtual time; then what must hold only at the end is not checked.

    Raises:
        UsageError: a file that the settings name cannot be read.
    """
    settings = scenario.settings
    assert isinstance(settings, MeshSettings)
    world = MeshRun(settings, seed, watch=watch)
    world.run(until_s)
    return RunResult(
        scenario=scenario.name,
        seed=seed,
        nodes=settings.nodes,
        trace_hash=world.simulation.trace_hash(),
        events=world.simulation.loop.events,
        messages=world.messages(),
        wall_s=world.wall_s(),
        simulated_s=world.now,
        metrics=world.metrics.result(),
        fired=dict(sorted(world.fired.items())),
        problems=tuple(world.problems),
        notes=tuple(world.notes),
    )
