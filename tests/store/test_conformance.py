"""The SQLite store does what every store must do."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from p2pcompute.host.interfaces import Store
from p2pcompute.host.real_store import SqliteStore
from tests.store_conformance import CHECKS, Check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, tmp_path: Path) -> None:
    """What breaks is said by each check."""
    numbers = itertools.count()

    async def make_store() -> Store:
        return SqliteStore(tmp_path / str(next(numbers)))

    async def reopen(store: Store) -> Store:
        assert isinstance(store, SqliteStore)
        await store.close()
        return SqliteStore(store.directory)

    await check(make_store, reopen)
