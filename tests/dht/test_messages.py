"""Wire format of the DHT: what does not round-trip, or is taken though it is not exactly right, breaks here."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.dht.contacts import Contact, pack_address, unpack_address
from p2pcompute.dht.index import Outcome
from p2pcompute.dht.messages import (
    ANYONE,
    REPLIES,
    Ack,
    AckStatus,
    Ads,
    Bye,
    Call,
    Called,
    Find,
    Get,
    Message,
    MessageType,
    Nodes,
    Ping,
    Pong,
    Put,
    Query,
    Register,
    Registered,
    Ring,
    Statement,
    Values,
    cut_ads,
    cut_contacts,
    decode_body,
    decode_statement,
    encode_statement,
    parts_of,
    shown_name,
    type_of,
)
from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import DHT_BODY_BYTES_MAX, DHT_CALLERS, DHT_CHUNK_BYTES, DHT_K, RECORD_BYTES_MAX
from p2pcompute.wire import cbor

KEY = hashlib.sha256(b"key").digest()
ID = KEY[:20]


def sign(message: bytes) -> bytes:
    return hashlib.sha512(message).digest()


def encode(message: Message, **changes: Any) -> bytes:
    fields: dict[str, Any] = {"transaction": bytes(8), "sender": KEY, "recipient": ID, "run": b"run-1234"}
    return encode_statement(message, **{**fields, **changes}, group_id=bytes(32), prove=sign)


keys = st.binary(min_size=32, max_size=32)
ids = st.binary(min_size=20, max_size=20)
v4 = st.integers(0x01000000, 0xDFFFFFFF).map(lambda n: ".".join(str(b) for b in n.to_bytes(4, "big")))
addresses = st.builds(Address, v4 | st.sampled_from(["::1", "fd00::1", "2001:db8::7"]), st.integers(1, 65535))
names = st.text(max_size=64).map(shown_name)
contacts = st.tuples(keys, addresses).map(lambda pair: Contact(*pair))
tokens = st.binary(min_size=8, max_size=8)
classes = st.none() | st.integers(0, 2**64 - 1)
tuples = st.integers(0, 2**192 - 1)
chunks = st.binary(min_size=1, max_size=DHT_CHUNK_BYTES)
messages = st.one_of(
    st.just(Ping()),
    st.builds(Pong, addresses, names, classes),
    st.builds(Find, ids),
    st.builds(
        lambda name, cs, token, bits: Nodes(name, cut_contacts(cs, name), token, bits),
        names,
        st.lists(contacts, max_size=40),
        tokens,
        classes,
    ),
    st.builds(Get, ids, st.integers(0, 16384)),
    st.builds(lambda c, o: Values(bytes(8), o + len(c), o, c), chunks, st.integers(0, 15000)),
    st.builds(lambda k, t, c, p: Put(k, t, p, 2, c), ids, st.just(b"") | tokens, chunks, st.integers(0, 1)),
    st.builds(Ack, st.sampled_from(AckStatus), st.integers(0, 2**63 - 1), st.just(b"") | tokens),
    st.just(Bye()),
    st.builds(Register, ids, st.just(b"") | tokens, st.integers(0, 7200), tuples),
    st.builds(Registered, st.sampled_from(Outcome), st.lists(contacts, max_size=10).map(tuple), st.just(b"") | tokens),
    st.builds(Query, ids, tuples),
    st.builds(cut_ads, st.lists(contacts, max_size=20), st.lists(contacts, max_size=24)),
    st.just(Call()),
    st.builds(Called, st.lists(contacts, max_size=DHT_CALLERS).map(tuple)),
    st.builds(Ring, contacts),
)


@given(messages)
def test_every_message_round_trips_within_one_datagram(message: Message) -> None:
    datagram = encode(message)
    assert len(datagram) <= DHT_BODY_BYTES_MAX
    statement = decode_statement(datagram)
    assert decode_body(statement.type, statement.body) == message
    assert (statement.sender, statement.recipient, statement.run) == (KEY, ID, b"run-1234")
    assert [decode_statement(encode(message, is_client=role)).is_client for role in (False, True)] == [False, True]
    assert datagram == statement.signed + statement.proof


@given(messages)
def test_statements_and_bodies_are_canonical_cbor(message: Message) -> None:
    statement = decode_statement(encode(message))
    fields = cbor.decode(statement.signed)
    assert fields[:7] == [1, int(statement.type), bytes(8), KEY, ID, b"run-1234", 0]
    assert cbor.encode(fields[7]) == statement.body


@given(messages, st.data())
def test_a_body_that_is_not_canonical_is_refused(message: Message, data: st.DataObject) -> None:
    statement = decode_statement(encode(message))
    body = bytearray(statement.body)
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode_body(statement.type, bytes(body))
    except RemoteProtocolError:
        return
    assert cbor.encode(cbor.decode(bytes(body))) == body, "the quick way in accepts what the strict one would not"


@given(st.binary(max_size=1300))
def test_junk_raises_only_the_documented_error(junk: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_statement(junk)


@given(messages, st.data())
def test_a_changed_byte_never_yields_the_same_signed_bytes(message: Message, data: st.DataObject) -> None:
    datagram = bytearray(encode(message))
    index = data.draw(st.integers(0, len(datagram) - 1))
    datagram[index] ^= data.draw(st.integers(1, 255))
    try:
        statement = decode_statement(bytes(datagram))
        decode_body(statement.type, statement.body)
    except RemoteProtocolError:
        return
    original = decode_statement(encode(message))
    assert (statement.signed, statement.proof) != (original.signed, original.proof)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


@given(st.sampled_from(MessageType), st.lists(values, max_size=5))
def test_any_body_is_a_message_or_the_documented_error(kind: MessageType, body: list[Any]) -> None:
    try:
        message = decode_body(kind, cbor.encode(body))
    except RemoteProtocolError:
        return
    statement = decode_statement(encode(message))
    assert decode_body(statement.type, statement.body) == message, "what is accepted must be canonical"


@pytest.mark.parametrize(
    "change",
    [
        {0: 2}, {0: True}, {1: 0}, {1: 99}, {1: True}, {1: "PING"}, {2: bytes(7)}, {2: "x" * 8}, {3: bytes(31)},
        {4: bytes(19)}, {4: None}, {5: bytes(9)}, {6: 2}, {6: True}, {6: None}, {7: {}}, {7: 7},
    ],
)  # fmt: skip
def test_each_outer_field_is_checked(change: dict[int, Any]) -> None:
    fields: list[Any] = [1, 1, bytes(8), KEY, ID, bytes(8), 0, []]
    assert decode_statement(cbor.encode(fields) + bytes(64)).type is MessageType.PING
    for index, value in change.items():
        fields[index] = value
    with pytest.raises(RemoteProtocolError):
        statement = decode_statement(cbor.encode(fields) + bytes(64))
        decode_body(statement.type, statement.body)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (MessageType.PING, {}),
        (MessageType.CALL, []),
        (MessageType.CALL, [bytes(63)]),
        (MessageType.CALLED, [[[KEY]]]),
        (MessageType.RING, [KEY]),
        (MessageType.RING, [KEY[1:], b"\x7f\0\0\1\0\1"]),
        (MessageType.PONG, [b"\x7f\0\0\1\0\0", "n"]),
        (MessageType.PONG, [b"\x7f\0\0\1\0\1", "n" * 65]),
        (MessageType.PONG, [b"\x7f\0\0\1\0\1", "bell\a"]),
        (MessageType.NODES, ["n", [[KEY]], bytes(8)]),
        (MessageType.NODES, ["n", [[KEY, b"\0\0\0\0\0\1"]], bytes(8)]),
        (MessageType.NODES, ["n", [[KEY, b"\xe0\0\0\1\0\1"]], bytes(8)]),
        (MessageType.NODES, ["n", [[KEY, b"\xff\xff\xff\xff\0\1"]], bytes(8)]),
        (MessageType.NODES, ["n", [[KEY, "127.0.0.1:1"]], bytes(8)]),
        (MessageType.NODES, ["n", [[KEY, b"\x7f\0\0\1\0\1"]] * 65, bytes(8)]),
        (MessageType.FIND, [ID]),
        (MessageType.FIND, [ID, bytes(223)]),
        (MessageType.FIND, [ID, bytes(223) + b"x"]),
        (MessageType.GET, [ID, -1, bytes(224)]),
        (MessageType.GET, [ID, 0]),
        (MessageType.NODES, ["n", [], b""]),
        (MessageType.VALUES, [bytes(8), 3, 0, b"four"]),
        (MessageType.VALUES, [bytes(8), 10**9, 0, b""]),
        (MessageType.PUT, [ID, b"", 1, 1, b"x"]),
        (MessageType.PUT, [ID, b"", 0, 0, b"x"]),
        (MessageType.PUT, [ID, b"", 0, 3, b"x"]),
        (MessageType.PUT, [ID, b"", 0, 1, b""]),
        (MessageType.PUT, [ID, bytes(7), 0, 1, b"x"]),
        (MessageType.PUT, [bytes(19), b"", 0, 1, b"x"]),
        (MessageType.ACK, [5, 0, b""]),
        (MessageType.ACK, [0, -1, b""]),
        (MessageType.ACK, [0, 0, bytes(9)]),
        (MessageType.BYE, b""),
    ],
)
def test_bodies_out_of_bounds_are_refused(kind: MessageType, body: list[Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_body(kind, cbor.encode(body))


def test_k_contacts_fit_one_reply_and_longer_lists_keep_the_nearest() -> None:
    many = [Contact(hashlib.sha256(b"%d" % n).digest(), Address("10.1.2.3", 40000 + n)) for n in range(DHT_K)]
    assert cut_contacts(many, "a-name-of-usual-length") == tuple(many)
    sixes = [Contact(contact.key, Address("2001:db8::1", 4000)) for contact in many * 2]
    kept = cut_contacts(sixes, "ü" * 64)
    assert 10 < len(kept) < DHT_K and kept == tuple(sixes[: len(kept)])
    assert len(encode(Nodes("ü" * 64, kept))) <= DHT_BODY_BYTES_MAX


def test_the_longest_record_fits_the_parts_of_a_put() -> None:
    raw = bytes(RECORD_BYTES_MAX)
    parts = parts_of(raw, ID, bytes(8))
    assert b"".join(part.chunk for part in parts) == raw
    assert [(part.part, part.parts) for part in parts] == [(0, 2), (1, 2)]
    assert max(len(encode(part)) for part in parts) <= DHT_BODY_BYTES_MAX


def test_a_statement_that_would_not_fit_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        encode(Put(ID, b"", 0, 1, bytes(DHT_BODY_BYTES_MAX)))


def test_the_proof_binds_group_and_recipient() -> None:
    seen: list[bytes] = []

    def note(message: bytes) -> bytes:
        seen.append(message)
        return bytes(64)

    for group_id, recipient in ((bytes(32), ID), (b"\1" * 32, ID), (bytes(32), ANYONE)):
        encode_statement(
            Ping(), transaction=bytes(8), sender=KEY, recipient=recipient, run=bytes(8), group_id=group_id, prove=note
        )
    assert len(set(seen)) == 3, "a statement could be replayed in another group or to another node"


@given(addresses)
def test_addresses_round_trip(address: Address) -> None:
    assert unpack_address(pack_address(address)) == address


def test_an_unsigned_first_contact_is_a_statement_like_any_other() -> None:
    statement: Statement = decode_statement(encode(Ping(), recipient=ANYONE))
    assert statement.recipient == ANYONE


@given(messages)
def test_no_answer_is_longer_than_three_times_its_question(message: Message) -> None:
    """If it broke, a datagram from a forged address would bring more upon whoever has it."""
    questions = {answer: kind for kind, answers in REPLIES.items() for answer in answers}
    kind = questions.get(type_of(message))
    if kind is None:
        return
    shortest: dict[MessageType, Message] = {
        MessageType.PING: Ping(), MessageType.FIND: Find(ID), MessageType.GET: Get(ID),
        MessageType.PUT: Put(ID, b"", 0, 1, b"x"), MessageType.BYE: Bye(),
        MessageType.REGISTER: Register(ID, b"", 0, 1), MessageType.QUERY: Query(ID, 1),
            MessageType.CALL: Call(), MessageType.RING: Ring(Contact(KEY, Address("1.2.3.4", 1))),
    }  # fmt: skip
    carried = 12
    assert len(encode(message)) + carried <= 3 * (len(encode(shortest[kind])) + carried)


def test_as_many_ads_are_sent_as_fit_and_what_was_found_comes_first() -> None:
    many = [Contact(bytes([number]) * 32, Address("fd00::1", 1 + number)) for number in range(40)]
    ads = cut_ads(many[:4], many[4:])
    assert list(ads.found) == many[:4] and list(ads.contacts) == many[4 : 4 + len(ads.contacts)]
    assert len(ads.contacts) >= 10 and len(encode(ads)) <= DHT_BODY_BYTES_MAX
    assert not cut_ads(many, many).contacts


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (Register(ID, b"", 900, 1), lambda body: [*body[:2], 7201, *body[3:]]),
        (Register(ID, b"", 900, 1), lambda body: [*body[:3], bytes(23), body[4]]),
        (Register(ID, b"", 900, 1), lambda body: [*body[:4], b""]),
        (Register(ID, b"", 900, 1), lambda body: [*body[:2], True, *body[3:]]),
        (Registered(Outcome.OK, ()), lambda body: [4, *body[1:]]),
        (Query(ID, 1), lambda body: [body[0], bytes(8), body[2]]),
        (Query(ID, 1), lambda body: [*body[:2], bytes(8)]),
        (Ads((), ()), lambda body: [body[0], [[bytes(31), b"123456"]]]),
        (Pong(Address("10.0.0.1", 1), "x", 1), lambda body: [*body[:2], bytes(7)]),
        (Nodes("x", (), bytes(8), 1), lambda body: [*body[:3], 1]),
    ],
)
def test_statements_about_the_index_are_exactly_right_or_refused(message: Message, change: Any) -> None:
    raw = decode_statement(encode(message)).body
    assert decode_body(type_of(message), raw) == message
    with pytest.raises(RemoteProtocolError):
        decode_body(type_of(message), cbor.encode(change(cbor.decode(raw))))
