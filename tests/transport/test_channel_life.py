"""Probes, silence and idleness of channels, in simulated time; and hostile bytes at every point of a connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from p2pcompute.errors import ChannelLost, TrustError, VersionMismatch
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import (
    CHANNEL_DEAD_S,
    CHANNEL_IDLE_S,
    CHANNEL_PING_S,
    CHANNEL_PING_S_MAX,
    HANDSHAKE_S_MAX,
    HANDSHAKES_MAX,
    JOIN_IDLE_S,
)
from p2pcompute.transport.channels import Purpose
from p2pcompute.transport.credentials import invite_key
from p2pcompute.transport.datagrams import seal_datagram
from p2pcompute.transport.messages import MessageType, encode_message
from p2pcompute.wire.frames import frame
from tests.transport.hosts import NETWORK_KEY, Node, RealWorld, SimWorld, echo, wait_for
from tests.transport.raw import Raw, knock, raw_channel

ASK, TELL = 40, 41


async def pair(world: SimWorld) -> tuple[Node, Node]:
    return await Node(world, "ann").start(), await Node(world, "bob").start()


def test_a_quiet_channel_is_probed_and_closed_when_it_is_idle() -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        await ann.connect(bob)
        began = world.now()
        await asyncio.sleep(CHANNEL_DEAD_S * 3)
        assert ann.channels.get(bob.key) is not None, "answered probes keep it"
        assert 3 < bob.channels.counters.frames_received < 9, "probes come ever more rarely"
        await wait_for(lambda: ann.lost and bob.lost, "idle close", within_s=CHANNEL_IDLE_S)
        assert CHANNEL_IDLE_S <= world.now() - began < CHANNEL_IDLE_S + CHANNEL_PING_S
        assert ann.channels.counters.idle + bob.channels.counters.idle >= 1
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


def test_a_channel_that_is_needed_stays_and_is_hardly_ever_probed() -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        ann.channels.is_needed = lambda key: key == bob.key
        bob.channels.is_needed = lambda key: key == ann.key
        channel = await ann.connect(bob)
        await asyncio.sleep(10 * CHANNEL_IDLE_S)
        assert channel.is_open
        before = ann.channels.counters.frames_sent
        await asyncio.sleep(4 * CHANNEL_PING_S_MAX)
        assert 4 <= ann.channels.counters.frames_sent - before <= 10
        world.simulation.crash(world.hosts[id(bob.host)], is_silent=True)
        channel.send(TELL, None)
        await wait_for(lambda: ann.lost, "noticing that the peer is dead once there is something to send", within_s=60)
        await ann.stop()

    SimWorld().run(case)


def test_of_two_channels_to_one_peer_one_closes_soon_however_busy_the_two_nodes_are() -> None:
    """Else an owner whom all others dial, and who dials all of them, has room for half as many."""

    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        for node in (ann, bob):
            node.channels.is_needed = lambda _key: True
            node.channels.on_request(ASK, echo)
        await asyncio.gather(ann.connect(bob), bob.connect(ann))
        assert len(ann.channels.all()) == len(bob.channels.all()) == 2
        for number in range(40):
            for node, peer in ((ann, bob), (bob, ann)):
                used = node.channels.get(peer.key)
                assert used is not None
                assert await node.request(used, ASK, number) == number
            await asyncio.sleep(1.0)
        assert len(ann.channels.all()) == len(bob.channels.all()) == 1
        await asyncio.sleep(2 * CHANNEL_IDLE_S)
        assert len(ann.channels.all()) == 1, "the other one is needed"
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


def test_an_open_request_keeps_a_channel() -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)

        async def slow(channel: Any, body: Any) -> Any:
            await bob.host.clock.sleep(2 * CHANNEL_IDLE_S)
            return "at last"

        bob.channels.on_request(ASK, slow)
        channel = await ann.connect(bob)
        assert await ann.request(channel, ASK, None, timeout_s=3 * CHANNEL_IDLE_S) == "at last"
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


def test_a_peer_that_went_silent_is_given_up() -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        channel = await ann.connect(bob)
        await asyncio.sleep(5)
        world.simulation.crash(world.hosts[id(bob.host)], is_silent=True)
        began = world.now()
        await wait_for(lambda: ann.lost, "giving up", within_s=2 * CHANNEL_DEAD_S)
        assert CHANNEL_DEAD_S - CHANNEL_PING_S < world.now() - began <= CHANNEL_DEAD_S + 0.1
        assert "silent" in channel.lost_reason and ann.channels.counters.silent == 1
        await ann.stop()

    SimWorld().run(case)


def test_a_peer_that_talks_but_does_not_read_is_given_up() -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        raw = await raw_channel(ann, bob)
        await wait_for(lambda: bob.opened, "opening")
        bob.opened[0].send(TELL, bytes(900_000))
        for _ in range(6):
            raw.write(MessageType.PING, None, request_id=7)
            await asyncio.sleep(CHANNEL_DEAD_S / 4)
        await wait_for(lambda: bob.lost, "giving up", within_s=CHANNEL_DEAD_S)
        assert bob.channels.counters.unread == 1 and bob.channels.counters.silent == 0
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


def test_the_round_trip_is_measured() -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        channel = await ann.connect(bob)
        first = channel.rtt_s
        channel.rtt_s = 10.0
        await asyncio.sleep(CHANNEL_PING_S * 20)
        assert 0 < channel.rtt_s < 8 and 0 < first < 1
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


def test_a_joining_channel_without_traffic_is_closed_soon() -> None:
    async def case(world: SimWorld) -> None:
        bob = await Node(world, "bob").start()
        new = Node(world, "new")
        bob.credentials.invites.append(invite_key(b"secret"))
        channel = await new.connect(bob, purpose=Purpose.JOIN, invite_secret=b"secret")
        await wait_for(lambda: not channel.is_open, "closing", within_s=JOIN_IDLE_S + CHANNEL_PING_S)
        await bob.stop()
        await new.stop()

    SimWorld().run(case)


def test_unproven_connections_are_bounded_and_end() -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        streams = [await knock(ann, bob) for _ in range(HANDSHAKES_MAX)]
        await wait_for(lambda: bob.channels._inbound_count == HANDSHAKES_MAX, "all in their handshake")
        late = Raw(ann, await knock(ann, bob))
        assert await late.is_closed()
        assert bob.channels.handshakes.busy == 1
        await asyncio.sleep(HANDSHAKE_S_MAX + 1)
        assert bob.channels._inbound_count == 0 and bob.channels.handshakes.broken == HANDSHAKES_MAX
        assert (await ann.connect(bob)).is_open
        for stream in streams:
            stream.abort()
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


def test_dials_are_not_repeated_while_one_is_under_way_and_a_cancelled_asker_harms_nobody() -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)

        async def both() -> None:
            impatient = ann.scope.spawn(ann.channels.connect(bob.key, [bob.address]), "impatient")
            patient = ann.scope.spawn(ann.channels.connect(bob.key, [bob.address]), "patient")
            await ann.host.clock.sleep(0.0001)
            impatient.cancel()
            assert (await patient).is_open
            assert impatient.cancelled()

        await world.on(ann.host, both())
        assert len(ann.opened) == 1
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


def test_the_same_seed_gives_the_same_trace() -> None:
    def run() -> str:
        async def case(world: SimWorld) -> None:
            ann, bob = await pair(world)
            bob.channels.on_request(ASK, echo)
            channel = await ann.connect(bob)
            for number in range(20):
                await ann.request(channel, ASK, number)
            await ann.stop()
            await bob.stop()

        world = SimWorld(7)
        world.run(case)
        return world.simulation.trace_hash()

    assert run() == run()


# --- hostile bytes --------------------------------------------------------------------------------

GOOD = b"".join(frame(encode_message(TELL, 0, [number, b"body"])) for number in range(3))
GOOD += frame(encode_message(ASK, 5, "x")) + frame(encode_message(MessageType.PING, 6, None))


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with a few bytes changed, or cut short, or junk behind it."""
    flips = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=3)

    def apply(made: tuple[list[tuple[int, int]], int, bytes]) -> bytes:
        changed = bytearray(data)
        for position, value in made[0]:
            changed[position] = value
        return bytes(changed[: made[1]]) + made[2]

    return st.tuples(flips, st.integers(0, len(data)), st.binary(max_size=20)).map(apply)


