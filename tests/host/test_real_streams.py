"""TLS streams of the real host: who gets in, who does not, and how much of anybody is held."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from p2pcompute.errors import ChannelLost, ConfigError
from p2pcompute.host import real_net
from p2pcompute.host.interfaces import Address, ByteStream
from p2pcompute.host.real_net import RealListener, RealNet
from p2pcompute.host.real_streams import RealStream
from p2pcompute.limits import (
    HANDSHAKES_MAX,
    PREAMBLE_BYTES,
    STREAM_BUFFER_BYTES,
    STREAM_UNREAD_BYTES_MAX,
    STREAM_UNSENT_BYTES_HIGH,
)
from tests.transport.hosts import wait_for

PREAMBLE = b"p" * PREAMBLE_BYTES


class Listening:
    """A listener that keeps what it accepts."""

    def __init__(self, net: RealNet) -> None:
        self.net = net
        self.accepted: list[RealStream] = []
        self.preambles: list[bytes] = []
        self.listener: RealListener

    async def start(self) -> Listening:
        self.listener = await self.net.listen_stream(
            0, loopback_only=True, admit=lambda preamble, source: preamble == PREAMBLE, accept=self.accept
        )
        return self

    def accept(self, stream: ByteStream, preamble: bytes) -> None:
        assert isinstance(stream, RealStream)
        self.accepted.append(stream)
        self.preambles.append(preamble)

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.listener.port)

    async def pair(self) -> tuple[RealStream, RealStream]:
        """Both ends of a new stream: the dialler's, the listener's."""
        count = len(self.accepted)
        stream = await self.net.dial_stream(self.address, PREAMBLE, timeout_s=5)
        await wait_for(lambda: len(self.accepted) > count, "accepting")
        assert isinstance(stream, RealStream)
        return stream, self.accepted[-1]


@pytest.fixture
async def net() -> AsyncIterator[RealNet]:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    net = RealNet(interfaces=["lo"], on_error=lambda name, error: failures.append((name, error)))
    yield net
    await net.close()
    assert not failures


@pytest.fixture
async def listening(net: RealNet) -> Listening:
    return await Listening(net).start()


async def read_exactly(stream: RealStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await asyncio.wait_for(stream.read(count - len(data)), 5)
        assert part
        data += part
    return data


@contextlib.asynccontextmanager
async def raw_connection(address: Address) -> AsyncIterator[socket.socket]:
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, tuple(address))
        yield sock
    finally:
        sock.close()


async def received_until_end(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 4096), 5):
            data += part
    return data


# --- getting in -----------------------------------------------------------------------------------


async def test_both_ends_know_the_certificate_and_it_is_tls_1_3(listening: Listening) -> None:
    one, other = await listening.pair()
    assert one.binding == other.binding == listening.listener.binding and len(one.binding) == 32
    assert listening.preambles == [PREAMBLE]
    assert one.peer_address == listening.address and other.peer_address.host == "127.0.0.1"
    secure = one._transport.get_extra_info("ssl_object")
    assert secure.version() == "TLSv1.3"
    assert secure.session is None or not secure.session.has_ticket
    again = await Listening(listening.net).start()
    assert again.listener.binding != listening.listener.binding, "a new certificate per start"


async def test_ipv6_and_ipv4_share_the_port_number(listening: Listening) -> None:
    if not real_net._has_ipv6("::1"):
        pytest.skip("this machine has no IPv6 loopback")
    stream = await listening.net.dial_stream(Address("::1", listening.listener.port), PREAMBLE, timeout_s=5)
    assert stream.peer_address.host == "::1"


@pytest.mark.parametrize("junk", [b"x" * PREAMBLE_BYTES, b"GET / HTTP/1.1\r\n\r\n" * 9, b"\x16\x03\x01" + bytes(300)])
async def test_a_stranger_gets_no_byte(listening: Listening, junk: bytes) -> None:
    async with raw_connection(listening.address) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, junk)
        assert await received_until_end(sock) == b""
    assert listening.listener.counters.refused == 1 and not listening.accepted


async def test_a_plain_tls_caller_without_a_preamble_gets_no_byte(listening: Listening) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(*listening.address, ssl=context)
    assert not listening.accepted


async def test_older_tls_is_refused(listening: Listening) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with raw_connection(listening.address) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, PREAMBLE)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(sock=sock, ssl=context, server_hostname="x")
    await wait_for(lambda: listening.listener.counters.broken == 1, "the broken handshake")
    assert not listening.accepted


async def test_a_preamble_in_pieces_is_admitted(listening: Listening) -> None:
    async with raw_connection(listening.address) as sock:
        for byte in PREAMBLE:
            await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))
            await asyncio.sleep(0)
        _, stream = await asyncio.get_running_loop().create_connection(
            lambda: RealStream(None, listening.address, lambda _: None),
            sock=sock,
            ssl=real_net.dialler_context(),
            server_hostname="",
        )
        await wait_for(lambda: listening.accepted, "accepting")
        stream.abort()


async def test_silence_is_cut_off(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_net, "PREAMBLE_S_MAX", 0.1)
    async with raw_connection(listening.address) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, PREAMBLE[:-1])
        assert await received_until_end(sock) == b""
    assert listening.listener.counters.silent == 1


async def test_many_silent_connections_do_not_shut_others_out(listening: Listening) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(HANDSHAKES_MAX + 5):
            await stack.enter_async_context(raw_connection(listening.address))
        counters = listening.listener.counters
        await wait_for(lambda: counters.accepted == HANDSHAKES_MAX + 5, "accepting all")
        assert counters.evicted == 5 and len(listening.listener._silent) == HANDSHAKES_MAX
        one, _ = await listening.pair()
        assert counters.evicted == 6
        one.abort()


async def test_tls_handshakes_that_hang_are_bounded(listening: Listening) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(HANDSHAKES_MAX):
            sock = await stack.enter_async_context(raw_connection(listening.address))
            await asyncio.get_running_loop().sock_sendall(sock, PREAMBLE)
        await wait_for(lambda: listening.listener._handshakes == HANDSHAKES_MAX, "all in TLS")
        with pytest.raises(ChannelLost):
            await listening.net.dial_stream(listening.address, PREAMBLE, timeout_s=5)
        assert listening.listener.counters.busy == 1
    await wait_for(lambda: listening.listener._handshakes == 0, "their end")


async def test_dialling_nobody_or_somebody_silent_is_channel_lost(net: RealNet) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = Address(*sock.getsockname())
        with pytest.raises(ChannelLost):
            await net.dial_stream(address, PREAMBLE, timeout_s=5)
        sock.listen()
        with pytest.raises(ChannelLost, match="not ready within"):
            await net.dial_stream(address, PREAMBLE, timeout_s=0.1)
    for impossible in (Address("no address", 1), Address("127.0.0.1", 70_000)):
        with pytest.raises(ChannelLost):
            await net.dial_stream(impossible, PREAMBLE, timeout_s=5)


async def test_a_closed_listener_frees_its_port_and_leaves_streams_alone(listening: Listening) -> None:
    one, other = await listening.pair()
    port = listening.listener.port
    await listening.listener.close()
    await listening.listener.close()
    with pytest.raises(ChannelLost):
        await listening.net.dial_stream(listening.address, PREAMBLE, timeout_s=5)
    one.write(b"still here")
    assert await read_exactly(other, 10) == b"still here"
    again = await listening.net.listen_stream(
        port, loopback_only=True, admit=lambda preamble, source: True, accept=listening.accept
    )
    assert again.port == port
    with pytest.raises(ConfigError, match=f"TCP port {port}"):
        await listening.net.listen_stream(
            port, loopback_only=True, admit=lambda preamble, source: True, accept=listening.accept
        )


# --- bytes ----------------------------------------------------------------------------------------


async def test_bytes_pass_in_both_directions(listening: Listening) -> None:
    one, other = await listening.pair()
    blob = bytes(range(256)) * 4096
    one.write(blob)
    other.write(blob[::-1])
    assert await read_exactly(other, len(blob)) == blob
    assert await read_exactly(one, len(blob)) == blob[::-1]
    one.write(b"abc")
    await wait_for(lambda: other._unread, "arrival")
    assert [await other.read(2), await other.read(2)] == [b"ab", b"c"]


async def test_a_reader_that_does_not_read_holds_the_sender_back(listening: Listening) -> None:
    one, other = await listening.pair()
    piece, sent = bytes(200_000), 0
    while one.unsent_bytes <= STREAM_UNSENT_BYTES_HIGH:
        one.write(piece)
        sent += len(piece)
        await asyncio.sleep(0)
        assert sent < 64 * 1024 * 1024, "no back-pressure"
    draining = asyncio.ensure_future(one.drain())
    await wait_for(lambda: other._is_reading_paused, "the pause")
    assert not draining.done()
    assert other._unread_bytes <= STREAM_UNREAD_BYTES_MAX + 4 * STREAM_BUFFER_BYTES
    assert len(await read_exactly(other, sent)) == sent
    await asyncio.wait_for(draining, 5)
    assert one.unsent_bytes == 0


async def test_close_sends_what_is_queued_and_then_ends(listening: Listening) -> None:
    one, other = await listening.pair()
    one.write(bytes(3_000_000))
    one.close()
    one.write(b"dropped")
    assert len(await read_exactly(other, 3_000_000)) == 3_000_000
    assert await asyncio.wait_for(other.read(10), 5) == b""
    assert await other.read(10) == b""
    with pytest.raises(ChannelLost):
        await one.read(10)
    with pytest.raises(ChannelLost):
        await other.drain()
    other.write(b"into the void")
    other.close()
    other.abort()
    await wait_for(lambda: not listening.net._streams, "both ends to be gone")


async def test_abort_is_channel_lost_here_and_an_end_there(listening: Listening) -> None:
    one, other = await listening.pair()
    here = asyncio.ensure_future(one.read(10))
    there = asyncio.ensure_future(other.read(10))
    await asyncio.sleep(0)
    one.abort()
    with pytest.raises(ChannelLost):
        await asyncio.wait_for(here, 5)
    with contextlib.suppress(ChannelLost):
        assert await asyncio.wait_for(there, 5) == b""
    await wait_for(lambda: not listening.net._streams, "both ends to be gone")


async def test_a_reset_is_channel_lost(listening: Listening) -> None:
    one, other = await listening.pair()
    sock = one._transport.get_extra_info("socket")
    # Lingering 0 s makes the kernel answer with a reset instead of an orderly end.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    waiting = asyncio.ensure_future(other.read(10))
    await asyncio.sleep(0)
    one.abort()
    with pytest.raises(ChannelLost):
        await asyncio.wait_for(waiting, 5)


async def test_a_peer_that_never_reads_cannot_hold_a_closing_stream(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pcompute.host.real_streams.STREAM_CLOSE_S", 0.1)
    one, _ = await listening.pair()
    one.write(bytes(40_000_000))
    one.close()
    await wait_for(lambda: one not in listening.net._streams, "the end")


async def test_a_stream_holds_small_buffers(listening: Listening) -> None:
    for stream in await listening.pair():
        protocol = stream._transport._ssl_protocol
        assert len(protocol._ssl_buffer) == STREAM_BUFFER_BYTES == protocol.max_size


async def test_closing_the_net_ends_everything(listening: Listening) -> None:
    one, other = await listening.pair()
    waiting = asyncio.ensure_future(one.read(1))
    async with raw_connection(listening.address):
        await wait_for(lambda: listening.listener._silent, "a silent one")
        await listening.net.close()
        await listening.net.close()
    with pytest.raises(ChannelLost):
        await waiting
    with pytest.raises(ChannelLost):
        await other.read(1)


@pytest.fixture(scope="module")
def uvloop() -> Any:
    """With the two pipes that it opens once for the process."""
    module = pytest.importorskip("uvloop", reason="runs with uvloop: pip install 'p2pcompute[fast]'")
    loop = module.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return module


def test_streams_work_on_uvloop_too(uvloop: Any) -> None:
    """It is chosen wherever it is installed; then no channel would open."""

    async def talk() -> tuple[bytes, bytes]:
        net = RealNet()
        try:
            ours, theirs = await (await Listening(net).start()).pair()
            ours.write(b"ping")
            theirs.write(b"pong")
            return await theirs.read(100), await ours.read(100)
        finally:
            await net.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(talk()) == (b"ping", b"pong")
