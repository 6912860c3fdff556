"""Content-addressed files: digests, durability, what happens to the source, eviction and pins."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError, StoreError
from p2pcompute.host import blob_digest, real_blob_directory, real_blobs
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.limits import BLOB_CHUNK_BYTES, BLOB_SMALL_BYTES

SIZES = [0, 1, BLOB_SMALL_BYTES, BLOB_SMALL_BYTES + 1, BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES + 1, 3 * BLOB_CHUNK_BYTES]


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def ref_by_rule(data: bytes) -> BlobRef:
    """The rule of `BlobStore`, written down a second time."""
    if len(data) <= BLOB_CHUNK_BYTES:
        return BlobRef(blake3(data).digest(), len(data))
    chunks = [data[start : start + BLOB_CHUNK_BYTES] for start in range(0, len(data), BLOB_CHUNK_BYTES)]
    hashes = b"".join(blake3(chunk).digest() for chunk in chunks)
    return BlobRef(blake3(b"p2pc blob tree" + len(data).to_bytes(8, "big") + hashes).digest(), len(data))


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[FileBlobs]:
    blobs = FileBlobs(tmp_path / "blobs")
    yield blobs
    blobs.shut()
    assert os.listdir(tmp_path / "blobs" / "tmp") == [], "nothing half-written stays behind"


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 3 * BLOB_CHUNK_BYTES), cuts=st.lists(st.integers(0, 3 * BLOB_CHUNK_BYTES), max_size=6))
def test_the_digest_does_not_depend_on_the_pieces(size: int, cuts: list[int]) -> None:
    """Otherwise the same file has two names, and a fetched one is refused."""
    data = content(size)
    hasher = blob_digest.BlobHasher()
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, end in itertools.pairwise(edges):
        hasher.update(data[start:end])
    assert hasher.finish() == ref_by_rule(data) == blob_digest.ref_of(data)
    assert blob_digest.is_manifest(hasher.finish(), hasher.manifest)
    assert not blob_digest.is_manifest(hasher.finish(), hasher.manifest + bytes(32))
    assert sum(blob_digest.chunk_size(size, i) for i in range(blob_digest.chunk_count(size))) == size


@pytest.mark.parametrize("size", SIZES)
async def test_every_way_in_gives_the_same_blob(blobs: FileBlobs, tmp_path: Path, size: int) -> None:
    """Otherwise what one node names is not found at another."""
    data = content(size)
    expected = ref_by_rule(data)
    assert not await blobs.has(expected)
    file = tmp_path / "file"
    file.write_bytes(data)
    for number in range(4):
        if number == 0:
            ref = await blobs.put(data)
        elif number == 1:
            ref = await blobs.put_path(str(file))
        elif number == 2:
            writer = await blobs.create()
            for start in range(0, size, 300_001):
                await writer.write(data[start : start + 300_001])
            ref = await writer.commit(expected)
        else:
            ref = await blobs.put_path(str(file), move=True)
        assert ref == expected
        assert await blobs.read(ref) == data
        assert [chunk async for chunk in blobs.stream(ref)] == [
            data[start : start + BLOB_CHUNK_BYTES] for start in range(0, size, BLOB_CHUNK_BYTES)
        ]
        assert blob_digest.is_manifest(ref, await blobs.manifest(ref))
        name = blobs.path(ref)
        assert name is not None and os.stat(name).st_mode & 0o777 == 0o444
        total = size + (32 * blob_digest.chunk_count(size) if size > BLOB_CHUNK_BYTES else 0)
        assert await blobs.total_bytes() == total
        assert await blobs.delete([ref]) == size
        assert await blobs.total_bytes() == 0 and blobs.path(ref) is None
    assert not file.exists(), "a moved file is taken over"
    assert blobs.counters.blobs_put == 4


async def test_reading_parts(blobs: FileBlobs) -> None:
    """Otherwise a chunk that is served is not the chunk that was asked for."""
    data = content(1_000_000)
    ref = await blobs.put(data)
    assert await blobs.read(ref, 10, 20) == data[10:30]
    assert await blobs.read(ref, 999_990, 100) == data[-10:]
    assert await blobs.read(ref, 2_000_000, 5) == b""
    assert await blobs.read(ref, 999_000) == data[999_000:]


async def test_a_blob_that_is_not_here(blobs: FileBlobs) -> None:
    """Otherwise a missing input shows as some other failure."""
    ref = ref_by_rule(b"never stored")
    stored = await blobs.put(b"stored")
    for absent in (ref, BlobRef(stored.digest, 5)):
        assert not await blobs.has(absent) and blobs.path(absent) is None
        for reading in (blobs.read(absent), blobs.manifest(absent)):
            with pytest.raises(StoreError) as missing:
                await reading
            assert missing.value.code == "blob-missing"
    assert await blobs.delete([ref]) == 0


async def test_many_small_puts_at_once(blobs: FileBlobs) -> None:
    """Otherwise a job with thousands of small inputs waits for the disk thousands of times, or loses some."""
    datas = [b"%d" % (number % 1500) for number in range(3000)]
    refs = await asyncio.gather(*(blobs.put(data) for data in datas))
    assert refs == [ref_by_rule(data) for data in datas]
    assert blobs.counters.blobs_put == 1500
    for data, ref in zip(datas[::100], refs[::100], strict=True):
        assert await blobs.read(ref) == data


async def test_a_failed_small_put_does_not_fail_its_group(blobs: FileBlobs) -> None:
    """Otherwise one bad directory fails every upload of that moment."""
    bad = ref_by_rule(b"bad")
    (blobs.directory / bad.digest.hex()[:2]).write_bytes(b"a file where a directory belongs")
    good = [b"good %d" % number for number in range(20)]
    good = [data for data in good if ref_by_rule(data).digest[:1] != bad.digest[:1]]
    results = await asyncio.gather(*(blobs.put(data) for data in [b"bad", *good]), return_exceptions=True)
    assert isinstance(results[0], StoreError)
    assert results[1:] == [ref_by_rule(data) for data in good]
    (blobs.directory / bad.digest.hex()[:2]).unlink()


async def test_a_source_that_is_not_moved_is_untouched(blobs: FileBlobs, tmp_path: Path) -> None:
    """Otherwise sending a file makes the user's own copy read-only or ties it to ours."""
    for size in (100, 2_000_000):
        file = tmp_path / f"file{size}"
        file.write_bytes(content(size))
        file.chmod(0o640)
        ref = await blobs.put_path(str(file))
        assert file.stat().st_mode & 0o777 == 0o640 and file.stat().st_nlink == 1
        file.write_bytes(b"changed")
        assert await blobs.read(ref) == content(size)


