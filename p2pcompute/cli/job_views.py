"""What the commands about jobs share: finding jobs and tasks, and their facts as text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import click

from p2pcompute.cli.command import Reference, ReferenceType
from p2pcompute.cli.connection import Connection
from p2pcompute.cli.output import (
    count_text,
    duration_text,
    moment_of,
    node_labels,
    one_line,
    plural,
    rate_text,
    say,
    table,
)
from p2pcompute.cli.task_filters import ALL, TaskFilter
from p2pcompute.errors import UsageError

PAGE: Final = 500
"""Tasks asked for at once."""
DOUBT_CHARS_MAX: Final = 300

reference_argument = click.argument("ref", type=ReferenceType(), metavar="[JOB[/TASKS]]", default="last")


def find_job(connection: Connection, reference: Reference, *, may_come: bool = False) -> dict[str, Any]:
    """Return the job by its alias, id or "last"; else by its name, when only one has that.

    Args:
        may_come: tasks of the reference may be added later.

    Raises:
        UsageError: there is no such job, or it has none of the tasks of a range.
    """
    job = _find_job(connection, reference)
    count = int(job.get("added") or 0)
    for low, _ in reference.ranges or ():
        if low >= count and not may_come:
            raise UsageError(f"job {job['alias']} has no task {low}", f"it has {count}", code="no-task")
    return job


def _find_job(connection: Connection, reference: Reference) -> dict[str, Any]:
    try:
        return connection.request("GET", f"/v1/jobs/{quote(reference.job)}")
    except UsageError as error:
        if error.code != "no-job":
            raise
        items: list[dict[str, Any]] = connection.request("GET", "/v1/jobs?all=1&limit=10000")["items"]
        named = [job for job in items if job["name"] == reference.job]
        if not named:
            raise
        if len(named) > 1:
            aliases = ", ".join(job["alias"] for job in named[:5])
            raise UsageError(
                f"{len(named)} jobs are called {reference.job!r}",
                f"they are {aliases}",
                f"the newest: {named[0]['alias']}",
                code="no-job",
            ) from None
        return named[0]


def find_tasks(
    connection: Connection,
    job: str,
    reference: Reference,
    states: tuple[str, ...] = (),
    *,
    only: TaskFilter = ALL,
    with_content: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the tasks that a reference names, by index, page by page.

    Args:
        states: that the command is about; empty: all.
        with_content: what they printed and returned comes along where it is short.
    """
    wanted = only.within(states)
    for low, high in (reference.ranges or ((0, sys.maxsize),)) if wanted is not None else ():
        after: int | None = low - 1
        while after is not None:
            query = f"after={after}&limit={PAGE}" + (f"&state={','.join(wanted)}" if wanted else "")
            query += "&content=1" * with_content
            page = connection.request("GET", f"/v1/jobs/{job}/tasks?{query}")
            for task in page["items"]:
                if task["index"] > high:
                    break
                if only.takes(task):
                    yield task
            after = page.get("next")
            if after is not None and after >= high:
                break


def said_if_none(tasks: Iterable[dict[str, Any]], job: Mapping[str, Any], only: TaskFilter) -> Iterator[dict[str, Any]]:
    """Yield the tasks; where a choice leaves none, say so."""
    is_none = True
    for task in tasks:
        is_none = False
        yield task
    if is_none and only:
        say(f"{none_found(job, only)}; all: p2pc show {job['alias']} --tasks", level=1)


def none_found(job: Mapping[str, Any], only: TaskFilter) -> str:
    """Return what to say where a choice leaves no tasks: a node that ran none may be mistyped."""
    shares = job.get("by_node") or ()
    ran = [str(share["node"]) for share in shares]
    misses = []
    for node in dict.fromkeys(only.nodes):
        typed = node.upper().replace("-", "")
        is_id = any(typed.startswith(str(share["short_id"]).replace("-", "")[: len(typed)]) for share in shares)
        if node not in ran and not is_id:
            import difflib

            near = difflib.get_close_matches(node, ran, n=1)
            hint = f"; did you mean {one_line(near[0])}?" if near else ""
            misses.append(f" (none ran on {one_line(node)}{hint})")
    return f"no such tasks{''.join(misses)}"


def counts_text(job: Mapping[str, Any]) -> str:
    total = count_text(job["total"]) if job.get("total") is not None else f"{count_text(job.get('added') or 0)}+"
    return f"{count_text(job['done'])}/{total}"


def kept_text(job: Mapping[str, Any]) -> str:
    """Where a job is kept, and what that means."""
    owner, others = job.get("owner"), [one_line(name) for name in job.get("custodians") or ()]
    if owner:
        waits = f"; {plural(int(job.get('claimed') or 0), 'result')} for it to accept" if job.get("claimed") else ""
        return f"{one_line(owner)}, which submitted it" + "".join(f", {name}" for name in others) + waits
    return ", ".join(["this node", *others]) + ("" if others else " only: it waits while this node is away")


def coordinator_text(job: Mapping[str, Any], now: float) -> str:
    """Say that a job waits for another coordinator, and for how long, or who gives out its tasks instead of its owner;
    empty where nothing needs to be said.

    Args:
        now: Unix seconds.
    """
    found = job.get("coordinator")
    if not found:
        return ""
    node, since = one_line(str(found["node"])), moment_of(found["away_since"])
    if since is None:
        return "" if found["is_owner"] else f"its owner is away: {node} gives out its tasks"
    which = "its owner" if found["is_owner"] else "which gave out its tasks"
    away = f"{node}, {which}, is away for {duration_text(round(max(0.0, now - since.timestamp())))}"
    at = moment_of(found["next_at"])
    if at is None:
        return f"{away}, and nobody else who keeps the job is here: it waits"
    left_s = round(at.timestamp() - now)
    when = f"in {duration_text(left_s)}" if left_s >= 1 else "now"
    return f"{away}; {one_line(str(found['next']))} takes over {when}"


def exit_text(task: Mapping[str, Any]) -> str:
    if task.get("signal"):
        return f"signal {task['signal']}"
    if task.get("exit_code") is not None:
        return f"exit {task['exit_code']}"
    return str(task.get("status") or "")


def shares_table(job: Mapping[str, Any], this_node: str = "") -> str:
    shares = sorted(job.get("by_node") or (), key=lambda share: -int(share["done"]))
    rows = [
        [
            one_line(label) + (" (this)" if this_node and share.get("short_id") == this_node else ""),
            count_text(share["running"]),
            count_text(share["done"]),
            count_text(share["failed"]),
            rate_text(share.get("rate")),
            one_line(str(share.get("note") or "")),
        ]
        for label, share in zip(node_labels(shares), shares, strict=True)
    ]
    return table(["NODE", "RUN", "DONE", "FAIL", "RATE", "NOTE"], rows, right=["RUN", "DONE", "FAIL", "RATE"])


def doubt_lines(job: Mapping[str, Any]) -> list[str]:
    """Return why results of members are not believed yet, and what helps."""
    doubt = job.get("doubt") or {}
    return [one_line(str(doubt[part]), DOUBT_CHARS_MAX) for part in ("what", "fix") if doubt.get(part)]
