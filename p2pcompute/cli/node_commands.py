"""Commands about this machine's node and its group: `node`, `status`, `peers`, `invite`, `join`, `version`.

Commands that only look never start a node.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import click

from p2pcompute.cli import joining
from p2pcompute.cli.comfort_commands import idle, set_node
from p2pcompute.cli.command import CONTEXT, Amount, Command, CommandGroup, json_option
from p2pcompute.cli.connection import Connection, open_connection
from p2pcompute.cli.output import (
    count_text,
    duration_text,
    in_group,
    is_terminal,
    one_line,
    options,
    plural,
    print_json,
    rate_text,
    say,
    table,
    time_text,
)
from p2pcompute.errors import NodeUnavailable, TrustError, UsageError
from p2pcompute.limits import INVITE_WORDS_MAX, INVITE_WORDS_MIN

STATUS_S_MAX: Final = 5.0
"""A node that does not answer a look within this is said to be stuck."""
DESCRIBE_S_MAX: Final = 15.0
"""The same when it asks another one, which may try its container engines first."""
PAUSED_BY_OWNER: Final = "by you"
"""What the node says when `pause` holds it."""
JOIN_S_MAX: Final = 60.0
STOP_S_MAX: Final = 75.0
"""Longer than a node drains (STOP_GRACE_S)."""
STOP_NOW_S_MAX: Final = 15.0
INVITE_LOOK_S: Final = 0.5
"""Pause between looks at who has joined."""

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


# --- watching -------------------------------------------------------------------------------------


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
    notes = [*document["notes"], *version_notes(peers, node)]
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


def version_notes(peers: list[Mapping[str, Any]], node: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each node of another build than this one."""
    return [
        f"{one_line(peer['name'])} runs {one_line(peer['version'])}, this node {node['version']}. "
        "It works; update when handy."
        for peer in peers
        if peer["version"] and peer["version"] != node["version"]
    ]


