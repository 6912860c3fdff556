"""`p2pc join` without an invitation: by a pre-shared or OpenSSH key, nearby at first sight, into an open group."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from p2pcompute.cli.asking import can_ask, typed_with
from p2pcompute.cli.connection import Connection
from p2pcompute.cli.output import is_terminal, one_line, options, say
from p2pcompute.errors import TrustError, UsageError

LOOK_S_MAX: Final = 30.0
"""How long a look for nodes that let others in may take: multicast DNS, then a handshake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingWay:
    """What was asked for, checked as far as it can be before anybody is asked to agree."""

    method: str
    secret: bytes
    """The pre-shared key, or the seed of the OpenSSH key; empty for `nearby`."""
    via: str
    inviter: str | None
    """Device id."""
    name: str
    """Of the node that is meant, for `nearby`; empty: the only one."""

    def __repr__(self) -> str:
        return f"<StandingWay {self.method}>"


def standing_way(
    *,
    psk: str | None,
    ssh_key: str | None,
    nearby: bool,
    is_open: bool,
    via: str | None,
    inviter: str | None,
    words: Sequence[str],
) -> StandingWay | None:
    """Return the way that the flags name; None: by an invitation.

    Raises:
        UsageError: flags that exclude each other, or an id with a typing error.
        IdentityError: a key file that cannot be used.
    """
    flags = (("--psk", psk), ("--ssh-key", ssh_key), ("--nearby", nearby), ("--open", is_open))
    chosen = [flag for flag, value in flags if value]
    if not chosen:
        if inviter is not None:
            raise UsageError(
                "--inviter goes with --ssh-key, --nearby or --open", "a code or token names the other computer itself"
            )
        return None
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other", "each is a way of its own", "choose one")
    if words and not (nearby or is_open):
        raise UsageError(f"{chosen[0]} and a code exclude each other", "each is a way of its own", "choose one")
    if via is not None:
        from p2pcompute.config import parse_peer

        parse_peer(via)
    if inviter is not None:
        from p2pcompute.ids import parse_device_id

        parse_device_id(inviter)
    method, secret = "open" if is_open else "nearby", b""
    if psk is not None:
        from p2pcompute.daemon.admissions import read_psk

        method, secret = "psk", read_psk(Path(psk).expanduser())
    elif ssh_key is not None:
        from p2pcompute.trust.ssh_keys import read_private_key

        method, secret = "key", read_private_key(Path(ssh_key).expanduser(), _ask_passphrase)
    return StandingWay(method=method, secret=secret, via=via or "", inviter=inviter, name=" ".join(words))


def _ask_passphrase() -> str | None:
    if options().no_input or not is_terminal(sys.stdin):
        return None
    return str(click.prompt("Passphrase of the key", hide_input=True, err=True))


def entry_of(way: StandingWay, connection: Connection) -> dict[str, Any]:
    """Return what the node is asked for: whom to join, with its key once that is agreed to, and the proof."""
    proof, inviter = way.secret, way.inviter
    if way.method != "psk" and inviter is None:
        inviter = _agreed(way, connection)
    if way.method == "key":
        from p2pcompute.host.real_crypto import RealCrypto
        from p2pcompute.ids import parse_device_id
        from p2pcompute.trust.ssh_keys import make_voucher

        joiner = parse_device_id(connection.request("GET", "/v1/status")["node"]["id"])
        proof = make_voucher(RealCrypto(), way.secret, joiner=joiner, wall=time.time())
    return {"method": way.method, "proof": proof.hex(), "via": way.via, "inviter_id": inviter}


def _agreed(way: StandingWay, connection: Connection) -> str:
    """Return the id of the node that is meant: one that was met before, or that somebody at the terminal agrees to.

    Raises:
        UsageError: several may be meant, or nobody can be asked.
        TrustError: it has another key than before, or was not agreed to.
    """
    from urllib.parse import urlencode

    query = urlencode({"method": way.method, "via": way.via})
    found: list[Mapping[str, Any]] = connection.request("GET", f"/v1/doors?{query}", timeout_s=LOOK_S_MAX)["items"]
    doors = [door for door in found if way.name in ("", door["name"])]
    if len(doors) != 1:
        names = ", ".join(f"{one_line(door['name'])} ({door['id'][:9]})" for door in found)
        raise UsageError(
            "which computer is meant?" if doors else f"no computer named {way.name!r} lets others in",
            f"there are: {names}",
            "say its id: --inviter ID",
            code="which-inviter",
        )
    (door,) = doors
    who = f"{one_line(door['name'])} at {one_line(door['address'])}"
    if door["known"] is False:
        raise TrustError(
            f"{who} has another key than before",
            f"now it is {door['id']}: it was set up anew, or somebody wants to be taken for it",
            "if it was set up anew, remove its line from the file known_nodes (p2pc config path)",
            code="key-changed",
        )
    if door["known"] is None:
        if not can_ask() or os.environ.get("TERM") == "dumb":
            raise UsageError(
                f"{who} was never met before, and there is nobody to ask",
                f"its id is {door['id']}",
                f"compare it with p2pc status --json there, then: {typed_with('--inviter', door['id'])}",
                code="which-inviter",
            )
        say(f"{who} was never met before.  Its id is\n    {door['id']}\n(there, p2pc status --json shows it)")
        if not click.confirm("Is that right?", default=False, err=True):
            raise TrustError("not joined", "you said no", None, code="consent")
    agreed: str = door["id"]
    return agreed
