"""Somebody who speaks the protocol by hand: a stranger, and a member who has turned bad."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

import cbor2

from p2pcompute.errors import ChannelLost, ProtocolError
from p2pcompute.host.interfaces import Address, ByteStream, Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.node.doors import Visitor
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.transport import handshake
from p2pcompute.transport.channels import Channels, Purpose
from p2pcompute.transport.credentials import invite_key
from p2pcompute.transport.messages import MessageType, decode_body, peek
from p2pcompute.trust.groups import Group, found_group
from p2pcompute.trust.invites import Token, parse_token
from p2pcompute.wire.frames import FrameReader

ANSWER_S = 0.5


def encode(value: Any) -> bytes:
    """CBOR of anything, also of what ours refuses to write."""
    return cbor2.dumps(value, canonical=True)


class Attacker:
    """A node's own parts, driven by hand.  Becomes a member by a token, as anybody would."""

    def __init__(self) -> None:
        absent: Any = None
        self.net = RealNet(interfaces=["lo"])
        self.crypto = RealCrypto()
        self.clock = RealClock()
        self.host = Host(
            clock=self.clock, rng=SystemRng(), crypto=self.crypto, net=self.net, store=absent, runner=absent,
            probe=absent,
        )  # fmt: skip
        self.identity: Identity = create_identity(self.crypto)
        self.group: Group = found_group(self.identity, self.crypto, "home", time.time())
        self.target = Address("127.0.0.1", 1)
        self.target_key = bytes(32)

    async def join(self, text: str) -> None:
        """Become a member of the group that the token is for; its maker is the target."""
        token = parse_token(text)
        credentials = self._credentials()
        scope = TaskScope("attacker")
        channels = Channels(self.host, credentials, scope)
        channel = await channels.connect(
            token.inviter, token.addresses, purpose=Purpose.JOIN, invite_secret=token.secret
        )
        self.group = (await Visitor(self.host, credentials).join_by_token(channel, token)).group
        self.target, self.target_key = channel.address, token.inviter
        await channels.close()
        await scope.close()

    def _credentials(self) -> GroupCredentials:
        return GroupCredentials(
            self.host, self.identity, self.group, "eve",
            lambda: {"boot": b"eve's boot", "build": "0", "python": [3, 11], "slots": 2, "port": 1},
        )  # fmt: skip

    def preamble(self, key: bytes | None = None) -> bytes:
        return handshake.make_preamble(
            self.group.network_key if key is None else key, listener=self.target_key, wall=time.time(),
            nonce=self.crypto.random_bytes(handshake.PREAMBLE_NONCE_BYTES),
        )  # fmt: skip

    async def knock(self, key: bytes | None = None) -> Raw:
        """TLS with a right preamble, and the listener's HELLO."""
        raw = Raw(await self.net.dial_stream(self.target, self.preamble(key), timeout_s=5.0))
        _type, body = await raw.next(5.0)
        raw.hello = handshake.check_hello(self.crypto, body, binding=raw.stream.binding, listener=self.target_key)
        return raw

    def auth(self, raw: Raw, purpose: Purpose = Purpose.CONTROL) -> dict[str, Any]:
        return handshake.make_auth(
            self.identity, purpose=purpose, binding=raw.stream.binding, nonce=raw.hello.nonce,
            listener=self.target_key, instance=b"instance", hello=self._credentials().hello(),
        )  # fmt: skip

    async def channel(self, purpose: Purpose = Purpose.CONTROL, token: Token | None = None) -> Raw:
        """A proven channel whose end is driven by hand."""
        raw = await self.knock(None if token is None else invite_key(token.secret))
        raw.send(encode([int(MessageType.AUTH), 0, self.auth(raw, purpose)]))
        message_type, body = await raw.next(5.0)
        assert message_type == MessageType.WELCOME, body
        return raw

    async def close(self) -> None:
        await self.net.close()


class Raw:
    """One end of a TLS connection."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.hello: Any = None
        self._reader = FrameReader()
        self._frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        """One frame with this body."""
        self.stream.write(len(frame).to_bytes(4, "big") + frame)

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        self.stream.write(data)

    async def next(self, limit_s: float) -> tuple[int, Any]:
        async with asyncio.timeout(limit_s):
            while not self._frames:
                data = await self.stream.read(65536)
                if not data:
                    raise ChannelLost("closed by the other side")
                self._frames += self._reader.feed(data)
        frame = self._frames.pop(0)
        return peek(frame)[0], decode_body(frame)

    async def is_open(self) -> bool:
        """Read what has come; false when the other side has closed."""
        try:
            async with asyncio.timeout(0.001):
                while data := await self.stream.read(65536):
                    with contextlib.suppress(ProtocolError):
                        self._frames = self._reader.feed(data)
                return False
        except TimeoutError:
            return True
        except ChannelLost:
            return False

    def close(self) -> None:
        self.stream.abort()


def udp_socket() -> socket.socket:
    """A new source of datagrams: on loopback every port has its own allowance."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock
