"""Transport on the real and on the simulated host: one suite, so that what is simulated is what runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pcompute.errors import ChannelLost, LocalProtocolError, P2pcError, RemoteError, RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import CHANNEL_WRITE_BYTES_MAX, FRAME_BYTES_MAX
from p2pcompute.transport.channels import Channel, Purpose
from p2pcompute.transport.credentials import invite_key
from p2pcompute.transport.datagrams import seal_datagram
from p2pcompute.transport.messages import MessageType
from tests.transport.hosts import NETWORK_KEY, WORLDS, Node, World, echo, wait_for
from tests.transport.raw import Raw, knock, preamble_for, raw_channel

ASK, TELL, SLOW, BLOB, JOIN = 40, 41, 42, 64, 16


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    made: World = WORLDS[request.param]()
    return made


async def pair(world: World) -> tuple[Node, Node]:
    return await Node(world, "ann").start(), await Node(world, "bob").start()


async def stop(*nodes: Node) -> None:
    for node in nodes:
        await node.stop()


def test_a_request_is_answered_in_both_directions(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        for node in (ann, bob):
            node.channels.on_request(ASK, echo)
        channel = await ann.connect(bob)
        assert channel.peer.name == "bob" and channel.peer.key == bob.key and channel.is_dialler
        assert 0 <= channel.rtt_s < 1
        assert await ann.request(channel, ASK, {"n": [1, b"x", None, True]}) == {"n": [1, b"x", None, True]}
        [back] = bob.opened
        assert back.peer.key == ann.key and not back.is_dialler
        assert back.binding == channel.binding and len(back.binding) == 32
        assert await bob.request(back, ASK, "hello") == "hello"
        await stop(ann, bob)

    world.run(case)


def test_however_many_ask_for_a_channel_it_is_dialled_once(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        channels = await asyncio.gather(*(ann.connect(bob) for _ in range(20)))
        assert all(channel is channels[0] for channel in channels)
        assert await ann.connect(bob) is channels[0] is ann.channels.get(bob.key)
        await wait_for(lambda: bob.opened, "opening")
        assert len(bob.opened) == 1 and ann.channels.all() == [channels[0]]
        await stop(ann, bob)

    world.run(case)


def test_a_channel_that_the_peer_opened_is_reused(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        await ann.connect(bob)
        await wait_for(lambda: bob.opened, "opening")
        assert await bob.connect(ann) is bob.opened[0]
        await stop(ann, bob)

    world.run(case)


def test_when_both_dial_at_once_both_channels_live_and_both_use_the_same_one(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        ann.channels.on_request(ASK, echo)
        bob.channels.on_request(ASK, echo)
        there, back = await asyncio.gather(ann.connect(bob), bob.connect(ann))
        assert await ann.request(there, ASK, 1) == 1
        assert await bob.request(back, ASK, 2) == 2
        for node, peer in ((ann, bob), (bob, ann)):
            used = node.channels.get(peer.key)
            assert used is not None and used.is_dialler is (node.key < peer.key)
        await stop(ann, bob)

    world.run(case)


def test_messages_are_received_in_order_and_in_few_writes(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        got: list[Any] = []
        bob.channels.on_message(TELL, lambda channel, body: got.append(body))
        channel = await ann.connect(bob)
        writes: list[int] = []
        stream = channel._stream

        class Counting:
            """The stream, with its writes counted."""

            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

            def write(self, data: bytes) -> None:
                writes.append(len(data))
                stream.write(data)

        channel._stream = Counting()  # type: ignore[assignment]
        for number in range(1000):
            channel.send(TELL, number)
        await wait_for(lambda: len(got) == 1000, "arrival")
        assert got == list(range(1000))
        assert len(writes) == 1
        await stop(ann, bob)

    world.run(case)


def test_large_bodies_pass_whole_with_back_pressure(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        got: list[bytes] = []
        bob.channels.on_message(TELL, lambda channel, body: got.append(body))
        bob.channels.on_request(ASK, echo)
        channel = await ann.connect(bob)

        async def send_all() -> None:
            for number in range(20):
                channel.send(TELL, bytes([number]) * (FRAME_BYTES_MAX - 100))
                await channel.drain()

        await world.on(ann.host, send_all())
        bodies = [bytes([number]) * 600_000 for number in range(12)]
        replies = await asyncio.gather(*(ann.request(channel, ASK, body) for body in bodies))
        assert replies == bodies
        assert [(body[0], len(body)) for body in got] == [(n, FRAME_BYTES_MAX - 100) for n in range(20)]
        assert ann.channels.counters.unread == 0
        await stop(ann, bob)

    world.run(case)


def test_errors_reach_the_asker_with_code_and_text(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)

        async def refuse(channel: Channel, body: Any) -> Any:
            if body == "hostile":
                raise RemoteProtocolError("that is no task")
            if body == "bug":
                raise KeyError("oops")
            if body == "unencodable":
                return object()
            if body == "long":
                return b"x" * FRAME_BYTES_MAX
            raise P2pcError("no such job", "secret detail", code="no-job")

        bob.channels.on_request(ASK, refuse)
        channel = await ann.connect(bob)

        async def code_of(message_type: int, body: Any) -> tuple[str, str]:
            with pytest.raises(RemoteError) as raised:
                await ann.request(channel, message_type, body)
            return raised.value.code, raised.value.what

        assert await code_of(ASK, "x") == ("no-job", "no such job")
        assert await code_of(ASK, "hostile") == ("protocol", "that is no task")
        assert (await code_of(SLOW, None))[0] == "unknown"
        assert not bob.errors
        # Our own bugs are reported here and say nothing there.
        for body in ("bug", "unencodable", "long"):
            assert await code_of(ASK, body) == ("internal", "this node failed to serve the request")
        assert [type(error) for error in bob.errors] == [KeyError, LocalProtocolError, LocalProtocolError]
        assert channel.is_open
        await ann.stop()
        await bob.stop(expect_errors=True)

    world.run(case)


def test_a_request_without_an_answer_in_time_fails_and_its_late_reply_is_dropped(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        answered: list[bool] = []

        async def slow(channel: Channel, body: Any) -> Any:
            await bob.host.clock.sleep(0.3)
            answered.append(True)
            return body

        bob.channels.on_request(SLOW, slow)
        bob.channels.on_request(ASK, echo)
        channel = await ann.connect(bob)
        with pytest.raises(ChannelLost) as raised:
            await ann.request(channel, SLOW, 1, timeout_s=0.1)
        assert raised.value.code == "no-answer"
        assert await ann.request(channel, ASK, 2) == 2, "the channel lives on"
        await wait_for(lambda: ann.channels.counters.late == 1, "the late reply")
        await stop(ann, bob)

    world.run(case)


def test_floats_do_not_pass(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        bob.channels.on_request(ASK, echo)
        channel = await ann.connect(bob)
        with pytest.raises(ChannelLost):
            await ann.request(channel, ASK, [0.5])
        assert bob.channels.counters.malformed == 1
        await stop(ann, bob)

    world.run(case)


def test_a_closed_channel_is_lost_at_both_ends_and_fails_its_requests(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)

        async def never(channel: Channel, body: Any) -> Any:
            await bob.host.clock.sleep(3600)

        bob.channels.on_request(SLOW, never)
        channel = await ann.connect(bob)
        requests = [ann.request(channel, SLOW, number, timeout_s=60) for number in range(3)]
        waiting = asyncio.gather(*requests, return_exceptions=True)
        await wait_for(lambda: bob.opened and bob.channels.counters.frames_received == 3, "the requests")
        bob.opened[0].close()
        results = await waiting
        assert [type(result) for result in results] == [ChannelLost] * 3
        await wait_for(lambda: ann.lost and bob.lost, "on_lost")
        assert ann.lost == [channel] and ann.channels.get(bob.key) is None
        channel.send(TELL, "into the void")
        with pytest.raises(ChannelLost):
            await ann.request(channel, ASK, 1)
        again = await ann.connect(bob)
        assert again is not channel and again.is_open
        await stop(ann, bob)

    world.run(case)


def test_what_was_sent_before_a_close_arrives(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        got: list[Any] = []
        bob.channels.on_message(TELL, lambda channel, body: got.append(body))
        channel = await ann.connect(bob)
        for number in range(5):
            channel.send(TELL, bytes([number]) * 500_000)
        channel.close()
        await wait_for(lambda: len(got) == 5, "arrival")
        await stop(ann, bob)

    world.run(case)


def test_what_a_listener_sends_at_once_is_not_lost_behind_the_welcome(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        got: list[Any] = []
        ann.channels.on_message(TELL, lambda channel, body: got.append(body))

        def greet(channel: Channel) -> None:
            for number in range(50):
                channel.send(TELL, b"%d" % number * 20_000)

        bob.channels.on_open = greet
        await ann.connect(bob)
        await wait_for(lambda: len(got) == 50, "the greetings")
        await stop(ann, bob)

    world.run(case)


def test_malformed_messages_of_services_are_counted_and_dropped(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)

        def picky(channel: Channel, body: Any) -> None:
            raise RemoteProtocolError("not like that")

        bob.channels.on_message(TELL, picky)
        bob.channels.on_request(ASK, echo)
        channel = await ann.connect(bob)
        channel.send(TELL, 1)
        channel.send(99, "of a later version")
        assert await ann.request(channel, ASK, 1) == 1
        assert bob.channels.counters.refused == 1 and bob.channels.counters.unknown == 1
        await stop(ann, bob)

    world.run(case)


# --- who may talk ---------------------------------------------------------------------------------


def test_the_wrong_network_key_gets_no_answer(world: World) -> None:
    async def case(world: World) -> None:
        bob = await Node(world, "bob").start()
        eve = await Node(world, "eve", [bytes(32)]).start()
        with pytest.raises(ChannelLost):
            await eve.connect(bob)
        assert bob.channels.preambles.stranger == 1
        assert bob.channels.handshakes.completed == 0
        await stop(bob, eve)

    world.run(case)


def test_a_non_member_is_told_and_dropped(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        bob.credentials.strangers.add(ann.key)
        with pytest.raises(TrustError, match="not a member"):
            await ann.connect(bob)
        assert not bob.opened and bob.channels.handshakes.refused == 1
        await stop(ann, bob)

    world.run(case)


def test_a_listener_that_is_not_a_member_gets_no_proof_from_us(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        ann.credentials.strangers.add(bob.key)
        with pytest.raises(TrustError):
            await ann.connect(bob)
        await wait_for(lambda: bob.channels.handshakes.broken == 1, "the end")
        await stop(ann, bob)

    world.run(case)


def test_another_node_at_the_address_is_found_out(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        carl = await Node(world, "carl").start()
        with pytest.raises(ChannelLost):
            await world.on(ann.host, ann.channels.connect(carl.key, [bob.address]))
        # Even when the preamble fits, because Bob lets himself be taken for Carl, the certificate does not.
        bob.channels._gate._listener = carl.key
        with pytest.raises(ChannelLost, match="signer"):
            await world.on(ann.host, ann.channels.connect(carl.key, [bob.address]))
        await stop(ann, bob, carl)

    world.run(case)


def test_a_dead_address_before_the_right_one_costs_little(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        carl = await Node(world, "carl").start()
        dead = Address("127.0.0.1", 1)
        channel = await world.on(
            ann.host, ann.channels.connect(bob.key, [dead, carl.address, bob.address, bob.address])
        )
        assert channel.peer.key == bob.key and channel.address == bob.address
        with pytest.raises(ChannelLost):
            await world.on(ann.host, ann.channels.connect(carl.key, [dead, bob.address]))
        with pytest.raises(ChannelLost, match="no address"):
            await world.on(ann.host, ann.channels.connect(carl.key, []))
        await stop(ann, bob, carl)

    world.run(case)


def test_a_node_does_not_talk_to_itself(world: World) -> None:
    async def case(world: World) -> None:
        ann = await Node(world, "ann").start()
        with pytest.raises(ChannelLost) as raised:
            await ann.connect(ann)
        assert raised.value.code == "self"
        raw = Raw(ann, await knock(ann, ann))
        hello = await raw.hello(ann)
        raw.write(MessageType.AUTH, raw.auth(hello))
        assert await raw.is_closed()
        assert ann.channels.handshakes.malformed == 1 and not ann.opened
        await stop(ann)

    world.run(case)


def test_whoever_terminates_the_connection_in_between_is_found_out(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        eve = Node(world, "eve")  # knows the network key and passes everything on
        legs: list[Any] = []

        async def relay(source: Any, target: Any) -> None:
            try:
                while data := await source.read(65536):
                    target.write(data)
            except ChannelLost:
                pass
            target.close()

        async def forward(stream: Any, preamble: bytes) -> None:
            onward = await eve.host.net.dial_stream(bob.address, preamble, timeout_s=5.0)
            legs.append((stream.binding, onward.binding))
            eve.scope.spawn(relay(onward, stream), "down")
            await relay(stream, onward)

        listener = await world.on(
            eve.host,
            eve.host.net.listen_stream(
                0,
                loopback_only=world.kind == "real",
                admit=lambda preamble, source: True,
                accept=lambda stream, preamble: eve.scope.spawn(forward(stream, preamble), "mitm"),
            ),
        )
        with pytest.raises(ChannelLost, match="certificate"):
            await world.on(ann.host, ann.channels.connect(bob.key, [Address(eve.ip, listener.port)]))
        assert len(legs) == 1 and legs[0][0] != legs[0][1]
        assert not bob.opened
        await wait_for(lambda: bob.channels.handshakes.broken == 1, "Bob sees the connection end")
        await world.on(eve.host, listener.close())
        await stop(ann, bob, eve)

    world.run(case)


def test_a_proof_for_another_listener_or_connection_is_refused(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        carl = await Node(world, "carl").start()
        first = Raw(ann, await knock(ann, bob))
        hello = await first.hello(bob)
        proof = first.auth(hello)
        second = Raw(ann, await knock(ann, bob))
        await second.hello(bob)
        second.write(MessageType.AUTH, proof)
        assert await second.is_closed(), "the nonce of another connection"
        third = Raw(ann, await knock(ann, carl))
        await third.hello(carl)
        third.write(MessageType.AUTH, proof)
        assert await third.is_closed(), "another listener"
        assert bob.channels.handshakes.malformed == 1 and carl.channels.handshakes.malformed == 1
        first.write(MessageType.AUTH, proof)
        assert (await first.next())[0] == MessageType.WELCOME, "where it was made for it is good"
        first.stream.abort()
        await stop(ann, bob, carl)

    world.run(case)


def test_a_preamble_is_good_once_for_a_while_and_at_one_listener(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        carl = await Node(world, "carl").start()
        preamble = preamble_for(ann, bob.key)
        (await knock(ann, bob, preamble)).abort()
        for target, bad in (
            (bob, preamble),
            (carl, preamble_for(ann, bob.key)),
            (bob, preamble_for(ann, bob.key, wall=ann.host.clock.wall() - 301)),
            (bob, preamble_for(ann, bob.key, wall=ann.host.clock.wall() + 301)),
            (bob, preamble_for(ann, bob.key, key=bytes(32))),
        ):
            with pytest.raises(ChannelLost):
                await Raw(ann, await knock(ann, target, bad)).next()
        counters = bob.channels.preambles
        assert (counters.admitted, counters.replayed, counters.skewed, counters.stranger) == (1, 1, 2, 1)
        assert carl.channels.preambles.stranger == 1
        await stop(ann, bob, carl)

    world.run(case)


# --- purposes -------------------------------------------------------------------------------------


def test_an_invitation_opens_a_joining_channel_and_nothing_else(world: World) -> None:
    async def case(world: World) -> None:
        bob = await Node(world, "bob").start()
        new = Node(world, "new", [bytes(32)])
        secret = b"sixteen bytes ok"
        bob.channels.on_request(JOIN, echo)
        bob.channels.on_request(ASK, echo)
        with pytest.raises(ChannelLost):
            await new.connect(bob, purpose=Purpose.JOIN, invite_secret=secret)
        bob.credentials.invites.append(invite_key(secret))
        bob.credentials.strangers.add(new.key)
        channel = await new.connect(bob, purpose=Purpose.JOIN, invite_secret=secret)
        assert await new.request(channel, JOIN, "let me in") == "let me in"
        with pytest.raises(RemoteError) as raised:
            await new.request(channel, ASK, "a job")
        assert raised.value.code == "unknown"
        assert not bob.opened and bob.channels.get(new.key) is None and new.channels.all() == []
        # The invitation's key does not open a control channel.
        raw = Raw(new, await knock(new, bob, preamble_for(new, bob.key, key=invite_key(secret))))
        raw.write(MessageType.AUTH, raw.auth(await raw.hello(bob)))
        assert await raw.is_closed()
        with pytest.raises(LocalProtocolError):
            await new.connect(bob, invite_secret=secret)
        await stop(bob, new)

    world.run(case)


def test_joining_messages_are_not_served_to_members(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        bob.channels.on_request(JOIN, echo)
        channel = await ann.connect(bob)
        with pytest.raises(RemoteError):
            await ann.request(channel, JOIN, 1)
        await stop(ann, bob)

    world.run(case)


def test_blob_channels_are_separate(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        bob.channels.on_request(BLOB, echo)
        bob.channels.on_request(ASK, echo)
        first = await ann.connect(bob, purpose=Purpose.BLOB)
        second = await ann.connect(bob, purpose=Purpose.BLOB)
        control = await ann.connect(bob)
        assert len({first, second, control}) == 3
        assert ann.channels.all() == [control] and ann.opened == [control]
        assert await ann.request(first, BLOB, b"chunk") == b"chunk"
        with pytest.raises(RemoteError):
            await ann.request(first, ASK, 1)
        first.close()
        second.close()
        assert ann.lost == []
        await stop(ann, bob)

    world.run(case)


# --- hostile peers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1\x00", b"\0\0\0\4\x83\x18\x29\x00", b"\0\0\0\5\x83\x18\x28\x01\xc0"],
    ids=["huge", "empty", "no message", "no body", "tag"],
)
def test_bytes_that_are_no_message_close_the_channel(world: World, data: bytes) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        bob.channels.on_message(TELL, lambda channel, body: None)
        bob.channels.on_request(ASK, echo)
        raw = await raw_channel(ann, bob)
        raw.stream.write(data)
        await wait_for(lambda: bob.lost, "the end of the channel")
        assert bob.channels.counters.malformed == 1 and "malformed" in bob.lost[0].lost_reason
        assert (await ann.connect(bob)).is_open, "the listener lives"
        await stop(ann, bob)

    world.run(case)


def test_a_peer_that_does_not_read_is_cut_off(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        raw = await raw_channel(ann, bob)
        await wait_for(lambda: bob.opened, "opening")
        channel = bob.opened[0]
        sent = 0
        while channel.is_open:
            channel.send(TELL, bytes(500_000))
            sent += 500_000
            assert sent < 2 * CHANNEL_WRITE_BYTES_MAX + 8_000_000
            await asyncio.sleep(0)
        assert bob.channels.counters.unread == 1 and channel.unsent_bytes == 0
        raw.stream.abort()
        await stop(ann, bob)

    world.run(case)


def test_replies_to_a_peer_that_does_not_read_stay_bounded(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)

        async def generous(channel: Channel, body: Any) -> Any:
            return bytes(500_000)

        bob.channels.on_request(ASK, generous)
        raw = await raw_channel(ann, bob)
        for number in range(1, 200):
            raw.write(ASK, None, request_id=number)
        await wait_for(lambda: bob.channels.counters.busy > 100, "refusals")
        channel = bob.opened[0]
        assert channel.is_open
        assert channel.unsent_bytes + channel._held_bytes < 2 * CHANNEL_WRITE_BYTES_MAX
        raw.stream.abort()
        await wait_for(lambda: bob.lost, "the end")
        await stop(ann, bob)

    world.run(case)


def test_more_requests_than_are_served_at_once_are_refused(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)

        async def never(channel: Channel, body: Any) -> Any:
            await bob.host.clock.sleep(3600)

        bob.channels.on_request(SLOW, never)
        bob.channels.on_request(ASK, echo)
        raw = await raw_channel(ann, bob)
        for number in range(1, 40):
            raw.write(SLOW, bytes(900_000), request_id=number)
        await wait_for(lambda: bob.channels.counters.busy > 0, "a refusal")
        message_type, body = await raw.next()
        assert message_type == MessageType.ERROR and body["code"] == "busy"
        served = bob.channels._shared.serving[ann.key]
        assert served.bytes <= 16 * 1024 * 1024
        raw.stream.abort()
        await stop(ann, bob)

    world.run(case)


def test_a_restarted_peer_takes_the_place_of_its_former_self(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        former = await raw_channel(ann, bob, instance=b"before.."[:8])
        await wait_for(lambda: bob.opened, "opening")
        await raw_channel(ann, bob, instance=b"after..."[:8])
        await wait_for(lambda: len(bob.opened) == 2 and bob.lost, "the former channel's end")
        assert bob.lost == [bob.opened[0]] and bob.channels.get(ann.key) is bob.opened[1]
        while (await former.next())[0] != MessageType.REPLACED:
            pass
        assert await former.is_closed()
        await stop(ann, bob)

    world.run(case)


def test_who_shares_its_key_with_another_process_is_told(world: World) -> None:
    """The directory of a node was copied while it ran: both take each other's channels, and nobody knows why."""

    async def case(world: World) -> None:
        ann, bob = await pair(world)
        channel = await ann.connect(bob)
        told: list[Channel] = []
        ann.channels.on_replaced = told.append
        await raw_channel(ann, bob, instance=b"copied.."[:8])
        await wait_for(lambda: told, "bob's word that ann is twice")
        assert told == [channel]
        await wait_for(lambda: not ann.channels._open, "the end of the former channel")
        await stop(ann, bob)

    world.run(case)


