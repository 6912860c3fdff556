"""`p2pc explain`, and the same for `run --explain`, jobs that can never run, and jobs that make no progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import click

from p2pcompute.cli.command import Command, Reference, json_option
from p2pcompute.cli.completing import complete_nodes
from p2pcompute.cli.job_views import coordinator_text, find_job, reference_argument
from p2pcompute.cli.kept_connection import open_kept
from p2pcompute.cli.output import duration_text, in_group, moment_of, node_labels, one_line, plural, print_json, table
from p2pcompute.errors import NodeUnavailable, NoEligibleNode

DAY_S: Final = 86400
NODES_SHOWN_MAX: Final = 8
"""Nodes in a text that nobody asked for."""
AWAY_SHOWN_MAX: Final = 3
"""Nodes that are away and are named in one sentence."""


@click.command(
    cls=Command,
    examples=[
        ("p2pc explain", "the newest job"),
        ("p2pc explain j7k3/17", "one task"),
        ("p2pc explain j7k3 --node atlas", "why not there?"),
        ("p2pc run --explain --require has=ffmpeg --mem 8G true ::: a", "before anything runs"),
    ],
)
@json_option
@click.option("--node", shell_complete=complete_nodes, metavar="NODE", help="Only about this node.")
@reference_argument
def explain(*, json_: bool, node: str | None, ref: Reference) -> int:
    """Why is it not running, or not faster?"""
    connection = open_kept()
    job = find_job(connection, ref)
    if connection.embedded is not None and job["state"] in ("waiting", "running"):
        raise NodeUnavailable("no node is running here", f"{job['alias']} goes on when one does", "p2pc node start")
    query = f"?node={quote(node)}" if node else ""
    document = connection.request("GET", f"/v1/jobs/{job['id']}/explanation{query}")
    task = None
    if ref.task is not None:
        task = connection.request("GET", f"/v1/jobs/{job['id']}/tasks/{ref.task}")
    if json_:
        print_json({**document, "task": task and {name: task.get(name) for name in ("index", "state", "node")}})
    else:
        print(in_group("\n".join([_sentence(document, task), *_details(document), *unheard_lines(document)])))
    return 4 if document["can_never_run"] and job["state"] == "waiting" else 0


def print_explanation(document: Mapping[str, Any], *, as_json: bool) -> int:
    """Print what nodes say to a job that is not submitted; the exit code says whether it could ever run."""
    if as_json:
        print_json(document)
    else:
        print("\n".join([_counts(document), *_details(document), *unheard_lines(document)]))
    return 4 if document["can_never_run"] else 0


def never_error(document: Mapping[str, Any]) -> NoEligibleNode:
    """Return the error of a job that no node will ever run."""
    reasons = [
        one_line(f"{name}: {' · '.join(reason['what'] for reason in node['reasons'])}")
        for name, node in zip(_names(document), document["nodes"], strict=True)
    ]
    more = [f"and {len(reasons) - NODES_SHOWN_MAX} more nodes"] if len(reasons) > NODES_SHOWN_MAX else []
    helps = [f"{one['what']}    {one['effect']}" for one in document["would_help"]]
    return NoEligibleNode(
        "no node can ever run this" if len(reasons) > 1 else "the only node here can never run this",
        "\n".join(reasons[:NODES_SHOWN_MAX] + more),
        "\n".join(helps) or "add a computer that can: p2pc invite",
    )


def stalled_lines(document: Mapping[str, Any]) -> list[str]:
    """Return what is said of a job that makes no progress."""
    return [_sentence(document, None), *_details(document)]


def unheard_lines(document: Mapping[str, Any]) -> list[str]:
    """Return what is said of attributes that no node has: they may come with a plugin of another node."""
    lines = []
    for one in document["unheard"]:
        effect = "this waits for one that does" if one.get("is_required", True) else "--prefer changes nothing by it"
        lines.append(f"note: no node here has {one_line(one['name'])}: {effect}")
        near = f"did you mean {one_line(one['near'])}?  " if one["near"] else ""
        lines.append(f"  why:  {plural(len(document['nodes']), 'node')} known here; a label or a plugin may bring it")
        lines.append(f"  fix:  {near}what they have: p2pc peers NODE")
    return lines


def _names(document: Mapping[str, Any]) -> list[str]:
    nodes = [{"node": node["name"], "short_id": node["short_id"]} for node in document["nodes"]]
    return [
        f"{label} (this)" if node["is_this"] else label
        for label, node in zip(node_labels(nodes), document["nodes"], strict=True)
    ]


def _counts(document: Mapping[str, Any]) -> str:
    total = sum(document[name] for name in ("now", "later", "never", "unknown"))
    text = f"{document['now']} of {plural(total, 'node')} can take it now"
    text += f", {document['later']} can later." if document["later"] else "."
    if document["now"] or document["later"]:
        return text
    away = [
        f"{one_line(name)} ({reason['what']})"
        for name, node in zip(_names(document), document["nodes"], strict=True)
        if node["verdict"] == "unknown"
        for reason in node["reasons"]
        if reason["code"] == "not-seen"
    ]
    more = f" and {len(away) - AWAY_SHOWN_MAX} more" if len(away) > AWAY_SHOWN_MAX else ""
    return text + (f"  {', '.join(away[:AWAY_SHOWN_MAX])}{more} may fit." if away else "")


def _sentence(document: Mapping[str, Any], task: Mapping[str, Any] | None) -> str:
    job = document["job"]
    name = job["alias"] if task is None else f"{job['alias']}/{task['index']}"
    state = job["state"] if task is None else task["state"]
    if state in ("done", "failed", "cancelled"):
        why = f"  Why: p2pc logs {name} --failed." if state == "failed" else ""
        return f"{name} is over: {state}.{why}  As nodes are now: {_counts(document)}"
    if state == "running" and task is not None:
        return f"{name} runs on {task.get('node')}."
    if state == "running" and job["running"]:
        rest = f", {plural(job['waiting'], 'task')} waiting" if job["waiting"] else ""
        nodes = [share["node"] for share in job["by_node"] if share["running"]]
        return f"{name} runs: {plural(job['running'], 'task')} on {', '.join(nodes)}{rest}.  {_counts(document)}"
    if doubt := _doubt(job, task):
        return f"{name} {doubt}"
    began = moment_of(job.get("submitted"))
    waited = "" if began is None else f" has waited {duration_text(max(0.0, time.time() - began.timestamp()))}"
    text = f"{name}{waited}: {_counts(document)}"
    owner = one_line(str(job.get("owner") or ""))
    if not owner:
        return text
    away = coordinator_text(job, time.time())
    return f"{text}  {away or f'{owner} hands out its tasks; when that is away, a node that keeps the job does'}."


def _doubt(job: Mapping[str, Any], task: Mapping[str, Any] | None) -> str:
    """Return what is waited for where everything was computed and is not believed yet; empty: a node is waited for."""
    if task is not None:
        belief = task.get("belief") or {"believed": True}
        return "" if belief["believed"] else f"was computed and waits to be believed: {one_line(belief['why'], 300)}."
    doubt = job.get("doubt")
    if not doubt or job["waiting"] > job.get("checking", 0):
        return ""
    fix = f"; {one_line(doubt['fix'])}" if doubt["fix"] else ""
    return f"was computed and waits to be believed: {one_line(doubt['what'], 300)}{fix}."


def _reason(reason: Mapping[str, Any], verdict: str) -> str:
    """Return what is in the way, and when it may be over by what the node expects, unless other things stay."""
    moment = moment_of(reason["passes_at"])
    if moment is None or verdict != "later":
        return str(reason["what"])
    left_s = moment.timestamp() - time.time()
    when = (
        "about now"
        if left_s < 1
        else f"~{moment.astimezone():%H:%M:%S}"
        if left_s < DAY_S
        else f"in {duration_text(left_s)}"
    )
    return f"{reason['what']}; {'frees' if reason['code'] == 'busy' else 'a task there ends'} {when}"


def _details(document: Mapping[str, Any]) -> list[str]:
    """Return the table of reasons, what would help, and what is not the cause."""
    rows = []
    for name, node in zip(_names(document), document["nodes"], strict=True):
        rows.append(
            [name, node["verdict"], one_line(" · ".join(_reason(one, node["verdict"]) for one in node["reasons"]))]
        )
    lines = ["", table(["NODE", "VERDICT", "BECAUSE"], rows)]
    if document["left_out"]:
        lines.append(f"  and {plural(document['left_out'], 'node')} more")
    if document["why_slow"]:
        lines += ["", "Why it is not faster"]
        lines += [
            f"  {one_line(one['what'])}" + (f"; {one['fix']}" if one["fix"] else "") for one in document["why_slow"]
        ]
    if document["would_help"]:
        width = max(len(one["what"]) for one in document["would_help"])
        lines += ["", "What would help"]
        lines += [f"  {one['what']:{width}}   {one['effect']}" for one in document["would_help"]]
    if document["not_the_cause"] and any(node["reasons"] for node in document["nodes"]):
        lines.append(f"Not the cause: {', '.join(document['not_the_cause'])}.")
    return lines
