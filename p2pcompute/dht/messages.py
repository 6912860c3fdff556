"""Datagrams of the DHT: statements in canonical CBOR with proof of their sender, and their bodies.  Pure.

A datagram is `statement ‖ proof`.  The statement is the canonical CBOR array
``[version, type, transaction 8, sender key 32, recipient 20, run 8, role, body]``; the proof (64 bytes) is made over a
domain name, the group id and the statement, so it means nothing in another group, to another recipient, or in another
protocol.  The recipient is the receiver's DHT id; it is zero only in a PING to an address whose owner is not known yet.
Then the proof is an Ed25519 signature; else it is a tag that only sender and recipient can make (`Crypto.tag`), which
takes 1 µs instead of 23 to make and 55 to check.  `run` is drawn at each start of a node: it tells a node that is back
from the one that said goodbye.

| type | body | answer |
|---|---|---|
| PING | [] | PONG |
| PONG | [observed address, name], then the sender's class 8 if it knows it | |
| FIND | [key, padding] | NODES |
| NODES | [name, [[key, address], …], token 8], then the class 8 as in PONG; nearest first, cut to fit | |
| GET | [key, offset, padding] | VALUES, or NODES when nothing is held |
| VALUES | [digest 8, total, offset, chunk] of the canonical list of raw records | |
| PUT | [key, token, part, parts, chunk] of one raw record; all parts carry one transaction | ACK |
| ACK | [status, seq held, token] | |
| BYE | [] | ACK |
| REGISTER | [key, token, life in s, tuple 24, padding] | REGISTERED |
| REGISTERED | [outcome, [[key, address], …], token]: contacts nearer to the key | |
| QUERY | [key, mask 24, padding] | ADS |
| ADS | [[[key, address], …], [[key, address], …]]: nodes that fit, and contacts nearer to the key | |
| CALL | [padding]: have others call me | CALLED |
| CALLED | [[[key, address], …]]: those that were asked to | |
| RING | [key, address]: call this one, once | ACK |

No answer is longer than three times its question, so nobody can have a node flood an address that he forges: FIND and
GET are padded with zeros, and are malformed without; so are REGISTER and QUERY.  A token is empty or 8 bytes; see
`tokens`.  Class, tuple and mask are big-endian; see `index`.

Fields behind those of the table, in a body or a contact, are of a later version and passed over (`wire.fields`).

Deviations: Kademlia's FIND_VALUE returns one value; here a holder's records are read in pages at offsets.

The canonical form of a statement's head, and of a contact with an IPv4 address, has its fields at fixed places: they
are written and compared as such (a statement is read in 2.7 µs instead of 9); all else goes through the strict decoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, TypeAlias, assert_never

from msgspec import Struct

from p2pcompute.dht.contacts import Contact, pack_address, packed_size, unpack_address
from p2pcompute.dht.index import Outcome
from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.host.interfaces import Address
from p2pcompute.ids import DHT_ID_BYTES, PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    CLASS_BYTES,
    DHT_BODY_BYTES_MAX,
    DHT_CALLERS,
    DHT_CHUNK_BYTES,
    DHT_PUT_PARTS_MAX,
    INDEX_CONTACTS_MAX,
    INDEX_REGISTERED_CONTACTS_MAX,
    NODE_NAME_CHARS_MAX,
    RECORD_TTL_S_MAX,
    RECORDS_REPLY_BYTES_MAX,
    TUPLE_BYTES,
)
from p2pcompute.wire import cbor
from p2pcompute.wire.fields import listed

VERSION: Final = 1
TRANSACTION_BYTES: Final = 8
RUN_BYTES: Final = 8
PROOF_BYTES: Final = 64
DIGEST_BYTES: Final = 8
TOKEN_BYTES: Final = 8
ANYONE: Final = bytes(DHT_ID_BYTES)
"""Recipient of a first contact."""

_DOMAIN: Final = b"p2pc dht statement 1"
_HEAD_BYTES: Final = 77
"""Array head, version, type, transaction, sender key, recipient, run, role: 1 + 1 + 1 + 9 + 34 + 21 + 9 + 1."""
_CONTACTS_MAX: Final = 64
"""Contacts in a reply that are looked at; more than a datagram can hold."""
_SEQ_MAX: Final = 2**63 - 1
_CONTACTS_CACHED_MAX: Final = 4096
"""Contacts that are kept decoded, and encoded: 500 bytes each."""

_CLASSES_CACHED_MAX: Final = 1024


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
    REGISTER = 10
    REGISTERED = 11
    QUERY = 12
    ADS = 13
    CALL = 14
    CALLED = 15
    RING = 16


_KINDS: Final = {int(kind): kind for kind in MessageType}
_HEADS: Final = {kind: bytes((0x88, VERSION, kind, 0x40 | TRANSACTION_BYTES)) for kind in MessageType}
_SENDER: Final = bytes((0x58, PUBLIC_KEY_BYTES))
_RECIPIENT: Final = bytes((0x40 | DHT_ID_BYTES,))
_RUN: Final = bytes((0x40 | RUN_BYTES,))
_TRANSACTION_AT: Final = 4
_SENDER_AT: Final = _TRANSACTION_AT + TRANSACTION_BYTES + 2
_RECIPIENT_AT: Final = _SENDER_AT + PUBLIC_KEY_BYTES + 1
_RUN_AT: Final = _RECIPIENT_AT + DHT_ID_BYTES + 1
_ROLE_AT: Final = _RUN_AT + RUN_BYTES
_BODY_AT: Final = _ROLE_AT + 1
_ROLES: Final = (b"\x00", b"\x01")
_EMPTY: Final = b"\x80"
_PADDING: Final = bytes(224)
_PADDING_ENCODED: Final = bytes((0x58, len(_PADDING))) + _PADDING
_REGISTER_PADDING: Final = bytes(48)
_CALL_PADDING: Final = bytes(64)
_FIND_HEAD: Final = bytes((0x82, 0x40 | DHT_ID_BYTES))
_FIND_BYTES: Final = len(_FIND_HEAD) + DHT_ID_BYTES + len(_PADDING_ENCODED)
_TOKEN_HEAD: Final = bytes((0x40 | TOKEN_BYTES,))
_CLASS_HEAD: Final = bytes((0x40 | CLASS_BYTES,))
_CONTACT_HEAD: Final = bytes((0x82, 0x58, PUBLIC_KEY_BYTES))
_PACKED_V4_HEAD: Final = 0x46
_CONTACT_BYTES: Final = 3 + PUBLIC_KEY_BYTES + 1 + 6


class AckStatus(IntEnum):
    """What became of a PUT; a BYE is answered with OK."""

    OK = 0
    STALE = 1
    """A record with a higher sequence number is held; it is in the reply."""
    REFUSED = 2
    """Not a valid record, or expired."""
    FULL = 3
    """No room that it could have."""
    TOKEN = 4
    """Not without a token; one is in the reply."""


_STATUSES: Final = tuple(AckStatus)
_OUTCOMES: Final = tuple(Outcome)


class Ping(Struct, frozen=True, gc=False):
    """Is somebody there, and who?"""


class Pong(Struct, frozen=True, gc=False):
    """The answer to a ping."""

    observed: Address
    """Source address of the ping, as it arrived."""
    name: str
    """What the sender calls itself; may be empty."""
    class_bits: int | None = None
    """What the sender has; None: it has not said so."""


class Find(Struct, frozen=True, gc=False):
    """Who is near this key?"""

    key: bytes


class Nodes(Struct, frozen=True, gc=False):
    """Contacts near a key, nearest first."""

    name: str
    contacts: tuple[Contact, ...]
    token: bytes = bytes(TOKEN_BYTES)
    """With which the asker may put records under the key it asked about."""
    class_bits: int | None = None
    """As in `Pong`."""


class Get(Struct, frozen=True, gc=False):
    """What is held under this key, from this offset on?"""

    key: bytes
    offset: int = 0


class Values(Struct, frozen=True, gc=False):
    """A page of the canonical CBOR list of records held under a key."""

    digest: bytes
    """Of the whole list: pages of different lists are not joined."""
    total: int
    offset: int
    chunk: bytes


class Put(Struct, frozen=True, gc=False):
    """A part of a record to be held."""

    key: bytes
    """Where it lives."""
    token: bytes
    part: int
    parts: int
    chunk: bytes


class Ack(Struct, frozen=True, gc=False):
    """The answer to a put or a goodbye."""

    status: AckStatus
    seq: int = 0
    """Sequence number of the record that is held now; 0 when none."""
    token: bytes = b""


class Bye(Struct, frozen=True, gc=False):
    """The sender is leaving."""


class Register(Struct, frozen=True, gc=False):
    """Keep an ad of the sender."""

    key: bytes
    """Of the feature."""
    token: bytes
    life_s: int
    bits: int
    """The sender's tuple."""


