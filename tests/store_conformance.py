"""What every `host.interfaces.Store` must do: one suite for the simulated store and the SQLite one.

Each check is an async function of `make_store` (a fresh, empty store) and `reopen` (closes the store that it is
given and opens what that left behind).  Parametrise a test over `CHECKS` and await `check(make_store, reopen)`:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_conformance(check, ...): await check(make_store, reopen)

Without `reopen` the checks in NEED_REOPEN have nothing to check and return.  The checks close what they open.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from blake3 import blake3

from p2pcompute.errors import RemoteProtocolError, StoreError
from p2pcompute.host.interfaces import BlobRef, Store, Write
from p2pcompute.limits import BLOB_CHUNK_BYTES

MakeStore = Callable[[], Awaitable[Store]]
Reopen = Callable[[Store], Awaitable[Store]]
Check = Callable[[MakeStore, Reopen | None], Awaitable[None]]


@asynccontextmanager
async def _store(make_store: MakeStore) -> AsyncIterator[Store]:
    store = await make_store()
    try:
        yield store
    finally:
        await store.close()


async def _raises(error: type[Exception], awaitable: Awaitable[object]) -> None:
    try:
        await awaitable
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")


# --- tables ---------------------------------------------------------------------------------------


async def check_committed_is_readable(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: a node does not find what it has just stored."""
    async with _store(make_store) as store:
        await store.commit([Write("jobs", b"a", b"1"), Write("jobs", b"b", b""), Write("facts", b"a", b"2")])
        assert await store.get("jobs", b"a") == b"1"
        assert await store.get("jobs", b"b") == b"", "an empty value is a value"
        assert await store.get("facts", b"a") == b"2", "tables are apart"
        assert await store.get("facts", b"b") is None
        await store.commit([Write("jobs", b"a", None), Write("jobs", b"nothing", None)])
        assert await store.get("jobs", b"a") is None


