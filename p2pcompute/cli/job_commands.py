"""Commands about jobs: jobs, show, wait, attach, cancel, retry, prune.  None of them starts a node."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from p2pcompute.cli.asking import ask
from p2pcompute.cli.command import (
    TICKET_PREFIX,
    Amount,
    Command,
    Reference,
    ReferenceOrTicketType,
    ReferenceType,
    json_option,
    yes_option,
)
from p2pcompute.cli.connection import Connection, open_connection
from p2pcompute.cli.job_views import (
    coordinator_text,
    counts_text,
    doubt_lines,
    exit_text,
    find_job,
    find_tasks,
    kept_text,
    none_found,
    reference_argument,
    shares_table,
)
from p2pcompute.cli.kept_connection import open_kept
from p2pcompute.cli.output import (
    bytes_text,
    count_text,
    duration_text,
    in_group,
    is_terminal,
    moment_of,
    node_labels,
    one_line,
    plural,
    print_json,
    print_json_line,
    say,
    table,
    time_text,
)
from p2pcompute.cli.task_filters import SECTION, STATES, TaskFilter, filter_options
from p2pcompute.errors import NodeUnavailable, P2pcError, UsageError
from p2pcompute.limits import NO_OUTPUT

WAIT_LOOK_S: Final = (0.05, 0.5)
"""First and longest pause between looks at a job that is waited for."""
NODE_AWAY_S_MAX: Final = 60.0
WORDS_SHOWN_MAX: Final = 60
"""A longer list of tasks is not written into a command that is only proposed."""
QUIET_SHOWN_S: Final = 60.0
"""A running task that has printed nothing for so long is said to be silent."""
IDLE_SHOWN_S: Final = 30.0
"""The same of one that uses no CPU: nodes look every 10 s, and a task that waits for a file may be idle that long."""
RECENT_S: Final = 86400.0
"""`jobs` without -a shows jobs that ended within this."""
SORTED_BY: Final = {"took": "runtime_s", "cpu": "cpu_s", "memory": "peak_rss_bytes", "tries": "attempts"}
"""--sort of `show`, and the field of p2pc.task/1."""


def _took_s(job: Mapping[str, Any]) -> float | None:
    """Seconds from submission to the end, or to now; where no node runs, until what is known last."""
    began = moment_of(job.get("submitted"))
    if began is None:
        return None
    ended = moment_of(job.get("finished")) or moment_of(job.get("as_of"))
    return ended.timestamp() - began.timestamp() if ended else max(0.0, time.time() - began.timestamp())


# --- looking ------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command, examples=[("p2pc jobs", "running, and ended today"), ("p2pc jobs -a --json", "all, for scripts")]
)
@json_option
@click.option("-w", "--watch", is_flag=True, help="Refresh until interrupted.")
@click.option("--interval", type=Amount(0.1), default=1.0, metavar="SECS", help="Refresh period for --watch.")
@click.option("-a", "--all", "all_", is_flag=True, help="Also jobs that ended more than a day ago.")
@click.option("--state", multiple=True, type=click.Choice(STATES), help="Only in this state (repeatable).")
@click.option("--since", metavar="DURATION", help="Only submitted within this, like 2h.")
@click.option("-l", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
def jobs(
    *, json_: bool, watch: bool, interval: float, all_: bool, state: tuple[str, ...], since: str | None, limit: int
) -> int:
    """List jobs."""
    from p2pcompute.config import parse_duration

    since_s = parse_duration(since) if since else None
    connection = None
    try:
        connection = open_kept()
    except UsageError as error:
        if watch or error.code != "no-job":
            raise
    while True:
        items = []
        if connection is not None:
            items = _recent_jobs(connection, is_all=all_ or bool(state), since_s=since_s, states=state, limit=limit)
        document = {"schema": "p2pc.jobs/1", "items": items}
        if json_ and watch:
            print_json_line(document)
        elif json_:
            print_json(document)
        else:
            if watch and is_terminal(sys.stdout):
                click.clear()
            print(_jobs_table(items) if items else "no jobs" + ("" if all_ or state else " today; all: p2pc jobs -a"))
            if any(job.get("as_of") for job in items):
                say("no node runs here: unfinished jobs are as they were then; start one: p2pc node start", level=1)
        if not watch:
            return 0
        time.sleep(interval)


def _recent_jobs(
    connection: Connection, *, is_all: bool, since_s: float | None, states: Sequence[str], limit: int
) -> list[dict[str, Any]]:
    query = "all=1&limit=10000" + (f"&state={','.join(states)}" if states else "")
    now = time.time()

    def is_wanted(job: Mapping[str, Any]) -> bool:
        began, ended = moment_of(job.get("submitted")), moment_of(job.get("finished"))
        if since_s is not None and (began is None or now - began.timestamp() > since_s):
            return False
        return is_all or ended is None or now - ended.timestamp() < RECENT_S

    return [job for job in connection.request("GET", f"/v1/jobs?{query}")["items"] if is_wanted(job)][:limit]


def _jobs_table(items: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            job["alias"],
            one_line(job["name"], 24),
            _state_text(job),
            counts_text(job),
            count_text(job["failed"]) if job["failed"] else "",
            "" if job.get("share") is None else f"{job['share']:.0%}",
            str(job["priority"]) if job.get("priority") else "",
            time_text(job.get("submitted")),
            duration_text(_took_s(job)),
        ]
        for job in items
    ]
    notes = [f"{job['alias']}: {line}" for job in items if job.get("doubt") for line in doubt_lines(job)]
    found = table(
        ["JOB", "NAME", "STATE", "DONE", "FAILED", "SHARE", "PRIORITY", "SUBMITTED", "TOOK"],
        rows,
        right=["DONE", "FAILED", "SHARE", "PRIORITY", "TOOK"],
        indent=0,
    )
    return "\n".join([found, *notes])


def _as_of_text(job: Mapping[str, Any]) -> str:
    """Say of when an unfinished job is shown where no node runs, and who may go on with it; else empty."""
    if not job.get("as_of"):
        return ""
    text = f"no node runs here; as of {time_text(job['as_of'])}: "
    others = [] if job.get("owner") else [one_line(name) for name in job.get("custodians") or ()]
    goes_on = f"; {', '.join(others)} may go on with it meanwhile" if others else ""
    return f"{text}{job['state']}{goes_on} (p2pc node start)"


def _state_text(job: Mapping[str, Any]) -> str:
    more = [(job.get("revoked"), "revoked"), (job.get("checking"), "not believed yet")]
    state = f"{job['state']} at {time_text(job['as_of'])}" if job.get("as_of") else str(job["state"])
    return ", ".join([state, *(f"{count_text(count)} {what}" for count, what in more if count)])


@click.command(
    cls=Command,
    examples=[
        ("p2pc show", "the newest job"),
        ("p2pc show j7k3/17", "one task"),
        ("p2pc show j7k3/3-9,12", ""),
        ("p2pc show --state failed --on atlas", "the tasks of the newest job that failed there"),
        ("p2pc show --sort took -l 10", "the ten longest"),
        ("p2pc show j7k3 --trace j7k3.jsonl", "when its tasks ran where, in the form of simulated ones"),
    ],
    sections={"Which tasks": ("with_tasks", *SECTION["Which tasks"], "sort", "limit")},
)
@json_option
@click.option("--tasks", "with_tasks", is_flag=True, help="A line for each task, as each of the following gives.")
@filter_options
@click.option("--sort", type=click.Choice([*SORTED_BY]), help="The largest first; else by number.")
@click.option("-l", "--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
@click.option("--trace", metavar="FILE", help="Also write when tasks ran where, as p2pc.trace/1 lines.")
@click.option("--ticket", is_flag=True, help="A signed ticket with which another machine can attach.")
@reference_argument
def show(
    *,
    json_: bool,
    with_tasks: bool,
    only: TaskFilter,
    sort: str | None,
    limit: int | None,
    trace: str | None,
    ticket: bool,
    ref: Reference,
) -> int:
    """Everything about one job or task, or a list of its tasks."""
    connection = open_kept()
    job = find_job(connection, ref)
    if ticket:
        answer = connection.request("POST", f"/v1/jobs/{job['id']}/ticket", {})
        if json_:
            print_json({"schema": "p2pc.ticket/1", "job": job["alias"], **answer})
        else:
            print(answer["ticket"])
            say(f"on another node of the group, until {time_text(answer['expires'])}: p2pc attach TICKET", level=1)
        return 0
    if trace is not None:
        _write_trace(connection, job, ref, trace)
    is_list = bool(with_tasks or only or sort or limit)
    if ref.ranges is None and not is_list:
        if json_:
            print_json(job)
        else:
            print(in_group(_job_text(job)))
        return 0
    if ref.task is not None and not is_list:
        place = f"/v1/jobs/{job['id']}/tasks/{ref.task}"
        task = connection.request("GET", place)
        if task["state"] == "running":
            tail = connection.request("GET", f"{place}/tail?stdout={NO_OUTPUT}&stderr={NO_OUTPUT}")
            task |= {name: tail.get(name) for name in ("progress", "quiet_s", "idle_s")}
        if json_:
            print_json(task)
        else:
            print(_task_text(job, task))
        return 0
    found = list(find_tasks(connection, job["id"], ref, only=only))
    if sort is not None:
        found.sort(key=lambda task: -(task.get(SORTED_BY[sort]) or 0))
    tasks = found[:limit]
    if json_:
        print_json({"schema": "p2pc.tasks/1", "items": tasks, "next": None})
        return 0
    print(_tasks_table(tasks) or none_found(job, only))
    if is_list and ref.ranges is None:
        shown = "" if len(tasks) == len(found) else f", {count_text(len(tasks))} of them here"
        say(f"{count_text(len(found))} of {plural(int(job.get('added') or 0), 'task')}{shown}", level=1)
    return 0


def _write_trace(connection: Connection, job: Mapping[str, Any], ref: Reference, path: str) -> None:
    from p2pcompute.plots.records import Writer, header, job_records
    from p2pcompute.version import VERSION

    records = job_records(job, find_tasks(connection, job["id"], ref))
    try:
        with open(path, "w", encoding="utf-8") as file:
            writer = Writer(file, header(version=VERSION, job=job["id"]))
            for record in records:
                writer.write(record)
            writer.flush()
    except OSError as error:
        raise UsageError(f"{path} cannot be written", error.strerror or str(error), "choose another file") from error
    say(f"{plural(len(records), 'record')} in {path}", level=1)


def _job_text(job: Mapping[str, Any]) -> str:
    early = f", stopped early: {job['halted']}" if job.get("halted") else ""
    facts = [
        ("state", (_as_of_text(job) or str(job["state"])) + early),
        ("tasks", _task_counts(job)),
        ("submitted", time_text(job.get("submitted"))),
        ("finished", time_text(job.get("finished")) if job.get("finished") else ""),
        ("took", duration_text(_took_s(job))),
        ("priority", str(job["priority"]) if job.get("priority") else ""),
        ("deadline", time_text(job["deadline"]) if job.get("deadline") else ""),
        ("kept by", kept_text(job)),
        ("kind", str(job.get("kind") or "")),
        ("exit code", "" if job.get("exit_code") is None else str(job["exit_code"])),
        ("id", str(job["id"])),
    ]
    results = job.get("results") or {}
    for name in ("dir", "file", "joblog"):
        if results.get(name):
            facts.append(("results" if name != "joblog" else "joblog", str(results[name])))
    if results.get("error"):
        facts.append(("", f"{results['state']}: {results['error'].get('what')} ({results['error'].get('why')})"))
        facts.append(("", str(results["error"].get("fix") or "")))
    lines = [f"{job['alias']}  {one_line(str(job['name']))}"]
    lines += [f"  {label:<10} {text}" for label, text in facts if text]
    if job.get("by_node"):
        lines += ["", shares_table(job)]
    if waits := coordinator_text(job, time.time()):
        lines += ["", waits]
    if job.get("doubt"):
        lines += ["", *doubt_lines(job)]
    if job.get("failed"):
        alias = job["alias"]
        lines += ["", f"why they failed: p2pc logs {alias} --failed; which: p2pc show {alias} --state failed"]
    return "\n".join(lines)


def _task_counts(job: Mapping[str, Any]) -> str:
    parts = [f"{counts_text(job)} done"]
    names = ("failed", "cancelled", "running", "waiting", "checking", "retried", "revoked", "disputed")
    parts += [f"{count_text(job[name])} {name}" for name in names if job.get(name)]
    return ", ".join(parts)


def _task_text(job: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    facts = [
        ("state", str(task["state"])),
        ("command", one_line(str(task.get("command") or ""))),
        ("inputs", one_line(" ".join(str(word) for word in task.get("inputs") or ()))),
        ("node", str(task.get("node") or "")),
        ("attempts", str(task.get("attempts") or "")),
        *_belief_facts(task.get("belief")),
        ("ended", exit_text(task)),
        ("started", time_text(task.get("started")) if task.get("started") else ""),
        ("took", duration_text(task["runtime_s"]) if task.get("runtime_s") is not None else ""),
        ("CPU", duration_text(task["cpu_s"]) if task.get("cpu_s") else ""),
        ("memory", bytes_text(task["peak_rss_bytes"]) + " at most" if task.get("peak_rss_bytes") else ""),
        ("says", _progress_text(task.get("progress"))),
        ("silent", _quiet_text(task.get("quiet_s"), task.get("idle_s"))),
        ("output", _output_text(task)),
        ("error", str(task.get("error") or "").rstrip().replace("\n", "\n" + " " * 13)),
    ]
    lines = [f"{job['alias']}/{task['index']}"] + [f"  {label:<10} {text}" for label, text in facts if text]
    for file in task.get("files") or ():
        lines.append(f"  {'file':<10} {one_line(file['name'])}, {bytes_text(file['size'])}")
    if task.get("stdout_bytes") or task.get("stderr_bytes"):
        lines.append(f"what it printed: p2pc logs {job['alias']}/{task['index']}")
    return "\n".join(lines)


def _belief_facts(belief: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Why a result is believed, or what it waits for."""
    return [("believed" if belief["believed"] else "waits", one_line(belief["why"], 300))] if belief else []