def test_one_peer_has_a_bounded_number_of_channels(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = await pair(world)
        for _ in range(16):
            await ann.connect(bob, purpose=Purpose.BLOB)
        with pytest.raises(ChannelLost) as raised:
            await ann.connect(bob, purpose=Purpose.BLOB)
        assert raised.value.code == "busy"
        await wait_for(lambda: len(bob.channels._open) == 16, "all open")
        raw = Raw(ann, await knock(ann, bob))
        raw.write(MessageType.AUTH, raw.auth(await raw.hello(bob), instance=ann.channels._instance))
        message_type, body = await raw.next()
        assert message_type == MessageType.ERROR and body["code"] == "busy"
        await stop(ann, bob)

    world.run(case)


# --- datagrams ------------------------------------------------------------------------------------


def test_datagrams_reach_their_group_and_nobody_else(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = Node(world, "ann"), Node(world, "bob")
        other_key = bytes(range(32))
        got: dict[str, list[tuple[bytes, Address]]] = {"one": [], "other": []}
        loopback = world.kind == "real"
        ann_port = await world.on(ann.host, ann.datagrams.start(0, loopback_only=loopback))
        bob_port = await world.on(bob.host, bob.datagrams.start(0, loopback_only=loopback))
        bob.datagrams.bind_group(NETWORK_KEY, lambda body, source: got["one"].append((body, source)))
        second = bob.datagrams.bind_group(other_key, lambda body, source: got["other"].append((body, source)))
        to = Address(bob.ip, bob_port)
        one = ann.datagrams.bind_group(NETWORK_KEY, lambda body, source: None)
        other = ann.datagrams.bind_group(other_key, lambda body, source: None)
        foreign = ann.datagrams.bind_group(bytes(32), lambda body, source: None)
        one.send(b"to one", to)
        other.send(b"to the other", to)
        foreign.send(b"to nobody", to)
        await wait_for(lambda: bob.datagrams.counters.stranger and got["one"] and got["other"], "arrival")
        source = Address(ann.ip, ann_port)
        assert got == {"one": [(b"to one", source)], "other": [(b"to the other", source)]}
        second.close()
        other.send(b"too late", to)
        await wait_for(lambda: bob.datagrams.counters.stranger == 2, "the drop")
        with pytest.raises(LocalProtocolError):
            one.send(bytes(1189), to)
        one.send(bytes(1188), to)
        await wait_for(lambda: len(got["one"]) == 2, "the largest datagram")
        await stop(ann, bob)

    world.run(case)


def test_a_flood_of_one_source_is_limited_and_junk_is_counted(world: World) -> None:
    async def case(world: World) -> None:
        ann, bob = Node(world, "ann"), Node(world, "bob")
        loopback = world.kind == "real"
        bob_port = await world.on(bob.host, bob.datagrams.start(0, loopback_only=loopback))
        got: list[bytes] = []

        def receive(body: bytes, source: Address) -> None:
            got.append(body)
            if body == b"malformed":
                raise RemoteProtocolError("not like that")
            if body == b"bug":
                raise KeyError("oops")

        bob.datagrams.bind_group(NETWORK_KEY, receive)
        endpoint = await world.on(ann.host, ann.host.net.bind_datagram(0, loopback_only=loopback))
        to = Address(bob.ip, bob_port)
        good = seal_datagram(NETWORK_KEY, b"x")
        for data in (b"short", bytes(11), good[:-1] + b"y", bytes(1201), bytes(40)):
            endpoint.send(data, to)
        endpoint.send(seal_datagram(NETWORK_KEY, b"malformed"), to)
        endpoint.send(seal_datagram(NETWORK_KEY, b"bug"), to)
        counters = bob.datagrams.counters

        def junk() -> tuple[int, ...]:
            return counters.short, counters.forged, counters.oversized, counters.stranger

        await wait_for(lambda: len(got) == 2 and sum(junk()) == 5, "arrival")
        assert junk() == (2, 1, 1, 1)
        assert counters.malformed == 1 and [type(error) for error in bob.errors] == [KeyError]
        for _ in range(100):
            for _ in range(10):
                endpoint.send(good, to)
            await asyncio.sleep(0.001)
        await wait_for(lambda: counters.limited > 0, "the limit")
        endpoint.close()
        await ann.stop()
        await bob.stop(expect_errors=True)

    world.run(case)
