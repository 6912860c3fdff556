"""Commands that look at the nodes: `status`, `peers`, `version`.  They never start one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from p2pcompute.cli.command import Amount, Command, json_option
from p2pcompute.cli.completing import complete_nodes
from p2pcompute.cli.connection import open_connection
from p2pcompute.cli.node_commands import STATUS_S_MAX
from p2pcompute.cli.output import (
    duration_text,
    in_group,
    moment_of,
    node_labels,
    one_line,
    options,
    plural,
    print_json,
    rate_text,
    table,
    time_text,
)
from p2pcompute.errors import NodeUnavailable, UsageError

DESCRIBE_S_MAX: Final = 15.0
"""The same (STATUS_S_MAX) when it asks another one, which may try its container engines first."""
PAUSED_BY_OWNER: Final = "by you"
"""What the node says when `pause` holds it."""

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def _watch_options(command: _Decorated) -> _Decorated:
    command = click.option(
        "--interval",
        type=Amount(min=0.1),
        default=1.0,
        show_default=True,
        metavar="SECS",
        help="Refresh period for --watch.",
    )(command)
    return click.option("-w", "--watch", is_flag=True, help="Refresh until interrupted.")(command)


def _repeat(show: Callable[[], None], *, watch: bool, interval: float) -> None:
    """Show once, or again and again on a cleared screen (with --json: as JSON Lines)."""
    while True:
        if watch and not options().json and sys.stdout.isatty():
            click.clear()
        show()
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(interval)


@click.command(cls=Command, examples=[("p2pc status", ""), ("p2pc status --json", "for scripts")])
@json_option
@_watch_options
@click.option("--peers/--no-peers", default=True, help="With a line for each node.")
def status(json_: bool, watch: bool, interval: float, peers: bool) -> int:
    """This node, its group, and anything that needs attention."""
    connection = open_connection(timeout_s=STATUS_S_MAX)

    def show() -> None:
        document = connection.request("GET", "/v1/status")
        if json_:
            _print_document(document, watch)
        else:
            print(in_group(status_text(document, with_peers=peers)))

    _repeat(show, watch=watch, interval=interval)
    return 0


def _print_document(document: Mapping[str, Any], watch: bool) -> None:
    from p2pcompute.cli.output import print_json_line

    if watch:
        print_json_line(document)
    else:
        print_json(document)


def status_text(document: Mapping[str, Any], *, with_peers: bool) -> str:
    """Return the sentence, the nodes, what to look at, and the jobs."""
    node, group, peers = document["node"], document["group"], document["peers"]
    up = [peer for peer in peers if peer["state"] in ("self", "up")]
    members = [peer for peer in peers if peer["state"] != "not met"]
    busy, total = (sum(peer[name] or 0 for peer in up) for name in ("busy", "slots"))
    if group["is_alone"]:
        slots = document["slots"]
        lines = [f"{node['name']} is {node['state']}, alone: {slots['busy']} of {plural(slots['total'], 'slot')} busy."]
    elif group.get("is_removed"):
        lines = [
            f"{node['name']} is {node['state']}, removed from group {group['name']}: it works for itself, "
            f"{busy} of {plural(total, 'slot')} busy."
        ]
    else:
        lines = [
            f"{node['name']} is {node['state']} in group {group['name']}: "
            f"{len(up)} of {plural(len(members), 'node')} up, {busy} of {plural(total, 'slot')} busy."
        ]
        if unmet := len(peers) - len(members):
            lines.append(
                f"{plural(unmet, 'more node')} heard, not shown to be {'a member' if unmet == 1 else 'members'} yet."
            )
    if with_peers and not group["is_alone"] and not group.get("is_removed"):
        lines += ["", peers_table(peers, node), ""]
    notes = [*document["notes"], *ban_notes(peers), *version_notes(peers, node)]
    if node.get("paused_because"):
        since, because = time_text(node["paused_since"]), node["paused_because"]
        what = "nothing runs" if because == PAUSED_BY_OWNER else "no work of others runs"
        how = (
            "p2pc resume, or see when it ends: p2pc node idle" if because == PAUSED_BY_OWNER else "see: p2pc node idle"
        )
        notes = [f"{what} here since {since}, paused {because}; {how}", *notes]
    if notes:
        lines.append(f"{plural(len(notes), 'thing')} to look at")
        lines += [f"  {note}" for note in notes]
    jobs = document["jobs"]
    lines.append(f"Jobs: {jobs['running']} running, {jobs['waiting']} waiting")
    if group["is_alone"]:
        lines.append("Add a computer: p2pc invite")
    return "\n".join(lines)


def ban_notes(peers: list[Mapping[str, Any]]) -> list[str]:
    """Return one sentence for each node that gets no more work from here because of its results."""
    return [
        f"{label} is banned: no more work from here, {one_line(peer['banned'])}; see: p2pc trust show {label}"
        for label, peer in zip(_labels(peers), peers, strict=True)
        if peer.get("banned")
    ]


def version_notes(peers: list[Mapping[str, Any]], node: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each node of another build than this one."""
    return [
        f"{one_line(peer['name'])} runs {one_line(peer['version'])}, this node {node['version']}. "
        "It works; update when handy."
        for peer in peers
        if peer["version"] and peer["version"] != node["version"]
    ]