def _progress_text(said: Mapping[str, Any] | None) -> str:
    """How far a running function says that it is."""
    if not said:
        return ""
    count = f"{said['done']:g}" + ("" if said["total"] is None else f" of {said['total']:g}")
    return f"{count} {one_line(said['note'])}".rstrip()


def _quiet_text(quiet_s: float | None, idle_s: float | None) -> str:
    """For how long a running task has said nothing, and whether it computes, when that is worth a word."""
    if quiet_s is None or quiet_s < QUIET_SHOWN_S:
        return ""
    said = f"nothing printed for {duration_text(quiet_s)}"
    if idle_s is None:
        return said
    used = "but it uses CPU" if idle_s < IDLE_SHOWN_S else f"and no CPU used for {duration_text(idle_s)}"
    return f"{said}, {used}"


def _output_text(task: Mapping[str, Any]) -> str:
    sizes = {name: task.get(f"{name}_bytes") for name in ("stdout", "stderr")}
    return ", ".join(f"{name} {bytes_text(size)}" for name, size in sizes.items() if size)


def _tasks_table(tasks: Sequence[Mapping[str, Any]]) -> str:
    nodes = {(str(task.get("node") or ""), str(task.get("node_id") or "")): None for task in tasks}
    shares = [{"node": name, "short_id": key} for name, key in nodes]
    labels = dict(zip(nodes, node_labels(shares), strict=True))
    rows = [
        [
            str(task["index"]),
            task["state"],
            one_line(labels[str(task.get("node") or ""), str(task.get("node_id") or "")]),
            str(task.get("attempts") or ""),
            exit_text(task),
            duration_text(task["runtime_s"]) if task.get("runtime_s") is not None else "",
            one_line(" ".join(str(word) for word in task.get("inputs") or ()), 40),
        ]
        for task in tasks
    ]
    return (
        table(
            ["TASK", "STATE", "NODE", "TRIES", "END", "TOOK", "INPUT"], rows, right=["TASK", "TRIES", "TOOK"], indent=0
        )
        if rows
        else ""
    )


