"""Processes stand still while the machine's owner needs it, also on a machine that is busy then."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from p2pcompute.execution.standstill import go_on, stand_still
from tests.execution.conftest import wait_for

BURN = "while True: pass"
TREE = f"""
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", {BURN!r}]) for _ in range(3)]
print("made", flush=True)
{BURN}
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="runs on Linux, whose scheduler has SCHED_IDLE")


@pytest.fixture
def busy_core() -> Iterator[int]:
    """A core on which others always have something to do."""
    core = min(os.sched_getaffinity(0))
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(3)]
    for one in burning:
        os.sched_setaffinity(one.pid, {core})
    yield core
    for one in burning:
        one.kill()
        one.wait()


@pytest.fixture
def tree(busy_core: int) -> Iterator[psutil.Process]:
    """Four processes that compute on that core when nobody else wants to."""
    with subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == b"made\n"
        root = psutil.Process(process.pid)
        for one in [root, *root.children(recursive=True)]:
            os.sched_setaffinity(one.pid, {busy_core})
            os.sched_setscheduler(one.pid, os.SCHED_IDLE, os.sched_param(0))
        yield root
        for one in [*root.children(recursive=True), root]:
            one.kill()


async def test_what_gets_no_turn_is_not_said_to_evade(tree: psutil.Process) -> None:
    """Broken: the work of others is killed, not held, when its machine is busy: then its owner needs it most."""
    every = [tree, *tree.children(recursive=True)]
    for _ in range(5):
        assert stand_still(tree.pid)
        used = sum(one.cpu_times().user for one in every)
        time.sleep(0.3)
        assert sum(one.cpu_times().user for one in every) - used < 0.05, "none had a turn"
        go_on(tree.pid)
        await wait_for(lambda: all(one.status() != psutil.STATUS_STOPPED for one in every), "they go on")
