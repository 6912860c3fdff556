"""Opening the store's SQLite file: exclusive use, checks, schema version, migration, and what errors mean.

Invariants: a file that is refused (damaged, newer, in use, not ours) is left byte for byte as it was, because all
checks run on a read-only connection; an older one is copied before it is migrated.

Source: https://sqlite.org/wal.html, https://sqlite.org/pragma.html, https://sqlite.org/rescode.html.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from p2pcompute.errors import P2pcError, StoreError
from p2pcompute.limits import STORE_CHECK_BYTES_MAX

SCHEMA_VERSION: Final = 1
"""1: one table `t_<name>` (key, value) for each name that the node uses."""
APPLICATION_ID: Final = 0x70327063
"""b"p2pc", in the file's header: tells our file from another program's."""
FILE_NAME: Final = "store.sqlite3"
MARK_NAME: Final = "store.made"
"""Empty; beside a store that was opened once, so that a file that lost its content is not taken for a new one."""

Migrations = Mapping[int, Callable[[sqlite3.Connection], None]]
MIGRATIONS: Final[Migrations] = {}
"""Schema version → what makes the next version of it.  Each runs inside one transaction."""

_MAGIC: Final = b"SQLite format 3\0"
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_WAL_PAGES: Final = 4000
"""Pages in the write-ahead log (16 MiB) after which they are moved to the main file."""
_CACHE_KIB: Final = 8192


def explain(error: BaseException, path: Path) -> P2pcError:
    """Return what a failure of SQLite or of the file system means for people.  Errors of ours pass unchanged."""
    if isinstance(error, P2pcError):
        return error
    result = getattr(error, "sqlite_errorcode", None)
    primary = result & 0xFF if isinstance(result, int) else None
    if primary == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    if primary in _CORRUPT:
        return damaged(path, str(error))
    if primary == sqlite3.SQLITE_READONLY or getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(
            f"the store {path} cannot be written",
            str(error),
            f"check the owner and the permissions of {path.parent}",
            code="store-readonly",
        )
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StoreError(
        f"the store {path} failed",
        f"{name}: {error}",
        "nothing of this change was kept; look at the disk",
        code="store-io",
    )


def disk_full(path: Path) -> StoreError:
    """Return the error for a disk without room."""
    return StoreError(
        f"no room for {path}",
        "the disk is full",
        f"free some space on the disk of {path.parent}; the node carries on by itself",
        code="disk-full",
    )


def damaged(path: Path, why: str) -> StoreError:
    """Return the error for a store file that SQLite cannot make sense of, with the command that sets it aside."""
    files = [str(path) + suffix for suffix in ("", "-wal", "-shm") if os.path.exists(str(path) + suffix)]
    aside = f"{path}.damaged"
    command = f"mkdir {shlex.quote(aside)} && mv {' '.join(shlex.quote(name) for name in files)} {shlex.quote(aside)}"
    return StoreError(
        f"the store {path} is damaged",
        why,
        f"nothing was changed; to start with an empty store, set it aside: {command}",
        code="store-damaged",
    )


class StoreLock:
    """The right to use a store's directory, held by at most one process.

    A file with the holder's pid lies beside the lock.  It is removed at a clean end, so finding it while nobody
    holds the lock means that the last holder died.
    """

    def __init__(self, directory: Path) -> None:
        self._pid_path = directory / "store.pid"
        self._lock = FileLock(directory / "store.lock", mode=0o600, thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise self._refusal(directory) from None
        self.was_unclean = self._pid_path.exists()
        """Whether the last user of the store ended without closing it."""
        with contextlib.suppress(OSError):  # only informs; a full disk shows itself where it matters
            self._pid_path.write_text(f"{os.getpid()}\n")

    def _refusal(self, directory: Path) -> StoreError:
        try:
            pid = int(self._pid_path.read_text())
        except (OSError, ValueError):
            holder, fix = "another process", "stop the other node, or choose another directory"
        else:
            holder, fix = f"process {pid}", f"stop the other node (process {pid}), or choose another directory"
        return StoreError(f"the store in {directory} is in use", f"{holder} has it open", fix, code="store-in-use")

    def release(self) -> None:
        """Give it back after a clean end.  Safe to call twice."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._pid_path.unlink(missing_ok=True)
            self._lock.release()

    def abandon(self) -> None:
        """Give it back but keep the mark of an unclean end, as it was found."""
        if self.was_unclean:
            self._lock.release()
        else:
            self.release()


