"""The store of an embedded node: tables in memory, blobs as files in a directory that goes with the process.

Nothing outlives the process, so nothing is synced to a disk: a commit is applied when the call returns.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Sequence
from pathlib import Path

from p2pcompute.errors import LocalProtocolError, StoreError
from p2pcompute.host.interfaces import Write
from p2pcompute.host.real_blobs import FileBlobs


class MemoryStore:
    """Implements `host.interfaces.Store`.

    Args:
        directory: of the blobs; its owner removes it after `close`.
    """

    def __init__(self, directory: Path | str) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {}
        self._blobs = FileBlobs(directory, is_durable=False)
        self._is_closed = False

    @property
    def blobs(self) -> FileBlobs:
        """The blobs beside the tables."""
        return self._blobs

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """Apply all or nothing, at once.

        Raises:
            StoreError: (by the future) "store-closed".
            LocalProtocolError: (by the future) a table name, key or value is of a wrong type.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._is_closed:
            future.set_exception(_closed())
        elif not all(_is_sound(write) for write in writes):
            future.set_exception(LocalProtocolError("keys and values of the store are bytes"))
        else:
            for table, key, value in writes:
                rows = self._tables.setdefault(table, {})
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
            future.set_result(None)
        return future

    async def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value, or None."""
        return self._rows(table).get(key)

    async def scan(
        self, table: str, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` pairs in key order whose key starts with `prefix` and is greater than `after`."""
        rows = self._rows(table)
        keys = sorted(key for key in rows if key.startswith(prefix))
        start = 0 if after is None else bisect.bisect_right(keys, after)
        return [(key, rows[key]) for key in keys[start : start + max(0, limit)]]

    async def delete_prefix(self, table: str, prefix: bytes) -> int:
        """Remove every key that starts with `prefix`; returns how many."""
        rows = self._rows(table)
        keys = [key for key in rows if key.startswith(prefix)]
        for key in keys:
            del rows[key]
        return len(keys)

    async def close(self) -> None:
        """End the threads of the blob store.  Safe to call twice."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._blobs.shut)

    def _rows(self, table: str) -> dict[bytes, bytes]:
        if self._is_closed:
            raise _closed()
        return self._tables.get(table, {})


def _is_sound(write: Write) -> bool:
    table, key, value = write
    return isinstance(table, str) and type(key) is bytes and (value is None or type(value) is bytes)


def _closed() -> StoreError:
    return StoreError("the store of this embedded node is closed", "it was shut down", None, code="store-closed")
