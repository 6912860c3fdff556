"""Calls that this machine's node keeps: `MeshExecutor(detach=True)`.

They are handed in over the node's control socket, as `p2pc run --detach` does it, and go on when the program has ended.
While it lives its futures follow them (`feed`).

Invariant: what `flush` has returned for is durable at the node, or its futures have failed.
"""

from __future__ import annotations

import base64
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

from p2pcompute.api.control import ask
from p2pcompute.api.explanations import Explanation
from p2pcompute.api.failures import closed
from p2pcompute.api.feed import Feed, KeptFuture
from p2pcompute.api.functions import Shipment
from p2pcompute.api.futures import MeshFuture
from p2pcompute.api.job_status import JobStatus, Progress, status_of
from p2pcompute.api.jobs import Job
from p2pcompute.api.noted import Prepared
from p2pcompute.api.presence import AWAY_S, Presence
from p2pcompute.api.result_folder import Earlier, earlier_calls, numbers_of
from p2pcompute.api.result_target import ResultsTarget
from p2pcompute.errors import NodeUnavailable, P2pcError, UsageError

if TYPE_CHECKING:
    from p2pcompute.api.desk import Desk

R = TypeVar("R")

LEAVE_S: Final = 10.0
"""Who interrupts a program waits no longer for a node that does not answer."""
FEEDS_MAX: Final = 64
"""Functions whose jobs are open for further calls; the job that was begun first is closed for another."""


class KeptCalls:
    """All that an executor with `detach=True` hands in."""

    def __init__(self, path: Path, target: ResultsTarget | None, away_s: float = AWAY_S) -> None:
        """Args:
            path: of the node's control socket.
            target: where the node writes results.
            away_s: how long a node that does not answer is waited for.

        Raises:
            NodeUnavailable: no node runs here.
        """
        ask(path, "GET", "/v1/version")
        self._path = path
        self._presence = Presence(away_s)
        self._target = target
        is_resumed = target is not None and target.resume
        self._earlier: dict[bytes, Earlier] = earlier_calls(target) if target is not None and is_resumed else {}
        self._numbers = numbers_of(target) if target is not None and is_resumed else {}
        self._feeds: dict[bytes, Feed] = {}
        """Of single calls, by what is sent for their functions."""
        self._all: list[Feed] = []
        """Feeds that may not have handed in everything."""
        self._living: WeakSet[Feed] = WeakSet()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        # Before the threads of `concurrent.futures` are told to end, as its own executors do it.
        threading._register_atexit(self._end)  # type: ignore[attr-defined]  # it has no public name

    def find(self, key: bytes) -> Earlier | None:
        """Return what an earlier program has had done under this key."""
        return self._earlier.get(key) if key else None

    def feed(self, shipment: Shipment) -> Feed:
        """Return a new job."""
        feed = Feed(self._path, shipment, self._target, self._numbers, self._presence)
        with self._lock:
            self._all = [other for other in self._all if not other.handed_in.is_set() or other.error is not None]
            self._all.append(feed)
            self._living.add(feed)
        return feed

    def send(self, future: KeptFuture[Any], target: Shipment | Feed, call: Prepared) -> None:
        """Hand a call in.

        Raises:
            RuntimeError: the interpreter ends.
            UsageError: it waits for others, or shares an object.
        """
        if call.parts:
            raise UsageError(
                "a call that is detached cannot wait for others",
                "its node takes arguments that are there, and this program may end before they are",
                "give it values: future.result()",
            )
        line: dict[str, Any] = {
            "argv": [call.note.name],
            "inputs": list(call.note.inputs),
            "args_b64": base64.b64encode(call.data).decode(),
            "send": [{"path": os.path.abspath(file.path), "name": file.name} for file in call.files],
            "fetch": list(call.fetch),
            "key": call.note.key.hex(),
        }
        size = len(line["args_b64"])
        if isinstance(target, Feed):
            if not target.put(future, line, size):
                raise closed()
            return
        while not self._open_feed(target).put(future, line, size):
            pass  # another thread has just sealed it

    def _open_feed(self, shipment: Shipment) -> Feed:
        with self._lock:
            known = self._feeds.get(shipment.key)
        if known is not None:
            return known
        made = self.feed(shipment)
        with self._lock:
            if len(self._feeds) >= FEEDS_MAX:
                self._feeds.pop(next(iter(self._feeds))).seal()
            return self._feeds.setdefault(shipment.key, made)

    def flush(self, *, cancel: bool = False, limit_s: float | None = None) -> None:
        """Seal all jobs, and wait until everything is at the node.

        Args:
            cancel: what has not started then is cancelled.
            limit_s: it is waited for so long at most.

        Raises:
            P2pcError: something could not be handed in.
        """
        with self._lock:
            feeds, self._all = self._all, []
            self._feeds.clear()
        for feed in feeds:
            feed.seal()
        end = None if limit_s is None else time.monotonic() + limit_s
        try:
            for feed in feeds:
                if not feed.handed_in.wait(None if end is None else max(0.0, end - time.monotonic())):
                    raise NodeUnavailable(
                        "this machine's node does not answer", "", "p2pc node start, and run it again"
                    )
        except KeyboardInterrupt:
            print("p2pcompute: interrupted before everything was handed in", file=sys.stderr)
            self._say_what_goes_on()
            raise
        for feed in list(self._living) if cancel else ():
            feed.cancel()
        for feed in feeds:
            if feed.error is not None:
                raise feed.error

    def leave(self) -> None:
        """The program is interrupted: hand in what there is, within LEAVE_S, and say what goes on."""
        if self._end(LEAVE_S):
            self._say_what_goes_on()

    def _say_what_goes_on(self) -> None:
        for feed in list(self._living):
            if feed.is_open:
                alias = feed.document["alias"]
                print(
                    f"p2pcompute: job {alias} goes on at this machine's node: "
                    f"p2pc attach {alias} shows it, p2pc cancel {alias} ends it",
                    file=sys.stderr,
                )

    def _end(self, limit_s: float | None = None) -> bool:
        """The interpreter ends; that of a forked child has no threads that hand in.  False: it was interrupted."""
        if self._pid != os.getpid():
            return True
        try:
            self.flush(limit_s=limit_s)
        except KeyboardInterrupt:
            return False
        except P2pcError as error:
            print(f"p2pcompute: not everything was handed in: {error}", file=sys.stderr)
        return True