def _labels(peers: list[Mapping[str, Any]]) -> list[str]:
    """Return the nodes' names as one tells them apart."""
    return node_labels([{"node": one_line(peer["name"], 24), "short_id": peer.get("short_id")} for peer in peers])


def peers_table(peers: list[Mapping[str, Any]], node: Mapping[str, Any]) -> str:
    """Return one line for each node; versions that differ from this node's carry a "!"."""
    rows = []
    for label, peer in zip(_labels(peers), peers, strict=True):
        is_self = peer["state"] == "self"
        state = str(node["state"]) if is_self and "state" in node else one_line(peer["state"])
        if peer["state"] == "not seen":
            state = f"not seen for {duration_text(peer['seen_s'])}" if peer["seen_s"] is not None else "not seen"
        slots = "–" if peer["slots"] is None else f"{peer['busy'] or 0}/{peer['slots']}"
        differs = peer["version"] and node.get("version") and peer["version"] != node["version"]
        rows.append(
            (
                label + (" (this)" if is_self else ""),
                state,
                slots,
                rate_text(peer.get("rate")),
                "banned" if peer.get("banned") else one_line(peer["trust"]),
                "–" if is_self else one_line(peer["path"]) or "–",
                one_line(peer["version"]) + (" !" if differs else ""),
            )
        )
    return table(("NODE", "STATE", "SLOTS", "RATE", "TRUST", "PATH", "VERSION"), rows, right=("SLOTS", "RATE"))


@click.command(
    cls=Command,
    examples=[
        ("p2pc peers", ""),
        ("p2pc peers atlas", "all that atlas says of itself, and how old that is"),
        ("p2pc peers --nearby", "also nodes that are not members"),
    ],
)
@json_option
@_watch_options
@click.option("--nearby", is_flag=True, help="Also nodes on this network that are not members.")
@click.argument("node", shell_complete=complete_nodes, required=False)
def peers(json_: bool, watch: bool, interval: float, nearby: bool, node: str | None) -> int:
    """Members, how they are reached, and what they offer."""
    connection = open_connection(timeout_s=STATUS_S_MAX)

    def show() -> None:
        """With NODE, of that one only, and what it answers when it is asked."""
        document = connection.request("GET", "/v1/peers?nearby=1" if nearby else "/v1/peers")
        if node is not None:
            named = _named(document["items"], node, lambda: connection.request("GET", "/v1/trust")["items"])
            described = connection.request("GET", f"/v1/peers/{named['id']}", timeout_s=DESCRIBE_S_MAX)
            document["items"] = [{**named, **described, "schema": "p2pc.peer/1"}]
        if json_:
            _print_document(document, watch)
        elif node is not None:
            print(_peer_text(document["items"][0]))
        else:
            print(_peers_text(document))

    _repeat(show, watch=watch, interval=interval)
    return 0