class Registered(Struct, frozen=True, gc=False):
    """The answer to a registration."""

    outcome: Outcome
    contacts: tuple[Contact, ...]
    token: bytes = b""


class Query(Struct, frozen=True, gc=False):
    """Who has this?"""

    key: bytes
    """Of a feature."""
    mask: int
    """Bits of the tuples of those that are meant."""


class Ads(Struct, frozen=True, gc=False):
    """The answer to a query."""

    found: tuple[Contact, ...]
    """Nodes that fit, by their ads or their classes."""
    contacts: tuple[Contact, ...]


class Call(Struct, frozen=True, gc=False):
    """Have others call me, so that I see whether I can be reached."""


class Called(Struct, frozen=True, gc=False):
    """The answer to a call."""

    contacts: tuple[Contact, ...]
    """Those that were asked to; at most DHT_CALLERS."""


class Ring(Struct, frozen=True, gc=False):
    """Ping this peer there, once."""

    contact: Contact


Message: TypeAlias = (
    Ping
    | Pong
    | Find
    | Nodes
    | Get
    | Values
    | Put
    | Ack
    | Bye
    | Register
    | Registered
    | Query
    | Ads
    | Call
    | Called
    | Ring
)

_PING: Final = Ping()
_BYE: Final = Bye()
_CALL: Final = Call()
_TYPES: Final[dict[type[Any], MessageType]] = {
    Ping: MessageType.PING,
    Pong: MessageType.PONG,
    Find: MessageType.FIND,
    Nodes: MessageType.NODES,
    Get: MessageType.GET,
    Values: MessageType.VALUES,
    Put: MessageType.PUT,
    Ack: MessageType.ACK,
    Bye: MessageType.BYE,
    Register: MessageType.REGISTER,
    Registered: MessageType.REGISTERED,
    Query: MessageType.QUERY,
    Ads: MessageType.ADS,
    Call: MessageType.CALL,
    Called: MessageType.CALLED,
    Ring: MessageType.RING,
}

