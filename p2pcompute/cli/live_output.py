"""What running tasks print, while they run: the live part of `logs -f` and `run --lb`.

A thread asks the node every POLL_S, which asks the nodes where the tasks run.  Whole lines are printed; when a task has
ended, what comes after the last one of them follows from its result.  A task that prints more than 64 KiB between two
looks shows the last of it here; all of it is in its result.
"""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from p2pcompute.cli.command import Reference
from p2pcompute.cli.connection import Connection
from p2pcompute.cli.job_views import find_tasks
from p2pcompute.cli.output import count_text, one_line
from p2pcompute.errors import P2pcError

POLL_S: Final = 0.5
REST_FACTOR: Final = 10.0
"""A look that takes long (many tasks) is followed by so many times as long a pause."""
TASKS_MAX: Final = 16
"""Running tasks that are looked at, of those that the reference names the first ones."""


class _Seen:
    """What was printed of one attempt."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.offsets = {"stdout": 0, "stderr": 0}


class LiveOutput:
    """Prints the output of running tasks."""

    def __init__(
        self,
        connection: Connection,
        job: str,
        reference: Reference,
        streams: Sequence[str],
        write: Callable[[str, bytes], None],
        tag: Callable[[Mapping[str, Any]], bytes],
    ) -> None:
        """Args:
        write: prints a line of a stream; called by this object's thread and by `rest`, never by both at once.
        tag: what the lines of a task begin with.
        """
        self._connection = connection
        self._job = job
        self._reference = reference
        self._streams = streams
        self._write = write
        self._tag = tag
        self._seen: dict[int, _Seen] = {}
        self._asked: int | None = None
        """Task of which the node is being asked; None: what it says is old, for the task has ended."""
        self.lock = threading.Lock()
        """Held while something is printed."""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="p2pc-live", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Print no more; waits for a look that is under way."""
        self._is_over.set()
        self._thread.join()

    def rest(self, task: Mapping[str, Any], lines: Callable[[str], Iterator[bytes]]) -> bool:
        """Print what is left of a task that has ended; False when nothing of it was printed live.  Hold the lock.

        Args:
            lines: yields the lines of a stream of its result.
        """
        if self._asked == task["index"]:
            self._asked = None
        seen = self._seen.pop(task["index"], None)
        if seen is None or seen.attempt != task.get("attempts") or not any(seen.offsets.values()):
            return False
        for name in self._streams:
            position = 0
            for line in lines(name):
                position += len(line)
                if position > seen.offsets[name]:
                    self._print(task, name, line if line.endswith(b"\n") else line + b"\n")
        return True

    def _look_on(self) -> None:
        while not self._is_over.is_set():
            began = time.monotonic()
            with contextlib.suppress(P2pcError, OSError):  # the follower itself notices when the node is gone
                for task in islice(find_tasks(self._connection, self._job, self._reference, ("running",)), TASKS_MAX):
                    if self._is_over.is_set():
                        return
                    self._look_at(task)
            self._is_over.wait(max(POLL_S, REST_FACTOR * (time.monotonic() - began)))

    def _look_at(self, task: Mapping[str, Any]) -> None:
        index = task["index"]
        with self.lock:
            self._asked = index
            seen = self._seen.get(index) or _Seen(0)
        offsets = f"attempt={seen.attempt}&stdout={seen.offsets['stdout']}&stderr={seen.offsets['stderr']}"
        tail = self._connection.request("GET", f"/v1/jobs/{self._job}/tasks/{index}/tail?{offsets}")
        if tail["attempt"] is None:
            return
        with self.lock:
            if self._is_over.is_set() or self._asked is None:
                return
            if tail["attempt"] != seen.attempt:
                seen = _Seen(tail["attempt"])
            self._seen[index] = seen
            for name in self._streams:
                self._take(tail, name, seen, task)

    def _take(self, tail: Mapping[str, Any], name: str, seen: _Seen, task: Mapping[str, Any]) -> None:
        """Print the whole lines of one stream that are new."""
        data, start = base64.b64decode(tail[f"{name}_b64"]), int(tail[f"{name}_start"])
        task = {**task, "node": tail["node"]}
        if start > seen.offsets[name]:
            left_out = count_text(start - seen.offsets[name])
            self._print(task, name, f"[… {left_out} bytes; they come with the result]\n".encode())
            data, start = data[data.find(b"\n") + 1 :], start + data.find(b"\n") + 1
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            self._print(task, name, line)
        seen.offsets[name] = start + len(whole)

    def _print(self, task: Mapping[str, Any], name: str, line: bytes) -> None:
        self._write(name, self._tag(task) + line)


def node_tag(task: Mapping[str, Any]) -> bytes:
    """Return the node and the number of a task."""
    return f"[{one_line(str(task.get('node') or ''))} {task['index']}] ".encode("utf-8", "backslashreplace")
