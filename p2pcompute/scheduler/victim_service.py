"""The victim of one node: which of those that wait here gets what there is.

The node's own worker comes first, then those that have parked a steal request.  They get tasks of our jobs, by the rule
(`owner.rule`); one that has nothing else to do also what our worker holds and has not started, whoever's it
is.

Grants that nobody acknowledges within GRANT_ACK_S are void: those of the owner end in its core, those of tasks that our
worker held are put back here.

The thief's side is `thief_service`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from p2pcompute.host.interfaces import Address, Host, Timer
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import (
    GRANT_ACK_S,
    GRANT_BYTES_MAX,
    GRANT_ENVELOPE_BYTES_MAX,
    GRANT_TASKS_MAX,
    JOBS_KNOWN_MAX,
    LEASE_S_MIN,
)
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.books import Grant
from p2pcompute.scheduler.manifests import sign_manifest
from p2pcompute.scheduler.messages import Message
from p2pcompute.scheduler.owner import PREFER_S, UNFIT_S
from p2pcompute.scheduler.owner_service import OwnerService
from p2pcompute.scheduler.policies import Element, Policy
from p2pcompute.scheduler.stealing import LOCAL, Fit, Pacing, Parking, Thief, holders_first
from p2pcompute.scheduler.terms import JobEnvelope
from p2pcompute.scheduler.thief_service import ThiefService
from p2pcompute.scheduler.worker import Held
from p2pcompute.scheduler.worker_service import WorkerService
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.trust.levels import Level

if TYPE_CHECKING:
    import random

PREFERRED_MAX = 256
"""Nodes that are looked at for the sake of a job that prefers some."""
GIVEN_ID = 1 << 62
"""Grant ids of tasks given from the worker's queue start here, those of the owner at 1."""


@dataclass(slots=True)
class _Given:
    """Tasks handed from our queue to a thief that has not acknowledged."""

    thief: bytes
    held: list[Held]
    deadline: float


@dataclass(slots=True)
class VictimCounters:
    """What was given, and who was turned away."""

    grants_given_count: int = 0
    steals_refused_full_count: int = 0


