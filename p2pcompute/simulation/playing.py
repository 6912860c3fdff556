"""Carries out a workload: submits, follows, asks, and measures how well it went.

Everything goes through what a node offers to people: `Node` and its DHT.  The oracle's part is only to judge answers:
which nodes were truly nearest, how much work the nodes that were up could have done.

Owners may crash.  A submission that was not acknowledged is made again, as another job, wherever somebody is up; from
the acknowledgement on the job is that owner's, and is followed over all its lives until it ends.

Figures (`world.metrics`), with what they mean beyond their names:

* submissions_failed: not acknowledged, because the node went or its disk took nothing.
* makespan_s: from the decision to submit to the end of a job of which every task was done; first_result_s likewise.
* makespan_ratio: makespan over its lower bound, the larger of: when the cores that were up could have done the work;
  the critical path on the fastest core.
* computed_s, computed_ratio: the same until every task had ended, as its owner or who coordinates for it knows: an
  owner that is away accepts nothing, however soon the work is done.
* tasks_done, tasks_failed: as their owners told; accepted_work_s: of those done, seconds at speed 1.
* wasted_work: executed beyond accepted work, over accepted work; duplicate_runs: tasks that ended well once too often.
* lookup_success: the nearest live node was found; lookup_recall: share of the k nearest.
* lookup_rtts: lookup_s in median round trips of the network.
* read_success: a record that was put is read back; read_missed: reads that failed though a live node held it.
* query_success: as many live peers that fit as were wanted, or as there are.

Source of the bound: Graham 1969 for identical machines, with capacity that changes in time.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final

from p2pcompute.dht.records import make_record, record_key
from p2pcompute.errors import RemoteProtocolError, StoreError, UsageError
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload
from p2pcompute.ids import DHT_ID_BYTES, dht_id
from p2pcompute.limits import DHT_K
from p2pcompute.node.facade import TaskView
from p2pcompute.node.node import Node
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.simulation.host import HostDown
from p2pcompute.simulation.machines import Machine
from p2pcompute.simulation.mesh import Member
from p2pcompute.simulation.workloads import AskPlan, JobPlan, WorkloadPlan
from p2pcompute.simulation.world import World, WorldJob
from p2pcompute.wire import cbor

BATCH: Final = 500
"""Tasks added in one call."""
LOOK_S: Final = 1.0
"""How often somebody who waits looks whether the node is still the same."""
VIEW_S: Final = 10.0
"""How often a job is looked at although nothing was told of it."""
NEAR_SPARE: Final = 12
"""Nodes beyond the k nearest that are remembered during a lookup, in case some of those leave."""
RTT_PAIRS: Final = 301
"""Pairs of machines from which the median round trip is taken, when there are more than these."""


async def play(world: World, plan: WorkloadPlan) -> None:
    """Carry out a plan; ends when all that it began has ended."""
    player = _Player(world, plan)
    if plan.jobs:
        await player.play_jobs()
    elif plan.asks:
        await player.play_asks()


def account(world: World) -> None:
    """Work out what concerns all workloads together.  To be called once, at the end of a run."""
    metrics, tallies = world.metrics, [member.host.tally for member in world.mesh.members]
    if not metrics.counted("jobs"):
        return
    executed_s, accepted_s = math.fsum(tally.work_s for tally in tallies), metrics.counted("accepted_work_s")
    metrics.set("executed_work_s", executed_s)
    metrics.set("duplicate_runs", sum(tally.runs_ok for tally in tallies) - metrics.counted("tasks_done"))
    if accepted_s:
        metrics.set("wasted_work", max(0.0, executed_s / accepted_s - 1))


class _Player:
    """One workload under way."""

    def __init__(self, world: World, plan: WorkloadPlan) -> None:
        self.world = world
        self.plan = plan
        self.settings = plan.settings
        self.capacity = Capacity()
        self._under_way = 0
        self._is_over = asyncio.Event()
        self._directory = Directory([dht_id(member.identity.public_key) for member in world.mesh.members])
        self._rtt_s = median_rtt_s(world)

    # --- who --------------------------------------------------------------------------------------

    def someone(self, fraction: float, *, besides: int | None = None) -> int | None:
        """The first member from this place of the list on that is honest, up and not about to leave; None: nobody."""
        members, hostile = self.world.mesh.members, self.world.hostile
        first = int(fraction * len(members))
        for step in range(len(members)):
            number = (first + step) % len(members)
            node = members[number].node
            if node is not None and number not in hostile and number != besides and _stays(node):
                return number
        return None

    async def _sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.world.now))

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        self._under_way += 1
        self.world.spawn(coroutine, name).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way -= 1
        self._is_over.set()

    async def _all_ended(self) -> None:
        while self._under_way:
            self._is_over.clear()
            await self._is_over.wait()

    # --- jobs -------------------------------------------------------------------------------------

    async def play_jobs(self) -> None:
        sampler = self.world.spawn(self._sample_capacity(), f"{self._name}.capacity")
        for number, job in enumerate(self.plan.jobs):
            await self._sleep_until(job.at_s)
            self._spawn(self._play_job(job, number), f"{self._name}.{number}")
        await self._all_ended()
        sampler.cancel()

    @property
    def _name(self) -> str:
        return f"{self.settings.kind}@{self.settings.start_s:g}"

    async def _sample_capacity(self) -> None:
        while True:
            self._look_at_capacity()
            await asyncio.sleep(max(1.0, len(self.world.mesh.members) / 1000))

    def _look_at_capacity(self) -> None:
        models = [member.host.runner.model for member in self.world.up() if not member.host.is_suspended]
        rate = sum(model.slot_count * model.speed for model in models)
        fastest = max((model.speed for model in models if model.slot_count), default=0.0)
        self.capacity.note(self.world.now, rate, fastest)

    async def _play_job(self, plan: JobPlan, number: int) -> None:
        self._look_at_capacity()
        began_s = self.world.now
        job = await self._submitted(plan, f"{self._name}.{number}")
        following = _Following(self.world, plan, job, began_s)
        if not await following.follow():
            return
        metrics, makespan_s = self.world.metrics, self.world.now - began_s
        metrics.count("jobs_over")
        self.world.record("job.ended", job=job.job_id.hex(), makespan_s=makespan_s)
        if not following.is_whole:
            return
        computed_s = makespan_s if following.computed_at is None else following.computed_at - began_s
        metrics.sample("makespan_s", makespan_s)
        metrics.sample("computed_s", computed_s)
        self._look_at_capacity()
        bound_s = self.capacity.bound_s(began_s, plan.work_s, plan.critical_s)
        if bound_s > 0:
            metrics.sample("makespan_ratio", makespan_s / bound_s)
            metrics.sample("computed_ratio", computed_s / bound_s)

    async def _submitted(self, plan: JobPlan, name: str) -> WorldJob:
        """Submit until somebody has acknowledged it."""
        terms = JobTerms(name=name, retries=plan.retries, verify="" if self.settings.verify else "none")
        while True:
            owner = self.someone(plan.owner)
            if owner is None:
                await asyncio.sleep(LOOK_S)
                continue
            member = self.world.mesh.members[owner]
            try:
                job_id = await member.host.call(member.running.submit_job(terms, JobSpec(kind=TaskKind.SIMULATED)))
            except (HostDown, StoreError):
                self.world.metrics.count("submissions_failed")
                await asyncio.sleep(LOOK_S)
                continue
            job = WorldJob(owner, job_id, [])
            self.world.jobs.append(job)
            self.world.metrics.count("jobs")
            for state in ("done", "failed"):
                self.world.metrics.count(f"tasks_{state}", 0)
            self.world.record("job.submitted", node=member.host.name, job=job_id.hex(), tasks=len(plan.works))
            return job

    # --- lookups, puts, queries -------------------------------------------------------------------

    async def play_asks(self) -> None:
        ask = {"lookups": self._lookup, "puts": self._put, "queries": self._query}[self.settings.kind]
        for number, plan in enumerate(self.plan.asks):
            await self._sleep_until(plan.at_s)
            self._spawn(ask(plan), f"{self._name}.{number}")
        await self._all_ended()

    def _asker(self, fraction: float, *, besides: int | None = None) -> tuple[int, Member, Node] | None:
        """Who asks: a member that has found the group."""
        number = self.someone(fraction, besides=besides)
        if number is None:
            self.world.metrics.count("asks_skipped")
            return None
        member = self.world.mesh.members[number]
        return number, member, member.running

    async def _call(self, member: Member, node: Node, question: Callable[[], Any]) -> tuple[Any, float] | None:
        """The answer of a node and the seconds it took; None when it went away meanwhile."""
        began_s = self.world.now
        try:
            answer = await member.host.call(question())
        except HostDown:
            self.world.metrics.count("asks_interrupted")
            return None
        if member.node is not node or not _stays(node):
            self.world.metrics.count("asks_interrupted")
            return None
        return answer, self.world.now - began_s

    async def _lookup(self, plan: AskPlan) -> None:
        asker = self._asker(plan.who)
        if asker is None:
            return
        number, member, node = asker
        dht = node.network.dht
        if dht is None:
            return
        members = self.world.mesh.members
        target = plan.key or self._directory.ids[int(plan.about * len(members))]
        near = self._near(target, DHT_K + NEAR_SPARE, besides=number)

        async def ask() -> tuple[list[bytes], int, int]:
            contacts = await dht.find(target)
            return [contact.id for contact in contacts], *dht.last_lookup

        found = await self._call(member, node, ask)
        if found is None:
            return
        (ids, requests, hops), took_s = found
        true = [self._directory.ids[one] for one, life in near if members[one].node is life][:DHT_K]
        metrics = self.world.metrics
        metrics.count("lookups")
        metrics.sample("lookup_s", took_s)
        metrics.sample("lookup_rtts", took_s / self._rtt_s)
        metrics.sample("lookup_requests", requests)
        if ids:
            metrics.sample("lookup_hops", hops)
        if true:
            metrics.share("lookup_success", bool(ids) and ids[0] == true[0])
            for one in true:
                metrics.share("lookup_recall", one in ids)

    def _near(self, target: bytes, count: int, *, besides: int) -> list[tuple[int, Node]]:
        """The truly nearest members whose node runs and is asked by others, nearest first, with the life that they are
        in."""
        found: list[tuple[int, Node]] = []
        for number in self._directory.nearest(target):
            node = self.world.mesh.members[number].node
            is_asked = node is not None and (node.network.dht is None or not node.network.dht.is_client)
            if node is not None and is_asked and number != besides:
                found.append((number, node))
                if len(found) == count:
                    break
        return found

    async def _put(self, plan: AskPlan) -> None:
        asker = self._asker(plan.who)
        if asker is None:
            return
        publisher, member, node = asker
        dht, identity, settings = node.network.dht, node.identity, self.settings
        if dht is None:
            return
        value = (plan.key * (1 + settings.value_bytes // len(plan.key)))[: settings.value_bytes]
        record = make_record(
            identity.sign_envelope, identity.public_key, salt=plan.key, seq=1, wall=node.clock.wall(),
            ttl_s=settings.ttl_s, value=value,
        )  # fmt: skip
        put_s = self.world.now
        answer = await self._call(member, node, lambda: dht.put(record))
        if answer is None:
            return
        metrics = self.world.metrics
        metrics.count("puts")
        metrics.sample("put_copies", answer[0])
        metrics.sample("put_s", answer[1])
        for after_s, who in plan.reads:
            if after_s < settings.ttl_s:
                await self._sleep_until(put_s + after_s)
                await self._read(who, publisher, record_key(identity.public_key, plan.key), value)

    async def _read(self, who: float, publisher: int, key: bytes, value: bytes) -> None:
        asker = self._asker(who, besides=publisher)
        if asker is None:
            return
        _, member, node = asker
        dht = node.network.dht
        if dht is None:
            return
        answer = await self._call(member, node, lambda: dht.get(key))
        if answer is None:
            return
        is_found = any(record.value == value for record in answer[0])
        self.world.metrics.sample("read_s", answer[1])
        self.world.metrics.share("read_success", is_found)
        self.world.metrics.count("read_missed", not is_found and self._is_kept(key))

    def _is_kept(self, key: bytes) -> bool:
        """Whether a node that runs holds a record under this key."""
        for member in self.world.up():
            dht = member.running.network.dht
            if dht is not None and dht.records.get(key, now=member.host.clock.now()):
                return True
        return False

    async def _query(self, plan: AskPlan) -> None:
        asker = self._asker(plan.who)
        if asker is None:
            return
        number, member, node = asker
        wanted, slots = self.settings.wanted, self.settings.slots
        answer = await self._call(member, node, lambda: find_peers(node, plan.key, wanted=wanted, slots=slots))
        if answer is None:
            return
        fit = {
            other.identity.public_key
            for place, other in enumerate(self.world.mesh.members)
            if other.node is not None and place != number and other.host.runner.slot_count >= slots
        }
        right = sum(key in fit for key in answer[0])
        metrics = self.world.metrics
        metrics.count("queries")
        metrics.sample("query_s", answer[1])
        metrics.share("query_success", right >= min(wanted, len(fit)))
        for _ in answer[0]:
            metrics.share("query_stale", right <= 0)
            right -= 1


def _stays(node: Node) -> bool:
    return node.network.dht is not None and node.status().state != "draining"


async def find_peers(node: Node, key: bytes, *, wanted: int, slots: int) -> list[bytes]:
    """Public keys of up to `wanted` peers with at least `slots` slots: of those that the node has a channel to, and if
    they are too few, of the owners of ads around a key."""
    found = [view.public_key for view in node.peers() if view.state == "up" and (view.slots or 0) >= slots][:wanted]
    dht = node.network.dht
    if len(found) >= wanted or dht is None:
        return found
    for contact in await dht.find(key):
        if len(found) >= wanted:
            break
        if contact.key in found:
            continue
        for ad in await dht.get(contact.id):
            if ad.publisher == contact.key and _slots_in(ad.value) >= slots:
                found.append(contact.key)
    return found


def _slots_in(ad: bytes) -> int:
    """Slots that an ad names; -1 when it names none."""
    try:
        content = cbor.decode(ad)
    except RemoteProtocolError:
        return -1
    slots = content.get("slots") if isinstance(content, dict) else None
    return slots if type(slots) is int else -1


class _Following:
    """A job that was submitted, over all lives of its owner: its tasks are added as they become ready."""

    def __init__(self, world: World, plan: JobPlan, job: WorldJob, began_s: float) -> None:
        self._world = world
        self._plan = plan
        self._job = job
        self._began_s = began_s
        self._member: Member = world.mesh.members[job.owner]
        self._node: Node | None = None
        self._told = asyncio.Event()
        self._left = [len(needs) for needs in plan.needs]
        """For each task of a graph how many of those that it waits for have not ended."""
        self._behind: list[list[int]] = [[] for _ in plan.needs]
        for number, needs in enumerate(plan.needs):
            for need in needs:
                self._behind[need].append(number)
        self._order = [number for number, left in enumerate(self._left) if not left]
        """Tasks in the order in which they are added: number in the plan, by index in the job."""
        if not plan.needs:
            self._order = list(range(len(plan.works)))
        job.works[:] = [plan.works[number] for number in self._order]
        self._next_generation = [0] * len(plan.works)
        """By index in the job: ends of earlier generations have been taken in."""
        self._done = bytearray(len(plan.works))
        self._ended_count = 0
        self._is_broken = False
        """A task failed for good: those behind it will never be added."""
        self._has_result = False
        self._is_sealed = False
        self.computed_at: float | None = None
        """When a custodian knew of every task how it ended, while the owner was away."""

    async def follow(self) -> bool:
        """Add the tasks, seal the job and wait for its end; False when its owner's disk has forgotten it."""
        job_id = self._job.job_id
        while True:
            node = await self._life()
            if self._job.is_lost:
                return False
            self._told.clear()
            try:
                if node is not self._node:
                    await self._attach(node)
                view = node.job(job_id.hex())
                if view.is_over:
                    await self._catch_up(node)  # the last ends may be on their way
                    return True
                if view.total is None and await self._add(node, view.added):
                    continue
            except (HostDown, StoreError):
                await self._wait(node)  # it went, or is about to, or cannot write for now
                continue
            except UsageError as error:
                if job_id in node.scheduler.owner.books and self._job.may_cancel:
                    continue  # it was cancelled, which seals it
                if error.code != "no-job":
                    raise
                self._world.problem(f"job {job_id.hex()[:8]} was acknowledged, and its owner does not know it: {error}")
                return False
            await self._wait(node)

    @property
    def is_whole(self) -> bool:
        """Whether every task of the plan has been done."""
        return all(self._done)

    async def _life(self) -> Node:
        while True:
            node = self._member.node
            if node is not None:
                return node
            if self.computed_at is None and self._is_computed():
                self.computed_at = self._world.now
            await asyncio.sleep(LOOK_S / 4)

    def _is_computed(self) -> bool:
        books = (member.running.scheduler.owner.books.get(self._job.job_id) for member in self._world.up())
        return any(book is not None and book.job.ledger.is_complete for book in books)

    async def _wait(self, node: Node) -> None:
        """Until something was told, the node is another, or VIEW_S is over."""
        for _ in range(int(VIEW_S / LOOK_S)):
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._told.wait()
            except TimeoutError:
                if self._member.node is node:
                    continue
            return

    async def _attach(self, node: Node) -> None:
        """Listen to a life of the owner, and take in what ended before."""
        first = self._node is None
        node.watch(self._job.job_id, self._take)
        if not first:
            await self._catch_up(node)
        self._node = node

    async def _catch_up(self, node: Node) -> None:
        """Take in all that has ended."""
        seq = 0
        while ends := await self._member.host.call(node.finished(self._job.job_id, after=seq, limit=1000)):
            self._take(ends)
            seq = ends[-1].seq

    async def _add(self, node: Node, added: int) -> bool:
        """Add what is ready behind the first `added`, or seal the job when no more will come; whether it did."""
        job, call = self._job, self._member.host.call
        if added < job.acknowledged:
            self._world.problem(f"{job.acknowledged} tasks were acknowledged and {added} are there")
        if added < len(self._order):
            works = job.works[added : added + BATCH]
            first = await call(node.add_tasks(job.job_id, [encode_payload(TaskPayload(work_s=one)) for one in works]))
            if first != added:
                self._world.problem(f"tasks were added at {first} behind {added}")
            job.acknowledged = first + len(works)
            return True
        is_all = len(self._order) == len(self._plan.works)
        if self._is_sealed or not (is_all or (self._is_broken and self._ended_count == added)):
            return False
        await call(node.seal_job(job.job_id))
        self._is_sealed = True
        return True

    def _take(self, ends: Sequence[TaskView]) -> None:
        """Told by the owner: tasks that ended; nothing: the job itself changed."""
        if not ends:
            self._told.set()
        elif not self._has_result:
            self._has_result = True
            self._world.metrics.sample("first_result_s", self._world.now - self._began_s)
        for end in ends:
            if end.index >= len(self._order) or end.generation < self._next_generation[end.index]:
                continue
            self._ended_count += not self._next_generation[end.index]
            self._next_generation[end.index] = end.generation + 1
            number = self._order[end.index]
            self._world.metrics.count(f"tasks_{end.state}")
            self._world.record(
                "task.ended", node=end.node_name, job=self._job.job_id.hex(), task=end.index, state=end.state
            )
            if end.state != "done":
                self._is_broken = True
                self._told.set()
                continue
            self._world.metrics.count("accepted_work_s", self._plan.works[number])
            if self._done[end.index]:
                continue
            self._done[end.index] = 1
            for waiting in self._behind[number] if self._behind else ():
                self._left[waiting] -= 1
                if not self._left[waiting]:
                    self._order.append(waiting)
                    self._job.works.append(self._plan.works[waiting])
                    self._told.set()
            if self._is_broken and self._ended_count == len(self._order):
                self._told.set()