def peers_table(peers: list[Mapping[str, Any]], node: Mapping[str, Any]) -> str:
    """Return one line for each node; versions that differ from this node's carry a "!"."""
    rows = []
    for peer in peers:
        is_self = peer["state"] == "self"
        state = str(node["state"]) if is_self and "state" in node else one_line(peer["state"])
        if peer["state"] == "not seen":
            state = f"not seen for {duration_text(peer['seen_s'])}" if peer["seen_s"] is not None else "not seen"
        slots = "–" if peer["slots"] is None else f"{peer['busy'] or 0}/{peer['slots']}"
        differs = peer["version"] and node.get("version") and peer["version"] != node["version"]
        rows.append(
            (
                one_line(peer["name"], 24) + (" (this)" if is_self else ""),
                state,
                slots,
                rate_text(peer.get("rate")),
                one_line(peer["trust"]),
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
@click.argument("node", required=False)
def peers(json_: bool, watch: bool, interval: float, nearby: bool, node: str | None) -> int:
    """Members, how they are reached, and what they offer."""
    connection = open_connection(timeout_s=STATUS_S_MAX)

    def show() -> None:
        """With NODE, of that one only, and what it answers when it is asked."""
        document = connection.request("GET", "/v1/peers?nearby=1" if nearby else "/v1/peers")
        if node is not None:
            named = _named(document["items"], node)
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


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the node with this name or start of an id.

    Raises:
        UsageError: none, or several.
    """
    wanted = name.upper()
    found = [item for item in items if item["name"] == name] or [
        item for item in items if item["id"].startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    import difflib

    near = difflib.get_close_matches(name, [item["name"] for item in items], n=1)
    why = "several nodes match" if found else f'did you mean "{near[0]}"?' if near else ""
    raise UsageError(f'there is no node "{name}" in the group', why, "see: p2pc peers", code="no-such-node")


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


@click.command(cls=Command)
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


# --- the node of this machine ---------------------------------------------------------------------


def _node_options(command: _Decorated) -> _Decorated:
    for option in reversed(
        (
            click.option("--name", metavar="NAME", help="Name shown to others.  [default: the host name]"),
            click.option(
                "--peer", multiple=True, metavar="HOST:PORT|DOMAIN", help="First contact, or a domain that names some."
            ),
            click.option("--discover/--no-discover", default=None, help="Look for nodes on the local network."),
            click.option("--cpus", metavar="N|N%", help="Tasks at once: a number, or a share of the cores."),
            click.option(
                "--accept",
                type=click.Choice(["none", "wasm", "sandboxed", "all"]),
                help="Work of others that it takes.  [default: sandboxed]",
            ),
            click.option("--until", metavar="DURATION|TIME", help="Be gone by then: finish or hand back what runs."),
        )
    ):
        command = option(command)
    return command


def _settings(
    *,
    name: str | None = None,
    peer: tuple[str, ...] = (),
    discover: bool | None = None,
    cpus: str | None = None,
    accept: str | None = None,
    until: str | None = None,
) -> dict[str, str]:
    """Return what was given by `_node_options`, as text by key; checked, so that the error names the flag's value."""
    from p2pcompute.config import convert, parse_seed

    domains = [text for text in peer if parse_seed(text)[1] is None]
    given = {
        "node.name": name,
        "node.peers": ",".join(text for text in peer if text not in domains) or None,
        "node.seeds": ",".join(domains) or None,
        "node.discover": None if discover is None else str(discover).lower(),
        "node.slots": cpus,
        "node.accept": accept,
        "node.until": _moment(until) if until else None,
    }
    found = {key: value for key, value in given.items() if value is not None}
    for key, value in found.items():
        convert(key, value)
    return found


def _moment(text: str) -> str:
    """Return when a node leaves, as its setting has it."""
    from datetime import datetime

    from p2pcompute.cli.moments import parse_deadline

    now = datetime.now().astimezone()
    return parse_deadline(text, now, flag="--until", past="the node would stop at once").isoformat(timespec="seconds")


@click.group(
    cls=CommandGroup,
    invoke_without_command=True,
    context_settings=CONTEXT,
    subcommand_metavar="[start|stop|restart|set|idle]",
)
@_node_options
@click.pass_context
def node(context: click.Context, /, **flags: Any) -> int | None:
    """Run this machine's node in the foreground; subcommands control it."""
    settings = _settings(**flags)
    if context.invoked_subcommand is not None:
        if settings:
            raise UsageError(
                "these flags belong after the subcommand", "", f"p2pc node {context.invoked_subcommand} --help"
            )
        return None
    from p2pcompute.daemon.main import DaemonOptions, run_daemon

    def ready(running: Any) -> None:
        view = running.status()
        say(f"{view.name} is up, pid {os.getpid()}; Ctrl-C drains and stops it, a second one stops it now", level=1)

    return run_daemon(DaemonOptions(flags=settings, is_foreground=True, on_ready=ready))


@node.command(
    cls=Command,
    examples=[
        ("p2pc node start", ""),
        ("p2pc node start --cpus 50% --until 18:00", "half of the cores for tasks, and gone by six"),
    ],
)
@_node_options
def start(**flags: Any) -> int:
    """Start the node in the background."""
    return _start(_settings(**flags))


def _start(settings: Mapping[str, str]) -> int:
    from p2pcompute.cli.daemon_start import start_background
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    connection = Connection(paths.socket, timeout_s=STATUS_S_MAX)
    if connection.is_answering():
        view = connection.request("GET", "/v1/status")["node"]
        say(f"{view['name']} is running already, pid {view['pid']}", level=1)
        if settings:
            raise UsageError(
                "the node is running already, with its own settings",
                "these flags count when it starts",
                "p2pc node restart",
                code="running",
            )
        return 0
    pid = start_background(paths, settings=[f"{key}={value}" for key, value in settings.items()])
    view = connection.request("GET", "/v1/status")
    say(
        f"{view['node']['name']} is up, pid {pid}, {plural(view['slots']['total'], 'slot')}; stop it: p2pc node stop",
        level=1,
    )
    return 0


@node.command(
    cls=Command,
    examples=[
        ("p2pc node stop", "tasks that run have node.grace (30 s) to end"),
        ("p2pc node stop --now", "they are run elsewhere, or here at the next start"),
    ],
)
@click.option("--drain/--now", default=True, help="Finish or hand back tasks first, or stop at once.")
def stop(drain: bool) -> int:
    """Drain (finish or hand back tasks, tell peers) and stop; membership stays."""
    stop_node(drain=drain)
    return 0


def stop_node(*, drain: bool) -> None:
    """Stop the node and wait until it has gone.

    Raises:
        NodeUnavailable: none runs, or it does not stop.
    """
    from p2pcompute.cli.daemon_start import is_running, running_pid, wait_stopped
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    connection = Connection(paths.socket, timeout_s=STATUS_S_MAX)
    try:
        view = connection.request("GET", "/v1/status")
        busy = view["slots"]["busy"]
        connection.request("POST", "/v1/shutdown", {"drain": drain})
        if drain and busy:
            say(f"finishing {plural(busy, 'task')} …", level=1)
    except NodeUnavailable as error:
        if not is_running(paths):
            raise NodeUnavailable("no node is running here", "", "there is nothing to stop") from error
        pid = running_pid(paths)
        if drain or pid is None:
            holder = f"another process holds {paths.lock}" if pid is None else f"pid {pid} holds {paths.lock}"
            fix = "p2pc node stop --now" if pid is not None else f"end that process; it is shown by: fuser {paths.lock}"
            raise NodeUnavailable("the node does not answer", holder, fix, code="node-silent") from error
        # Stuck or stopped: nothing is lost, its journal is on disk.
        os.kill(pid, signal.SIGKILL)
    if not wait_stopped(paths, STOP_S_MAX if drain else STOP_NOW_S_MAX):
        raise NodeUnavailable(
            "the node has not stopped yet", f"pid {running_pid(paths)}", "p2pc node stop --now", code="node-silent"
        )
    say("stopped", level=1)


@node.command(cls=Command, examples=[("p2pc node restart", "as it was started"), ("p2pc node restart --cpus 2", "")])
@click.option("--drain/--now", default=True, help="Finish or hand back tasks first, or stop at once.")
@_node_options
def restart(drain: bool, **flags: Any) -> int:
    """Stop and start, after an upgrade or with other settings.  Flags of its start that are not given here stay."""
    return _restart(_settings(**flags), drain=drain)


def _restart(settings: Mapping[str, str], *, drain: bool = True) -> int:
    from p2pcompute.cli.daemon_start import how_started
    from p2pcompute.cli.setting_checks import check_start
    from p2pcompute.config import load_settings, parse_moment
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    kept = dict(how_started(paths).flags)
    if "node.until" in kept and parse_moment(kept["node.until"]) <= time.time():
        del kept["node.until"]
    kept = {key: value for key, value in kept.items() if key not in settings}
    check_start(load_settings(paths, os.environ, flags={**kept, **settings}))  # else it would stop, and not start
    try:
        stop_node(drain=drain)
    except NodeUnavailable as error:
        if error.code != "no-node":
            raise
    if kept:
        flags = " ".join(f"{key}={value}" for key, value in kept.items())
        say(f"with {flags}, as it was started", level=1)
    return _start({**kept, **settings})


node.add_command(set_node)
node.add_command(idle)


# --- group ----------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[
        ("p2pc invite", "a code to say or type on the other computer; waits until it has joined"),
        ("p2pc invite --uses 20 --expires 1h", "for a classroom"),
        ("p2pc invite --qr", "also as a picture to scan"),
        ("p2pc invite --token", "one line for scripts; does not wait"),
    ],
)
@click.option("--mine", is_flag=True, help="The other computer is mine: they trust each other fully.")
@click.option(
    "--role",
    type=click.Choice(["both", "worker", "submitter"]),
    default="both",
    show_default=True,
    help="What it may do in the group: work, submit work, or both (and invite others).",
)
@click.option("--token", is_flag=True, help="One line for scripts, instead of words.")
@click.option(
    "--words",
    type=click.IntRange(INVITE_WORDS_MIN, INVITE_WORDS_MAX),
    default=INVITE_WORDS_MIN,
    show_default=True,
    metavar="N",
    help="How many words the code has.",
)
@click.option(
    "--uses",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    metavar="N",
    help="How many computers it admits.",
)
@click.option("--expires", default="10m", show_default=True, metavar="DURATION", help="How long it is good.")
@click.option("--qr/--no-qr", default=False, help="Show the code as a QR code too.")
@click.option("--no-wait", is_flag=True, help="Print the code and leave; it stays open.")
@json_option
def invite(
    mine: bool, role: str, token: bool, words: int, uses: int, expires: str, qr: bool, no_wait: bool, json_: bool
) -> int:
    """Let another computer join the group."""
    if mine and role != "both":
        raise UsageError("--mine and --role exclude each other", "a computer of yours may do what this one may")
    from p2pcompute.cli.daemon_start import ensure_node, why_embedded
    from p2pcompute.config import parse_duration

    expires_s = parse_duration(expires)
    reason = why_embedded(os.environ)
    if reason is not None and not os.environ.get("P2PC_NO_AUTOSTART") and not open_connection().is_answering():
        raise NodeUnavailable(
            "an invitation needs a node that stays",
            f"here a node would end with this command ({reason})",
            "p2pc node start, or p2pc node in another terminal",
        )
    connection = ensure_node(announce=_announce)
    body = {"uses": uses, "expires_s": expires_s, "words": 0 if token else words, "role": role, "mine": mine}
    made = connection.request("POST", "/v1/invite", body)
    from p2pcompute.cli import consent

    careful = f"Careful: {consent.power(consent.accepted())}.\nGive it to nobody else."
    if mine:
        careful = "Careful: who uses it is trusted fully: its results are believed, it may do what this computer may.\n"
        careful += "Give it to nobody else."
    who = "One computer" if uses == 1 else f"{count_text(uses)} computers"
    if json_:
        print_json({"schema": "p2pc.invite/1", **made})
        return 0
    if token:
        say(f"{who} may join {made['group']} within {expires}; there, run p2pc join with this token:", level=1)
        print(made["token"], flush=True)
        say(careful)
        return 0
    _show_code(made, qr=qr)
    say(careful)
    if no_wait:
        say(f"{who} may join within {expires}.", level=1)
        return 0
    say(f"{who}, within {expires}.  Waiting … (Ctrl-C takes the code back)", level=1)
    return _wait_for_joiners(connection, made, uses, mine=mine)


