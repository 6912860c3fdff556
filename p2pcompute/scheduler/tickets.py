"""Tickets: with one, another member of the group may look on at a job.

A ticket names one job and an end, and is signed by the node that submitted it.  Whoever has it may read what is kept of
the job, inputs and results, and decide nothing.  Its text also says where the job is kept.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pcompute.errors import RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.interfaces import Address, Crypto
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import JOB_ID_BYTES, PUBLIC_KEY_BYTES
from p2pcompute.limits import CUSTODIANS_MAX
from p2pcompute.scheduler.messages import parse_addresses
from p2pcompute.scheduler.terms import JobEnvelope
from p2pcompute.wire import cbor
from p2pcompute.wire.envelope import open_envelope

TICKET_CONTENT_TYPE: Final = "p2pc/ticket"
PREFIX: Final = "p2pc-job-"
TEXT_CHARS_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the text of a ticket holds."""

    job_id: bytes
    raw: bytes
    """The signed part."""
    keepers: tuple[tuple[bytes, tuple[Address, ...]], ...]
    """Nodes that keep the job, and where they are."""


def sign_ticket(identity: Identity, job_id: bytes, *, expires_wall: float) -> bytes:
    """Return the signed part of a ticket."""
    return identity.sign_envelope(TICKET_CONTENT_TYPE, {"job": job_id, "expires": int(expires_wall)})


def check_ticket(crypto: Crypto, raw: bytes, job: JobEnvelope, *, wall: float) -> None:
    """Raises TrustError unless this is a ticket for the job that is still good."""
    try:
        payload = open_envelope(crypto, raw, TICKET_CONTENT_TYPE, signer=job.signer).payload
    except RemoteProtocolError:
        why = "it is kept for others"
        raise TrustError("this job may not be read", why, "ask its submitter for a ticket") from None
    if not isinstance(payload, dict) or payload.get("job") != job.job_id:
        raise TrustError("the ticket is for another job", "", "ask its submitter for a ticket")
    if not isinstance(payload.get("expires"), int) or payload["expires"] <= wall:
        raise TrustError("the ticket has expired", "", "ask its submitter for a new one: p2pc show --ticket")


def format_ticket(ticket: Ticket) -> str:
    """Return the text that people pass on."""
    keepers = [[key, [[one.host, one.port] for one in addresses]] for key, addresses in ticket.keepers]
    data = cbor.encode([ticket.job_id, ticket.raw, keepers])
    return PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def parse_ticket(text: str) -> Ticket:
    """Return what a ticket says; its signature is checked by who keeps the job.

    Raises:
        UsageError: it is none, or was cut off.
    """
    wrong = UsageError("this is not a ticket", "it may have been cut off", "copy all of it", code="ticket")
    body = text.strip().removeprefix(PREFIX)
    if len(body) > TEXT_CHARS_MAX or not text.strip().startswith(PREFIX):
        raise wrong
    try:
        value = cbor.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        job_id, raw, keepers = value
        if not (isinstance(job_id, bytes) and len(job_id) == JOB_ID_BYTES and isinstance(raw, bytes)):
            raise wrong
        if not 0 < len(keepers) <= CUSTODIANS_MAX + 1:
            raise wrong
        return Ticket(job_id, raw, tuple(_keeper(keeper) for keeper in keepers))
    except (RemoteProtocolError, binascii.Error, TypeError, ValueError) as error:
        raise wrong from error


def _keeper(value: Sequence[object]) -> tuple[bytes, tuple[Address, ...]]:
    key, addresses = value
    if not isinstance(key, bytes) or len(key) != PUBLIC_KEY_BYTES:
        raise RemoteProtocolError("not the key of a node")
    return key, tuple(parse_addresses(addresses))
