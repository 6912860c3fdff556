"""How a node comes by the work of others: whom it asks, and which of what it is given it takes.

A node with nothing to do asks its hot victims and parks at others, up to VICTIMS_MAX (VICTIMS_LARGE_MAX in a large
group); workers give it what they have not started.  One that is busy and wants the next batch in advance asks only
owners that gave lately: if it could take from other workers too, the same tasks would wander between busy nodes.

Whatever an owner believes, a node takes only tasks that may run on it: their submitter may submit, and it fits.

Two idle nodes that have just heard of each other would both dial, and have two channels where one is enough: the one
with the larger key lets the other one go first for DIAL_COURTESY_S.  Who has work for a peer dials at once.

The victim's side, which decides what is given to whom, is `victim_service` and `owner`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2pcompute.errors import P2pcError, RemoteProtocolError
from p2pcompute.host.interfaces import Address, Host, Timer
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import DHT_K, DIAL_COURTESY_S, GRANT_ACK_S, PARK_S, VICTIMS_LARGE_MAX, VICTIMS_MAX
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.books import Grant
from p2pcompute.scheduler.manifests import check_manifest
from p2pcompute.scheduler.messages import Message
from p2pcompute.scheduler.stealing import Fit, Thief
from p2pcompute.scheduler.terms import STALE, JobEnvelope, open_job
from p2pcompute.scheduler.worker_service import WorkerService
from p2pcompute.transport.channels import Channel, Channels

if TYPE_CHECKING:
    import random

SETTLE_S = 0.02
"""A node that has become idle or busy tells those whom it has asked when it stays so: tiny tasks that come one by one
would make it say so twice each."""
HOT_S = 10.0
"""A victim that gave or offered work, or of which a task ended here, so recently is asked before others."""
ASK_NEXT_S = 0.1
"""How long the victims of the submitter that has had least have to answer before those of others are asked."""
JOB_S = 10.0
"""Wait for the envelope of a job."""


@dataclass(slots=True)
class ThiefCounters:
    """What became of grants."""

    grants_taken_count: int = 0
    grants_declined_count: int = 0
    grants_unproven_count: int = 0
    """Those of them that came from another node than the coordinator, without its word for the tasks."""
    jobs_not_got_count: int = 0
    """Grants that were handed back because the envelope of their job did not come."""


class ThiefService:
    """The thief of one node."""

    def __init__(
        self,
        host: Host,
        own_key: bytes,
        channels: Channels,
        worker: WorkerService,
        scope: TaskScope,
        rng: random.Random,
        *,
        boot: bytes,
        python: tuple[int, int],
        peers: Mapping[bytes, Sequence[Address]],
        accepts_others: bool,
        fit_of: Callable[[JobEnvelope], Fit | None],
        may_submit: Callable[[JobEnvelope], bool | None],
        introduce: Callable[[Channel, bytes], Awaitable[None]],
        wake: Callable[[], None],
        pump_now: Callable[[], None],
    ) -> None:
        """Args: see `Scheduler`, of which this is a part."""
        self._host = host
        self._own_key = own_key
        self._channels = channels
        self._worker = worker
        self._scope = scope
        self._rng = rng
        self._boot = boot
        self._python = python
        self._peers = peers
        self._accepts_others = accepts_others
        self._fit_of = fit_of
        self._may_submit = may_submit
        self._introduce = introduce
        self._wake = wake
        self._pump_now = pump_now
        self.counters = ThiefCounters()
        self.bound: dict[bytes, None] = {}
        """Jobs of others of which this node lets nobody steal tasks, because their owners said so."""
        self.asked: dict[bytes, tuple[float, bool]] = {}
        """Victim → when our present request was sent there, and whether it says that we are idle."""
        self._hot: dict[bytes, float] = {}
        self._ask_next_at = 0.0
        """Hot victims of further submitters are not asked before this."""
        self._was_idle = False
        self._settling: Timer | None = None
        self._request_id = 0
        self._opening: dict[bytes, None] = {}
        self._courtesy: dict[bytes, float] = {}
        """Peers with a smaller key without a channel, and since when we know them: it is their turn to dial."""
        self._is_closed = False
        channels.on_message(Message.OFFER, self._on_offer)
        channels.on_message(Message.GRANT, self._on_grant)
        channels.on_message(Message.STOP, self._on_stop)

    @property
    def is_busy(self) -> bool:
        """Whether something is remembered that time ends."""
        return bool(self._hot or self._courtesy)

    def forget_old(self, now: float) -> None:
        """Drop what is remembered of peers that are no longer there."""
        self._hot = {key: at for key, at in self._hot.items() if now - at < HOT_S}
        self.bound = {job_id: None for job_id in self.bound if job_id in self._worker.jobs}
        self._courtesy = {key: since for key, since in self._courtesy.items() if now - since < DIAL_COURTESY_S}
        self.asked = {key: asked for key, asked in self.asked.items() if now - asked[0] < PARK_S / 2}

    def close(self) -> None:
        self._is_closed = True
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    # --- peers ------------------------------------------------------------------------------------

    def is_first_to_dial(self, key: bytes) -> bool:
        """Whether a peer that has just become known, with no work for us, is ours to dial; else it has a while."""
        if key < self._own_key and self._channels.get(key) is None:
            self._courtesy.setdefault(key, self._host.clock.now())
            return False
        return True

    def peer_gone(self, key: bytes) -> None:
        self._courtesy.pop(key, None)

    def peer_leaves(self, key: bytes) -> None:
        """A peer has said that it goes: it gives nothing any more."""
        self._hot.pop(key, None)

    def channel_opened(self, key: bytes) -> None:
        self._courtesy.pop(key, None)
        self._opening.pop(key, None)

    def channel_lost(self, key: bytes) -> None:
        self.asked.pop(key, None)

    # --- asking -----------------------------------------------------------------------------------

    def ask_anew(self) -> None:
        """What this node takes has changed: requests that it would decline are taken back, others are made again."""
        if not self._worker.core.want(of_others=True):
            for key in self.asked:
                channel = self._channels.get(key)
                if channel is not None:
                    channel.send(Message.UNPARK, [])
        self.asked.clear()  # those who know less of us are asked again

    def seek_work(self, now: float) -> None:
        """Ask others when the slots are not fed."""
        core = self._worker.core
        is_idle = self._is_idle()
        if is_idle != self._was_idle:
            self._was_idle = is_idle
            if self._settling is None:
                self._settling = self._host.clock.call_later(SETTLE_S, self._settle)
        is_parked = not is_idle or len(self.asked) + len(self._opening) >= VICTIMS_MAX
        if is_parked and not self._hot:
            return
        want = core.want(of_others=True) if self._accepts_others and not self._worker.is_full else 0
        if not want:
            return
        self._ask_hot(now, want)
        if not is_parked:
            self._park(now, want)

    def _ask_hot(self, now: float, want: int) -> None:
        """Ask victims that should have something, first those of the submitter that has had least of this node.

        The others are asked when these have not answered: whoever is nearest would else be first every time.
        """
        if now < self._ask_next_at:
            return
        order = self._worker.core.order
        ready = [
            (order.had_s(channel.peer.installation), channel)
            for key, at in self._hot.items()
            if now - at < HOT_S and key not in self.asked and (channel := self._channels.get(key)) is not None
        ]
        if not ready:
            return
        least = min(had_s for had_s, _channel in ready)
        first = next(channel.peer.installation for had_s, channel in ready if had_s == least)
        chosen = [channel for _had_s, channel in ready if channel.peer.installation == first]
        for channel in chosen:
            self._ask(now, channel.peer.key, want)
        if len(chosen) < len(ready):
            self._ask_next_at = now + ASK_NEXT_S
            self._host.clock.call_later(ASK_NEXT_S, self._wake)

    def note_hot(self, owner: bytes) -> None:
        """A task of this owner ended here: it may have more."""
        self._hot[owner] = self._host.clock.now()

    def _is_idle(self) -> bool:
        """Whether a slot is free and nothing here is for it."""
        return bool(self._worker.core.free_slots) and not self._worker.core.queued_count

    def _settle(self) -> None:
        """Correct what those believe who were asked when this node was idle and is not now, or the other way round:
        requests of an idle node are taken back, but owners that gave lately keep theirs."""
        self._settling = None
        is_idle = self._is_idle()
        for key in [key for key, (_at, said_idle) in self.asked.items() if said_idle is not is_idle]:
            del self.asked[key]
            channel = self._channels.get(key)
            if not is_idle and channel is not None and key not in self._hot:
                channel.send(Message.UNPARK, [])
        self._wake()

    def _park(self, now: float, want: int) -> None:
        """Ask more victims, as many as there is room for."""
        room = VICTIMS_MAX if len(self._peers) <= DHT_K else VICTIMS_LARGE_MAX
        room -= len(self.asked) + len(self._opening)
        if room <= 0:
            return
        passed = self.asked.keys() | self._opening.keys() | self._courtesy.keys()
        others = [key for key in self._peers if key not in passed]
        if not others:
            return
        # Where a channel is open already first: what is parked there costs nothing.
        near = [key for key in others if self._channels.get(key) is not None]
        if near:
            for key in near if len(near) <= room else self._rng.sample(near, room):
                self._ask(now, key, want)
                room -= 1
        if room > 0 and len(near) < len(others):
            cold = [key for key in others if key not in self.asked]
            for key in cold if len(cold) <= room else self._rng.sample(cold, room):
                self.open_channel(key)

    def _ask(self, now: float, key: bytes, want: int) -> None:
        if key in self.asked:
            return
        channel = self._channels.get(key)
        if channel is None:
            return
        self._request_id += 1
        self.asked[key] = now, self._was_idle
        core = self._worker.core
        thief = Thief(
            b"", b"", self._boot, self._python, core.slot_count, want, self._request_id, is_idle=self._was_idle
        )
        channel.send(Message.STEAL, messages.steal_body(thief))

    def open_channel(self, key: bytes) -> None:
        """Open a channel to a peer in the background; `channel_opened` wakes the pump when it is there."""
        if key in self._opening or key not in self._peers:
            return
        self._opening[key] = None
        dial = self._channels.dial(key, self._peers.get(key, ()))
        # When it fails, the next tick tries another peer, or this one again.
        dial.add_done_callback(lambda _: self._opening.pop(key, None))

    # --- being given ------------------------------------------------------------------------------

    def _on_offer(self, channel: Channel, _body: Any) -> None:
        self._hot[channel.peer.key] = self._host.clock.now()
        self.asked.pop(channel.peer.key, None)
        self._wake()

    def _on_grant(self, channel: Channel, body: Any) -> None:
        grant, raw, addresses = messages.parse_grant(body, channel.peer.key)
        now = self._host.clock.now()
        self.asked.pop(channel.peer.key, None)
        self._ask_next_at = 0.0
        if grant.owner == channel.peer.key:
            self._hot[channel.peer.key] = now
        core = self._worker.core
        wanted = self._accepts_others and not self._worker.is_full and not self._is_closed
        wanted = wanted and core.want(of_others=True) > 0
        wanted = wanted and grant.owner != self._own_key  # our own tasks come back in another way
        job, is_unfit = self._worker.jobs.get(grant.job_id), False
        try:
            if job is None and raw:
                job = open_job(self._host.crypto, raw, wall=self._host.clock.wall(), is_new=True)
                if job.job_id != grant.job_id:
                    raise RemoteProtocolError("a grant with the envelope of another job")
            if job is not None:
                is_unfit = self._may_submit(job) is False or (wanted and not self._is_proven(channel, grant, job))
                wanted = wanted and not is_unfit and self._is_current(channel, grant, job)
        except RemoteProtocolError as error:
            channel.send(
                Message.GRANT_ACK, [grant.grant_id, False, True] if error.code == STALE else [grant.grant_id, False]
            )
            raise
        if not wanted:
            self.counters.grants_declined_count += 1
            channel.send(Message.GRANT_ACK, [grant.grant_id, False, True] if is_unfit else [grant.grant_id, False])
            return
        if job is None:
            channel.send(Message.GRANT_ACK, [grant.grant_id, True])
            self._scope.spawn(self._take_unknown(channel, grant, addresses), "job")
            return
        fit = self._fit_of(job)
        if self._may_submit(job) is None or (fit is not None and fit.known_here() is not True):
            self._scope.spawn(self._take_if_fit(channel, grant, job, addresses), "fit")
            return
        channel.send(Message.GRANT_ACK, [grant.grant_id, True])
        self._take(channel, grant, job, addresses)
        self._pump_now()  # the task starts before the acknowledgement leaves

    def _is_proven(self, channel: Channel, grant: Grant, job: JobEnvelope) -> bool:
        """Whether it is shown that the coordinator which a grant names has given these tasks out."""
        if grant.owner == channel.peer.key:
            return True
        try:
            epoch = check_manifest(self._host.crypto, grant.manifest, job, grant.tasks, wall=self._host.clock.wall())
        except RemoteProtocolError:
            epoch = -1  # who passes it on may have been deceived itself
        known = self._worker.epochs.get(grant.job_id, 0)
        if epoch >= 0 and grant.epoch <= max(epoch, known):  # nor does a worker's word lead to another coordinator
            return True
        self.counters.grants_unproven_count += 1
        return False

    def _is_current(self, channel: Channel, grant: Grant, job: JobEnvelope) -> bool:
        """Whether tasks may be taken for the coordinator that a grant names; one that is out of date is told so.

        Raises:
            RemoteProtocolError: it does not coordinate the job.
        """
        if grant.owner not in job.coordinators:
            raise RemoteProtocolError("a grant of a node that does not coordinate the job")
        known = self._worker.epochs.get(grant.job_id, 0)
        if grant.epoch < known:
            channel.send(Message.COORDINATOR, [grant.job_id, known])
            return False
        if grant.epoch > known:
            self._worker.redirect(job, grant.epoch)
        return True

    async def _take_if_fit(self, channel: Channel, grant: Grant, job: JobEnvelope, addresses: list[Address]) -> None:
        """Look whether this node fits the job.  When that takes too long the tasks are the victim's again; the next
        grant finds an answer."""
        began = self._host.clock.now()
        fits = await self._may_run(channel, job)
        is_late = self._host.clock.now() - began > GRANT_ACK_S / 2
        wanted = self._worker.core.want(of_others=True) > 0 and not self._worker.is_full and not self._is_closed
        if fits and wanted and not is_late:
            channel.send(Message.GRANT_ACK, [grant.grant_id, True])
            self._take(channel, grant, job, addresses)
            return
        self.counters.grants_declined_count += 1
        self._worker.jobs[job.job_id] = job  # the victim thinks that it is known here, and grants without it
        self._worker.forget_old()
        channel.send(Message.GRANT_ACK, [grant.grant_id, False] if fits else [grant.grant_id, False, True])
        self._wake()

    async def _may_run(self, channel: Channel, job: JobEnvelope) -> bool:
        """Whether a job may run here at all: its submitter may submit, and this node fits."""
        if self._may_submit(job) is None:
            await self._introduce(channel, job.submitter)
        fit = self._fit_of(job)  # of a submitter that is known by now: it may be a stranger
        return self._may_submit(job) is True and (fit is None or await fit.fits_here())

    async def _take_unknown(self, channel: Channel, grant: Grant, addresses: list[Address]) -> None:
        """Ask for the envelope of a job that is large or that we were thought to have; without it the tasks go back."""
        job = self._worker.jobs.get(grant.job_id)
        try:
            if job is None:
                job = await self._ask_job(channel, grant.job_id)
        except P2pcError:
            self.counters.jobs_not_got_count += 1
            if grant.owner == channel.peer.key:
                indices = [task.index for task in grant.tasks]
                await self._worker.hand_back({(grant.owner, grant.job_id): indices})
            return
        self._worker.jobs[job.job_id] = job
        self._worker.forget_old()
        if not self._is_proven(channel, grant, job) or not await self._may_run(channel, job):
            await self._hand_back_unfit(channel, grant)
            return
        if self._is_current(channel, grant, job):
            self._take(channel, grant, job, addresses)

    async def _hand_back_unfit(self, channel: Channel, grant: Grant) -> None:
        """Give tasks back that were accepted before their job was known."""
        self.counters.grants_declined_count += 1
        if grant.owner == channel.peer.key:
            indices = [task.index for task in grant.tasks]
            await self._worker.hand_back({(grant.owner, grant.job_id): indices})

    async def _ask_job(self, channel: Channel, job_id: bytes) -> JobEnvelope:
        answer = await channel.request(Message.JOB, [job_id], timeout_s=JOB_S)
        job = open_job(self._host.crypto, messages.parse_job(answer), wall=self._host.clock.wall(), is_new=True)
        if job.job_id != job_id:
            raise RemoteProtocolError("the envelope of another job")
        return job

    def _take(self, channel: Channel, grant: Grant, job: JobEnvelope, addresses: list[Address]) -> None:
        self.counters.grants_taken_count += 1
        if not grant.may_pass:
            self.bound[grant.job_id] = None
        from_owner = grant.owner == channel.peer.key
        known = [channel.address, *addresses] if from_owner and channel.is_dialler else addresses
        self._worker.take(
            grant, job, known or self._peers.get(grant.owner, []), moved_from=b"" if from_owner else channel.peer.key
        )
        self._wake()

    def _on_stop(self, channel: Channel, body: Any) -> None:
        job_id, indices, kill = messages.parse_stop(body)
        returned = self._worker.stop(channel.peer.key, job_id, indices, kill=kill)
        if returned and not kill:
            self._scope.spawn(self._worker.hand_back({(channel.peer.key, job_id): returned}), "hand-back")
        self._wake()
