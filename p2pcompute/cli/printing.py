"""What tasks print, on this terminal: grouped per task, in input order on request, tagged, or as JSON Lines.

Memory is bounded: output that waits for its turn is let go beyond HELD_BYTES_MAX and fetched again from the node, which
keeps it.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final, cast

from p2pcompute.cli.connection import Connection, Download
from p2pcompute.cli.output import count_text, is_terminal, leave_line, one_line
from p2pcompute.cli.terminal_text import SafeStream, safe_text
from p2pcompute.errors import P2pcError

if TYPE_CHECKING:
    from p2pcompute.cli.live_output import LiveOutput

HELD_BYTES_MAX: Final = 8 * 1024 * 1024
STORED_S_MAX: Final = 10.0
STORED_LOOK_S: Final = 0.05
ERRORS_MAX: Final = 100
"""Different errors that are told apart."""
ERRORS_SHOWN_MAX: Final = 5
STDERR_LINES: Final = 5
"""Last lines of stderr that the end of a run shows of each reason."""
_FAILED_IN_ITSELF: Final = 125
"""Up to this exit code it is the command that failed, and what it printed says why; above it could not be run."""

Task = Mapping[str, Any]


def value_line(data: bytes, *, is_trusted: bool = True) -> str:
    """Return a function's value as a line: text as it is, other plain data as JSON, anything else as str().

    None is no line.

    Args:
        is_trusted: as of `load_value`.
    """
    from p2pcompute.execution.functions import load_value

    try:
        return format_value(load_value(data, is_trusted=is_trusted))
    except Exception as error:  # noqa: BLE001 - whatever the value's class does when it is loaded or printed here
        return f"<a value of {count_text(len(data))} bytes that cannot be shown here: {type(error).__name__}: {error}>"


def format_value(value: Any) -> str:
    """Return a value as a line."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


class Contents:
    """Content of tasks: what came with the event, or else what the node keeps."""

    def __init__(self, connection: Connection, job: str, *, is_trusted: bool = True) -> None:
        """Args:
        is_trusted: it is a job of this installation, which takes pickles of trusted nodes only.
        """
        self.is_trusted = is_trusted
        self._connection = connection
        self._job = job

    def task(self, index: int) -> dict[str, Any]:
        return self._connection.request("GET", f"/v1/jobs/{self._job}/tasks/{index}")

    def size(self, task: Task, name: str) -> int:
        size = task.get(f"{name}_bytes")
        return size if isinstance(size, int) else 0

    def copy(self, task: Task, name: str, out: IO[bytes]) -> None:
        """Write a task's stdout or stderr to `out`."""
        inline = task.get(f"{name}_b64")
        if isinstance(inline, str):
            out.write(base64.b64decode(inline))
        elif self.size(task, name):
            with self._download(task, name) as content:
                shutil.copyfileobj(content, out, 256 * 1024)

    def lines(self, task: Task, name: str) -> Iterator[bytes]:
        """Yield the lines of a task's stdout or stderr, with their ends."""
        inline = task.get(f"{name}_b64")
        if isinstance(inline, str):
            yield from base64.b64decode(inline).splitlines(keepends=True)
        elif self.size(task, name):
            held = b""
            with self._download(task, name) as content:
                for chunk in content:
                    *whole, held = (held + chunk).split(b"\n")
                    yield from (line + b"\n" for line in whole)
            if held:
                yield held

    def read(self, task: Task, name: str) -> bytes:
        """Return stdout, stderr or value as a whole."""
        inline = task.get(f"{name}_b64")
        if isinstance(inline, str):
            return base64.b64decode(inline)
        if not self.size(task, name):
            return b""
        with self._download(task, name) as content:
            return content.read()

    def _download(self, task: Task, name: str) -> Download:
        """Open the content of a task that has ended; the news of its end may be ahead of the store."""
        deadline = time.monotonic() + STORED_S_MAX
        while True:
            try:
                return self._connection.download(f"/v1/jobs/{self._job}/tasks/{task['index']}/{name}")
            except P2pcError as error:
                if error.code != "not-finished" or time.monotonic() > deadline:
                    raise
                time.sleep(STORED_LOOK_S)