REPLIES: Final[dict[MessageType, tuple[MessageType, ...]]] = {
    MessageType.PING: (MessageType.PONG,),
    MessageType.FIND: (MessageType.NODES,),
    MessageType.GET: (MessageType.VALUES, MessageType.NODES),
    MessageType.PUT: (MessageType.ACK,),
    MessageType.BYE: (MessageType.ACK,),
    MessageType.REGISTER: (MessageType.REGISTERED,),
    MessageType.QUERY: (MessageType.ADS,),
    MessageType.CALL: (MessageType.CALLED,),
    MessageType.RING: (MessageType.ACK,),
}
"""The requests, and what may answer each."""


class Statement(Struct, frozen=True, gc=False):
    """The outer fields of a datagram; the proof is not checked yet."""

    type: MessageType
    transaction: bytes
    sender: bytes
    """The sender's public key."""
    recipient: bytes
    run: bytes
    is_client: bool
    """Whether the sender is a client to the recipient."""
    body: bytes
    """Canonical CBOR if it is honest; decoded by `decode_body` once the proof holds."""
    signed: bytes
    """The bytes that the proof covers, without domain and group."""
    proof: bytes


def type_of(message: Message) -> MessageType:
    """Return the wire code of a message."""
    return _TYPES[type(message)]


def signing_input(group_id: bytes, statement: bytes) -> bytes:
    """Return what the proof of a statement is made over."""
    return _DOMAIN + group_id + statement


