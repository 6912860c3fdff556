"""Getting computers into a group: `invite` and `join`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import click
from click.core import ParameterSource

from p2pcompute.cli import joining
from p2pcompute.cli.asking import ask
from p2pcompute.cli.command import Command, json_option
from p2pcompute.cli.completing import complete_invites
from p2pcompute.cli.connection import Connection, open_connection
from p2pcompute.cli.node_commands import restart_node
from p2pcompute.cli.output import (
    count_text,
    is_terminal,
    one_line,
    options,
    print_json,
    say,
)
from p2pcompute.cli.trust_commands import typed_name
from p2pcompute.errors import NodeUnavailable, TrustError, UsageError
from p2pcompute.limits import INVITE_WORDS_MAX, INVITE_WORDS_MIN

JOIN_S_MAX: Final = 60.0
INVITE_LOOK_S: Final = 0.5
"""Pause between looks at who has joined."""


@click.command(
    cls=Command,
    examples=[
        ("p2pc invite", "a code to say or type on the other computer; waits until it has joined"),
        ("p2pc invite --uses 20 --expires 1h", "for a classroom"),
        ("p2pc invite --qr", "also as a picture to scan"),
        ("p2pc invite --token", "one line for scripts; does not wait"),
        ("p2pc invite --withdraw 7", "takes one back that is open; p2pc status says which are"),
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
@click.option(
    "--withdraw",
    metavar="NUMBER|all",
    shell_complete=complete_invites,
    help="Take an open invitation back: the number of its code, or what p2pc status calls a token.",
)
@json_option
def invite(
    mine: bool,
    role: str,
    token: bool,
    words: int,
    uses: int,
    expires: str,
    qr: bool,
    no_wait: bool,
    withdraw: str | None,
    json_: bool,
) -> int:
    """Let another computer join the group."""
    if withdraw is not None:
        return _withdraw(withdraw, json_=json_)
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
        what = f"{who} may join {made['group']} within {expires}; there, run p2pc join with this token:"
        say(what, level=1, is_elsewhere=True)
        print(made["token"], flush=True)
        say(careful)
        say(f"To take it back: p2pc invite --withdraw {made['handle']}", level=1)
        return 0
    _show_code(made, qr=qr)
    say(careful)
    if no_wait:
        say(f"{who} may join within {expires}.  To take it back: p2pc invite --withdraw {made['handle']}", level=1)
        return 0
    say(f"{who}, within {expires}.  Waiting … (Ctrl-C takes the code back)", level=1)
    return _wait_for_joiners(connection, made, uses, mine=mine)


def _withdraw(which: str, *, json_: bool) -> int:
    """Take one open invitation back, or all.

    Raises:
        UsageError: another flag was given, or no such invitation is open.
    """
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if others := sorted(given & {"mine", "role", "token", "words", "uses", "expires", "qr", "no_wait"}):
        flag = others[0].replace("_", "-")
        raise UsageError(f"--withdraw and --{flag} exclude each other", "it takes back, and makes none")
    connection = open_connection()
    items = connection.request("GET", "/v1/invites")["items"]
    typed = which.strip().lower()
    chosen = [item for item in items if typed in ("all", item["handle"], item["id"])]
    if not chosen and typed != "all":
        open_ones = ", ".join(item["handle"] for item in items)
        why = f"open are: {open_ones}" if items else "none is open: it was used, has expired, or the node was restarted"
        raise UsageError(f'no invitation "{one_line(which)}" is open', why, "see: p2pc status", code="no-invitation")
    # One that was used in this moment is not among those that were taken back.
    taken = [
        item for item in chosen if connection.request("POST", f"/v1/invites/{item['id']}/withdraw", {})["was_open"]
    ]
    if json_:
        print_json({"schema": "p2pc.withdrawal/1", "items": taken})
    elif not taken:
        print("no invitation was open")
    else:
        print(f"taken back: {', '.join(item['handle'] for item in taken)}; nobody can join by it any more")
    return 0


def _show_code(made: Mapping[str, Any], *, qr: bool) -> None:
    from p2pcompute.trust.words import Code, parse_code

    say(f"A new computer may join {made['group']}.  On it, run:\n", level=1)
    print(f"    p2pc join {made['code']}", flush=True)
    addresses = [address for address in made["addresses"] if not address.startswith(("127.", "[::1]"))]
    if addresses:
        say(f"\nIf it is on another network: p2pc join {made['code']}@{addresses[0]}", level=1, is_elsewhere=True)
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
                        called = typed_name(connection.request("GET", "/v1/trust")["items"], one["name"], one["id"])
                        say(f"more; is it yours too?  p2pc trust set {called} trusted")
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
        ask(
            "Join?",
            needs="joining needs your consent",
            why=power,
            is_mute=json_,
            before=[f"Joined, {power}."],
            yes=("--accept", consent.accepted()),
            otherwise="not joined; the invitation is still good",
            error=TrustError,
        )
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
        called = typed_name(connection.request("GET", "/v1/trust")["items"], joined["inviter"], joined["inviter_id"])
        say(
            f"It was invited as a computer of {inviter_name}'s owner: they trust each other fully."
            f"\nNot yours? p2pc trust set {called} member"
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
        restart_node({})
        if how_started(paths).accept == accept:
            return
    raise UsageError(
        f"the node here goes by node.accept={how_started(paths).accept}, not {accept}",
        "something goes before the settings file, as P2PC_NODE__ACCEPT does",
        "see: p2pc config show",
        code="running",
    )
