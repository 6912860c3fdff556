"""The host seam: the only way in which a node touches the world.

Owns no behaviour.  Real implementations: `p2pcompute.host.real_*`; simulated: `p2pcompute.simulation.host`.
Invariant: code above this line never calls `time.*`, `random.*`, `os.urandom`, sockets, files or processes.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol, TypeAlias

from p2pcompute.errors import StoreError
from p2pcompute.host.runs import Runner


class Address(NamedTuple):
    """A UDP or TCP endpoint.  `host` is an IPv4 or IPv6 literal without brackets or scope."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# --- time, randomness, crypto ---------------------------------------------------------------------


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds."""

    def wall(self) -> float:
        """Unix seconds; may be skewed or step.  Only for what leaves the node or is read by people."""

    async def sleep(self, delay_s: float) -> None: ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer: ...

    def timeout(self, delay_s: float | None) -> AbstractAsyncContextManager[object]:
        """A context that raises TimeoutError after `delay_s`, like `asyncio.timeout`."""


class Rng(Protocol):
    def stream(self, name: str) -> random.Random:
        """The named stream, always the same object for one name: an extra draw in one part never shifts another."""


class Crypto(Protocol):
    """Ed25519 and secure randomness.  Hashes and MACs are deterministic and come from hashlib directly."""

    def __hash__(self) -> int:
        """Those that are equal verify alike: what one has verified, another need not."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """Unpredictable bytes for keys, tokens and nonces."""

    def public_key(self, seed: bytes) -> bytes:
        """The 32-byte public key of a 32-byte secret seed."""

    def sign(self, seed: bytes, message: bytes) -> bytes:
        """A 64-byte signature (RFC 8032)."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool: ...

    def tag(self, seed: bytes, public_key: bytes, message: bytes) -> bytes:
        """64 bytes that only the holders of these two keys can make, the same for both (X25519, BLAKE2b).

        With a key that no pair of keys has, they are bytes that nobody else can make.
        """


# --- network --------------------------------------------------------------------------------------


class DatagramEndpoint(Protocol):
    """One bound UDP port, IPv4 and IPv6 where the host has them."""

    @property
    def port(self) -> int: ...

    def send(self, data: bytes, to: Address) -> None:
        """Send or drop; never raises for the network and never blocks.  Drops are counted by the host."""

    async def receive(self) -> tuple[bytes, Address]:
        """The next datagram.  The queue behind it is bounded (DATAGRAM_QUEUE_MAX), the newest is dropped.

        Raises:
            ChannelLost: the endpoint was closed.
        """

    def deliver_to(self, take: Callable[[bytes, Address], None]) -> None:
        """Hand every datagram to `take` as it comes, instead of to `receive`: that saves two turns of the event loop
        for each.  `take` does not raise and does not take long."""

    def close(self) -> None: ...


class ByteStream(Protocol):
    """An ordered, reliable, encrypted byte stream (TLS 1.3 in the real host)."""

    @property
    def peer_address(self) -> Address: ...

    @property
    def binding(self) -> bytes:
        """SHA-256 of the listener's leaf certificate, the same 32 bytes at both ends."""

    async def read(self, max_bytes: int) -> bytes:
        """Between 1 and `max_bytes` bytes, or b"" when the peer has closed.

        Raises:
            ChannelLost: the connection broke.
        """

    def write(self, data: bytes) -> None:
        """Queue bytes to be sent; silently dropped after close."""

    @property
    def unsent_bytes(self) -> int: ...

    async def drain(self) -> None:
        """Wait until the peer has taken enough for more to be written.

        Raises:
            ChannelLost: the connection broke.
        """

    def close(self) -> None:
        """Send what is queued, then close."""

    def abort(self) -> None:
        """Close at once and forget what is queued."""


class StreamListener(Protocol):
    @property
    def port(self) -> int: ...

    @property
    def binding(self) -> bytes:
        """SHA-256 of the leaf certificate that this listener shows."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LanAnnouncement:
    """What a node says about itself on the LAN.  Unauthenticated: a hint where to knock, nothing more."""

    public_key: bytes
    name: str
    port: int
    group_hint: bytes
    """Four bytes that members recognise; b"" for a node without a group."""
    invites: tuple[int, ...] = ()
    """Numbers of its open invitations by words, at most LAN_INVITES_MAX."""
    admits: tuple[str, ...] = ()
    """Ways in which it lets others into its group without an invitation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanSighting:
    """Another node's announcement, as seen."""

    announcement: LanAnnouncement
    addresses: tuple[str, ...]
    is_present: bool
    """False when it was withdrawn or has expired."""


