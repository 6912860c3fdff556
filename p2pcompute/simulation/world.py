"""One run of a whole mesh: real nodes, a population, faults, hostile nodes, workloads, checks and figures.

A `World` is made from `MeshSettings` and a seed.  It sees everything: `jobs` is its ledger, which nodes cannot see.
Its own tasks run outside all hosts; everything that they draw comes from `World.rng`, one stream for each purpose.

A run has two parts.  For `hours` the population comes and goes, faults happen and people submit work.  Then everything
heals, whoever should be up is up, and what must come true in the end is waited for.

Invariants: the same settings and seed give the same trace hash, in any process; nothing here polls every node often.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import json
import math
import random
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta, Struct, structs

from p2pcompute.errors import P2pcError, StoreError, UsageError
from p2pcompute.limits import DHT_K
from p2pcompute.node.node import Node
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.simulation.adversaries import HostileSettings, arm, draw_hostile
from p2pcompute.simulation.faults import Fault, FaultSettings, draw_conditions, draw_faults, inject
from p2pcompute.simulation.host import HostDown, SimHost, Simulation
from p2pcompute.simulation.invariants import Checks, CheckSettings
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.metrics import Metrics
from p2pcompute.simulation.network import NetworkSettings
from p2pcompute.simulation.playing import account, play
from p2pcompute.simulation.population import (
    Event,
    Leaving,
    PopulationSettings,
    Session,
    draw_events,
    draw_rows,
    machine,
    sessions,
)
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.simulation.workloads import WorkloadPlan, WorkloadSettings, plan
from p2pcompute.trust.levels import Level

if TYPE_CHECKING:
    from p2pcompute.simulation.scenario import Scenario

PROBLEMS_MAX: Final = 20
"""Problems of one run that are kept."""
PROGRESS_STEPS: Final = 100
PROGRESS_S_MIN: Final = 0.1
"""How often in one run somebody who watches is told how far it is."""
START_RETRY_S: Final = 1.0
"""After which a start that a bad disk prevented is tried again."""
SAMPLES: Final = 400
SAMPLE_S_MIN: Final = 0.5
SAMPLED_NODES_MAX: Final = 400_000
"""How often in one run, and at most, all nodes are looked at for figures: less often when there are many."""
JOIN_LOOK_S: Final = 0.1
JOIN_S_MAX: Final = 600.0
"""How closely the nodes that have just started are watched, and for how long."""
RECOVERY_LOOK_S: Final = 0.5
RECOVERY_S_MAX: Final = 600.0
IDLE_SHARE_RECOVERED: Final = 0.1
AFTER_S_MAX: Final = 4 * 3600.0
"""Longest part of a run after its faults; the checks have their own, shorter limits."""
EVENTS_MAX: Final = 10**12


class MeshSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `mesh`."""

    nodes: Annotated[int, Meta(ge=1, le=100_000, description="installations of the group")] = 10
    hours: Annotated[float, Meta(gt=0, le=10_000, description="simulated time before everything heals, hours")] = 0.1
    lan: Annotated[bool, Meta(description="all machines on one LAN instead of spread over the world")] = False
    warm: Annotated[bool, Meta(description="tables filled by the oracle instead of by joining")] = False
    join_s: Annotated[
        float, Meta(ge=0, description="the nodes that are up at the beginning start within this time, seconds")
    ] = 5.0
    starts_s: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=36_000_000)], ...],
        Meta(description="instead: when each of them starts, by number, seconds; the first at 0"),
    ] = ()
    real_crypto_in: Annotated[int, Meta(ge=0, description="real Ed25519 in one of so many seeds; 0: never")] = 0
    shuffle_in: Annotated[
        int,
        Meta(
            ge=0,
            description="callbacks that are ready at one time run in a seeded random order in one of so many seeds; "
            "0: never",
        ),
    ] = 0
    trust: Annotated[
        Literal["trusted", "member"],
        Meta(description="how far the members trust one another: results of those that are not trusted are checked"),
    ] = "trusted"
    network: NetworkSettings = NetworkSettings()
    population: PopulationSettings = PopulationSettings()
    faults: FaultSettings = FaultSettings()
    hostile: HostileSettings = HostileSettings()
    workload: tuple[WorkloadSettings, ...] = ()
    checks: CheckSettings = CheckSettings()

    def __post_init__(self) -> None:
        self.hostile.check(self.nodes)
        if not self.starts_s:
            return
        if self.starts_s[0] != 0:
            raise ValueError(f"`starts_s` begins with 0, not {self.starts_s[0]:g}: the first node founds the group")
        if len(self.starts_s) < self.nodes:
            raise ValueError(f"`starts_s` says when {len(self.starts_s)} of {self.nodes} nodes start: name each")
        if max(self.starts_s) > self.hours * 3600:
            raise ValueError(f"a node of `starts_s` starts at {max(self.starts_s):g} s, after the end: see `hours`")


