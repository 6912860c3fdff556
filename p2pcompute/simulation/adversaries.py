"""Hostile members: ordinary nodes of which somebody has changed the code, from outside.

`hostile` says who is hostile and how, `arm` makes a running member so, after each of its starts.  Node code has no
hooks for any of this: pieces of the member's own node are replaced, or it sends by hand what a node would never send,
with the identity and the keys that it really has.

Every kind counts `world.fired["hostile.<kind>"]` when it has taken effect.  Those that attack of their own accord
(marked "until the end") stop when the world heals, at `world.duration_s`; those that only answer wrongly never do.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.exchange import Verified
from p2pcompute.dht.messages import (
    TRANSACTION_BYTES,
    VERSION,
    Ack,
    AckStatus,
    MessageType,
    Nodes,
    Put,
    Values,
    cut_contacts,
    parts_of,
    signing_input,
)
from p2pcompute.dht.records import Record, make_ad
from p2pcompute.dht.service import Dht
from p2pcompute.errors import P2pcError
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload
from p2pcompute.host.interfaces import Address
from p2pcompute.host.runs import Outcome, OutcomeStatus, TaskRun
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.ids import DHT_ID_BYTES, dht_id
from p2pcompute.limits import DATAGRAM_BYTES_MAX, DHT_K, FRAME_BYTES_MAX, HANDSHAKE_S_MAX, HANDSHAKES_MAX
from p2pcompute.node.node import Node
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.owner_link import OwnerLink
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.scheduler.worker import Held
from p2pcompute.simulation.host import SimHost
from p2pcompute.simulation.hostile import HostileSettings
from p2pcompute.simulation.mesh import PORT, Member
from p2pcompute.simulation.network import UDP_BYTES_MAX
from p2pcompute.simulation.runner import simulated_value
from p2pcompute.simulation.world import World
from p2pcompute.transport import handshake
from p2pcompute.transport.channel import Channel
from p2pcompute.transport.datagrams import Datagrams, seal_datagram
from p2pcompute.transport.messages import Purpose, encode_message
from p2pcompute.wire import cbor

CAPTURED_MAX: Final = 256
"""Datagrams and frames that a replayer keeps."""
LATE_S: Final = (20.0, 120.0)
"""By how much one who is late returns results late."""
RIDE_S: Final = 20.0
"""Pause of a free rider between two jobs, of RIDE_TASKS."""
RIDE_TASKS: Final = 20
REPLAY_S: Final = 0.2
MALFORMED_S: Final = 0.1
EQUIVOCATION_S: Final = 5.0
FLOOD_S: Final = 0.1
FLOOD_VICTIMS: Final = 4
"""Peers that one wave of a flood reaches: 80 messages per second in all."""
DRIBBLE_S: Final = 1.0
LORIS_CONNECTIONS: Final = HANDSHAKES_MAX + 8
SYBIL_PORT: Final = 20_000
GRIND: Final = 64
"""Keys that are tried for an identity near a place in the key space; for a made-up one an eighth of that."""


def arm(world: World, member: Member, kind: str, settings: HostileSettings | None = None) -> None:
    """Make a running member hostile for the rest of its present life."""
    number = world.mesh.members.index(member)
    world.hostile[number] = kind
    _KINDS[kind](_Hostile(world, member, kind, settings or HostileSettings()))


class _Hostile:
    """One hostile member in its present life."""

    def __init__(self, world: World, member: Member, kind: str, settings: HostileSettings) -> None:
        self.world = world
        self.member = member
        self.kind = kind
        self.settings = settings
        self.node: Node = member.running
        self.host: SimHost = member.host
        self.rng = world.rng(f"hostile:{member.host.number}:{world.now!r}")
        self.network_key = member.group.network_key

    def fire(self) -> None:
        """It took effect."""
        self.world.fired[f"hostile.{self.kind}"] += 1

    def every(self, period_s: float, attack: Callable[[], None]) -> None:
        """Attack again and again, until the end."""

        async def go() -> None:
            while self.world.now < self.world.duration_s:
                await self.host.clock.sleep(period_s * (0.5 + self.rng.random()))
                attack()

        self.spawn(go())

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, on: SimHost | None = None) -> None:
        """Run something on a host, the member's unless another is given; what a node refuses is no failure here."""

        async def go() -> None:
            try:
                await coroutine
            except (P2pcError, TimeoutError):
                return

        (on or self.host).spawn(go(), f"hostile.{self.kind}")

    @property
    def dht(self) -> Dht:
        dht = self.node.network.dht
        if dht is None:
            raise RuntimeError(f"{self.host.name} is in no group")
        return dht

    def targets(self) -> list[Member]:
        """Honest members that run."""
        hostile = self.world.hostile
        return [one for i, one in enumerate(self.world.mesh.members) if one.node is not None and i not in hostile]

    def target(self) -> Member | None:
        targets = self.targets()
        return self.rng.choice(targets) if targets else None

    def gang(self) -> list[Contact]:
        """All members of this kind that run."""
        kinds = self.world.hostile
        members = [one for i, one in enumerate(self.world.mesh.members) if kinds.get(i) == self.kind]
        return [_contact(one) for one in members if one.node is not None]

    def send_raw(self, data: bytes, to: Address) -> None:
        """Send a datagram from the node's own port."""
        endpoint = self.node.network.datagrams._endpoint
        if endpoint is not None:
            endpoint.send(data, to)

    def channels(self) -> list[Channel]:
        return self.node.channels.all()

    def stranger(self) -> SimHost:
        """A machine outside the group that the attacker owns too."""
        name = f"stranger of {self.host.name}"
        known = [host for host in self.world.simulation.hosts if host.name == name]
        return known[0] if known else self.world.simulation.add_host(name)