async def check_unknown_table_is_empty(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: a node's first start fails on tables that it has not written yet."""
    async with _store(make_store) as store:
        assert await store.get("never", b"a") is None
        assert await store.scan("never") == []
        assert await store.delete_prefix("never", b"a") == 0
        await store.commit([Write("never", b"a", None)])
        await store.commit([])
        assert await store.scan("never") == []


async def check_writes_apply_in_order(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: an older state of a task wins over a newer one."""
    async with _store(make_store) as store:
        await store.commit([Write("t", b"k", b"1"), Write("t", b"k", None), Write("t", b"k", b"2")])
        assert await store.get("t", b"k") == b"2"
        ended: list[int] = []

        async def wait(number: int, commit: Awaitable[None]) -> None:
            await commit
            ended.append(number)

        commits = [store.commit([Write("t", b"k", b"%d" % n), Write("t", b"n%d" % n, b"")]) for n in range(50)]
        await asyncio.gather(*(wait(number, commit) for number, commit in enumerate(commits)))
        assert ended == list(range(50)), "commits end in the order of their calls"
        assert await store.get("t", b"k") == b"49"
        assert len(await store.scan("t", b"n")) == 50


async def check_commit_happens_unawaited(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: a cancelled request takes part of what a later one builds on with it."""
    async with _store(make_store) as store:

        async def write() -> None:
            await store.commit([Write("t", b"cancelled", b"1")])

        task = asyncio.get_running_loop().create_task(write())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        kept = store.commit([Write("t", b"unawaited", b"1")])
        await store.commit([Write("t", b"last", b"1")])
        assert [key for key, _ in await store.scan("t")] == [b"cancelled", b"last", b"unawaited"]
        await kept


async def check_scan(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: a restarted owner misses tasks, or pages over them for ever."""
    async with _store(make_store) as store:
        keys = [
            b"",
            b"\x00",
            b"a",
            b"a\x00",
            b"a\xff",
            b"a\xff\xff",
            b"ab",
            b"b",
            b"\xff",
            b"\xff\xff",
            b"\xff\xff\x01",
        ]
        shuffled = keys[:]
        random.Random(1).shuffle(shuffled)
        await store.commit([Write("t", key, b"v" + key) for key in shuffled])

        async def scan(prefix: bytes = b"", after: bytes | None = None, limit: int = 1000) -> list[bytes]:
            pairs = await store.scan("t", prefix, after=after, limit=limit)
            assert all(value == b"v" + key for key, value in pairs)
            return [key for key, _ in pairs]

        assert await scan() == sorted(keys)
        for prefix in [*keys, b"c", b"a\x01", b"\xff\xff\xff"]:
            matching = sorted(key for key in keys if key.startswith(prefix))
            assert await scan(prefix) == matching
            assert await scan(prefix, limit=2) == matching[:2]
            assert await scan(prefix, limit=0) == []
            for after in keys:
                assert await scan(prefix, after) == [key for key in matching if key > after]


async def check_scan_pages(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: pages overlap or leave gaps."""
    async with _store(make_store) as store:
        await store.commit([Write("t", n.to_bytes(4, "big"), b"%d" % n) for n in reversed(range(2500))])
        assert len(await store.scan("t")) == 1000, "the default page"
        seen: list[bytes] = []
        after: bytes | None = None
        while page := await store.scan("t", after=after, limit=700):
            seen += [value for _, value in page]
            after = page[-1][0]
        assert seen == [b"%d" % n for n in range(2500)]


async def check_delete_prefix(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: pruning one job removes rows of another, or leaves its own behind."""
    async with _store(make_store) as store:
        await store.commit([Write("t", bytes([job]) + bytes([n]), b"") for job in (1, 2, 255) for n in range(100)])
        earlier = store.commit([Write("t", b"\x01late", b"")])
        assert await store.delete_prefix("t", b"\x01") == 101, "commits called before it are covered"
        await earlier
        assert await store.delete_prefix("t", b"\x01") == 0
        assert await store.delete_prefix("t", b"\xff") == 100
        assert [key for key, _ in await store.scan("t")] == [b"\x02" + bytes([n]) for n in range(100)]
        assert await store.delete_prefix("t", b"") == 100
        assert await store.scan("t") == []


async def check_against_a_dictionary(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: some sequence of writes, removals and scans loses or invents rows."""
    rng = random.Random(2)
    model: dict[bytes, bytes] = {}
    async with _store(make_store) as store:
        for step in range(150):
            writes = []
            for _ in range(rng.choice((1, 3, 90))):
                key = bytes(rng.choices(b"ab\xff", k=rng.randrange(5)))
                value = None if rng.random() < 0.4 else b"%d" % step
                writes.append(Write("t", key, value))
                if value is None:
                    model.pop(key, None)
                else:
                    model[key] = value
            await store.commit(writes)
            if step % 10 == 9:
                prefix = bytes(rng.choices(b"ab\xff", k=2))
                gone = [key for key in model if key.startswith(prefix)]
                assert await store.delete_prefix("t", prefix) == len(gone)
                for key in gone:
                    del model[key]
            prefix = bytes(rng.choices(b"ab\xff", k=rng.randrange(3)))
            expected = sorted((key, value) for key, value in model.items() if key.startswith(prefix))
            assert await store.scan("t", prefix) == expected


async def check_closed(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: a stopping node hangs on its store, or believes that a write was kept."""
    store = await make_store()
    await store.commit([Write("t", b"a", b"1")])
    await store.close()
    await store.close()
    await _raises(StoreError, store.commit([Write("t", b"a", b"2")]))
    await _raises(StoreError, store.get("t", b"a"))
    await _raises(StoreError, store.scan("t"))
    await _raises(StoreError, store.delete_prefix("t", b"a"))
    await _raises(StoreError, store.blobs.put(b"x"))


async def check_survives_reopen(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: a restart loses jobs."""
    if reopen is None:
        return
    store = await make_store()
    await store.commit([Write("jobs", b"a", b"1"), Write("facts", b"b", b"2"), Write("jobs", b"c", b"3")])
    await store.commit([Write("jobs", b"a", None)])
    ref = await store.blobs.put(b"content")
    last = store.commit([Write("jobs", b"last", b"4")])
    store = await reopen(store)
    await last
    try:
        assert await store.scan("jobs") == [(b"c", b"3"), (b"last", b"4")], "close waits for what was called before"
        assert await store.get("facts", b"b") == b"2"
        assert await store.blobs.read(ref) == b"content"
        await store.commit([Write("jobs", b"d", b"5")])
        assert len(await store.scan("jobs")) == 3
    finally:
        await store.close()


# --- blobs ----------------------------------------------------------------------------------------

_SIZES: Final = (0, 1, 1000, BLOB_CHUNK_BYTES - 1, BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES + 1, 2 * BLOB_CHUNK_BYTES + 77)


def _content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def _named(data: bytes) -> tuple[BlobRef, bytes]:
    """Reference and manifest of a blob, straight from the rule in `host.interfaces.BlobStore`."""
    chunks = [data[i : i + BLOB_CHUNK_BYTES] for i in range(0, len(data), BLOB_CHUNK_BYTES)] or [b""]
    manifest = b"".join(blake3(chunk).digest() for chunk in chunks)
    if len(chunks) == 1:
        return BlobRef(manifest, len(data)), manifest
    return BlobRef(blake3(b"p2pc blob tree" + len(data).to_bytes(8, "big") + manifest).digest(), len(data)), manifest


async def check_blob_round_trip(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: a node cannot verify what it fetches, or serves other bytes than the name says."""
    async with _store(make_store) as store:
        blobs = store.blobs
        for size in _SIZES:
            data = _content(size)
            ref, manifest = _named(data)
            assert not await blobs.has(ref)
            assert await blobs.put(data) == ref
            assert await blobs.put(data) == ref, "putting twice is putting once"
            assert await blobs.has(ref)
            assert not await blobs.has(BlobRef(ref.digest, size + 1)), "the size is part of the name"
            assert await blobs.manifest(ref) == manifest
            assert await blobs.read(ref) == data
            assert await blobs.read(ref, size // 2, 10) == data[size // 2 : size // 2 + 10]
            assert await blobs.read(ref, size // 3) == data[size // 3 :]
            assert await blobs.read(ref, size) == await blobs.read(ref, size + 5, 5) == b""
            pieces = [piece async for piece in blobs.stream(ref)]
            assert b"".join(pieces) == data
            assert all(0 < len(piece) <= BLOB_CHUNK_BYTES for piece in pieces)


async def check_blob_writer(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: half a blob becomes visible, or a wrong one is kept under a right name."""
    async with _store(make_store) as store:
        blobs = store.blobs
        for size in _SIZES:
            data = _content(size)
            ref, manifest = _named(data)
            writer = await blobs.create()
            for start in range(0, size, 300_001):
                await writer.write(data[start : start + 300_001])
            assert not await blobs.has(ref)
            assert await writer.commit(ref) == ref
            assert await blobs.read(ref) == data and await blobs.manifest(ref) == manifest
        wrong = await blobs.create()
        await wrong.write(b"other")
        expected, other = _named(b"expected")[0], _named(b"other")[0]
        await _raises(RemoteProtocolError, wrong.commit(expected))
        aborted = await blobs.create()
        await aborted.write(b"aborted")
        await aborted.abort()
        await aborted.abort()
        for ref in (expected, other, _named(b"aborted")[0]):
            assert not await blobs.has(ref)


async def check_blob_missing_and_deleted(make_store: MakeStore, reopen: Reopen | None) -> None:
    """If it broke: a missing input is an empty one, or pruned results still fill the disk."""
    async with _store(make_store) as store:
        blobs = store.blobs
        refs = [await blobs.put(_content(size)) for size in (10, BLOB_CHUNK_BYTES + 1, 20)]
        missing = _named(b"missing")[0]
        freed = await blobs.delete([refs[0], refs[1], missing])
        assert 0 <= freed - (10 + BLOB_CHUNK_BYTES + 1) <= 64, "content, and at most the manifest's two hashes"
        assert await blobs.delete(refs[:2]) == 0
        assert await blobs.read(refs[2]) == _content(20)
        for ref in (*refs[:2], missing):
            assert not await blobs.has(ref)
            assert blobs.path(ref) is None
            await _raises(StoreError, blobs.read(ref))
            await _raises(StoreError, blobs.manifest(ref))

        async def stream(ref: BlobRef) -> None:
            async for _ in blobs.stream(ref):
                pass

        await _raises(StoreError, stream(missing))


CHECKS: Final[tuple[Check, ...]] = (
    check_committed_is_readable,
    check_unknown_table_is_empty,
    check_writes_apply_in_order,
    check_commit_happens_unawaited,
    check_scan,
    check_scan_pages,
    check_delete_prefix,
    check_against_a_dictionary,
    check_closed,
    check_survives_reopen,
    check_blob_round_trip,
    check_blob_writer,
    check_blob_missing_and_deleted,
)
NEED_REOPEN: Final[tuple[Check, ...]] = (check_survives_reopen,)