# One world per example costs far more than what is tested in it, so each example is a list of tries.


@settings(max_examples=10, deadline=None)
@given(st.lists(mutations(GOOD) | st.binary(max_size=100), min_size=1, max_size=8))
def test_no_bytes_on_a_channel_harm_the_node(tries: list[bytes]) -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        bob.channels.on_message(TELL, lambda channel, body: None)
        bob.channels.on_request(ASK, echo)
        for number, data in enumerate(tries):
            raw = await raw_channel(ann, bob)
            raw.stream.write(data)
            raw.stream.close()
            await wait_for(lambda: len(bob.lost) > number, "the end of the channel", within_s=60)  # noqa: B023
        assert (await ann.connect(bob)).is_open
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_no_bytes_in_a_handshake_harm_the_node(data: st.DataObject) -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        handshakes = bob.channels.handshakes

        def ended() -> int:
            return handshakes.completed + handshakes.malformed + handshakes.broken + handshakes.refused

        for number in range(data.draw(st.integers(1, 8))):
            raw = Raw(ann, await knock(ann, bob))
            good = frame(encode_message(MessageType.AUTH, 0, raw.auth(await raw.hello(bob))))
            raw.stream.write(data.draw(mutations(good) | st.binary(max_size=200)))
            raw.stream.close()
            await wait_for(lambda: ended() > number, "the end of the handshake", within_s=60)  # noqa: B023
        # What is not covered by the signature may differ; who it is may not.
        assert all(channel.peer.key == ann.key for channel in bob.opened)
        assert (await ann.connect(bob)).is_open
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_no_listener_harms_the_dialler(data: st.DataObject) -> None:
    async def case(world: SimWorld) -> None:
        ann, bob = await pair(world)
        body = {
            "versions": [1, 1],
            "nonce": bytes(32),
            "instance": bytes(8),
            "certificate": bob.channels._certificate,
            "hello": bob.credentials.hello(),
        }
        good = frame(encode_message(MessageType.HELLO, 0, body))
        await bob.channels.stop_listening()

        def accept(stream: Any, preamble: bytes) -> None:
            stream.write(data.draw(mutations(good)))
            stream.close()

        listener = await world.on(
            bob.host,
            bob.host.net.listen_stream(
                bob.port, loopback_only=False, admit=lambda preamble, source: True, accept=accept
            ),
        )
        for _ in range(8):
            with pytest.raises((ChannelLost, TrustError, VersionMismatch)):
                await ann.connect(bob)
        assert not ann.opened
        await world.on(bob.host, listener.close())
        await ann.stop()
        await bob.stop()

    SimWorld().run(case)


BOB = Node(RealWorld(), "bob")
BOB.datagrams.bind_group(NETWORK_KEY, lambda body, source: pytest.fail("a forged datagram was handed on"))
GOOD_DATAGRAM = seal_datagram(NETWORK_KEY, b"a body")


@given(st.binary(max_size=1300) | st.binary(max_size=60) | mutations(GOOD_DATAGRAM))
def test_no_datagram_harms_the_node(data: bytes) -> None:
    assume(data != GOOD_DATAGRAM)
    counters = BOB.datagrams.counters
    before = counters.short + counters.stranger + counters.forged + counters.oversized
    BOB.datagrams._receive(data, Address("192.0.2.1", 5))
    assert counters.short + counters.stranger + counters.forged + counters.oversized == before + 1
