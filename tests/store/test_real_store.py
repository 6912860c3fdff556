"""The SQLite store: durability, order, isolation of failures, and what people are told when the disk fails."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import LocalProtocolError, StoreError
from p2pcompute.host import real_sqlite
from p2pcompute.host.interfaces import Write
from p2pcompute.host.real_store import SqliteStore
from p2pcompute.limits import STORE_DELETE_ROWS_MAX


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store")
    yield store
    await store.close()


async def test_committed_rows_are_there_after_reopening(tmp_path: Path) -> None:
    """Otherwise a job is lost at a restart."""
    store = SqliteStore(tmp_path)
    await store.commit([Write("jobs", b"a", b"1"), Write("facts", b"b", b"2")])
    await store.commit([Write("jobs", b"a", None), Write("jobs", b"c", b"")])
    await store.close()
    again = SqliteStore(tmp_path)
    assert await again.scan("jobs") == [(b"c", b"")]
    assert await again.get("facts", b"b") == b"2"
    assert await again.get("facts", b"nothing") is None
    assert await again.get("never_written", b"x") is None
    assert await again.scan("never_written") == []
    await again.close()
    await again.close()
    assert not (tmp_path / "store.pid").exists()


async def test_commits_take_effect_and_end_in_call_order(store: SqliteStore) -> None:
    """Otherwise an older value may win over a newer one."""
    ended: list[int] = []
    futures = []
    for number in range(500):
        future = store.commit([Write("t", b"key", b"%d" % number), Write("t", b"k%d" % number, b"")])
        future.add_done_callback(functools.partial(lambda number, _: ended.append(number), number))
        futures.append(future)
    await asyncio.gather(*futures)
    assert ended == list(range(500))
    assert await store.get("t", b"key") == b"499"
    assert len(await store.scan("t", b"k")) == 501
    assert store.counters.groups < 100, "waiting commits share transactions"


async def test_one_bad_commit_does_not_fail_the_others_of_its_group(store: SqliteStore) -> None:
    """Otherwise one bug of one caller loses the results of all who wait with it."""
    futures = [store.commit([Write("t", b"%d" % n, b"v"), Write("t", b"x%d" % n, b"v")]) for n in range(10)]
    bad_value = store.commit([Write("t", b"bad", b"v"), Write("t", b"worse", "text")])  # type: ignore[arg-type]
    bad_table = store.commit([Write("t; drop table jobs", b"bad", b"v")])
    futures += [store.commit([Write("t", b"%d" % n, b"v")]) for n in range(10, 20)]
    senseless: list[Any] = [5, [5], [("t",)], [Write("t", b"k", 5)], [Write(5, b"k", b"v")]]  # type: ignore[arg-type]
    bad = [store.commit(writes) for writes in senseless]
    assert all(isinstance(error, Exception) for error in await asyncio.gather(*bad, return_exceptions=True))
    results = await asyncio.gather(bad_value, bad_table, *futures, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [LocalProtocolError, LocalProtocolError]
    assert results[2:] == [None] * 20
    assert await store.get("t", b"bad") is None
    assert len(await store.scan("t")) == 30


async def test_a_cancelled_wait_leaves_the_commit(store: SqliteStore) -> None:
    """Otherwise what is durable would depend on who still listens."""
    store.commit([Write("t", b"a", b"1")]).cancel()
    await store.commit([])
    assert await store.get("t", b"a") == b"1"


async def test_scan_pages_in_key_order(store: SqliteStore) -> None:
    """Otherwise a restart replays facts in the wrong order or misses some."""
    await store.commit([Write("t", b"a" + n.to_bytes(2, "big"), b"%d" % n) for n in range(2500)])
    await store.commit([Write("t", b"b", b"other"), Write("t", b"a", b"exact")])
    seen: list[tuple[bytes, bytes]] = []
    after: bytes | None = None
    while page := await store.scan("t", b"a", after=after):
        seen += page
        after = page[-1][0]
    assert len(seen) == 2501 and seen == sorted(seen) and seen[0] == (b"a", b"exact")
    assert len(await store.scan("t", limit=7)) == 7


_key = st.lists(st.sampled_from([0, 1, 0xFE, 0xFF]), max_size=4).map(bytes)


@settings(max_examples=40, deadline=None)
@given(rows=st.dictionaries(_key, st.binary(max_size=3), max_size=20), prefix=_key, after=st.none() | _key)
async def test_scan_and_delete_prefix_agree_with_a_dict(
    rows: dict[bytes, bytes], prefix: bytes, after: bytes | None
) -> None:
    """Otherwise a prefix that ends in 0xFF bytes takes or misses keys of another job."""
    directory = tempfile.mkdtemp()
    store = SqliteStore(directory)
    try:
        await store.commit([Write("t", key, value) for key, value in rows.items()])
        expected = sorted((k, v) for k, v in rows.items() if k.startswith(prefix) and (after is None or k > after))
        assert await store.scan("t", prefix, after=after) == expected
        inside = [key for key in rows if key.startswith(prefix)]
        assert await store.delete_prefix("t", prefix) == len(inside)
        assert await store.scan("t") == sorted((k, v) for k, v in rows.items() if not k.startswith(prefix))
    finally:
        await store.close()
        shutil.rmtree(directory)


async def test_a_long_deletion_lets_commits_through_and_gives_space_back(tmp_path: Path) -> None:
    """Otherwise `prune` stops the node for seconds, or frees nothing."""
    store = SqliteStore(tmp_path)
    count = 3 * STORE_DELETE_ROWS_MAX + 1
    for first in range(0, count, 4000):
        await store.commit(
            [Write("t", n.to_bytes(4, "big"), bytes(300)) for n in range(first, min(first + 4000, count))]
        )
    ended: list[str] = []
    deletion = asyncio.ensure_future(store.delete_prefix("t", b""))
    deletion.add_done_callback(lambda _: ended.append("deletion"))
    await asyncio.sleep(0)
    commit = store.commit([Write("other", b"a", b"b")])
    commit.add_done_callback(lambda _: ended.append("commit"))
    await commit
    assert await deletion == count
    assert ended == ["commit", "deletion"]
    assert await store.scan("t") == []
    await store.close()
    assert (tmp_path / "store.sqlite3").stat().st_size < 1_000_000


async def test_close_finishes_what_was_asked_for(tmp_path: Path) -> None:
    """Otherwise a stop loses commits that were called before it."""
    store = SqliteStore(tmp_path)
    future = store.commit([Write("t", b"a", b"b")])
    await store.close()
    await future
    with pytest.raises(StoreError) as late:
        await store.commit([Write("t", b"c", b"d")])
    assert late.value.code == "store-closed"
    with pytest.raises(StoreError):
        await store.get("t", b"a")
    with pytest.raises(StoreError):
        await store.blobs.put(b"x")


async def test_a_full_queue_refuses(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a slow disk makes the node grow without bound."""
    monkeypatch.setattr("p2pcompute.host.real_store.STORE_COMMITS_WAITING_MAX", 10)
    results = await asyncio.gather(
        *(store.commit([Write("t", b"%d" % n, b"")]) for n in range(12)), return_exceptions=True
    )
    assert results[:10] == [None] * 10
    assert [error.code for error in results[10:] if isinstance(error, StoreError)] == ["store-busy"] * 2
    assert store.counters.refused_busy == 2
    await store.commit([Write("t", b"later", b"")])


