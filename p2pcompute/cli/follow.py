"""The live view of a job: events in, output and progress out, signals obeyed.  `run` and `attach` share it.

The node owns the job; this only looks on.  Ctrl-C: no new tasks are started, running ones finish; again: they are
killed.  SIGTERM kills at once.  A closed terminal (SIGHUP) ends the view, not the job.  When the node goes away the
view waits for it to come back.
"""

from __future__ import annotations

import contextlib
import errno
import math
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, TypeVar

from p2pcompute.cli.connection import Connection
from p2pcompute.cli.job_views import coordinator_text, doubt_lines
from p2pcompute.cli.output import EXIT_HANGUP, EXIT_INTERRUPTED, EXIT_TERMINATED, count_text, one_line, options, say
from p2pcompute.cli.printing import Errors, Printer
from p2pcompute.cli.progress import Display, Progress
from p2pcompute.errors import NodeUnavailable, P2pcError
from p2pcompute.limits import REQUEST_NAME_BYTES

T = TypeVar("T")

EVENTS_WAITING_MAX: Final = 256
"""Events between the node and a slow terminal; beyond it the stream is not read further."""
TICK_S: Final = 0.1
NODE_AWAY_S_MAX: Final = 60.0
"""How long a node that went away is waited for."""
RECONNECT_S: Final = 0.5
STALL_S: Final = 10.0
"""A job of which nothing runs for so long is explained."""
EXPLAIN_S_MAX: Final = 5.0
KILL_S_MAX: Final = 10.0
"""After the second Ctrl-C: how long the end of the job is waited for."""
ASK_S_MAX: Final = 2.0
"""How long the node is given to answer that a job is to end: it has heard it by then, and what it does first is not
whatever it waits for, as room in its store."""


