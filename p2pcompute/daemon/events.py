"""Server-sent events of a job: task ends in their lasting order, coalesced progress, the end; and of triggers.

A follower has a position (`seq`).  Near the front it is served from a backlog in memory that all followers of the job
share; further behind, from the store, in pages.  So a slow reader costs no memory and loses nothing, and a follower may
resume at any position, also after the node's restart.

Source: the event stream format of the HTML standard, section 9.2.  Lines end in LF and data is one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from p2pcompute.daemon.sink import ResultsSink
from p2pcompute.daemon.views import (
    decode_note,
    error_json,
    found_json,
    job_json,
    progress_json,
    task_event_json,
    unheard_json,
)
from p2pcompute.errors import P2pcError, StoreError
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    EVENT_BACKLOG_BYTES_MAX,
    EVENT_BACKLOG_MAX,
    EVENT_KEEPALIVE_S,
    EVENT_PAGE_BYTES_MAX,
    EVENT_PAGE_MAX,
    PROGRESS_S_MIN,
    UNCOMMITTED_S,
)
from p2pcompute.node.facade import JobView, NodeFacade, TaskDone
from p2pcompute.resources.expressions import Expression, names_of_some
from p2pcompute.resources.questions import Query

LOOK_S_MIN: Final = 1.0
"""However short the time is that somebody waits: this node, and who answers at once, are asked."""
NAMES_S: Final = 1.0
"""How long nodes are asked whether they have an attribute that not every node has."""

_encode = msgspec.json.Encoder().encode


def format_event(name: str, data: Any, seq: int | None = None) -> bytes:
    """Return one event; `seq` becomes its id."""
    head = f"event: {name}\n" if seq is None else f"event: {name}\nid: {seq}\n"
    return b"%sdata: %s\n\n" % (head.encode(), _encode(data))


class Backlog:
    """The latest task ends of one job, encoded.

    Invariant: the entries have consecutive numbers, ending at `last_seq`; at most EVENT_BACKLOG_MAX of them and, but
    for the last one, EVENT_BACKLOG_BYTES_MAX bytes.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: deque[bytes] = deque()
        self._bytes = 0
        self.last_seq = 0
        self.changed = asyncio.Event()
        """Set once at the next change, and replaced: take it before reading."""
        self.followers = 0
        self.stop_watching: Callable[[], None] = lambda: None

    @property
    def first_seq(self) -> int:
        return self.last_seq - len(self._entries) + 1

    def add(self, ends: Sequence[TaskDone]) -> None:
        """Take task ends; wakes the followers, also when there are none."""
        for end in ends:
            if end.seq != self.last_seq + 1 and self._entries:
                self._entries.clear()
                self._bytes = 0
            entry = format_event("task", task_event_json(end, self.kind), end.seq)
            self._entries.append(entry)
            self._bytes += len(entry)
            self.last_seq = end.seq
            while len(self._entries) > EVENT_BACKLOG_MAX or (
                self._bytes > EVENT_BACKLOG_BYTES_MAX and len(self._entries) > 1
            ):
                self._bytes -= len(self._entries.popleft())
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def read(self, after: int) -> tuple[bytes, int] | None:
        """Return (events after that number, number of the last of them); None when they are not all here."""
        if after >= self.last_seq or after + 1 < self.first_seq:
            return None
        chunk: list[bytes] = []
        size = 0
        start = after + 1 - self.first_seq
        for entry in islice(self._entries, start, start + EVENT_PAGE_MAX):
            chunk.append(entry)
            size += len(entry)
            if size >= EVENT_PAGE_BYTES_MAX:
                break
        return b"".join(chunk), after + len(chunk)