# --- disk full ------------------------------------------------------------------------------------


async def test_a_full_file_fails_the_commit_and_later_ones_work(tmp_path: Path) -> None:
    """Otherwise a full disk kills the node or keeps it broken after space was made."""
    store = SqliteStore(tmp_path, file_bytes_max=400_000)
    await store.commit([Write("t", b"first", b"kept")])
    with pytest.raises(StoreError) as full:
        await store.commit([Write("t", b"small", b"lost"), Write("t", b"huge", bytes(600_000))])
    assert full.value.code == "disk-full" and full.value.fix is not None
    assert store.counters.disk_full == 1
    assert await store.get("t", b"small") is None, "nothing of a failed commit is applied"
    await store.commit([Write("t", b"big", bytes(200_000))])
    with pytest.raises(StoreError):
        await store.commit([Write("t", b"big2", bytes(200_000))])
    await store.delete_prefix("t", b"big")
    await store.commit([Write("t", b"big2", bytes(200_000))])
    assert await store.get("t", b"first") == b"kept"
    await store.close()


async def test_a_commit_that_fits_survives_a_group_that_does_not(tmp_path: Path) -> None:
    """Otherwise one large result takes small ones down with it."""
    store = SqliteStore(tmp_path, file_bytes_max=400_000)
    small = [store.commit([Write("t", b"%d" % n, bytes(100))]) for n in range(20)]
    huge = store.commit([Write("t", b"huge", bytes(600_000))])
    small += [store.commit([Write("t", b"%d" % n, bytes(100))]) for n in range(20, 40)]
    results = await asyncio.gather(huge, *small, return_exceptions=True)
    assert isinstance(results[0], StoreError) and results[1:] == [None] * 40
    assert len(await store.scan("t")) == 40
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(mount)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