def values_of(task: Task, contents: Contents) -> list[str]:
    """Return the lines of a function task that is done: one for each call, none for None."""
    data = contents.read(task, "value")
    if not data:
        return []
    if not task.get("chunk"):
        return [line] if (line := value_line(data, is_trusted=contents.is_trusted)) else []
    from p2pcompute.execution.functions import load_value

    try:
        return [format_value(value) for value in load_value(data, is_trusted=contents.is_trusted)]
    except Exception:  # noqa: BLE001 - as in value_line
        return [value_line(data, is_trusted=contents.is_trusted)]


def record_of(task: Task, contents: Contents, kind: str) -> dict[str, Any]:
    """Return one task as a line of --output jsonl."""
    record: dict[str, Any] = {"schema": "p2pc.task/1"}
    record |= {name: value for name, value in task.items() if not name.endswith("_b64") and name != "seq"}
    for name in ("stdout", "stderr"):
        data = contents.read(task, name)
        try:
            record[name] = data.decode()
        except UnicodeDecodeError:
            record[f"{name}_b64"] = base64.b64encode(data).decode()
    if kind == "function" and task.get("state") == "done":
        from p2pcompute.execution.functions import load_value

        data = contents.read(task, "value")
        try:
            value = load_value(data, is_trusted=contents.is_trusted)
            json.dumps(value)
            record["value"] = value
        except Exception:  # noqa: BLE001 - as in value_line
            record["value_text"] = value_line(data, is_trusted=contents.is_trusted)
    return record


class Errors:
    """Errors of tasks, equal ones told once.

    Args:
        say: prints text on stderr.
    """

    def __init__(self, alias: str, kind: str, say: Callable[[str], object]) -> None:
        self._alias = alias
        self._kind = kind
        self._say = say
        self._seen: dict[str, list[Any]] = {}
        """Error text → [times, nodes, first task]."""
        self._shown = 0

    def take(self, task: Task) -> None:
        """Show why a task failed, unless what it printed says so or the same was shown before."""
        if task.get("state") != "failed":
            return
        exit_code = task.get("exit_code")
        if (
            self._kind != "function"
            and isinstance(exit_code, int)
            and 0 < exit_code <= _FAILED_IN_ITSELF
            and task.get("status") == "failed"
            and str(task.get("error") or "").endswith(f" ended with exit code {exit_code}")  # and that is all
        ):
            return
        error = safe_text(str(task.get("error") or task.get("status") or "failed")).strip()
        known = self._seen.get(error)
        if known is not None:
            known[0] += 1
            if len(known[1]) <= ERRORS_SHOWN_MAX:
                known[1].add(task.get("node"))
            return
        if len(self._seen) < ERRORS_MAX:
            self._seen[error] = [1, {task.get("node")}, task["index"]]
        if self._shown >= ERRORS_SHOWN_MAX:
            return
        self._shown += 1
        attempts = int(task.get("attempts") or 1)
        inputs = one_line(" ".join(str(word) for word in task.get("inputs") or ()), 60)
        where = f"{self._alias}/{task['index']}" + (f" ({inputs})" if inputs else "")
        where += f" failed on {task['node']}" if task.get("node") else " failed"
        where += f", attempt {attempts}" if attempts > 1 else ""
        self._say(f"{where}:\n  " + error.replace("\n", "\n  ") if "\n" in error else f"{where}: {error}")

    def close(self) -> None:
        """Say how often the errors came again."""
        for times, nodes, index in list(self._seen.values())[:ERRORS_SHOWN_MAX]:
            if times > 1:
                on = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
                self._say(f"the same error as {self._alias}/{index} on {count_text(times - 1)} more{on}")
        if len(self._seen) > self._shown:
            self._say(f"and other errors; see all: p2pc logs {self._alias} --failed")


@dataclass(slots=True)
class _Group:
    tail: list[str]
    count: int = 0
    indices: list[int] = field(default_factory=list)
    nodes: dict[str, None] = field(default_factory=dict)


