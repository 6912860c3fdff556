"""UDP of the real host: bounds, counted drops, and errors that belong to somebody else."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest

from p2pcompute.errors import ChannelLost, ConfigError
from p2pcompute.host.interfaces import Address
from p2pcompute.host.real_datagrams import RealDatagrams
from p2pcompute.host.real_net import RealNet
from p2pcompute.limits import DATAGRAM_QUEUE_MAX
from tests.transport.hosts import wait_for


@pytest.fixture
async def net() -> AsyncIterator[RealNet]:
    net = RealNet(interfaces=["lo"])
    yield net
    await net.close()


async def pair(net: RealNet) -> tuple[RealDatagrams, RealDatagrams]:
    return await net.bind_datagram(0, loopback_only=True), await net.bind_datagram(0, loopback_only=True)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_datagrams_pass_over_both_families_on_one_port_number(net: RealNet, host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    one, other = await pair(net)
    one.send(b"hello", Address(host, other.port))
    data, source = await asyncio.wait_for(other.receive(), 5)
    assert (data, source) == (b"hello", Address(host, one.port))


async def test_an_error_that_one_peer_caused_costs_no_datagram_to_another(net: RealNet) -> None:
    one, other = await pair(net)
    bad, good = Address("255.255.255.255", 9), Address("127.0.0.1", other.port)
    for number in range(10):
        # The kernel refuses a broadcast that was not asked for; asyncio-dgram raises that at a later send.
        one.send(b"lost", bad)
        one.send(b"lost", bad)
        one.send(b"%d" % number, good)
    got = [(await asyncio.wait_for(other.receive(), 5))[0] for _ in range(10)]
    assert got == [b"%d" % number for number in range(10)]
    assert one.counters.errors > 0 and one.counters.send_dropped == 0


async def test_an_error_queued_between_check_and_send_is_survived_by_the_retry(net: RealNet) -> None:
    one, other = await pair(net)
    stream = next(entry.stream for entry in one._sockets if entry.family == socket.AF_INET)
    send = stream.send
    foreign = [ConnectionRefusedError(errno.ECONNREFUSED, "peer A is not there")]

    async def unlucky(data: bytes, target: tuple[str, int]) -> None:
        if foreign:
            raise foreign.pop()
        await send(data, target)

    stream.send = unlucky
    one._send_now = lambda *_: False  # the kernel takes nothing at once
    one.send(b"for B", Address("127.0.0.1", other.port))
    assert (await asyncio.wait_for(other.receive(), 5))[0] == b"for B"
    assert one.counters.errors == 1 and one.counters.sent == 1


async def test_received_datagrams_wait_in_a_bounded_queue_and_the_newest_are_dropped(net: RealNet) -> None:
    one, other = await pair(net)
    target = Address("127.0.0.1", other.port)
    total = DATAGRAM_QUEUE_MAX + 200
    for number in range(total):
        one.send(number.to_bytes(4, "big"), target)
        if number % 50 == 0:
            await wait_for(lambda: other.counters.received >= number - 50, "the drain")  # noqa: B023 - waits here
    await wait_for(lambda: other.counters.received == total, "the drain")
    assert other.counters.receive_dropped == 200
    assert (await other.receive())[0] == bytes(4), "the oldest is kept"


async def test_impossible_targets_are_dropped_and_counted(net: RealNet) -> None:
    one, other = await pair(net)
    for host, port in (("not an address", 1), ("", 5), ("127.0.0.1", 70_000), ("127.0.0.1", -1)):
        one.send(b"x", Address(host, port))
    one.send(b"fine", Address("127.0.0.1", other.port))
    assert (await asyncio.wait_for(other.receive(), 5))[0] == b"fine"
    assert one.counters.send_dropped == 4


async def test_closing_ends_the_receiver_and_frees_the_port(net: RealNet) -> None:
    one, other = await pair(net)
    waiting = asyncio.ensure_future(one.receive())
    await asyncio.sleep(0)
    one.close()
    one.close()
    with pytest.raises(ChannelLost):
        await waiting
    one.send(b"x", Address("127.0.0.1", other.port))
    again = await net.bind_datagram(one.port, loopback_only=True)
    assert again.port == one.port


async def test_a_taken_port_is_a_clear_error(net: RealNet) -> None:
    one, _ = await pair(net)
    with pytest.raises(ConfigError, match=f"UDP port {one.port}"):
        await net.bind_datagram(one.port, loopback_only=True)


async def test_named_interfaces_confine_the_sockets(net: RealNet) -> None:
    endpoint = await net.bind_datagram(0, loopback_only=False)
    names = {entry.stream.sockname[0] for entry in endpoint._sockets}
    assert "127.0.0.1" in names and names <= {"127.0.0.1", "::1"}
    for entry in endpoint._sockets:
        assert entry.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 200_000
    with pytest.raises(ConfigError, match="no-such-if"):
        await RealNet(interfaces=["no-such-if"]).bind_datagram(0, loopback_only=False)


async def test_datagrams_are_handed_over_those_that_wait_first(net: RealNet) -> None:
    """A node misses what came before it began to listen, or hears it twice."""
    one, other = await pair(net)
    here = Address("127.0.0.1", other.port)
    one.send(b"0", here)
    await wait_for(lambda: other.counters.received == 1, "the first")
    got: list[bytes] = []
    other.deliver_to(lambda data, _source: got.append(data))
    for number in range(1, 100):
        one.send(b"%d" % number, here)
    await wait_for(lambda: len(got) == 100, "all others")
    assert got == [b"%d" % number for number in range(100)]