async def test_a_full_disk_fails_the_commit_and_later_ones_work(small_disk: Path) -> None:
    """Otherwise the real ENOSPC (in the log, in the index of the log) does what the simulated one does not."""
    store = SqliteStore(small_disk / "store")
    await store.commit([Write("t", b"first", b"kept")])
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    codes = []
    for number in range(20):
        try:
            await store.commit([Write("t", b"n%d" % number, bytes(100_000))])
        except StoreError as error:
            codes.append(error.code)
    assert len(codes) >= 19 and codes.count("disk-full") == len(codes)
    with pytest.raises(StoreError) as full:
        await store.blobs.put(bytes(200_000))
    assert full.value.code == "disk-full"
    with pytest.raises(StoreError) as full:
        await store.blobs.put(bytes(20_000))
    assert full.value.code == "disk-full"
    assert await store.get("t", b"first") == b"kept"
    filler.unlink()
    await store.commit([Write("t", b"later", bytes(100_000))])
    ref = await store.blobs.put(bytes(200_000))
    assert await store.blobs.read(ref) == bytes(200_000)
    assert os.listdir(store.blobs.directory / "tmp") == []
    await store.close()
    again = SqliteStore(small_disk / "store")
    assert await again.get("t", b"first") == b"kept" and await again.get("t", b"later") is not None
    await again.close()


# --- refusals -------------------------------------------------------------------------------------


def _snapshot(directory: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(directory.iterdir())
        if path.is_file() and path.suffix not in (".lock", ".pid") and not path.name.endswith(("-shm", "-wal"))
    }


async def _filled(directory: Path) -> None:
    store = SqliteStore(directory)
    for first in range(0, 3000, 500):
        await store.commit([Write("t", n.to_bytes(4, "big"), bytes(200)) for n in range(first, first + 500)])
    await store.close()


@pytest.mark.parametrize("damage", ["header", "pages", "cut"])
async def test_a_damaged_store_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    """Otherwise damage spreads, or the only copy is wiped."""
    await _filled(tmp_path)
    path = tmp_path / "store.sqlite3"
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:16] = b"something else!!"
    elif damage == "pages":
        for page in range(8192, len(content) - 4096, 8192):
            content[page : page + 200] = b"\xa5" * 200
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    before = _snapshot(tmp_path)
    with pytest.raises(StoreError) as refused:
        SqliteStore(tmp_path)
    error = refused.value
    assert error.code == "store-damaged" and error.fix is not None
    assert "nothing was changed" in error.fix and "mv " in error.fix and error.why
    assert _snapshot(tmp_path) == before
    subprocess.run(error.fix[error.fix.index("mkdir") :], shell=True, check=True)
    fresh = SqliteStore(tmp_path)
    assert await fresh.scan("t") == []
    await fresh.close()


async def test_an_emptied_store_is_damage_and_a_moved_one_is_not(tmp_path: Path) -> None:
    """Otherwise a file that lost its content passes for a new store, and all jobs are silently gone."""
    await _filled(tmp_path)
    path = tmp_path / "store.sqlite3"
    path.write_bytes(b"")
    before = _snapshot(tmp_path)
    with pytest.raises(StoreError) as refused:
        SqliteStore(tmp_path)
    assert refused.value.code == "store-damaged" and str(path) in str(refused.value.fix)
    assert _snapshot(tmp_path) == before
    path.unlink()
    await (await SqliteStore.open(tmp_path)).close()
    assert path.stat().st_size


async def test_damage_met_later_is_an_error_and_the_store_lives(tmp_path: Path) -> None:
    """Otherwise one bad page takes the node down."""
    store = SqliteStore(tmp_path)
    for first in range(0, 8000, 1000):
        await store.commit([Write("t", n.to_bytes(4, "big"), bytes(400)) for n in range(first, first + 1000)])
    await store.commit([Write("other", b"a", b"b")])
    store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    store._writer.execute("PRAGMA shrink_memory").fetchall()
    store._reader.execute("PRAGMA shrink_memory").fetchall()
    descriptor = os.open(tmp_path / "store.sqlite3", os.O_WRONLY)
    size = os.fstat(descriptor).st_size
    for page in range(16 * 4096, size - 8 * 4096, 4096):
        os.pwrite(descriptor, b"\xa5" * 4096, page)
    codes = set()
    for number in range(0, 8000, 50):
        try:
            await store.get("t", number.to_bytes(4, "big"))
        except StoreError as error:
            codes.add(error.code)
    assert codes == {"store-damaged"}
    assert store.counters.damaged > 0
    with pytest.raises(StoreError):
        await store.scan("t", limit=10_000)
    await store.close()
    os.close(descriptor)


