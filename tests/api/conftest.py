"""Executors with real processes, kept away from any node of this machine."""

from __future__ import annotations

import gc
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
    before = os.environ.get("P2PC_HOME")
    os.environ["P2PC_HOME"] = str(tmp_path_factory.mktemp("home"))
    yield
    if before is None:
        del os.environ["P2PC_HOME"]
    else:
        os.environ["P2PC_HOME"] = before


@pytest.fixture(scope="module")
def executor() -> Iterator[MeshExecutor]:
    """Two workers, shared by the tests of a module."""
    with MeshExecutor(max_workers=2) as made:
        yield made


def open_fds() -> list[str]:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return sorted(names)


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail when a test leaves threads, children, descriptors or temporary directories behind."""
    gc.collect()
    threads, children, fds = set(threading.enumerate()), set(psutil.Process().children(recursive=True)), open_fds()
    yield
    gc.collect()
    wait_until(lambda: set(threading.enumerate()) <= threads, f"threads: {threading.enumerate()}")
    assert set(psutil.Process().children(recursive=True)) <= children
    assert len(open_fds()) <= len(fds), (fds, open_fds())


def run_script(path: Path, *, timeout_s: float = 30.0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a user's script as they would."""
    root = str(Path(p2pcompute.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, timeout=timeout_s, check=False,
        cwd=path.parent, env={**os.environ, "PYTHONPATH": root, **(env or {})},
    )
