"""Jobs that this machine's node keeps, as `p2pc run` submits them: looked at, waited for and read from Python.

Unlike the jobs of a `MeshExecutor` they do not end with the program that made them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from p2pcompute.api.completed import Completed
from p2pcompute.api.control import ask, call
from p2pcompute.api.explanations import Explanation, explanation_from
from p2pcompute.api.job_status import JobStatus, NodeShare, Progress, Shown
from p2pcompute.api.options import check_errors
from p2pcompute.api.result_folder import results_target
from p2pcompute.api.result_target import hold
from p2pcompute.api.results import ResultsWriter
from p2pcompute.errors import TaskError
from p2pcompute.execution.functions import load_exception, load_value

LOOK_S: Final = (0.05, 1.0)
"""Pauses between looks at a job that runs: the first and the longest."""
PAGE: Final = 200


class KeptJob:
    """A job of this machine's node.  Iterating waits, and yields the values in the order of the inputs."""

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        self._path = path
        self.id: str = document["id"]
        self.alias: str = document["alias"]
        self.name: str = document["name"]
        self.is_function: bool = document["kind"] == "function"
        """Values are what the function returned; else they are `Completed` commands."""
        self._is_own = not document.get("owner")

    def __repr__(self) -> str:
        status = self.status
        return f"<KeptJob {self.alias} {self.name}: {status.done} done, {status.failed} failed>"

    @property
    def status(self) -> JobStatus:
        """Counts of the moment.

        Raises:
            NodeUnavailable: the node does not answer.
            UsageError: the job was pruned.
        """
        document = self._ask("GET", "")
        done, failed, cancelled, running, waiting = (
            int(document[name]) for name in ("done", "failed", "cancelled", "running", "waiting")
        )
        shares = {
            share["node"]: NodeShare(
                running=share["running"],
                done=share["done"],
                failed=share["failed"],
                rate=share["rate"] or 0.0,
                note=share["note"] or "",
            )
            for share in document["by_node"]
        }
        rate = sum(share["rate"] or 0.0 for share in document["by_node"])
        left = running + waiting
        return JobStatus(
            name=self.name,
            id=self.id,
            total=document["total"] or done + failed + cancelled + left,
            done=done,
            failed=failed,
            cancelled=cancelled,
            running=running,
            waiting=waiting,
            rate=rate,
            eta=left / rate if rate and left else None,
            by_node=shares,
        )

    def __len__(self) -> int:
        return self.status.total

    def __iter__(self) -> Iterator[Any]:
        yield from self.results()

    def wait(self, timeout: float | None = None, *, progress: Progress = "auto") -> KeptJob:
        """Wait until every task has ended; returns the job itself.

        Args:
            progress: how it is shown meanwhile, as of `Job.wait`.

        Raises:
            TimeoutError: it had not after so many seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause_s, longest_s = LOOK_S
        shown = Shown(progress)
        is_over = False
        while not is_over:
            is_over = self._ask("GET", "")["finished"] is not None
            if shown.is_wanted:
                shown.show(self.status, is_last=is_over)
            if is_over:
                break
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"job {self.alias} runs still")
            time.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 1.5)
        return self

    def results(
        self, *, errors: Literal["raise", "skip", "return"] = "raise", timeout: float | None = None
    ) -> list[Any]:
        """Wait and return the values in the order of the inputs, as those of a `Job`.

        Args:
            errors: of tasks that failed or were cancelled: raise the first, leave them out, or return them.
            timeout: seconds for all together.

        Raises:
            BadValue: `errors` is none of these.
            TimeoutError: not all have ended in time.
            Exception: what the first failed call raised.
            TaskError: a command could not be run, or a task was cancelled.
        """
        check_errors(errors)
        self.wait(timeout, progress="none")
        found: list[Any] = []
        for task in self._tasks():
            value, error = self._outcome(task)
            if error is None:
                found += value if task["chunk"] else [value]
            elif errors == "raise":
                raise error
            elif errors == "return":
                found.append(error)
        return found

    def explain(self) -> Explanation:
        """Ask the nodes why it does not run, or not on more of them, and what would help."""
        return explanation_from(self._ask("GET", "/explanation"))

    def retry_failed(self) -> KeptJob:
        """Run again what has failed until now; returns the job itself."""
        self._ask("POST", "/retry", {"failed": True})
        return self

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write what has ended until now to a folder, or a .jsonl, .csv or .tsv file, as `p2pc run --results` does it.

        Raises:
            UsageError: other results are there, or somebody else writes there.
        """
        job = self._ask("GET", "")
        target = results_target(directory, resume=False, can_resume=False)
        with hold(target):
            self._write(job, ResultsWriter.create(target, job))

    def _write(self, job: Mapping[str, Any], writer: ResultsWriter) -> None:
        try:
            for task in self._tasks():
                if task["state"] != "cancelled":
                    stdout, stderr = (self._content(task, name) for name in ("stdout", "stderr"))
                    value = self._content(task, "value") if self.is_function and task["value_bytes"] else None
                    files = tuple(
                        (file["name"], self._content(task, f"files/{quote(file['name'])}"), int(file["mode"]))
                        for file in task["files"]
                    )
                    writer.write(task, stdout=stdout, stderr=stderr, value=value, files=files)
        finally:
            writer.close(job)

    def cancel(self, *, now: bool = False) -> None:
        """Cancel what has not started; with `now` stop what runs as well."""
        self._ask("POST", "/cancel", {"now": now})

    # --- inside -----------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return ask(self._path, method, f"/v1/jobs/{self.id}{path}", body)

    def _tasks(self) -> Iterator[dict[str, Any]]:
        after: int | None = -1
        while after is not None:
            page = self._ask("GET", f"/tasks?after={after}&limit={PAGE}&state=done,failed,cancelled")
            yield from page["items"]
            after = page.get("next")

    def _content(self, task: Mapping[str, Any], name: str) -> bytes:
        return call(self._path, "GET", f"/v1/jobs/{self.id}/tasks/{task['index']}/{name}")

    def _outcome(self, task: Mapping[str, Any]) -> tuple[Any, BaseException | None]:
        """Return (value, None) or (None, error) of a task that has ended."""
        has_value = bool(task["value_bytes"])
        if self.is_function and task["state"] == "done":
            return load_value(self._content(task, "value"), is_trusted=self._is_own), None
        if self.is_function and task["state"] == "failed" and has_value and self._is_own:
            return None, load_exception(self._content(task, "value"))
        if task["state"] == "cancelled" or (task["exit_code"] is None and task["signal"] is None) or self.is_function:
            what = (
                f"task {self.alias}/{task['index']} was cancelled" if task["state"] == "cancelled" else "a task failed"
            )
            return None, TaskError(what, str(task["error"] or ""), node=task["node"])
        code = task["exit_code"] if task["exit_code"] is not None else -task["signal"]
        words = tuple(task["inputs"]) if not task["command"] else (task["command"],)
        return Completed(words, code, self._content(task, "stdout"), self._content(task, "stderr")), None


def get_job(job_id: str = "last") -> KeptJob:
    """Return a job that this machine's node keeps.

    Args:
        job_id: its alias or id, as `p2pc jobs` shows them; "last" is the newest.

    Raises:
        NodeUnavailable: no node runs here.
        UsageError: there is no such job.
    """
    from p2pcompute.places import find_paths

    path = find_paths(os.environ).socket
    return KeptJob(path, ask(path, "GET", f"/v1/jobs/{quote(job_id, safe='')}"))
