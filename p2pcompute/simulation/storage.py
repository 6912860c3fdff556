"""Simulated storage: tables and blobs in dictionaries, durable after a modelled disk sync.

A `SimDisk` outlives its host; a `SimStore` is one process's use of it.  What a commit writes becomes visible and
durable at the same moment, the end of its sync: stricter than a database that shows its own writes early, so code
that forgets to wait is found.  A crash during a sync keeps a prefix of the transactions of that sync, whole ones,
as a journal would; nobody has been told yet, so both outcomes are right.
"""

from __future__ import annotations

import bisect
import zlib
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError, StoreError
from p2pcompute.host.blob_digest import BlobHasher
from p2pcompute.host.interfaces import BlobRef, Rng, Write
from p2pcompute.limits import BLOB_CHUNK_BYTES, CACHE_BYTES_DEFAULT
from p2pcompute.simulation.loop import SimulationLoop
from p2pcompute.simulation.trace import Kind

SYNC_S: Final = 0.002
"""Mean time of a disk sync: a consumer SSD."""
_INSORT_MAX: Final = 64
"""Up to so many new keys are inserted one by one into the sorted list; more are sorted in."""


class _Table:
    """Rows, and their keys in order once somebody has scanned."""

    __slots__ = ("_added", "_keys", "rows")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self._keys: list[bytes] | None = None
        self._added: list[bytes] = []

    def put(self, key: bytes, value: bytes) -> None:
        if self._keys is not None and key not in self.rows:
            self._added.append(key)
        self.rows[key] = value

    def remove(self, key: bytes) -> bool:
        if self.rows.pop(key, None) is None:
            return False
        if self._keys is not None:
            keys = self.keys()
            del keys[bisect.bisect_left(keys, key)]
        return True

    def keys(self) -> list[bytes]:
        """All keys, ascending."""
        if self._keys is None:
            self._keys = sorted(self.rows)
        elif len(self._added) <= _INSORT_MAX:
            for key in self._added:
                bisect.insort(self._keys, key)
            self._added.clear()
        else:
            self._keys += self._added
            self._keys.sort()
            self._added.clear()
        return self._keys

    def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        keys = self.keys()
        start = bisect.bisect_left(keys, prefix)
        if after is not None:
            start = max(start, bisect.bisect_right(keys, after))
        found = []
        for position in range(start, min(start + max(0, limit), len(keys))):
            key = keys[position]
            if not key.startswith(prefix):
                break
            found.append((key, self.rows[key]))
        return found

    def remove_prefix(self, prefix: bytes) -> int:
        keys = self.keys()
        start = end = bisect.bisect_left(keys, prefix)
        while end < len(keys) and keys[end].startswith(prefix):
            del self.rows[keys[end]]
            end += 1
        del keys[start:end]
        return end - start


@dataclass(frozen=True, slots=True)
class DiskImage:
    """What a disk held at some moment."""

    rows: dict[str, dict[bytes, bytes]]
    blobs: dict[bytes, bytes]


class SimDisk:
    """What is durable.  Survives crashes and restarts of its host."""

    def __init__(self) -> None:
        self.tables: dict[str, _Table] = {}
        self.blobs: dict[bytes, bytes] = {}
        """Content by digest."""
        self.is_full = False
        """A fault: while True nothing can be written."""
        self.is_broken = False
        """A fault: while True every read and every write is an I/O error."""
        self.slowness = 1.0
        """A fault: syncs take so many times longer."""

    def image(self) -> DiskImage:
        """Return a copy of what is durable now, for `restore`."""
        return DiskImage({name: dict(table.rows) for name, table in self.tables.items()}, dict(self.blobs))

    def restore(self, image: DiskImage) -> None:
        """Go back to `image`: what was durable since then is lost.  Only while the host is down."""
        self.erase()
        for name, rows in image.rows.items():
            self.table(name).rows.update(rows)
        self.blobs.update(image.blobs)

    def erase(self) -> None:
        """Lose everything.  Only while the host is down."""
        self.tables.clear()
        self.blobs.clear()

    def table(self, name: str) -> _Table:
        table = self.tables.get(name)
        if table is None:
            table = self.tables[name] = _Table()
        return table

    def apply(self, writes: Sequence[Write]) -> None:
        for name, key, value in writes:
            if value is None:
                self.table(name).remove(key)
            else:
                self.table(name).put(key, value)


