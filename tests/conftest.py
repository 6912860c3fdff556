"""For all tests: nothing is left behind, and what was skipped or tried twice is counted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# How long an example takes says something about the machine, not about the code.
settings.register_profile("p2pcompute", deadline=None)
settings.load_profile("p2pcompute")

# Whoever starts the tests in the background or by nohup has these ignored, and what the tests start would too.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

GRACE_S = 3.0
"""What ends by itself (a thread past its last line, a process that was told to go) may take so long."""
FD_DIRECTORY = Path("/proc/self/fd")
KEPT_FDS = ("/dev/", "/.hypothesis/", "/etc/", "/usr/")
"""Descriptors that libraries open once and keep; the same for the life of the process."""
KEPT_CHILDREN = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
KEPT_THREADS = ("execnet", "pydevd", "pytest_timeout")

_OF_RUNNERS = (
    *("thread p2pc-blobs_", "thread asyncio_", "p2pcompute.execution.child", "bwrap"),
    *("socket:[", "pipe:[", "anon_inode:"),
)
SHARED = {"shared_rig": _OF_RUNNERS, "boxed": _OF_RUNNERS, "saving": _OF_RUNNERS}
"""Fixtures of a wider scope that may grow while a test uses them, and what of theirs may be new."""

OF_THIS_MACHINE = (
    *("api", "cli", "daemon", "e2e", "examples", "execution", "host", "security", "store"),
    *("dht/test_flood.py", "dht/test_real.py", "dht/test_starved.py"),
)
"""Tests with real processes, sockets and time, which other load on the machine can upset.  They have a second try, and
those that need it are named at the end; the others are deterministic and have none."""

_tasks_at_close: list[str] = []
"""Tasks that were alive when their event loop was closed, in the present test."""


@pytest.fixture(scope="module")
def pool_tracker() -> Iterator[None]:
    """The process that pools leave behind, started before and ended behind these tests: others count children."""
    resource_tracker.ensure_running()
    yield
    gc.collect()  # semaphores of pools are given back before it looks for forgotten ones
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def fonts() -> None:
    """For tests that draw: matplotlib is there, and the files of fonts that it uses and keeps open are open."""
    figure = pytest.importorskip(
        "matplotlib.figure", reason="runs with matplotlib, which dev.py test installs"
    ).Figure()
    figure.text(0.5, 0.5, "·–Ω")
    figure.savefig(io.BytesIO())


@pytest.fixture(scope="session", autouse=True)
def _watch_loops() -> Iterator[None]:
    """Note the tasks that `asyncio.Runner` has to cancel when it closes a loop: nobody waited for them."""
    runners = asyncio.runners
    cancel_all: Callable[[asyncio.AbstractEventLoop], None] = runners._cancel_all_tasks  # type: ignore[attr-defined]

    def noting(loop: asyncio.AbstractEventLoop) -> None:
        _tasks_at_close.extend(f"task {task.get_name()}: {task.get_coro()!r}" for task in asyncio.all_tasks(loop))
        cancel_all(loop)

    runners._cancel_all_tasks = noting  # type: ignore[attr-defined]
    yield
    runners._cancel_all_tasks = cancel_all  # type: ignore[attr-defined]


def _children() -> dict[int, str]:
    """Direct children, zombies included: one that nobody waited for is left behind too."""
    try:
        texts = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
        pids = [int(pid) for text in texts for pid in text.split()]
    except OSError:
        pids = [child.pid for child in psutil.Process().children()]
    return dict.fromkeys(pids, "")


def _command(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{process.status()} {' '.join(process.cmdline())}"
    except psutil.Error:
        return "gone"


def _descriptors() -> dict[int, str]:
    """Open descriptors and what they are; empty where the system does not say."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(FD_DIRECTORY):
            with contextlib.suppress(OSError):
                found[int(name)] = os.readlink(FD_DIRECTORY / name)
    return found


class _Belongings:
    """What this process has: threads, children, descriptors."""

    def __init__(self) -> None:
        self.threads = {thread.ident: thread.name for thread in threading.enumerate()}
        self.children = _children()
        self.descriptors = _descriptors()

    def new(self, allowed: Sequence[str]) -> list[str]:
        """What is there now and was not then, in words that hold none of those allowed."""
        found = [
            f"thread {thread.name}"
            for thread in threading.enumerate()
            if thread.ident not in self.threads and not thread.name.startswith(KEPT_THREADS)
        ]
        for pid in _children().keys() - self.children.keys():
            command = _command(pid)
            if not any(kept in command for kept in KEPT_CHILDREN):
                found.append(f"child process {pid}: {command}")
        # By what they are, not by number: numbers are used again.
        then = Counter(self.descriptors.values())
        now = Counter(target for target in _descriptors().values() if not any(kept in target for kept in KEPT_FDS))
        found += [f"descriptor {target}" for target in (now - then).elements()]
        return [what for what in found if not any(words in what for words in allowed)]


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest, _watch_loops: None) -> Iterator[None]:
    """Fail a test that leaves tasks, threads, child processes or file descriptors behind.

    Fixtures of a wider scope are set up before this one, so what belongs to them does not count.
    """
    _tasks_at_close.clear()
    before = _Belongings()
    yield
    allowed = [words for name in request.fixturenames for words in SHARED.get(name, ())]
    left = before.new(allowed)
    if left:
        gc.collect()
        deadline = time.monotonic() + GRACE_S
        while (left := before.new(allowed)) and time.monotonic() < deadline:
            time.sleep(0.02)
    left += _tasks_at_close
    if left:
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Give tests of this machine a second try."""
    places = [Path(__file__).parent / name for name in OF_THIS_MACHINE]
    for item in items:
        if any(item.path.is_relative_to(place) for place in places):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close with how many tests were skipped, and why, and which passed at the second try only."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.write_line(f"second try: {report.nodeid}\n{report.longreprtext[-2000:]}")
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    if not reasons:
        terminalreporter.write_line("skipped: nothing")
        return
    terminalreporter.write_line(f"skipped: {reasons.total()} of the tests")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} × {reason}")
