"""The fixture of the daemon's tests; what they import is in `daemon_kit`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from daemon_fake_node import FakeNode
from daemon_kit import Daemon, running


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """An API over a fresh fake node."""
    node = FakeNode(tmp_path)
    async with running(node, tmp_path) as found:
        yield found
    await node.close()