_Change = Callable[[SimDisk], int]


class SimStore:
    """The simulated `Store`.

    Args:
        disk: what was kept so far.
        number: of the host, for the trace.
        rng: its stream "disk" draws the length of syncs and what a crash keeps.
        sync_s: mean seconds of a sync; one runs at a time and takes everything that waits.
    """

    def __init__(self, loop: SimulationLoop, disk: SimDisk, number: int, rng: Rng, *, sync_s: float = SYNC_S) -> None:
        self._loop = loop
        self._disk = disk
        self._number = number
        self._rng = rng
        self._sync_s = sync_s
        self._queue: list[tuple[_Change, Future[int]]] = []
        self._syncing: list[tuple[_Change, Future[int]]] = []
        self._is_closed = False
        self._is_dead = False
        self._blobs = SimBlobs(self, disk)

    @property
    def blobs(self) -> SimBlobs:
        return self._blobs

    def commit(self, writes: Sequence[Write]) -> Future[Any]:
        """See `Store`.  The order of commits is the order of the calls, awaited or not."""
        kept = tuple(writes)
        return self.change(lambda disk: self._apply(disk, kept))

    def _apply(self, disk: SimDisk, writes: tuple[Write, ...]) -> int:
        disk.apply(writes)
        digest = 0
        for table, key, value in writes:
            digest = zlib.crc32(b"" if value is None else value, zlib.crc32(key, zlib.crc32(table.encode(), digest)))
        self._loop.trace.record(self._loop.time(), self._number, Kind.COMMIT, digest)
        return len(writes)

    def change(self, change: _Change) -> Future[int]:
        """Queue a change of the disk; the result is there when it is durable."""
        future: Future[int] = self._loop.create_future()
        if self._is_closed:
            future.set_exception(_closed())
            return future
        self._queue.append((change, future))
        if not self._syncing:
            self._sync()
        return future

    def _sync(self) -> None:
        self._syncing, self._queue = self._queue, []
        duration = self._sync_s * self._disk.slowness * (0.5 + self._rng.stream("disk").random())
        self._loop.post(self._loop.time() + duration, self._synced, None)

    def _synced(self, _: None) -> None:
        if self._is_dead:
            return
        batch, self._syncing = self._syncing, []
        for change, future in batch:
            if self._disk.is_full or self._disk.is_broken:
                if not future.done():
                    future.set_exception(_broken() if self._disk.is_broken else _full())
                continue
            result = change(self._disk)
            if not future.done():
                future.set_result(result)
        if self._queue:
            self._sync()

    def crash(self) -> None:
        """Lose what is not durable."""
        if self._is_dead:
            return
        self._is_dead = self._is_closed = True
        is_writable = not (self._disk.is_full or self._disk.is_broken)
        kept = self._rng.stream("disk").randrange(len(self._syncing) + 1) if is_writable else 0
        for change, _ in self._syncing[:kept]:
            change(self._disk)
        self._syncing, self._queue = [], []

    async def get(self, table: str, key: bytes) -> bytes | None:
        self.check_open()
        found = self._disk.tables.get(table)
        return None if found is None else found.rows.get(key)

    async def scan(
        self, table: str, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        self.check_open()
        found = self._disk.tables.get(table)
        return [] if found is None else found.scan(prefix, after, limit)

    async def delete_prefix(self, table: str, prefix: bytes) -> int:
        return await self.change(lambda disk: disk.table(table).remove_prefix(prefix))

    async def close(self) -> None:
        """Wait for what was queued; then every call raises StoreError."""
        if not self._is_closed:
            last = self.change(lambda _: 0)
            self._is_closed = True
            try:
                await last
            except StoreError:
                return  # the disk is full: those who committed have been told

    def check_open(self) -> None:
        """Raise StoreError after `close`, and when nothing can be read."""
        if self._is_closed:
            raise _closed()
        if self._disk.is_broken:
            raise _broken()


def _full() -> StoreError:
    return StoreError("the store cannot be written", "the disk is full", "free some space", code="disk-full")


def _broken() -> StoreError:
    return StoreError("the store failed", "input/output error", "look at the disk", code="store-io")


def _closed() -> StoreError:
    return StoreError("the store is closed", "the node is stopping", code="store-closed")


class SimBlobs:
    """The simulated `BlobStore`: contents in memory, without files."""

    def __init__(self, store: SimStore, disk: SimDisk) -> None:
        self._store = store
        self._disk = disk

    async def put(self, data: bytes) -> BlobRef:
        hasher = BlobHasher()
        hasher.update(data)
        ref = hasher.finish()
        await self.keep(ref, bytes(data))
        return ref

    async def keep(self, ref: BlobRef, data: bytes) -> None:
        """Make content durable under its reference, which is not checked again."""

        def change(disk: SimDisk) -> int:
            # The same bytes object for equal content keeps one copy per disk.
            disk.blobs.setdefault(ref.digest, data)
            return len(data)

        await self._store.change(change)

    async def put_path(self, path: str, *, move: bool = False, pin: bool = False) -> BlobRef:
        """Refused: there are no files here.

        Raises:
            LocalProtocolError: always; tests of files need the real host.
        """
        raise LocalProtocolError("the simulated host has no files", f"wanted {path}")

    async def create(self) -> SimBlobWriter:
        self._store.check_open()
        return SimBlobWriter(self)

    async def has(self, ref: BlobRef) -> bool:
        self._store.check_open()
        return self._find(ref) is not None

    def _find(self, ref: BlobRef) -> bytes | None:
        data = self._disk.blobs.get(ref.digest)
        return data if data is not None and len(data) == ref.size else None

    def _get(self, ref: BlobRef) -> bytes:
        self._store.check_open()
        data = self._find(ref)
        if data is None:
            raise StoreError(
                f"the blob {ref.digest.hex()[:16]} is not here",
                "it was never stored or was deleted",
                code="blob-missing",
            )
        return data

    async def read(self, ref: BlobRef, offset: int = 0, count: int | None = None) -> bytes:
        data = self._get(ref)
        return data[offset:] if count is None else data[offset : offset + count]

    async def manifest(self, ref: BlobRef) -> bytes:
        hasher = BlobHasher()
        hasher.update(self._get(ref))
        return hasher.manifest

    def path(self, ref: BlobRef) -> str | None:
        """None: there are no files here."""
        return None

    def is_damaged(self, ref: BlobRef) -> bool:
        """False: nothing is damaged here."""
        return False

    def pin(self, refs: Iterable[BlobRef]) -> None:
        """Nothing is ever evicted here."""

    def unpin(self, refs: Iterable[BlobRef]) -> None:
        """See `pin`."""

    async def delete(self, refs: Sequence[BlobRef]) -> int:
        wanted = tuple(refs)

        def change(disk: SimDisk) -> int:
            freed = 0
            for ref in wanted:
                if self._find(ref) is not None:
                    freed += len(disk.blobs.pop(ref.digest))
            return freed

        return await self._store.change(change)

    def trouble(self) -> None:
        """None: a full disk is told by commits here."""

    @property
    def bytes_max(self) -> int:
        """As a real one's."""
        return CACHE_BYTES_DEFAULT

    @property
    def is_over(self) -> bool:
        """False: nothing is ever evicted here."""
        return False

    async def trim(self, refs: Sequence[BlobRef] | None = None) -> int:
        """See `is_over`."""
        return 0

    async def stream(self, ref: BlobRef) -> AsyncIterator[bytes]:
        data = self._get(ref)
        for start in range(0, len(data), BLOB_CHUNK_BYTES):
            yield data[start : start + BLOB_CHUNK_BYTES]


class SimBlobWriter:
    """The simulated `BlobWriter`."""

    def __init__(self, blobs: SimBlobs) -> None:
        self._blobs = blobs
        self._parts: list[bytes] = []
        self._is_done = False

    async def write(self, data: bytes) -> None:
        if self._is_done:
            raise LocalProtocolError("a blob writer was used after its end")
        self._parts.append(bytes(data))

    async def commit(self, expected: BlobRef | None = None) -> BlobRef:
        if self._is_done:
            raise LocalProtocolError("a blob writer was used after its end")
        self._is_done = True
        data = b"".join(self._parts)
        self._parts.clear()
        hasher = BlobHasher()
        hasher.update(data)
        ref = hasher.finish()
        if expected is not None and ref != expected:
            raise RemoteProtocolError("a blob has another content than its name says", expected.digest.hex()[:16])
        await self._blobs.keep(ref, data)
        return ref

    async def abort(self) -> None:
        self._is_done = True
        self._parts.clear()