@dataclass(slots=True)
class Signals:
    """What the user asked for by signals."""

    interrupts: int = 0
    is_terminated: bool = False
    is_hung_up: bool = False

    @contextlib.contextmanager
    def caught(self) -> Iterator[Signals]:
        """Count signals instead of obeying them at once."""

        def on_interrupt(_number: int, _frame: FrameType | None) -> None:
            self.interrupts += 1

        def on_terminate(_number: int, _frame: FrameType | None) -> None:
            self.is_terminated = True

        def on_hangup(_number: int, _frame: FrameType | None) -> None:
            self.is_hung_up = True

        wanted = {signal.SIGINT: on_interrupt, signal.SIGTERM: on_terminate, signal.SIGHUP: on_hangup}
        # nohup and the shell's background jobs say so by ignoring them.
        before = {
            number: signal.signal(number, catch)
            for number, catch in wanted.items()
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield self
        finally:
            for number, catch_before in before.items():
                signal.signal(number, catch_before)


class EventReader:
    """Reads a job's events in a thread; comes back where it was when the stream breaks."""

    def __init__(self, connection: Connection, job: str, after: int) -> None:
        self._connection = connection
        self._job = job
        self._after = after
        self._stopped = threading.Event()
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue(EVENTS_WAITING_MAX)
        """(event, data); ("lost", error) is the last when the node does not come back."""
        self._thread = threading.Thread(target=self._run, name="p2pc-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Read no further; the thread ends by itself."""
        self._stopped.set()

    def _put(self, event: str, data: Any) -> None:
        while not self._stopped.is_set():
            try:
                self.events.put((event, data), timeout=1.0)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        heard = time.monotonic()
        while not self._stopped.is_set():
            trouble: P2pcError | None = None
            try:
                for event, data in self._connection.stream_lines(f"/v1/jobs/{self._job}/events?after={self._after}"):
                    heard = time.monotonic()
                    if self._stopped.is_set():
                        return
                    if event == "task":
                        self._after = int(data.get("seq") or self._after)
                    elif event == "resync":
                        self._after = int(data.get("after") or 0)
                    self._put(event, data)
                    if event in ("end", "error"):
                        return
            except NodeUnavailable as error:
                trouble = error
            except P2pcError as error:
                self._put("lost", error)
                return
            if time.monotonic() - heard > NODE_AWAY_S_MAX:
                self._put("lost", trouble or NodeUnavailable("the node went away"))
                return
            self._put("away", trouble)
            self._stopped.wait(RECONNECT_S)


@dataclass(slots=True)
class Outcome:
    """How a view ended."""

    job: Mapping[str, Any] | None = None
    """JOB at its end; None when the view ended before it."""
    exit_code: int | None = None
    """Set when a signal, not the job, decides."""


@dataclass(slots=True)
class Stall:
    """Whether a job has waited for long without anything running."""

    since: float
    _ended: int = 0
    _is_said: bool = False

    def take(self, job: Mapping[str, Any], now: float) -> None:
        """Look at its progress."""
        ended = int(job.get("done") or 0) + int(job.get("failed") or 0)
        if ended != self._ended or job.get("running") or not job.get("waiting"):
            self.since, self._ended, self._is_said = now, ended, False

    def is_due(self, now: float) -> bool:
        """Return whether it is time to say why; once for each stall."""
        if self._is_said or now - self.since < STALL_S:
            return False
        self._is_said = True
        return True


@dataclass(slots=True)
class Doubt:
    """Whether results have waited for long for somebody to believe them, and a person can help."""

    _since: float | None = None
    _is_said: bool = False

    def is_due(self, job: Mapping[str, Any], now: float) -> bool:
        """Return whether it is time to say so; once."""
        if not (job.get("doubt") or {}).get("fix"):  # it goes on by itself
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= STALL_S and not self._is_said:
            self._is_said = True
            return True
        return False


@dataclass(slots=True)
class View:
    """The live view of one job.

    `source` is what still sends tasks to it; it is told to stop, and asked whether it has.
    """

    connection: Connection
    job_id: str
    alias: str
    printer: Printer
    display: Display
    progress: Progress
    signals: Signals
    errors: Errors | None = None
    after: int = 0
    source: Source | None = None
    keeps_results: bool = False
    """Results are kept elsewhere than on stdout."""
    on_task: Callable[[Mapping[str, Any]], None] | None = None
    is_onlooker: bool = False
    """Ctrl-C and SIGTERM end the view, not the job."""
    _asked: int = 0
    """1 = no new tasks, 2 = kill."""
    _kill_by: float | None = None
    _is_away_said: bool = False
    _is_absence_said: bool = False
    _doubt: Doubt = field(default_factory=Doubt)
    _stall: Stall = field(default_factory=lambda: Stall(time.monotonic()))
    _reader: EventReader = field(init=False)

    def follow(self) -> Outcome:
        """Look on until the job is over or the user leaves.

        Raises:
            NodeUnavailable: the node went away and did not come back.
            BrokenPipeError: the reader of stdout has gone; the job was stopped unless its results are kept.
            P2pcError: sending the tasks failed; the job was stopped.
        """
        self._reader = EventReader(self.connection, self.job_id, self.after)
        self._reader.start()
        try:
            return self._loop()
        except BrokenPipeError:
            self.display.close(self.progress)
            if self.keeps_results:
                self._finish_sending()
            else:
                self._cancel(now=True)
            raise
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # The terminal has gone before its SIGHUP came.
            self._finish_sending()
            return Outcome(exit_code=EXIT_HANGUP)
        finally:
            if self.printer.live is not None:
                self.printer.live.stop()
            self._reader.stop()
            self.display.close(self.progress)

    def _loop(self) -> Outcome:
        while True:
            ended = self._obey_signals()
            if ended is not None:
                return ended
            if self.source is not None and self.source.error is not None:
                self._cancel(now=False)
                raise self.source.error
            batch = self._next_events()
            if batch:
                job = self._show(batch)
                if job is not None:
                    return Outcome(job, self._exit_code_of_signals())
            if self.printer.has_live_lines:
                with self.display.aside():
                    self.printer.print_live()
                    sys.stdout.buffer.flush()
                    sys.stderr.buffer.flush()
            self.display.update(self.progress)
            if self._stall.is_due(time.monotonic()):
                self._say_why()
            absence = coordinator_text(self.progress.data, time.time())
            if absence and not self._is_absence_said:
                with self.display.aside():
                    say(f"note: {absence}", level=1)
            self._is_absence_said = bool(absence)
            if self._doubt.is_due(self.progress.data, time.monotonic()):
                what, fix = doubt_lines(self.progress.data)
                with self.display.aside():
                    say(f"note: {what}\n  fix:  {fix}", level=1)

    def _say_why(self) -> None:
        """Nothing has moved for a while: say what the nodes say."""
        from p2pcompute.cli.explain import stalled_lines

        with contextlib.suppress(P2pcError):
            path = f"/v1/jobs/{self.job_id}/explanation"
            document = self.connection.request("GET", path, timeout_s=EXPLAIN_S_MAX)
            if document["job"]["waiting"] and not document["job"]["running"]:
                with self.display.aside():
                    say("\n".join(stalled_lines(document)), level=1)

    def _next_events(self) -> list[tuple[str, Any]]:
        """Wait a tick for an event; then take what else is there."""
        batch: list[tuple[str, Any]] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._reader.events.get(timeout=TICK_S))
            while len(batch) < EVENTS_WAITING_MAX:
                batch.append(self._reader.events.get_nowait())
        return batch

    def _show(self, batch: list[tuple[str, Any]]) -> Mapping[str, Any] | None:
        """Print tasks, remember progress; JOB when it is over."""
        job: Mapping[str, Any] | None = None
        tasks = [data for event, data in batch if event == "task"]
        for event, data in batch:
            match event:
                case "progress":
                    self.progress.take(data)
                    self._stall.take(data, time.monotonic())
                    self._is_away_said = False
                case "away" if not self._is_away_said:
                    self._is_away_said = True
                    with self.display.aside():
                        say(f"the node went away; waiting for it (the job is safe: p2pc attach {self.alias})")
                case "lost":
                    assert isinstance(data, P2pcError)
                    data.fix = f"p2pc node start, then p2pc attach {self.alias}"
                    raise data
                case "error":
                    raise P2pcError(
                        str(data.get("what")), str(data.get("why") or ""), data.get("fix"), code=str(data.get("code"))
                    )
                case "end":
                    job = data
        if tasks or job is not None:
            with self.display.aside():
                for task in tasks:
                    self.printer.take(task)
                    if self.on_task is not None:
                        self.on_task(task)
                if job is not None:
                    self.printer.finish()
                sys.stdout.buffer.flush()
                sys.stderr.buffer.flush()
        if job is not None:
            self.progress.take(job)
        return job

    # --- signals ----------------------------------------------------------------------------------

    def _obey_signals(self) -> Outcome | None:
        signals = self.signals
        if signals.is_hung_up:
            self.printer.stop()
            self._finish_sending()
            return Outcome(exit_code=EXIT_HANGUP)
        if self.is_onlooker and self._exit_code_of_signals() is not None:
            with self.display.aside():
                say(f"\nthe job goes on; stop it: p2pc cancel {self.alias}")
            return Outcome(exit_code=self._exit_code_of_signals())
        if self._kill_by is not None and time.monotonic() > self._kill_by:
            return Outcome(exit_code=self._exit_code_of_signals())
        wanted = 2 if signals.is_terminated or signals.interrupts >= 2 else min(signals.interrupts, 1)
        if wanted > self._asked:
            self._asked = wanted
            if wanted == 2:
                self._kill_by = time.monotonic() + KILL_S_MAX
            with self.display.aside():
                if wanted == 1:
                    say(
                        "\nno new tasks are started; running ones finish.  Ctrl-C again kills them; "
                        f"look again: p2pc attach {self.alias}"
                    )
            self._cancel(now=wanted == 2)
        return None

    def _exit_code_of_signals(self) -> int | None:
        if self.signals.is_terminated:
            return EXIT_TERMINATED
        return EXIT_INTERRUPTED if self.signals.interrupts else None

    def _cancel(self, *, now: bool) -> None:
        """Ask the node to stop the job, and end the sending of tasks; a node that is away is not waited for."""
        if self.source is not None:
            self.source.stop()
        with contextlib.suppress(NodeUnavailable):
            self.connection.request("POST", f"/v1/jobs/{self.job_id}/cancel", {"now": now}, timeout_s=ASK_S_MAX)

    def _finish_sending(self) -> None:
        """Nobody looks any more, but all inputs belong to the job."""
        if self.source is not None:
            self.source.join()


class Submission:
    """Submits a job from a thread, so that signals are obeyed while the node does not answer.

    It is repeated while the node is away, and makes one job however often that is.
    """

    def __init__(self, connection: Connection, body: Mapping[str, Any]) -> None:
        self._connection = connection
        self._body = {**body, "request": secrets.token_hex(REQUEST_NAME_BYTES)}
        self._answer: dict[str, Any] = {}
        self._error: P2pcError | None = None
        self._is_given_up = False
        self._thread = threading.Thread(target=self._run, name="p2pc-submit", daemon=True)
        self._thread.start()

    def answer(self, signals: Signals | None = None) -> dict[str, Any] | None:
        """Return the answer, with the job's id and alias; None: a signal came, and after it none within ASK_S_MAX.

        Raises:
            P2pcError: the node refuses, or does not answer.
        """
        give_up_at: float | None = None
        say_at = time.monotonic() + STALL_S
        while self._thread.is_alive():
            self._thread.join(TICK_S)
            if time.monotonic() > say_at:
                say_at = math.inf
                say("the node does not answer yet; waiting for it", level=1)
            if signals is not None and (signals.interrupts or signals.is_terminated):
                give_up_at = give_up_at or time.monotonic() + ASK_S_MAX
                if time.monotonic() > give_up_at:
                    self._is_given_up = True
                    return None
        if self._error is not None:
            raise self._error
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = patiently(
                lambda: self._connection.request("POST", "/v1/jobs", self._body),
                is_over=lambda: self._is_given_up or self._connection.embedded is not None,
            )
        except P2pcError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - carried to the main thread, which reports it
            self._error = bug_of(error)


def patiently(
    call: Callable[[], T], *, is_over: Callable[[], bool], before_again: Callable[[], None] | None = None
) -> T:
    """Call; when the node is away, wait for it and call again.

    Args:
        is_over: says that nobody waits any more.
        before_again: called before every further call.

    Raises:
        NodeUnavailable: it was away for longer than NODE_AWAY_S_MAX.
        P2pcError: it refuses.
    """
    away_since: float | None = None
    while True:
        try:
            if away_since is not None and before_again is not None:
                before_again()
            return call()
        except NodeUnavailable:
            away_since = away_since or time.monotonic()
            if is_over() or time.monotonic() - away_since > NODE_AWAY_S_MAX:
                raise
            time.sleep(RECONNECT_S)


def bug_of(error: Exception) -> P2pcError:
    """Return what is to be said of an error in a thread that nobody expected."""
    bug = P2pcError(f"a bug in p2pc: {type(error).__name__}: {error}", code="bug")
    bug.__cause__ = error
    return bug


class Source:
    """Sends tasks to a job from a thread, in bounded batches, and seals the job.

    Args:
        batches: lists of lines (tasks); made lazily, in the thread.
    """

    def __init__(self, connection: Connection, job_id: str, batches: Iterator[list[dict[str, Any]]]) -> None:
        self._connection = connection
        self._job_id = job_id
        self._batches = batches
        self._sent = 0
        self._is_stopped = False
        self.error: P2pcError | None = None
        """Why it ended early.  The job is not sealed then."""
        self.is_sealed = False
        self._thread = threading.Thread(target=self._run, name="p2pc-tasks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send no more tasks; seal the job with those that it has."""
        if not self._is_stopped:
            self._is_stopped = True
            with contextlib.suppress(P2pcError):
                self._seal(ASK_S_MAX)

    def _is_over(self) -> bool:
        return self._is_stopped

    def join(self) -> None:
        """Wait until everything is sent, or cannot be."""
        while self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            for batch in self._batches:
                if self._is_stopped:
                    return
                self._send(batch)
            if not self._is_stopped:
                patiently(self._seal, is_over=self._is_over)
        except P2pcError as error:
            if not self._is_stopped:
                self.error = error
        except Exception as error:  # noqa: BLE001 - carried to the main thread, which reports it
            self.error = bug_of(error)

    def _send(self, batch: list[dict[str, Any]]) -> None:
        """Send a batch whole and once, also when the node goes away in the middle."""
        base = self._sent

        def send() -> None:
            rest = batch[self._sent - base :]
            self._connection.upload_lines(f"/v1/jobs/{self._job_id}/tasks?at={self._sent}", rest)
            self._sent += len(rest)

        def count_stored() -> None:
            added = self._connection.request("GET", f"/v1/jobs/{self._job_id}")["added"]
            self._sent = max(self._sent, min(int(added), base + len(batch)))

        patiently(send, is_over=self._is_over, before_again=count_stored)

    def _seal(self, limit_s: float | None = None) -> None:
        self._connection.request("POST", f"/v1/jobs/{self._job_id}/seal", {}, timeout_s=limit_s)
        self.is_sealed = True


def batches_of(
    lines: Iterator[dict[str, Any]], *, count_max: int, bytes_max: int, is_stopped: Callable[[], bool]
) -> Iterator[list[dict[str, Any]]]:
    """Yield what there is of `lines`, without waiting for more than the first of a batch.

    The lines are read in a thread, so that those of a slow source go out one by one and those of a fast one by the
    hundred.

    Raises:
        P2pcError: what reading a line raised, after the lines before it.
    """
    ready: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue(count_max)

    def put(item: dict[str, Any] | BaseException | None) -> bool:
        while not is_stopped():
            try:
                ready.put(item, timeout=1.0)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for line in lines:
                if not put(line):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the consuming thread
            put(error)

    threading.Thread(target=read, name="p2pc-inputs", daemon=True).start()
    batch: list[dict[str, Any]] = []
    size = 0
    while True:
        is_full = len(batch) >= count_max or size >= bytes_max
        if batch and (is_full or ready.empty()):
            yield batch
            batch, size = [], 0
        item = ready.get()
        if isinstance(item, dict):
            batch.append(item)
            size += _line_size(item)
            continue
        if batch:
            yield batch
        if item is None:
            return
        raise item


def _line_size(line: Mapping[str, Any]) -> int:
    """About how many bytes a line takes."""
    words = sum(len(word) for name in ("argv", "inputs", "fetch") for word in line.get(name) or ())
    return 200 + words + len(line.get("args_b64") or "") + 200 * len(line.get("send") or ())


def report_results(job: Mapping[str, Any]) -> bool:
    """Say when results could not be written; True when they could, or none were asked for."""
    results = job.get("results") or {}
    error = results.get("error")
    if not error:
        return True
    say(f"results were not written: {error.get('what')} ({error.get('why')})" if error.get("why") else str(error))
    if error.get("fix"):
        say(f"  fix:  {error['fix']}")
    return False


def where_results(job: Mapping[str, Any]) -> list[str]:
    """Return the paths of a job's results, relative to here where that is shorter."""
    import os

    results = job.get("results") or {}
    paths = [str(results[name]) for name in ("dir", "file", "joblog") if results.get(name)]
    return [min(path, os.path.relpath(path), key=len) + ("/" if path == results.get("dir") else "") for path in paths]


def failures_hint(job: Mapping[str, Any]) -> str:
    """Return where to read about failed tasks; empty when there are none."""
    failed = int(job.get("failed") or 0)
    return f"{count_text(failed)} failed: p2pc logs {job.get('alias')} --failed" if failed else ""


def disputes_hint(job: Mapping[str, Any]) -> str:
    """Return what disputed results may mean; empty when there are none."""
    if not job.get("disputed"):
        return ""
    return (
        "disputed: results of members differed from others, and who is contradicted loses its members' credit here; "
        "does the output depend on the node, the time or chance?  Then: --verify none, or --trust trusted"
    )


def bans_hint(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return who was banned while a job ran, what that means and how it ends; empty: nobody.

    Args:
        before, after: STATUS.
    """
    known = {peer["id"] for peer in before.get("peers") or () if peer.get("banned")}
    found = [peer for peer in after.get("peers") or () if peer.get("banned") and peer["id"] not in known]
    if not found:
        return ""
    names = ", ".join(one_line(peer["name"], 24) for peer in found)
    return (
        f"banned, and given no more work from here: {names}; what each did: p2pc trust show NODE.  "
        "Does the output depend on the node, the time or chance?  Then nobody lied: p2pc trust set NODE member"
    )


def job_exit_code(job: Mapping[str, Any], *, failed_before: int = 0, style: str = "p2pc") -> int:
    """Return the exit code for a job that is over.

    Args:
        job: JOB.
        failed_before: tasks that failed in an earlier run and were not tried again.
        style: p2pc, or gnu: the number of failed tasks, 101 for more than 100.
    """
    failed = int(job.get("failed") or 0) + failed_before
    if style == "gnu":
        if job.get("halted") and job.get("exit_code") == 0:
            failed = failed_before
        return 255 if job.get("exit_code") not in (0, 1, 3, None) else min(failed, 101)
    code = job.get("exit_code")
    if not isinstance(code, int):
        code = 3 if job.get("state") == "cancelled" or job.get("halted") else 0
    if code == 0 and job.get("halted"):
        return 1 if failed_before else 0  # it was to end at a success, and did
    return code or (1 if failed else 0)


def make_printer(
    connection: Connection,
    job: Mapping[str, Any],
    display: Display,
    *,
    mode: str,
    kind: str,
    keep_order: bool = False,
    tag: bool = False,
) -> tuple[Printer, Errors | None]:
    """Return what prints the tasks of a job on this terminal."""

    def tell(text: str) -> None:
        with display.aside():
            say(text)

    errors = Errors(str(job["alias"]), kind, tell) if options().quiet < 2 and mode != "jsonl" else None
    return Printer.of_job(connection, job, kind, mode=mode, keep_order=keep_order, tag=tag, errors=errors), errors