# --- waiting ------------------------------------------------------------------------------------------------------


@click.command(cls=Command, examples=[("p2pc wait", "for the newest job"), ("p2pc wait --timeout 1h j7k3", "")])
@json_option
@click.argument("refs", nargs=-1, type=ReferenceType(), metavar="[JOB]...")
@click.option("--timeout", metavar="DURATION", help="Give up after this, with exit code 7.")
@click.option("--any", "any_", is_flag=True, help="Until one of the jobs is over.")
def wait(json_: bool, refs: tuple[Reference, ...], timeout: str | None, any_: bool) -> int:
    """Wait for jobs; exit with the job's exit code (the first that is not 0)."""
    from p2pcompute.cli.follow import failures_hint, job_exit_code, where_results
    from p2pcompute.cli.progress import summary_text
    from p2pcompute.config import parse_duration

    deadline = time.monotonic() + parse_duration(timeout) if timeout else None
    connection = open_connection()
    # "last" must go on to mean the same job.
    waiting = [find_job(connection, ref)["id"] for ref in refs or (Reference("last"),)]
    over: dict[str, dict[str, Any]] = {}
    pause_s = WAIT_LOOK_S[0]
    while True:
        for job_id in waiting:
            if job_id not in over:
                job = _look_patiently(connection, job_id)
                if job["state"] not in ("waiting", "running"):
                    over[job_id] = job
        if len(over) == len(set(waiting)) or (any_ and over):
            break
        if deadline is not None and time.monotonic() > deadline:
            left = len(set(waiting)) - len(over)
            raise P2pcError(f"{plural(left, 'job')} not over after {timeout}", "", "p2pc jobs", code="not-finished")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, WAIT_LOOK_S[1])
    ended = [over[job_id] for job_id in dict.fromkeys(waiting) if job_id in over]
    if json_:
        print_json(ended[0] if len(waiting) == 1 else {"schema": "p2pc.jobs/1", "items": ended})
    for job in ended:
        if hint := failures_hint(job):
            say(hint, level=1)
        say(f"{job['alias']}: " + summary_text(job, _took_s(job) or 0.0, where=where_results(job)), level=1)
    return next((code for job in ended if (code := job_exit_code(job))), 0)


