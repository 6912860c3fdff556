"""What tasks printed and gave: `logs` and `result`."""

from __future__ import annotations

import base64
import contextlib
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

import click

from p2pcompute.cli.command import Command, Reference, json_option
from p2pcompute.cli.connection import Connection, open_connection
from p2pcompute.cli.job_views import counts_text, exit_text, find_job, find_tasks, reference_argument, said_if_none
from p2pcompute.cli.kept_connection import open_kept
from p2pcompute.cli.live_output import LiveOutput, node_tag
from p2pcompute.cli.output import (
    duration_text,
    moment_of,
    one_line,
    plural,
    print_json,
    print_json_line,
    say,
    time_text,
)
from p2pcompute.cli.printing import Contents, Printer, record_of, values_of
from p2pcompute.cli.task_filters import SECTION, TaskFilter, filter_options
from p2pcompute.cli.terminal_text import SafeStream
from p2pcompute.errors import P2pcError, UsageError
from p2pcompute.host.plain_files import check_plain

if TYPE_CHECKING:
    from p2pcompute.api.result_target import ResultsTarget

TAIL_LINES: Final = 10
"""Lines of each failed task that `logs --failed` shows."""
LOST_WHY_CHARS: Final = 60
LOST_STREAMS: Final = ("stdout", "stderr")
FAILURES_HELD_MAX: Final = 10_000
"""Different failures that `logs --failed` holds, to print equal ones once; further ones are printed as they come."""
SAME_NAMED_MAX: Final = 10
"""Tasks with an equal failure that are named."""

# --- logs ---------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[
        ("p2pc logs", "of the newest job"),
        ("p2pc logs --failed", "the end of what failed tasks said"),
        ("p2pc logs j7k3/17 --stderr", ""),
        ("p2pc logs j7k3 --input atlas.tif", "of the tasks that had this input"),
        ("p2pc logs -f j7k3", "what tasks print, while they run"),
    ],
    sections=SECTION,
)
@json_option
@reference_argument
@filter_options
@click.option("-f", "--follow", is_flag=True, help="Show what tasks print as they run, until the job is over.")
@click.option("--failed", is_flag=True, help="Only of failed tasks, equal ones once.")
@click.option("--stderr/--stdout", "is_stderr", default=None, help="Only this stream.")
@click.option("-n", "--lines", type=click.IntRange(1, 10**9), metavar="N", help="The last N lines of each task.")
@click.option("--since", metavar="DURATION", help="Only tasks that started within this.")
@click.option("--timestamps", is_flag=True, help="With the time at which each task started.")
@click.option("--raw", is_flag=True, help="Output alone: no headings, nothing left out.")
@click.option("--node", metavar="NODE", help="This machine's node's own log instead; NODE is its name, or self.")
def logs(
    *,
    json_: bool,
    ref: Reference,
    only: TaskFilter,
    follow: bool,
    failed: bool,
    is_stderr: bool | None,
    lines: int | None,
    since: str | None,
    timestamps: bool,
    raw: bool,
    node: str | None,
) -> int:
    """Output of tasks, also from nodes that have left."""
    if node is not None:
        from p2pcompute.cli.node_log import show_node_log

        _check_alone(ref, json=json_, failed=failed, since=since, timestamps=timestamps, stderr=is_stderr is not None)
        return show_node_log(node, lines=lines, follow=follow)
    from p2pcompute.config import parse_duration

    since_s = parse_duration(since) if since else None
    connection = open_connection() if follow else open_kept()
    job = find_job(connection, ref, may_come=follow)
    contents = Contents(connection, job["id"], is_trusted=not job.get("owner"))
    streams = ("stdout", "stderr") if is_stderr is None else ("stderr",) if is_stderr else ("stdout",)
    if failed and is_stderr is None and not raw:
        streams = ("stderr",)
    states = ("failed",) if failed else ("done", "failed")
    tail = lines or (TAIL_LINES if failed and not raw else None)
    printer = _LogPrinter(job, contents, streams, tail=tail, timestamps=timestamps, raw=raw)
    last: Mapping[str, Any] = job
    lost = {} if follow or raw or only else _lost_attempts(connection, job, ref, since_s)

    def take(task: Mapping[str, Any]) -> None:
        if task["state"] not in states or task["index"] not in ref or not only.takes(task):
            return
        if not _is_since(task, since_s):
            return
        if json_:
            print_json_line(record_of(task, contents, str(job.get("kind"))))
        else:
            before = lost.pop(task["index"], [])
            printer.lost(before if not failed or not task.get("status") else [])
            printer.take(task, merge=failed and not follow)

    if follow:
        live = (
            None
            if json_ or failed or only
            else _live(connection, job, ref, streams, is_tagged=not raw and ref.task is None)
        )
        try:
            for event, data in connection.stream_lines(f"/v1/jobs/{job['id']}/events?after=0"):
                if event == "task":
                    with live.lock if live is not None else contextlib.nullcontext():
                        is_printed = (
                            live is not None and data["index"] in ref and live.rest(data, partial(contents.lines, data))
                        )
                        take({**data, "is_printed": True} if is_printed else data)
                        sys.stdout.buffer.flush()
                elif event == "end":
                    last = data
        finally:
            if live is not None:
                live.stop()
    elif json_ and not follow:
        items = [
            record_of(task, contents, str(job.get("kind")))
            for task in find_tasks(connection, job["id"], ref, states, only=only, with_content=True)
            if _is_since(task, since_s)
        ]
        attempts = [_lost_record(attempt) for index in sorted(lost) for attempt in lost[index]]
        print_json({"schema": "p2pc.tasks/1", "items": items, "lost": attempts})
    else:
        tasks = find_tasks(connection, job["id"], ref, states, only=only, with_content=True)
        for task in said_if_none(tasks, job, only):
            take(task)
        for index in sorted(lost) if not failed else ():
            printer.lost(lost[index])
    printer.finish()
    if failed and not follow and not json_ and not job.get("failed"):
        say(f"no task of {job['alias']} has failed", level=1)
    if not follow:
        return 0
    from p2pcompute.cli.follow import job_exit_code

    return job_exit_code(last)


