"""The world of one run: real nodes, who is up, what is wrong, and a ledger of what was submitted.

A `World` is made from `MeshSettings` and a seed.  It sees everything: `jobs` is its ledger, which nodes cannot see.
Its own tasks run outside all hosts; everything that they draw comes from `World.rng`, one stream for each purpose.
Who plays a run on it is in `mesh_run`.

Invariants: the same settings and seed give the same trace hash, in any process; nothing here polls every node often.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final

from msgspec import structs

from p2pcompute.errors import StoreError
from p2pcompute.host.interfaces import Address
from p2pcompute.node.node import Node
from p2pcompute.simulation.faults import draw_conditions
from p2pcompute.simulation.host import HostDown, SimHost, Simulation
from p2pcompute.simulation.hostile import draw_hostile
from p2pcompute.simulation.mesh import PORT, Member, Mesh
from p2pcompute.simulation.mesh_settings import MeshSettings
from p2pcompute.simulation.metrics import Metrics
from p2pcompute.simulation.population import machine
from p2pcompute.simulation.result import PROBLEMS_MAX, Watch
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.trust.levels import Level

START_RETRY_S: Final = 1.0
"""After which a start that a bad disk prevented is tried again."""


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
    """The nodes of one run, and what is done to them.

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

    # --- for the pieces ---------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the simulation."""
        return self.simulation.now

    def wall_s(self) -> float:
        """Real seconds since this world was made."""
        return time.perf_counter() - self._began

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
            self.problem(f"{task.get_name()}: {story(error)}")

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
        self._starts(member)
        try:
            await self.mesh.start_one(member, contacts=self._first_contacts(number))
        except StoreError:
            self.simulation.crash(member.host)
            return False
        return True

    def _first_contacts(self, number: int) -> tuple[Address, ...] | None:
        """Addresses of the founder and of others that a member met before all this; None: of the founder alone.

        Who comes for the first time while the founder is away finds nobody through it.
        """
        count = min(self.settings.contacts, self.settings.nodes)
        if not count:
            return None
        met = self.rng(f"contacts {number}").sample(range(self.settings.nodes), count)
        members = [self.mesh.members[other] for other in dict.fromkeys([0, *met]) if other != number]
        return tuple(Address(one.host.address, PORT) for one in members)

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
        self._started(number, member)
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
        """Many nodes have just gone."""

    # --- for whoever looks on ---------------------------------------------------------------------

    def _starts(self, member: Member) -> None:
        """A node is about to start on what its disk has kept."""

    def _started(self, number: int, member: Member) -> None:
        """A node has started."""

    def _gone(self, number: int, node: Node) -> None:
        """A node has stopped, or is about to be killed."""


def _is_one_in(count: int, seed: int) -> bool:
    """Whether it is the turn of this seed for what happens in one of `count`; 0: it never happens."""
    return count > 0 and seed % count == 0


def story(error: BaseException) -> str:
    """The end of an exception's traceback, for a problem."""
    return "".join(traceback.format_exception(error))[-4000:]