class SrvRecord(NamedTuple):
    """Where a service is (RFC 2782), as a name server said it: nothing is checked."""

    priority: int
    """The lowest is tried first."""
    weight: int
    """Among equals, how likely to be tried first."""
    port: int
    target: str
    """A host name without the last dot; empty: there is no such service."""


class DnsKind(StrEnum):
    """Record types that a node asks for."""

    SRV = "SRV"
    TXT = "TXT"
    A = "A"
    AAAA = "AAAA"


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsAnswer:
    """Records of one name and type, DNS_RECORDS_MAX at most; only the field of the asked type is filled."""

    places: tuple[SrvRecord, ...] = ()
    texts: tuple[tuple[bytes, ...], ...] = ()
    """Each record is several strings of up to 255 bytes."""
    hosts: tuple[str, ...] = ()
    """IPv4 or IPv6 literals."""
    ttl_s: float = 0.0


class Net(Protocol):
    async def bind_datagram(self, port: int, *, loopback_only: bool) -> DatagramEndpoint:
        """Bind a UDP port (0: any) on the interfaces that the settings allow."""

    async def listen_stream(
        self,
        port: int,
        *,
        loopback_only: bool,
        admit: Callable[[bytes, Address], bool],
        accept: Callable[[ByteStream, bytes], None],
    ) -> StreamListener:
        """Listen on a TCP port.

        Args:
            admit: given the first PREAMBLE_BYTES bytes of a connection and its source, says whether it may go
                on to the TLS handshake.  A connection that is not admitted is closed without a byte.
            accept: given the ready stream and its preamble.
        """

    async def dial_stream(self, address: Address, preamble: bytes, *, timeout_s: float) -> ByteStream:
        """Connect, send the preamble, complete TLS.  The certificate is not checked here: its hash is `binding`.

        Raises:
            ChannelLost: refused, unreachable, not admitted, or not ready within `timeout_s`.
        """

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Addresses of a host name or literal; empty when it does not resolve."""

    async def ask_dns(self, name: str, kind: DnsKind) -> DnsAnswer:
        """The records of an absolute domain name; none when the name has none of this kind.  At most DNS_QUERY_S_MAX.

        Raises:
            DnsError: there is no such name (code "dns-unknown"), or nobody says.
        """

    def local_addresses(self) -> list[str]:
        """Addresses of the allowed interfaces at which others may reach this machine, best first."""

    async def announce(self, announcement: LanAnnouncement | None) -> None:
        """Announce on the LAN, replace the announcement, or withdraw it (None)."""

    async def browse(self, seen: Callable[[LanSighting], None] | None) -> None:
        """Report what others announce, or stop (None)."""

    async def close(self) -> None: ...


# --- storage --------------------------------------------------------------------------------------


class BlobRef(NamedTuple):
    """A content-addressed blob: `digest` (32 bytes, see `BlobStore`) and size in bytes."""

    digest: bytes
    size: int


class BlobWriter(Protocol):
    """A blob being written; nothing is visible before `commit`."""

    async def write(self, data: bytes) -> None: ...

    async def commit(self, expected: BlobRef | None = None) -> BlobRef:
        """Make it durable and visible.

        Raises:
            RemoteProtocolError: the content is not what `expected` names; nothing was kept.
        """

    async def abort(self) -> None: ...


class BlobStore(Protocol):
    """Content-addressed storage.

    The digest of a blob of one chunk (≤ BLOB_CHUNK_BYTES) is BLAKE3 of its content; of a longer one
    BLAKE3(b"p2pc blob tree" ‖ size as 8 bytes big-endian ‖ the BLAKE3 of each chunk), so that every chunk is
    verifiable on arrival once the manifest (the chunk hashes) is verified against the digest.
    """

    async def put(self, data: bytes) -> BlobRef: ...

    async def put_path(self, path: str, *, move: bool = False, pin: bool = False) -> BlobRef:
        """Take a file in, streamed.  `move` allows its inode to be taken over; with `pin` it is pinned on return.
        Real host only."""

    async def create(self) -> BlobWriter: ...

    async def has(self, ref: BlobRef) -> bool: ...

    async def read(self, ref: BlobRef, offset: int = 0, count: int | None = None) -> bytes:
        """Bytes of a blob.

        Raises:
            StoreError: it is not here.
        """

    async def manifest(self, ref: BlobRef) -> bytes:
        """The concatenated chunk hashes, 32 bytes each."""

    def path(self, ref: BlobRef) -> str | None:
        """The read-only file that holds it, where the host has files and the blob is here and whole."""

    def is_damaged(self, ref: BlobRef) -> bool:
        """Whether it is missing because what the disk held was not what its name says."""

    def pin(self, refs: Iterable[BlobRef]) -> None:
        """Keep blobs from eviction and deletion, here already or not.  Pins are counted and gone at the next start."""

    def unpin(self, refs: Iterable[BlobRef]) -> None:
        """Take back one pin of each."""

    async def delete(self, refs: Sequence[BlobRef]) -> int:
        """Forget blobs that are not pinned; returns the bytes freed."""

    def trouble(self) -> StoreError | None:
        """Why nothing more is taken now, although it may be later; None: it is."""

    @property
    def bytes_max(self) -> int:
        """The cap: while more is here, what is not pinned and not just used goes."""

    @property
    def is_over(self) -> bool:
        """Whether more is here than the cap, as far as it was measured."""

    async def trim(self, refs: Sequence[BlobRef] | None = None) -> int:
        """Forget what is not pinned while more is here than the cap, however lately it was used.

        Args:
            refs: of these only.  None: of all, the least recently used first: for a moment when nobody is about to pin
                anything.

        Returns:
            The bytes freed.
        """

    def stream(self, ref: BlobRef) -> AsyncIterator[bytes]:
        """The content in chunks of at most BLOB_CHUNK_BYTES."""


class Write(NamedTuple):
    """One change of a transaction: set `key` in `table` to `value`, or remove it when None."""

    table: str
    key: bytes
    value: bytes | None


class Store(Protocol):
    """Durable tables of ordered byte keys, and blobs.  A crash keeps exactly what was committed."""

    @property
    def blobs(self) -> BlobStore: ...

    def commit(self, writes: Sequence[Write]) -> Awaitable[None]:
        """Apply all or nothing; when the awaitable is done they are durable.  Commits happen in call order and
        several waiting ones may share one disk sync.

        Raises:
            StoreError: disk full or broken; nothing of this call was applied.
        """

    async def get(self, table: str, key: bytes) -> bytes | None: ...

    async def scan(
        self, table: str, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """Up to `limit` pairs in key order whose key starts with `prefix` and is greater than `after`."""

    async def delete_prefix(self, table: str, prefix: bytes) -> int: ...

    async def close(self) -> None: ...


# --- machine --------------------------------------------------------------------------------------

Value: TypeAlias = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing that is known of a node, as it was measured there."""

    value: Value
    """Bytes and counts are int; several words (installed applications, labels) are a tuple."""
    measured_s: float
    """Wall time of the node that measured it."""
    lifetime_s: float | None = None
    """How long it may be believed; None: until the node says otherwise."""
    accuracy: float | None = None
    """± in the value's own unit; None: exact, or nobody knows."""


Attributes: TypeAlias = Mapping[str, Attribute]
"""By flat dotted name.  What is not known is left out."""

RUNTIMES: Final = ("apptainer", "bubblewrap", "docker", "podman", "uv", "wasm")
"""What `has` names by what it is for; a probe tries whether it works.  Every other word is an executable."""


class Probe(Protocol):
    """What a machine says of itself.  Measures when it is asked, not before, and never blocks the event loop."""

    async def attributes(self, names: Collection[str] | None = None) -> Attributes:
        """What is known of this machine; what changes is a few seconds old at most.  Never raises.

        Args:
            names: those that matter; others are given when they are known already.  None: all matter.
        """

    async def has(self, words: Sequence[str]) -> Mapping[str, bool]:
        """Whether tasks find applications and runtimes (`RUNTIMES`) of these names here.

        A word about which nothing can be known is left out.  Never raises.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Everything a node stands on."""

    clock: Clock
    rng: Rng
    crypto: Crypto
    net: Net
    store: Store
    runner: Runner
    probe: Probe