@dataclass(frozen=True)
class RunResult:
    """What one run gave."""

    scenario: str
    seed: int
    nodes: int
    trace_hash: str
    events: int
    """Of the event loop."""
    messages: int
    """Datagrams and frames sent."""
    wall_s: float
    simulated_s: float
    metrics: dict[str, float]
    fired: dict[str, int]
    """Faults that took effect, by kind."""
    problems: tuple[str, ...]
    """Broken invariants; empty: the seed passed."""
    notes: tuple[str, ...] = ()
    """What whoever reads the figures should know."""


class Watch:
    """Somebody who looks on.  This one does nothing; override what is wanted."""

    def progress(self, simulated_s: float, wall_s: float) -> None:
        """Called now and then."""

    def record(self, record: dict[str, Any]) -> None:
        """Called with every record of the schema p2pc.trace/1."""


@dataclass(slots=True)
class WorldJob:
    """A job as its submitter knows it."""

    owner: int
    """Number of the member."""
    job_id: bytes
    works: list[float]
    """Seconds at speed 1, by task index."""
    acknowledged: int = 0
    """Tasks of which the owner has said that it has them: they must not be lost any more."""
    is_lost: bool = False
    """Its owner's disk has forgotten what it had promised: nothing is expected of it any more."""
    may_cancel: bool = False
    """Somebody has asked for it to be cancelled, or its terms may halt it."""


