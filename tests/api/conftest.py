"""Executors with real processes, kept away from any node of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import p2pcompute
from p2pcompute import MeshExecutor

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition with a deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.005)


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No node runs in this home, so nothing is joined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("P2PC_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def executor() -> Iterator[MeshExecutor]:
    """Two workers, shared by the tests of a module; when it ends nothing of it is left."""
    children, threads = set(psutil.Process().children(recursive=True)), set(threading.enumerate())
    with MeshExecutor(max_workers=2) as made:
        directory = made._node.blobs().directory
        yield made
    assert set(psutil.Process().children(recursive=True)) <= children
    assert set(threading.enumerate()) <= threads
    assert not directory.exists()


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """As in all tests, but a shared executor starts and replaces its workers when it likes."""
    if "executor" not in request.fixturenames:
        request.getfixturevalue("_nothing_left_behind")
    yield


def run_script(
    path: Path, *arguments: str, timeout_s: float = 30.0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a user's script as they would."""
    root = str(Path(p2pcompute.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-W", "error", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": root, **(env or {})},
    )
