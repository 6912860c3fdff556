"""A job: many calls of one function, or many commands, under one name."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast

from p2pcompute.api.explanations import Explanation
from p2pcompute.api.functions import Shipment
from p2pcompute.api.futures import MeshFuture, OpenJob, Read
from p2pcompute.api.job_status import PROGRESS_S, JobStatus, Progress, Shown, as_html, status_of
from p2pcompute.api.options import check_errors
from p2pcompute.api.saved import save_futures
from p2pcompute.errors import UsageError
from p2pcompute.execution.spec import TaskKind
from p2pcompute.plots.timelines import Attempt, Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from p2pcompute.api.desk import Desk
    from p2pcompute.plots.drawing import Kind

R = TypeVar("R")
_serials: Final = itertools.count()
FAILURES_SHOWN: Final = 5
"""Of a job in a notebook."""


class Job(Generic[R]):
    """The handle of a started job.  Iterating waits and yields the values in the order of the inputs."""

    name: str

    def __init__(
        self,
        desk: Desk,
        shipment: Shipment,
        name: str,
        kind: TaskKind = TaskKind.FUNCTION,
        read: Read | None = None,
        progress: Progress = "auto",
    ) -> None:
        self._progress: Progress = progress
        self.name = name
        key = b"single %d" % next(_serials)
        self.open_job = OpenJob(replace(shipment, name=name, key=key), kind=kind, read=read, is_single=True)
        self._desk = desk
        self._futures: list[MeshFuture[R]] = []

    def __repr__(self) -> str:
        status = self.status
        return f"<Job {self.name}: {status.done} done, {status.failed} failed, {status.waiting + status.running} open>"

    def add(self, future: MeshFuture[R]) -> None:
        """Take a task in; for the executor."""
        self._futures.append(future)

    @contextlib.contextmanager
    def being_filled(self) -> Iterator[None]:
        """Take tasks in, and seal the job in the end; what goes wrong cancels it; for the executor."""
        try:
            yield
        except BaseException:  # tidied up after, and raised again
            self.cancel(now=True)
            raise
        finally:
            self.seal()

    def seal(self) -> None:
        """No more tasks come; for the executor."""
        self._desk.seal(self.open_job)

    @property
    def id(self) -> str:
        """The job's id in hexadecimal; empty until the node has it."""
        return self.open_job.job_id.hex()

    @property
    def futures(self) -> Sequence[MeshFuture[R]]:
        """One per input, in their order."""
        return tuple(self._futures)

    @property
    def status(self) -> JobStatus:
        """Counts of the moment."""
        return status_of(self.name, self.id, self._futures, time.time())

    def __len__(self) -> int:
        return len(self._futures)

    def __iter__(self) -> Iterator[R]:
        for future in self._futures:
            yield future.result()

    async def __aiter__(self) -> AsyncIterator[R]:
        for future in self._futures:
            yield await future

    def as_completed(self, *, timeout: float | None = None) -> Iterator[MeshFuture[R]]:
        """Yield the futures as they end.

        Raises:
            TimeoutError: not all have ended `timeout` seconds from the first `next`.
        """
        futures: list[cf.Future[R]] = [*self._futures]
        return cast("Iterator[MeshFuture[R]]", cf.as_completed(futures, timeout))

    def results(
        self, *, errors: Literal["raise", "skip", "return"] = "raise", timeout: float | None = None
    ) -> list[R | BaseException]:
        """Wait and return the values in the order of the inputs.

        Args:
            errors: of tasks that failed or were cancelled: raise the first, leave them out, or return them.
            timeout: seconds for all together.

        Raises:
            BadValue: `errors` is none of these.
            TimeoutError: not all have ended in time.
        """
        check_errors(errors)
        end = None if timeout is None else time.monotonic() + timeout
        found: list[R | BaseException] = []
        for future in self._futures:
            left = None if end is None else max(0.0, end - time.monotonic())
            try:
                error = future.exception(left)
            except cf.CancelledError as cancelled:
                error = cancelled
            if error is None:
                found.append(future.result())
            elif errors == "raise":
                raise error
            elif errors == "return":
                found.append(error)
        return found

    def failures(self) -> Sequence[MeshFuture[R]]:
        """Return the futures that have failed until now.

        Those of commands (`sh`) that ended with another exit code than 0 are among them; their value says which.
        """
        return [future for future in self._futures if future.done() and future.standing()[0] == "failed"]

    def wait(self, timeout: float | None = None, *, progress: Progress | None = None) -> Job[R]:
        """Wait until every task has ended, or `timeout` seconds; returns the job itself.

        Args:
            progress: how it is shown meanwhile: "auto", on a terminal; True, on standard error ("bar" in one line,
                "plain" in a line every few seconds); False or "none"; or a function that gets the `JobStatus` every
                half second.  None: as the executor says.
        """
        shown = Shown(self._progress if progress is None else progress)
        if not shown.is_wanted:
            cf.wait(self._futures, timeout)
            return self
        end = None if timeout is None else time.monotonic() + timeout
        is_over = False
        while not is_over:
            left = PROGRESS_S if end is None else min(PROGRESS_S, max(0.0, end - time.monotonic()))
            is_over = not cf.wait(self._futures, left).not_done or (end is not None and time.monotonic() >= end)
            shown.show(self.status, is_last=is_over)
        return self

    def to_pandas(self) -> Any:
        """Return a DataFrame with a row for each task: state, node, attempts, times, and of those that have ended value
        and error.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError("pandas is not installed", "", "install it: pip install pandas") from error
        rows = []
        for future in self._futures:
            info = future.info
            has_value = future.done() and not future.cancelled() and future._exception is None
            rows.append(
                {
                    "state": info.state,
                    "node": info.node,
                    "attempts": info.attempt,
                    "started": info.started,
                    "runtime_s": info.runtime_s,
                    "value": future.result() if has_value else None,
                    "error": _error_text(future) if info.state == "failed" else None,
                }
            )
        return pandas.DataFrame(rows)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        errors = [_error_text(future) for future in itertools.islice(self.failures(), FAILURES_SHOWN)]
        return {"text/plain": repr(self), "text/html": as_html(self.status, errors)}

    def explain(self) -> Explanation:
        """Ask the nodes why it does not run, or not on more of them, and what would help.

        Raises:
            UsageError: nothing of it was submitted.
        """
        return self._desk.explain(self.open_job)

    def plot(self, kind: Kind = "report", *, path: str | os.PathLike[str] | None = None) -> Figure | None:
        """Draw when its tasks ran where, and when results arrived, as far as it has come.

        Args:
            kind: "arrival", "gantt", "utilisation", or all three.
            path: write it there; the suffix decides: .html, .svg, .png, or .csv and .json for the numbers.

        Returns:
            The figure when no path is given: a notebook shows it.

        Raises:
            UsageError: matplotlib is not installed (the extra ``p2pcompute[plot]``), the suffix is none of these, or
                the file cannot be written.
        """
        from p2pcompute.plots.drawing import draw, write_picture

        line = self._timeline()
        if path is None:
            return draw(line, kind)
        write_picture(line, kind, Path(path))
        return None

    def _timeline(self) -> Timeline:
        infos = [future.info for future in self._futures]
        began = min((info.submitted for info in infos), default=datetime.now(UTC))
        ran = [(info, info.started) for info in infos if info.started is not None and info.runtime_s is not None]
        attempts = [
            Attempt(
                task=info.index,
                node=info.node or "",
                start_s=(start_s := max(0.0, (started - began).total_seconds())),
                end_s=start_s + (info.runtime_s or 0.0),
                state=info.state,
                status="",
                attempts=info.attempt,
            )
            for info, started in ran
        ]
        attempts.sort(key=lambda attempt: attempt.end_s)
        is_over = len(attempts) == len(infos)
        end_s = max((attempt.end_s for attempt in attempts), default=None) if is_over else None
        return Timeline(title=self.name, total=len(infos), attempts=tuple(attempts), end_s=end_s)

    def retry_failed(self) -> Job[R]:
        """Hand in again what has failed until now, with the same arguments; returns the job itself.

        New futures stand in the place of those that have failed.

        Raises:
            UsageError: one of them was never made because an input of it had failed.
        """
        failed = self.failures()
        made = dict(zip(failed, self._again(failed), strict=True))
        for place, future in enumerate(self._futures):
            self._futures[place] = made.get(future, future)
        return self

    def _again(self, failed: Sequence[MeshFuture[R]]) -> Sequence[MeshFuture[R]]:
        return self._desk.again(failed)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write what has ended until now to a folder, or a .jsonl, .csv or .tsv file, as `p2pc run --results` does it.

        Raises:
            UsageError: other results are there.
        """
        save_futures(self.name, self._futures, directory)

    def cancel(self, *, now: bool = False) -> None:
        """Cancel what has not started; with `now` stop what runs as well.  Other executor calls go on."""
        self._desk.cancel_job(self.open_job, kill=now)


def _error_text(future: MeshFuture[Any]) -> str:
    """Return why a task has failed."""
    code = future.info.exit_code
    return f"exit code {code}" if future._exception is None and code is not None else repr(future._exception)
