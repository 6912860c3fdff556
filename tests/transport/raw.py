"""A dialler by hand: does the handshake step by step, so that a test may break any step."""

from __future__ import annotations

from typing import Any

from p2pcompute.host.interfaces import ByteStream
from p2pcompute.identity.keys import Identity
from p2pcompute.transport import handshake
from p2pcompute.transport.handshake import Hello
from p2pcompute.transport.messages import MessageType, Purpose, decode_body, encode_message, peek
from p2pcompute.wire.frames import FrameReader, frame
from tests.transport.hosts import NETWORK_KEY, Node


def preamble_for(node: Node, listener: bytes, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "key": NETWORK_KEY,
        "listener": listener,
        "wall": node.host.clock.wall(),
        "nonce": node.host.crypto.random_bytes(12),
    } | changes
    return handshake.make_preamble(values.pop("key"), **values)


async def knock(node: Node, target: Node, preamble: bytes | None = None) -> ByteStream:
    preamble = preamble or preamble_for(node, target.key)
    return await node.world.on(node.host, node.host.net.dial_stream(target.address, preamble, timeout_s=5.0))


class Raw:
    """The dialler's end of a stream."""

    def __init__(self, node: Node, stream: ByteStream) -> None:
        self.node = node
        self.stream = stream
        self.reader = FrameReader()
        self.frames: list[bytes] = []

    def write(self, message_type: int, body: Any, request_id: int = 0) -> None:
        self.stream.write(frame(encode_message(message_type, request_id, body)))

    async def next(self) -> tuple[int, Any]:
        """The next message: (type, body)."""
        while not self.frames:
            data = await self.node.world.on(self.node.host, self.stream.read(65536))
            if not data:
                raise EOFError
            self.frames += self.reader.feed(data)
        data = self.frames.pop(0)
        return peek(data)[0], decode_body(data)

    async def is_closed(self) -> bool:
        """Read to the end; true when nothing but the end came."""
        try:
            await self.next()
        except Exception:
            return True
        return False

    async def hello(self, target: Node) -> Hello:
        message_type, body = await self.next()
        assert message_type == MessageType.HELLO
        return handshake.check_hello(self.node.host.crypto, body, binding=self.stream.binding, listener=target.key)

    def auth(self, hello: Hello, **changes: Any) -> dict[str, Any]:
        identity: Identity = self.node.credentials.identity
        values: dict[str, Any] = {
            "purpose": Purpose.CONTROL,
            "binding": self.stream.binding,
            "nonce": hello.nonce,
            "listener": hello.key,
            "instance": b"instance",
            "hello": self.node.credentials.hello(),
        } | changes
        return handshake.make_auth(identity, **values)


async def raw_channel(node: Node, target: Node, **changes: Any) -> Raw:
    """A proven connection whose end is driven by the test."""
    raw = Raw(node, await knock(node, target))
    hello = await raw.hello(target)
    raw.write(MessageType.AUTH, raw.auth(hello, **changes))
    message_type, _ = await raw.next()
    assert message_type == MessageType.WELCOME
    return raw