def encode_statement(
    message: Message,
    *,
    transaction: bytes,
    sender: bytes,
    recipient: bytes,
    run: bytes,
    group_id: bytes,
    prove: Callable[[bytes], bytes],
    is_client: bool = False,
) -> bytes:
    """Return the datagram body.

    Args:
        prove: signs, for ANYONE; else makes the tag that the recipient knows the sender by.

    Raises:
        LocalProtocolError: it is longer than DHT_BODY_BYTES_MAX (our bug).
    """
    kind = type_of(message)
    statement = b"".join(
        (
            _HEADS[kind],
            transaction,
            _SENDER,
            sender,
            _RECIPIENT,
            recipient,
            _RUN,
            run,
            _ROLES[is_client],
            _encode_body(message),
        )
    )
    datagram = statement + prove(signing_input(group_id, statement))
    if len(datagram) > DHT_BODY_BYTES_MAX:
        raise LocalProtocolError(f"a {kind.name} of {len(datagram)} bytes")
    return datagram


def decode_statement(datagram: bytes) -> Statement:
    """Return the outer fields of a datagram.  The proof and the body are still to be checked.

    Raises:
        RemoteProtocolError: the peer sent anything but a statement of this version.
    """
    if not PROOF_BYTES < len(datagram) <= DHT_BODY_BYTES_MAX:
        raise RemoteProtocolError(f"a statement of {len(datagram)} bytes")
    if datagram[:1] != _HEADS[MessageType.PING][:1]:
        raise RemoteProtocolError("a statement has 8 fields")
    if datagram[1] != VERSION:
        raise RemoteProtocolError("a statement of another version")
    kind = _KINDS.get(datagram[2])
    if kind is None:
        raise RemoteProtocolError("a message of unknown type")
    if (
        datagram[3:_TRANSACTION_AT] != _HEADS[kind][3:]
        or datagram[_SENDER_AT - 2 : _SENDER_AT] != _SENDER
        or datagram[_RECIPIENT_AT - 1 : _RECIPIENT_AT] != _RECIPIENT
        or datagram[_RUN_AT - 1 : _RUN_AT] != _RUN
        or datagram[_ROLE_AT:_BODY_AT] not in _ROLES
        or len(datagram) <= _BODY_AT + PROOF_BYTES
    ):
        raise RemoteProtocolError("a statement with fields of other types or sizes")
    signed = datagram[:-PROOF_BYTES]
    return Statement(
        kind,
        datagram[_TRANSACTION_AT : _TRANSACTION_AT + TRANSACTION_BYTES],
        datagram[_SENDER_AT : _SENDER_AT + PUBLIC_KEY_BYTES],
        datagram[_RECIPIENT_AT : _RECIPIENT_AT + DHT_ID_BYTES],
        datagram[_RUN_AT : _RUN_AT + RUN_BYTES],
        datagram[_ROLE_AT] == 1,
        signed[_BODY_AT:],
        signed,
        datagram[-PROOF_BYTES:],
    )


def _encode_body(message: Message) -> bytes:
    match message:
        case Ping() | Bye():
            return _EMPTY
        case Find():
            return _FIND_HEAD + message.key + _PADDING_ENCODED
        case Pong():
            return cbor.encode([pack_address(message.observed), message.name, *_class_field(message.class_bits)])
        case Nodes():
            tail = _TOKEN_HEAD + message.token
            if message.class_bits is not None:
                tail += _CLASS_HEAD + message.class_bits.to_bytes(CLASS_BYTES, "big")
            head = b"\x83" if message.class_bits is None else b"\x84"
            return b"".join((head, cbor.encode(message.name), _packed_list(message.contacts), tail))
        case Get():
            return cbor.encode([message.key, message.offset, _PADDING])
        case Values():
            return cbor.encode([message.digest, message.total, message.offset, message.chunk])
        case Put():
            return cbor.encode([message.key, message.token, message.part, message.parts, message.chunk])
        case Ack():
            return cbor.encode([int(message.status), message.seq, message.token])
        case Register():
            bits = message.bits.to_bytes(TUPLE_BYTES, "big")
            return cbor.encode([message.key, message.token, message.life_s, bits, _REGISTER_PADDING])
        case Registered():
            token = cbor.encode(message.token)
            return b"".join((b"\x83", bytes((message.outcome,)), _packed_list(message.contacts), token))
        case Query():
            return cbor.encode([message.key, message.mask.to_bytes(TUPLE_BYTES, "big"), _PADDING])
        case Ads():
            return b"\x82" + _packed_list(message.found) + _packed_list(message.contacts)
        case Call():
            return cbor.encode([_CALL_PADDING])
        case Called():
            return b"\x81" + _packed_list(message.contacts)
        case Ring():
            return _packed(message.contact.key, message.contact.address)
        case _:
            assert_never(message)


