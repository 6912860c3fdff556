"""What a later version adds is passed over; what it may not add without older ones refusing it is refused.

Breaks when nodes of two versions cannot work together, or when one does what a later version forbids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2pcompute.dht import messages as dht
from p2pcompute.dht.contacts import Contact, pack_address
from p2pcompute.dht.records import RecordKind, make_record, open_record
from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.execution.spec import JobSpec, TaskKind, decode_spec, encode_spec
from p2pcompute.host.interfaces import Address
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.identity.keys import create_identity
from p2pcompute.limits import CLAIMS_BYTES_MAX, RESULTS_BATCH_MAX
from p2pcompute.resources import questions
from p2pcompute.resources.attributes import decode_attributes
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.bundles import check_evidence, make_evidence
from p2pcompute.scheduler.receipts import RECEIPT_CONTENT_TYPE, open_receipt
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.scheduler.terms import JOB_CONTENT_TYPE, JobTerms, open_job, seal_job
from p2pcompute.wire import cbor
from p2pcompute.wire.envelope import open_envelope
from p2pcompute.wire.fields import listed, named

CRYPTO = RealCrypto()
ADA = create_identity(CRYPTO)
KEY = bytes(range(32))
WALL = 1_800_000_000.0
LATER: list[Any] = ["later", b"more", 1]
HERE = Contact(KEY, Address("192.0.2.1", 7878))


def test_the_fields_that_are_known() -> None:
    assert listed([1, 2, 3], 2, "x") == [1, 2]
    assert listed([1, 2, 3, 4], 2, "x", optional=1) == [1, 2, 3]
    assert listed([1, 2], 2, "x", optional=1) == [1, 2]
    assert named({"a": 1, "b": 2}, frozenset("a"), "x") == {"a": 1, "b": 2}
    for wrong in ([1], (1, 2), {0: 1, 1: 2}, "ab", None):
        with pytest.raises(RemoteProtocolError):
            listed(wrong, 2, "x")
    for unnamed in ({"b": 1}, ["a"], None):
        with pytest.raises(RemoteProtocolError):
            named(unnamed, frozenset("a"), "x")


THIEF = Thief(KEY, KEY, b"boot", (3, 11), slots=2, want=3, request_id=1)
GRANT: list[Any] = [1, 2, KEY, b"raw", KEY, [["127.0.0.1", 1]], 30_000, [[0, 0, 1, b"payload"]], 4, True, 5_000, b"m"]
ROW: list[Any] = [0, 0, 3, KEY, "ada", 1, b"o", b"p"]
SYNCED: list[Any] = [7, False, [b"fact"], [ROW], 0, [b"claims"], [ROW], 1, [[0, [0, 2, [KEY], b"c"]]], 12, True]
BODIES: list[tuple[Callable[[Any], Any], Any, Any]] = [
    (lambda b: messages.parse_steal(b, KEY, KEY), (steal := messages.steal_body(THIEF)), [*steal, *LATER]),
    (lambda b: messages.parse_grant(b, KEY), GRANT, [*GRANT, *LATER]),
    (
        lambda b: messages.parse_grant(b, KEY),
        GRANT,
        [*GRANT[:5], [["127.0.0.1", 1, *LATER]], GRANT[6], [[0, 0, 1, b"payload", None, *LATER]], *GRANT[8:]],
    ),
    (messages.parse_ack, [1, True], [1, True, False, *LATER]),
    (messages.parse_ack, [1, False, True], [1, False, True, *LATER]),
    (
        messages.parse_heartbeat,
        [b"boot", KEY, [[KEY, [[0, 0, 1]]]]],
        [b"boot", KEY, [[KEY, [[0, 0, 1, *LATER]], *LATER]], *LATER],
    ),
    (messages.parse_job_indices, [[KEY, [1, 2]]], [[KEY, [1, 2], *LATER]]),
    (messages.parse_stop, [KEY, [1], False], [KEY, [1], False, *LATER]),
    (messages.parse_checkpoint, [[KEY, 3, 0, 2, b"c"]], [[KEY, 3, 0, 2, b"c", *LATER]]),
    (messages.parse_tail_asked, [KEY, 3, 1, 0, 9], [KEY, 3, 1, 0, 9, *LATER]),
    (messages.parse_tail, [0, b"out", 5, b"err", b"far", 9, 4], [0, b"out", 5, b"err", b"far", 9, 4, *LATER]),
    (messages.parse_printed, [[KEY, 3, 1, 0, b"o", 5, b"e"]], [[KEY, 3, 1, 0, b"o", 5, b"e", *LATER]]),
    (messages.parse_coordinator, [KEY, 7], [KEY, 7, *LATER]),
    (messages.parse_job_id, [KEY], [KEY, *LATER]),
    (messages.parse_job, [b"raw"], [b"raw", *LATER]),
    (messages.parse_results, [b"raw", []], [b"raw", [], *LATER]),
    (
        messages.parse_sync,
        [KEY, b"ticket", 3, 0, 4, 1, 7, True, 5, 12, 10_000],
        [KEY, b"ticket", 3, 0, 4, 1, 7, True, 5, 12, 10_000, *LATER],
    ),
    (
        messages.parse_synced,
        SYNCED,
        [*SYNCED[:3], [[*ROW, *LATER]], *SYNCED[4:8], [[0, [0, 2, [KEY], b"c", *LATER], *LATER]], *SYNCED[9:], *LATER],
    ),
    (questions.parse_describe, [["gcc"]], [["gcc"], *LATER]),
    (questions.parse_description, [b"attributes"], [b"attributes", *LATER]),
    (questions.parse_query, ["cpus>=8", "-load", 1500], ["cpus>=8", "-load", 1500, *LATER]),
    (questions.parse_verdict, [1, b"attributes"], [1, b"attributes", *LATER]),
    (
        lambda b: decode_attributes(cbor.encode(b)),
        [1, {"cpus": [4, 0, 1000, None]}],
        [1, {"cpus": [4, 0, 1000, None, *LATER]}, *LATER],
    ),
]


@pytest.mark.parametrize(("parse", "old", "new"), BODIES)
def test_messages_of_a_later_version_say_what_they_said_before(parse: Callable[[Any], Any], old: Any, new: Any) -> None:
    assert parse(cbor.decode(cbor.encode(new))) == parse(cbor.decode(cbor.encode(old)))


DATAGRAMS: list[dht.Message] = [
    dht.Ping(), dht.Pong(HERE.address, "ada", 7), dht.Find(KEY[:20]), dht.Nodes("ada", (HERE,), bytes(8), 3),
    dht.Get(KEY[:20], 5), dht.Values(bytes(8), 9, 0, b"chunk"), dht.Put(KEY[:20], bytes(8), 0, 1, b"part"),
    dht.Ack(dht.AckStatus.OK, 1, bytes(8)), dht.Bye(), dht.Register(KEY[:20], bytes(8), 600, 5),
    dht.Query(KEY[:20], 7), dht.Ads((HERE,), (HERE,)), dht.Call(), dht.Called((HERE,)), dht.Ring(HERE),
]  # fmt: skip


@pytest.mark.parametrize("message", DATAGRAMS, ids=lambda message: type(message).__name__)
def test_datagrams_of_a_later_version_say_what_they_said_before(message: dht.Message) -> None:
    kind = dht.type_of(message)
    datagram = dht.encode_statement(
        message, transaction=bytes(8), sender=KEY, recipient=KEY[:20], run=bytes(8), group_id=KEY, prove=ADA.sign
    )
    fields = cbor.decode(dht.decode_statement(datagram).body)
    assert dht.decode_body(kind, cbor.encode([*fields, *LATER])) == message


def test_what_a_later_version_leaves_out_of_the_middle_is_not_there() -> None:
    said = dht.decode_body(
        dht.MessageType.NODES, cbor.encode(["ada", [[KEY, pack_address(HERE.address), *LATER]], bytes(8), None, 1])
    )
    assert isinstance(said, dht.Nodes) and said.class_bits is None and said.contacts[0].key == KEY


def test_signatures_hold_over_what_is_not_known() -> None:
    """The bytes that came are kept: read here, and checked by who knows more."""
    raw = ADA.sign_envelope(
        RECEIPT_CONTENT_TYPE,
        {"worker": KEY, "cpu_ms": 5, "tasks": 6, "at": 7, "delegation": None, "watts": 9},
    )
    assert open_receipt(CRYPTO, raw).cpu_ms == 5
    record = make_record(ADA.sign_envelope, ADA.public_key, salt=b"s", seq=1, wall=WALL, ttl_s=600, value=b"v")
    fields = open_envelope(CRYPTO, record.raw, RecordKind.RECORD.value).payload
    later = ADA.sign_envelope(RecordKind.RECORD.value, [*fields, 1])
    opened = open_record(CRYPTO, later, wall=WALL)
    assert (opened.value, opened.raw) == (b"v", later)


def claims(digest: bytes, **more: Any) -> bytes:
    entry = [0, 0, 1, "ok", digest * 32, *LATER]
    return ADA.sign_envelope(
        messages.CLAIMS_CONTENT_TYPE, {"job": KEY, "boot": b"b", "claims": [entry], "later": 1, **more}
    )


def test_a_lie_of_a_later_version_is_proven_to_this_one() -> None:
    proof = make_evidence([claims(b"1"), claims(b"2")])
    assert check_evidence(CRYPTO, proof) == ADA.public_key
    assert messages.parse_claims(cbor.decode(cbor.decode(claims(b"1"))[2])) == (KEY, [(0, 0, 1, "ok", b"1" * 32)])
    with pytest.raises(TrustError):
        check_evidence(CRYPTO, make_evidence([claims(b"1"), claims(b"1", more=1)]))


def test_the_longest_honest_claims_fit_and_ballast_does_not() -> None:
    """Two of them must be a proof that all members can keep, whatever else a liar signs along."""
    longest = [[(1 << 62) + index, 255, 1 << 31, OutcomeStatus.NOT_RUN, KEY] for index in range(RESULTS_BATCH_MAX)]
    raw = ADA.sign_envelope(messages.CLAIMS_CONTENT_TYPE, {"job": KEY, "boot": bytes(16), "claims": longest})
    open_envelope(CRYPTO, raw, messages.CLAIMS_CONTENT_TYPE, bytes_max=CLAIMS_BYTES_MAX)
    with pytest.raises(RemoteProtocolError):
        heavy = claims(b"1", ballast=bytes(CLAIMS_BYTES_MAX))
        open_envelope(CRYPTO, heavy, messages.CLAIMS_CONTENT_TYPE, bytes_max=CLAIMS_BYTES_MAX)


def test_an_outcome_of_a_later_version_has_the_digest_that_was_signed() -> None:
    outcome = Outcome(OutcomeStatus.OK, stdout=b"out", exit_code=0, started_wall=WALL, runtime_s=0.5)
    fields = cbor.decode(messages.encode_outcome(outcome), allow_float=True)
    again = messages.decode_outcome(cbor.encode([*fields, *LATER]))
    assert again == outcome and messages.output_digest(again) == messages.output_digest(outcome)


def test_a_demand_that_is_not_known_is_refused() -> None:
    """A job that asks for what this version cannot keep is not run as if it had not asked."""
    terms = JobTerms(name="job", created_ms=int(WALL * 1000))
    spec = encode_spec(JobSpec(kind=TaskKind.COMMAND))
    payload = open_envelope(CRYPTO, seal_job(ADA, terms, spec, b"n"), JOB_CONTENT_TYPE).payload
    hint = ADA.sign_envelope(JOB_CONTENT_TYPE, {**payload, "hint": 1})
    assert open_job(CRYPTO, hint, wall=WALL, is_new=True).terms == terms
    demand = ADA.sign_envelope(JOB_CONTENT_TYPE, {**payload, "terms": {**payload["terms"], "never_on": 1}})
    with pytest.raises(RemoteProtocolError):
        open_job(CRYPTO, demand, wall=WALL, is_new=True)
    with pytest.raises(RemoteProtocolError):
        decode_spec(cbor.encode({**cbor.decode(spec), "fence": True}))
