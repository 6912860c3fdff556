"""Moving blobs between nodes.

Owns the message types 64 and 65 and the blob channels.  A blob of several chunks is fetched in three steps: its
manifest (the chunk hashes, in pages), verified against the digest; its chunks, several under way at once, each verified
against the manifest on arrival and written in order; the commit.  A blob of one chunk needs one request: its digest is
the hash of its only chunk.

Invariants: bytes that are not what the digest names never become visible; at most BLOB_BUDGET_CHUNKS chunks are asked
for and not yet written, over all transfers; a chunk that was verified and written is not fetched twice, also when the
channel breaks, as long as this process lives.

Bodies on the wire: MANIFEST [digest, size, page] → the hashes of that page; CHUNK [digest, size, index] → the bytes.
What is not here and what the asker may not read are both answered "not-found".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from p2pcompute.errors import BlobUnavailable, ChannelLost, P2pcError, RemoteProtocolError, StoreError
from p2pcompute.host.blob_digest import HASH_BYTES, chunk_count, chunk_size, hash_chunk, is_manifest
from p2pcompute.host.interfaces import Address, BlobRef, BlobWriter, Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    BLOB_BUDGET_CHUNKS,
    BLOB_CHUNK_BYTES,
    BLOB_CHUNKS_MAX,
    BLOB_CONTROL_WINDOW_CHUNKS,
    BLOB_FETCH_LANES,
    BLOB_FETCHES_MAX,
    BLOB_MANIFEST_PAGE,
    BLOB_PARTIALS_MAX,
    BLOB_REQUEST_S,
    BLOB_SERVES_MAX,
    BLOB_SERVES_WAITING_MAX,
    BLOB_SOURCES_MAX,
    BLOB_TRANSFERS_MAX,
    BLOB_WINDOW_CHUNKS,
)
from p2pcompute.node.bandwidth import BandwidthMeter
from p2pcompute.transport.channels import Channel, Channels, Purpose
from p2pcompute.transport.credentials import PeerInfo
from p2pcompute.wire.fields import listed

_NOT_FOUND: Final = "not-found"
READ_GRACE_S: Final = 2.0
"""How long a peer that may not read yet is kept waiting."""

Source = tuple[bytes, Sequence[Address]]
"""A node that may have a blob: its key, and where it may be reached."""


class BlobMessage(IntEnum):
    """Message types of blobs."""

    MANIFEST = 64
    CHUNK = 65


@dataclass(slots=True)
class BlobCounters:
    """What was moved, and why not."""

    fetched_blobs: int = 0
    fetched_bytes: int = 0
    """Verified and written."""
    shared_fetches: int = 0
    """Fetches that joined a transfer already under way."""
    resumed_transfers: int = 0
    """Transfers that went on from chunks of an earlier one."""
    failed_fetches: int = 0
    """Transfers that no source completed."""
    forged: int = 0
    """Chunks or manifests that were not what the digest names; their source was dropped."""
    lost: int = 0
    """Sources that could not be reached, or whose channel broke."""
    not_found: int = 0
    """Sources that had not what was asked for."""
    partials_dropped: int = 0
    """Broken transfers forgotten because BLOB_PARTIALS_MAX newer ones are kept."""
    served_chunks: int = 0
    served_bytes: int = 0
    refused_reads: int = 0
    """Requests for what is not here or not for the asker."""
    refused_busy: int = 0
    """Requests above BLOB_SERVES_WAITING_MAX of one peer."""


class _Link:
    """Our way to one source."""

    def __init__(self) -> None:
        self.channel: Channel | None = None
        self.dial: asyncio.Task[Channel | P2pcError] | None = None
        self.window = asyncio.Semaphore(BLOB_WINDOW_CHUNKS)
        self.control_window = asyncio.Semaphore(BLOB_CONTROL_WINDOW_CHUNKS)
        self.transfers = asyncio.Semaphore(BLOB_FETCHES_MAX)

    @property
    def room(self) -> asyncio.Semaphore:
        """What bounds the chunks under way on the present channel."""
        is_control = self.channel is not None and self.channel.purpose is Purpose.CONTROL
        return self.control_window if is_control else self.window


@dataclass(slots=True)
class _Partial:
    """A blob of several chunks, as far as it has come."""

    writer: BlobWriter
    chunks: int = 0
    """Verified and written."""
    is_writing: bool = False
    """Stays True when a write was cut short: what is in the file is unknown then."""

    @property
    def is_worth_keeping(self) -> bool:
        return self.chunks > 0 and not self.is_writing


@dataclass(slots=True, eq=False)
class _Transfer:
    """One blob being fetched, for however many wait for it."""

    ref: BlobRef
    done: asyncio.Future[BaseException | None]
    task: asyncio.Task[P2pcError | None] | None = None
    waiting: int = 0
    sources: deque[Source] = field(default_factory=deque)
    """Still to be tried."""
    known: dict[bytes, None] = field(default_factory=dict)
    partial: _Partial | None = None

    def add(self, sources: Sequence[Source]) -> None:
        for key, addresses in sources:
            if key not in self.known and len(self.known) < BLOB_SOURCES_MAX:
                self.known[key] = None
                self.sources.append((key, addresses))


@dataclass(slots=True)
class _Serving:
    """Requests of one peer."""

    waiting: int = 0
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(BLOB_SERVES_MAX))


class BlobExchange:
    """Fetches blobs from peers and serves them.

    Args:
        host: blobs come from and go to `host.store.blobs`.
        channels: of this node.
        scope: owns the transfers; closing it ends them.
        may_read: whether a peer may have a blob.  Asked for every request.
    """

    def __init__(
        self, host: Host, channels: Channels, scope: TaskScope, may_read: Callable[[PeerInfo, BlobRef], bool]
    ) -> None:
        self._blobs = host.store.blobs
        self._channels = channels
        self._scope = scope
        self._may_read = may_read
        self._clock = host.clock
        self.meter = BandwidthMeter()
        self.counters = BlobCounters()
        self._transfers: dict[BlobRef, _Transfer] = {}
        self._partials: dict[BlobRef, _Partial] = {}
        """Broken transfers, oldest first."""
        self._links: dict[bytes, _Link] = {}
        self._serving: dict[bytes, _Serving] = {}
        self._budget = asyncio.Semaphore(BLOB_BUDGET_CHUNKS)
        self._transfer_room = asyncio.Semaphore(BLOB_TRANSFERS_MAX)
        channels.on_request(BlobMessage.MANIFEST, self._serve_manifest)
        channels.on_request(BlobMessage.CHUNK, self._serve_chunk)

    # --- fetching -------------------------------------------------------------------------------

    async def fetch(self, ref: BlobRef, sources: Sequence[Source]) -> None:
        """Return when the blob is here, durable.

        Concurrent fetches of one blob share one transfer and all their sources.  Cancelled: the transfer ends when
        nobody else waits for it; what came of it is kept for the next fetch.

        Args:
            sources: tried in turn, at most BLOB_SOURCES_MAX.  One whose channel breaks is tried a second time, and
                on as long as it gets on; one that sends wrong bytes is not.

        Raises:
            BlobUnavailable: no source has it ("blob-missing"), or none could be reached ("blob-unavailable").
            StoreError: our own disk: "disk-full" …
        """
        if await self._blobs.has(ref):
            return
        transfer = self._transfers.get(ref)
        if transfer is None:
            transfer = self._transfers[ref] = _Transfer(ref, asyncio.get_running_loop().create_future())
            transfer.add(sources)
            self._start(transfer)
        else:
            self.counters.shared_fetches += 1
            transfer.add(sources)
        transfer.waiting += 1
        try:
            error = await asyncio.shield(transfer.done)
        finally:
            transfer.waiting -= 1
            if transfer.waiting == 0 and not transfer.done.done():
                self._forget(transfer)
                assert transfer.task is not None
                transfer.task.cancel()
        if error is not None:
            raise error

    async def fetch_all(self, refs: Sequence[BlobRef], sources: Sequence[Source]) -> None:
        """Return when all blobs are here.  Several are fetched at once; the first error ends it.

        Raises:
            BlobUnavailable, StoreError: as `fetch`.
        """
        waiting = deque(dict.fromkeys(refs))
        errors: list[P2pcError] = []

        async def lane() -> None:
            while waiting and not errors:
                try:
                    await self.fetch(waiting.popleft(), sources)
                except P2pcError as error:
                    errors.append(error)

        if len(waiting) <= 1:
            await lane()
        else:
            await _run_all([lane] * min(len(waiting), BLOB_FETCH_LANES))
        if errors:
            raise errors[0]

    async def close(self) -> None:
        """Drop what came of broken transfers and close the blob channels.  Close the scope first."""
        partials, self._partials = self._partials, {}
        for partial in partials.values():
            await partial.writer.abort()
        links, self._links = self._links, {}
        for link in links.values():
            if link.channel is not None and link.channel.purpose is Purpose.BLOB:
                link.channel.close()

    def _start(self, transfer: _Transfer) -> None:
        task = transfer.task = self._scope.spawn(self._run(transfer), "fetch")
        task.add_done_callback(lambda task: self._ended(transfer, task))

    def _ended(self, transfer: _Transfer, task: asyncio.Task[P2pcError | None]) -> None:
        self._forget(transfer)
        if transfer.done.done():
            return
        if task.cancelled():
            transfer.done.set_result(ChannelLost("the fetch of a blob was ended", "this node is shutting down"))
        else:
            transfer.done.set_result(task.exception() or task.result())

    def _forget(self, transfer: _Transfer) -> None:
        if self._transfers.get(transfer.ref) is transfer:
            del self._transfers[transfer.ref]

    async def _run(self, transfer: _Transfer) -> P2pcError | None:
        """Fetch from one source after the other.  Cancelled: what came is kept."""
        ref = transfer.ref
        if chunk_count(ref.size) > BLOB_CHUNKS_MAX:
            return _unavailable(ref, ["it is larger than a blob may be"], "blob-too-large")
        if chunk_count(ref.size) == 1:
            return await self._try_sources(transfer, self._fetch_single)
        async with self._transfer_room:
            transfer.partial = self._partials.pop(ref, None)
            if transfer.partial is not None:
                self.counters.resumed_transfers += 1
            try:
                return await self._try_sources(transfer, self._fetch_chunks)
            finally:
                await self._put_aside(transfer)

    async def _try_sources(
        self, transfer: _Transfer, fetch: Callable[[_Transfer, _Link], Awaitable[None]]
    ) -> P2pcError | None:
        reasons: list[str] = []
        is_missing_everywhere = True
        second_tries: dict[bytes, None] = {}
        try:
            while transfer.sources:
                source = key, _ = transfer.sources.popleft()
                before = _chunks_of(transfer)
                is_open = False
                try:
                    link = await self._open(source)
                    is_open = True
                    await fetch(transfer, link)
                except StoreError as error:
                    return error
                except RemoteProtocolError as error:
                    self.counters.forged += 1
                    reasons.append(error.what)
                    self._drop(key)
                except P2pcError as error:
                    reasons.append(str(error))
                    if error.code == _NOT_FOUND:
                        self.counters.not_found += 1
                        continue
                    self.counters.lost += 1
                    if is_open and (_chunks_of(transfer) > before or key not in second_tries):
                        second_tries[key] = None
                        transfer.sources.append(source)
                else:
                    self.counters.fetched_blobs += 1
                    return None
                is_missing_everywhere = False
            self.counters.failed_fetches += 1
            code = "blob-missing" if reasons and is_missing_everywhere else None
            return _unavailable(transfer.ref, reasons or ["no source is known"], code)
        finally:
            self._forget(transfer)  # sources that come from now on would not be tried any more

    async def _fetch_single(self, transfer: _Transfer, link: _Link) -> None:
        ref = transfer.ref
        async with link.room:
            await self._budget.acquire()
            try:
                data = await self._request_chunk(link, ref, 0, ref.digest)
            except BaseException:  # tidied up after, and raised again
                self._budget.release()
                raise
        try:
            await self._blobs.put(data)  # several wait for the disk together, while others are under way
        finally:
            self._budget.release()
        self.counters.fetched_bytes += ref.size

    async def _fetch_chunks(self, transfer: _Transfer, link: _Link) -> None:
        ref = transfer.ref
        async with link.transfers:
            manifest = await self._request_manifest(link, ref)
            if transfer.partial is None:
                transfer.partial = _Partial(await self._blobs.create())
            await _ChunkRun(self, transfer.partial, ref, manifest, link).run()
            partial, transfer.partial = transfer.partial, None
            await partial.writer.commit(ref)

    async def _put_aside(self, transfer: _Transfer) -> None:
        """Keep what came of a broken transfer for the next one, or drop it."""
        partial, transfer.partial = transfer.partial, None
        if partial is None:
            return
        if not partial.is_worth_keeping:
            await partial.writer.abort()
            return
        former = self._partials.pop(transfer.ref, None)
        self._partials[transfer.ref] = partial
        if former is not None:
            await former.writer.abort()
        while len(self._partials) > BLOB_PARTIALS_MAX:
            self.counters.partials_dropped += 1
            await self._partials.pop(next(iter(self._partials))).writer.abort()

    # --- asking ---------------------------------------------------------------------------------

    async def _request_manifest(self, link: _Link, ref: BlobRef) -> bytes:
        """Return the verified chunk hashes.

        Raises:
            RemoteProtocolError: they are not what the digest names.
        """
        count = chunk_count(ref.size)
        pages = []
        for first in range(0, count, BLOB_MANIFEST_PAGE):
            page = await _request(link, BlobMessage.MANIFEST, ref, first // BLOB_MANIFEST_PAGE)
            if len(page) != HASH_BYTES * min(BLOB_MANIFEST_PAGE, count - first):
                raise RemoteProtocolError("a manifest page of a wrong length")
            pages.append(page)
        manifest = b"".join(pages)
        if not is_manifest(ref, manifest):
            raise RemoteProtocolError("a manifest that is not the blob's")
        return manifest

    async def _request_chunk(self, link: _Link, ref: BlobRef, index: int, digest: bytes) -> bytes:
        """Return the verified bytes of a chunk.

        Raises:
            RemoteProtocolError: they are not what the manifest names.
        """
        self.meter.began(self._clock.now())
        data = b""
        try:
            data = await _request(link, BlobMessage.CHUNK, ref, index)
        finally:
            self.meter.ended(self._clock.now(), len(data))
        if len(data) != chunk_size(ref.size, index) or hash_chunk(data) != digest:
            raise RemoteProtocolError("a chunk that is not the blob's")
        return data

    # --- channels -------------------------------------------------------------------------------

    async def _open(self, source: Source) -> _Link:
        """Return the link to a source, with a channel that was open just now; dialled once for all who wait.

        Raises:
            P2pcError: it cannot be reached.
        """
        key, addresses = source
        link = self._links.get(key)
        if link is None:
            for other in [k for k, known in self._links.items() if not _is_in_use(known)]:
                del self._links[other]
            link = self._links[key] = _Link()
        if link.channel is not None and link.channel.is_open:
            return link
        if link.dial is None:
            link.dial = self._scope.spawn(self._dial(key, addresses), "dial")
            link.dial.add_done_callback(lambda _: setattr(link, "dial", None))
        channel = await asyncio.shield(link.dial)
        if not isinstance(channel, Channel):
            raise channel
        link.channel = channel
        return link

    async def _dial(self, key: bytes, addresses: Sequence[Address]) -> Channel | P2pcError:
        """Return a blob channel, or else the control channel that the peer has opened: it may be unreachable for us.

        An error is a result, because several wait for it or nobody does.
        """
        try:
            return await self._channels.connect(key, addresses, purpose=Purpose.BLOB)
        except P2pcError as error:
            control = self._channels.get(key) if isinstance(error, ChannelLost) else None
            return control or error

    def _drop(self, key: bytes) -> None:
        """Close the channel to a source that sent wrong bytes."""
        link = self._links.pop(key, None)
        if link is not None and link.channel is not None:
            link.channel.close()

    # --- serving --------------------------------------------------------------------------------

    async def _serve_manifest(self, channel: Channel, body: Any) -> bytes:
        ref, page = _read_request(body, BLOB_MANIFEST_PAGE)

        async def read() -> bytes:
            manifest = await self._blobs.manifest(ref)
            start = page * BLOB_MANIFEST_PAGE * HASH_BYTES
            return manifest[start : start + BLOB_MANIFEST_PAGE * HASH_BYTES]

        return await self._serve(channel, ref, read)

    async def _serve_chunk(self, channel: Channel, body: Any) -> bytes:
        ref, index = _read_request(body, 1)

        async def read() -> bytes:
            data = await self._blobs.read(ref, index * BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES)
            self.counters.served_chunks += 1
            self.counters.served_bytes += len(data)
            return data

        return await self._serve(channel, ref, read)

    async def _is_allowed(self, peer: PeerInfo, ref: BlobRef) -> bool:
        """Whether a peer may read; what allows it (that it took tasks from another worker) may still be on its way."""
        clock = self._clock
        give_up_at = clock.now() + READ_GRACE_S
        while not self._may_read(peer, ref):
            if clock.now() >= give_up_at:
                return False
            await clock.sleep(READ_GRACE_S / 10)
        return True

    async def _serve(self, channel: Channel, ref: BlobRef, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Read when the peer has taken what it got before."""
        key = channel.peer.key
        serving = self._serving.setdefault(key, _Serving())
        if serving.waiting >= BLOB_SERVES_WAITING_MAX:
            self.counters.refused_busy += 1
            raise P2pcError("too many blob requests of this peer wait", "", "ask again later", code="busy")
        serving.waiting += 1
        try:
            async with serving.room:
                await channel.drain()
                if not await self._is_allowed(channel.peer, ref):
                    raise _not_found(self.counters)
                try:
                    return await read()
                except StoreError as error:  # not here, or not readable: nothing that the peer could change
                    raise _not_found(self.counters, is_damaged=error.code == "blob-damaged") from None
        finally:
            serving.waiting -= 1
            if serving.waiting == 0:
                self._serving.pop(key, None)


class _ChunkRun:
    """Fetches the chunks that are missing from one source, several at once, and writes them in order."""

    def __init__(self, exchange: BlobExchange, partial: _Partial, ref: BlobRef, manifest: bytes, link: _Link) -> None:
        self._exchange = exchange
        self._partial = partial
        self._ref = ref
        self._manifest = manifest
        self._link = link
        self._count = chunk_count(ref.size)
        self._next = partial.chunks
        """The chunk to ask for next."""
        self._turns: dict[int, asyncio.Future[None]] = {}
        """Lanes with a verified chunk that wait for the chunks before it."""
        self._error: P2pcError | None = None

    async def run(self) -> None:
        """Return when all chunks are written.

        Raises:
            P2pcError: the first thing that went wrong; the chunks written before it stay.
        """
        lanes = min(BLOB_WINDOW_CHUNKS, self._count - self._next)
        await _run_all([self._lane] * lanes)
        if self._error is not None:
            raise self._error

    async def _lane(self) -> None:
        # Whoever holds a place in window and budget has the lowest chunk not yet asked for, so the chunk that the
        # others wait for is always under way itself: no deadlock, however transfers share the budget.
        while self._next < self._count and self._error is None:
            async with self._link.room, self._exchange._budget:
                if self._next >= self._count or self._error is not None:
                    return
                index = self._next
                self._next += 1
                try:
                    await self._fetch(index)
                except P2pcError as error:
                    self._fail(error)

    async def _fetch(self, index: int) -> None:
        digest = self._manifest[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        data = await self._exchange._request_chunk(self._link, self._ref, index, digest)
        partial = self._partial
        if partial.chunks != index and self._error is None:
            turn = self._turns[index] = asyncio.get_running_loop().create_future()
            await turn
        if self._error is not None:
            return
        partial.is_writing = True
        await partial.writer.write(data)
        partial.is_writing = False
        partial.chunks += 1
        self._exchange.counters.fetched_bytes += len(data)
        self._wake(partial.chunks)

    def _wake(self, index: int) -> None:
        turn = self._turns.pop(index, None)
        if turn is not None and not turn.done():
            turn.set_result(None)

    def _fail(self, error: P2pcError) -> None:
        if self._error is None:
            self._error = error
        for index in list(self._turns):
            self._wake(index)


async def _run_all(works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run all at once and return when all have ended.  Cancelled: all are ended first."""
    scope = TaskScope("blobs")
    tasks = [scope.spawn(work(), "lane") for work in works]
    try:
        for task in tasks:
            await task
    finally:
        await scope.close()


async def _request(link: _Link, message: BlobMessage, ref: BlobRef, number: int) -> bytes:
    """Ask for a page or a chunk.

    Raises:
        P2pcError: not answered, or refused.
        RemoteProtocolError: the answer is not bytes.
    """
    channel = link.channel
    if channel is None:
        raise ChannelLost("the channel to a source of a blob is gone")
    data = await channel.request(message, [ref.digest, ref.size, number], timeout_s=BLOB_REQUEST_S)
    if not isinstance(data, bytes):
        raise RemoteProtocolError("a blob request answered by something else than bytes")
    return data


def _read_request(body: Any, chunks_per_number: int) -> tuple[BlobRef, int]:
    """Return the blob and the page or chunk number of a request.

    Raises:
        RemoteProtocolError: malformed or out of range.
    """
    digest, size, number = listed(body, 3, "blob request")
    if not (isinstance(digest, bytes) and len(digest) == HASH_BYTES and type(size) is int and type(number) is int):
        raise RemoteProtocolError("not a blob request")
    if not (0 <= size <= BLOB_CHUNKS_MAX * BLOB_CHUNK_BYTES and 0 <= number * chunks_per_number < chunk_count(size)):
        raise RemoteProtocolError("a blob request out of range")
    return BlobRef(digest, size), number


def _chunks_of(transfer: _Transfer) -> int:
    return 0 if transfer.partial is None else transfer.partial.chunks


def _is_in_use(link: _Link) -> bool:
    return link.dial is not None or (link.channel is not None and link.channel.is_open)


def _not_found(counters: BlobCounters, *, is_damaged: bool = False) -> P2pcError:
    counters.refused_reads += 1
    what = "the blob was damaged on disk here" if is_damaged else "there is no such blob here"
    return P2pcError(what, code=_NOT_FOUND)


def _unavailable(ref: BlobRef, reasons: Sequence[str], code: str | None) -> BlobUnavailable:
    return BlobUnavailable(
        f"the blob {ref.digest.hex()[:16]} ({ref.size} bytes) could not be fetched",
        "; ".join(dict.fromkeys(reasons)),
        "the node that has it must be reachable; then try again",
        code=code,
    )