def _class_field(class_bits: int | None) -> list[bytes]:
    return [] if class_bits is None else [class_bits.to_bytes(CLASS_BYTES, "big")]


def _packed_list(contacts: Sequence[Contact]) -> bytes:
    return _list_head(len(contacts)) + b"".join([_packed(contact.key, contact.address) for contact in contacts])


def _list_head(count: int) -> bytes:
    return bytes((0x80 | count,)) if count < 24 else bytes((0x98, count))


@lru_cache(maxsize=_CONTACTS_CACHED_MAX)
def _packed(key: bytes, address: Address) -> bytes:
    """A contact as it travels: the CBOR of [key, packed address]; cached as the same few are told of often."""
    packed = pack_address(address)
    return b"".join((_CONTACT_HEAD, key, bytes((0x40 | len(packed),)), packed))


def decode_body(kind: MessageType, raw: bytes) -> Message:
    """Return the message of a statement.

    Raises:
        RemoteProtocolError: not canonical, or a field is missing, of another type or out of bounds.
    """
    if raw == _EMPTY:
        if kind is MessageType.PING:
            return _PING
        if kind is MessageType.BYE:
            return _BYE
    if kind is MessageType.FIND and len(raw) == _FIND_BYTES and raw.startswith(_FIND_HEAD):
        key_end = len(_FIND_HEAD) + DHT_ID_BYTES
        if raw[key_end:] == _PADDING_ENCODED:
            return Find(raw[len(_FIND_HEAD) : key_end])
    if kind is MessageType.NODES:
        nodes = _fast_nodes(raw)
        if nodes is not None:
            return nodes
    body = cbor.decode(raw)
    match kind:
        case MessageType.PING:
            listed(body, 0, "body")
            return _PING
        case MessageType.PONG:
            observed, name, *rest = listed(body, 2, "body", optional=1)
            return Pong(unpack_address(observed), _name(name), _class(rest))
        case MessageType.FIND:
            key, padding = listed(body, 2, "body")
            return Find(_padded(key, padding))
        case MessageType.NODES:
            name, contacts, token, *rest = listed(body, 3, "body", optional=1)
            return Nodes(_name(name), _contacts(contacts), _sized(token, TOKEN_BYTES), _class(rest))
        case MessageType.GET:
            key, offset, padding = listed(body, 3, "body")
            return Get(_padded(key, padding), _count(offset, RECORDS_REPLY_BYTES_MAX))
        case MessageType.VALUES:
            return _values(body)
        case MessageType.PUT:
            key, token, part, parts, chunk = listed(body, 5, "body")
            parts = _count(parts, DHT_PUT_PARTS_MAX)
            part = _count(part, DHT_PUT_PARTS_MAX - 1)
            if part >= parts or not isinstance(chunk, bytes) or not 0 < len(chunk) <= DHT_CHUNK_BYTES:
                raise RemoteProtocolError("a part of a record that cannot be")
            return Put(_sized(key, DHT_ID_BYTES), _token(token), part, parts, chunk)
        case MessageType.ACK:
            status, seq, token = listed(body, 3, "body")
            return Ack(_STATUSES[_count(status, len(_STATUSES) - 1)], _count(seq, _SEQ_MAX), _token(token))
        case MessageType.BYE:
            listed(body, 0, "body")
            return _BYE
        case MessageType.REGISTER:
            key, token, life_s, bits, padding = listed(body, 5, "body")
            if padding != _REGISTER_PADDING:
                raise RemoteProtocolError("a registration that is shorter than a third of its answer")
            life_s = _count(life_s, int(RECORD_TTL_S_MAX))
            return Register(_sized(key, DHT_ID_BYTES), _token(token), life_s, _bits(bits, TUPLE_BYTES))
        case MessageType.REGISTERED:
            outcome, contacts, token = listed(body, 3, "body")
            outcome = _OUTCOMES[_count(outcome, len(_OUTCOMES) - 1)]
            return Registered(outcome, _contacts(contacts), _token(token))
        case MessageType.QUERY:
            key, mask, padding = listed(body, 3, "body")
            return Query(_padded(key, padding), _bits(mask, TUPLE_BYTES))
        case MessageType.ADS:
            found, contacts = listed(body, 2, "body")
            return Ads(_contacts(found), _contacts(contacts))
        case MessageType.CALL:
            if listed(body, 1, "body") != [_CALL_PADDING]:
                raise RemoteProtocolError("a question that is shorter than a third of its answer")
            return _CALL
        case MessageType.CALLED:
            (contacts,) = listed(body, 1, "body")
            return Called(_contacts(contacts)[:DHT_CALLERS])
        case MessageType.RING:
            return Ring(*_contacts([body]))
        case _:
            assert_never(kind)


