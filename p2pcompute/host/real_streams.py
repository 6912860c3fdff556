"""TLS 1.3 byte streams of the real host.

Source: RFC 8446; the standard library's `ssl` and asyncio do TLS.
Deviations: certificates are self-signed, made at each start of a listener and not checked by the dialler: who
is at the other end is proven above this layer, by a signature over the leaf certificate's hash (`binding`).
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import os
import ssl
import tempfile
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from p2pcompute.errors import ChannelLost
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import (
    STREAM_BUFFER_BYTES,
    STREAM_CLOSE_S,
    STREAM_UNREAD_BYTES_MAX,
    STREAM_UNSENT_BYTES_HIGH,
)

_CERTIFICATE_DAYS: Final = 3650
_TLS_UNSENT_BYTES_HIGH: Final = 16 * 1024
"""Encrypted bytes behind a full socket buffer at which we stop encrypting more."""


def listener_context() -> tuple[ssl.SSLContext, bytes]:
    """Return a TLS 1.3 context with a fresh key, and the SHA-256 of its leaf certificate (32 bytes)."""
    key_pem, certificate_pem, binding = _self_signed()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # No session tickets: every channel proves both keys anew, and the tickets would be bytes for nothing.
    context.num_tickets = 0
    # ssl loads keys from files only.  This one lives in a directory of our own for a moment.
    with tempfile.TemporaryDirectory(prefix="p2pc-tls-") as directory:
        path = os.path.join(directory, "leaf.pem")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key_pem + certificate_pem)
        context.load_cert_chain(path)
    return context, binding


def dialler_context() -> ssl.SSLContext:
    """Return a TLS 1.3 context that accepts any certificate; see the module's docstring for who checks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _self_signed() -> tuple[bytes, bytes, bytes]:
    """A new P-256 key and certificate: (key PEM, certificate PEM, SHA-256 of the certificate's DER)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    # One constant name: a certificate must not tell strangers who we are.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "p2pcompute")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    binding = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
    return key_pem, certificate.public_bytes(serialization.Encoding.PEM), binding


def _shrink_read_buffer(transport: Any) -> None:
    """Give one TLS connection a read buffer of STREAM_BUFFER_BYTES instead of 256 KiB.

    asyncio has no parameter for it.  Its `SSLProtocol` reads into a buffer of `max_size` bytes that it replaces
    when that is too small, so both are set on this one instance; the class stays as it is for the application
    that embeds us.  Another event loop without these names keeps its own size, which costs memory only.
    """
    protocol: Any = getattr(transport, "_ssl_protocol", None)
    if hasattr(protocol, "max_size") and isinstance(getattr(protocol, "_ssl_buffer", None), bytearray):
        buffer = bytearray(STREAM_BUFFER_BYTES)
        protocol.max_size = STREAM_BUFFER_BYTES
        protocol._ssl_buffer, protocol._ssl_buffer_view = buffer, memoryview(buffer)
    if hasattr(transport, "set_read_buffer_limits"):
        transport.set_read_buffer_limits(high=STREAM_BUFFER_BYTES)


class RealStream(asyncio.Protocol):
    """Implements `host.interfaces.ByteStream` on one asyncio TLS transport.

    Reading pauses at STREAM_UNREAD_BYTES_MAX.  Bytes to send wait here and go to TLS in pieces of
    STREAM_BUFFER_BYTES while the socket takes them, so at most about 200 KiB of them are out of our sight.

    Args:
        binding: the listener's; None at the dialler, who takes it from the certificate that it was shown.
        on_end: called once when the connection is gone.
    """

    def __init__(self, binding: bytes | None, peer_address: Address, on_end: Callable[[RealStream], None]) -> None:
        self._binding = binding
        self._peer_address = peer_address
        self._on_end = on_end
        self._transport: Any = None
        self._unread: deque[bytes | memoryview] = deque()
        self._unread_bytes = 0
        self._is_reading_paused = False
        self._unsent: deque[bytes | memoryview] = deque()
        self._unsent_bytes = 0
        self._is_writing_paused = False
        self._has_eof = False
        self._is_closing = False
        self._is_lost = False
        self._reason = ""
        self._reader: asyncio.Future[None] | None = None
        self._drainers: dict[asyncio.Future[None], None] = {}
        self._close_timer: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        _shrink_read_buffer(transport)
        self._transport.set_write_buffer_limits(high=_TLS_UNSENT_BYTES_HIGH, low=0)
        if self._binding is None:
            certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            self._binding = hashlib.sha256(certificate or b"").digest()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > STREAM_UNREAD_BYTES_MAX and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> None:
        """The peer has closed.  TLS answers by closing as well, so nothing more can be sent."""
        self._has_eof = True
        self._wake_reader()
        self._wake_drainers()

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._reason = str(error) if error is not None else "closed"
        self._unsent.clear()
        self._unsent_bytes = 0
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._wake_reader()
        self._wake_drainers()
        self._on_end(self)

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._pump()

    # --- ByteStream -------------------------------------------------------------------------------

    @property
    def peer_address(self) -> Address:
        return self._peer_address

    @property
    def binding(self) -> bytes:
        assert self._binding is not None, "set before anybody has the stream"
        return self._binding

    @property
    def is_closing(self) -> bool:
        """Whether the connection has ended, or is about to."""
        return self._is_lost or self._transport is None or self._transport.is_closing()

    async def read(self, max_bytes: int) -> bytes:
        """Between 1 and `max_bytes` bytes, or b"" at the end; for one reader at a time.

        Raises:
            ChannelLost: the connection broke or was closed here.
        """
        while not self._unread:
            if self._is_closing:
                raise ChannelLost("the connection was closed here")
            if self._has_eof:
                return b""
            if self._is_lost:
                raise ChannelLost("the connection is gone", self._reason)
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        chunk = self._unread[0]
        if len(chunk) <= max_bytes:
            self._unread.popleft()
        else:
            view = memoryview(chunk)
            chunk, self._unread[0] = view[:max_bytes], view[max_bytes:]
        self._unread_bytes -= len(chunk)
        if self._is_reading_paused and self._unread_bytes <= STREAM_UNREAD_BYTES_MAX // 2:
            self._is_reading_paused = False
            if not self._is_lost and not self._has_eof:
                self._transport.resume_reading()
        return bytes(chunk)

    def write(self, data: bytes) -> None:
        if self._is_closing or self._is_lost or not data:
            return
        self._unsent_bytes += len(data)
        if len(data) <= STREAM_BUFFER_BYTES:
            self._unsent.append(data)
        else:
            view = memoryview(data)
            self._unsent.extend(
                view[start : start + STREAM_BUFFER_BYTES] for start in range(0, len(data), STREAM_BUFFER_BYTES)
            )
        self._pump()

    @property
    def unsent_bytes(self) -> int:
        """Bytes not yet given to TLS; see the class for what is beyond."""
        return self._unsent_bytes

    async def drain(self) -> None:
        """Wait until at most STREAM_UNSENT_BYTES_HIGH bytes are unsent.

        Raises:
            ChannelLost: the connection broke or was closed here.
        """
        while True:
            if self._is_lost or self._is_closing or self._has_eof:
                raise ChannelLost("the connection is gone", self._reason)
            if self._unsent_bytes <= STREAM_UNSENT_BYTES_HIGH:
                return
            waiter = asyncio.get_running_loop().create_future()
            self._drainers[waiter] = None
            try:
                await waiter
            finally:
                self._drainers.pop(waiter, None)

    def close(self) -> None:
        """Send what is queued, then close; after STREAM_CLOSE_S close in any case."""
        if self._is_closing or self._is_lost:
            return
        self._is_closing = True
        self._drop_unread()
        self._close_timer = asyncio.get_running_loop().call_later(STREAM_CLOSE_S, self.abort)
        self._wake_reader()
        self._wake_drainers()
        self._pump()

    def abort(self) -> None:
        """Close at once and forget what is queued."""
        if self._is_lost:
            return
        self._is_closing = True
        self._drop_unread()
        self._unsent.clear()
        self._unsent_bytes = 0
        self._wake_reader()
        self._wake_drainers()
        self._transport.abort()

    # --- inside -----------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hand bytes to TLS while it takes them; close behind the last one when closing."""
        if self._is_lost:
            return
        if self._transport.is_closing():  # the peer has closed; nothing can be sent any more
            self._unsent.clear()
            self._unsent_bytes = 0
            return
        while self._unsent and not self._is_writing_paused:
            piece = self._unsent.popleft()
            self._unsent_bytes -= len(piece)
            self._transport.write(piece)
        if self._unsent_bytes <= STREAM_UNSENT_BYTES_HIGH:
            self._wake_drainers()
        if self._is_closing and not self._unsent:
            self._transport.close()

    def _drop_unread(self) -> None:
        self._unread.clear()
        self._unread_bytes = 0
        if self._is_reading_paused:
            # TLS cannot shut down while its incoming side stands still.
            self._is_reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_drainers(self) -> None:
        for waiter in list(self._drainers):
            if not waiter.done():
                waiter.set_result(None)
