"""The entries of a group's log: what they say, and how they are read from the wire.  Pure.

Versions: what an entry says of itself is the same for ever (its group, chain, date and the entries before it); what it
does may be of a later build.  An entry that is rightly signed is kept and passed on whether it is understood or not, so
that builds of all versions hold the same log; what this build does not know of it has no effect.  Who writes something
that must not be passed over says so (`critical`): who does not understand that runs no work of others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.identity.keys import roles_from_wire
from p2pcompute.ids import PUBLIC_KEY_BYTES, short_device_id
from p2pcompute.limits import ADMIT_CHAIN_MAX, LOG_ACCEPTS_MAX, LOG_HEADS_MAX, NODE_NAME_CHARS_MAX, REASON_CHARS_MAX
from p2pcompute.trust.groups import ADMIN_RANK, FOUNDER_RANK, digests_of
from p2pcompute.trust.policy import GroupPolicy, read_policy

LOG_TYPE: Final = "p2pc/group-log"
SHORT_BYTES: Final = 16
"""Of the digest of an admission, in `accepts`."""
_DIGEST_BYTES: Final = 32
_OF_ALL: Final = frozenset(("group", "kind", "as", "after", "issued", "critical"))
_OF_KIND: Final = {
    "limit": frozenset(("subject", "name", "roles", "accepts", "reason")),
    "rotate": frozenset(("key",)),
    "policy": frozenset(("policy",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One entry, verified."""

    id: bytes
    """SHA-256 of its envelope."""
    raw: bytes
    chain: tuple[bytes, ...]
    """Of the signer, when it signed."""
    signer: bytes
    rank: int
    """Of the signer: FOUNDER_RANK, that of an heir, or ADMIN_RANK."""
    after: tuple[bytes, ...]
    issued: int
    """Unix seconds, as the signer says: nothing depends on it."""
    subject: bytes = b""
    """Whom a limit is about."""
    name: str = ""
    """What the subject was called."""
    roles: tuple[str, ...] = ()
    """What the subject may still do; empty: it is removed."""
    accepts: frozenset[bytes] = frozenset()
    """Beginnings of the digests of admissions by the subject that stay good."""
    reason: str = ""
    key_digest: bytes = b""
    """Of the network key of a rotation."""
    policy: GroupPolicy | None = None
    """What holds in the group from here on."""
    is_understood: bool = True
    """This build knows all that it says."""
    is_critical: bool = False
    """Who does not know all that it says is not to go on as if it were not there."""

    @property
    def by_founder(self) -> bool:
        return self.rank == FOUNDER_RANK

    @property
    def is_removal(self) -> bool:
        return bool(self.subject) and not self.roles

    @property
    def wire(self) -> list[Any]:
        """The entry as it is passed on."""
        return [self.raw, list(self.chain)]


# --- the wire -------------------------------------------------------------------------------------


def id_of(wire: Any) -> bytes:
    """Return the id of an entry, of which nothing is checked yet.

    Raises:
        RemoteProtocolError: not of the shape of one.
    """
    if not (isinstance(wire, list) and len(wire) == 2 and isinstance(wire[0], bytes) and isinstance(wire[1], list)):
        raise RemoteProtocolError("not an entry of a group's log")
    if len(wire[1]) > ADMIT_CHAIN_MAX or not all(isinstance(item, bytes) for item in wire[1]) or not wire[1]:
        raise RemoteProtocolError("an entry without a chain")
    return hashlib.sha256(wire[0]).digest()


def parse_entry(raw: bytes, chain: tuple[bytes, ...], signer: bytes, body: Any, group_id: bytes) -> LogEntry:
    """Return the entry in an envelope of this signer; his chain, and with it his rank, is still to be checked.

    One of a kind that this build does not know, or of which it cannot read what it does, does nothing.

    Raises:
        RemoteProtocolError: malformed in what all builds know.
    """
    if not isinstance(body, dict) or body.get("group") != group_id:
        raise RemoteProtocolError("an entry of another group's log")
    if body.get("as") != hashlib.sha256(chain[-1]).digest():
        raise RemoteProtocolError("an entry with the chain of another membership")
    issued = body.get("issued")
    if type(issued) is not int or issued < 0:
        raise RemoteProtocolError("an entry without a date")
    after = digests_of(body.get("after"), LOG_HEADS_MAX)
    try:
        fields = _read(body, signer)
    except RemoteProtocolError:
        fields = {"is_understood": False}
    return LogEntry(
        id=hashlib.sha256(raw).digest(),
        raw=raw,
        chain=chain,
        signer=signer,
        rank=ADMIN_RANK,
        after=after,
        issued=issued,
        is_critical=body.get("critical") is True,
        **fields,
    )


def _read(body: dict[Any, Any], signer: bytes) -> dict[str, Any]:
    """Return what an entry does, as fields of `LogEntry`.

    Raises:
        RemoteProtocolError: nothing that this build can read.
    """
    kind = body.get("kind")
    known = _OF_KIND.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise RemoteProtocolError("an entry of a kind that this build does not know")
    is_understood = body.keys() <= _OF_ALL | known
    match kind:
        case "limit":
            subject, accepts = body.get("subject"), body.get("accepts")
            if not isinstance(subject, bytes) or len(subject) != PUBLIC_KEY_BYTES or subject == signer:
                raise RemoteProtocolError("a limit for nobody")
            if not isinstance(accepts, list) or len(accepts) > LOG_ACCEPTS_MAX:
                raise RemoteProtocolError("a limit that accepts too much")
            if not all(isinstance(item, bytes) and len(item) == SHORT_BYTES for item in accepts):
                raise RemoteProtocolError("not the digest of an admission")
            return {
                "is_understood": is_understood,
                "subject": subject,
                "name": _text(body.get("name"), NODE_NAME_CHARS_MAX),
                "roles": roles_from_wire(body.get("roles")),
                "accepts": frozenset(accepts),
                "reason": _text(body.get("reason"), REASON_CHARS_MAX),
            }
        case "rotate":
            key_digest = body.get("key")
            if not isinstance(key_digest, bytes) or len(key_digest) != _DIGEST_BYTES:
                raise RemoteProtocolError("a rotation without a key")
            return {"is_understood": is_understood, "key_digest": key_digest}
        case _:
            policy = read_policy(body.get("policy"))
            return {"is_understood": is_understood and not policy.more, "policy": policy}


def _text(value: Any, chars_max: int) -> str:
    if not isinstance(value, str) or len(value) > chars_max or not (value.isprintable() or not value):
        raise RemoteProtocolError("not a text")
    return value


def removal_text(removal: LogEntry) -> str:
    """Say who removed somebody, and why."""
    by = "the founder" if removal.by_founder else short_device_id(removal.signer)
    return f"by {by} ({short_device_id(removal.signer)})" + (f": {removal.reason}" if removal.reason else "")