def _fast_nodes(raw: bytes) -> Nodes | None:
    """Read a NODES with fewer than 24 contacts, all IPv4, and a name of less than 24 bytes: nearly all are so, and the
    strict decoder takes three times as long.  None: let the strict decoder say what it is."""
    has_class = raw[:1] == b"\x84"
    if len(raw) < 3 or not (has_class or raw[0] == 0x83) or raw[1] >> 5 != 3 or raw[1] & 31 >= 24:
        return None
    at = 2 + (raw[1] & 31)
    if len(raw) <= at or raw[at] >> 5 != 4:
        return None
    count = raw[at] & 31
    at += 1
    end = at + count * _CONTACT_BYTES
    class_at = end + 1 + TOKEN_BYTES
    if count >= 24 or len(raw) != class_at + has_class * (1 + CLASS_BYTES) or raw[end : end + 1] != _TOKEN_HEAD:
        return None
    if has_class and raw[class_at : class_at + 1] != _CLASS_HEAD:
        return None
    contacts = []
    for start in range(at, end, _CONTACT_BYTES):
        contact = _contact_of(raw[start : start + _CONTACT_BYTES])
        if contact is None:
            return None
        contacts.append(contact)
    try:
        name = raw[2 : at - 1].decode()
    except UnicodeDecodeError:
        return None
    class_bits = _class_of(raw[class_at + 1 :]) if has_class else None
    return Nodes(_name(name), tuple(contacts), raw[end + 1 : class_at], class_bits)


@lru_cache(maxsize=_CONTACTS_CACHED_MAX)
def _contact_of(item: bytes) -> Contact | None:
    """The contact in these bytes if they are one with an IPv4 address; cached as the same few are heard of often."""
    if item[:3] != _CONTACT_HEAD or item[3 + PUBLIC_KEY_BYTES] != _PACKED_V4_HEAD:
        return None
    return Contact(item[3 : 3 + PUBLIC_KEY_BYTES], unpack_address(item[4 + PUBLIC_KEY_BYTES :]))


def cut_contacts(contacts: Sequence[Contact], name: str) -> tuple[Contact, ...]:
    """Return the first contacts, as many as fit a NODES message beside `name`."""
    left = DHT_BODY_BYTES_MAX - _HEAD_BYTES - PROOF_BYTES - len(name.encode()) - 7  # heads of body, name and list
    left -= 1 + TOKEN_BYTES + 1 + CLASS_BYTES
    return _cut(contacts[:_CONTACTS_MAX], left)


def cut_ads(found: Sequence[Contact], contacts: Sequence[Contact]) -> Ads:
    """Return an ADS message with the first of `found` and then of `contacts`, as many as fit."""
    left = DHT_BODY_BYTES_MAX - _HEAD_BYTES - PROOF_BYTES - 5  # heads of body and lists
    kept = _cut([*found, *contacts][:INDEX_CONTACTS_MAX], left)
    count = min(len(found), len(kept))
    return Ads(kept[:count], kept[count:])


def _cut(contacts: Sequence[Contact], left: int) -> tuple[Contact, ...]:
    """The first contacts, as many as fit so many bytes."""
    chosen: list[Contact] = []
    for contact in contacts:
        left -= 1 + 2 + PUBLIC_KEY_BYTES + 1 + packed_size(contact.address)
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