def _lost_attempts(
    connection: Connection, job: Mapping[str, Any], ref: Reference, since_s: float | None
) -> dict[int, list[dict[str, Any]]]:
    """Return what attempts have printed that were lost, by task."""
    found: dict[int, list[dict[str, Any]]] = {}
    for attempt in [] if since_s is not None else connection.request("GET", f"/v1/jobs/{job['id']}/lost")["items"]:
        if attempt["index"] in ref:
            found.setdefault(attempt["index"], []).append(attempt)
    return found


def _lost_record(attempt: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: base64.b64decode(attempt[f"{name}_b64"]).decode("utf-8", "replace") for name in LOST_STREAMS}
    kept = {name: attempt[name] for name in ("index", "attempt", "node", "why", "stdout_start", "stderr_start")}
    return {**kept, **texts}


def _check_alone(ref: Reference, **flags: object) -> None:
    """Raises UsageError for what is about tasks, beside --node."""
    given = [f"--{name}" for name, value in flags.items() if value] + ([ref.job] if ref.job != "last" else [])
    if given:
        raise UsageError(f"{given[0]} is about tasks", "--node shows what a node says of itself", "leave it out")


def _live(
    connection: Connection, job: Mapping[str, Any], ref: Reference, streams: Sequence[str], *, is_tagged: bool
) -> LiveOutput:
    """Begin to print what running tasks print."""
    out = SafeStream(sys.stdout.buffer)

    def write(_name: str, data: bytes) -> None:
        out.begin()
        out.write(data)
        out.flush()

    live = LiveOutput(connection, job["id"], ref, streams, write, node_tag if is_tagged else lambda _task: b"")
    live.start()
    return live