class Failures:
    """Why tasks failed by what their commands ended with, equal ones together, for the end of `run`.

    Args:
        is_stderr_shown: what tasks said on stderr was printed as they ended.
        is_error_shown: errors that are no exit code were, too.
    """

    def __init__(self, contents: Contents, *, is_stderr_shown: bool, is_error_shown: bool) -> None:
        self._contents = contents
        self._is_stderr_shown = is_stderr_shown
        self._is_error_shown = is_error_shown
        self._groups: dict[tuple[str, str], _Group] = {}

    def take(self, task: Task) -> None:
        """Note a task that failed."""
        if task.get("state") != "failed":
            return
        is_exit = task.get("status") == "failed" and bool(task.get("exit_code") or task.get("signal"))
        if not is_exit and self._is_error_shown:
            return
        reason = f"signal {task['signal']}" if task.get("signal") else f"exit {task.get('exit_code')}"
        if not is_exit:
            reason = one_line(str(task.get("error") or task.get("status") or "failed").strip().rpartition("\n")[2], 80)
        tail: list[str] = []
        if not self._is_stderr_shown and len(self._groups) < ERRORS_MAX:
            lines = deque(self._contents.lines(task, "stderr"), STDERR_LINES)
            tail = [one_line(line.decode(errors="replace").rstrip("\n")) for line in lines]
        key = (reason, "\n".join(tail))
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= ERRORS_MAX:
                return
            group = self._groups[key] = _Group(tail)
        group.count += 1
        if len(group.indices) < ERRORS_SHOWN_MAX:
            group.indices.append(task["index"])
            group.nodes[str(task.get("node") or "")] = None

    def lines(self, alias: str) -> list[str]:
        """Return a line for each group, the largest first, each with the last lines of stderr below it.

        Args:
            alias: of the job; the tasks are named so that `show` and `logs` take them.
        """
        out: list[str] = []
        groups = sorted(self._groups.items(), key=lambda item: -item[1].count)
        for (reason, _), group in groups[:ERRORS_SHOWN_MAX]:
            more = " …" if group.count > len(group.indices) else ""
            named = f"{alias}/{','.join(map(str, sorted(group.indices)))}{more}"
            nodes = ", ".join(node for node in group.nodes if node)
            what = f"{count_text(group.count)} {'task' if group.count == 1 else 'tasks'}"
            out.append(f"{reason} on {what} ({named})" + (f", run by {nodes}" if nodes else ""))
            out += [f"  {line}" for line in group.tail]
        if len(groups) > ERRORS_SHOWN_MAX:
            out.append(f"and {count_text(len(groups) - ERRORS_SHOWN_MAX)} other reasons")
        return out


