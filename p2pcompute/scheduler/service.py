"""The scheduler of one node: owner, worker, thief and victim wired to channels.

One loop, `_pump`, runs after every event and asks in this order: our own worker and the thieves that wait here get what
there is (`victim_service`), then slots get what waits for them, then (when there is still room) other nodes are asked
(`thief_service`).  It makes no decision of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from p2pcompute.errors import P2pcError, RemoteProtocolError, StoreError, TrustError
from p2pcompute.host.interfaces import Address, BlobRef, Host, Timer
from p2pcompute.host.runs import Outcome
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import (
    KILL_GRACE_S,
    PEER_LOST_GRACE_S,
    RECOVERY_GRACE_S,
    TAIL_S,
)
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.acceptance import Acceptance, LevelOf, everybody_is_trusted
from p2pcompute.scheduler.custody import coordinator_of
from p2pcompute.scheduler.custody_service import CustodyService
from p2pcompute.scheduler.messages import Message
from p2pcompute.scheduler.offers import Offers
from p2pcompute.scheduler.owner_service import OwnerService
from p2pcompute.scheduler.quiet import Silence
from p2pcompute.scheduler.receipt_service import ReceiptService
from p2pcompute.scheduler.stealing import LOCAL, Fit
from p2pcompute.scheduler.terms import JobEnvelope
from p2pcompute.scheduler.thief_service import ThiefService
from p2pcompute.scheduler.victim_service import VictimService
from p2pcompute.scheduler.worker import Held
from p2pcompute.scheduler.worker_service import Fetch, Inputs, WorkerService
from p2pcompute.store.journal import Journal
from p2pcompute.transport.channels import MADE_ROOM, Channel, Channels

TICK_S = 1.0
"""Period of the timer that ends leases, grants and parked requests while there are any."""
IDLE_TICK_S = 60.0
"""Its period while there is nothing that could end."""
BENCH_S = 60.0
"""How long a worker whose results broke the protocol is given nothing."""
DRAIN_LOOK_S = 0.05
HAND_OVER_S = KILL_GRACE_S + 2.0
"""How long a leaving node waits for tasks that it has ended, and for their owners to be told."""
COMMIT_AT_END_S = 3.0
"""How long a stopping node tries to write what is not in its store."""
EARLIER_LIVES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Printed:
    """What a running task has printed so far."""

    node: bytes
    """Where it runs; LOCAL for this node."""
    attempt: int
    stdout: tuple[int, bytes]
    stderr: tuple[int, bytes]
    """Where the bytes begin, and the bytes: the last ones, when there are many."""
    progress: bytes = b""
    """How far the task says that it is; see `execution.progress`."""
    silence: Silence | None = None
    """For how long it has said no more than that; None where its node does not tell."""


@dataclass(slots=True)
class SchedulerCounters:
    """Every message that was refused is counted by its reason."""

    benched_count: int = 0
    """Workers whose results broke the protocol."""


class Scheduler:
    """Owner, worker, thief and victim of one node."""

    def __init__(
        self,
        host: Host,
        identity: Identity,
        channels: Channels,
        journal: Journal | None,
        scope: TaskScope,
        *,
        boot: bytes,
        python: tuple[int, int],
        inputs: Inputs,
        fetch: Fetch,
        fetch_results: Fetch,
        name_of: Callable[[bytes], str],
        peers: Mapping[bytes, Sequence[Address]],
        own_addresses: Callable[[], Sequence[Address]],
        accepts_others: bool = True,
        fit_of: Callable[[JobEnvelope], Fit | None] | None = None,
        level_of: LevelOf = everybody_is_trusted,
        cluster_of: Callable[[bytes], bytes | None] = lambda _installation: None,
    ) -> None:
        """Args:
        boot: random bytes, new for each life of this node.
        inputs, fetch: see `worker_service`.
        fetch_results: brings a result's blobs from its worker.
        peers: members that may be asked for work or offered some, and where they are; changes under our hands.
        own_addresses: where thieves of our thieves may reach us.
        accepts_others: False for a node that runs only its own jobs.
        fit_of: says on which nodes a job may run; None of it: on all.  Asked for jobs of others too: whatever the
            owner believes, a node runs only what it fits itself.
        level_of, cluster_of: see `Acceptance`.
        """
        self._host = host
        self._identity = identity
        self._channels = channels
        self._scope = scope
        self._boot = boot
        self._fetch_results = fetch_results
        self._fit_of = fit_of or (lambda _job: None)
        self._rng = host.rng.stream("scheduler.victims")
        self.acceptance = Acceptance(level_of, host.rng.stream("scheduler.copies"), cluster_of)
        self.owner = OwnerService(
            host, identity, journal, scope, self.wake, name_of, inputs, fit_of, acceptance=self.acceptance
        )
        self.worker = WorkerService(
            host,
            identity,
            channels,
            journal,
            scope,
            self.wake,
            pump_now=self.pump_now,
            boot=boot,
            inputs=inputs,
            fetch=fetch,
            intake_local=self.owner.intake_local,
            job_of_local=lambda job_id: self.owner.core.jobs[job_id].envelope,
            is_checked_local=lambda job_id: self.owner.core.jobs[job_id].checked is not None,
            addresses_of=lambda key: self.peers.get(key, ()),
            slots_of=self._slots_taken if fit_of is not None else None,
        )
        self.worker.on_printed = self.owner.printed_here
        self.worker.take_own, self.worker.on_adopted = self._take_own, self._adopted
        self.worker.save_local = self.owner.save_local
        self.custody: CustodyService | None = None
        if journal is not None:
            self.custody = CustodyService(
                host,
                identity,
                channels,
                journal,
                scope,
                self.owner,
                peers=peers,
                wake=self.wake,
                inputs=inputs,
                fetch=fetch_results,
                redirect=self.worker.redirect,
            )
            self.custody.may_keep = lambda job: self.may_submit(job) is not False
        self.receipts = ReceiptService(host, identity, channels, journal, scope)
        self.owner.on_done = self._note_worked
        self.on_restarted: Callable[[bytes], None] = lambda _key: None
        """Called when a node is met in a new life."""
        self.may_submit: Callable[[JobEnvelope], bool | None] = lambda _job: True
        """Says whether the submitter of a job may have it run here; whoever coordinates it, this node looks itself.
        None: it does not know him."""
        self.introduce: Callable[[Channel, bytes], Awaitable[None]] = _know_nobody
        """Asks a peer who an installation is that is not known here."""
        self.thief = ThiefService(
            host,
            identity.public_key,
            channels,
            self.worker,
            scope,
            self._rng,
            boot=boot,
            python=python,
            peers=peers,
            accepts_others=accepts_others,
            fit_of=self._fit_of,
            may_submit=lambda job: self.may_submit(job),  # noqa: PLW0108 - set later
            introduce=lambda channel, installation: self.introduce(channel, installation),  # noqa: PLW0108 - too
            wake=self.wake,
            pump_now=self.pump_now,
        )
        self.worker.on_ended = self.thief.note_hot
        self.victim = VictimService(
            host,
            channels,
            scope,
            self._rng,
            self.owner,
            self.worker,
            self.thief,
            identity=identity,
            boot=boot,
            python=python,
            peers=peers,
            own_addresses=own_addresses,
            fit_of=self._fit_of,
            hand_back=self._hand_back,
            wake=self.wake,
        )
        self.victim.is_benched = self._is_benched
        parking = self.victim.parking
        self.offers = Offers(host, channels, self._rng, self.owner, self.worker, self.thief, parking, peers)
        self.counters = SchedulerCounters()
        self.peers = peers
        self._benched: dict[bytes, float] = {}
        """Worker → until when it gets nothing."""
        self._boots: dict[bytes, bytes] = {}
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._due: asyncio.Handle | None = None
        """The pump's next run."""
        self._may_grant_at = 0.0
        self.is_onlooker = False
        self._is_closed = self._is_leaving = False
        self._register()

    def _register(self) -> None:
        channels = self._channels
        channels.is_needed = self._is_needed
        channels.on_message(Message.LEAVING, self._on_leaving)
        channels.on_message(Message.COORDINATOR, self._on_coordinator)
        channels.on_request(Message.RESULTS, self._on_results)
        channels.on_request(Message.HEARTBEAT, self._on_heartbeat)
        channels.on_request(Message.RETURNED, self._on_returned)
        channels.on_request(Message.JOB, self._on_job)
        channels.on_request(Message.CHECKPOINT, self._on_checkpoint)
        channels.on_request(Message.TAIL, self._on_tail)
        channels.on_message(Message.PRINTED, self._on_printed)

    # --- life -------------------------------------------------------------------------------------

    async def start(self, *, is_onlooker: bool = False) -> None:
        """Take up what earlier lives left: jobs to finish, results to return.

        After a restart with unfinished jobs nothing is granted for RECOVERY_GRACE_S, so that workers can say what
        they still hold.

        Args:
            is_onlooker: nobody can be heard and nothing runs here; so nothing is granted, and nothing is decided about
                tasks that may run elsewhere.
        """
        self.is_onlooker = is_onlooker
        if await self.owner.recover():
            self._may_grant_at = inf if is_onlooker else self._host.clock.now() + RECOVERY_GRACE_S
            self._host.clock.call_later(RECOVERY_GRACE_S, self.wake)
        if self.custody is not None:
            await self.custody.recover()
        await self.worker.recover()
        await self.receipts.recover()
        with contextlib.suppress(StoreError):
            await self._host.store.blobs.trim()  # all that is needed is pinned; the cap may be lower than it was
        self.wake()

    def _tick(self) -> None:
        self._timer = None
        if self._is_closed:
            return
        now = self._host.clock.now()
        self.owner.core.tick(now, self._host.clock.wall() * 1000)
        self.worker.tick(now)
        self.receipts.tick(now)
        if self.custody is not None:
            self.custody.tick(now)
        self.victim.tick(now)
        self._forget_old(now)
        self.offers.tick(now)
        self.wake()

    def _arm_timer(self, now: float) -> None:
        """See to it that `_tick` comes in time: every event passes through the pump, and so through here."""
        if self._timer is not None and self._timer_at <= now + TICK_S:
            return
        due = now + (TICK_S if self._has_business() else IDLE_TICK_S)
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._host.clock.call_later(due - now, self._tick)

    def _has_business(self) -> bool:
        """Whether anything is under way that time could end."""
        return bool(
            self.victim.given
            or self.thief.is_busy
            or self._benched
            or self.offers.is_busy
            or self.owner.is_busy
            or self.worker.is_busy
            or self.receipts.core.is_due
            or (self.custody is not None and self.custody.is_busy)
        )

    def _forget_old(self, now: float) -> None:
        """Drop what is remembered of peers that are no longer there."""
        self._benched = {key: until for key, until in self._benched.items() if until > now}
        self.thief.forget_old(now)
        self.worker.forget_old()

    def allow(self, foreign_slots: int | None, *, own_runs: bool) -> None:
        """Let so much run here from now on; what has not started goes back, what runs goes on.

        Args:
            foreign_slots: how many slots the jobs of other installations may take; None: all.
            own_runs: whether anything runs at all.
        """
        core = self.worker.core
        if (core.foreign_slots, self.worker.is_off) == (foreign_slots, not own_runs):
            return
        core.foreign_slots, self.worker.is_off = foreign_slots, not own_runs
        self.thief.ask_anew()
        self.wake()

    def evict(self, run_ids: Sequence[int]) -> None:
        """End tasks that run here; they are run again elsewhere, and it does not count against them."""
        self._host.runner.kill(run_ids)

    async def leave(self, *, drain_s: float) -> None:
        """Hand back what has not started, let running tasks finish for `drain_s`, deliver results.

        What runs then is ended; it may save its state once more, and its owner has that before we go.  A second call,
        after the first was cut short, does not wait.
        """
        is_hurried, self._is_leaving = self._is_leaving, True
        self.worker.core.is_paused = True
        for channel in self._channels.all():
            channel.send(Message.LEAVING, [])
        await self._hand_back(self.worker.core.surrender())
        if not await self._drained(drain_s):
            self.evict(list(self.worker.core.held))
            await self._drained(0.0 if is_hurried else HAND_OVER_S)
        try:
            async with self._host.clock.timeout(COMMIT_AT_END_S):
                await self.worker.keep_all()
                await self.owner.committed()
        except (TimeoutError, StoreError):
            # The store takes nothing, or an earlier stop was cut short: what is not in there is done again.
            return

    async def _drained(self, limit_s: float) -> bool:
        """Wait until nothing runs here and all owners have their results; False when it takes longer."""
        try:
            async with self._host.clock.timeout(limit_s):
                while self.worker.has_work:
                    await self._host.clock.sleep(DRAIN_LOOK_S)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.victim.close()
        self.thief.close()
        if self.custody is not None:
            self.custody.close()
        self.worker.close()
        self.owner.close()

    # --- the pump ---------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look for something to do, soon; many calls cost one look."""
        if self._due is None and not self._is_closed:
            self._due = asyncio.get_running_loop().call_soon(self._pump)

    def pump_now(self) -> None:
        """Look for something to do at once: saves a turn of the event loop where an event is complete.

        For callbacks of the event loop only, never from inside the pump.
        """
        if self._due is not None:
            self._due.cancel()
        self._pump()

    def _pump(self) -> None:
        self._due = None
        if self._is_closed:
            return
        now = self._host.clock.now()
        self._apply()  # stops leave before grants: a task that was started again may go where its former run is
        if self.owner.trouble is None and now >= self._may_grant_at:
            self.owner.core.settle(now)
            self.victim.serve(now)
        self._mind_rest(now)
        self.worker.start_batches()
        self._apply()
        self.thief.seek_work(now)
        self._arm_timer(now)

    def _mind_rest(self, now: float) -> None:
        """While this node can run nothing, or keep nothing, what it holds and has not started is for others."""
        surrendered = self.worker.rest(now, is_store_full=self.owner.trouble is not None)
        if surrendered:
            self._scope.spawn(self._hand_back(surrendered), "hand-back")

    async def _hand_back(self, surrendered: dict[tuple[bytes, bytes], list[int]]) -> None:
        now = self._host.clock.now()
        for (owner, job_id), indices in surrendered.items():
            if owner == LOCAL:
                self.owner.core.returned(now, LOCAL, job_id, indices)
        self.wake()
        await self.worker.hand_back({key: indices for key, indices in surrendered.items() if key[0] != LOCAL})

    def _apply(self) -> None:
        """Do what the owner's core has decided."""
        self.owner.apply_effects()
        while self.owner.stops:
            self._send_stops()
            self.owner.apply_effects()

    def _slots_taken(self, job_id: bytes) -> int:
        """Return how many slots a task of a job that is held here takes."""
        own = self.owner.core.jobs.get(job_id)
        other = None if own is not None else self.worker.jobs.get(job_id)
        fit = own.fit if own is not None else None if other is None else self._fit_of(other)
        return 1 if fit is None else fit.slots(LOCAL, self.worker.core.slot_count)

    def _is_needed(self, key: bytes) -> bool:
        is_kept = self.custody is not None and self.custody.is_needed(key)
        return is_kept or key in self.victim.parking or key in self.thief.asked

    def _send_stops(self) -> None:
        stops, self.owner.stops = self.owner.stops, []
        now = self._host.clock.now()
        for thief, job_id, indices, kill in stops:
            if thief == LOCAL:
                returned = self.worker.stop(LOCAL, job_id, indices, kill=kill)
                if returned:
                    self.owner.core.returned(now, LOCAL, job_id, returned)
                    self.wake()
                continue
            channel = self._channels.get(thief)
            if channel is not None:
                for start in range(0, len(indices), messages.HELD_MAX):
                    channel.send(Message.STOP, [job_id, indices[start : start + messages.HELD_MAX], kill])

    def _note_worked(self, key: bytes, outcome: Outcome) -> None:
        """A task of ours was done well by another node: it gets a receipt of the time that it says, in so far as it has
        so many slots."""
        channel = self._channels.get(key)
        if channel is not None:
            cpu_s = min(outcome.cpu_s, outcome.runtime_s * self.victim.slots_of(key))
            self.receipts.core.worked(channel.peer.installation, cpu_s)

    def shares_job_with(self, key: bytes) -> bool:
        """Whether a node has given this one tasks, was given some, keeps a job with it, or reads one by a ticket."""
        if key in self.worker.links:
            return True
        return any(
            key in book.job.by_thief or key in book.job.envelope.coordinators or key in book.readers
            for book in self.owner.books.values()
        )

    # --- owner -------------------------------------------------------------------------------

    async def _on_results(self, channel: Channel, body: Any) -> Any:
        try:
            job_id, pairs = self.owner.checks.open_claims(channel.peer.key, *messages.parse_results(body))
        except RemoteProtocolError:
            self._bench(channel.peer.key)
            raise
        by = channel.peer.installation
        wanted = [(claim, outcome) for claim, outcome in pairs if self.owner.wants(job_id, claim, by)]
        refs: dict[BlobRef, None] = {}
        for claim, outcome in wanted:
            if not self.owner.wants_output(job_id, claim, by):
                continue
            refs.update(dict.fromkeys(messages.outcome_blobs(outcome)))
        blobs = self._host.store.blobs
        blobs.pin(refs)  # one that is here already might go while the others are fetched
        try:
            missing = [ref for ref in refs if not await blobs.has(ref)]
            if missing:
                await self._fetch_results(missing, channel.peer.key, [channel.address])
            wanted = await self.owner.readable(job_id, by, wanted)
            taken = self.owner.intake(channel.peer.key, by, job_id, body[0], wanted)
            self.wake()
            await self.owner.committed()
        finally:
            blobs.unpin(refs)
        return [taken]

    async def _on_checkpoint(self, channel: Channel, body: Any) -> Any:
        """A worker says what its tasks have saved; what it has no lease of is not looked at."""
        core, peer, blobs = self.owner.core, channel.peer, self._host.store.blobs
        entries = [
            (job_id, index, saved)
            for job_id, index, saved in messages.parse_checkpoint(body)
            if core.may_save(peer.key, peer.installation, job_id, index, saved)
        ]
        refs = list(dict.fromkeys(saved.blob for _job, _index, saved in entries if saved.blob is not None))
        blobs.pin(refs)
        try:
            missing = [ref for ref in refs if not await blobs.has(ref)]
            if missing:
                await self._fetch_results(missing, peer.key, [channel.address])
            for job_id, index, saved in entries:
                core.save(peer.key, peer.installation, job_id, index, saved)
            self.owner.apply_effects()
        finally:
            blobs.unpin(refs)
        return []

    def _on_printed(self, channel: Channel, body: Any) -> None:
        """A worker says what its tasks have printed, with its heartbeat."""
        for job_id, index, attempt, tails in messages.parse_printed(body):
            self.owner.printed(channel.peer.key, job_id, index, attempt, tails)

    async def _on_tail(self, channel: Channel, body: Any) -> Any:
        """An owner asks what its task has printed so far."""
        job_id, index, attempt, offsets = messages.parse_tail_asked(body)
        found = await self.worker.tail(channel.peer.key, job_id, index, attempt, offsets)
        if found is None:
            return []
        (stdout, stderr, said), silence = found
        times = [silence.quiet_s, *([] if silence.idle_s is None else [silence.idle_s])] if silence is not None else []
        return [*stdout, *stderr, said, *map(int, times)]

    async def tail(self, job_id: bytes, index: int, attempt: int, offsets: tuple[int, int]) -> Printed | None:
        """Return what a running task has printed; None: it does not run, or its node does not answer.

        Args:
            attempt: which the offsets are of; of another one all is returned.
        """
        for lease in self.owner.core.holders(job_id, index):
            begins = offsets if lease.attempt == attempt else (0, 0)
            if lease.thief == LOCAL:
                found = await self.worker.tail(LOCAL, job_id, index, lease.attempt, begins)
            elif (channel := self._channels.get(lease.thief)) is None:
                continue
            else:
                try:
                    answer = await channel.request(
                        Message.TAIL, [job_id, index, lease.attempt, *begins], timeout_s=2 * TAIL_S
                    )
                    found = messages.parse_tail(answer)
                except (P2pcError, TimeoutError):
                    continue
            if found is not None:
                (stdout, stderr, said), silence = found
                return Printed(lease.thief, lease.attempt, stdout, stderr, said, silence)
        return None

    def _bench(self, key: bytes) -> None:
        """A worker whose results break the protocol gets nothing for BENCH_S, and what it holds goes to others: its
        results will not be any better, and its heartbeats would keep the leases for ever."""
        now = self._host.clock.now()
        self._benched[key] = now + BENCH_S
        self.counters.benched_count += 1
        self.victim.parking.remove(key)
        self.owner.core.peer_lost(now, key)
        self.wake()

    def _is_benched(self, key: bytes) -> bool:
        return self._benched.get(key, 0.0) > self._host.clock.now()

    async def _on_heartbeat(self, channel: Channel, body: Any) -> Any:
        boot, moved_from, jobs = messages.parse_heartbeat(body)
        now = self._host.clock.now()
        if self._is_benched(channel.peer.key):
            if moved_from:  # it took them from another worker, whose leases on them must not stand either
                for job_id, held in jobs:
                    self.owner.core.heartbeat(now, channel.peer.key, boot, job_id, held, moved_from=moved_from)
                self.owner.core.peer_lost(now, channel.peer.key)
                self.wake()
            return [[job_id, [index for index, _generation, _attempt in held]] for job_id, held in jobs]
        answer = []
        for job_id, held in jobs:
            if self._tell_coordinator(channel, job_id):
                continue
            drop = self.owner.core.heartbeat(
                now,
                channel.peer.key,
                boot,
                job_id,
                held,
                moved_from=moved_from or None,
                installation=channel.peer.installation,
            )
            if drop:
                answer.append([job_id, drop])
        self.wake()
        return answer

    def _tell_coordinator(self, channel: Channel, job_id: bytes) -> bool:
        """Tell a worker who coordinates a job that is only kept here; False when that is we, or nobody knows."""
        charge = self.custody.charges.get(job_id) if self.custody is not None else None
        if charge is None or charge.is_acting:
            return False
        channel.send(Message.COORDINATOR, [job_id, charge.epoch])
        return True

    def _on_coordinator(self, channel: Channel, body: Any) -> None:
        """A keeper of a job that this node works for says who coordinates it."""
        job_id, epoch = messages.parse_coordinator(body)
        if self.custody is not None:
            self.custody.told(channel, job_id, epoch)
        job = self.worker.jobs.get(job_id)
        if job is not None and channel.peer.key in job.coordinators and epoch > self.worker.epochs.get(job_id, 0):
            self.worker.redirect(job, epoch)
            if coordinator_of(job, epoch) == channel.peer.key:  # it has work: it says so when it begins to act
                self.thief.note_hot(channel.peer.key)
                self.wake()

    def _adopted(self, job_id: bytes, held: Sequence[Held]) -> None:
        """What our own worker holds of a job that we coordinate now is leased to it."""
        entries = [(one.task.index, one.task.generation, one.task.attempt) for one in held]
        dropped = self.owner.core.heartbeat(self._host.clock.now(), LOCAL, self._boot, job_id, entries)
        if dropped:
            self.worker.stop(LOCAL, job_id, dropped, kill=False)

    def _take_own(self, job_id: bytes, results: Sequence[tuple[Sequence[Any], bytes]]) -> None:
        """Results of our own worker that waited for an owner whose job we coordinate now."""
        for claim, raw in results:
            index, generation, attempt = claim[:3]
            self.owner.intake_local(job_id, index, generation, attempt, messages.decode_outcome(raw))
        self.owner.apply_effects()  # what is kept of them is pinned now
        self.wake()

    async def _on_returned(self, channel: Channel, body: Any) -> Any:
        now = self._host.clock.now()
        for job_id, indices in messages.parse_job_indices(body):
            self.owner.core.returned(now, channel.peer.key, job_id, indices)
        self.wake()
        await self.owner.committed()
        return []

    async def _on_job(self, _channel: Channel, body: Any) -> Any:
        job_id = messages.parse_job_id(body)
        owned = self.owner.core.jobs.get(job_id)
        job = owned.envelope if owned is not None else self.worker.jobs.get(job_id)
        if job is None and (book := self.owner.books.get(job_id)) is not None:
            job = book.job.envelope
        if job is None:
            raise TrustError("no such job here", code="no-job")
        return [job.raw]

    def _on_leaving(self, channel: Channel, _body: Any) -> None:
        self.victim.parking.remove(channel.peer.key)
        self.thief.peer_leaves(channel.peer.key)
        if self.custody is not None:
            self.custody.leaving(channel.peer.key)

    # --- peers ------------------------------------------------------------------------------------

    def peer_known(self, key: bytes) -> None:
        """A member can be reached; `peers` says where."""
        if self._is_closed:
            return
        demands = self.owner.core.demands()
        if any(fit is None or fit.is_candidate(key) is not False for fit, _count in demands):
            self.thief.open_channel(key)
        elif not self.thief.is_first_to_dial(key):
            self._arm_timer(self._host.clock.now())
            return  # there is nobody more to ask yet
        self.wake()

    def peer_gone(self, key: bytes) -> None:
        """A member is no longer reachable; leases it holds end by themselves."""
        self.offers.peer_gone(key)
        self.thief.peer_gone(key)

    def channel_opened(self, channel: Channel) -> None:
        key = channel.peer.key
        self.thief.channel_opened(key)
        boot = channel.peer.hello.get("boot")
        if isinstance(boot, bytes) and self._boots.get(key, boot) != boot:
            self.victim.restarted(key)
            self.on_restarted(key)
            self.owner.core.peer_lost(self._host.clock.now(), key, boot=boot)
        if isinstance(boot, bytes):
            self._boots[key] = boot
            if len(self._boots) > EARLIER_LIVES_MAX:
                del self._boots[next(iter(self._boots))]
        if self.owner.core.has_ready:
            self.offers.tell(channel)
        self.worker.heard_of(key)
        if self.custody is not None:
            self.custody.channel_opened(channel)
        self.wake()

    def drop_refused(self) -> None:
        """End what runs here, and forget what is kept, of jobs whose submitter may not have them run here any more; who
        may not work any more waits here no longer."""
        for thief in self.victim.parking.waiting(self._host.clock.now()):
            if not self.victim.may_work(thief.installation):
                self.victim.parking.remove(thief.key)
        for job_id in [job_id for job_id, job in self.worker.jobs.items() if self.may_submit(job) is False]:
            self.worker.disown(job_id)
        for job_id, entries in self.worker.core.held_of(LOCAL).items():
            if job_id in self.owner.core.jobs and self.may_submit(self.owner.core.jobs[job_id].envelope) is False:
                self.worker.stop(LOCAL, job_id, [index for index, _generation, _attempt in entries], kill=True)
        if self.custody is not None:
            self.custody.tick(self._host.clock.now())
        self.wake()

    def of_others(self) -> dict[bytes, JobEnvelope]:
        """Return the jobs of other installations of which this node holds tasks."""
        known = {**{job_id: job.envelope for job_id, job in self.owner.core.jobs.items()}, **self.worker.jobs}
        held = dict.fromkeys(held.job_id for held in self.worker.core.held.values())
        jobs = {job_id: known[job_id] for job_id in held if job_id in known}
        return {job_id: job for job_id, job in jobs.items() if job.submitter != self._identity.installation}

    def give_back(self, job_ids: Collection[bytes]) -> None:
        """Run nothing of these jobs here any more: what has not started goes back, and what runs is ended, as by
        `evict`.  What has ended is told as ever."""
        core = self.worker.core
        surrendered = core.surrender(of_jobs=job_ids)
        self.evict([run_id for run_id, held in core.held.items() if held.job_id in job_ids and not held.is_dropped])
        if surrendered:
            self._scope.spawn(self._hand_back(surrendered), "hand-back")
        self.wake()

    def channel_lost(self, channel: Channel) -> None:
        key = channel.peer.key
        self.thief.channel_lost(key)
        if self._channels.get(key) is not None:
            return
        self.victim.parking.remove(key)
        if channel.lost_reason != MADE_ROOM and channel.was_heard:
            # Else it is not gone as far as we know, and tells us as long as its leases last.
            self._host.clock.call_later(PEER_LOST_GRACE_S, lambda: self._judge_lost(key))
        link = self.worker.links.get(key)
        if link is not None and link.heartbeat_due:
            link.heartbeat_due = self._host.clock.now()  # knock at the owner at once: it may be back
        self.wake()

    def _judge_lost(self, key: bytes) -> None:
        if self._is_closed or self._channels.get(key) is not None:
            return
        if self.owner.core.peer_lost(self._host.clock.now(), key):
            self.wake()

    # --- reading ----------------------------------------------------------------------------------

    def now(self) -> float:
        return self._host.clock.now()

    def outlook(self) -> tuple[float | None, float | None]:
        """Return in how many seconds the next task here ends, and in how many a slot is free: see `WorkerCore`."""

        def task_s_of(job_id: bytes) -> float | None:
            own = self.owner.core.jobs.get(job_id)
            return None if own is None else own.task_s

        return self.worker.core.outlook(self.now(), task_s_of)


async def _know_nobody(_channel: Channel, _installation: bytes) -> None:
    """There is nobody to ask."""
