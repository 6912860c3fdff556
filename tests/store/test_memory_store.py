"""The store of an embedded node does what every store must do, but for outliving its process."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from p2pcompute.host.interfaces import Store
from p2pcompute.host.memory_store import MemoryStore
from tests.store_conformance import CHECKS, Check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, tmp_path: Path) -> None:
    """What breaks is said by each check."""
    numbers = itertools.count()

    async def make_store() -> Store:
        return MemoryStore(tmp_path / str(next(numbers)))

    await check(make_store, None)
