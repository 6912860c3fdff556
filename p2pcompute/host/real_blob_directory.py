"""A directory of blobs: where each is, what is read of it, and whether it is what its name says.

Nothing is given out that was not compared with its digest in this life of the node: a file is hashed at its first use,
and what it was then (inode, size, time of modification) is remembered.  One that does not fit its name is moved to
`damaged/` and counts as missing.

What is written, and what goes when there is too much, is `real_blobs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, TypeVar

from p2pcompute.errors import P2pcError, StoreError
from p2pcompute.host.blob_digest import HASH_BYTES, BlobHasher, chunk_count, hash_chunk, is_manifest
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.limits import (
    BLOB_CHUNK_BYTES,
    BLOB_DAMAGED_BYTES_MAX,
    BLOB_MANIFESTS_MAX,
    BLOB_SMALL_BYTES,
    BLOB_THREADS,
    BLOB_VERIFIED_MAX,
)

log = logging.getLogger("p2pcompute.store")

_T = TypeVar("_T")

MANIFEST_SUFFIX: Final = ".chunks"
COPY_BYTES: Final = 4 * BLOB_CHUNK_BYTES
TOUCH_S: Final = 60.0
"""A use within this time of the last one is not written down."""


@dataclass(slots=True)
class BlobCounters:
    """What the blob store did since it was opened."""

    blobs_put: int = 0
    """Blobs that were new."""
    bytes_put: int = 0
    duplicates: int = 0
    """Puts of what was here already."""
    evicted: int = 0
    evicted_bytes: int = 0
    damaged: int = 0
    """Files whose content did not fit their name; they were moved aside."""
    disk_full: int = 0


class BlobDirectory:
    """The part of the real `BlobStore` that looks at what is there."""

    def __init__(self, directory: Path | str, *, is_durable: bool) -> None:
        """Open or create the directory and remove what a crash has left in `tmp/`.

        Args:
            is_durable: False for a directory that goes with the process: nothing is synced to the disk.

        Raises:
            OSError: the directory cannot be made.
        """
        self.directory = Path(directory).absolute()
        self.counters = BlobCounters()
        self._is_durable = is_durable
        self._tmp = self.directory / "tmp"
        if self._tmp.is_dir():
            shutil.rmtree(self._tmp)
        self._tmp.mkdir(mode=0o700, parents=True)
        self._damaged = self.directory / "damaged"
        self._verified: dict[bytes, tuple[int, int, int]] = {}
        """Digest → (inode, size, mtime in ns) of the file that was found to fit it; the oldest go first."""
        self._manifests: dict[bytes, bytes] = {}
        """Of blobs that are being read in pieces; the oldest go first."""
        self._memory_lock = threading.Lock()
        self._names = itertools.count()
        self._pins: dict[bytes, int] = {}
        self._pins_lock = threading.Lock()
        self._total: int | None = None
        self._total_lock = threading.Lock()
        self._is_shut = False
        self._pool = ThreadPoolExecutor(BLOB_THREADS, thread_name_prefix="p2pc-blobs")

    # --- what is here ----------------------------------------------------------------------------------

    async def has(self, ref: BlobRef) -> bool:
        """Whether the blob is here and whole; counts as a use.  A large one is hashed in a thread at its first use."""
        status = self._status(ref)
        if status is None:
            return False
        if ref.size <= BLOB_SMALL_BYTES or self._is_shut or self._is_verified(ref.digest, status):
            return self.path(ref) is not None
        return await self._run(lambda: self.path(ref) is not None)

    def path(self, ref: BlobRef) -> str | None:
        """Return the read-only file that holds the blob, or None; counts as a use.

        Costs one stat, and at the first use in the life of this object the hashing of the file: ask `has` before,
        where an event loop runs.
        """
        status = self._status(ref)
        if status is None or not (self._is_verified(ref.digest, status) or self._verify(ref)):
            return None
        name = self._name(ref.digest)
        if time.time() - status.st_mtime > TOUCH_S:
            with contextlib.suppress(OSError):
                os.utime(name)
                self._remember(ref.digest, os.stat(name))
        return name

    def is_damaged(self, ref: BlobRef) -> bool:
        """Whether the blob is missing because its file had another content."""
        return self._status(ref) is None and os.path.exists(self._damaged / ref.digest.hex())

    def pin(self, refs: Iterable[BlobRef]) -> None:
        """Keep blobs from eviction and deletion, whether they are here yet or not.  Pins are counted and volatile."""
        with self._pins_lock:
            for ref in refs:
                self._pins[ref.digest] = self._pins.get(ref.digest, 0) + 1

    def unpin(self, refs: Iterable[BlobRef]) -> None:
        """Take back one pin of each."""
        with self._pins_lock:
            for ref in refs:
                count = self._pins.get(ref.digest, 0) - 1
                if count > 0:
                    self._pins[ref.digest] = count
                else:
                    self._pins.pop(ref.digest, None)

    async def total_bytes(self) -> int:
        """Return the size of all blobs and manifests here."""
        return await self._run(self._measured)

    # --- reading ---------------------------------------------------------------------------------------

    async def read(self, ref: BlobRef, offset: int = 0, count: int | None = None) -> bytes:
        """Return bytes of a blob: up to `count` from `offset`, fewer at its end.

        Raises:
            StoreError: "blob-missing": it is not here.  "blob-damaged": its file had another content.
        """
        return await self._run(lambda: self._read(ref, offset, count))

    def read_now(self, ref: BlobRef) -> bytes:
        """Return the content of a blob.  Blocks: for threads that run no event loop.

        Raises:
            StoreError: it is not here, or cannot be read.
        """
        try:
            return self._read(ref, 0, None)
        except OSError as error:
            raise self._failure(error) from error

    async def manifest(self, ref: BlobRef) -> bytes:
        """Return the chunk hashes, 32 bytes each.

        Raises:
            StoreError: "blob-missing": it is not here.  "blob-damaged": its file had another content.
        """
        return await self._run(lambda: self._manifest(ref))

    async def stream(self, ref: BlobRef) -> AsyncIterator[bytes]:
        """Yield the content in chunks of at most BLOB_CHUNK_BYTES.

        Raises:
            StoreError: "blob-damaged": as `read`.  "blob-missing": it is not here, or it went in the middle (pin it
                to prevent that).
        """
        for index in range(chunk_count(ref.size)):
            if chunk := await self.read(ref, index * BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES):
                yield chunk

    def _read(self, ref: BlobRef, offset: int, count: int | None) -> bytes:
        end = ref.size if count is None else min(ref.size, offset + count)
        try:
            with open(self._name(ref.digest), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if status.st_size != ref.size:
                    raise self._absent(ref)
                if self._is_verified(ref.digest, status):
                    return self._pread(file, ref, offset, end)
                manifest = self._manifest(ref) if chunk_count(ref.size) > 1 else ref.digest
                first = offset // BLOB_CHUNK_BYTES
                start = first * BLOB_CHUNK_BYTES
                stop = min(ref.size, -(-end // BLOB_CHUNK_BYTES) * BLOB_CHUNK_BYTES)
                data = self._pread(file, ref, start, stop)
                view = memoryview(data)
                hashes = b"".join(
                    hash_chunk(view[at : at + BLOB_CHUNK_BYTES]) for at in range(0, len(data) or 1, BLOB_CHUNK_BYTES)
                )
                if ref.size and not data:
                    return b""
                if hashes != manifest[first * HASH_BYTES : first * HASH_BYTES + len(hashes)]:
                    self._set_aside(ref, status)
                    raise self._absent(ref)
                if len(data) == ref.size:
                    self._remember(ref.digest, status)
                return data if (start, stop) == (offset, end) else data[offset - start : end - start]
        except FileNotFoundError:
            raise self._absent(ref) from None

    def _pread(self, file: IO[bytes], ref: BlobRef, start: int, stop: int) -> bytes:
        data = os.pread(file.fileno(), max(0, stop - start), start)
        while len(data) < stop - start:  # pread returns at most 2 GiB at once
            more = os.pread(file.fileno(), stop - start - len(data), start + len(data))
            if not more:
                raise self._absent(ref)
            data += more
        return data

    def _manifest(self, ref: BlobRef) -> bytes:
        status = self._status(ref)
        if status is None:
            raise self._absent(ref)
        if chunk_count(ref.size) == 1:
            return ref.digest
        if (kept := self._manifests.get(ref.digest)) is not None:
            return kept
        name = self._name(ref.digest) + MANIFEST_SUFFIX
        manifest = b""
        with contextlib.suppress(FileNotFoundError):
            manifest = Path(name).read_bytes()
        if not is_manifest(ref, manifest):
            with open(self._name(ref.digest), "rb") as file:
                hasher = hash_file(file)
            if hasher.finish() != ref:
                self._set_aside(ref, status)
                raise self._absent(ref)
            manifest = hasher.manifest
            self._install(name, manifest)
            self._remember(ref.digest, status)
        with self._memory_lock:
            self._manifests[ref.digest] = manifest
            shorten(self._manifests, BLOB_MANIFESTS_MAX)
        return manifest

    # --- comparing with the digest ---------------------------------------------------------------------

    def _status(self, ref: BlobRef) -> os.stat_result | None:
        """Return what is known of the blob's file; None when there is none of that size."""
        try:
            status = os.stat(self._name(ref.digest))
        except OSError:
            return None
        return status if status.st_size == ref.size else None

    def _is_verified(self, digest: bytes, status: os.stat_result) -> bool:
        return self._verified.get(digest) == (status.st_ino, status.st_size, status.st_mtime_ns)

    def _remember(self, digest: bytes, status: os.stat_result) -> None:
        with self._memory_lock:
            self._verified[digest] = (status.st_ino, status.st_size, status.st_mtime_ns)
            shorten(self._verified, BLOB_VERIFIED_MAX)

    def _verify(self, ref: BlobRef) -> bool:
        """Hash the file of a blob; False when it has another content (it was moved aside) or cannot be read."""
        try:
            with open(self._name(ref.digest), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())  # before it is read: a change that comes meanwhile is found
                if hash_file(file).finish() == ref:
                    self._remember(ref.digest, status)
                    return True
            self._set_aside(ref, status)
        except OSError as error:
            log.warning("the blob %s cannot be read: %s", ref.digest.hex()[:16], error)
        return False

    def _set_aside(self, ref: BlobRef, status: os.stat_result) -> None:
        """Take a damaged file out of use, pinned or not.  Its name is kept in `damaged/`, its content while room is."""
        name, aside = self._name(ref.digest), f"{self._damaged}/{ref.digest.hex()}"
        os.makedirs(self._damaged, mode=0o700, exist_ok=True)
        manifest_size = 0
        with self._pins_lock:
            try:
                if os.stat(name).st_ino != status.st_ino:
                    return  # put anew meanwhile
                os.rename(name, aside)
            except FileNotFoundError:
                return  # another thread was first
            with contextlib.suppress(FileNotFoundError):
                manifest_size = os.stat(name + MANIFEST_SUFFIX).st_size
                os.unlink(name + MANIFEST_SUFFIX)
        self._forget(ref.digest)
        self.counters.damaged += 1
        self._count(-status.st_size - manifest_size)
        with os.scandir(self._damaged) as files:
            if sum(file.stat().st_size for file in files) > BLOB_DAMAGED_BYTES_MAX:
                os.chmod(aside, 0o600)
                os.truncate(aside, 0)
        log.error("the blob %s (%d bytes) was damaged on disk; it is now %s", ref.digest.hex()[:16], ref.size, aside)

    def _forget(self, digest: bytes) -> None:
        with self._memory_lock:
            self._verified.pop(digest, None)
            self._manifests.pop(digest, None)

    def _absent(self, ref: BlobRef) -> StoreError:
        if not self.is_damaged(ref):
            return missing(ref)
        return StoreError(
            f"blob damaged: {ref.digest.hex()[:16]} ({ref.size} bytes)",
            f"its file on this disk had another content; it was moved to {self._damaged}",
            "check this disk; submit the file again, or run the task again",
            code="blob-damaged",
        )

    # --- in threads ------------------------------------------------------------------------------------

    def shut(self) -> None:
        """Finish what runs and end the threads.  Blocks.  Later calls fail with "store-closed"."""
        self._is_shut = True
        self._pool.shutdown(wait=True)

    async def _run(self, work: Callable[[], _T]) -> _T:
        """Do file work in a thread.

        Raises:
            StoreError: what the operating system refused, in words.
        """

        def guarded() -> _T:
            try:
                return work()
            except OSError as error:
                raise self._failure(error) from error

        if self._is_shut:
            raise self._closed()
        return await asyncio.get_running_loop().run_in_executor(self._pool, guarded)

    def _closed(self) -> StoreError:
        return StoreError(
            f"the blob store {self.directory} is closed",
            "the node is stopping",
            "start the node again",
            code="store-closed",
        )

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, P2pcError) or not isinstance(error, OSError):
            return error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.counters.disk_full += 1
            return StoreError(
                f"no room for blobs in {self.directory}",
                "the disk is full",
                f"free some space on the disk of {self.directory}; the node carries on by itself",
                code="disk-full",
            )
        return StoreError(
            f"the blob store {self.directory} failed",
            str(error),
            "look at the disk and the permissions",
            code="store-io",
        )

    # --- files -----------------------------------------------------------------------------------------

    def _name(self, digest: bytes) -> str:
        text = digest.hex()
        return f"{self.directory}/{text[:2]}/{text[2:]}"

    def _temporary_name(self) -> str:
        return f"{self._tmp}/{next(self._names)}"

    def _open_temporary(self) -> BinaryIO:
        return open(self._temporary_name(), "xb")

    def _install(self, target: str, data: bytes) -> None:
        """Write a manifest: temporary name, sync, rename."""
        file = self._open_temporary()
        try:
            with file:
                file.write(data)
                file.flush()
                self._sync(file)
            os.rename(file.name, target)
        except BaseException:  # tidied up after, and raised again
            discard(file)
            raise

    def _sync(self, file: BinaryIO) -> None:
        if self._is_durable:
            os.fsync(file.fileno())

    def _sync_directory(self, path: str) -> None:
        if not self._is_durable:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # --- size ------------------------------------------------------------------------------------------

    def _count(self, difference: int) -> None:
        with self._total_lock:
            if self._total is not None:
                self._total += difference

    def _measured(self) -> int:
        """Return the size of all that is here; measured once, then counted."""
        with self._total_lock:
            if self._total is None:
                self._total = sum(size for _, size, _ in self._files())
            return self._total

    def _files(self) -> list[tuple[float, int, str]]:
        """Return (last use, size, path) of every file here, manifests included."""
        found: list[tuple[float, int, str]] = []
        with os.scandir(self.directory) as entries:
            directories = [entry.path for entry in entries if len(entry.name) == 2 and entry.is_dir()]
        for directory in directories:
            with os.scandir(directory) as files:
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat()
                        found.append((status.st_mtime, status.st_size, file.path))
        return found


def hash_file(file: IO[bytes]) -> BlobHasher:
    """Return the hash of what a file holds from here on."""
    hasher = BlobHasher()
    while data := file.read(COPY_BYTES):
        hasher.update(data)
    return hasher


def shorten(table: dict[bytes, Any], count: int) -> None:
    """Forget the oldest entries of a table that has more than `count`."""
    while len(table) > count:
        del table[next(iter(table))]


def discard(file: BinaryIO) -> None:
    """Close and remove a temporary file."""
    with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
        file.close()
    unlink(file.name)


def unlink(name: str) -> None:
    """Remove a file that may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)


def missing(ref: BlobRef) -> StoreError:
    return StoreError(
        f"the blob {ref.digest.hex()[:16]} ({ref.size} bytes) is not here",
        "it was never stored, or it was deleted",
        "get it again from where it came from",
        code="blob-missing",
    )