async def test_a_newer_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Otherwise a downgrade ruins what the newer program wrote."""
    await _filled(tmp_path)
    with sqlite3.connect(tmp_path / "store.sqlite3") as connection:
        connection.execute(f"PRAGMA user_version={real_sqlite.SCHEMA_VERSION + 1}")
    connection.close()
    before = _snapshot(tmp_path)
    with pytest.raises(StoreError, match="this store was written by a newer p2pcompute") as refused:
        SqliteStore(tmp_path)
    assert refused.value.code == "store-newer"
    assert _snapshot(tmp_path) == before


async def test_another_program_s_file_is_refused(tmp_path: Path) -> None:
    """Otherwise a wrong directory mixes our tables into another program's database."""
    with sqlite3.connect(tmp_path / "store.sqlite3") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreError) as refused:
        SqliteStore(tmp_path)
    assert refused.value.code == "store-foreign"


async def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    """Otherwise a crash at the very first start leaves a store that never opens."""
    (tmp_path / "store.sqlite3").touch()
    store = SqliteStore(tmp_path)
    await store.commit([Write("t", b"a", b"b")])
    await store.close()
    assert (tmp_path / "store.sqlite3").stat().st_mode & 0o777 in (0o600, 0o644)


async def test_an_older_store_is_copied_then_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an upgrade that goes wrong has no way back."""
    await _filled(tmp_path)

    def rename_table(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE t_t RENAME TO t_renamed")

    monkeypatch.setattr(real_sqlite, "SCHEMA_VERSION", 2)
    with pytest.raises(StoreError) as refused:
        SqliteStore(tmp_path)
    assert refused.value.code == "store-older"
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t_t (x)")

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TABLE t_renamed")
        raise sqlite3.OperationalError("no")

    with pytest.raises(sqlite3.OperationalError):
        real_sqlite.migrate(connection, tmp_path, 1, 3, {1: rename_table, 2: fail})
    assert connection.execute("PRAGMA user_version").fetchone() == (2,), "each step is a transaction of its own"
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("t_renamed",)]
    connection.close()
    opened = real_sqlite.open_checked(tmp_path / "store.sqlite3", was_unclean=False, migrations={1: rename_table})
    opened.close()
    store = SqliteStore(tmp_path)
    assert len(await store.scan("renamed", limit=5000)) == 3000
    await store.close()
    with sqlite3.connect(tmp_path / "store.sqlite3.v1.bak") as backup:
        assert backup.execute("SELECT count(*) FROM t_t").fetchone() == (3000,)
    backup.close()


async def test_a_second_user_is_refused_with_the_holder_s_pid(tmp_path: Path) -> None:
    """Otherwise two nodes work on one ledger."""
    store = SqliteStore(tmp_path)
    program = f"""
from p2pcompute.errors import StoreError
from p2pcompute.host.real_store import SqliteStore
try:
    SqliteStore({str(tmp_path)!r})
except StoreError as error:
    print(error.code, error)
"""
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.startswith("store-in-use ") and f"process {os.getpid()}" in other.stdout
    with pytest.raises(StoreError):
        SqliteStore(tmp_path)
    await store.commit([Write("t", b"still", b"works")])
    await store.close()
    again = SqliteStore(tmp_path)
    await again.close()


# --- crash ----------------------------------------------------------------------------------------

_WRITER = """
import asyncio, sys
from p2pcompute.host.interfaces import Write
from p2pcompute.host.real_store import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    async def lane(number):
        while True:
            key = number.to_bytes(8, "big")
            await store.commit([Write("a", key, b"x" * 200), Write("b", key, b"y")])
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()
            number += 8
    await asyncio.gather(*(lane(n) for n in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("count", [1, 700])
async def test_every_acknowledged_commit_survives_sigkill(tmp_path: Path, count: int) -> None:
    """Otherwise a job that `run` has acknowledged is lost when the node dies."""
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(count)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    process.stdout.close()
    assert (tmp_path / "store.pid").exists()
    store = SqliteStore(tmp_path)
    assert store._lock.was_unclean
    kept = {table: {int.from_bytes(key, "big") for key, _ in await store.scan(table, limit=10**6)} for table in "ab"}
    assert set(acknowledged) <= kept["a"]
    assert kept["a"] == kept["b"], "a commit is kept whole or not at all"
    await store.close()
