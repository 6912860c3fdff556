"""`p2pc group`: who belongs to the group, and what members may do."""

from __future__ import annotations

import sys

import click

from p2pcompute.cli.command import CONTEXT, Command, json_option, yes_option
from p2pcompute.cli.connection import open_connection
from p2pcompute.cli.output import one_line, options, plural, print_json, say, table
from p2pcompute.cli.trust_commands import LOOK_S_MAX, named, roles_text
from p2pcompute.errors import UsageError


@click.group(context_settings=CONTEXT)
def group() -> None:
    """The group: its members, and what they may do."""


@group.command(cls=Command)
@json_option
def members(json_: bool) -> int:
    """Members and roles."""
    connection = open_connection(timeout_s=LOOK_S_MAX)
    name = connection.request("GET", "/v1/status")["group"]["name"]
    items = [item for item in connection.request("GET", "/v1/trust")["items"] if item["roles"] is not None]
    if json_:
        print_json({"schema": "p2pc.members/1", "group": name, "items": items})
        return 0
    rows = [
        (
            one_line(item["name"], 24) + (" (this)" if item["level"] == "self" else ""),
            item["short_id"],
            roles_text(item),
            one_line(item["invited_by"] or "–", 24),
            "up" if item["up"] else "not seen",
        )
        for item in items
    ]
    print(f"{one_line(name)}: {plural(len(items), 'member')} known here")
    print(table(("NODE", "ID", "MAY", "INVITED BY", "STATE"), rows))
    return 0


@group.command(
    cls=Command,
    examples=[("p2pc group remove atlas --reason 'stolen'", "for all members, until somebody invites it again")],
)
@click.argument("node")
@click.option("--reason", default="", metavar="TEXT", help="Told to all members, and to the removed one.")
@yes_option
@json_option
def remove(node: str, reason: str, yes: bool, json_: bool) -> int:
    """Remove a member from the group: its work ends everywhere, and only a new invitation brings it back."""
    connection = open_connection(timeout_s=LOOK_S_MAX)
    item = named(connection.request("GET", "/v1/trust")["items"], node)
    name = one_line(item["name"])
    if not yes:
        if options().no_input or json_ or not sys.stdin.isatty():
            fix = f"p2pc group remove {item['id']} -y"
            raise UsageError(
                f"removing {name} needs a yes", "only a new invitation brings it back", fix, code="consent"
            )
        say(f"{name} ({item['short_id']}) is cut off by all members; only a new invitation brings it back.")
        if not click.confirm("Remove it?", default=False, err=True):
            raise UsageError("nothing was changed", "you said no", None, code="consent")
    connection.request("POST", f"/v1/members/{item['id']}/remove", {"reason": reason})
    if json_:
        print_json({"schema": "p2pc.removal/1", "id": item["id"], "name": item["name"], "reason": reason or None})
    else:
        print(f"{name} ({item['short_id']}) is no member any more; members that are away learn it when they come back")
    return 0
