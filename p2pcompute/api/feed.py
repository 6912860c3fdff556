"""One job that this machine's node keeps: its calls are handed in by one thread, and followed to their end by another.

What is sent again after a lost answer is there once: a submission has a name, and of calls those are sent that the node
does not have.  A node that is away is waited for (`presence`).
"""

from __future__ import annotations

import base64
import concurrent.futures as cf
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from p2pcompute.api.control import REQUEST_S, ask, call, events
from p2pcompute.api.explanations import Explanation
from p2pcompute.api.failures import failure
from p2pcompute.api.functions import Shipment, requirements_of
from p2pcompute.api.futures import MeshFuture, check_failed, set_cancelled, set_exception, settle
from p2pcompute.api.kept_jobs import KeptJob
from p2pcompute.api.presence import RETRY_S, Presence, longer
from p2pcompute.api.result_content import place_file
from p2pcompute.api.result_rows import wall_seconds
from p2pcompute.api.result_target import ResultsTarget
from p2pcompute.api.results import folder_name
from p2pcompute.errors import NodeUnavailable, P2pcError, UsageError
from p2pcompute.execution.functions import load_value
from p2pcompute.execution.locking import make_lock
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile
from p2pcompute.limits import INLINE_BYTES_MAX, JOB_NAME_CHARS_MAX, REQUEST_NAME_BYTES

if TYPE_CHECKING:
    from p2pcompute.api.options import TaskOptions
    from p2pcompute.node.facade import TailView

R = TypeVar("R")

BATCH_MAX: Final = 500
BATCH_BYTES: Final = 1 << 20
"""Calls that are handed in at once: kept in memory until the node has them."""


class KeptFuture(MeshFuture[R]):
    """Of a call that this machine's node keeps."""

    feed: Feed | None = None

    def running(self) -> bool:
        """True while the task runs, as the node says."""
        return not self.done() and self.feed is not None and self.feed.state_of(self._index) == "running"

    def cancel(self) -> bool:
        """Cancel the task unless it has started; True when it is cancelled now."""
        self._desk.check_process()
        if not self.done() and self.feed is not None:
            self.feed.cancel_one(self)
        return self.cancelled()

    def explain(self) -> Explanation:
        """Ask the nodes why the task does not run, and what would help."""
        if self.feed is None:
            raise UsageError("this call was not handed in", "it was done before", code="no-job")
        return self.feed.kept().explain()

    def retry(self) -> MeshFuture[R]:
        """Have a call made again that has failed; return the future of the new one.

        Raises:
            UsageError: it has not failed.
        """
        check_failed(self)
        if self.feed is None:
            raise UsageError("this call was not handed in", "it was done before", code="no-job")
        return self.feed.again([self])[0]

    def _tail(self, attempt: int, stdout: int, stderr: int) -> TailView | None:
        return None if self.feed is None else self.feed.tail(self._index, attempt, stdout, stderr)


