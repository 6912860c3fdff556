"""Content-addressed files: the real `BlobStore`.

Owns a directory: `ab/cdef…` holds the blob whose digest is abcdef… in hexadecimal, `ab/cdef….chunks` its manifest when
it has several chunks, `tmp/` what is being written.  A blob is written to `tmp/`, synced, made read-only (0444) and
renamed; its directory is synced after that.  So a name either does not exist or has its full content.

Small blobs (≤ BLOB_SMALL_BYTES) that are put at the same time go through one thread together: their files are all
written before the first is synced, so that a journalling file system commits them at once.

What is here is bounded by a size cap: above it the least recently used blobs that nobody has pinned go.  The time of
last use is the file's modification time, so nothing about blobs has to be kept in memory or in a database.

Reading, and the comparison of files with their digests, is `real_blob_directory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from p2pcompute.errors import RemoteProtocolError, StoreError
from p2pcompute.host.blob_digest import BlobHasher, chunk_count, ref_of
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_blob_directory import (
    COPY_BYTES,
    MANIFEST_SUFFIX,
    TOUCH_S,
    BlobDirectory,
    discard,
    hash_file,
    unlink,
)
from p2pcompute.limits import (
    BLOB_RECENT_S,
    BLOB_SMALL_BYTES,
    BLOB_SMALL_WAITING_MAX,
    CACHE_BYTES_DEFAULT,
    DISK_RESERVE_BYTES,
    MIB,
)

_EVICT_TO: Final = 0.9
"""Eviction goes on down to this fraction of the cap, so that it does not run at every put."""
_FICLONE: Final = 0x40049409
"""ioctl(2) request: share the extents of another file (Btrfs, XFS, bcachefs)."""


@dataclass(slots=True, eq=False)
class _Small:
    """A small blob on its way to the disk."""

    ref: BlobRef
    data: bytes
    future: asyncio.Future[BlobRef]
    error: BaseException | None = None


class FileBlobs(BlobDirectory):
    """The real `BlobStore`."""

    def __init__(
        self, directory: Path | str, *, cache_bytes_max: int = CACHE_BYTES_DEFAULT, is_durable: bool = True
    ) -> None:
        """Open or create the directory and remove what a crash has left in `tmp/`.

        Args:
            cache_bytes_max: size above which blobs that are not pinned are evicted.
            is_durable: False for a directory that goes with the process: nothing is synced to the disk.

        Raises:
            OSError: the directory cannot be made.
        """
        super().__init__(directory, is_durable=is_durable)
        self._cache_bytes_max = cache_bytes_max
        self._evicting = threading.Lock()
        self._small: list[_Small] = []
        self._small_room = asyncio.Semaphore(BLOB_SMALL_WAITING_MAX)
        self._is_putting_small = False

    # --- writing --------------------------------------------------------------------------------

    async def put(self, data: bytes) -> BlobRef:
        """Take bytes in; durable on return."""
        if len(data) > BLOB_SMALL_BYTES:
            return await self._run(lambda: self._put_large(data))
        async with self._small_room:
            return await self._put_small(data)

    def put_now(self, data: bytes, *, pin: bool = False) -> BlobRef:
        """Take bytes in, and pin them when asked; durable on return.  Blocks: for threads that run no event loop.

        Raises:
            StoreError: what the operating system refused, in words.
        """
        if self._is_shut:
            raise self._closed()
        hasher = BlobHasher()
        hasher.update(data)
        try:
            with self._pinning(hasher.finish(), pin):
                return self._put_large(data, hasher)
        except OSError as error:
            raise self._failure(error) from error

    async def put_path(self, path: str, *, move: bool = False, pin: bool = False) -> BlobRef:
        """Take a file in, streamed; durable on return.

        Args:
            path: a regular file, or a link to one.
            move: its inode may be taken over (the name disappears); this is done where it costs nothing: same file
                system, no other name, not a link.  Otherwise the extents are shared where the file system can, else
                copied, and the file stays.
            pin: it is pinned on return, and nobody can have removed it in between.

        Raises:
            StoreError: "disk-full"; or the file cannot be read ("blob-source").  The file is untouched.
        """
        if not move and not pin:
            async with self._small_room:
                data = await self._run(lambda: _read_if_small(path))
                if data is not None:
                    return await self._put_small(data)
        return await self._run(lambda: self._put_file(path, move, pin))

    async def create(self) -> BlobFileWriter:
        """Return a writer for a blob that comes in pieces."""
        return await self._run(lambda: BlobFileWriter(self, self._open_temporary()))

    async def delete(self, refs: Sequence[BlobRef]) -> int:
        """Forget blobs, except those that are pinned; returns the bytes freed, manifests not counted."""
        return await self._run(lambda: sum(self._remove(ref.digest) for ref in refs))

    @property
    def bytes_max(self) -> int:
        """The cap: while more is here, what is not pinned and not just used goes."""
        return self._cache_bytes_max

    @property
    def is_over(self) -> bool:
        """Whether more is here than the cap, as far as it was measured."""
        return (self._total or 0) > self._cache_bytes_max

    async def trim(self, refs: Sequence[BlobRef] | None = None) -> int:
        """Forget what is not pinned while more is here than the cap, however lately it was used: see `BlobStore`."""
        if refs is None:
            return await self._run(lambda: self._evict_excess((), recent=time.time()))
        return await self._run(lambda: sum(self._remove(ref.digest) for ref in refs if self.is_over))

    # --- small blobs: one thread, one group at a time -------------------------------------------

    async def _put_small(self, data: bytes) -> BlobRef:
        ref = ref_of(data)
        if self.path(ref) is not None:
            self.counters.duplicates += 1
            return ref
        item = _Small(ref, data, asyncio.get_running_loop().create_future())
        self._small.append(item)
        if not self._is_putting_small:
            self._start_small_group()
        return await item.future

    def _start_small_group(self) -> None:
        group, self._small = self._small, []
        if self._is_shut:
            for item in group:
                if not item.future.done():
                    item.future.set_exception(self._closed())
            return
        self._is_putting_small = True
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._put_group, group)
        running.add_done_callback(lambda done: self._small_group_done(group, done))

    def _small_group_done(self, group: list[_Small], done: asyncio.Future[None]) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        self._is_putting_small = False
        for item in group:
            if item.future.done():
                continue  # cancelled by the one who asked; the blob is kept all the same
            if failure := item.error or error:
                item.future.set_exception(failure)
            else:
                item.future.set_result(item.ref)
        if self._small:
            self._start_small_group()

    def _put_group(self, group: list[_Small]) -> None:
        """Write all, then sync all, then rename all, then sync the directories."""
        written: dict[BlobRef, BinaryIO] = {}
        failed: dict[BlobRef, BaseException] = {}

        def guarded(ref: BlobRef, step: Callable[[], object]) -> None:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - goes to the one who put this blob; the others go on
                failed[ref] = self._failure(error)

        def write(ref: BlobRef, data: bytes) -> None:
            file = written[ref] = self._open_temporary()
            file.write(data)
            file.flush()

        for item in group:
            if item.ref not in written and item.ref not in failed:
                guarded(item.ref, partial(write, item.ref, item.data))
        # Several at once, so that the file system commits its journal once for all of them.
        whole = [ref for ref in written if ref not in failed and self._is_durable]

        def sync(ref: BlobRef) -> None:
            guarded(ref, lambda: os.fsync(written[ref].fileno()))

        try:
            list(self._pool.map(sync, whole))
        except RuntimeError:  # the pool is being shut down and takes nothing more
            for ref in whole:
                sync(ref)
        for ref, file in written.items():
            if ref not in failed:
                guarded(ref, partial(self._rename, file.name, ref, b""))
            file.close()
            if ref in failed:
                unlink(file.name)
        directories: dict[str, list[BlobRef]] = {}
        for ref in written:
            if ref not in failed:
                directories.setdefault(os.path.dirname(self._name(ref.digest)), []).append(ref)
        for directory, refs in directories.items():
            guarded(refs[0], partial(self._sync_directory, directory))
            failed.update((ref, failed[refs[0]]) for ref in refs if refs[0] in failed)
        for item in group:
            item.error = failed.get(item.ref)
        self._evict([ref.digest for ref in written])

    # --- in threads -----------------------------------------------------------------------------

    def _put_large(self, data: bytes, hasher: BlobHasher | None = None) -> BlobRef:
        if hasher is None:
            hasher = BlobHasher()
            hasher.update(data)
        if self.path(hasher.finish()) is not None:
            self.counters.duplicates += 1
            return hasher.finish()
        file = self._open_temporary()
        try:
            file.write(data)
        except BaseException:  # tidied up after, and raised again
            discard(file)
            raise
        return self._install_file(file, hasher)

    def _check_room(self) -> None:
        """Leave the last of the disk to the journal, which is worth more than one more blob.

        Raises:
            StoreError: "disk-full".
        """
        if trouble := self.trouble():
            self.counters.disk_full += 1
            raise trouble

    def trouble(self) -> StoreError | None:
        """Return why nothing more is taken now: the disk is full, up to what is kept free."""
        try:
            room = os.statvfs(self.directory)
        except OSError:
            return None  # what is wrong is said where something is read or written
        free = room.f_bavail * room.f_frsize
        if free >= DISK_RESERVE_BYTES:
            return None
        return StoreError(
            f"no room for blobs in {self.directory}",
            f"the disk is full but for {free / MIB:.1f} MiB; the last {DISK_RESERVE_BYTES >> 20} MiB are kept for the "
            "node's journal, so that no accepted job is lost",
            f"free some space on the disk of {self.directory}; the node carries on by itself",
            code="disk-full",
        )

    def _put_file(self, path: str, move: bool, pin: bool) -> BlobRef:
        self._check_room()
        with _open_source(path) as source:
            status = os.fstat(source.fileno())
            if move and (ref := self._take_over(path, status, pin)) is not None:
                return ref
            file = self._open_temporary()
            try:
                hasher = _share_or_copy(source, file)
            except BaseException:  # tidied up after, and raised again
                discard(file)
                raise
        with self._pinning(hasher.finish(), pin):
            return self._install_file(file, hasher)

    @contextlib.contextmanager
    def _pinning(self, ref: BlobRef, pin: bool) -> Iterator[None]:
        """Pin a blob before it is put, so that no deletion comes in between; take the pin back when that fails."""
        if pin:
            self.pin([ref])
        try:
            yield
        except BaseException:  # tidied up after, and raised again
            if pin:
                self.unpin([ref])
            raise

    def _take_over(self, path: str, status: os.stat_result, pin: bool) -> BlobRef | None:
        """Move the file itself in; None when that cannot be done.  On failure it goes back to its name."""
        named = os.lstat(path)
        if (
            not stat.S_ISREG(named.st_mode)
            or named.st_ino != status.st_ino
            or named.st_nlink > 1
            or named.st_uid != os.geteuid()
            or named.st_dev != os.stat(self._tmp).st_dev
        ):
            return None
        mode = stat.S_IMODE(named.st_mode)
        name = self._temporary_name()
        try:
            os.rename(path, name)  # from here on nobody opens it by its old name
        except OSError:
            return None
        try:
            with open(name, "rb") as file:
                hasher = hash_file(file)
                self._sync(file)
            with self._pinning(hasher.finish(), pin):
                self._finish(name, hasher)
        except BaseException:  # tidied up after, and raised again
            with contextlib.suppress(OSError):
                os.chmod(name, mode)
                os.rename(name, path)
            raise
        return hasher.finish()

    def _install_file(self, file: BinaryIO, hasher: BlobHasher) -> BlobRef:
        """Sync what was written to a temporary file and give it its name.  The file is closed, or gone."""
        try:
            file.flush()
            if self.path(hasher.finish()) is None:
                self._sync(file)
            file.close()
            self._finish(file.name, hasher)
        except BaseException:  # tidied up after, and raised again
            discard(file)
            raise
        return hasher.finish()

    def _finish(self, name: str, hasher: BlobHasher) -> None:
        ref = hasher.finish()
        self._rename(name, ref, hasher.manifest if chunk_count(ref.size) > 1 else b"")
        self._sync_directory(os.path.dirname(self._name(ref.digest)))
        self._evict([ref.digest])

    def _rename(self, name: str, ref: BlobRef, manifest: bytes) -> None:
        """Give a synced temporary file its name, its manifest first."""
        target = self._name(ref.digest)
        if self.path(ref) is not None:
            self.counters.duplicates += 1
            os.unlink(name)
            return
        os.chmod(name, 0o444)
        os.utime(name)
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        if manifest:
            self._install(target + MANIFEST_SUFFIX, manifest)
        os.rename(name, target)
        self._remember(ref.digest, os.stat(target))  # its digest was computed from what was written
        self.counters.blobs_put += 1
        self.counters.bytes_put += ref.size
        self._count(ref.size + len(manifest))

    def _remove(self, digest: bytes, *, even_pinned: bool = False) -> int:
        """Remove a blob and its manifest unless it is pinned; returns the size of the blob."""
        size, manifest_size = 0, 0
        name, aside = self._name(digest), self._temporary_name()
        with self._pins_lock:
            if digest in self._pins and not even_pinned:
                return 0
            with contextlib.suppress(FileNotFoundError):
                manifest_size = os.stat(name + MANIFEST_SUFFIX).st_size
                os.unlink(name + MANIFEST_SUFFIX)
            try:
                os.rename(name, aside)  # at once, where removing a large file may take long
            except FileNotFoundError:
                aside = ""
        if aside:
            size = os.stat(aside).st_size
            os.unlink(aside)
            self._forget(digest)
        self._count(-size - manifest_size)
        return size

    # --- size -----------------------------------------------------------------------------------

    def _evict(self, new: Sequence[bytes]) -> None:
        """Remove the least recently used blobs while the cap is exceeded; never pinned, new or just used ones.

        What cannot be removed stays: the put that led here has succeeded.
        """
        with contextlib.suppress(OSError):
            self._evict_excess(new, recent=time.time() - BLOB_RECENT_S - TOUCH_S)

    def _evict_excess(self, new: Sequence[bytes], *, recent: float) -> int:
        """Remove down to _EVICT_TO what was not used since `recent`; returns the bytes freed."""
        if self._measured() <= self._cache_bytes_max or not self._evicting.acquire(blocking=False):
            return 0
        total_freed = 0
        try:
            excess = self._measured() - int(self._cache_bytes_max * _EVICT_TO)
            for used, _, path in sorted(self._files()):
                if total_freed >= excess or used > recent:
                    break
                digest = _digest_of_path(path)
                if digest is None or digest in new:
                    continue
                if freed := self._remove(digest):
                    total_freed += freed
                    self.counters.evicted += 1
                    self.counters.evicted_bytes += freed
        finally:
            self._evicting.release()
        return total_freed


class BlobFileWriter:
    """A blob that comes in pieces: the real `BlobWriter`.  Not for use by two at once."""

    def __init__(self, blobs: FileBlobs, file: BinaryIO) -> None:
        self._blobs = blobs
        self._file = file
        self._hasher = BlobHasher()

    async def write(self, data: bytes) -> None:
        """Append.

        Raises:
            StoreError: "disk-full" …; the writer can only be aborted now.
        """

        def append() -> None:
            self._blobs._check_room()
            self._file.write(data)
            self._hasher.update(data)

        await self._blobs._run(append)

    async def commit(self, expected: BlobRef | None = None) -> BlobRef:
        """Make it durable and visible.

        Raises:
            RemoteProtocolError: the content is not what `expected` names; nothing was kept.
            StoreError: "disk-full" …; nothing was kept.
        """

        def install() -> BlobRef:
            if expected is not None and self._hasher.finish() != expected:
                discard(self._file)
                raise RemoteProtocolError("a blob has another content than its name says", expected.digest.hex()[:16])
            return self._blobs._install_file(self._file, self._hasher)

        return await self._blobs._run(install)

    async def abort(self) -> None:
        """Forget what was written.  Safe to call twice."""
        await self._blobs._run(lambda: discard(self._file))


def _share_or_copy(source: BinaryIO, target: BinaryIO) -> BlobHasher:
    """Make `target` a copy of `source`; returns the hash of what it holds."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
            with open(target.name, "rb") as shared:
                return hash_file(shared)
    hasher = BlobHasher()
    while data := source.read(COPY_BYTES):
        target.write(data)
        hasher.update(data)
    return hasher


def _open_source(path: str) -> BinaryIO:
    """Open a regular file.

    Raises:
        StoreError: "blob-source": it is another kind of file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block us
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise _unreadable(path, "it is not a regular file")


def _read_if_small(path: str) -> bytes | None:
    """Return the content of a small file; None when it is larger."""
    with _open_source(path) as file:
        data = file.read(BLOB_SMALL_BYTES + 1)
    return data if len(data) <= BLOB_SMALL_BYTES else None


def _digest_of_path(path: str) -> bytes | None:
    """Return the digest that a blob's file is named by; None for manifests and foreign files."""
    directory, name = path.split("/")[-2:]
    try:
        return bytes.fromhex(directory + name)
    except ValueError:
        return None


def _unreadable(path: str, why: object) -> StoreError:
    return StoreError(f"the file {path} cannot be read", str(why), "check its name and permissions", code="blob-source")