def _look_patiently(connection: Connection, job_id: str) -> dict[str, Any]:
    """Return JOB; a node that went away is waited for."""
    away_since: float | None = None
    while True:
        try:
            return connection.request("GET", f"/v1/jobs/{job_id}")
        except NodeUnavailable:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > NODE_AWAY_S_MAX:
                raise
            time.sleep(WAIT_LOOK_S[1])


@click.command(
    cls=Command,
    examples=[
        ("p2pc attach", "the newest job"),
        ("p2pc attach j7k3", ""),
        ("p2pc attach p2pc-job-…", "a job of another node, by its ticket"),
    ],
)
@click.argument("ref", type=ReferenceOrTicketType(), metavar="[JOB|TICKET]", default="last")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "plain", "json", "none"]),
    default="auto",
    envvar="P2PC_PROGRESS",
    help="On stderr.  [env: P2PC_PROGRESS]",
)
def attach(ref: Reference, progress: str) -> int:
    """Show the live view of a running job again.

    Output is printed from now on; what was printed before: p2pc logs.  Ctrl-C leaves the view, the job goes on.
    """
    from p2pcompute.cli.follow import (
        Signals,
        View,
        failures_hint,
        job_exit_code,
        make_printer,
        report_results,
        where_results,
    )
    from p2pcompute.cli.progress import Progress, choose_display, summary_text

    connection = open_connection()
    if ref.job.startswith(TICKET_PREFIX):
        ref = Reference(connection.request("POST", "/v1/attach", {"ticket": ref.job})["id"])
    job = find_job(connection, ref)
    note = job.get("note") or {}
    this = connection.request("GET", "/v1/status").get("node") or {}
    display = choose_display(progress)
    mode = note.get("output")
    printer, errors = make_printer(
        connection,
        job,
        display,
        mode=mode if mode in ("text", "jsonl", "none") else "text",
        kind=str(job.get("kind")),
        tag=bool(note.get("tag")),
    )
    state = Progress(f"{one_line(job['name'])} {job['alias']}", str(this.get("short_id") or ""), data=job)
    if (took_s := _took_s(job)) is not None:
        state.started = time.monotonic() - took_s
    with Signals().caught() as signals:
        view = View(
            connection,
            job["id"],
            job["alias"],
            printer,
            display,
            state,
            signals,
            errors=errors,
            after=int(job.get("last_seq") or 0),
            keeps_results=True,
            is_onlooker=True,
        )
        outcome = view.follow()
    if outcome.job is None:
        return outcome.exit_code or 0
    if errors is not None:
        errors.close()
    if hint := failures_hint(outcome.job):
        say(hint, level=1)
    say(summary_text(outcome.job, _took_s(outcome.job) or 0.0, where=where_results(outcome.job)))
    code = job_exit_code(outcome.job, style=str(note.get("exit_style") or "p2pc"))
    return code if report_results(outcome.job) or code else 1


