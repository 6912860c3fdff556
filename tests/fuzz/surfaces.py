"""Every parser that bytes of others reach, with right bytes to begin with: for short tests, and for long runs by hand.

`python -m tests.fuzz.surfaces SECONDS [NAME …]` attacks each for so long, one after the other, and says how many inputs
that were, whether anything but the documented errors came out, and whether memory stayed flat.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import cbor2

from p2pcompute.dht import messages as dht
from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.records import make_ad, make_record, open_record, unpack_records
from p2pcompute.dht.seeds import groups_named, in_order, is_usable
from p2pcompute.errors import P2pcError
from p2pcompute.execution.codec import CannotDecode, decode, encode
from p2pcompute.execution.spec import (
    JobSpec,
    TaskKind,
    TaskPayload,
    decode_payload,
    decode_spec,
    encode_payload,
    encode_spec,
)
from p2pcompute.host.interfaces import Address, Host, SrvRecord
from p2pcompute.host.real_clock import SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_lan import _sighting
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.identity.keys import check_delegation, create_identity, delegate
from p2pcompute.node.evidence import PROOF, PROOFS, EvidenceExchange
from p2pcompute.node.log_exchange import LOG_DIGEST, LOG_NEWS, LOG_SYNC, MEMBER, NETWORK_KEY, LogExchange
from p2pcompute.node.log_records import join_pieces, pieces_of, read_piece
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.node.own_machines import OWN_MACHINES, OwnMachines
from p2pcompute.resources.attributes import decode_attributes
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.bundles import check_evidence, check_file, make_bundle, make_evidence
from p2pcompute.scheduler.manifests import MANIFEST_CONTENT_TYPE, check_manifest, sign_manifest
from p2pcompute.scheduler.receipts import RECEIPT_CONTENT_TYPE, open_receipt, seal_receipt
from p2pcompute.scheduler.terms import JobTerms, open_job, seal_job
from p2pcompute.scheduler.tickets import Ticket, format_ticket, parse_ticket, sign_ticket
from p2pcompute.transport import handshake
from p2pcompute.transport.credentials import WORDS_KEY
from p2pcompute.transport.datagrams import seal_datagram
from p2pcompute.transport.messages import Purpose, decode_body, encode_message, peek
from p2pcompute.trust.admission import (
    Admission,
    KeyAdmission,
    Knock,
    NearbyAdmission,
    PskAdmission,
    TokenAdmission,
    WordsAdmission,
)
from p2pcompute.trust.groups import ADMIT_TYPE, Group, admit, check_chain, found_group, name_heir
from p2pcompute.trust.invites import Invites, Token, format_token, parse_token
from p2pcompute.trust.levels import Levels
from p2pcompute.trust.log import LOG_TYPE, GroupLog, make_policy
from p2pcompute.trust.open_door import OpenAdmission, read_challenge
from p2pcompute.trust.pake import Exchange
from p2pcompute.trust.pins import Pins
from p2pcompute.trust.policy import GroupPolicy
from p2pcompute.trust.roster import Roster
from p2pcompute.trust.ssh_keys import make_voucher, parse_authorized_keys
from p2pcompute.trust.words import parse_code
from p2pcompute.wire import cbor
from p2pcompute.wire.envelope import seal
from p2pcompute.wire.frames import FrameReader, frame
from tests.fuzz.mutation import Mutator

CRYPTO = RealCrypto()
ADA, BOB = create_identity(CRYPTO), create_identity(CRYPTO)
WALL = 1_800_000_000.0
KEY = bytes(range(32))
HERE = Address("192.0.2.1", 7878)


@dataclass(frozen=True, slots=True)
class Surface:
    """One parser: `attack` gets bytes of others; whatever it raises but a P2pcError is a bug."""

    name: str
    reached_by: str
    """anybody, network key, joiner, member or user (who is handed a text or file)."""
    attack: Callable[[bytes], object]
    seeds: Sequence[bytes]


def _surfaces() -> Iterator[Surface]:
    yield from _of_anybody()
    yield from _of_joiners()
    yield from _of_the_network_key()
    yield from _of_members()
    yield from _of_users()


def _of_anybody() -> Iterator[Surface]:
    gate = handshake.PreambleGate(KEY)
    preamble = handshake.make_preamble(WORDS_KEY, listener=bytes(32), wall=WALL, nonce=bytes(12))
    yield Surface("preamble", "anybody", lambda data: gate.admit(data, [WORDS_KEY, KEY], WALL), [preamble])

    class Info:
        def __init__(self, data: bytes) -> None:
            parts = (data + bytes(8)).split(b"|")
            self.port = int.from_bytes(data[:2], "big")
            names = (b"k", b"n", b"g", b"i", b"a")
            self.properties = dict(zip(names, [*parts, *[b""] * 5], strict=False))

        def parsed_addresses(self) -> list[str]:
            return ["10.0.0.1"]

    yield Surface(
        "announcement", "anybody", lambda data: _sighting(Info(data)), [b"A" * 52 + b"|name|00112233|1,22|psk,nearby"]
    )

    def zone(data: bytes) -> None:
        ignored: Counter[str] = Counter()
        groups_named([[data], data.split(b" ")], ignored)
        text = data.decode("utf-8", "replace")
        in_order([SrvRecord(1, 0, len(data), text), SrvRecord(0, 9, 7878, text[:20])], random.Random(1), ignored)
        is_usable(text[:60], "example.org", ignored)

    yield Surface(
        "names", "anybody", zone, [b"v=p2pc1 group=00112233,44556677", b"node-1.example.org", b"192.0.2.7", b"fd00::1"]
    )


def _of_joiners() -> Iterator[Surface]:
    def read(data: bytes) -> None:
        for one in FrameReader(65536).feed(data):
            peek(one)
            decode_body(one)

    yield Surface("frames", "joiner", read, [frame(encode_message(16, 1, ["token", [b"x" * 8], "bob"])) * 2])
    binding, nonce = bytes(32), b"n" * 32
    made = handshake.make_auth(
        BOB, purpose=Purpose.JOIN, binding=binding, nonce=nonce, listener=KEY, instance=b"instance", hello={"name": "x"}
    )
    yield Surface(
        "auth",
        "joiner",
        lambda data: handshake.check_auth(CRYPTO, cbor.decode(data), binding=binding, nonce=nonce, listener=KEY),
        [cbor.encode(made)],
    )
    hello = handshake.make_hello(
        handshake.certify(ADA, binding), nonce=nonce, instance=b"instance", hello={"name": "ada"}
    )
    yield Surface(
        "hello",
        "joiner",
        lambda data: handshake.check_hello(CRYPTO, cbor.decode(data), binding=binding, listener=None),
        [cbor.encode(hello)],
    )

    invites = Invites(CRYPTO)
    invite = invites.create(0.0, words=3, uses=1000)
    exchange = Exchange(
        b"x", is_joiner=True, joiner=BOB.public_key, inviter=KEY, binding=binding, entropy=CRYPTO.random_bytes
    )
    ways: list[Admission] = [
        TokenAdmission(invites), WordsAdmission(invites), PskAdmission(CRYPTO, b"sixteen bytes or more"),
        KeyAdmission(CRYPTO, dict), NearbyAdmission(CRYPTO, Pins(), lambda _host: True),
        OpenAdmission(CRYPTO, lambda: bytes(32), lambda: 1),
    ]  # fmt: skip
    turn = [0]

    def knock(data: bytes) -> None:
        turn[0] += 1
        value = cbor.decode(data)
        knocking = Knock(
            now=10.0 * turn[0], wall=WALL, joiner=BOB.public_key, name="bob", inviter=KEY,
            binding=turn[0].to_bytes(32, "big"), host=f"10.0.{turn[0] % 200}.1",
        )  # fmt: skip
        for way in ways:
            for step in (way.meet, way.admit):
                try:
                    step(knocking, value)
                except P2pcError:
                    continue

    voucher = make_voucher(CRYPTO, KEY, joiner=BOB.public_key, wall=WALL)
    seeds = [[invite.number, exchange.message], exchange.message, [bytes(8), bytes(32)], voucher, b""]
    yield Surface("ways in", "joiner", knock, [cbor.encode(seed) for seed in seeds])


def _of_the_network_key() -> Iterator[Surface]:
    contacts = (Contact(KEY, HERE), Contact(KEY[::-1], Address("2001:db8::7", 1)))
    bodies: list[dht.Message] = [
        dht.Ping(), dht.Pong(HERE, "ada", 7), dht.Find(KEY[:20]), dht.Nodes("ada", contacts, bytes(8), 3),
        dht.Get(KEY[:20], 5), dht.Values(bytes(8), 9, 0, b"chunk"), dht.Put(KEY[:20], bytes(8), 0, 1, b"part"),
        dht.Ack(dht.AckStatus.OK, 1, bytes(8)), dht.Bye(), dht.Register(KEY[:20], bytes(8), 600, 5),
        dht.Query(KEY[:20], 7), dht.Ads(contacts, contacts), dht.Call(), dht.Called(contacts), dht.Ring(contacts[0]),
    ]  # fmt: skip
    statements = [
        dht.encode_statement(
            body, transaction=bytes(8), sender=BOB.public_key, recipient=KEY[:20], run=bytes(8), group_id=KEY,
            prove=BOB.sign, is_client=False,
        )
        for body in bodies
    ]  # fmt: skip
    assert all(seal_datagram(KEY, statement) for statement in statements)

    def datagram(data: bytes) -> None:
        statement = dht.decode_statement(data)
        dht.decode_body(statement.type, statement.body)

    yield Surface("datagrams", "network key", datagram, statements)
    fields = {"seq": 1, "wall": WALL, "ttl_s": 600, "value": b"v"}
    record = make_record(BOB.sign_envelope, BOB.public_key, salt=b"s", **fields)  # type: ignore[arg-type]
    ad = make_ad(BOB.sign_envelope, BOB.public_key, key=KEY[:20], **fields)  # type: ignore[arg-type]

    def records(data: bytes) -> None:
        open_record(CRYPTO, data, wall=WALL)

    yield Surface("records", "network key", records, [record.raw, ad.raw])
    yield Surface("signed records", "network key", _signed(records, "p2pc/record"), [_payload(record.raw)])
    yield Surface("lists of records", "network key", unpack_records, [cbor.encode([record.raw, ad.raw])])


def _of_members() -> Iterator[Surface]:
    group = found_group(ADA, CRYPTO, "lab", WALL)
    chain = [*group.chain, admit(ADA, group, CRYPTO, BOB.public_key, roles=("submit", "work"), wall=WALL)]

    def membership(data: bytes) -> None:
        check_chain(CRYPTO, cbor.decode(data), group_id=group.group_id, subject=BOB.public_key, wall=WALL)

    yield Surface("membership", "network key", membership, [cbor.encode(chain)])
    roster = Roster(CRYPTO, group)

    def log(data: bytes) -> None:
        value = cbor.decode(data)
        for take in (lambda: roster.add(value, WALL), lambda: roster.learn(value, WALL)):
            try:
                take()
            except P2pcError:
                continue

    yield Surface("membership log", "member", log, [cbor.encode([chain[1], []]), cbor.encode(chain)])
    heads = {"group": group.group_id, "as": hashlib.sha256(chain[0]).digest(), "after": [], "issued": int(WALL)}
    said: list[dict[str, Any]] = [
        {
            "kind": "limit",
            "subject": BOB.public_key,
            "name": "bob",
            "roles": ["work"],
            "accepts": [KEY[:16]],
            "reason": "",
        },
        {"kind": "rotate", "key": KEY},
        {"kind": "policy", "policy": {"accept": "job.cpus<2", "open": 20, "hours": [8, 18]}},
        {"kind": "vote", "critical": True, "on": [KEY]},
    ]

    def entry(data: bytes) -> None:
        raw = ADA.sign_envelope(LOG_TYPE, cbor.decode(data))
        fresh = Roster(CRYPTO, group)
        fresh.add([raw, [chain[0]]], WALL)
        kept = fresh.log.policy()
        assert fresh.log.not_understood() is not None and make_policy(ADA, group, fresh.log, CRYPTO, kept, wall=WALL)

    yield Surface("signed log entries", "member", entry, [cbor.encode({**heads, **one}) for one in said])

    def admission(data: bytes) -> None:
        raw = ADA.sign_envelope(ADMIT_TYPE, cbor.decode(data))
        check_chain(CRYPTO, [chain[0], raw], group_id=group.group_id, subject=BOB.public_key, wall=WALL, log=roster.log)

    heir = name_heir(ADA, group, CRYPTO, BOB.public_key, wall=WALL)
    stranger = admit(ADA, group, CRYPTO, BOB.public_key, roles=("work",), wall=WALL, is_stranger=True)
    yield Surface("signed admissions", "member", admission, [_payload(one) for one in (chain[1], heir, stranger)])
    yield _of_the_group(group, chain)

    def piece(data: bytes) -> None:
        for wire in join_pieces([read_piece(data)[3]]):
            try:
                roster.add(wire, WALL)
            except P2pcError:
                continue

    full = GroupLog(CRYPTO, group)
    full.add(make_policy(ADA, group, full, CRYPTO, GroupPolicy(accept="a"), wall=WALL), wall=WALL)
    yield Surface("log in records", "network key", piece, pieces_of(full))
    yield Surface(
        "challenges", "joiner", lambda data: read_challenge(cbor.decode(data)), [cbor.encode(bytes([9]) + KEY)]
    )
    program = delegate(BOB, CRYPTO, expires_wall=WALL + 600, roles=("submit",))
    assert program.delegation is not None
    yield Surface(
        "delegation", "network key", lambda data: check_delegation(CRYPTO, data, wall=WALL), [program.delegation]
    )
    terms = JobTerms(
        name="job",
        retries=1,
        python=(3, 11),
        halt="soon,fail=1",
        require=("cpus>=2",),
        on=(KEY,),
        created_ms=int(WALL * 1000),
    )
    job = seal_job(BOB, terms, encode_spec(JobSpec(kind=TaskKind.COMMAND)), b"nonce")
    yield Surface("jobs", "member", lambda data: open_job(CRYPTO, data, wall=WALL, is_new=True), [job])
    yield Surface(
        "signed jobs",
        "member",
        _signed(lambda data: open_job(CRYPTO, data, wall=WALL), "p2pc/job"),
        [_payload(job), _payload(seal_job(program, terms, b"", b"n"))],
    )
    kept = seal_job(BOB, JobTerms(custodians=(CRYPTO.public_key(KEY),)), b"", b"nonce")
    opened, tasks = open_job(CRYPTO, kept, wall=WALL), (GrantedTask(0, 0, 1, b"payload"),)
    given = Grant(1, 1, KEY, opened.job_id, BOB.public_key, 30.0, tasks)
    yield Surface(
        "signed manifests",
        "member",
        _signed(lambda data: check_manifest(CRYPTO, data, opened, tasks, wall=WALL), MANIFEST_CONTENT_TYPE),
        [_payload(sign_manifest(BOB, given, wall=WALL))],
    )
    yield Surface("specs", "member", decode_spec, [encode_spec(JobSpec(kind=TaskKind.COMMAND))])
    yield Surface("tasks", "member", decode_payload, [encode_payload(TaskPayload(argv=("true", "x"), inputs=("x",)))])
    outcome = Outcome(OutcomeStatus.OK, stdout=b"out", exit_code=0, started_wall=1.0, runtime_s=0.5)
    encoded = messages.encode_outcome(outcome)
    yield Surface("outcomes", "member", messages.decode_outcome, [encoded])
    yield Surface(
        "attributes",
        "member",
        decode_attributes,
        [cbor2.dumps([1, {"cpus": [4, 0, 1000, 0], "load": [0.5, 0, 1000, 0.1]}], canonical=True)],
    )
    claim = [0, 0, 1, "ok", messages.output_digest(outcome)]
    claims = BOB.sign_envelope(messages.CLAIMS_CONTENT_TYPE, {"job": KEY, "claims": [claim]})
    twice = [
        BOB.sign_envelope(
            messages.CLAIMS_CONTENT_TYPE, {"job": KEY, "boot": b"b", "claims": [[0, 0, 1, "ok", digest * 32]]}
        )
        for digest in (b"1", b"2")
    ]
    receipt = seal_receipt(program, KEY, 5, 6, int(WALL * 1000))
    yield Surface(
        "signed receipts",
        "member",
        _signed(lambda data: open_receipt(CRYPTO, data), RECEIPT_CONTENT_TYPE),
        [_payload(receipt), _payload(seal_receipt(BOB, KEY, 5, 6, 7))],
    )

    def value(data: bytes) -> None:
        with contextlib.suppress(CannotDecode):
            decode(data)

    some = [1, 2.5, "x", b"y", None, (True, {1}), {"a": [datetime(2026, 1, 2, tzinfo=UTC)]}, 10**30]
    yield Surface("values", "member", value, [encode(some), encode({"k": [1.5] * 9})])
    yield Surface("proofs", "member", lambda data: check_evidence(CRYPTO, data), [make_evidence(twice)])
    yield Surface(
        "bundles",
        "user",
        lambda data: check_file(CRYPTO, data),
        [make_bundle(job, [claims], []), make_evidence([claims, claims])],
    )


class _Line:
    """A channel, and all that are open: what is sent goes nowhere."""

    def __init__(self) -> None:
        self.answers: dict[int, Callable[[Any, Any], Any]] = {}

    def on_request(self, message: int, answer: Callable[[Any, Any], Any]) -> None:
        self.answers[message] = answer

    on_message = on_request

    def all(self) -> list[Any]:
        return []

    def send(self, _message: int, _body: Any) -> None: ...

    def close(self) -> None: ...


def _of_the_group(group: Group, chain: Sequence[bytes]) -> Surface:
    """What members tell each other of the group and of liars, as message type and body."""
    line: Any = _Line()
    absent: Any = None
    scope: Any = SimpleNamespace(spawn=lambda work, _name: work.close())
    clock: Any = SimpleNamespace(wall=lambda: WALL, now=lambda: 0.0, call_later=lambda _s, _do: None)
    host = Host(clock=clock, rng=SystemRng(), crypto=CRYPTO, net=absent, store=absent, runner=absent, probe=absent)
    credentials = GroupCredentials(host, ADA, group, "ada", dict)
    exchange = LogExchange(host, credentials, line, scope, lambda _is_log: None, lambda: 1)
    EvidenceExchange(host, credentials, line, None, scope, lambda _key: None)
    own = OwnMachines(line, Levels(KEY), ADA.public_key, lambda: WALL, lambda: credentials.roster.log, lambda: None)
    assert exchange and own
    line.peer = SimpleNamespace(key=BOB.public_key, name="bob", installation=BOB.public_key)

    def told(data: bytes) -> None:
        value = cbor.decode(data)
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], int)):
            return
        answer = line.answers.get(value[0])
        work = answer(line, value[1]) if answer is not None else None
        if work is not None:
            try:
                work.send(None)
            except StopIteration:
                return

    mark = credentials.roster.marks()
    bodies: list[list[Any]] = [
        [LOG_SYNC, [[bytes(8)], mark]],
        [LOG_NEWS, [[[chain[1], list(chain)]], [list(chain)]]],
        [LOG_DIGEST, [bytes(16)]],
        [NETWORK_KEY, [KEY]],
        [MEMBER, [BOB.public_key]],
        [PROOFS, [[bytes(8)]]],
        [PROOF, [b"proof"]],
        [OWN_MACHINES, [[KEY, "bob", [KEY]]]],
    ]
    return Surface("group messages", "member", told, [cbor.encode(body) for body in bodies])


def _of_users() -> Iterator[Surface]:
    token = Token(addresses=(HERE,), inviter=KEY, secret=KEY[:16], group_name="lab", expires=int(WALL))

    def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
        return lambda data: parse(data.decode("utf-8", "replace"))

    yield Surface("tokens", "user", text(parse_token), [format_token(token).encode()])
    code = b"p2pc://join?code=7-crossover-clockwork-tobacco@nova:7878"
    yield Surface("codes", "user", text(parse_code), [code, b"7 cross clock tobacco"])
    ticket = Ticket(KEY, sign_ticket(BOB, KEY, expires_wall=WALL), ((KEY, (HERE,)),))
    yield Surface("tickets", "user", text(parse_ticket), [format_ticket(ticket).encode()])
    line = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEf5iZ5WPzqE9i3yLgvb0p7mOVWzVd0a9eW1Wg0Yh1rN ada\n"
    yield Surface("authorized_keys", "user", lambda data: parse_authorized_keys(data, "f"), [line * 2])


def _payload(raw: bytes) -> bytes:
    payload: bytes = cbor.decode(raw)[2]
    return payload


def _signed(attack: Callable[[bytes], object], content_type: str) -> Callable[[bytes], object]:
    """Wrong payloads under a right signature: what a peer with a key can send."""

    def signed(data: bytes) -> object:
        return attack(seal(CRYPTO, KEY, content_type, cbor.decode(data)))

    return signed


SURFACES = {surface.name: surface for surface in _surfaces()}


def wrong(mutate: Mutator, seed: bytes) -> bytes:
    """Right bytes with mistakes: in the bytes, or in the value that they encode."""
    kind = mutate.rng.random()
    if kind < 0.05:
        return mutate.junk()
    if kind < 0.5:
        return mutate.bytes(seed)
    try:
        value = cbor2.loads(seed)
        return cbor2.dumps(mutate.value(value), canonical=True)
    except Exception:
        return mutate.bytes(seed)


def attack(surface: Surface, mutate: Mutator, data: bytes | None = None) -> bytes:
    """Give a parser one wrong input; returns it.  What it raises but the documented errors comes out."""
    data = wrong(mutate, mutate.rng.choice(list(surface.seeds))) if data is None else data
    with contextlib.suppress(P2pcError):
        surface.attack(data)
    return data


GROWTH_BYTES_MAX = 4 << 20
WARM_SHARE = 0.3


def soak(surface: Surface, seconds: float, seed: int) -> str:
    """Attack one parser for a while.

    Raises:
        AssertionError: another exception than the documented ones came out, or memory grew.
    """
    mutate, count, began = Mutator(seed), 0, time.monotonic()
    warm = 0
    tracemalloc.start()
    try:
        while (passed := time.monotonic() - began) < seconds:
            data = wrong(mutate, mutate.rng.choice(list(surface.seeds)))
            try:
                attack(surface, mutate, data)
            except Exception as error:
                raise AssertionError(f"{surface.name}: {type(error).__name__}: {error}; input {data.hex()}") from error
            count += 1
            if not warm and passed > WARM_SHARE * seconds:
                warm = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[0] - warm
    finally:
        tracemalloc.stop()
    assert grown < GROWTH_BYTES_MAX, f"{surface.name}: grown by {grown / 2**20:.1f} MiB"
    return f"{surface.name:18} {surface.reached_by:12} {count:9} inputs, grown by {grown / 1024:.0f} KiB"


def main(words: list[str]) -> int:
    seconds, seed = float(words[0]) if words else 10.0, int(time.time())
    failed = 0
    for name in words[1:] or SURFACES:
        try:
            print(soak(SURFACES[name], seconds, seed), flush=True)
        except AssertionError as error:
            failed += 1
            print(f"FAILED (seed {seed}) {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