# --- what the oracle knows ------------------------------------------------------------------------


class Capacity:
    """How much work the nodes that were up could do, over time: a step function."""

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._rates: list[float] = []
        self._fastest = 0.0

    def note(self, now_s: float, rate: float, fastest: float) -> None:
        """From now on at most `rate` seconds of work at speed 1 are done in a second; a core has at most `fastest`."""
        self._fastest = max(self._fastest, fastest)
        if self._times_s and self._times_s[-1] == now_s:
            self._rates[-1] = rate
        elif not self._rates or self._rates[-1] != rate:
            self._times_s.append(now_s)
            self._rates.append(rate)

    def bound_s(self, since_s: float, work_s: float, critical_s: float) -> float:
        """The shortest time in which this work can be done from `since_s` on, whoever does it; at least the critical
        path on the fastest core.  What is known last is taken to go on."""
        path_s = critical_s / self._fastest if self._fastest else 0.0
        place = max(0, bisect_right(self._times_s, since_s) - 1)
        now_s = since_s
        while place + 1 < len(self._times_s):
            span_s = self._times_s[place + 1] - now_s
            if self._rates[place] * span_s >= work_s:
                break
            work_s -= self._rates[place] * span_s
            now_s = self._times_s[place + 1]
            place += 1
        rate = self._rates[place] if self._rates else 0.0
        return max(path_s, now_s - since_s + work_s / rate if rate else path_s)


