"""Datagrams of the DHT: signed statements in canonical CBOR, and their bodies.  Pure.

A datagram is `statement ‖ signature`.  The statement is the canonical CBOR array
``[version, type, transaction 8, sender key 32, recipient 20, run 8, body]``; the Ed25519 signature (64 bytes) is
made over a domain name, the group id and the statement, so it means nothing in another group, to another
recipient, or in another protocol.  The recipient is the receiver's DHT id; it is zero only in a PING to an
address whose owner is not known yet.  `run` is drawn at each start of a node: it tells a node that is back from
the one that said goodbye.

| type | body | answer |
|---|---|---|
| PING | [] | PONG |
| PONG | [observed address, name] | |
| FIND | [key] | NODES |
| NODES | [name, [[key, address], …]], nearest first, cut to fit | |
| GET | [key, offset] | VALUES, or NODES when nothing is held |
| VALUES | [digest 8, total, offset, chunk] of the canonical list of raw records | |
| PUT | [part, parts, chunk] of one raw record; all parts carry one transaction | ACK |
| ACK | [status, seq held] | |
| BYE | [] | ACK |

Deviations: Kademlia's FIND_VALUE returns one value; here a holder's records are read in pages at offsets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, TypeAlias, assert_never

from p2pcompute.dht.contacts import Contact, pack_address, unpack_address
from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.host.interfaces import Address
from p2pcompute.ids import DHT_ID_BYTES, PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    DHT_BODY_BYTES_MAX,
    DHT_CHUNK_BYTES,
    DHT_PUT_PARTS_MAX,
    NODE_NAME_CHARS_MAX,
    RECORDS_REPLY_BYTES_MAX,
)
from p2pcompute.wire import cbor

VERSION: Final = 1
TRANSACTION_BYTES: Final = 8
RUN_BYTES: Final = 8
SIGNATURE_BYTES: Final = 64
DIGEST_BYTES: Final = 8
ANYONE: Final = bytes(DHT_ID_BYTES)
"""Recipient of a first contact."""

_DOMAIN: Final = b"p2pc dht statement 1"
_HEAD_BYTES: Final = 76
"""Array head, version, type, transaction, sender key, recipient, run: 1 + 1 + 1 + 9 + 34 + 21 + 9."""
_CONTACTS_MAX: Final = 64
"""Contacts in a reply that are looked at; more than a datagram can hold."""
_SEQ_MAX: Final = 2**63 - 1


class MessageType(IntEnum):
    """Wire codes."""

    PING = 1
    PONG = 2
    FIND = 3
    NODES = 4
    GET = 5
    VALUES = 6
    PUT = 7
    ACK = 8
    BYE = 9


_KINDS: Final = {int(kind): kind for kind in MessageType}


class AckStatus(IntEnum):
    """What became of a PUT; a BYE is answered with OK."""

    OK = 0
    STALE = 1
    """A record with a higher sequence number is held; it is in the reply."""
    REFUSED = 2
    """Not a valid record, or expired."""
    FULL = 3
    """No room that it could have."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Is somebody there, and who?"""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    observed: Address
    """Source address of the ping, as it arrived."""
    name: str
    """What the sender calls itself; may be empty."""


@dataclass(frozen=True, slots=True)
class Find:
    """Who is near this key?"""

    key: bytes


@dataclass(frozen=True, slots=True)
class Nodes:
    """Contacts near a key, nearest first."""

    name: str
    contacts: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Get:
    """What is held under this key, from this offset on?"""

    key: bytes
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Values:
    """A page of the canonical CBOR list of records held under a key."""

    digest: bytes
    """Of the whole list: pages of different lists are not joined."""
    total: int
    offset: int
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """A part of a record to be held."""

    part: int
    parts: int
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a put or a goodbye."""

    status: AckStatus
    seq: int = 0
    """Sequence number of the record that is held now; 0 when none."""


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender is leaving."""


Message: TypeAlias = Ping | Pong | Find | Nodes | Get | Values | Put | Ack | Bye

REPLIES: Final[dict[MessageType, tuple[MessageType, ...]]] = {
    MessageType.PING: (MessageType.PONG,),
    MessageType.FIND: (MessageType.NODES,),
    MessageType.GET: (MessageType.VALUES, MessageType.NODES),
    MessageType.PUT: (MessageType.ACK,),
    MessageType.BYE: (MessageType.ACK,),
}
"""The requests, and what may answer each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The outer fields of a datagram; the signature is not checked yet."""

    type: MessageType
    transaction: bytes
    sender: bytes
    """The sender's public key."""
    recipient: bytes
    run: bytes
    body: list[Any]
    """Decoded by `decode_body` once the signature holds."""
    signed: bytes
    """The bytes that the signature covers, without domain and group."""
    signature: bytes