def _named(items: list[dict[str, Any]], name: str, all_known: Callable[[], list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the node with this name or start of an id.

    Args:
        all_known: asks for every installation that is known; members that are away are among them.

    Raises:
        UsageError: none, or several.
    """
    fix, code = "list them: p2pc peers", "no-such-node"
    if not name.strip():
        raise UsageError("no node is named", "the name is empty", fix, code=code)
    prefix = name.upper().replace("-", "")
    found = [item for item in items if item["name"] == name] or [
        item for item in items if prefix and item["id"].replace("-", "").startswith(prefix)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(item["short_id"] for item in found[:4])
        raise UsageError(f'"{name}" names {len(found)} nodes', f"they are {ids}", "give the id", code=code)
    import difflib

    known = all_known()
    for away in known:
        if away["name"] == name and away["roles"] is not None and not away["up"]:
            heard = moment_of(away.get("heard"))
            why = "it was not heard in this life of the node here"
            if heard is not None:
                why = f"it was heard last {duration_text(max(0.0, time.time() - heard.timestamp()))} ago"
            raise UsageError(
                f"{one_line(name)} is a member that is away", why, f"what is known: p2pc trust show {name}", code=code
            )
    near = difflib.get_close_matches(name, [item["name"] for item in (*items, *known)], n=1)
    why = f'did you mean "{near[0]}"?' if near else ""
    raise UsageError(f'there is no node "{name}" in the group', why, fix, code=code)


def _peer_text(peer: Mapping[str, Any]) -> str:
    heard = "" if peer["seen_s"] is None else f", heard {duration_text(peer['seen_s'])} ago"
    facts = (
        ("id", peer["id"]),
        ("state", peer["state"] + heard),
        ("slots", None if peer["slots"] is None else f"{peer['busy'] or 0} of {peer['slots']} busy"),
        ("path", peer["path"]),
        ("address", peer["address"]),
        ("version", peer["version"]),
        ("python", peer["python"]),
        ("invited by", peer["invited_by"]),
    )
    lines = [one_line(peer["name"])]
    lines += [f"  {label:11} {one_line(str(value))}" for label, value in facts if value]
    if peer["attributes"]:
        from p2pcompute.cli.find_commands import attributes_table

        age = f", {duration_text(peer['age_s'])} ago" if peer["age_s"] else ""
        others = {name: item for name, item in peer["attributes"].items() if name not in ("id", "name", "version")}
        lines += ["", f"What it says of itself{age}:", attributes_table(others)]
    if peer["trouble"]:
        lines += ["", f"It did not answer now: {one_line(peer['trouble'])}"]
    return "\n".join(lines)


def _peers_text(document: Mapping[str, Any]) -> str:
    items = document["items"]
    rows = [
        (
            one_line(peer["name"], 24) + (" (this)" if peer["state"] == "self" else ""),
            peer["short_id"],
            peer["state"]
            if peer["seen_s"] is None or peer["state"] != "not seen"
            else f"not seen for {duration_text(peer['seen_s'])}",
            "–" if peer["slots"] is None else f"{peer['busy'] or 0}/{peer['slots']}",
            one_line(peer["path"]) or "–",
            one_line(peer["address"]),
            one_line(peer["version"]),
            one_line(peer["invited_by"], 24),
        )
        for peer in items
    ]
    lines = [plural(len(items), "node")]
    lines.append(
        table(("NODE", "ID", "STATE", "SLOTS", "PATH", "ADDRESS", "VERSION", "INVITED BY"), rows, right=("SLOTS",))
    )
    if "nearby" in document:
        lines.append("")
        if document["nearby"]:
            lines.append("Nearby, not in this group:")
            lines.append(
                table(
                    ("NODE", "ID", "ADDRESS"),
                    [(one_line(n["name"], 24), n["short_id"], one_line(n["address"])) for n in document["nearby"]],
                )
            )
            lines.append("Invite one: p2pc invite --token   (then join there)")
        else:
            lines.append("No other nodes on this network.")
    return "\n".join(lines)


@click.command(cls=Command, examples=[("p2pc version", "")])
@json_option
def version(json_: bool) -> int:
    """Versions of command and node, and whether they fit."""
    from p2pcompute.limits import PROTOCOL_MAX, PROTOCOL_MIN
    from p2pcompute.version import VERSION

    own = {"version": VERSION, "protocol": [PROTOCOL_MIN, PROTOCOL_MAX]}
    try:
        node: dict[str, Any] | None = open_connection(timeout_s=STATUS_S_MAX).request("GET", "/v1/version")
    except NodeUnavailable:
        node = None
    if json_:
        print_json(
            {
                "schema": "p2pc.version/1",
                "command": own,
                "node": node,
                "python": sys.version.split()[0],
            }
        )
        return 0
    print(f"p2pc {VERSION}, protocol {PROTOCOL_MIN}-{PROTOCOL_MAX}, Python {sys.version.split()[0]}")
    if node is None:
        print("no node is running here")
    else:
        print(f"node {node['version']}, protocol {node['protocol'][0]}-{node['protocol'][1]}: they fit")
    return 0