def _swap(owner: object, name: str, piece: Callable[..., Any]) -> None:
    """Put `piece` in the place of a method.

    Raises:
        AttributeError: there is no such method: node code has changed, and the attack would do nothing.
    """
    getattr(owner, name)
    kind = type(owner)  # a class for this one alone: what has slots takes no method of its own
    owner.__class__ = type(kind.__name__, (kind,), {"__slots__": (), name: staticmethod(piece)})


def _contact(member: Member) -> Contact:
    return Contact(member.identity.public_key, _address(member))


def _address(member: Member) -> Address:
    return Address(member.host.address, PORT)


def _near(rng: random.Random, key: bytes) -> bytes:
    """A made-up public key whose place is near `key`."""
    number = int.from_bytes(key, "big")
    made = [rng.randbytes(32) for _ in range(GRIND // 8)]
    return min(made, key=lambda one: int.from_bytes(dht_id(one), "big") ^ number)


# --- results --------------------------------------------------------------------------------------


def _lie(hostile: _Hostile, value: Callable[[int], bytes]) -> None:
    runner, books = hostile.host.runner, hostile.node.scheduler.owner.books
    draw = runner._draw

    def draw_wrong(run: TaskRun) -> Outcome:
        outcome = draw(run)
        book = books.get(run.job_id)
        if outcome.status is not OutcomeStatus.OK or (book is not None and book.job.is_own):
            return outcome
        hostile.fire()
        return replace(outcome, value=value(run.index))

    _swap(runner, "_draw", draw_wrong)


def _wrong(hostile: _Hostile) -> None:
    _lie(hostile, lambda _index: hostile.rng.randbytes(8))


def _colluding(hostile: _Hostile) -> None:
    _lie(hostile, lambda index: simulated_value(index + 1))


def _drop(hostile: _Hostile) -> None:
    worker = hostile.node.scheduler.worker
    finish = worker._finish

    def swallow(held: Held, outcome: Outcome) -> None:
        if held.owner == LOCAL:
            finish(held, outcome)
            return
        worker._unpin(held.run_id)
        hostile.fire()

    _swap(worker, "_finish", swallow)
    _silence(hostile)


def _silence(hostile: _Hostile) -> None:
    """Send no heartbeats."""
    clock = hostile.host.clock

    async def say_nothing(link: OwnerLink) -> None:
        link.is_beating = False
        link.heartbeat_due = clock.now() + LATE_S[0]

    _swap(hostile.node.scheduler.worker, "_beat", say_nothing)


def _hoard(hostile: _Hostile) -> None:
    runner, books = hostile.host.runner, hostile.node.scheduler.owner.books
    run = runner.run

    def sit_on(slot: int, runs: Any, on_outcomes: Any) -> None:
        book = books.get(runs[0].job_id)
        if book is not None and book.job.is_own:
            run(slot, runs, on_outcomes)
        else:
            hostile.fire()

    _swap(runner, "run", sit_on)


def _late(hostile: _Hostile) -> None:
    worker, clock = hostile.node.scheduler.worker, hostile.host.clock
    finish = worker._finish

    def delay(held: Held, outcome: Outcome) -> None:
        if held.owner == LOCAL:
            finish(held, outcome)
            return
        clock.call_later(hostile.rng.uniform(*LATE_S), lambda: finish(held, outcome))
        hostile.fire()

    _swap(worker, "_finish", delay)
    _silence(hostile)


def _free_rider(hostile: _Hostile) -> None:
    node = hostile.node
    node.scheduler.thief._accepts_others = False

    async def submit() -> None:
        job_id = await node.submit_job(JobTerms(name="ride"), JobSpec(kind=TaskKind.SIMULATED))
        await node.add_tasks(job_id, [encode_payload(TaskPayload(work_s=0.5))] * RIDE_TASKS)
        await node.seal_job(job_id)
        hostile.fire()

    hostile.every(RIDE_S, lambda: hostile.spawn(submit()))


# --- the DHT --------------------------------------------------------------------------------------


def _false_find(hostile: _Hostile) -> None:
    dht = hostile.dht

    def lie(key: bytes, _request: Verified) -> Nodes:
        hostile.fire()
        contacts = []
        for number in range(DHT_K):
            target = hostile.target()
            nobody = Address(f"10.255.{hostile.rng.randrange(256)}.{hostile.rng.randrange(1, 255)}", PORT)
            place = nobody if number % 2 == 0 or target is None else _address(target)
            contacts.append(Contact(_near(hostile.rng, key), place))
        return Nodes(dht._name, cut_contacts(contacts, dht._name))

    _swap(dht, "_nodes", lie)


def blind(dht: Dht, gang: Callable[[], list[Contact]], fire: Callable[[], None]) -> None:
    """Let a DHT know nobody but a gang, keep no record, and find none."""
    keeper = dht._keeper

    def only_us(key: bytes, request: Verified) -> Nodes:
        fire()
        number = int.from_bytes(key, "big")
        us = [one for one in gang() if one.key != request.statement.sender]
        us.sort(key=lambda one: int.from_bytes(one.id, "big") ^ number)
        return Nodes(dht._name, cut_contacts(us[:DHT_K], dht._name))

    def forget(_sender: bytes, _transaction: bytes, message: Put) -> Ack | None:
        fire()
        return Ack(AckStatus.OK) if message.part == message.parts - 1 else None

    def nothing(_key: bytes, _offset: int) -> Values | None:
        return None

    _swap(dht, "_nodes", only_us)
    _swap(keeper, "take_part", forget)
    _swap(keeper, "page", nothing)


def _eclipse(hostile: _Hostile) -> None:
    blind(hostile.dht, hostile.gang, hostile.fire)


def _sybil(hostile: _Hostile) -> None:
    """Crowd around the place of one honest node, where its ad is kept."""
    name = f"sybils of {hostile.host.name}"
    simulation = hostile.world.simulation
    if name in simulation.network.names:
        return  # they outlive the member
    host = simulation.add_host(name)
    victim = hostile.target()
    key = dht_id((victim or hostile.member).identity.public_key)
    scope = TaskScope("sybil", lambda _name, _error: None)
    gang: list[Contact] = []
    first = [_address(one) for one in hostile.world.mesh.members[:3]]

    async def run() -> None:
        for number in range(hostile.settings.sybil_identities):
            identity = _identity_near(host, key)
            datagrams = Datagrams(host.host, scope)
            port = await datagrams.start(SYBIL_PORT + number, loopback_only=False)
            dhts: list[Dht] = []

            def receive(body: bytes, source: Address, dhts: list[Dht] = dhts) -> None:
                for dht in dhts:
                    dht.receive(body, source)

            bound = datagrams.bind_group(hostile.network_key, receive)
            group_id, shown = hostile.member.group.group_id, f"sybil {number}"
            dht = Dht(host.host, identity, bound, scope, group_id=group_id, name=shown)
            dhts.append(dht)
            blind(dht, lambda: gang, hostile.fire)
            gang.append(Contact(identity.public_key, Address(host.address, port)))
            await dht.start([], first)

    host.spawn(run(), "hostile.sybil")


def _identity_near(host: SimHost, key: bytes) -> Identity:
    number = int.from_bytes(key, "big")
    made = [create_identity(host.crypto) for _ in range(GRIND)]
    return min(made, key=lambda one: int.from_bytes(dht_id(one.public_key), "big") ^ number)


def _equivocation(hostile: _Hostile) -> None:
    dht, identity, clock = hostile.dht, hostile.member.identity, hostile.host.clock
    former: list[Record] = []

    def attack() -> None:
        wall = clock.wall()
        for number, contact in enumerate(dht.contacts()):
            raw, key = b"", bytes(DHT_ID_BYTES)
            held = [one for key in sorted(dht.records._keys) for one in dht.records.get(key, now=clock.now())]
            match hostile.rng.randrange(4):
                case 0 if former:
                    again = hostile.rng.choice(former)
                    raw, key = again.raw, again.key
                case 1 if held:
                    others = hostile.rng.choice(held)
                    raw, key = _flipped(hostile.rng, others.raw), others.key
                case _:
                    ad = make_ad(
                        identity.sign_envelope, identity.public_key, key=dht_id(identity.public_key),
                        seq=int(wall * 1000), wall=wall, ttl_s=hostile.rng.choice((1, 60, 900)),
                        value=cbor.encode({"name": f"face {number}"}),
                    )  # fmt: skip
                    former.append(ad)
                    raw, key = ad.raw, ad.key
            dht._ask(contact.key, contact.address, parts_of(raw, key), lambda _reply: None)
            hostile.fire()
        del former[:-CAPTURED_MAX]

    hostile.every(EQUIVOCATION_S, attack)


def _flipped(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


# --- the wire -------------------------------------------------------------------------------------


def _replay(hostile: _Hostile) -> None:
    datagrams = hostile.node.network.datagrams
    receive, send = datagrams._receive, datagrams.send_sealed
    heard: deque[bytes] = deque(maxlen=CAPTURED_MAX)
    frames: deque[bytes] = deque(maxlen=CAPTURED_MAX)
    tapped: dict[Channel, Callable[[bytes], None]] = {}

    def hear(data: bytes, source: Address) -> None:
        heard.append(data)
        receive(data, source)

    def tell(port: Any, data: bytes, to: Address) -> None:
        heard.append(data)
        send(port, data, to)

    _swap(datagrams, "_receive", hear)
    _swap(datagrams, "send_sealed", tell)

    def tap(channel: Channel) -> None:
        enqueue = tapped[channel] = channel._enqueue

        def keep(data: bytes) -> None:
            frames.append(data)
            enqueue(data)

        _swap(channel, "_enqueue", keep)

    def attack() -> None:
        channels = hostile.channels()
        for channel in channels:
            if channel not in tapped:
                tap(channel)
        for gone in [channel for channel in tapped if channel not in channels]:
            del tapped[gone]
        target = hostile.target()
        if target is not None and heard:
            hostile.send_raw(hostile.rng.choice(heard), _address(target))
            hostile.fire()
        if channels and frames:
            tapped[hostile.rng.choice(channels)](hostile.rng.choice(frames))
            hostile.fire()

    hostile.every(REPLAY_S, attack)


_ODD: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 2**63 - 1, -(2**63), b"", bytes(20), bytes(32), bytes(1000), "", "\0", "x" * 300, [], {},
    [[]], [[[[]]]], {"": None}, {0: b""}, [None] * 40, [0] * 8, [b"", b"", b""], ["127.0.0.1", 1],
)  # fmt: skip
"""Bodies that no message has, or whose fields are not what they should be."""


def _malformed(hostile: _Hostile) -> None:
    node, rng = hostile.node, hostile.rng
    identity, group = hostile.member.identity, hostile.member.group
    outside = hostile.stranger()

    def statement(target: Member) -> bytes:
        """Proved as it should be, and senseless."""
        fields = [
            VERSION, int(rng.choice(list(MessageType))), rng.randbytes(TRANSACTION_BYTES), identity.public_key,
            dht_id(target.identity.public_key), rng.randbytes(8), 0, rng.choice(_ODD),
        ]  # fmt: skip
        if rng.random() < 0.3:
            fields[rng.randrange(len(fields))] = rng.choice(_ODD)
        signed = cbor.encode(fields)
        return signed + identity.tag(target.identity.public_key, signing_input(group.group_id, signed))

    def datagram(target: Member) -> None:
        to = _address(target)
        match rng.randrange(5):
            case 0:
                hostile.send_raw(seal_datagram(group.network_key, rng.randbytes(rng.randrange(200))), to)
            case 1:
                hostile.send_raw(seal_datagram(group.network_key, statement(target))[:DATAGRAM_BYTES_MAX], to)
            case 2:
                hostile.send_raw(seal_datagram(group.network_key, _flipped(rng, statement(target))), to)
            case 3:
                size = rng.choice((DATAGRAM_BYTES_MAX + 1, 9000, UDP_BYTES_MAX))
                hostile.send_raw(seal_datagram(group.network_key, bytes(size - 12)), to)
            case _:
                hostile.spawn(from_outside(to), on=outside)

    async def from_outside(to: Address) -> None:
        endpoint = await outside.net.bind_datagram(0, loopback_only=False)
        endpoint.send(rng.randbytes(rng.randrange(1500)), to)
        endpoint.close()
        await outside.net.dial_stream(to, rng.randbytes(40), timeout_s=5.0)

    def frame(channel: Channel) -> None:
        number = rng.choice([0, 0, rng.randrange(1, 1000)])
        kind = rng.choice([*messages.Message, *range(1, 20), 64, 65, 72, 99, 2**40])
        match rng.randrange(8):
            case 0:
                channel._stream.write((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
            case 1:
                channel._enqueue(rng.randbytes(rng.randrange(1, 200)))
            case 2:
                channel._enqueue(_flipped(rng, encode_message(int(kind), number, rng.choice(_ODD))))
            case 3:
                channel._enqueue(encode_message(int(kind), number, bytes(FRAME_BYTES_MAX // 2)))
            case _:
                channel._enqueue(encode_message(int(kind), number, [rng.choice(_ODD) for _ in range(rng.randrange(9))]))

    def attack() -> None:
        target, channels = hostile.target(), node.channels.all()
        if target is not None:
            datagram(target)
            hostile.fire()
        if channels and rng.random() < 0.2:
            frame(rng.choice(channels))
            hostile.fire()

    hostile.every(MALFORMED_S, attack)


def _slow_loris(hostile: _Hostile) -> None:
    host, rng = hostile.host, hostile.rng
    held: list[int] = [0]
    victim = hostile.target()

    def preamble(target: Member) -> bytes:
        return handshake.make_preamble(
            hostile.network_key,
            listener=target.identity.public_key,
            wall=host.clock.wall(),
            nonce=host.crypto.random_bytes(handshake.PREAMBLE_NONCE_BYTES),
        )

    async def half_open(target: Member) -> None:
        """Let in, and then byte by byte a frame that never ends."""
        held[0] += 1
        try:
            stream = await host.net.dial_stream(_address(target), preamble(target), timeout_s=HANDSHAKE_S_MAX)
            hostile.fire()
            try:
                stream.write(b"\0\0\x10\0")
                for _ in range(int(2 * HANDSHAKE_S_MAX)):
                    stream.write(b"\x83")
                    await host.clock.sleep(DRIBBLE_S)
            finally:
                stream.abort()
        finally:
            held[0] -= 1

    async def proven(target: Member) -> None:
        """A proven channel on which a frame of a megabyte comes byte by byte."""
        key = target.identity.public_key
        channel = await hostile.node.channels.connect(key, [_address(target)], purpose=Purpose.BLOB)
        hostile.fire()
        channel._stream.write(FRAME_BYTES_MAX.to_bytes(4, "big"))
        while hostile.world.now < hostile.world.duration_s and not channel.lost_reason:
            channel._stream.write(b"\x83")
            await host.clock.sleep(DRIBBLE_S)
        channel.abort("enough")

    def attack() -> None:
        """Half-open connections at anybody; proven channels at one, until it has had enough."""
        target = hostile.target()
        if target is None or victim is None:
            return
        for _ in range(LORIS_CONNECTIONS - held[0]):
            hostile.spawn(half_open(target))
        if rng.random() < 0.5:
            hostile.spawn(proven(victim))

    hostile.every(DRIBBLE_S, attack)


def _steal_flood(hostile: _Hostile) -> None:
    scheduler = hostile.node.scheduler
    scheduler.thief._accepts_others = False  # declines what it is given

    def attack() -> None:
        channels = hostile.channels()
        for channel in hostile.rng.sample(channels, min(FLOOD_VICTIMS, len(channels))):
            scheduler.thief._request_id += 1
            thief = Thief(b"", b"", hostile.rng.randbytes(8), (3, 11), 1 << 16, 1 << 20, scheduler.thief._request_id)
            channel.send(messages.Message.STEAL, messages.steal_body(thief))
            channel.send(messages.Message.OFFER, [])
            hostile.fire()
        target = hostile.target()
        if target is not None and hostile.node.channels.get(target.identity.public_key) is None:
            scheduler.thief.open_channel(target.identity.public_key)

    hostile.every(FLOOD_S, attack)


_KINDS: Final[dict[str, Callable[[_Hostile], None]]] = {
    "wrong": _wrong,
    "colluding": _colluding,
    "drop": _drop,
    "hoard": _hoard,
    "late": _late,
    "free_rider": _free_rider,
    "false_find": _false_find,
    "eclipse": _eclipse,
    "sybil": _sybil,
    "replay": _replay,
    "malformed": _malformed,
    "slow_loris": _slow_loris,
    "equivocation": _equivocation,
    "steal_flood": _steal_flood,
}