# --- acting -------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[("p2pc cancel j7k3", "running tasks finish"), ("p2pc cancel --now -y j7k3/3-9", "kill these tasks")],
)
@json_option
@yes_option
@click.argument("refs", nargs=-1, required=True, type=ReferenceType(), metavar="JOB[/TASKS]...")
@click.option("--now", is_flag=True, help="Kill running tasks (default: let them finish).")
def cancel(json_: bool, yes: bool, refs: tuple[Reference, ...], now: bool) -> int:
    """Cancel jobs or tasks."""
    connection = open_kept()
    found = [(ref, find_job(connection, ref)) for ref in refs]
    open_jobs = [(ref, job) for ref, job in found if job["state"] in ("waiting", "running")]
    for _, job in found:
        if job["state"] not in ("waiting", "running"):
            say(f"{job['alias']} is over already: {job['state']}", level=1)
    if open_jobs:
        names = ", ".join(
            f"{job['alias']}"
            + ("" if ref.ranges is None else " (some tasks)")
            + f" ({one_line(job['name'], 24)}, {_task_counts(job)})"
            for ref, job in open_jobs
        )
        if not yes:
            ask(f"Cancel {names}?", needs="cancelling needs a yes", otherwise="nothing was cancelled")
    done: list[dict[str, Any]] = []
    for ref, job in open_jobs:
        body: dict[str, Any] = {"now": now}
        if ref.ranges is not None:
            body["indices"] = ref.indices(int(job.get("added") or job.get("total") or 0))
        after = connection.request("POST", f"/v1/jobs/{job['id']}/cancel", body)
        if ref.ranges is None and after.get("total") is None:
            # Its submitter may be gone: without an end of its tasks it would never be over.
            with contextlib.suppress(P2pcError):
                connection.request("POST", f"/v1/jobs/{job['id']}/seal", {})
        after = connection.request("GET", f"/v1/jobs/{job['id']}")
        done.append(after)
        if not now:
            _say_what_goes_on(connection, after, ref)
    if json_:
        print_json({"schema": "p2pc.jobs/1", "items": done})
    for job in done:
        say(f"{job['alias']}: {_task_counts(job)}", level=1)
    return 0