class JobEvents:
    """Gives every follower of every job its stream."""

    def __init__(self, node: NodeFacade, sink: ResultsSink) -> None:
        self._node = node
        self._sink = sink
        self._backlogs: dict[bytes, Backlog] = {}
        self._is_closing = False

    def close(self) -> None:
        """End all streams after what they are writing now."""
        self._is_closing = True
        for backlog in self._backlogs.values():
            backlog.wake()

    @property
    def follower_count(self) -> int:
        return sum(backlog.followers for backlog in self._backlogs.values())

    def _join(self, job: JobView) -> Backlog:
        backlog = self._backlogs.get(job.job_id)
        if backlog is None:
            backlog = self._backlogs[job.job_id] = Backlog(decode_note(job.note).kind)
            backlog.stop_watching = self._node.watch(job.job_id, backlog.add)
        backlog.followers += 1
        return backlog

    def _part(self, job_id: bytes, backlog: Backlog) -> None:
        backlog.followers -= 1
        if backlog.followers == 0:
            backlog.stop_watching()
            del self._backlogs[job_id]

    async def _from_store(self, job: JobView, after: int, kind: str) -> tuple[bytes, int]:
        ends = await self._node.finished(job.job_id, after=after, limit=EVENT_PAGE_MAX)
        chunk = [format_event("task", task_event_json(end, kind), end.seq) for end in ends]
        return b"".join(chunk), ends[-1].seq if ends else after

    async def follow(self, job: JobView, after: int) -> AsyncIterator[bytes]:
        """Yield the events of a job after position `after` until the job is over and all are sent, or the node stops.

        A position beyond the job's last one comes from another life of this job: `resync` tells the follower to forget
        its position, and everything is sent from the start.
        """
        clock, ref = self._node.clock, job.job_id.hex()
        backlog = self._join(job)
        try:
            if after > job.last_seq:
                after = 0
                yield format_event("resync", {"after": 0})
            shown: dict[str, Any] | None = None
            progress_at, quiet_since = 0.0, clock.now()
            while not self._is_closing:
                changed = backlog.changed
                try:
                    job = self._node.job(ref)
                except P2pcError as error:
                    yield format_event("error", error_json(error))
                    return
                if clock.now() >= progress_at or job.is_over:
                    progress = progress_json(job)
                    if progress != shown:
                        shown, progress_at, quiet_since = progress, clock.now() + PROGRESS_S_MIN, clock.now()
                        yield format_event("progress", progress)
                if after < job.last_seq:
                    try:
                        chunk, last = backlog.read(after) or await self._from_store(job, after, backlog.kind)
                    except StoreError:
                        return  # the node is closing, or its disk fails: the follower comes back to its position
                    if last > after:
                        after, quiet_since = last, clock.now()
                        yield chunk
                        continue
                elif job.is_over:
                    if not await self._sink.settled(job.job_id, PROGRESS_S_MIN):
                        continue
                    yield format_event("end", self._sink.describe(job_json(job)))
                    return
                if clock.now() - quiet_since >= EVENT_KEEPALIVE_S:
                    quiet_since = clock.now()
                    yield b":\n\n"
                await self._wait(changed, UNCOMMITTED_S if after < job.last_seq else PROGRESS_S_MIN)
        finally:
            self._part(job.job_id, backlog)

    async def _wait(self, changed: asyncio.Event, limit_s: float) -> None:
        try:
            async with self._node.clock.timeout(limit_s):
                await changed.wait()
        except TimeoutError:
            return


class Triggers:
    """Streams that end with the node for which their follower waits."""

    def __init__(self, node: NodeFacade) -> None:
        self._node = node
        self._changed: dict[asyncio.Event, None] = {}
        self._is_closing = False

    def close(self) -> None:
        """End all streams."""
        self._is_closing = True
        for changed in self._changed:
            changed.set()

    @property
    def follower_count(self) -> int:
        return len(self._changed)

    async def follow(self, expression: Expression, limit_s: float | None) -> AsyncIterator[bytes]:
        """Yield `found` once it is true of a node, `timeout` after `limit_s`, neither when this node stops; before it
        `unheard` when no node has an attribute that it names."""
        clock = self._node.clock
        until = math.inf if limit_s is None else clock.now() + max(limit_s, LOOK_S_MIN)
        changed = asyncio.Event()
        self._changed[changed] = None
        scope = TaskScope("when")
        try:
            watching = scope.spawn(self._node.when(expression), "watch")
            watching.add_done_callback(lambda _: changed.set())
            yield b":\n\n"  # the follower learns that it was understood
            if names_of_some(expression.names):
                query = Query(expression=expression, answers_max=1, time_s=min(NAMES_S, until - clock.now()))
                unheard = unheard_json(query, await self._node.find(query))
                if unheard:
                    yield format_event("unheard", {"items": unheard})
            while not self._is_closing and not watching.done() and clock.now() < until:
                with contextlib.suppress(TimeoutError):
                    async with clock.timeout(min(EVENT_KEEPALIVE_S, until - clock.now())):
                        await changed.wait()
                        continue
                yield b":\n\n"
            if watching.done():
                peers = {peer.public_key: peer for peer in self._node.peers()}
                found = found_json(watching.result(), peers, clock.wall())
                yield format_event("found", {**found, "names": list(expression.names)})
            elif not self._is_closing:
                yield format_event("timeout", {})
        finally:
            del self._changed[changed]
            await scope.close()