class DetachedJob(Job[R]):
    """A job that this machine's node keeps: it goes on when this program has ended (`get_job`)."""

    def __init__(self, desk: Desk, shipment: Shipment, name: str, feed: Feed, progress: Progress) -> None:
        super().__init__(desk, shipment, name, progress=progress)
        self.feed = feed
        self._known: JobStatus | None = None
        """What the node said last."""

    @property
    def id(self) -> str:
        """The job's id in hexadecimal; waits until the node has it.  Empty: everything was done before."""
        try:
            return self.feed.kept().id
        except UsageError as error:
            if error.code == "no-job":
                return ""
            raise

    def seal(self) -> None:
        """No more tasks come; for the executor."""
        self.feed.seal()

    @property
    def status(self) -> JobStatus:
        """Counts of the moment, as the node has them; calls that were done before are among them.

        While the node does not answer: the last that it has said, with a note.
        """
        resumed = sum(1 for future in self._futures if getattr(future, "feed", None) is None)
        total = len(self._futures)
        if not self.feed.is_known:
            note = self.feed.presence.note()
            return JobStatus(name=self.name, total=total, done=resumed, waiting=total - resumed, note=note)
        try:
            status = self.feed.kept().status
        except NodeUnavailable as error:
            known = self._known or JobStatus(name=self.name, total=total, done=resumed, waiting=total - resumed)
            return replace(known, note=self.feed.presence.note() or error.what)
        except UsageError as error:
            if error.code != "no-job":
                raise
            return status_of(self.name, "", self._futures, time.time())
        status = replace(status, total=max(status.total + resumed, total), done=status.done + resumed)
        self._known = status
        return status

    def explain(self) -> Explanation:
        """Ask the nodes why it does not run, or not on more of them, and what would help."""
        return self.feed.kept().explain()

    def _again(self, failed: Sequence[MeshFuture[R]]) -> Sequence[MeshFuture[R]]:
        return self.feed.again(failed) if failed else []

    def cancel(self, *, now: bool = False) -> None:
        """Cancel what has not started; with `now` stop what runs as well."""
        self.feed.seal()
        try:
            self.feed.kept().cancel(now=now)
        except UsageError as error:
            if error.code != "no-job":
                raise