async def test_a_file_with_another_name_is_copied_although_it_may_be_moved(blobs: FileBlobs, tmp_path: Path) -> None:
    """Otherwise who holds the other name can change the content of a blob."""
    file, other, link = tmp_path / "file", tmp_path / "other", tmp_path / "link"
    file.write_bytes(content(100_000))
    os.link(file, other)
    ref = await blobs.put_path(str(file), move=True)
    assert file.exists() and other.stat().st_mode & 0o200
    other.write_bytes(b"changed")
    assert await blobs.read(ref) == content(100_000)
    link.symlink_to(file)
    ref = await blobs.put_path(str(link), move=True)
    assert link.is_symlink() and await blobs.read(ref) == b"changed"


async def test_a_move_that_fails_gives_the_file_back(
    blobs: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a full disk loses the output of a task."""
    file = tmp_path / "file"
    file.write_bytes(content(2 * BLOB_CHUNK_BYTES))
    file.chmod(0o600)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blobs, "_install", full)
    with pytest.raises(StoreError) as failed:
        await blobs.put_path(str(file), move=True)
    assert failed.value.code == "disk-full" and blobs.counters.disk_full == 1
    assert file.read_bytes() == content(2 * BLOB_CHUNK_BYTES) and file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["absent", "directory", "fifo"])
@pytest.mark.parametrize("move", [False, True])
async def test_a_source_that_cannot_be_read(blobs: FileBlobs, tmp_path: Path, kind: str, move: bool) -> None:
    """Otherwise a wrong name hangs the node or shows a traceback."""
    path = tmp_path / "source"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(StoreError) as failed:
        await asyncio.wait_for(blobs.put_path(str(path), move=move), 5)
    assert failed.value.code == "blob-source" and str(path) in failed.value.what


async def test_a_writer_with_wrong_content_leaves_nothing(blobs: FileBlobs) -> None:
    """Otherwise a peer's wrong bytes get the name of the right ones."""
    writer = await blobs.create()
    await writer.write(b"wrong")
    with pytest.raises(RemoteProtocolError):
        await writer.commit(ref_by_rule(b"right"))
    assert not await blobs.has(ref_by_rule(b"right")) and not await blobs.has(ref_by_rule(b"wrong"))
    aborted = await blobs.create()
    await aborted.write(b"x")
    await aborted.abort()
    await aborted.abort()


async def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    """Otherwise every crash costs disk space for good."""
    first = FileBlobs(tmp_path)
    ref = await first.put(content(700_000))
    writer = await first.create()
    await writer.write(content(100_000))
    first.shut()
    assert os.listdir(tmp_path / "tmp")
    second = FileBlobs(tmp_path)
    assert os.listdir(tmp_path / "tmp") == []
    assert await second.read(ref) == content(700_000)
    assert await second.total_bytes() == 700_064
    second.shut()
    writer._file.close()


async def test_a_lost_manifest_is_made_again_and_a_damaged_blob_is_dropped(blobs: FileBlobs) -> None:
    """Otherwise a blob with a damaged file is served, and refused by every peer, for ever."""
    data = content(2 * BLOB_CHUNK_BYTES)
    ref = await blobs.put(data)
    manifest = await blobs.manifest(ref)
    name = blobs.path(ref)
    assert name is not None
    Path(name + ".chunks").write_bytes(b"junk") if os.access(name + ".chunks", os.W_OK) else None
    assert await blobs.manifest(ref) == manifest
    os.unlink(name + ".chunks")
    blobs._forget(ref.digest)
    assert await blobs.manifest(ref) == manifest
    blobs._forget(ref.digest)
    os.unlink(name + ".chunks")
    os.chmod(name, 0o600)
    Path(name).write_bytes(b"\0" + data[1:])
    with pytest.raises(StoreError) as damaged:
        await blobs.manifest(ref)
    assert damaged.value.code == "blob-damaged" and blobs.counters.damaged == 1
    assert not await blobs.has(ref)
    assert await blobs.put(data) == ref and await blobs.read(ref) == data


def overwrite(path: str) -> None:
    """What a bad disk or a foreign program does."""
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(b"!!!!!!")


@pytest.mark.parametrize("size", [100, BLOB_SMALL_BYTES + 1, 5 * BLOB_CHUNK_BYTES + 7])
@pytest.mark.parametrize("way", ["read", "read_now", "stream", "path", "has", "chunk"])
async def test_what_was_altered_on_disk_is_never_given_out(tmp_path: Path, size: int, way: str) -> None:
    """Otherwise a damaged result passes for a good one, and a damaged file is what a task computes with."""
    before = FileBlobs(tmp_path)
    ref = await before.put(content(size))
    name = before.path(ref)
    before.shut()
    assert name is not None
    overwrite(name)
    blobs = FileBlobs(tmp_path)
    blobs.pin([ref])
    if way == "path":
        assert blobs.path(ref) is None
    elif way == "has":
        assert not await blobs.has(ref)
    else:
        with pytest.raises(StoreError) as damaged:
            if way == "stream":
                [piece async for piece in blobs.stream(ref)]
            elif way == "chunk":
                await blobs.read(ref, size // BLOB_CHUNK_BYTES // 2 * BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES)
            else:
                blobs.read_now(ref) if way == "read_now" else await blobs.read(ref)
        assert damaged.value.code == "blob-damaged" and damaged.value.why and damaged.value.fix
    assert blobs.counters.damaged == 1 and blobs.is_damaged(ref) and not await blobs.has(ref)
    assert (tmp_path / "damaged" / ref.digest.hex()).stat().st_size == size, "moved aside, for whoever wants to look"
    blobs.shut()
    after = FileBlobs(tmp_path)
    with pytest.raises(StoreError) as still:
        await after.read(ref)
    assert still.value.code == "blob-damaged", "known at the next start too"
    assert await after.put(content(size)) == ref and await after.read(ref) == content(size)
    assert not after.is_damaged(ref)
    after.shut()


async def test_putting_a_damaged_blob_again_repairs_it(tmp_path: Path) -> None:
    """Otherwise "it is here already" keeps the damaged file, and submitting again does not help."""
    before = FileBlobs(tmp_path)
    refs = [await before.put(content(size)) for size in (100, BLOB_SMALL_BYTES + 1)]
    for ref in refs:
        name = before.path(ref)
        assert name is not None
        overwrite(name)
    before.shut()
    blobs = FileBlobs(tmp_path)
    for ref in refs:
        assert await blobs.put(content(ref.size)) == ref and await blobs.read(ref) == content(ref.size)
    assert blobs.counters.damaged == 2
    blobs.shut()


async def test_a_blob_is_hashed_once_and_again_when_its_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an input of a million tasks is hashed a million times, or what happens to it later is missed."""
    before = FileBlobs(tmp_path)
    ref = await before.put(content(3 * BLOB_CHUNK_BYTES))
    before.shut()
    blobs = FileBlobs(tmp_path)
    hashed: list[object] = []
    hash_file = real_blob_directory.hash_file
    monkeypatch.setattr(real_blob_directory, "hash_file", lambda file: (hashed.append(file), hash_file(file))[1])
    name = blobs.path(ref)
    assert name is not None
    os.utime(name, (1, 1))
    for _ in range(3):
        assert await blobs.has(ref) and blobs.path(ref) == name
    assert len(hashed) == 2, "at the first use, and when its time had changed; our own note of the use is no change"
    overwrite(name)
    assert blobs.path(ref) is None
    blobs.shut()


async def test_eviction_takes_the_least_recently_used_and_never_the_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the cache grows without bound, or a task loses its inputs while it runs."""
    blobs = FileBlobs(tmp_path, cache_bytes_max=1_000_000)
    refs = [await blobs.put(content(100_000, seed)) for seed in range(9)]
    for age, ref in enumerate(reversed(refs)):
        name = blobs.path(ref)
        assert name is not None
        past = os.stat(name).st_mtime - 10_000 - age
        os.utime(name, (past, past))
    assert await blobs.has(refs[1]), "a use makes it recent"
    blobs.pin([refs[0], refs[2]])
    blobs.pin([refs[0]])
    blobs.unpin([refs[0]])
    last = await blobs.put(content(300_000, 99))
    here = [await blobs.has(ref) for ref in [*refs, last]]
    assert here == [True, True, True, False, False, False, True, True, True, True]
    assert blobs.counters.evicted == 3 and await blobs.total_bytes() == 900_000
    assert await blobs.delete([refs[0]]) == 0
    blobs.unpin([refs[0], refs[2]])
    assert await blobs.delete([refs[0]]) == 100_000
    blobs.shut()
    reopened = FileBlobs(tmp_path, cache_bytes_max=1_000_000)
    assert await reopened.total_bytes() == 800_000
    monkeypatch.setattr(real_blobs, "BLOB_RECENT_S", 10**9)
    await reopened.put(content(400_000, 100))
    assert reopened.counters.evicted == 0, "what was just used is about to be pinned"
    reopened.shut()


async def test_the_last_of_the_disk_is_kept_for_the_journal(
    blobs: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that would take it is refused, and nothing of it stays."""
    source = tmp_path / "source"
    source.write_bytes(bytes(100_000))
    monkeypatch.setattr(real_blobs, "DISK_RESERVE_BYTES", 1 << 62)
    with pytest.raises(StoreError) as caught:
        await blobs.put_path(str(source), move=True)
    assert caught.value.code == "disk-full" and source.exists()
    assert (
        "the disk is full but for " in caught.value.why
        and "kept for the node's journal" in caught.value.why
        and blobs.counters.disk_full == 1
    )
    trouble = blobs.trouble()
    assert trouble is not None and trouble.why == caught.value.why, "as `p2pc status` says it"
    monkeypatch.undo()
    assert blobs.trouble() is None
    assert (await blobs.put_path(str(source), move=True)).size == 100_000


async def test_a_lowered_cap_applies_at_start_and_what_others_took_goes_at_once(tmp_path: Path) -> None:
    """Otherwise a node whose owner gives it less goes on using more, and results that were taken fill the disk."""
    blobs = FileBlobs(tmp_path)
    refs = [await blobs.put(content(100_000, seed)) for seed in range(9)]
    assert not blobs.is_over and await blobs.trim() == 0
    blobs.shut()
    lower = FileBlobs(tmp_path, cache_bytes_max=500_000)
    lower.pin(refs[:2])
    assert await lower.trim() == 500_000, "used a moment ago or not"
    assert await lower.has(refs[0]) and await lower.has(refs[1]) and not lower.is_over
    new = await lower.put(content(300_000, 99))
    assert lower.is_over
    lower.pin([new])
    assert await lower.trim([new]) == 0
    lower.unpin([new])
    assert await lower.trim([new]) == 300_000
    await lower.put(content(10_000, 100))
    assert await lower.trim(refs) == 0, "below the cap nothing is lost"
    lower.shut()