def _say_what_goes_on(connection: Connection, job: Mapping[str, Any], ref: Reference) -> None:
    """Say which of the tasks that were to be cancelled run, and so come to their end."""
    name = job["alias"]
    count = int(job["running"])
    if ref.ranges is not None:
        running = [str(task["index"]) for task in find_tasks(connection, job["id"], ref, ("running",))]
        count = len(running)
        name += "/" + ",".join(running)
    if count:
        what = name if ref.ranges is not None and count == 1 else f"{plural(count, 'task')} of {job['alias']}"
        does = "runs and finishes" if count == 1 else "run and finish"
        how = f"p2pc cancel --now {name if len(name) <= WORDS_SHOWN_MAX else job['alias'] + '/…'}"
        say(f"{what} {does}; to kill {'it' if count == 1 else 'them'}: {how}", level=1)


@click.command(cls=Command, examples=[("p2pc retry", "failed tasks of the newest job"), ("p2pc retry j7k3/17", "")])
@json_option
@reference_argument
@click.option("--failed/--all", "failed", default=True, help="Only failed tasks, or all of them.")
def retry(json_: bool, ref: Reference, failed: bool) -> int:
    """Run failed tasks of a job again."""
    connection = open_connection()
    job = find_job(connection, ref)
    body: dict[str, Any] = {"failed": failed}
    if ref.ranges is not None:
        body["indices"] = ref.indices(int(job.get("added") or job.get("total") or 0))
    if not failed:
        done = int(job["done"])
        if ref.ranges is not None:
            done = sum(1 for _ in find_tasks(connection, job["id"], ref, ("done",)))
        if done:
            say(f"{plural(done, 'result')} of {job['alias']} given up for new ones, also if those never come", level=1)
    answer = connection.request("POST", f"/v1/jobs/{job['id']}/retry", body)
    if json_:
        print_json({"schema": "p2pc.retry/1", "job": job["alias"], **answer})
    count = int(answer.get("count") or 0)
    hint = f": p2pc attach {job['alias']}" if count else "; only failed ones are: --all" * failed
    say(f"{plural(count, 'task')} of {job['alias']} to run again{hint}", level=1)
    return 0