def parts_of(raw: bytes, key: bytes, token: bytes = b"") -> list[Put]:
    """Return the PUT messages of a raw record that lives under `key`, in order."""
    chunks = [raw[start : start + DHT_CHUNK_BYTES] for start in range(0, len(raw), DHT_CHUNK_BYTES)]
    return [Put(key, token, index, len(chunks), chunk) for index, chunk in enumerate(chunks)]


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


def _padded(key: object, padding: object) -> bytes:
    if padding != _PADDING:
        raise RemoteProtocolError("a question that is shorter than a third of its answer")
    return _sized(key, DHT_ID_BYTES)


def _token(value: object) -> bytes:
    return b"" if value == b"" else _sized(value, TOKEN_BYTES)


def _bits(value: object, size: int) -> int:
    return int.from_bytes(_sized(value, size), "big")


def _class(rest: list[Any]) -> int | None:
    return _class_of(_sized(rest[0], CLASS_BYTES)) if rest and rest[0] is not None else None


@lru_cache(maxsize=_CLASSES_CACHED_MAX)
def _class_of(raw: bytes) -> int:
    """The same number for all who have the same."""
    return int.from_bytes(raw, "big")


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > NODE_NAME_CHARS_MAX or not value.isprintable():
        raise RemoteProtocolError("a name that cannot be shown")
    return value


def _contacts(value: object) -> tuple[Contact, ...]:
    if not isinstance(value, list) or len(value) > _CONTACTS_MAX:
        raise RemoteProtocolError("a list of contacts was expected")
    contacts = []
    for item in value:
        key, packed = listed(item, 2, "contact")
        if not isinstance(packed, bytes):
            raise RemoteProtocolError("an address is bytes")
        contacts.append(_hearsay(_sized(key, PUBLIC_KEY_BYTES), packed))
    return tuple(contacts)


@lru_cache(maxsize=_CONTACTS_CACHED_MAX)
def _hearsay(key: bytes, packed: bytes) -> Contact:
    """The contact in a reply; cached because the same few are heard of again and again."""
    return Contact(key, unpack_address(packed))


def _values(body: list[Any]) -> Values:
    digest, total, offset, chunk = listed(body, 4, "body")
    total = _count(total, RECORDS_REPLY_BYTES_MAX)
    offset = _count(offset, RECORDS_REPLY_BYTES_MAX)
    if not isinstance(chunk, bytes) or not len(chunk) <= min(DHT_CHUNK_BYTES, max(0, total - offset)):
        raise RemoteProtocolError("a page that does not fit its list")
    return Values(_sized(digest, DIGEST_BYTES), total, offset, chunk)


assert _BODY_AT == _HEAD_BYTES and VERSION < 24 and max(MessageType) < 24, "one byte each"
assert 3 * (_BODY_AT + _FIND_BYTES + PROOF_BYTES + 12) >= DHT_BODY_BYTES_MAX + 12, "12: what carries a body"
_CARRIER_BYTES = 12
_CONTACT_BYTES_MAX = _CONTACT_BYTES + 12  # IPv6
assert 3 * (_BODY_AT + 1 + PROOF_BYTES + _CARRIER_BYTES) >= (
    _BODY_AT + 23 + 4 * NODE_NAME_CHARS_MAX + 1 + CLASS_BYTES + PROOF_BYTES + _CARRIER_BYTES
), "PING, PONG"
assert 3 * (_BODY_AT + 24 + 1 + TUPLE_BYTES + 2 + len(_REGISTER_PADDING) + PROOF_BYTES + _CARRIER_BYTES) >= (
    _BODY_AT + 3 + INDEX_REGISTERED_CONTACTS_MAX * _CONTACT_BYTES_MAX + 1 + TOKEN_BYTES + PROOF_BYTES + _CARRIER_BYTES
), "REGISTER with neither token nor life, REGISTERED"
assert 3 * (_BODY_AT + 3 + len(_CALL_PADDING) + PROOF_BYTES + _CARRIER_BYTES) >= (
    _BODY_AT + 2 + DHT_CALLERS * _CONTACT_BYTES_MAX + PROOF_BYTES + _CARRIER_BYTES
), "CALL, CALLED"
assert _BODY_AT + 3 + len(_CALL_PADDING) >= DHT_CALLERS * (_BODY_AT + 1) // 3, "CALL, and the calls for it"