class Feed:
    """One job at the node, and the calls of it that come from here."""

    def __init__(
        self,
        path: Path,
        shipment: Shipment,
        target: ResultsTarget | None,
        numbers: Mapping[bytes, int],
        presence: Presence,
    ) -> None:
        self._path = path
        self.presence = presence
        self._request = secrets.token_hex(REQUEST_NAME_BYTES)
        """Names the submission, so that one that is repeated makes no second job."""
        self._shipment = shipment
        self._target = target
        self._numbers = numbers
        self.document: dict[str, Any] = {}
        """Id and alias, once the node has the job."""
        self.error: P2pcError | None = None
        self._changed = threading.Condition()
        self._waiting: deque[tuple[KeptFuture[Any], dict[str, Any], int]] = deque()
        self._futures: list[KeptFuture[Any]] = []
        """By index."""
        self._is_sealing = False
        self._is_following = False
        self._after = 0
        """Number of the last end that was heard of."""
        self.handed_in = threading.Event()
        """Everything is at the node and the job is sealed, or it has failed."""
        threading.Thread(target=self._hand_in, name="p2pc-hand-in", daemon=True).start()

    # --- the program's threads ------------------------------------------------------------------------

    def put(self, future: KeptFuture[Any], line: dict[str, Any], size: int) -> bool:
        """Take a call in; False: no more calls are taken."""
        with self._changed:
            if self._is_sealing:
                return False
            future.feed = self
            if self.error is None:
                self._waiting.append((future, line, size))
                self._changed.notify_all()
                return True
        set_exception(future, self.error)
        return True

    def seal(self) -> None:
        """No more calls come."""
        with self._changed:
            self._is_sealing = True
            self._changed.notify_all()

    @property
    def is_known(self) -> bool:
        """True once the node has the job, or it is known that there is none."""
        return bool(self.document) or self.error is not None or self.handed_in.is_set()

    @property
    def is_open(self) -> bool:
        """True while the node has calls of it that are not known to have ended."""
        with self._changed:
            return bool(self.document) and any(not future.done() for future in self._futures)

    def kept(self) -> KeptJob:
        """Return the job as everybody sees it, once the node has it.

        Raises:
            P2pcError: the node did not take it.
        """
        with self._changed:
            while not self.is_known:
                self._changed.wait()
        if self.error is not None:
            raise self.error
        if not self.document:
            raise UsageError("this job has no tasks", "all of them were done before", code="no-job")
        return KeptJob(self._path, ask(self._path, "GET", self._place()))

    def state_of(self, index: int) -> str:
        """Return what the node says of a task."""
        if index < 0:
            return "waiting"
        return str(ask(self._path, "GET", self._place(f"/tasks/{index}"))["state"])

    def cancel_one(self, future: KeptFuture[Any]) -> None:
        """Cancel a task that has not started."""
        with self._changed:
            while future._index < 0 and self.error is None:
                self._changed.wait()
        if self.error is None and not future.done():
            ask(self._path, "POST", self._place("/cancel"), {"indices": [future._index]})
            if self.state_of(future._index) == "cancelled":
                cf.wait([future], REQUEST_S)  # until it is heard here, too

    def cancel(self) -> None:
        """Cancel what has not started, once everything is handed in."""
        if self.document and self.error is None and self._is_following:
            ask(self._path, "POST", self._place("/cancel"), {})

    def again(self, futures: Sequence[MeshFuture[Any]]) -> list[KeptFuture[Any]]:
        """Have calls made again that have failed; return their new futures, in the place of the old ones.

        Raises:
            P2pcError: the node refuses, or what it has could not be followed.
        """
        made: list[KeptFuture[Any]] = []
        with self._changed:
            if self.error is not None:
                raise self.error
            if any(future._index < 0 for future in futures):
                raise UsageError("a call that the node has refused cannot be tried again", "", "submit it again")
            for future in futures:
                new: KeptFuture[Any] = KeptFuture(future._desk, future._bytes_in)
                new.feed, new._index, new._note = self, future._index, future._note
                self._futures[future._index] = new
                made.append(new)
        try:
            ask(self._path, "POST", self._place("/retry"), {"indices": [future._index for future in made]})
        except P2pcError as error:
            for new in made:
                set_exception(new, error)
            raise
        with self._changed:
            if not self._is_following:
                self._start_to_follow()
        return made

    def tail(self, index: int, attempt: int, stdout: int, stderr: int) -> TailView | None:
        """Return what a running task has printed after these positions."""
        from p2pcompute.node.facade import TailView, TaskProgress  # rarely asked, and it would take half of our import

        if index < 0:
            return None
        offsets = f"attempt={attempt}&stdout={stdout}&stderr={stderr}"
        try:
            said = ask(self._path, "GET", self._place(f"/tasks/{index}/tail?{offsets}"))
        except P2pcError:
            return None
        if said["attempt"] is None:
            return None
        return TailView(
            node=said["node"] or "",
            attempt=said["attempt"],
            stdout_start=said["stdout_start"],
            stdout=base64.b64decode(said["stdout_b64"]),
            stderr_start=said["stderr_start"],
            stderr=base64.b64decode(said["stderr_b64"]),
            progress=TaskProgress(**said["progress"]) if said["progress"] else None,
            quiet_s=said.get("quiet_s"),
            idle_s=said.get("idle_s"),
        )

    def _place(self, more: str = "") -> str:
        return f"/v1/jobs/{self.document['id']}{more}"

    # --- handing in -----------------------------------------------------------------------------------

    def _hand_in(self) -> None:
        batch: list[tuple[KeptFuture[Any], dict[str, Any]]] = []
        try:
            while batch := self._next_batch():
                if not self.document:
                    self._submit()
                self._upload(batch)
            if self.document:
                self.presence.patiently(lambda: ask(self._path, "POST", self._place("/seal"), {}))
        except Exception as error:  # noqa: BLE001 - nobody else would resolve the futures
            self._fail(_broken(error), [future for future, _line in batch])
        finally:
            self.handed_in.set()
            with self._changed:
                self._changed.notify_all()

    def _next_batch(self) -> list[tuple[KeptFuture[Any], dict[str, Any]]]:
        """Wait for calls; none when no more come."""
        with self._changed:
            while not self._waiting and not self._is_sealing:
                self._changed.wait()
            batch: list[tuple[KeptFuture[Any], dict[str, Any]]] = []
            size = 0
            while self._waiting and len(batch) < BATCH_MAX and size < BATCH_BYTES:
                future, line, line_size = self._waiting.popleft()
                size += line_size
                batch.append((future, line))
            return batch

    def _submit(self) -> None:
        body = self._body()
        document = self.presence.patiently(lambda: ask(self._path, "POST", "/v1/jobs", body))
        with self._changed:
            self.document = document
            self._start_to_follow()
            self._changed.notify_all()

    def _start_to_follow(self) -> None:
        self._is_following = True
        threading.Thread(target=self._follow, name="p2pc-follow", daemon=True).start()

    def _body(self) -> dict[str, Any]:
        shipment, options = self._shipment, self._shipment.options
        spec: dict[str, Any] = {
            "env": dict(options.env),
            "cpus": float(options.cpus),
            "mem_bytes": options.mem_bytes,
            "gpus": float(options.gpus),
            "disk_bytes": options.disk_bytes,
            "network": options.network == "full",
            "sandbox": "" if options.sandbox == "auto" else options.sandbox,
            "digits": options.digits,
            "code_b64": base64.b64encode(shipment.code).decode(),
        }
        if shipment.modules_zip:
            spec["modules_b64"] = base64.b64encode(shipment.modules_zip).decode()
        requirements = requirements_of(options)
        if requirements is not None:
            lock = make_lock(requirements)
            spec["packages_b64"] = base64.b64encode(lock.text).decode()
            spec |= {"platforms": list(lock.platforms), "is_built": bool(lock.built)}
        return {
            "kind": "function",
            "name": shipment.name[:JOB_NAME_CHARS_MAX],
            "terms": _terms(options),
            "spec": spec,
            "results": None if self._target is None else self._target.to_json(),
            "request": self._request,
        }

    def _upload(self, batch: list[tuple[KeptFuture[Any], dict[str, Any]]]) -> None:
        """Hand calls in; one that the node refuses fails alone."""
        try:
            self._send(batch)
        except UsageError as error:
            if len(batch) == 1:
                set_exception(batch[0][0], error)
                return
            for one in batch:  # those that were taken before the refused one are not sent again
                self._upload([one])

    def _send(self, batch: list[tuple[KeptFuture[Any], dict[str, Any]]]) -> None:
        """Hand calls in, each once, also when the connection is cut in between."""
        begin = len(self._futures)

        def send() -> None:
            there = int(ask(self._path, "GET", self._place())["added"])
            left = [line for _future, line in batch[there - begin :]]
            if left:
                ask(self._path, "POST", self._place(f"/tasks?at={there}"), left)

        self.presence.patiently(send)
        with self._changed:
            for index, (future, _line) in enumerate(batch, begin):
                future._index = index
                self._futures.append(future)
            self._changed.notify_all()

    def _fail(self, error: P2pcError, sending: Sequence[KeptFuture[Any]] = ()) -> None:
        """Resolve what is open: the node cannot be asked, or refuses.

        Args:
            sending: futures of what was just being handed in.
        """
        with self._changed:
            self.error = error
            open_now = [*self._futures, *sending, *(future for future, _line, _size in self._waiting)]
            self._waiting.clear()
            self._changed.notify_all()
        for future in open_now:
            set_exception(future, error)

    # --- following ------------------------------------------------------------------------------------

    def _follow(self) -> None:
        pause_s = RETRY_S
        while self.error is None:
            try:
                for name, number, data in events(self._path, self._place(f"/events?after={self._after}")):
                    self.presence.answered()
                    pause_s = RETRY_S
                    if name == "task":
                        self._ended(data)
                        self._after = self._after if number is None else number
                    elif name == "resync":
                        self._after = 0
                    elif name == "end" and self._stop_following():
                        return
            except NodeUnavailable as error:
                if self.handed_in.is_set() and self._stop_following():
                    return  # everything has ended: nobody waits for the node
                self._missed(error)
            except Exception as error:  # noqa: BLE001 - nobody else would resolve the futures
                self._fail(_broken(error))
            time.sleep(pause_s)
            pause_s = longer(pause_s)

    def _missed(self, error: NodeUnavailable) -> None:
        try:
            self.presence.missed(error)
        except NodeUnavailable as gone:
            self._fail(gone)

    def _stop_following(self) -> bool:
        """All tasks have ended: stop, unless some were started again just now."""
        with self._changed:
            self._is_following = any(not future.done() for future in self._futures)
            return not self._is_following

    def _ended(self, task: Mapping[str, Any]) -> None:
        """Resolve the future of a task that has ended.

        Raises:
            NodeUnavailable: its value cannot be fetched now.
        """
        index = int(task["index"])
        with self._changed:
            while index >= len(self._futures) and self.error is None:
                self._changed.wait()
            future = self._futures[index] if self.error is None else None
        if future is None or future.done():
            return
        if task["state"] == "cancelled" or task["status"] is None:
            set_cancelled(future)
            return
        try:
            self._resolve(future, task)
        except NodeUnavailable:
            raise
        except (P2pcError, OSError) as error:  # of this call: a place that takes no files, a value that is gone
            set_exception(future, error)

    def _resolve(self, future: KeptFuture[Any], task: Mapping[str, Any]) -> None:
        outcome, value = _outcome(task, lambda name: self._content(task, name))
        future._report = (task["node"], int(task["attempts"]), outcome, len(value))
        if future._note is not None and outcome.files:
            future._files = self._files(future, outcome)
        if task["state"] == "done":
            settle(future, lambda: load_value(value))
        else:
            set_exception(future, failure(outcome, str(task["error"] or ""), task["node"], value))

    def _content(self, task: Mapping[str, Any], name: str) -> bytes:
        return call(self._path, "GET", self._place(f"/tasks/{task['index']}/{name}"))

    def _files(self, future: KeptFuture[Any], outcome: Outcome) -> dict[str, str]:
        """Return where the files are that came back: the node writes them below a folder of results."""
        note, target = future._note, self._target
        assert note is not None
        if target is not None and target.dir is not None:
            number = self._numbers.get(note.key)
            if number is None:
                number = int(ask(self._path, "GET", self._place())["results"]["first"]) + future._index
            folder = target.dir / folder_name(number) / "files"
            return {file.name: str(folder / file.name) for file in outcome.files}
        found: dict[str, str] = {}
        for file in outcome.files:
            content = self._content({"index": future._index}, f"files/{quote(file.name)}")
            found[file.name] = str(place_file(note.to, file.name, content, file.mode))
        return found