def _freed_text(report: Mapping[str, Any]) -> str:
    """Bytes are of files of their own; short output lies in the database and is not counted."""
    jobs = plural(int(report["jobs"]), "job")
    return f"{jobs}, {bytes_text(report['freed_bytes'])}" if report["freed_bytes"] else jobs


@click.command(
    cls=Command, examples=[("p2pc prune --dry-run", "what it would free"), ("p2pc prune --older-than 7d -y", "")]
)
@json_option
@yes_option
@click.option("--older-than", metavar="DURATION", default="30d", show_default=True, help="Since the job ended.")
@click.option(
    "--keep-results/--drop-results",
    "keep",
    default=True,
    help="Keep results that nobody has written to disk yet.  [default: keep them]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be freed, free nothing.")
def prune(*, json_: bool, yes: bool, older_than: str, keep: bool, dry_run: bool) -> int:
    """Free disk space used by finished jobs."""
    from p2pcompute.config import parse_duration

    body = {"older_than_s": parse_duration(older_than), "drop_results": not keep, "dry_run": True}
    connection = open_kept()
    report = connection.request("POST", "/v1/prune", body)
    text = _freed_text(report)
    if not dry_run and report["jobs"]:
        if not yes:
            ask(f"Forget {text}?", needs="forgetting needs a yes", otherwise="nothing was freed")
        report = connection.request("POST", "/v1/prune", body | {"dry_run": False})
        text = _freed_text(report)
    if json_:
        print_json({"schema": "p2pc.prune/1", "dry_run": dry_run, **report})
    say(("would free " if dry_run else "freed ") + text, level=1)
    return 0
