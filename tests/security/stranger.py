"""Somebody who speaks the handshake by hand, over plain sockets and from an address of his choice."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct
import time
from typing import Any

from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_streams import dialler_context
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.transport import handshake
from p2pcompute.transport.credentials import ANYBODY, WORDS_KEY
from p2pcompute.transport.messages import MessageType, Purpose, decode_body, encode_message, peek

CRYPTO = RealCrypto()


class Closed(Exception):
    """The other side has closed the connection."""


class Stranger:
    """One connection to a node, from `host`, which may be any address of 127.0.0.0/8."""

    def __init__(
        self, port: int, *, key: bytes = WORDS_KEY, listener: bytes = ANYBODY, host: str = "127.0.0.1"
    ) -> None:
        self.identity: Identity = create_identity(CRYPTO)
        self.session = b""
        self.listener = b""
        plain = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(host, 0))
        nonce = os.urandom(handshake.PREAMBLE_NONCE_BYTES)
        try:
            plain.sendall(handshake.make_preamble(key, listener=listener, wall=time.time(), nonce=nonce))
            self.stream: ssl.SSLSocket = dialler_context().wrap_socket(plain)
        except (OSError, ssl.SSLError) as error:
            plain.close()
            raise Closed from error

    def send(self, message_type: int, body: Any, request_id: int = 0) -> None:
        data = encode_message(message_type, request_id, body)
        try:
            self.stream.sendall(struct.pack(">I", len(data)) + data)
        except OSError as error:
            raise Closed from error

    def receive(self) -> tuple[int, Any]:
        """Type and body of the next frame."""
        (size,) = struct.unpack(">I", self._read(4))
        data = self._read(size)
        return peek(data)[0], decode_body(data)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                part = self.stream.recv(count - len(data))
            except OSError as error:
                raise Closed from error
            if not part:
                raise Closed
            data += part
        return data

    def binding(self) -> bytes:
        certificate = self.stream.getpeercert(binary_form=True)
        assert certificate is not None
        return hashlib.sha256(certificate).digest()

    def prove(self, purpose: Purpose = Purpose.JOIN) -> tuple[int, Any]:
        """Prove a fresh key; returns the listener's answer."""
        _type, body = self.receive()
        hello = handshake.check_hello(CRYPTO, body, binding=self.binding(), listener=None)
        self.listener = hello.key
        auth = handshake.make_auth(
            self.identity, purpose=purpose, binding=self.binding(), nonce=hello.nonce, listener=hello.key,
            instance=b"stranger", hello={"name": "stranger"},
        )  # fmt: skip
        self.session = handshake.session_of(
            binding=self.binding(), nonce=hello.nonce, listener=hello.key, dialler=self.identity.public_key
        )
        self.send(MessageType.AUTH, auth)
        return self.receive()

    def close(self) -> None:
        self.stream.close()