class World:
    """One run under way.

    Raises:
        UsageError: a file that the settings name cannot be read.
    """

    def __init__(self, settings: MeshSettings, seed: int, *, watch: Watch | None = None) -> None:
        self._began = time.perf_counter()
        self.settings = settings
        self.seed = str(seed)
        self.watch = watch
        self.metrics = Metrics()
        for name in ("asks_interrupted", "crashes", "stops", "wrong_accepted"):
            self.metrics.count(name, 0)  # a seed in which it has not happened counts in the mean
        self.fired: Counter[str] = Counter()
        self.jobs: list[WorldJob] = []
        self.hostile = draw_hostile(settings.hostile, self.rng("hostile"), nodes=settings.nodes, spared=(0,))
        """Members that are hostile, and their kind; never the founder."""
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._up_most = 0
        self.duration_s = settings.hours * 3600.0
        self.claimed: dict[int, None] = {}
        """Members that a fault has in its hands: nobody else starts or stops them."""
        self.dress: dict[int, Callable[[SimHost], None]] = {}
        """What is done to a member's host each time before its node starts, by number."""
        self._wanted: dict[int, bool] = {}
        """Whether the population wants a member to be up; a member that is not named is not up yet."""
        self._busy: dict[int, None] = {}
        """Members that are being started or stopped."""
        self._doomed: dict[int, bool] = {}
        """Members that crash when the present moment is over, and whether in silence."""
        self._joining: dict[int, float] = {}
        self._has_joiner = asyncio.Event()
        self._up_since: dict[int, float] = {}
        self._past = _Sums()
        """Lives that have ended."""
        self._healed = asyncio.Event()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        conditions = draw_conditions(settings.faults, self.rng("conditions"))
        self._calm_network = structs.replace(settings.network, loss=max(settings.network.loss, conditions.packet_loss))
        self.network_changes: dict[int, dict[str, float]] = {}
        """What faults, by number, change of it."""
        traits = [machine(settings.population, self.rng(f"machine {n}")) for n in range(settings.nodes)]
        models = [
            RunnerModel(
                slot_count=one.cores,
                speed=one.speed,
                overhead_s=settings.population.overhead_s,
                mem_bytes=one.mem_bytes,
                failure=conditions.task_failure,
                death=conditions.task_death,
            )
            for one in traits
        ]
        self.simulation = Simulation(
            self.seed,
            model=self._calm_network,
            has_real_crypto=_is_one_in(settings.real_crypto_in, seed),
            is_shuffled=_is_one_in(settings.shuffle_in, seed),
        )
        self.mesh = Mesh(
            self.simulation,
            settings.nodes,
            runner=models,
            is_lan=settings.lan,
            sync_s=conditions.sync_s,
            level=Level(settings.trust),
        )
        self.checks = Checks(self, settings.checks)

    # --- for the pieces ---------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the simulation."""
        return self.simulation.now

    def rng(self, purpose: str) -> random.Random:
        """A new generator for this purpose, always the same for one seed."""
        return random.Random(f"{self.seed}:{purpose}")

    def up(self) -> list[Member]:
        """Members whose node runs, by number."""
        return [member for member in self.mesh.members if member.node is not None]

    @property
    def is_healing(self) -> bool:
        """Nothing goes wrong any more."""
        return self._healed.is_set()

    async def pause(self, duration_s: float) -> None:
        """Wait; less long when everything heals meanwhile."""
        if duration_s <= 0 or self._healed.is_set():
            return
        try:
            async with asyncio.timeout(duration_s):
                await self._healed.wait()
        except TimeoutError:
            return

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task of the world, outside all hosts.  Ended at the end of the run; its error fails the run."""
        task = self.simulation.loop.create_task(coroutine, name=f"world.{name}")
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.problem(f"{task.get_name()}: {_story(error)}")

    def record(self, kind: str, *, node: str = "", **fields: Any) -> None:
        """Put one record of the schema p2pc.trace/1 into the trace."""
        record = {"t": self.now, "kind": kind, "node": node, **fields}
        self.simulation.note(json.dumps(record, sort_keys=True))
        if self.watch is not None:
            self.watch.record(record)

    def problem(self, text: str) -> None:
        """Note a broken invariant; the run goes on and ends as failed."""
        self.simulation.note("problem")  # not its text, in which there may be addresses
        if self.watch is not None:
            self.watch.record({"t": self.now, "kind": "problem", "node": "", "text": text})
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"{self.now:.3f} s: {text}")

    # --- starting and stopping --------------------------------------------------------------------

    async def start(self, number: int) -> None:
        """Start an installation that is down; nothing happens when it is up, or busy.  A disk that cannot be used is
        tried again until it can, or nobody wants the node any more."""
        member = self.mesh.members[number]
        if number in self._busy or member.node is not None:
            return
        self._busy[number] = None
        try:
            while not await self._start_once(number):
                await asyncio.sleep(START_RETRY_S)
                if not self._wanted.get(number):
                    return
        finally:
            del self._busy[number]
        self._arrived(number)

    async def _start_once(self, number: int) -> bool:
        member = self.mesh.members[number]
        if not member.host.is_up:
            self.simulation.restart(member.host)
        if number in self.dress:
            self.dress[number](member.host)
        self.checks.starting(member)
        try:
            await self.mesh.start_one(member)
        except StoreError:
            self.simulation.crash(member.host)
            return False
        return True

    async def _start_warm(self, numbers: list[int]) -> None:
        """Start installations as if they had been up for long."""
        self._busy.update(dict.fromkeys(numbers))
        await self.mesh.start_warm([self.mesh.members[number] for number in numbers])
        for number in numbers:
            del self._busy[number]
            self._wanted[number] = True
            self._arrived(number)

    def _arrived(self, number: int) -> None:
        """A node has started."""
        member = self.mesh.members[number]
        self.checks.started(member)
        if number in self.hostile:
            arm(self, member, self.hostile[number], self.settings.hostile)
        self._up_since[number] = self.now
        self._up_most = max(self._up_most, len(self._up_since))
        if len(self._up_since) > 1:  # else there is nobody to meet
            self._joining[number] = self.now
            self._has_joiner.set()
        self.metrics.count("starts")
        self.record("start", node=member.host.name)

    async def revive(self, number: int) -> None:
        """Start an installation again if the population wants it up."""
        if self._wanted.get(number):
            await self.start(number)

    async def stop(self, number: int, *, drain: bool = True) -> None:
        """Stop a node gracefully; nothing happens when it is down, or busy."""
        member = self.mesh.members[number]
        node = member.node
        if number in self._busy or node is None:
            return
        self._busy[number] = None
        try:
            self.record("stop", node=member.host.name)
            await self.mesh.stop(member, drain=drain)
        except HostDown:
            return
        finally:
            del self._busy[number]
            self._gone(number, node)
        self.metrics.count("stops")

    async def crash(self, number: int, *, is_silent: bool = False) -> None:
        """Kill a node, or (`is_silent`) cut the power of its machine; nothing happens when it is down, or busy.

        Those that are to crash at the same moment do so together: the cost of a crash is that of a look at everything
        that waits.
        """
        if not self._doomed:
            self.simulation.loop.call_soon(self._crash_doomed, self._doomed, context=Context())
        self._doomed[number] = is_silent
        doomed = self._doomed
        while doomed is self._doomed:  # noqa: ASYNC110 - one turn, or two when turns are shuffled
            await asyncio.sleep(0)

    def _crash_doomed(self, doomed: dict[int, bool]) -> None:
        self._doomed = {}
        for is_silent in (False, True):
            members = []
            for number, silently in doomed.items():
                member = self.mesh.members[number]
                if silently is not is_silent or number in self._busy or member.node is None:
                    continue
                self.record("crash", node=member.host.name, silent=is_silent)
                self.metrics.count("crashes")
                self._gone(number, member.node)
                members.append(member)
            if members:
                self.mesh.crash(*members, is_silent=is_silent)

    def _gone(self, number: int, node: Node) -> None:
        self._joining.pop(number, None)
        self._past.add(node, self.mesh.members[number].host, self.now - self._up_since.pop(number, self.now))

    def lose_disk(self, number: int) -> None:
        """A member's disk has forgotten what it had promised to keep: nothing is expected of its jobs any more."""
        for job in self.jobs:
            if job.owner == number:
                job.is_lost = True
                self.metrics.count("jobs_lost_with_disk")
        self.jobs = [job for job in self.jobs if not job.is_lost]

    def fit_network(self) -> None:
        """Let the network be as the settings and `network_changes` say."""
        changed: dict[str, Any] = {}
        for changes in self.network_changes.values():
            changed.update(changes)
        self.simulation.network.apply(structs.replace(self._calm_network, **changed))

    def mass_exit(self) -> None:
        """Many nodes have just gone: measure how long the others take to carry on without them."""
        self.spawn(self._measure_recovery(self.now), "recovery")

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
            self.problem(_story(error))
        finally:
            if had_gc:
                gc.enable()
        if "errors" not in self.settings.checks.off:
            for number, member in enumerate(self.mesh.members):
                for text in member.errors[:1] if number not in self.hostile else ():
                    self.problem(f"{member.host.name}: {text}")

    async def _main(self, until_s: float | None, faults: Sequence[Fault], plans: Sequence[WorkloadPlan]) -> None:
        self.notes += [one.note for one in plans if one.note]
        population = self.spawn(self._populate(), "population")
        work = [self.spawn(play(self, one), f"workload {number}") for number, one in enumerate(plans)]
        trouble = [self.spawn(inject(self, fault), f"fault {fault.number}") for fault in faults]
        self.spawn(self._watch_joining(), "joining")
        self.spawn(self._sample(), "sample")
        self.spawn(self._check(), "check")
        if self.watch is not None:
            self.spawn(self._tell(self.watch), "progress")
        end_s = self.duration_s if until_s is None else min(until_s, self.duration_s)
        await asyncio.sleep(max(0.0, end_s - self.now))
        self._traffic()
        self._note_what_was_missing()
        if end_s == self.duration_s:
            await self._heal(population, trouble)
            await self._finish(work)
            self._work()
            await self.checks.eventually()
        else:
            self._work()
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
            if not self._look()[3] and "over" not in self.settings.checks.off:  # else it is up to the check of jobs
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
        self._wanted[number] = False
        if number in self.claimed:
            return
        if leaving == "stop":
            await self.stop(number)
        else:
            await self.crash(number, is_silent=leaving == "silent")

    # --- figures ----------------------------------------------------------------------------------

    async def _watch_joining(self) -> None:
        """Measure how long a node takes from its start to its first peer, and to a table that is full."""
        met: dict[int, float] = {}
        while True:
            if not self._joining:
                self._has_joiner.clear()
                await self._has_joiner.wait()
            await asyncio.sleep(JOIN_LOOK_S)
            enough = 0
            for number, since in list(self._joining.items()):
                node = self.mesh.members[number].node
                dht = node.network.dht if node is not None else None
                if node is None or dht is None:
                    continue
                if met.get(number) != since and dht.first_contact_s is not None:
                    met[number] = since
                    self.metrics.sample("join_s", dht.first_contact_s)
                enough = enough or min(DHT_K, len(self.up()) - 1)
                is_full = dht.contact_count >= enough
                if is_full and met.get(number) == since and dht.last_contact_s is not None:
                    self.metrics.sample("join_table_s", dht.last_contact_s)
                if (is_full and met.get(number) == since) or self.now - since > JOIN_S_MAX:
                    del self._joining[number]
                    met.pop(number, None)

    async def _sample(self) -> None:
        looks = min(SAMPLES, SAMPLED_NODES_MAX / self.settings.nodes)
        while True:
            await asyncio.sleep(max(SAMPLE_S_MIN, self.duration_s / looks))
            slots, busy, ready, is_open = self._look()
            if not slots:
                continue
            if ready:
                self.metrics.sample("idle_while_work_share", min(ready, slots - busy) / slots)
            if is_open:
                self.metrics.sample("utilisation", busy / slots)
            self.metrics.sample("up_share", len(self._up_since) / self.settings.nodes)
            if self.watch is not None:
                look = {"up": len(self._up_since), "slots": slots, "busy": busy, "ready": ready}
                datagrams = self.simulation.network.counters.datagrams_sent
                self.watch.record({"t": self.now, "kind": "sample", "node": "", **look, "datagrams": datagrams})

    def _look(self) -> tuple[int, int, int, bool]:
        """Slots of the nodes that run, those at work, tasks that nobody has taken, and whether any job is open."""
        slots = busy = 0
        for member in self.mesh.members:
            if member.node is not None:
                slots += member.host.runner.slot_count
                busy += member.host.runner.busy_count
        ready, is_open = 0, False
        for number in sorted({job.owner for job in self.jobs}):
            node = self.mesh.members[number].node
            for job in node.scheduler.owner.core.jobs.values() if node is not None else ():
                ready += job.ready_count
                is_open = is_open or job.ready_count > 0 or bool(job.leases)
        return slots, busy, ready, is_open

    async def _measure_recovery(self, since: float) -> None:
        """From a mass exit until no task is leased to a node that is down, and few idle beside work."""
        numbers = {member.identity.public_key: number for number, member in enumerate(self.mesh.members)}
        while self.now - since < RECOVERY_S_MAX and not self.is_healing:
            await asyncio.sleep(RECOVERY_LOOK_S)
            slots, busy, ready, is_open = self._look()
            if not is_open:
                return  # nothing to carry on with
            if min(ready, slots - busy) > IDLE_SHARE_RECOVERED * slots:
                continue
            if not any(self._leased_to_nobody(number, numbers) for number in sorted({job.owner for job in self.jobs})):
                self.metrics.sample("recovery_s", self.now - since)
                return

    def _leased_to_nobody(self, number: int, numbers: dict[bytes, int]) -> bool:
        node = self.mesh.members[number].node
        if node is None:
            return False
        return any(
            lease.thief != LOCAL and self.mesh.members[numbers[lease.thief]].node is None
            for job in node.scheduler.owner.core.jobs.values()
            for lease in job.leases.values()
            if lease.thief in numbers
        )

    def _sums(self) -> _Sums:
        """Of all lives of all nodes so far."""
        sums = self._past.copy()
        for number, member in enumerate(self.mesh.members):
            if member.node is not None:
                sums.add(member.node, member.host, self.now - self._up_since.get(number, self.now))
        return sums

    def _note_what_was_missing(self) -> None:
        """Say so when hardly anything was simulated."""
        if self._up_most < 2 <= self.settings.nodes:
            self.notes.append("at most one node was up at any time: nothing that takes a group was seen")
        asked = ("jobs", "lookups", "puts", "queries", "asks_interrupted", "submissions_failed")
        if self.settings.workload and not any(self.metrics.counted(name) for name in asked):
            self.notes.append("nothing was submitted: the workloads begin too late, or no node was there to submit it")

    def _traffic(self) -> None:
        """Figures of the time before everything heals."""
        metrics, sums, network = self.metrics, self._sums(), self.simulation.network.counters
        node_s = max(sums.up_s, 1e-9)
        metrics.set("messages_per_node_s", (network.datagrams_sent + sums.frames) / node_s)
        metrics.set("bytes_per_node_s", network.bytes_sent / node_s)
        metrics.set("datagrams_per_node_s", network.datagrams_sent / node_s)
        metrics.set("frames_per_node_s", sums.frames / node_s)
        self._own_lookups()
        for member in self.mesh.members:
            if member.node is not None:
                metrics.peak("peers_max", len(member.node.scheduler.peers))
                if member.node.network.dht is not None:
                    metrics.peak("contacts_max", member.node.network.dht.contact_count)
        if self.simulation.network.has_homes:
            self._reach()

    def _reach(self) -> None:
        """Figures of who can be reached from outside, and who takes whom for it."""
        up = self.up()
        nats = {member.identity.public_key: member.host.machine.nat for member in up}
        closed = {key for key, nat in nats.items() if nat is not None and not nat.lets_all_in}
        self.metrics.set("closed_tabled", 0)
        for member in up:
            dht = member.running.network.dht
            if dht is not None:
                self.metrics.count("clients", dht.is_client)
                self.metrics.share("role_right", dht.is_client == (member.identity.public_key in closed))
                elsewhere = [one for one in dht.contacts() if one.key in closed]
                self.metrics.count("closed_tabled", len(elsewhere))

    def _own_lookups(self) -> None:
        """Figures of all lookups that nodes make, those of their upkeep included, by their own counters."""
        dhts = [member.node.network.dht for member in self.mesh.members if member.node is not None]
        counters = [dht.counters for dht in dhts if dht is not None]
        lookups = sum(one.lookups for one in counters)
        if lookups:
            self.metrics.set("own_lookups_per_node", lookups / len(counters))
            self.metrics.set("own_lookup_requests", sum(one.lookup_requests for one in counters) / lookups)
            self.metrics.set("own_lookup_hops", sum(one.lookup_hops for one in counters) / lookups)
        rtts = [dht.rtt_s for dht in dhts if dht is not None and dht.rtt_s is not None]
        if rtts:
            self.metrics.set("own_rtt_s", statistics.median(rtts))

    def _work(self) -> None:
        """Figures of the work done in the whole run."""
        account(self)
        tasks = sum(job.acknowledged for job in self.jobs)
        if tasks:
            self.metrics.set("tasks", tasks)
            self.metrics.set("runs", self._sums().runs)

    def messages(self) -> int:
        """Datagrams and frames sent so far."""
        return self.simulation.network.counters.datagrams_sent + self._sums().frames

    def wall_s(self) -> float:
        """Real seconds since this world was made."""
        return time.perf_counter() - self._began


@dataclass(slots=True)
class _Sums:
    """What nodes did in their lives, summed up."""

    up_s: float = 0.0
    frames: int = 0
    runs: int = 0

    def copy(self) -> _Sums:
        return replace(self)

    def add(self, node: Node, host: SimHost, up_s: float) -> None:
        self.up_s += up_s
        self.frames += node.channels.counters.frames_sent
        self.runs += host.runner.runs_ended


def _is_one_in(count: int, seed: int) -> bool:
    """Whether it is the turn of this seed for what happens in one of `count`; 0: it never happens."""
    return count > 0 and seed % count == 0


def _story(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-4000:]


def run_mesh(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    """Run one seed of a scenario of whole nodes.

    Args:
        until_s: stop at this virtual time; then what must hold only at the end is not checked.

    Raises:
        UsageError: a file that the settings name cannot be read.
    """
    settings = scenario.settings
    assert isinstance(settings, MeshSettings)
    world = World(settings, seed, watch=watch)
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
