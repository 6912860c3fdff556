"""`p2pc trust`: how far this computer trusts others."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

import click

from p2pcompute.cli.asking import ask
from p2pcompute.cli.command import CONTEXT, Command, CommandGroup, json_option, yes_option
from p2pcompute.cli.completing import complete_nodes
from p2pcompute.cli.connection import open_connection
from p2pcompute.cli.output import one_line, print_json, say, table, time_text
from p2pcompute.errors import UsageError

LOOK_S_MAX: Final = 5.0
"""A node that does not answer a look within this is said to be stuck."""
EVENTS_SHOWN: Final = 10
SHORT_ID_CHARS: Final = 9
"""Of a device id, as people see and type it."""
POWERS: Final = {
    "trusted": (
        "its results are believed without a check",
        "its values may be pickles, which can run code in your programs",
        "it may decide when others disagree about a result",
    ),
    "blocked": (
        "it is cut off from this computer at once",
        "its work is not run here, and it gets none of yours",
        "other members still know it",
    ),
}
"""What a level means, where somebody should think before."""


@click.group(cls=CommandGroup, context_settings=CONTEXT)
def trust() -> None:
    """Who may do what, and how far results are believed."""


def named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the installation with this name or start of an id.

    Raises:
        UsageError: none, or several.
    """
    wanted = name.upper()
    found = [item for item in items if item["name"] == name]
    found = found or [item for item in items if item["id"].startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(item["short_id"] + (" (this one)" if item.get("level") == "self" else "") for item in found)
        raise UsageError(f'several nodes are called "{name}"', ids, "name one by its id", code="no-such-node")
    import difflib

    near = difflib.get_close_matches(name, [item["name"] for item in items], n=1)
    why = f'did you mean "{near[0]}"?' if near else "it was not met yet, or is in another group"
    raise UsageError(f'no node "{name}" is known here', why, "see: p2pc trust list", code="no-such-node")


def typed_name(items: list[dict[str, Any]], name: str, device_id: str) -> str:
    """Return what to call an installation in a command: its name, or its id where the name is not its alone."""
    others = [item for item in items if not item["id"].startswith(device_id)]
    is_plain = shlex.quote(name) == name and not name.startswith("-")
    is_taken = any(item["name"] == name for item in others)
    return name if is_plain and not is_taken else device_id[:SHORT_ID_CHARS]


def known() -> list[dict[str, Any]]:
    """Return what every installation is to this one, this one first."""
    items: list[dict[str, Any]] = open_connection(timeout_s=LOOK_S_MAX).request("GET", "/v1/trust")["items"]
    return items


@trust.command("list", cls=Command, examples=[("p2pc trust list", "")])
@json_option
def list_(json_: bool) -> int:
    """Levels and roles of every node that is known."""
    document = open_connection(timeout_s=LOOK_S_MAX).request("GET", "/v1/trust")
    if json_:
        print_json(document)
        return 0
    rows = [
        (
            one_line(item["name"], 24) + (" (this)" if item["level"] == "self" else ""),
            item["short_id"],
            "removed" if item["removed"] else "banned" if item.get("banned") else item["level"],
            roles_text(item),
            one_line(item["invited_by"] or "–", 24),
            one_line(item.get("banned") or item["reason"] or "", 40),
        )
        for item in document["items"]
    ]
    print(table(("NODE", "ID", "LEVEL", "MAY", "INVITED BY", "REASON"), rows))
    if any(item["removed"] for item in document["items"]):
        say("Removed from the group by a member with the role admin; only a new invitation brings those back.", level=1)
    if any(item.get("banned") for item in document["items"]):
        say("Banned because of their results, which p2pc trust show NODE lists; p2pc trust set NODE member", level=1)
        say("gives them work again.", level=1)
    return 0


def seen_text(item: Mapping[str, Any]) -> str:
    """Whether an installation is up, or when it was heard last."""
    if item["up"]:
        return "up"
    return f"not seen since {time_text(item['heard'])}" if item.get("heard") else "not seen"


def roles_text(item: Mapping[str, Any]) -> str:
    """What a member may do in the group."""
    return "–" if item["roles"] is None else ", ".join(item["roles"]) or "nothing"


@trust.command(
    "set",
    cls=Command,
    examples=[
        ("p2pc trust set atlas trusted", "as good as this computer"),
        ("p2pc trust set atlas blocked --reason 'sends nonsense'", "nothing to do with it any more"),
        ("p2pc trust set atlas member", "as any other again, also after a ban"),
    ],
)
@click.argument("node", shell_complete=complete_nodes)
@click.argument("level", type=click.Choice(["trusted", "member", "blocked"]))
@click.option(
    "--may",
    multiple=True,
    type=click.Choice(["submit", "work", "invite", "admin"]),
    help="What it may do in the group, for all members (repeat); needs the role admin.",
)
@click.option("--reason", default="", metavar="TEXT", help="Shown by trust list.")
@yes_option
@json_option
def set_(node: str, level: str, may: tuple[str, ...], reason: str, yes: bool, json_: bool) -> int:
    """Set how far this computer trusts a node."""
    connection = open_connection(timeout_s=LOOK_S_MAX)
    item = named(connection.request("GET", "/v1/trust")["items"], node)
    if level in POWERS and item["level"] != level and not yes:
        name = one_line(item["name"])
        ask(
            "Do it?",
            needs=f"making {name} {level} needs a yes",
            why="; ".join(POWERS[level]),
            is_mute=json_,
            before=[f"{name} ({item['short_id']}) {level} means:", *(f"  {power}" for power in POWERS[level])],
        )
    if may:
        connection.request("POST", f"/v1/members/{item['id']}/roles", {"roles": list(may), "reason": reason})
    changed = connection.request("POST", f"/v1/trust/{item['id']}", {"level": level, "reason": reason})
    if json_:
        print_json({"schema": "p2pc.trust-node/1", **changed})
    else:
        roles = f", and in the group it may {roles_text(changed)}" if may else ""
        over = "; its ban is over" if item.get("banned") and not changed.get("banned") else ""
        print(f"{one_line(changed['name'])} ({changed['short_id']}) is {changed['level']} here now{roles}{over}")
    return 0


@trust.command(
    cls=Command,
    examples=[("p2pc trust show atlas --proof atlas.proof", "then, anywhere: p2pc trust verify atlas.proof")],
)
@click.argument("node", shell_complete=complete_nodes)
@click.option("--proof", metavar="FILE", type=click.Path(), help="Write the proof that it lied, if there is one.")
@json_option
def show(node: str, proof: str | None, json_: bool) -> int:
    """What is known of a node and its level."""
    connection = open_connection(timeout_s=LOOK_S_MAX)
    items = connection.request("GET", "/v1/trust")["items"]
    item = named(items, node)
    evidence = connection.request("GET", f"/v1/trust/{item['id']}/evidence")
    if proof is not None:
        _write_proof(proof, one_line(item["name"]), evidence["proof_b64"])
    if json_:
        print_json({"schema": "p2pc.trust-node/1", **item, "evidence": evidence})
        return 0
    since = f" since {time_text(item['set'])}" if item["set"] else ""
    reason = f": {one_line(item['reason'])}" if item["reason"] else ""
    facts = (
        ("id", item["id"]),
        ("level", f"{'removed from the group' if item['removed'] else item['level']}{since}{reason}"),
        ("may", roles_text(item)),
        ("state", seen_text(item)),
        ("invited by", one_line(item["invited_by"] or "–")),
        ("results", _results_text(item, evidence)),
    )
    print("\n".join([one_line(item["name"]), *(f"  {label:11} {text}" for label, text in facts)]))
    for event in evidence["events"][-EVENTS_SHOWN:]:
        task = f"{event['job']}/{event['index']}" if event["job"] else "of a job that was forgotten"
        print(f"  {time_text(event['at']) if event['at'] else '':11}  task {task}: {one_line(event['what'])}")
    if evidence["banned"]:
        called = typed_name(items, item["name"], item["id"])
        say(f"To give it work again, checked as a newcomer's: p2pc trust set {called} member", level=1)
    return 0


def _write_proof(file: str, name: str, proof: str | None) -> None:
    """Write an evidence file.

    Raises:
        UsageError: there is none, or it cannot be written.
    """
    import base64
    from pathlib import Path

    if not proof:
        why = "two different results that it signed under one lease would be one"
        raise UsageError(
            f"there is no proof that {name} lied", why, f"what is known: p2pc trust show {name}", code="no-proof"
        )
    try:
        Path(file).write_bytes(base64.b64decode(proof))
    except OSError as error:
        raise UsageError(f"{file} cannot be written", str(error.strerror or error), None, code="file") from error


def _results_text(item: Mapping[str, Any], evidence: Mapping[str, Any]) -> str:
    """What is known of a node's results."""
    if evidence["banned"]:
        return f"banned since {time_text(evidence['banned_at'])}: {evidence['banned']}"
    if item["level"] in ("self", "trusted"):
        return "believed without a check"
    if not evidence["claims"]:
        return "none were checked here yet"
    counts = f"{evidence['claims']} checked, {evidence['agreed']} found by others too, {evidence['wrong']} wrong"
    return f"{counts} ({evidence['standing']})" if evidence["standing"] else counts


@trust.command(cls=Command, examples=[("p2pc trust verify job.bundle", "what p2pc result --bundle wrote")])
@click.argument("file", type=click.Path())
@json_option
def verify(file: str, json_: bool) -> int:
    """Check a result bundle or an evidence file; asks no node."""
    from pathlib import Path

    from p2pcompute.cli.proofs import report_json, report_text
    from p2pcompute.host.real_crypto import RealCrypto
    from p2pcompute.scheduler.bundles import check_file

    try:
        data = Path(file).read_bytes()
    except OSError as error:
        fix = f"to compare the keys of two computers: p2pc trust compare {file}" if "/" not in file else None
        raise UsageError(f"{file} cannot be read", str(error.strerror or error), fix, code="file") from error
    report = check_file(RealCrypto(), data)
    if json_:
        print_json(report_json(report))
    else:
        print(report_text(report))
    return 0


@trust.command(cls=Command, examples=[("p2pc trust compare atlas", "there: p2pc trust compare nova")])
@click.argument("node", shell_complete=complete_nodes)
@json_option
def compare(node: str, json_: bool) -> int:
    """Words that are the same on both screens when each computer takes the other for what it is."""
    items = known()
    item = named(items, node)
    words = words_for(items[0]["id"], item["id"])
    if json_:
        print_json({"schema": "p2pc.comparison/1", "id": item["id"], "own_id": items[0]["id"], "words": list(words)})
        return 0
    print(" ".join(words))
    own = typed_name(items, items[0]["name"], items[0]["id"])
    say(f"On {one_line(item['name'])}: p2pc trust compare {own}", level=1, is_elsewhere=True)
    say(f"Other words there mean that one of them has another key: {item['id']}", level=1)
    return 0


def words_for(one: str, other: str) -> tuple[str, ...]:
    """Return six words for two identities, whichever comes first: 48 bits, tried by nobody who has one screen only."""
    import hashlib

    from p2pcompute.ids import parse_device_id
    from p2pcompute.trust.words import words_of

    keys = sorted((parse_device_id(one), parse_device_id(other)))
    return words_of(hashlib.blake2b(b"".join(keys), digest_size=6, person=b"p2pc compare").digest())