def _is_since(task: Mapping[str, Any], since_s: float | None) -> bool:
    if since_s is None:
        return True
    began = moment_of(task.get("started"))
    return began is not None and time.time() - began.timestamp() <= since_s


class _LogPrinter:
    """Prints what tasks said; of equal failures the first, with the numbers of the others."""

    def __init__(
        self,
        job: Mapping[str, Any],
        contents: Contents,
        streams: Sequence[str],
        *,
        tail: int | None,
        timestamps: bool,
        raw: bool,
    ) -> None:
        self._job = job
        self._contents = contents
        self._streams = streams
        self._lines = tail
        self._timestamps = timestamps
        self._raw = raw
        self._out = SafeStream(sys.stdout.buffer)
        self._same: dict[bytes, list[Any]] = {}
        """Digest of a failure → [heading, text, indices of the others, how many]."""

    def take(self, task: Mapping[str, Any], *, merge: bool) -> None:
        out = self._out
        if self._raw:
            for name in () if task.get("is_printed") else self._streams:
                out.begin()
                if self._lines is None:
                    self._contents.copy(task, name, cast("IO[bytes]", out))
                else:
                    out.writelines(self._tail(task, name))
            return
        if not merge:
            self._print(self._heading(task), self._body(task))
            return
        import hashlib

        body = list(self._body(task))
        digest = hashlib.blake2b(b"".join(body), digest_size=16).digest()
        if digest not in self._same and len(self._same) >= FAILURES_HELD_MAX:
            self._print(self._heading(task), body)
            return
        known = self._same.setdefault(digest, [self._heading(task), body, [], 0])
        if known[3]:
            known[2] = [*known[2], task["index"]][:SAME_NAMED_MAX]
        known[3] += 1

    def lost(self, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Print what came of attempts of a task that were lost."""
        for attempt in attempts:
            streams = [(name, base64.b64decode(attempt[f"{name}_b64"])) for name in self._streams]
            if not any(data for _name, data in streams):
                continue
            parts = (f"{self._job['alias']}/{attempt['index']}", attempt["node"], f"attempt {attempt['attempt']}")
            heading = "  ".join([*map(str, parts), one_line(str(attempt["why"]), LOST_WHY_CHARS)])
            self._out.write(heading.encode("utf-8", "backslashreplace") + b"\n")
            for name, data in streams:
                lines = data.splitlines(keepends=True)
                if attempt[f"{name}_start"] and len(lines) > 1:
                    lines[0] = b"[...]\n"
                for line in lines[-self._lines :] if self._lines else lines:
                    self._out.write(b"  " + line if line.endswith(b"\n") else b"  " + line + b"\n")

    def finish(self) -> None:
        out = self._out
        for heading, body, others, times in self._same.values():
            self._print(heading, body)
            if times > 1:
                named = ", ".join(str(index) for index in others) + (" …" if times - 1 > len(others) else "")
                out.write(f"  (the same error on {plural(times - 1, 'more task', 'more tasks')}: {named})\n".encode())
        out.flush()

    def _print(self, heading: str, body: Iterable[bytes]) -> None:
        self._out.write(heading.encode("utf-8", "backslashreplace") + b"\n")
        for text in body:
            self._out.write(b"  " + text)

    def _heading(self, task: Mapping[str, Any]) -> str:
        parts = [
            f"{self._job['alias']}/{task['index']}",
            str(task.get("node") or ""),
            f"attempt {task['attempts']}" if (task.get("attempts") or 0) > 1 else "",
            exit_text(task),
            duration_text(task["runtime_s"]) if task.get("runtime_s") is not None else "",
            time_text(task.get("started")) if self._timestamps else "",
            one_line(" ".join(str(word) for word in task.get("inputs") or ()), 40),
        ]
        return "  ".join(part for part in parts if part)

    def _body(self, task: Mapping[str, Any]) -> Iterator[bytes]:
        for name in () if task.get("is_printed") else self._streams:
            for text in self._tail(task, name) if self._lines is not None else self._contents.lines(task, name):
                yield text if text.endswith(b"\n") else text + b"\n"
        error = str(task.get("error") or "").strip()
        if task["state"] == "failed" and error:
            yield error.replace("\n", "\n  ").encode("utf-8", "backslashreplace") + b"\n"

    def _tail(self, task: Mapping[str, Any], name: str) -> list[bytes]:
        from collections import deque

        return list(deque(self._contents.lines(task, name), self._lines))


# --- results ------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[
        ("p2pc result", "print what the tasks of the newest job gave, in input order"),
        ("p2pc result j7k3 -o out", "write a results directory"),
        ("p2pc result j7k3 --format jsonl > all.jsonl", ""),
        ("p2pc result j7k3 --state done --longer 1m -o slow.csv", "a row for each task that took a minute or more"),
    ],
    sections=SECTION,
)
@json_option
@reference_argument
@filter_options
@click.option("-o", "--out", metavar="DIR|FILE", help="Write there: a directory, or a .jsonl, .csv or .tsv file.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "jsonl", "csv", "pickle"]),
    default="text",
    help="pickle: one list of a function's values; a failed task is its exception.",
)
@click.option("--partial", is_flag=True, help="What there is of a job that is not over.")
@click.option("--bundle", metavar="FILE", help="Signed, offline-verifiable bundle of envelope, claims and verdicts.")
def result(
    *,
    json_: bool,
    ref: Reference,
    only: TaskFilter,
    out: str | None,
    format_: str,
    partial: bool,
    bundle: str | None,
) -> int:
    """Print or export results."""
    from p2pcompute.cli.follow import job_exit_code

    connection = open_kept()
    job = find_job(connection, ref)
    if job["state"] in ("waiting", "running") and not partial:
        raise P2pcError(
            f"{job['alias']} is not over: {counts_text(job)} done",
            "",
            f"p2pc wait {job['alias']}, or add --partial",
            code="not-finished",
        )
    if bundle is not None:
        if only:
            raise UsageError("a bundle is of a whole job", "its signatures cover all tasks", "leave the choice out")
        _write_bundle(connection, job, Path(bundle))
    elif json_:
        contents = Contents(connection, job["id"], is_trusted=not job.get("owner"))
        items = [
            record_of(task, contents, str(job.get("kind")))
            for task in find_tasks(connection, job["id"], ref, ("done", "failed"), only=only, with_content=True)
        ]
        print_json({"schema": "p2pc.result/1", "job": job, "items": items})
    elif out is not None:
        _export(connection, job, ref, only, Path(out).absolute())
    elif format_ == "pickle":
        _print_pickle(connection, job, ref, only)
    elif format_ == "csv":
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "out.csv")
            _export(connection, job, ref, only, path, is_quiet=True)
            content = path.read_bytes() if path.exists() else b""
            SafeStream(sys.stdout.buffer).write(content)
    else:
        _print_results(connection, job, ref, only, format_)
    return job_exit_code(job) if job["state"] not in ("waiting", "running") else 7


def _write_bundle(connection: Connection, job: Mapping[str, Any], path: Path) -> None:
    """Write the bundle of a job: all or nothing."""
    import secrets
    import shutil

    check_plain(path)
    draft = path.with_name(f".{secrets.token_hex(4)}.p2pc-part")  # two at once do not write into one another's
    try:
        with connection.download(f"/v1/jobs/{job['id']}/bundle") as download, draft.open("wb") as content:
            shutil.copyfileobj(download, content)
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written", str(error.strerror or error), None, code="file") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    say(f"wrote {path}; anybody can check it: p2pc trust verify {path}", level=1)


def _print_results(connection: Connection, job: Mapping[str, Any], ref: Reference, only: TaskFilter, mode: str) -> None:
    printer = Printer.of_job(
        connection, job, str(job.get("kind")), mode=mode, tag=bool((job.get("note") or {}).get("tag"))
    )
    tasks = find_tasks(connection, job["id"], ref, ("done", "failed"), only=only, with_content=True)
    for task in said_if_none(tasks, job, only):
        printer.take(task)
    sys.stdout.buffer.flush()


def _print_pickle(connection: Connection, job: Mapping[str, Any], ref: Reference, only: TaskFilter) -> None:
    import pickle

    from p2pcompute.execution.functions import load_exception, load_value

    if job.get("kind") != "function":
        raise UsageError(f"{job['alias']} ran commands, which have no values", "", "--format jsonl")
    contents = Contents(connection, job["id"], is_trusted=not job.get("owner"))
    values: list[Any] = []
    for task in find_tasks(connection, job["id"], ref, ("done", "failed"), only=only, with_content=True):
        data = contents.read(task, "value")
        if task["state"] == "done":
            values.append(load_value(data, is_trusted=contents.is_trusted))
        else:
            values.append(load_exception(data) if data and contents.is_trusted else None)
    sys.stdout.buffer.write(pickle.dumps(values, protocol=5))
    sys.stdout.buffer.flush()


def _export(
    connection: Connection,
    job: Mapping[str, Any],
    ref: Reference,
    only: TaskFilter,
    path: Path,
    *,
    is_quiet: bool = False,
) -> None:
    """Write the results of a job into a directory or a file, as --results would have; nobody else writes there then."""
    from p2pcompute.api.result_target import ResultsTarget, check_target, hold, is_results_file

    target = ResultsTarget(file=path) if is_results_file(path.name) else ResultsTarget(dir=path)
    try:
        check_target(target)
        with hold(target):
            count = _write_results(connection, job, ref, only, target)
    except UsageError as error:
        if error.code == "results-exist":
            raise UsageError(
                error.what, error.why, f"remove {path.name} or name another with -o", code=error.code
            ) from error
        raise
    if not is_quiet:
        say(f"wrote {plural(count, 'task')} to {path}")


def _write_results(
    connection: Connection, job: Mapping[str, Any], ref: Reference, only: TaskFilter, target: ResultsTarget
) -> int:
    """Write results where nobody else writes; return of how many tasks."""
    import shutil
    import tempfile

    from p2pcompute.api.result_content import Content
    from p2pcompute.api.results import ResultsWriter

    contents = Contents(connection, job["id"], is_trusted=not job.get("owner"))
    writer = ResultsWriter.create(target, job)
    count = 0
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="p2pc-") as folder:

        def fetch(task: Mapping[str, Any], name: str) -> Path:
            place = Path(folder, str(next(numbers)))
            with place.open("wb") as content:
                if name in ("stdout", "stderr", "value"):
                    contents.copy(task, name, content)
                else:
                    url = f"/v1/jobs/{job['id']}/tasks/{task['index']}/files/{quote(name.removeprefix('files/'))}"
                    with connection.download(url) as download:
                        shutil.copyfileobj(download, content, 256 * 1024)
            return place

        for task in find_tasks(connection, job["id"], ref, ("done", "failed"), only=only, with_content=True):
            files: list[tuple[str, Content, int]] = [
                (file["name"], fetch(task, f"files/{file['name']}"), int(file.get("mode") or 0o644))
                for file in task.get("files") or ()
            ]
            value = fetch(task, "value") if job.get("kind") == "function" and task.get("value_bytes") else None
            writer.write(
                {name: value for name, value in task.items() if not name.endswith("_b64")},
                stdout=fetch(task, "stdout"),
                stderr=fetch(task, "stderr"),
                value=value,
                value_text="\n".join(values_of(task, contents))
                if value and target.file and task["state"] == "done"
                else None,
                files=files,
            )
            count += 1
            for place in Path(folder).iterdir():
                place.unlink()
    is_over = job["state"] not in ("waiting", "running")
    writer.close(job if is_over else None)
    return count