class _Noted:
    """A stream that remembers whether its terminal stands at the start of a line."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = SafeStream(stream)
        self._is_terminal = is_terminal(stream)
        self.begin = self._stream.begin

    def write(self, data: bytes) -> int:
        if data and self._is_terminal:
            leave_line(is_open=not data.endswith(b"\n"))
        return self._stream.write(data)


class Printer:
    """Prints tasks as they end, or in input order.

    Args:
        mode: text, jsonl or none.
        keep_order: print task n after all before it.
        tag: start each line with the task's input and a tab.
        out, err: where to.
        errors: told of failed tasks, at their turn.
    """

    def __init__(
        self,
        contents: Contents,
        *,
        mode: str,
        kind: str,
        keep_order: bool,
        tag: bool,
        out: IO[bytes],
        err: IO[bytes],
        errors: Errors | None = None,
    ) -> None:
        self._contents = contents
        self._mode = mode
        self._kind = kind
        self._keep_order = keep_order
        self._tag = tag
        self._out = _Noted(out)
        self._err = _Noted(err)
        self._errors = errors
        self._next = 0
        self._waiting: dict[int, Task | None] = {}
        """Tasks that are not at their turn; None = let go, to be fetched again."""
        self._held_bytes = 0
        self._ended = _Marks()
        self.live: LiveOutput | None = None
        """Shows what tasks print while they run; its lines wait here until they can be printed."""
        self._live_lines: deque[tuple[str, bytes]] = deque()

    @classmethod
    def of_job(
        cls,
        connection: Connection,
        job: Mapping[str, Any],
        kind: str,
        *,
        mode: str,
        keep_order: bool = False,
        tag: bool = False,
        errors: Errors | None = None,
    ) -> Printer:
        """Return what prints the tasks of a job (JOB) on standard output."""
        return cls(
            Contents(connection, str(job["id"]), is_trusted=not job.get("owner")),
            mode=mode,
            kind=kind,
            keep_order=keep_order,
            tag=tag,
            out=sys.stdout.buffer,
            err=sys.stderr.buffer,
            errors=errors,
        )

    def tag_line(self, task: Task) -> bytes:
        """Return what lines of a task begin with."""
        return tag_of(task) if self._tag else b""

    def put_live(self, name: str, line: bytes) -> None:
        """Take a line of a running task; by any thread."""
        self._live_lines.append((name, line))

    @property
    def has_live_lines(self) -> bool:
        return bool(self._live_lines)

    def print_live(self) -> None:
        """Print the lines of running tasks that wait."""
        while self._live_lines:
            name, line = self._live_lines.popleft()
            stream = self._out if name == "stdout" else self._err
            stream.begin()
            stream.write(line)

    def stop(self) -> None:
        """Print nothing from now on."""
        self._mode, self._errors = "none", None
        self._waiting.clear()

    def take(self, task: Task) -> None:
        """Take a task that ended.  Each is printed once, also when the node tells of it again."""
        index = task["index"]
        if task.get("state") not in ("done", "failed", "cancelled") or index in self._ended:
            return
        if self._mode == "none" and self._errors is None:
            return
        # A failed task may be run again, by hand, and end well.
        if task["state"] == "done" or self._keep_order:
            self._ended.add(index)
        if not self._keep_order:
            self._print(task)
            return
        if index < self._next:
            return
        size = _size(task)
        is_kept = index == self._next or self._held_bytes + size <= HELD_BYTES_MAX
        self._waiting[index] = task if is_kept else None
        self._held_bytes += size if is_kept else 0
        while self._next in self._waiting:
            self._print_waiting(self._next)
            self._next += 1

    def finish(self) -> None:
        """Print what still waits: tasks before it will not come."""
        for index in sorted(self._waiting):
            self._print_waiting(index)

    def _print_waiting(self, index: int) -> None:
        task = self._waiting.pop(index)
        if task is None:
            task = self._contents.task(index)
        else:
            self._held_bytes -= _size(task)
        self._print(task)

    def _print(self, task: Task) -> None:
        if task.get("state") == "cancelled":
            return
        match self._mode:
            case "jsonl":
                record = record_of(task, self._contents, self._kind)
                self._out.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            case "text":
                self._text(task)
        if self._errors is not None:
            self._errors.take(task)

    def _text(self, task: Task) -> None:
        tag = self.tag_line(task)
        try:
            is_shown = self._rest(task)
            for name, stream in (("stdout", self._out), ("stderr", self._err)) if not is_shown else ():
                stream.begin()
                if not tag:
                    self._contents.copy(task, name, cast("IO[bytes]", stream))
                    continue
                for line in self._contents.lines(task, name):
                    stream.write(tag + line)
        except P2pcError as error:
            if error.code != "no-file":
                raise
            self._err.write(f"the output of task {task['index']} is gone: {error}\n".encode())
        if self._kind == "function" and task.get("state") == "done":
            for text in values_of(task, self._contents):
                self._out.write(tag + text.encode("utf-8", "backslashreplace") + b"\n")

    def _rest(self, task: Task) -> bool:
        """Print what is left of a task of which something was shown while it ran; False: nothing was."""
        if self.live is None:
            return False
        with self.live.lock:
            is_shown = self.live.rest(task, partial(self._contents.lines, task))
        self.print_live()
        return is_shown


def tag_of(task: Task) -> bytes:
    """Return the tag of a task's lines: its inputs and a tab, as GNU parallel's --tag."""
    return " ".join(str(word) for word in task.get("inputs") or ()).encode("utf-8", "backslashreplace") + b"\t"


def _size(task: Task) -> int:
    return sum(len(task.get(f"{name}_b64") or "") for name in ("stdout", "stderr", "value"))


class _Marks:
    """A set of small numbers, a bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, number: int) -> None:
        if number >> 3 >= len(self._bits):
            self._bits.extend(bytes((number >> 3) + 1024 - len(self._bits)))
        self._bits[number >> 3] |= 1 << (number & 7)

    def __contains__(self, number: int) -> bool:
        return number >> 3 < len(self._bits) and bool(self._bits[number >> 3] & 1 << (number & 7))
