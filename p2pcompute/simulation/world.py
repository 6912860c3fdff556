"""One run of a whole mesh: real nodes, a population, faults, hostile nodes, workloads, checks and figures.

A `World` is made from `MeshSettings` and a seed.  It sees everything: `jobs` is its ledger, which nodes cannot see.
Its own tasks run outside all hosts; everything that they draw comes from `World.rng`, one stream for each purpose.

Invariant: the same settings and seed give the same trace hash, in any process.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import traceback
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from p2pcompute.errors import P2pcError
from p2pcompute.simulation.host import HostDown, Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.metrics import Metrics

if TYPE_CHECKING:
    from p2pcompute.simulation.scenario import Scenario

PROBLEMS_MAX: Final = 20
"""Problems of one run that are kept."""
PROGRESS_STEPS: Final = 100
"""How often in one run somebody who watches is told how far it is."""
START_RETRY_S: Final = 1.0
"""After which a start that a full disk prevented is tried again."""


class MeshSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `mesh`."""

    nodes: Annotated[int, Meta(ge=1, le=100_000, description="installations of the group")] = 10
    hours: Annotated[float, Meta(gt=0, le=10_000, description="simulated time before everything heals, hours")] = 0.1
    lan: Annotated[bool, Meta(description="all machines on one LAN instead of spread over the world")] = False
    warm: Annotated[bool, Meta(description="tables filled by the oracle instead of by joining")] = False
    real_crypto_in: Annotated[int, Meta(ge=0, description="real Ed25519 in one of so many seeds; 0: never")] = 0
    shuffle: Annotated[bool, Meta(description="callbacks that are ready at one time run in a seeded random order")] = (
        False
    )


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
    submitted_s: float
    over_s: float | None = None
    acknowledged: int = 0
    """Tasks of which the owner has said that it has them: they must not be lost any more."""
    may_cancel: bool = False
    """Somebody has asked for it to be cancelled, or its terms may halt it."""
    done: int = 0
    """Tasks that were told to have ended well."""
    accepted_s: float = 0.0
    """Their work, seconds at speed 1."""


class World:
    """One run under way."""

    def __init__(self, settings: MeshSettings, seed: int, *, watch: Watch | None = None) -> None:
        self.settings = settings
        self.seed = str(seed)
        self.watch = watch
        self.metrics = Metrics()
        self.fired: Counter[str] = Counter()
        self.jobs: list[WorldJob] = []
        self.hostile: dict[int, str] = {}
        """Members that are hostile, and their kind."""
        self.problems: list[str] = []
        self.duration_s = settings.hours * 3600.0
        self._busy: dict[int, None] = {}
        """Members that are being started or stopped."""
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._began = time.perf_counter()
        is_real = settings.real_crypto_in > 0 and seed % settings.real_crypto_in == 0
        self.simulation = Simulation(self.seed, has_real_crypto=is_real, is_shuffled=settings.shuffle)
        self.mesh = Mesh(self.simulation, settings.nodes, is_lan=settings.lan)

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

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task of the world, outside all hosts.  Ended at the end of the run; its error fails the run."""
        task = self.simulation.loop.create_task(coroutine, name=f"world.{name}")
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.problem(f"{task.get_name()}: {''.join(traceback.format_exception(error))[-4000:]}")

    def record(self, kind: str, *, node: str = "", **fields: Any) -> None:
        """Put one record of the schema p2pc.trace/1 into the trace."""
        record = {"t": self.now, "kind": kind, "node": node, **fields}
        self.simulation.note(json.dumps(record, sort_keys=True, default=repr))
        if self.watch is not None:
            self.watch.record(record)

    def problem(self, text: str) -> None:
        """Note a broken invariant; the run goes on and ends as failed."""
        self.record("problem", text=text)
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"{self.now:.3f} s: {text}")

    # --- starting and stopping --------------------------------------------------------------------

    async def start(self, number: int) -> None:
        """Start an installation that is down; nothing happens when it is up, or busy."""
        member = self.mesh.members[number]
        if number in self._busy or member.node is not None:
            return
        self._busy[number] = None
        try:
            if not member.host.is_up:
                self.simulation.restart(member.host)
            await self.mesh.start_one(member)
        finally:
            del self._busy[number]
        self.metrics.count("starts")
        self.record("start", node=member.host.name)

    async def stop(self, number: int, *, drain: bool = True) -> None:
        """Stop a node gracefully; nothing happens when it is down, or busy."""
        member = self.mesh.members[number]
        if number in self._busy or member.node is None:
            return
        self._busy[number] = None
        try:
            self.record("stop", node=member.host.name)
            await self.mesh.stop(member, drain=drain)
        except HostDown:
            pass  # it crashed on the way
        finally:
            del self._busy[number]
        self.metrics.count("stops")

    async def crash(self, number: int, *, is_silent: bool = False) -> None:
        """Kill a node, or (`is_silent`) cut the power of its machine; nothing happens when it is down, or busy."""
        member = self.mesh.members[number]
        if number in self._busy or member.node is None:
            return
        self.mesh.crash(member, is_silent=is_silent)
        self.metrics.count("crashes")
        self.record("crash", node=member.host.name, silent=is_silent)

    # --- the run ----------------------------------------------------------------------------------

    def run(self, until_s: float | None = None) -> None:
        """Run to the end, or until `until_s` of virtual time.  What breaks is in `problems`."""
        try:
            with self.simulation:
                self.simulation.run(self._main(until_s))
        except P2pcError as error:
            self.problem("".join(traceback.format_exception(error))[-4000:])
        for member in self.mesh.members:
            for text in member.errors:
                self.problem(f"{member.host.name}: {text}")

    async def _main(self, until_s: float | None) -> None:
        end_s = self.duration_s if until_s is None else min(until_s, self.duration_s)
        for number in range(len(self.mesh.members)):
            await self.start(number)
        if self.watch is not None:
            self.spawn(self._tell(self.watch), "progress")
        await asyncio.sleep(max(0.0, end_s - self.now))
        for task in list(self._tasks):
            task.cancel()

    async def _tell(self, watch: Watch) -> None:
        while True:
            await asyncio.sleep(self.duration_s / PROGRESS_STEPS)
            watch.progress(self.now, time.perf_counter() - self._began)

    def messages(self) -> int:
        """Datagrams and frames sent so far."""
        return self.simulation.network.counters.datagrams_sent

    def wall_s(self) -> float:
        """Real seconds since this world was made."""
        return time.perf_counter() - self._began


def run_mesh(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    """Run one seed of a scenario of whole nodes.

    Args:
        until_s: stop at this virtual time; then what must hold only at the end is not checked.
    """
    settings = scenario.settings
    if not isinstance(settings, MeshSettings):
        settings = msgspec.convert(settings, MeshSettings)
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
    )