def _show_code(made: Mapping[str, Any], *, qr: bool) -> None:
    from p2pcompute.trust.words import Code, parse_code

    say(f"A new computer may join {made['group']}.  On it, run:\n", level=1)
    print(f"    p2pc join {made['code']}", flush=True)
    addresses = [address for address in made["addresses"] if not address.startswith(("127.", "[::1]"))]
    if addresses:
        say(f"\nIf it is on another network: p2pc join {made['code']}@{addresses[0]}", level=1)
    if qr:
        import segno

        code = parse_code(made["code"])
        reachable = Code(code.number, code.words, addresses[0] if addresses else "")
        segno.make(reachable.link).terminal(out=sys.stderr, compact=True)


def _wait_for_joiners(connection: Connection, made: Mapping[str, Any], uses: int, *, mine: bool) -> int:
    """Tell who joined and who did not know the words, until the invitation has ended."""
    known: list[str] = []
    refused = 0
    try:
        while True:
            state = connection.request("GET", f"/v1/invites/{made['id']}")
            for line in state["refused"][refused:]:
                say(f"! a wrong try from {one_line(line)}")
            refused = max(refused, len(state["refused"]))
            for one in state["admitted"]:
                if one["id"] not in known:
                    known.append(one["id"])
                    name = one_line(one["name"])
                    say(f"{name} joined: {one['id'][:9]}, {one['address']}", level=1)
                    if not mine:
                        say("Its results are checked until they have earned belief, which takes a thousand tasks or")
                        say(f"more; is it yours too?  p2pc trust set {name} trusted")
            if state["ending"] is not None:
                break
            time.sleep(INVITE_LOOK_S)
    except KeyboardInterrupt:
        connection.request("POST", f"/v1/invites/{made['id']}/withdraw", {})
        say("\nthe code is taken back", level=1)
        return 130
    if state["ending"] == "used" or known:
        return 0
    why = "nobody used it in time" if state["ending"] == "expired" else "too many wrong tries"
    raise TrustError("nobody has joined", f"the code is void: {why}", "make a NEW one: p2pc invite", code="not-joined")