class VictimService:
    """The victim of one node."""

    def __init__(
        self,
        host: Host,
        channels: Channels,
        scope: TaskScope,
        rng: random.Random,
        owner: OwnerService,
        worker: WorkerService,
        thief: ThiefService,
        *,
        identity: Identity,
        boot: bytes,
        python: tuple[int, int],
        peers: Mapping[bytes, Sequence[Address]],
        own_addresses: Callable[[], Sequence[Address]],
        fit_of: Callable[[JobEnvelope], Fit | None],
        hand_back: Callable[[dict[tuple[bytes, bytes], list[int]]], Coroutine[Any, Any, None]],
        wake: Callable[[], None],
    ) -> None:
        """Args: see `Scheduler`, of which this is a part.

        hand_back: returns tasks that our worker held and has not started to their owners.
        """
        self._host = host
        self._channels = channels
        self._scope = scope
        self._rng = rng
        self._owner = owner
        self._worker = worker
        self._thief = thief
        self._identity = identity
        self._boot = boot
        self._python = python
        self._peers = peers
        self._own_addresses = own_addresses
        self._fit_of = fit_of
        self._hand_back = hand_back
        self._wake = wake
        self.parking = Parking()
        self.policy: Policy | None = None
        """Which of several thieves is served first; None: in turn."""
        self.may_work: Callable[[bytes], bool] = lambda _installation: True
        """Says whether an installation may be given tasks of ours."""
        self.is_benched: Callable[[bytes], bool] = lambda _key: False
        """Says whether a node rests for BENCH_S: its results broke the protocol, and the next ones would too."""
        self.counters = VictimCounters()
        self.given: dict[int, _Given] = {}
        self._next_given = GIVEN_ID
        self._unfit: dict[tuple[bytes, bytes], float] = {}
        """(job of another owner, node that declined its tasks because it does not fit) → until when."""
        self._knows_job: dict[bytes, dict[bytes, None]] = {}
        """Channel peer → jobs whose envelope it has from us in its present life."""
        self._held: Timer | None = None
        """Wakes the pump when jobs need not wait for the nodes that they prefer any longer."""
        self._turn: Timer | None = None
        """Wakes it when the next of a crowd is served, or copies are given again."""
        self._pacing = Pacing()
        channels.on_message(Message.STEAL, self._on_steal)
        channels.on_message(Message.UNPARK, lambda channel, _body: self.parking.remove(channel.peer.key))
        channels.on_message(Message.GRANT_ACK, self._on_grant_ack)

    def tick(self, now: float) -> None:
        """Take back what was not acknowledged, and forget what is over."""
        for grant_id in [gid for gid, given in self.given.items() if given.deadline <= now]:
            self._put_back(self.given.pop(grant_id))
        self._unfit = {key: until for key, until in self._unfit.items() if until > now}
        for thief in self.parking.waiting(now):
            self._owner.core.remember(now, thief)
        for key in [key for key in self._knows_job if self._channels.get(key) is None]:
            del self._knows_job[key]

    def restarted(self, key: bytes) -> None:
        """A peer has begun a new life: it knows no job."""
        self._knows_job.pop(key, None)

    def close(self) -> None:
        for timer in (self._held, self._turn):
            if timer is not None:
                timer.cancel()
        self._held = self._turn = None

    # --- giving -----------------------------------------------------------------------------------

    @property
    def has_something(self) -> bool:
        """Whether any task here could go to a slot or a thief: while there is none, nobody needs to be asked."""
        return (
            self._owner.core.has_ready
            or self._worker.core.can_give(self._host.clock.now())
            or self._owner.core.has_overdue
        )

    def serve(self, now: float) -> None:
        """Give what there is: to our own worker, then to those that wait."""
        if not self.has_something:
            return
        core, worker = self._owner.core, self._worker.core
        if pause_s := self._pacing.pause_s(now, core.pause_s(now), lambda: core.has_ready or worker.can_give(now)):
            self._feed_local(now)
            if self._turn is None:
                self._turn = self._host.clock.call_later(pause_s, self._next_turn)
            return
        waiting = self.parking.waiting(now)
        if self._owner.core.has_preferring:
            waiting = self._serve_preferred(now, waiting)
        if self.policy is not None:
            waiting = self._in_order(self.policy, waiting)
        if len(waiting) > 1 and (jobs := self._owner.with_files()):
            waiting = holders_first(waiting, jobs, self._knows_job)
        self._feed_local(now)
        self._serve(now, waiting)

    def _feed_local(self, now: float) -> None:
        """Our own jobs first; of those that this node coordinates for others as much as of any other's."""
        core = self._worker.core
        if self._take_local(now, only_own=True) and not core.free_slots and self._owner.core.has_ready:
            # What waits here of others would wait for all of our own.
            surrendered = core.surrender(only_foreign=True)
            if surrendered:
                self._scope.spawn(self._hand_back(surrendered), "hand-back")
        if not self._worker.is_full:
            self._take_local(now, only_own=False)

    def _take_local(self, now: float, *, only_own: bool) -> int:
        """Give our own worker what it wants; returns how many grants it took."""
        taken = 0
        while (thief := self._local_thief(only_own=only_own)) is not None:
            grant = self._owner.core.choose(now, thief) or self._owner.core.copy(now, thief)
            if grant is None:
                break
            self._worker.take_local(grant)
            taken += 1
        return taken

    def _local_thief(self, *, only_own: bool) -> Thief | None:
        """Our own worker, as one that asks; None while it wants nothing."""
        core = self._worker.core
        want, slots = core.want(of_others=not only_own), core.slot_count
        if not want:
            return None
        is_idle = bool(core.free_slots) and not core.queued_count
        return Thief(
            LOCAL,
            self._identity.installation,
            self._boot,
            self._python,
            slots,
            want,
            is_idle=is_idle,
            only_own=only_own,
        )

    def _serve_preferred(self, now: float, waiting: list[Thief]) -> list[Thief]:
        """Give tasks of jobs that prefer some nodes; return the thieves that still wait."""
        core, thieves = self._owner.core, list(waiting)
        local = self._local_thief(only_own=self._worker.is_full) or self._local_thief(only_own=True)
        if local is not None:
            thieves.append(local)
        others = [*([LOCAL] if self._worker.core.slot_count else ()), *islice(self._peers, PREFERRED_MAX)]
        served: dict[bytes, None] = {}
        for grant in core.choose_preferred(now, thieves, others):
            if grant.thief == LOCAL:
                self._worker.take_local(grant)
            elif (channel := self._channels.get(grant.thief)) is not None:
                self._send_grant(channel, grant, core.jobs[grant.job_id].envelope, b"", ())
                self.parking.remove(grant.thief)
                served[grant.thief] = None
        if self._held is None and core.is_holding(now):
            self._held = self._host.clock.call_later(PREFER_S, self._end_hold)
        return [thief for thief in waiting if thief.key not in served]

    def _end_hold(self) -> None:
        self._held = None
        self._wake()

    def _serve(self, now: float, waiting: Sequence[Thief]) -> None:
        for thief in waiting:
            if not self.has_something:
                return
            if pause_s := self._owner.core.pause_s(now):
                if self._turn is None:
                    self._turn = self._host.clock.call_later(pause_s, self._next_turn)
                return
            channel = self._channels.get(thief.key)
            if channel is None:
                self.parking.remove(thief.key)
                continue
            grant = self._owner.core.choose(now, thief)
            if grant is None and self._take_back(now, thief):
                grant = self._owner.core.choose(now, thief)
            if grant is None and not self._give_queued(now, channel, thief):
                grant = self._owner.core.copy(now, thief)
                if grant is None:
                    continue
            if grant is not None:
                self._send_grant(channel, grant, self._owner.core.jobs[grant.job_id].envelope, b"", ())
            if self.policy is not None:
                self.policy.selected(self._element(thief))
            self.parking.remove(thief.key)

    def _next_turn(self) -> None:
        self._turn = None
        self._wake()

    def _in_order(self, policy: Policy, waiting: Sequence[Thief]) -> list[Thief]:
        """Return those that wait in the order of a pool policy."""
        thieves = {thief.key: thief for thief in waiting}
        ordered = policy.order([self._element(thief) for thief in waiting], self._rng)
        return [thieves[element.key] for element in ordered]

    def _element(self, thief: Thief) -> Element:
        """Return what a pool policy may know of a thief: its load is what it holds of our tasks."""
        channel = self._channels.get(thief.key)
        return Element(
            thief.key,
            weight=thief.slots,
            priority=thief.slots,
            load=min(1.0, sum(self.leased_to(thief.key)) / thief.slots),
            degradation=1 / thief.slots,
            delay_s=0.0 if channel is None else channel.rtt_s,
            report=thief.request_id,
        )

    def leased_to(self, key: bytes) -> list[int]:
        """Tasks of our jobs that this node holds, per job."""
        return [job.by_thief[key][0] for job in self._owner.core.jobs.values() if key in job.by_thief]

    def slots_of(self, key: bytes) -> int:
        """Slots of a node that holds tasks of ours, as it last said."""
        if key == LOCAL:
            return self._worker.core.slot_count
        known = self._owner.core.thieves.get(key)
        return known[0].slots if known is not None else 1

    # --- what our worker holds --------------------------------------------------------------------

    def _take_back(self, now: float, thief: Thief) -> bool:
        """Take tasks of our jobs back from our own worker, which has not started them, for an idle thief."""
        if not thief.is_idle:
            return False

        def may_give(held: Held) -> bool:
            job = self._owner.core.jobs.get(held.job_id)
            if job is None or held.owner != LOCAL or self._owner.core.is_confined(job) or job.held_until is not None:
                return False
            if job.fit is not None and not job.fit.may_have(thief.key, thief.installation):
                return False
            return job.envelope.terms.python is None or job.envelope.terms.python == thief.python

        held = self._worker.core.give(min(thief.want, GRANT_TASKS_MAX), may_give, now)
        if held:
            self._owner.core.returned(now, LOCAL, held[0].job_id, sorted(one.task.index for one in held))
        return bool(held)

    def _give_queued(self, now: float, channel: Channel, thief: Thief) -> bool:
        """Let an idle thief steal from what this node holds for others and has not started."""
        if not thief.is_idle:
            return False
        is_stranger = self._owner.core.acceptance.level_of(thief.installation) is Level.STRANGER

        def may_give(held: Held) -> bool:
            job = self._worker.jobs.get(held.job_id)
            if job is None or held.owner == LOCAL or held.job_id in self._thief.bound or not held.manifest:
                return False
            if self._unfit.get((held.job_id, thief.key), now) > now:
                return False
            if is_stranger and job.terms.trust != "any":
                return False
            if (fit := self._fit_of(job)) is not None and not fit.may_have(thief.key, thief.installation):
                return False
            return job.terms.python is None or job.terms.python == thief.python

        held = self._worker.core.give(min(thief.want, GRANT_TASKS_MAX), may_give, now)
        while held and (held[-1].manifest != held[0].manifest or sum(one.task.size for one in held) > GRANT_BYTES_MAX):
            self._worker.core.put_back(held.pop())
        if not held:
            return False
        first = held[0]
        if first.owner == thief.key:  # it gets its own tasks back
            indices = [one.task.index for one in held]
            self._scope.spawn(self._worker.hand_back({(first.owner, first.job_id): indices}), "hand-back")
            return True
        grant = Grant(
            self._next_given,
            thief.request_id,
            thief.key,
            first.job_id,
            first.owner,
            LEASE_S_MIN,
            tuple(one.task for one in held),
            self._worker.epochs.get(first.job_id, 0),
            manifest=first.manifest,
        )
        self._next_given += 1
        self.given[grant.grant_id] = _Given(thief.key, held, now + GRANT_ACK_S)
        link = self._worker.link(first.owner)
        self._send_grant(channel, grant, self._worker.jobs[first.job_id], first.owner, link.addresses)
        return True

    def _put_back(self, given: _Given) -> None:
        for held in given.held:
            self._worker.put_back(held)
        self._wake()

    # --- messages ---------------------------------------------------------------------------------

    def _send_grant(
        self, channel: Channel, grant: Grant, job: JobEnvelope, owner: bytes, addresses: Sequence[Address]
    ) -> None:
        known = self._knows_job.setdefault(channel.peer.key, {})
        raw = b"" if grant.job_id in known or len(job.raw) > GRANT_ENVELOPE_BYTES_MAX else job.raw
        if len(known) >= JOBS_KNOWN_MAX:
            known.clear()  # sent again when they are granted again
        known[grant.job_id] = None
        self.counters.grants_given_count += 1
        if not owner and grant.may_pass and (len(grant.tasks) > 1 or not self._is_idle(grant.thief)):
            # One that an idle node is given begins there at once, and is not given on.
            grant = replace(grant, manifest=sign_manifest(self._identity, grant, wall=self._host.clock.wall()))
        channel.send(Message.GRANT, messages.grant_body(grant, raw, owner, addresses or self._own_addresses()))

    def _is_idle(self, key: bytes) -> bool:
        known = self._owner.core.thieves.get(key)
        return known is not None and known[0].is_idle

    def _on_steal(self, channel: Channel, body: Any) -> None:
        peer = channel.peer
        thief = messages.parse_steal(body, peer.key, peer.installation)
        if self.is_benched(peer.key) or not (peer.may_work and self.may_work(peer.installation)):
            return
        if not self.parking.park(self._host.clock.now(), thief):
            self.counters.steals_refused_full_count += 1
            return
        self._owner.core.remember(self._host.clock.now(), thief)
        if self.has_something:
            self._wake()

    def _on_grant_ack(self, channel: Channel, body: Any) -> None:
        grant_id, is_accepted, is_unfit = messages.parse_ack(body)
        now = self._host.clock.now()
        if grant_id >= GIVEN_ID:
            given = self.given.get(grant_id)
            if given is not None and given.thief == channel.peer.key:
                del self.given[grant_id]
                if is_unfit:
                    self._unfit[given.held[0].job_id, given.thief] = now + UNFIT_S
                if not is_accepted:
                    self._put_back(given)
            return
        self._owner.core.acknowledged(now, channel.peer.key, grant_id, is_accepted, is_unfit=is_unfit)
        if not is_accepted:
            self._wake()
