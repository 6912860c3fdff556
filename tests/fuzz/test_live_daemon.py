"""A daemon under hostile bytes on every way in: it lives, works, does not grow, and calls nothing its own bug.

5 seconds by default, 60 with P2PC_SOAK=1.  The seed is printed; P2PC_FUZZ_SEED repeats a run (not its timing).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil
import pytest

from p2pcompute.dht import messages as dht
from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.records import make_ad
from p2pcompute.errors import P2pcError
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload, encode_spec
from p2pcompute.host.interfaces import Address
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.ids import dht_id
from p2pcompute.node.blob_exchange import BlobMessage
from p2pcompute.node.doors import JOIN, MEET
from p2pcompute.node.log_exchange import LOG_DIGEST, LOG_NEWS, LOG_SYNC, MEMBER, NETWORK_KEY
from p2pcompute.node.members import LEVEL
from p2pcompute.node.membership import RENEW
from p2pcompute.places import find_paths
from p2pcompute.resources.questions import Message as Question
from p2pcompute.scheduler.messages import CLAIMS_CONTENT_TYPE, Message, encode_outcome, output_digest, steal_body
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.scheduler.terms import JobTerms, job_id_of, seal_job
from p2pcompute.transport.channels import Purpose
from p2pcompute.transport.datagrams import seal_datagram
from p2pcompute.transport.messages import MessageType
from p2pcompute.trust.invites import Token, join_proof, parse_token
from p2pcompute.trust.log import LOG_TYPE
from tests.e2e.mesh import Daemon, running_mesh
from tests.fuzz.attacker import Attacker, Raw, encode, udp_socket
from tests.fuzz.mutation import EDGES, Mutator

SECONDS: Final = 60.0 if os.environ.get("P2PC_SOAK") else 5.0
GROWTH_MIB_MAX: Final = 24.0
"""Allowed between the end of a first round of everything and the end."""
NOWHERE: Final = "/nonexistent/p2pcompute-fuzz"
"""The only program that is ever asked for: what mutation makes of it does not exist either."""

EXPRESSIONS: Final = (
    "false",
    "node.has.exists(x, node.has.exists(y, node.has.all(z, x == y)))",
    "'aaaaaaaa'.matches('(a*)*(a*)*b')",
    "(" * 400 + "true" + ")" * 400,
    "load >= 0 || " * 60 + "true",
    "cpus >= ",
)

pytestmark = pytest.mark.drill


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_hostile_bytes_on_every_way_in(short_path: Path) -> None:
    """Breaks when a parser lets something through, an exception leaves a callback, or a table has no bound."""
    seed = int(os.environ.get("P2PC_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
    print(f"P2PC_FUZZ_SEED={seed}")
    with running_mesh(short_path, "ada", slots=1) as (mesh, (daemon,)):
        token = mesh.token(daemon)
        open_token = parse_token(mesh.token(daemon, uses=1000))
        counts = asyncio.run(Fuzz(daemon, seed, open_token).run(token))
        print(f"sent: {counts}")
        for line in daemon.errors()[:5]:
            print(daemon.log()[daemon.log().find(line) :][:3000])
        assert len(counts) == len(Fuzz.ATTACKS) and min(counts.values()) >= 3, counts
        assert daemon.process is not None and daemon.process.poll() is None, daemon.log_end()
        done = daemon.p2pc("run", "-k", "echo {}", ":::", "still", "here").check()
        assert done.lines == ["still", "here"]
        assert daemon.get("/v1/status")["node"]["state"] in ("idle", "working")


class Fuzz:
    """The attacks, in turns."""

    ATTACKS: ClassVar[dict[str, float]] = {
        "datagrams": 0.2, "preambles": 0.1, "junk_behind_tls": 0.1, "handshakes": 0.1, "frames": 0.3, "joins": 0.05,
        "http": 0.15,
    }  # fmt: skip
    """Its share of the time."""

    def __init__(self, daemon: Daemon, seed: int, token: Token) -> None:
        self.daemon = daemon
        self.mutate = Mutator(seed)
        self.rng = self.mutate.rng
        self.token = token
        self.eve = Attacker()
        self.counts: dict[str, int] = {}

    async def run(self, token: str) -> dict[str, int]:
        """Join by the token, attack; return how often what was done.

        Raises:
            AssertionError: the daemon grew.
        """
        assert self.daemon.pid is not None
        process = psutil.Process(self.daemon.pid)
        await self.eve.join(token)
        self.job = seal_job(
            self.eve.identity, JobTerms(name="fuzz", created_ms=int(1000 * time.time())), _spec(), b"nonce"
        )
        try:
            await self._round(0.2 * SECONDS)
            first = process.memory_info().rss
            await self._round(0.8 * SECONDS)
            grown = (process.memory_info().rss - first) / 2**20
            print(f"grown by {grown:.1f} MiB from {first / 2**20:.1f}")
            assert grown < GROWTH_MIB_MAX, f"grown by {grown:.1f} MiB"
        finally:
            await self.eve.close()
        return self.counts

    async def _round(self, seconds: float) -> None:
        for name, share in self.ATTACKS.items():
            end = time.monotonic() + seconds * share
            while time.monotonic() < end:
                await getattr(self, name)()
                self.counts[name] = self.counts.get(name, 0) + 1
                await asyncio.sleep(0)

    # --- datagrams --------------------------------------------------------------------------------

    async def datagrams(self) -> None:
        """Junk, junk behind a right MAC, damaged statements, and wrong bodies signed by a member."""
        key = self.eve.group.network_key
        with contextlib.closing(udp_socket()) as sock:
            for _ in range(50):
                statement = self._statement()
                match self.rng.randrange(6):
                    case 0:
                        data = self.mutate.junk(1500)
                    case 1:
                        data = seal_datagram(key, self.mutate.junk(1400))
                    case 2:
                        data = self.mutate.bytes(seal_datagram(key, statement))
                    case 3:
                        data = seal_datagram(key, self.mutate.bytes(statement))
                    case 4:
                        data = seal_datagram(key, self._wrong_body())
                    case _:
                        data = seal_datagram(key, statement)
                with contextlib.suppress(OSError):
                    sock.sendto(data, self.eve.target)
            await asyncio.sleep(0.01)

    def _statement(self) -> bytes:
        eve = self.eve
        contacts = tuple(
            Contact(self.rng.randbytes(32), Address("127.0.0.1", self.rng.randrange(1, 65536))) for _ in range(5)
        )
        ad = make_ad(
            eve.identity.sign_envelope, eve.identity.public_key, key=bytes(20), seq=self.rng.randrange(9),
            wall=time.time(), ttl_s=60, value=b"x",
        ).raw  # fmt: skip
        message = self.rng.choice(
            [
                dht.Ping(), dht.Pong(eve.target, "eve"), dht.Find(self.rng.randbytes(20)), dht.Nodes("eve", contacts),
                dht.Get(bytes(20)), dht.Get(self.rng.randbytes(20), 7), dht.page_of(b"abc", 0),
                *dht.parts_of(ad, bytes(20)), dht.Ack(dht.AckStatus.OK, 1), dht.Bye(),
                dht.Ads(contacts, contacts), dht.Query(self.rng.randbytes(20), 1),
                dht.Register(self.rng.randbytes(20), b"", self.rng.randrange(7200), self.rng.getrandbits(192)),
            ]
        )  # fmt: skip
        return dht.encode_statement(
            message, transaction=self.rng.randbytes(8), sender=eve.identity.public_key,
            recipient=dht_id(eve.target_key), run=b"eve's ru", group_id=eve.group.group_id,
            prove=partial(eve.identity.tag, eve.target_key),
        )  # fmt: skip

    def _wrong_body(self) -> bytes:
        """A statement whose proof is right and whose fields are not."""
        eve, rng = self.eve, self.rng
        fields = self.mutate.value(
            [1, rng.randrange(16), rng.randbytes(8), eve.identity.public_key, dht_id(eve.target_key), b"eve's ru",
             rng.choice([[], [bytes(20)], [bytes(20), 0], [0, 1, b"x"], ["eve", [[bytes(32), b"\x7f\0\0\1\0\1"]]]])]
        )  # fmt: skip
        statement = encode(fields)
        return statement + eve.identity.tag(eve.target_key, dht.signing_input(eve.group.group_id, statement))

    # --- connections ------------------------------------------------------------------------------

    async def preambles(self) -> None:
        """A stranger gets no byte."""
        good = self.eve.preamble()
        data = self.rng.choice([self.mutate.junk(), self.mutate.bytes(good), b"GET / HTTP/1.1\r\n\r\n"])
        if data.startswith(good):
            return
        reader, writer = await asyncio.open_connection(*self.eve.target)
        try:
            writer.write(data)
            if len(data) < 40:
                writer.write_eof()
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    assert not await reader.read(1)
        finally:
            writer.transport.abort()

    async def junk_behind_tls(self) -> None:
        """A right preamble (every member can make one), then anything but AUTH."""
        raw = await self.eve.knock()
        for _ in range(self.rng.randrange(1, 4)):
            raw.write(self.rng.choice([self.mutate.junk(), b"\0\0\0\0", b"\xff" * 8, b"\0\x10\0\0" + bytes(20_000)]))
        await self._until_closed(raw)

    async def handshakes(self) -> None:
        """Wrong AUTH messages, and right ones with something behind them."""
        raw = await self.eve.knock()
        auth = self.eve.auth(raw, self.rng.choice(list(Purpose)))
        good = encode([int(MessageType.AUTH), 0, auth])
        match self.rng.randrange(4):
            case 0:
                raw.send(self.mutate.bytes(good))
            case 1:
                raw.send(encode([int(MessageType.AUTH), 0, self.mutate.value(auth)]))
            case 2:
                raw.send(encode(self.mutate.value([int(MessageType.AUTH), 0, auth])))
            case _:
                raw.send(good)
                raw.send(self.mutate.junk())
        await self._until_closed(raw)

    async def _until_closed(self, raw: Raw) -> None:
        with contextlib.suppress(P2pcError, TimeoutError):
            await raw.next(0.02)
        raw.close()

    # --- messages ---------------------------------------------------------------------------------

    async def frames(self) -> None:
        """A member's channel: damaged and wrong messages of every type, until it is closed or has had its share."""
        raw = await self.eve.channel(self.rng.choice([Purpose.CONTROL, Purpose.CONTROL, Purpose.BLOB]))
        try:
            for _ in range(40):
                message_type, body = self._message()
                request_id = self.rng.choice((0, 1, self.rng.randrange(2**32)))
                frame = encode([message_type, request_id, body])
                match self.rng.randrange(8):
                    case 0:
                        frame = self.mutate.bytes(frame)
                    case 1:
                        frame = encode(self.mutate.value([message_type, request_id, body]))
                    case 2:
                        frame = encode([message_type, request_id, self.rng.choice(EDGES)])
                    case 3:
                        pass
                    case _:
                        frame = encode([message_type, request_id, self.mutate.value(body)])
                raw.send(frame[: 2**20])
                if not await raw.is_open():
                    return
        finally:
            raw.close()

    def _message(self) -> tuple[int, Any]:
        """A right message of some type."""
        eve, rng = self.eve, self.rng
        job_id = job_id_of(self.job)
        payload = encode_payload(TaskPayload(argv=(NOWHERE,), inputs=("x",)))
        outcome = Outcome(OutcomeStatus.OK, stdout=b"out", exit_code=0, started_wall=1.0, runtime_s=0.5)
        claim = [rng.randrange(3), 0, 1, "ok", output_digest(outcome)]
        claims = {"job": rng.choice([job_id, bytes(32)]), "boot": b"boot", "claims": [claim]}
        if rng.random() < 0.5:
            claims = self.mutate.value(claims)
        job = self.job
        if rng.random() < 0.3:
            terms: dict[str, Any] = self.mutate.value(
                {"name": "fuzz", "retries": 1, "python": [3, 11], "created_ms": int(1000 * time.time())}
            )
            with contextlib.suppress(P2pcError):
                job = eve.identity.sign_envelope(
                    "p2pc/job", {"terms": terms, "spec": _spec(), "nonce": b"n", "delegation": None}
                )
        signed = b""
        with contextlib.suppress(P2pcError):
            signed = eve.identity.sign_envelope(CLAIMS_CONTENT_TYPE, claims)
        tasks = [[index, 0, 1, rng.choice([payload, self.mutate.bytes(payload)])] for index in range(rng.randrange(4))]
        addresses = [["127.0.0.1", rng.randrange(1, 65536)]]
        owner = rng.choice([b"", eve.identity.public_key, rng.randbytes(32), eve.target_key])
        removal = _removal(eve, eve.target_key)
        messages: list[tuple[int, Any]] = [
            (Message.OFFER, []),
            (Message.STEAL, steal_body(Thief(b"", b"", b"boot", (3, 11), 2, 4, rng.randrange(100)))),
            (Message.UNPARK, []),
            (
                Message.GRANT,
                [
                    rng.randrange(100),
                    rng.randrange(100),
                    job_id_of(job),
                    job,
                    owner,
                    addresses,
                    30_000,
                    tasks,
                    0,
                    True,
                    0,
                ],
            ),
            (
                Message.GRANT,
                [1, 1, rng.choice([job_id, rng.randbytes(32)]), b"", owner, addresses, 30_000, tasks, 0, True, 0],
            ),
            (Message.GRANT_ACK, [rng.randrange(100), rng.random() < 0.5]),
            (Message.GRANT_ACK, [(1 << 62) + rng.randrange(9), False]),
            (Message.RESULTS, [signed, [encode_outcome(outcome)]]),
            (Message.RESULTS, [signed, [self.mutate.bytes(encode_outcome(outcome))]]),
            (Message.HEARTBEAT, [b"boot", owner, [[job_id, [[0, 0, 1], [1, 0, 1]]]]]),
            (Message.STOP, [job_id, [0, 1, 2], rng.random() < 0.5]),
            (Message.RETURNED, [[job_id, [0, 1]]]),
            (Message.LEAVING, []),
            (Message.JOB, [job_id]),
            (Message.CUSTODY, [job_id]),
            (Message.COORDINATOR, [job_id, rng.randrange(20_000)]),
            (Message.SYNC, [job_id, b"ticket", 3, 0, 4, 1, 7, True, 5, 12, 10_000]),
            (Message.CHECKPOINT, [[job_id, 0, 1, rng.randbytes(8)]]),
            (Message.TAIL, [job_id, 0, 1, 0, 0]),
            (Question.DESCRIBE, [["ffmpeg", "../../etc/passwd"]]),
            (Question.QUERY, ["has=ffmpeg || cpus >= 4", "-load", rng.randrange(2000)]),
            (Question.QUERY, [rng.choice(EXPRESSIONS), rng.choice(EXPRESSIONS), 60_000]),
            (BlobMessage.MANIFEST, [bytes(32), 2**21, 0]),
            (BlobMessage.CHUNK, [bytes(32), 2**21, 1]),
            (JOIN, ["token", [bytes(8), bytes(32)], "eve"]),
            (MEET, ["psk", bytes(33), "eve"]),
            (RENEW, [list(eve.group.chain)]),
            (RENEW, [self.mutate.value(list(eve.group.chain))]),
            (LOG_SYNC, [[bytes(8)], [bytes(16)]]),
            (LOG_SYNC, self.mutate.value([[bytes(8)] * 3, [bytes(16)]])),
            (LOG_DIGEST, [rng.randbytes(16)]),
            (LOG_DIGEST, self.mutate.value([bytes(16)])),
            (LOG_NEWS, [[removal], [list(eve.group.chain)]]),
            (LOG_NEWS, self.mutate.value([[removal], [list(eve.group.chain)]])),
            (LOG_NEWS, [[[self.mutate.bytes(removal[0]), removal[1]]], []]),
            (MEMBER, [rng.choice([eve.identity.public_key, rng.randbytes(32)])]),
            (NETWORK_KEY, [rng.randbytes(32)]),
            (LEVEL, [self.eve.identity.public_key, "trusted"]),
            (MessageType.REPLY, []),
            (MessageType.ERROR, {"code": "x", "what": "y"}),
            (MessageType.HELLO, {}),
            (MessageType.AUTH, {}),
            (MessageType.WELCOME, {"version": 1}),
            (MessageType.PING, None),
            (MessageType.PONG, None),
            (rng.randrange(100), rng.choice(EDGES)),
        ]
        message_type, body = rng.choice(messages)
        return int(message_type), body

    async def joins(self) -> None:
        """Whoever has a token, and asks wrongly."""
        raw = await self.eve.channel(Purpose.JOIN, self.token)
        proof = join_proof(
            self.token.secret, binding=raw.stream.binding, joiner=self.eve.identity.public_key,
            inviter=self.eve.target_key,
        )  # fmt: skip
        body: list[Any] = ["token", [self.token.invite_id, proof], "eve"]
        if self.rng.random() < 0.7:
            # The name, or a part more or less: three wrong proofs would end the invitation.
            body = self.rng.choice(
                [[*body[:2], self.rng.choice(EDGES)], body[:2], [*body, 1], {}, self.rng.choice(EDGES)]
            )
        raw.send(encode([JOIN, 1, body]))
        await self._until_closed(raw)

    # --- the control socket -----------------------------------------------------------------------

    async def http(self) -> None:
        """Nonsense from this user's own programs."""
        data = self._http_request()
        reader, writer = await asyncio.open_unix_connection(str(find_paths(self.daemon.env).socket))
        try:
            writer.write(data)
            if self.rng.random() < 0.8:
                writer.write_eof()
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(2):
                        answer = await reader.read(2**16)
                        assert b"HTTP/1.1 500" not in answer, (data, answer)
        finally:
            writer.transport.abort()

    def _http_request(self) -> bytes:
        rng = self.rng
        job = {
            "name": "fuzz", "kind": "command", "terms": {"retries": 0, "halt": "soon,fail=1", "local_only": True},
            "spec": {"env": {"A": "b"}, "cpus": 1, "mem_bytes": None}, "results": None, "note": {},
        }  # fmt: skip
        line = {"argv": [NOWHERE], "inputs": ["x"], "env": {}, "key": "00ff"}
        method, path, body = rng.choice(
            [
                ("GET", "/v1/status", None), ("GET", "/v1/peers?nearby=1", None), ("GET", "/v1/version", None),
                ("GET", "/v1/jobs?all=1&limit=5&state=done", None), ("GET", "/v1/jobs/last", None),
                ("GET", "/v1/jobs/last/tasks?after=0&limit=3&state=failed", None),
                ("GET", "/v1/jobs/last/tasks/0/stdout", None), ("GET", "/v1/jobs/last/tasks/0/files/x", None),
                ("GET", "/v1/openapi.json", None), ("POST", "/v1/jobs", job), ("POST", "/v1/jobs/last/tasks", line),
                ("POST", "/v1/jobs/last/seal", {}), ("POST", "/v1/jobs/last/cancel", {"indices": [0], "now": True}),
                ("POST", "/v1/jobs/last/retry", {"indices": [0], "failed": True}),
                ("POST", "/v1/prune", {"older_than_s": 0.0, "drop_results": True, "dry_run": False}),
                ("POST", "/v1/invite", {"uses": 1, "expires_s": 1.0}), ("POST", "/v1/join", {"token": "p2pc-abc"}),
                ("PATCH", "/v1/nothing", {}),
            ]
        )  # fmt: skip
        if body is not None and rng.random() < 0.6:
            body = self.mutate.value(body)
        content = b"" if body is None else json.dumps(body, default=repr).encode()
        if rng.random() < 0.3:
            content = self.mutate.bytes(content)
        target = path
        if rng.random() < 0.3:
            target = self.mutate.bytes(path.encode()).decode("latin-1").replace("/v1/shutdown", "/v1/status")
        length = len(content) if rng.random() < 0.9 else rng.choice((0, 1, 2**40, -1))
        head = f"{method} {target} HTTP/1.1\r\nHost: p2pc\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        data = head.encode("latin-1") + content
        return self.mutate.bytes(data) if rng.random() < 0.1 else data


def _spec() -> bytes:
    return encode_spec(JobSpec(kind=TaskKind.COMMAND))


def _removal(eve: Attacker, whom: bytes) -> list[Any]:
    """Return an entry of the group's log by which a member without the role removes another."""
    body = {
        "group": eve.group.group_id,
        "kind": "limit",
        "as": hashlib.sha256(eve.group.chain[-1]).digest(),
        "after": [],
        "issued": int(time.time()),
        "subject": whom,
        "name": "",
        "roles": [],
        "accepts": [],
        "reason": "",
    }
    return [eve.identity.sign_envelope(LOG_TYPE, body), list(eve.group.chain)]