def _invitation(code: str | None, via: str | None) -> str:
    """Return the code or token that was typed, checked as far as it can be here: nobody is asked to agree before.

    Raises:
        UsageError: it is neither.
    """
    from p2pcompute.config import parse_peer
    from p2pcompute.trust.words import is_code, parse_code

    if code is None:
        if options().no_input or not is_terminal(sys.stdin):
            raise UsageError("which invitation?", "no code was given", "p2pc join CODE", code="mistyped")
        code = str(click.prompt("Code (like 7-crossover-clockwork-tobacco)", err=True))
    if is_code(code):
        parsed = parse_code(code)
        if via is not None:
            parsed = replace(parsed, address=via)
        if parsed.address:
            parse_peer(parsed.address)
        return str(parsed)
    from p2pcompute.trust.invites import TOKEN_PREFIX, parse_token

    if not "".join(code.split()).lower().startswith(TOKEN_PREFIX):
        raise UsageError(
            "this is neither a code nor a token",
            f"a code looks like 7-crossover-clockwork-tobacco, a token begins with {TOKEN_PREFIX}",
            "type or copy what p2pc invite shows on the other computer",
            code="mistyped",
        )
    parse_token(code)
    if via is not None:
        raise UsageError("--via goes with a code of words", "a token knows its addresses", "leave it out")
    return code