def _broken(error: Exception) -> P2pcError:
    if isinstance(error, P2pcError):
        return error
    what = "what this machine's node keeps cannot be handed in or followed"
    return P2pcError(what, f"{type(error).__name__}: {error}", "p2pc jobs shows what it has")


def _terms(options: TaskOptions) -> dict[str, Any]:
    demands = options.demands
    return {
        "retries": options.retries,
        "timeout_s": options.timeout_s,
        "require": list(options.require),
        "prefer": list(options.prefer),
        "on": list(options.on),
        "not_on": list(options.not_on),
        **demands,
    }


def _outcome(task: Mapping[str, Any], content: Callable[[str], bytes]) -> tuple[Outcome, bytes]:
    """Return how a task ended and its value, from what the node says of it.

    Args:
        content: fetches what is too long to be said.
    """

    def part(name: str) -> bytes:
        inline = task.get(f"{name}_b64")
        if inline is not None:
            return base64.b64decode(inline)
        return content(name) if task.get(f"{name}_bytes") else b""

    def size(printed: bytes) -> tuple[bytes, int] | None:
        """What it has printed is at the node; how much that is says where its end, which is kept here, begins."""
        return (b"", len(printed)) if len(printed) > INLINE_BYTES_MAX else None

    value, stdout, stderr = part("value"), part("stdout"), part("stderr")
    outcome = Outcome(
        OutcomeStatus(task["status"]),
        stdout=stdout[-INLINE_BYTES_MAX:],
        stderr=stderr[-INLINE_BYTES_MAX:],
        stdout_blob=size(stdout),
        stderr_blob=size(stderr),
        exit_code=task["exit_code"],
        signal=task["signal"],
        files=tuple(OutputFile(file["name"], b"", file["size"], file["mode"]) for file in task["files"]),
        error=str(task["error"] or ""),
        cause=str(task["cause"] or ""),
        started_wall=wall_seconds(task["started"]),
        runtime_s=float(task["runtime_s"] or 0.0),
        cpu_s=float(task["cpu_s"] or 0.0),
        peak_rss_bytes=int(task["peak_rss_bytes"] or 0),
    )
    return outcome, value