def open_checked(path: Path, *, was_unclean: bool, migrations: Migrations = MIGRATIONS) -> sqlite3.Connection:
    """Return the connection that writes, after every check and, where needed, migration.

    Args:
        path: the file; created with mode 0600 when absent.
        was_unclean: whether to check a large file too.

    Raises:
        StoreError: damaged, newer, not ours, or the disk fails.  The file is as it was.
    """
    try:
        version = _inspect(path, was_unclean)
        connection = _connect(path)
    except (sqlite3.Error, OSError) as error:
        raise explain(error, path) from error
    try:
        if version == 0:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        _configure(connection, path)
        if version == 0:
            _create(connection)
        elif version < SCHEMA_VERSION:
            _copy(connection, path.with_name(f"{path.name}.v{version}.bak"))
            migrate(connection, path, version, SCHEMA_VERSION, migrations)
        path.with_name(MARK_NAME).touch(mode=0o600)
    except (sqlite3.Error, OSError) as error:
        connection.close()
        raise explain(error, path) from error
    except P2pcError:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a second connection, for reading only."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB // 2}")
    except sqlite3.Error:  # the first statement reads the file
        connection.close()
        raise
    return connection


def _inspect(path: Path, was_unclean: bool) -> int:
    """Return the schema version of the file, 0 when there is none yet.  Changes nothing but creates the file."""
    # The header is read before any connection exists: closing a second descriptor of the file would drop the
    # POSIX locks that SQLite holds on it.
    mark = path.with_name(MARK_NAME)
    if not path.exists():
        mark.unlink(missing_ok=True)  # moved away on purpose: a new store begins
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        header, size = os.read(descriptor, len(_MAGIC)), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size == 0:
        if mark.exists():
            raise damaged(path, "it is empty, but a store was here")
        return 0
    if header != _MAGIC:
        raise damaged(path, "it does not begin as an SQLite file does")
    connection = open_reader(path)
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        application = int(connection.execute("PRAGMA application_id").fetchone()[0])
        if application == 0 and version == 0 and not connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
            return 0  # a crash came between the creation of the file and its first transaction
        if application != APPLICATION_ID:
            raise StoreError(
                f"{path} is not a store of p2pcompute",
                "another program made this file",
                "choose another directory, or move the file away",
                code="store-foreign",
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                "this store was written by a newer p2pcompute",
                f"{path} has version {version}, this program knows up to {SCHEMA_VERSION}",
                "nothing was changed; run the newer p2pcompute, or choose another directory",
                code="store-newer",
            )
        if was_unclean or size <= STORE_CHECK_BYTES_MAX:
            finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if finding != "ok":
                raise damaged(path, str(finding))
        return version
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)


def _configure(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(
            f"the store {path} cannot be used on this file system",
            "it has no write-ahead log there (a network file system?)",
            "choose a directory on a local disk",
            code="store-io",
        )
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone leaves data in the drive's cache
    connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
    connection.execute("PRAGMA journal_size_limit=67108864")
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    """Write a complete copy of the store to `target`, durable before anything is migrated."""
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    copy = sqlite3.connect(partial)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    sync(partial)
    os.replace(partial, target)
    sync(target.parent)


def migrate(connection: sqlite3.Connection, path: Path, version: int, target: int, migrations: Migrations) -> None:
    """Bring the schema from `version` to `target`, one transaction a step.

    Raises:
        StoreError: there is no way from `version`; nothing was changed.
    """
    missing = [step for step in range(version, target) if step not in migrations]
    if missing:
        raise StoreError(
            "this store was written by a p2pcompute that is too old",
            f"{path} has version {version}, and nothing here reads version {missing[0]}",
            "nothing was changed; choose another directory",
            code="store-older",
        )
    for step in range(version, target):
        connection.execute("BEGIN IMMEDIATE")
        try:
            migrations[step](connection)
            connection.execute(f"PRAGMA user_version={step + 1}")
            connection.execute("COMMIT")
        except BaseException:  # tidied up after, and raised again
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def sync(path: Path | str) -> None:
    """Make a file's content, or a directory's names, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