def _announce(text: str) -> None:
    say(text, level=1)


@click.command(
    cls=Command,
    examples=[
        ("p2pc join 7-crossover-clockwork-tobacco", "the code that p2pc invite shows there"),
        ("p2pc join 7-crossover-clockwork-tobacco@nova:7878", "when that computer is on another network"),
        ("p2pc join", "asks for the code"),
        ("p2pc join --accept sandboxed p2pc-…", "a token, in scripts"),
        ("p2pc join --psk group.key", "where the setting admit.psk names a copy of this file"),
        ("p2pc join --ssh-key ~/.ssh/id_ed25519 --via nova:7878", "where admit.keys lists that key"),
        ("p2pc join --nearby", "where admit.nearby lets everybody on the network in"),
        ("p2pc join --open --via nova.example.org:7878", "a group that is open to everybody"),
    ],
)
@click.argument("code", nargs=-1, metavar="[CODE]")
@click.option("--via", metavar="HOST:PORT", help="Address of the inviting computer, when it is not on this network.")
@click.option("--psk", metavar="FILE", help="Join by a pre-shared key instead of a code.")
@click.option("--ssh-key", metavar="FILE", help="Join by an OpenSSH Ed25519 key instead of a code.")
@click.option("--nearby", is_flag=True, help="Join a group on this network that lets everybody in.")
@click.option("--open", "is_open", is_flag=True, help="Join a group that is open to everybody (p2pc group policy).")
@click.option("--inviter", metavar="ID", help="Id that the other computer must have, for the last three.")
@click.option(
    "--accept",
    type=click.Choice(["none", "wasm", "sandboxed", "all"]),
    help="Agree to this work of members: none, WASM modules, in a sandbox, or anything as you.",
)
@click.option("--name", metavar="NAME", help="Name of this computer in the group.")
@json_option
def join(
    code: tuple[str, ...],
    via: str | None,
    psk: str | None,
    ssh_key: str | None,
    nearby: bool,
    is_open: bool,
    inviter: str | None,
    accept: str | None,
    name: str | None,
    json_: bool,
) -> int:
    """Join a group with an invitation."""
    standing = joining.standing_way(
        psk=psk, ssh_key=ssh_key, nearby=nearby, is_open=is_open, via=via, inviter=inviter, words=code
    )
    invitation = "" if standing is not None else _invitation(" ".join(code) or None, via)
    from p2pcompute.cli import consent

    if accept is None:
        power = consent.power(consent.accepted())
        if options().no_input or json_ or not is_terminal(sys.stdin):
            fix = f"p2pc join --accept {consent.accepted()} {'CODE' if standing is None else '…'}"
            raise TrustError("joining needs your consent", power, fix, code="consent")
        say(f"Joined, {power}.")
        if not click.confirm("Join?", default=False, err=True):
            raise TrustError("not joined", "you said no; the invitation is still good", None, code="consent")
    from p2pcompute.cli.daemon_start import ensure_node, forget_flag, why_embedded
    from p2pcompute.config import convert, write_setting
    from p2pcompute.places import find_paths

    if name is not None:
        convert("node.name", name)
    if accept is not None:
        consent.agree(accept)
    connection = ensure_node(announce=_announce)
    if accept is not None:
        _hold_to(accept, is_ours=connection.embedded is None)
    how = {"token": invitation} if standing is None else {"entry": joining.entry_of(standing, connection)}
    joined = connection.request("POST", "/v1/join", {**how, "name": name}, timeout_s=JOIN_S_MAX)
    if name is not None:
        paths = find_paths(os.environ)
        write_setting(paths.config_file, "node.name", name)
        forget_flag(paths, "node.name")
    view = connection.request("GET", "/v1/status")
    if json_:
        print_json({"schema": "p2pc.join/1", **joined, "name": view["node"]["name"]})
        return 0
    found = f"{one_line(joined['inviter'])} ({joined['inviter_id'][:9]})"
    say(f"Found {found} at {joined['address']} and checked its identity", level=1)
    print(f'This computer is now "{view["node"]["name"]}" in group {joined["group"]}')
    if accept is not None:
        say(
            ("While a node runs here " if connection.embedded is not None else "From now on ")
            + consent.power(accept)
            + "."
        )
    if joined["mine"]:
        inviter_name = one_line(joined["inviter"])
        say(
            f"It was invited as a computer of {inviter_name}'s owner: they trust each other fully."
            f"\nNot yours? p2pc trust set {inviter_name} member"
        )
    if connection.embedded is not None:
        reason = why_embedded(os.environ)
        say(f"No node stays running here ({reason}).  To take part: p2pc node start, or p2pc node", level=1)
    else:
        say("Try it: p2pc demo", level=1)
    return 0


def _hold_to(accept: str, *, is_ours: bool) -> None:
    """See to it that the running node takes the work of members that was agreed to, and no other: it may have to start
    anew.

    Args:
        is_ours: it is not the command's own, which has just started.

    Raises:
        UsageError: it goes by something else than the settings file, or somebody else has to start it.
    """
    from p2pcompute.cli.daemon_start import how_started
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    started = how_started(paths)
    if started.accept in ("", accept):
        return
    if started.is_foreground:
        raise UsageError(
            f"the node that runs here goes by node.accept={started.accept} until it starts anew",
            "what you agree to would not hold yet; it runs in a terminal or as a service",
            "stop it there and start it again, then join",
            code="running",
        )
    if is_ours:
        say(f"The node starts anew, with node.accept={accept} …", level=1)
        _restart({})
        if how_started(paths).accept == accept:
            return
    raise UsageError(
        f"the node here goes by node.accept={how_started(paths).accept}, not {accept}",
        "something goes before the settings file, as P2PC_NODE__ACCEPT does",
        "see: p2pc config show",
        code="running",
    )


# --- settings -------------------------------------------------------------------------------------
