"""Results on their way to their owners.

A result stays here until its owner has acknowledged it: in memory at first, on disk when that takes longer than
OUTBOX_DELAY_S (an owner that is away, a slow link), so that a restart of this node does not lose finished work.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from p2pcompute.errors import (
    ChannelLost,
    LocalProtocolError,
    P2pcError,
    ProtocolError,
    RemoteError,
    StoreError,
)
from p2pcompute.host.interfaces import Address, BlobRef, Host, Write
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import (
    MIB,
    RESULTS_BATCH_BYTES_MAX,
    RESULTS_BATCH_MAX,
    UNACKED_RESULTS_BYTES_MAX,
    UNSENT_BLOBS_CACHE_SHARE,
)
from p2pcompute.scheduler.answers import Answers
from p2pcompute.scheduler.messages import (
    Message,
    decode_outcome,
    encode_outcome,
    outcome_blobs,
    output_digest,
)
from p2pcompute.scheduler.owner_link import Finished, OwnerLink
from p2pcompute.scheduler.worker import WorkerCore
from p2pcompute.store.journal import Journal, OutboxEntry
from p2pcompute.transport.channels import Channel, Channels

RESULTS_TIMEOUT_S = 60.0
"""An owner that has not answered a RESULTS request by then is asked again."""
PACE_LOOK_S = 1.0
"""How often a worker that waits to send results looks whether it still should."""
RECONNECT_S_MIN = 0.5
RECONNECT_S_MAX = 30.0
"""Pause between attempts to reach an owner: doubled up to this, with jitter."""
LOCATE_S = 60.0
"""Between two questions to the group where an owner is that cannot be reached: it may have moved, or be off."""
OUTBOX_KEEP_S = 7 * 86400.0
"""Results whose owner has not been reached for so long are given up."""


@dataclass(slots=True)
class ResultCounters:
    """What became of results that did not simply arrive."""

    given_up_results_count: int = 0
    second_results_count: int = 0
    """Results of leases that had been answered with another one."""
    no_room_results_count: int = 0
    """Results whose files were not kept, because too many wait for their owners already."""
    too_large_results_count: int = 0
    """Results whose files alone are larger than what is kept for others."""
    refused_results_count: int = 0
    """Results messages that their owner answered with an error."""


class ResultSender:
    """Brings results to their owners."""

    __slots__ = (
        "_addresses_of", "_answers", "_channels", "_core", "_host", "_identity", "_journal", "_link_of",
        "_links", "_rng", "_scope", "_seek_coordinators", "_sort_out", "_unsent_blobs", "counters", "deletes",
        "locate", "unsent_blobs_bytes", "unsent_bytes",
    )  # fmt: skip

    def __init__(
        self,
        host: Host,
        identity: Identity,
        channels: Channels,
        journal: Journal | None,
        scope: TaskScope,
        core: WorkerCore,
        links: dict[bytes, OwnerLink],
        counters: ResultCounters,
        *,
        boot: bytes,
        addresses_of: Callable[[bytes], Sequence[Address]],
        link_of: Callable[[bytes, Sequence[Address]], OwnerLink],
        sort_out: Callable[[OwnerLink], None],
        seek_coordinators: Callable[[OwnerLink], None],
    ) -> None:
        """Args:
        journal: None: nothing is kept.
        links: by owner; whoever runs tasks adds to them.
        link_of: returns that of an owner, a new one if need be.
        sort_out: moves results whose job has another coordinator now than the one that they wait for.
        seek_coordinators: looks for other coordinators of what waits for a node that is away.
        """
        self._host = host
        self._identity = identity
        self._channels = channels
        self._journal = journal
        self._scope = scope
        self._core = core
        self._links = links
        self.counters = counters
        self._addresses_of = addresses_of
        self._link_of = link_of
        self._sort_out = sort_out
        self._seek_coordinators = seek_coordinators
        self._rng = host.rng.stream("scheduler.backoff")
        self.locate: Callable[[bytes], Awaitable[Sequence[Address]]] | None = None
        """Asks the group where a node is now: in a large one this node knows few of the others."""
        self._answers = Answers(boot, host.crypto.random_bytes)
        self.unsent_bytes = 0
        """Of encoded results."""
        self.unsent_blobs_bytes = 0
        """Of their files and other blobs, each once."""
        self._unsent_blobs: dict[BlobRef, int] = {}
        """Blob → unsent results that name it."""
        self.deletes: list[Write] = []
        """Results that their owners have and that are still on disk."""

    # --- what waits -------------------------------------------------------------------------------

    def add(self, link: OwnerLink, done: Finished) -> None:
        """Take a result whose blobs are pinned."""
        link.results.append(done)
        self.unsent_bytes += len(done.outcome)
        self._count_blobs(done.blobs)

    @property
    def is_full(self) -> bool:
        """True while so many results wait for absent owners that no new work should be taken."""
        return self.unsent_bytes > UNACKED_RESULTS_BYTES_MAX or self.unsent_blobs_bytes * 2 > self._unsent_blobs_max

    @property
    def _unsent_blobs_max(self) -> int:
        return int(self._host.store.blobs.bytes_max * UNSENT_BLOBS_CACHE_SHARE)

    def with_room(self, outcome: Outcome) -> Outcome:
        """Return an outcome whose blobs can be kept for its owner: without them, and why, when there is no room."""
        blobs = outcome_blobs(outcome)
        size = sum(ref.size for ref in blobs)
        kept_max = self._unsent_blobs_max
        if self.unsent_blobs_bytes + sum(ref.size for ref in blobs if ref not in self._unsent_blobs) <= kept_max:
            return outcome
        self._host.store.blobs.unpin(blobs)
        self._trim(blobs)
        limit = f"this node keeps at most {kept_max / MIB:.4g} MiB of results for others (half of its store.cache)"
        if size > kept_max:
            self.counters.too_large_results_count += 1
            error = f"its output has {size / MIB:.4g} MiB; {limit}"
            return without_output(outcome, OutcomeStatus.FAILED, error, cause="disk")
        self.counters.no_room_results_count += 1
        return without_output(outcome, OutcomeStatus.NOT_RUN, f"no room for its output: {limit}")

    def _trim(self, blobs: Sequence[BlobRef]) -> None:
        """Remove blobs that nobody here needs, when more is stored than the cap allows."""
        if blobs and self._host.store.blobs.is_over:
            self._scope.spawn(self._trim_now(blobs), "trim")

    async def _trim_now(self, blobs: Sequence[BlobRef]) -> None:
        with contextlib.suppress(StoreError):  # tried again by the next eviction
            await self._host.store.blobs.trim(blobs)

    def _count_blobs(self, blobs: Sequence[BlobRef]) -> None:
        for ref in blobs:
            count = self._unsent_blobs.get(ref, 0)
            self._unsent_blobs[ref] = count + 1
            self.unsent_blobs_bytes += 0 if count else ref.size

    def _discount_blobs(self, blobs: Sequence[BlobRef]) -> None:
        for ref in blobs:
            self._unsent_blobs[ref] -= 1
            if not self._unsent_blobs[ref]:
                del self._unsent_blobs[ref]
                self.unsent_blobs_bytes -= ref.size

    # --- on the way -------------------------------------------------------------------------------

    def send(self, link: OwnerLink) -> None:
        """Send what waits for an owner, unless that is under way."""
        if not link.is_sending:
            link.is_sending = True
            self._scope.spawn(self._send(link), "results")

    async def _send(self, link: OwnerLink) -> None:
        """Send until nothing is left: one message at a time, so that they grow when the owner is slow."""
        pause_s = RECONNECT_S_MIN
        try:
            while link.results:
                self._sort_out(link)
                if not link.results:
                    break
                link.nudge.clear()
                await self._keep_pace(link)
                batch = self._next_results(link)
                link.nudge.clear()
                if not batch:
                    await self._pause(link, RECONNECT_S_MIN)
                    continue
                claims = self._sign(link, batch)
                if not batch:
                    continue
                try:
                    await self._deliver(link, batch, claims)
                except (P2pcError, TimeoutError) as error:
                    if self._is_refusal(error):
                        self.counters.refused_results_count += 1
                        if len(batch) > 1:
                            link.alone_count = len(batch)
                            continue
                        await self._refused(link, batch[0], error)
                    await self.keep(link)
                    self._give_up_old(link)
                    self._seek_coordinators(link)
                    pause_s = RECONNECT_S_MIN if await self._pause(link, pause_s) else min(RECONNECT_S_MAX, pause_s * 2)
                    continue
                pause_s = RECONNECT_S_MIN
                link.alone_count = max(0, link.alone_count - 1)
                self._settle(link, batch)
        finally:
            link.is_sending = False

    @staticmethod
    def _is_refusal(error: BaseException) -> TypeGuard[P2pcError]:
        """True when the owner is there and will not take this message as it is."""
        return isinstance(error, RemoteError | LocalProtocolError) and error.code != "busy"

    async def _refused(self, link: OwnerLink, done: Finished, error: P2pcError) -> None:
        """Put a single result that was refused behind the others.

        One that the owner does not understand becomes a failure; one whose files are no longer here was never made.
        """
        link.alone_count = max(0, link.alone_count - 1)
        is_gone = False
        for ref in done.blobs:
            is_gone = is_gone or not await self._host.store.blobs.has(ref)
        if done not in link.results:
            return
        link.results.remove(done)
        if is_gone or error.code == ProtocolError.default_code:
            self.let_go([done])
            if done.is_replaced:
                self.counters.given_up_results_count += 1
                return
            if is_gone:
                outcome = Outcome(OutcomeStatus.NOT_RUN, error="the result's files are no longer on its node")
            else:
                outcome = Outcome(OutcomeStatus.FAILED, error="the task's owner does not understand its result")
            index, generation, attempt = done.claim[:3]
            done.claim = [index, generation, attempt, str(outcome.status), output_digest(outcome)]
            done.outcome, done.blobs, done.is_replaced, done.is_let_go = encode_outcome(outcome), (), True, False
            done.is_on_disk = False  # written anew, under the same key
            self.unsent_bytes += len(done.outcome)
        link.results.append(done)

    async def _keep_pace(self, link: OwnerLink) -> None:
        """Wait for more results to send together, if the owner wants that and there will be some."""
        if not link.pace_s:
            return
        until = link.sent_at + link.pace_s
        while not self._core.is_paused and self._core.holds_of(link.key):
            wait_s = until - self._host.clock.now()
            if wait_s <= 0 or await self._pause(link, min(wait_s, PACE_LOOK_S)):
                break
        link.sent_at = self._host.clock.now()

    async def _pause(self, link: OwnerLink, pause_s: float) -> bool:
        """Wait before the next try; True when the owner was heard of meanwhile."""
        try:
            async with self._host.clock.timeout(pause_s * (0.5 + self._rng.random())):
                await link.nudge.wait()
        except TimeoutError:
            return False
        return True

    def _settle(self, link: OwnerLink, batch: Sequence[Finished]) -> None:
        """The owner has these."""
        sent = {id(done) for done in batch}
        while link.results and id(link.results[0]) in sent:
            sent.discard(id(link.results.popleft()))
        if sent:
            link.results = deque(done for done in link.results if id(done) not in sent)
        self.let_go(batch)
        self.delete(link, batch)

    def delete(self, link: OwnerLink, results: Sequence[Finished]) -> None:
        """Have the next tick take these off the disk."""
        if self._journal is not None:
            self.deletes += [
                self._journal.outbox_delete(link.key, done.job_id, done.claim[0], done.claim[2])
                for done in results
                if done.is_on_disk
            ]

    def let_go(self, batch: Sequence[Finished]) -> None:
        for done in batch:
            if not done.is_let_go:  # else its job was disowned while it was on its way
                done.is_let_go = True
                self.unsent_bytes -= len(done.outcome)
                self._discount_blobs(done.blobs)
                self._host.store.blobs.unpin(done.blobs)
                self._trim(done.blobs)

    def forget_results(self, link: OwnerLink, job_id: bytes) -> None:
        gone = [done for done in link.results if done.job_id == job_id]
        link.results = deque(done for done in link.results if done.job_id != job_id)
        self.delete(link, gone)
        self.let_go(gone)

    def _next_results(self, link: OwnerLink) -> list[Finished]:
        """The oldest results of one job, as many as fit one message.

        Not those of tasks that came from another worker while the owner does not know it: it would not take a failure
        from who does not have the lease.
        """
        moving = {(move.job_id, task.index) for move in link.moves for task in move.tasks}
        size = 0
        batch: list[Finished] = []
        for done in link.results:
            if (batch and done.job_id != batch[0].job_id) or (moving and (done.job_id, done.claim[0]) in moving):
                continue
            size += len(done.outcome)
            if batch and (size > RESULTS_BATCH_BYTES_MAX or len(batch) >= RESULTS_BATCH_MAX or link.alone_count):
                break
            batch.append(done)
        return batch

    def _sign(self, link: OwnerLink, batch: list[Finished]) -> bytes:
        """Return the signed claims of a batch, out of which second results of its leases are taken.

        Two signed results under one lease prove that somebody lies.  An owner that grants a task again as the same
        attempt, though its result is on the way or told, must not make a liar of a node whose task has more than one.
        """
        claims, second = self._answers.sign(self._identity, batch[0].job_id, [done.claim for done in batch])
        for done in [done for done in batch if any(done.claim is claim for claim in second)]:
            self.counters.second_results_count += 1
            batch.remove(done)
            link.results.remove(done)
            self.let_go([done])
            self.delete(link, [done])
        return claims

    async def _deliver(self, link: OwnerLink, batch: Sequence[Finished], claims: bytes) -> None:
        channel = await self.reach(link)
        body = [claims, [done.outcome for done in batch]]
        await channel.request(Message.RESULTS, body, timeout_s=RESULTS_TIMEOUT_S)

    async def reach(self, link: OwnerLink) -> Channel:
        channel = self._channels.get(link.key)
        if channel is not None:
            return channel
        try:
            return await self._channels.connect(link.key, [*link.addresses, *self._addresses_of(link.key)])
        except ChannelLost:
            now = self._host.clock.now()
            if self.locate is None or now < link.located_at + LOCATE_S:
                raise
            link.located_at = now
            found = await self.locate(link.key)
            if not found:
                raise
            channel = await self._channels.connect(link.key, found)
            link.addresses = list(found)
            return channel

    async def keep_all(self) -> None:
        """Write all results to disk that their owners have not taken."""
        for link in list(self._links.values()):
            await self.keep(link)
        await self.forget()

    async def keep(self, link: OwnerLink, waited_s: float = 0.0) -> None:
        """Write results to disk that their owner has not taken within `waited_s`."""
        if self._journal is None:
            return
        since = self._host.clock.now() - waited_s
        unkept = [done for done in link.results if done.born <= since and not done.is_on_disk]
        entries = [
            OutboxEntry(link.key, done.job_id, done.claim[0], done.claim[2], done.claim, done.outcome, link.addresses)
            for done in unkept
        ]
        writes = [self._journal.outbox_write(entry) for entry in entries]
        if not writes:
            return
        for done in unkept:
            done.is_on_disk = True
        deletes, self.deletes = self.deletes, []  # before: the same task may have another result now
        try:
            await self._host.store.commit([*deletes, *writes])
        except StoreError:  # still in memory; written with the next attempt
            self.deletes = deletes + self.deletes
            for done in unkept:
                done.is_on_disk = False

    async def forget(self) -> None:
        """Take results off the disk that their owners have.  What is not deleted when this node dies is sent again."""
        writes, self.deletes = self.deletes, []
        if writes:
            try:
                await self._host.store.commit(writes)
            except StoreError:
                self.deletes = writes + self.deletes

    def _give_up_old(self, link: OwnerLink) -> None:
        limit = self._host.clock.now() - OUTBOX_KEEP_S
        old = [done for done in link.results if done.born < limit]
        if old:
            self.counters.given_up_results_count += len(old)
            self._settle(link, old)

    async def recover(self) -> int:
        """Take up results of an earlier life that their owners do not have; returns how many."""
        if self._journal is None:
            return 0
        count = 0
        async for entry in self._journal.outbox():
            blobs = outcome_blobs(decode_outcome(entry.outcome))
            self._host.store.blobs.pin(blobs)
            born = self._host.clock.now()
            done = Finished(entry.job_id, entry.claim, entry.outcome, born, blobs, is_on_disk=True)
            self.add(self._link_of(entry.owner, entry.addresses), done)
            count += 1
        return count

    def resume(self) -> None:
        """Send what waits to every owner that is not being sent to."""
        for link in self._links.values():
            if link.results:
                self.send(link)


def without_output(outcome: Outcome, status: OutcomeStatus, error: str, *, cause: str = "") -> Outcome:
    """Return the end of a task whose output is not kept; what it has used stays known, and counts."""
    return Outcome(
        status,
        error=error,
        cause=cause,
        started_wall=outcome.started_wall,
        runtime_s=outcome.runtime_s,
        cpu_s=outcome.cpu_s,
        peak_rss_bytes=outcome.peak_rss_bytes,
    )