def type_of(message: Message) -> MessageType:
    """Return the wire code of a message."""
    return _encode_body(message)[0]


def signing_input(group_id: bytes, statement: bytes) -> bytes:
    """Return what is signed for a statement."""
    return _DOMAIN + group_id + statement


def encode_statement(
    message: Message,
    *,
    transaction: bytes,
    sender: bytes,
    recipient: bytes,
    run: bytes,
    group_id: bytes,
    sign: Callable[[bytes], bytes],
) -> bytes:
    """Return the signed datagram body.

    Raises:
        LocalProtocolError: it is longer than DHT_BODY_BYTES_MAX (our bug).
    """
    kind, body = _encode_body(message)
    statement = cbor.encode([VERSION, int(kind), transaction, sender, recipient, run, body])
    datagram = statement + sign(signing_input(group_id, statement))
    if len(datagram) > DHT_BODY_BYTES_MAX:
        raise LocalProtocolError(f"a {kind.name} of {len(datagram)} bytes")
    return datagram


def decode_statement(datagram: bytes) -> Statement:
    """Return the outer fields of a datagram.  The signature and the body are still to be checked.

    Raises:
        RemoteProtocolError: the peer sent anything but a statement of this version.
    """
    if not SIGNATURE_BYTES < len(datagram) <= DHT_BODY_BYTES_MAX:
        raise RemoteProtocolError(f"a statement of {len(datagram)} bytes")
    signed, signature = datagram[:-SIGNATURE_BYTES], datagram[-SIGNATURE_BYTES:]
    fields = cbor.decode(signed)
    if not (isinstance(fields, list) and len(fields) == 7):
        raise RemoteProtocolError("a statement has 7 fields")
    version, code, transaction, sender, recipient, run, body = fields
    if not _is_count(version, VERSION) or version != VERSION:
        raise RemoteProtocolError("a statement of another version")
    kind = _KINDS.get(code) if _is_count(code, 255) else None
    if kind is None:
        raise RemoteProtocolError("a message of unknown type")
    if not isinstance(body, list):
        raise RemoteProtocolError("the body is not a list")
    return Statement(
        type=kind,
        transaction=_sized(transaction, TRANSACTION_BYTES),
        sender=_sized(sender, PUBLIC_KEY_BYTES),
        recipient=_sized(recipient, DHT_ID_BYTES),
        run=_sized(run, RUN_BYTES),
        body=body,
        signed=signed,
        signature=signature,
    )


def _encode_body(message: Message) -> tuple[MessageType, list[Any]]:
    match message:
        case Ping():
            return MessageType.PING, []
        case Pong():
            return MessageType.PONG, [pack_address(message.observed), message.name]
        case Find():
            return MessageType.FIND, [message.key]
        case Nodes():
            return MessageType.NODES, [message.name, [[c.key, pack_address(c.address)] for c in message.contacts]]
        case Get():
            return MessageType.GET, [message.key, message.offset]
        case Values():
            return MessageType.VALUES, [message.digest, message.total, message.offset, message.chunk]
        case Put():
            return MessageType.PUT, [message.part, message.parts, message.chunk]
        case Ack():
            return MessageType.ACK, [int(message.status), message.seq]
        case Bye():
            return MessageType.BYE, []
        case _:
            assert_never(message)


def decode_body(kind: MessageType, body: list[Any]) -> Message:
    """Return the message of a statement.

    Raises:
        RemoteProtocolError: a field is missing, superfluous, of another type or out of bounds.
    """
    match kind:
        case MessageType.PING:
            _fields(body, 0)
            return Ping()
        case MessageType.PONG:
            observed, name = _fields(body, 2)
            return Pong(unpack_address(observed), _name(name))
        case MessageType.FIND:
            (key,) = _fields(body, 1)
            return Find(_sized(key, DHT_ID_BYTES))
        case MessageType.NODES:
            name, contacts = _fields(body, 2)
            return Nodes(_name(name), _contacts(contacts))
        case MessageType.GET:
            key, offset = _fields(body, 2)
            return Get(_sized(key, DHT_ID_BYTES), _count(offset, RECORDS_REPLY_BYTES_MAX))
        case MessageType.VALUES:
            return _values(body)
        case MessageType.PUT:
            part, parts, chunk = _fields(body, 3)
            parts = _count(parts, DHT_PUT_PARTS_MAX)
            part = _count(part, DHT_PUT_PARTS_MAX - 1)
            if part >= parts or not isinstance(chunk, bytes) or not 0 < len(chunk) <= DHT_CHUNK_BYTES:
                raise RemoteProtocolError("a part of a record that cannot be")
            return Put(part, parts, chunk)
        case MessageType.ACK:
            status, seq = _fields(body, 2)
            return Ack(AckStatus(_count(status, max(AckStatus))), _count(seq, _SEQ_MAX))
        case MessageType.BYE:
            _fields(body, 0)
            return Bye()
        case _:
            assert_never(kind)


