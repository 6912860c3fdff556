"""A daemon process around the fake node: everything is real but the node."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from daemon_fake_node import FakeNode

from p2pcompute.config import Settings
from p2pcompute.daemon.main import DaemonOptions, RunningNode, run_daemon
from p2pcompute.errors import IdentityError
from p2pcompute.host.paths import MachinePaths


async def build(paths: MachinePaths, settings: Settings) -> tuple[RunningNode, Callable[[], Awaitable[None]]]:
    if settings.node.name == "moved":
        raise IdentityError("this identity belongs to another machine", "it was copied", "move it away")
    if settings.node.name == "bug":
        raise RuntimeError("boom")
    node = FakeNode(paths.data)
    if settings.node.name == "busy":
        node.drain_gate = asyncio.Event()
    return node, node.close


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--lifeline", type=int)
    given = parser.parse_args()
    code = run_daemon(
        DaemonOptions(flags={"node.name": os.environ.get("FAKE")}, lifeline_fd=given.lifeline, ready_fd=given.ready_fd),
        build,
    )
    sys.exit(code)
