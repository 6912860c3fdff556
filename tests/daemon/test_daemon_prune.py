"""What `store.keep` promises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pcompute.daemon import main
from p2pcompute.errors import StoreError
from p2pcompute.host.real_clock import RealClock
from p2pcompute.node.facade import PruneReport


async def test_old_jobs_are_forgotten_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a node keeps every job it ever had, or when a full disk ends the pruning for good."""
    monkeypatch.setattr(main, "_PRUNE_S", 0.001)
    asked: list[tuple[float, bool, bool]] = []

    class Node:
        clock = RealClock()

        async def prune(self, *, older_than_s: float, drop_results: bool, dry_run: bool) -> PruneReport:
            asked.append((older_than_s, drop_results, dry_run))
            if len(asked) == 1:
                raise StoreError("no space left")
            return PruneReport(jobs=1, freed_bytes=1)

    node: Any = Node()
    task = asyncio.create_task(main._prune(node, 60.0))
    async with asyncio.timeout(10):
        while len(asked) < 3:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert set(asked) == {(60.0, True, False)}