class Directory:
    """All members' ids, to find the nearest of a key without looking at each."""

    def __init__(self, ids: Sequence[bytes]) -> None:
        self.ids = list(ids)
        """By member number."""
        self._sorted = sorted((int.from_bytes(one, "big"), number) for number, one in enumerate(ids))
        self._numbers = [number for number, _ in self._sorted]

    def nearest(self, key: bytes) -> Iterator[int]:
        """Member numbers in the order of their distance to a key of 20 bytes."""
        target, numbers = int.from_bytes(key, "big"), self._numbers
        ranges = [(0, len(numbers), 8 * DHT_ID_BYTES - 1)]
        while ranges:
            low, high, bit = ranges.pop()
            if high - low <= 16 or bit < 0:
                for place in sorted(range(low, high), key=lambda one: numbers[one] ^ target):
                    yield self._sorted[place][1]
                continue
            middle = bisect_left(numbers, (numbers[low] >> bit + 1 << 1 | 1) << bit, low, high)
            halves = [(low, middle, bit - 1), (middle, high, bit - 1)]
            ranges += halves if target >> bit & 1 else reversed(halves)  # the near half is taken first


def median_rtt_s(world: World) -> float:
    """Median round trip between two machines of the world, without jitter; of many pairs by a sample."""
    rng: random.Random = world.rng("median rtt")
    machines = [member.host.machine for member in world.mesh.members]
    if len(machines) < 2:
        return 1.0
    pairs: Iterable[Sequence[Machine]] = itertools.combinations(machines, 2)
    if math.comb(len(machines), 2) > RTT_PAIRS:
        pairs = [rng.sample(machines, 2) for _ in range(RTT_PAIRS)]
    return statistics.median(2 * world.simulation.network.base_delay_s(one, other) for one, other in pairs)