def cut_contacts(contacts: Sequence[Contact], name: str) -> tuple[Contact, ...]:
    """Return the first contacts, as many as fit a NODES message beside `name`."""
    left = DHT_BODY_BYTES_MAX - _HEAD_BYTES - SIGNATURE_BYTES - len(name.encode()) - 7  # heads of body, name and list
    chosen: list[Contact] = []
    for contact in contacts[:_CONTACTS_MAX]:
        left -= 1 + 2 + PUBLIC_KEY_BYTES + 1 + len(pack_address(contact.address))
        if left < 0:
            break
        chosen.append(contact)
    return tuple(chosen)


def page_of(blob: bytes, offset: int) -> Values:
    """Return the page of `blob` that starts at `offset`; its chunk is empty beyond the end."""
    return Values(blob_digest(blob), len(blob), offset, blob[offset : offset + DHT_CHUNK_BYTES])


def blob_digest(blob: bytes) -> bytes:
    """Return the digest by which pages of one list of records are recognised: 8 bytes."""
    return hashlib.sha256(blob).digest()[:DIGEST_BYTES]


def parts_of(raw: bytes) -> list[Put]:
    """Return the PUT messages of a raw record, in order."""
    chunks = [raw[start : start + DHT_CHUNK_BYTES] for start in range(0, len(raw), DHT_CHUNK_BYTES)]
    return [Put(index, len(chunks), chunk) for index, chunk in enumerate(chunks)]


def shown_name(name: object) -> str:
    """Return `name` as it may travel: printable and of at most NODE_NAME_CHARS_MAX characters."""
    text = name if isinstance(name, str) else ""
    return "".join(char for char in text if char.isprintable())[:NODE_NAME_CHARS_MAX]


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _count(value: Any, most: int) -> int:
    if not _is_count(value, most):
        raise RemoteProtocolError(f"an integer from 0 to {most} was expected")
    return int(value)


def _sized(value: object, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise RemoteProtocolError(f"{size} bytes were expected")
    return value


def _fields(body: list[Any], count: int) -> list[Any]:
    if len(body) != count:
        raise RemoteProtocolError(f"a body of {count} fields was expected")
    return body


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > NODE_NAME_CHARS_MAX or not value.isprintable():
        raise RemoteProtocolError("a name that cannot be shown")
    return value


def _contacts(value: object) -> tuple[Contact, ...]:
    if not isinstance(value, list) or len(value) > _CONTACTS_MAX:
        raise RemoteProtocolError("a list of contacts was expected")
    contacts = []
    for item in value:
        if not isinstance(item, list) or len(item) != 2:
            raise RemoteProtocolError("a contact is a key and an address")
        key, packed = item
        if not isinstance(packed, bytes):
            raise RemoteProtocolError("an address is bytes")
        contacts.append(_hearsay(_sized(key, PUBLIC_KEY_BYTES), packed))
    return tuple(contacts)


@lru_cache(maxsize=1024)
def _hearsay(key: bytes, packed: bytes) -> Contact:
    """The contact in a reply; cached because the same few are heard of again and again."""
    return Contact(key, unpack_address(packed))


def _values(body: list[Any]) -> Values:
    digest, total, offset, chunk = _fields(body, 4)
    total = _count(total, RECORDS_REPLY_BYTES_MAX)
    offset = _count(offset, RECORDS_REPLY_BYTES_MAX)
    if not isinstance(chunk, bytes) or not len(chunk) <= min(DHT_CHUNK_BYTES, max(0, total - offset)):
        raise RemoteProtocolError("a page that does not fit its list")
    return Values(_sized(digest, DIGEST_BYTES), total, offset, chunk)
