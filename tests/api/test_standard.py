"""CPython's own tests of `concurrent.futures`, run against `MeshExecutor`.

The classes come from `test.test_concurrent_futures` of the running Python, or of Debian's of the same version
(libpython3.X-testsuite) where it was installed without its tests.  Every test in there runs or is in EXCLUDED with the
reason.  What is adapted, and nothing else:

- the first argument of `MeshExecutor` is not the number of workers, and its workers have started before a test;
- calls start a moment after `submit`, and `shutdown(cancel_futures=True)` comes when that is over;
- a pool whose process dies is broken for ever; here that call alone fails, with an error of its own;
- what a task prints is kept with its result: scripts that print in a worker show that instead.
"""

from __future__ import annotations

import concurrent.futures.process
import importlib
import logging
import re
import time
import unittest
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import pytest

import p2pcompute
from p2pcompute import MeshFuture, TaskError
from p2pcompute.api.desk import Desk
from p2pcompute.execution.functions import RemoteTraceback
from tests.api.python_tests import python_tests

_THREADS = "looks at the threads of a thread pool, or shares memory with its calls"
_PROCESSES = "looks at the processes, locks or contexts of a process pool"
_INITIALIZER = "there are no initializers: a worker serves many functions, of several executors"
_AT_ONCE = "what cannot be pickled is refused by `submit` itself, with the argument's name"

EXCLUDED = {
    # Executor
    "ExecutorTest.test_max_workers_negative": "0 workers mean: submit only; a negative count is refused, see below",
    "ThreadPoolExecutorTest": _THREADS,
    "ProcessPoolExecutorTest.test_max_workers_too_large": _PROCESSES,
    "ProcessPoolExecutorTest.test_killed_child": "a call whose process is lost runs again, see test_executor.py",
    "ProcessPoolExecutorTest.test_ressources_gced_in_workers": _PROCESSES,
    "ProcessPoolExecutorTest.test_saturation": _PROCESSES,
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": _PROCESSES,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": _PROCESSES,
    "ProcessPoolExecutorTest.test_max_tasks_per_child": "there is no such argument",
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": "there is no such argument",
    "ProcessPoolExecutorTest.test_max_tasks_early_shutdown": "there is no such argument",
    "ProcessPoolExecutorTest.test_python_finalization_error": _PROCESSES,
    "ProcessPoolExecutorTest.test_force_shutdown_workers": _PROCESSES,
    "ProcessPoolExecutorTest.test_force_shutdown_workers_dead": _PROCESSES,
    "ProcessPoolExecutorTest.test_force_shutdown_workers_not_started_yet": _PROCESSES,
    "ProcessPoolExecutorTest.test_force_shutdown_workers_stops_pool": _PROCESSES,
    "InitializerMixin": _INITIALIZER,
    "FailingInitializerMixin": _INITIALIZER,
    "FailingInitializerResourcesTest": _INITIALIZER,
    # shutdown
    "ThreadPoolShutdownTest.test_threads_terminate": _THREADS,
    "ThreadPoolShutdownTest.test_context_manager_shutdown": _THREADS,
    "ThreadPoolShutdownTest.test_del_shutdown": _THREADS,
    "ThreadPoolShutdownTest.test_shutdown_no_wait": _THREADS,
    "ThreadPoolShutdownTest.test_thread_names_assigned": _THREADS,
    "ThreadPoolShutdownTest.test_thread_names_default": _THREADS,
    "ProcessPoolShutdownTest": _PROCESSES,
    "ThreadPoolWaitTests": _THREADS,
    # crashes
    "ExecutorDeadlockTest.test_error_at_task_pickle": _AT_ONCE,
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": _AT_ONCE,
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _PROCESSES,
    # futures
    "FutureTests.test_cancel": "a cancelled future is CANCELLED_AND_NOTIFIED at once: nobody else would tell waiters",
}
"""Class or Class.test → why it does not apply.  Names of all versions from 3.11 on."""


class MeshExecutor(p2pcompute.MeshExecutor):
    """With the arguments that these tests give; its workers have started."""

    def __init__(self, max_workers: int | None = None, mp_context: None = None) -> None:
        super().__init__(max_workers=max_workers, local=True)
        self.submit(abs, 1).result()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            time.sleep(0.2)
        super().shutdown(wait, cancel_futures=cancel_futures)


_SCRIPT = f"""
import sys, time
sys.path[:0] = {[str(Path(p2pcompute.__file__).parents[1]), str(Path(__file__).parents[2])]!r}
import concurrent.futures, p2pcompute
import test
test.__path__[:] = {list(importlib.import_module("test").__path__)!r}
from tests.api.python_tests import python_tests
python_tests()
class MeshExecutor(p2pcompute.MeshExecutor):
    def __init__(self, max_workers=None):
        super().__init__(max_workers=max_workers, local=True)
        self.submit(abs, 1).result()
    def shutdown(self, wait=True, *, cancel_futures=False):
        if cancel_futures:
            time.sleep(0.2)
        super().shutdown(wait, cancel_futures=cancel_futures)
concurrent.futures.MeshExecutor = MeshExecutor
def show(future):
    print(future.info.stdout, end="")
"""


class _OnMesh:
    """Stands for `ThreadPoolMixin` and its like."""

    worker_count = 5
    executor_type = MeshExecutor
    module: ModuleType

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        died = (TaskError, SystemExit, UnpicklingError)
        self._patch(concurrent.futures.process, "_RemoteTraceback", RemoteTraceback)
        self._patch(self.module, "BrokenProcessPool", died)
        if hasattr(self.module, "assert_python_ok"):
            self._patch(self.module, "assert_python_ok", _script_runner(self.module.assert_python_ok))
        self.executor = self.executor_type(max_workers=self.worker_count)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)
        del self.executor
        super().tearDown()  # type: ignore[misc]

    def get_context(self) -> None:
        return None

    def _patch(self, module: ModuleType, name: str, value: Any) -> None:
        if hasattr(module, name):
            patch = unittest.mock.patch.object(module, name, value)
            patch.start()
            self.addCleanup(patch.stop)  # type: ignore[attr-defined]


class _OfFutures:
    """Lets the tests of futures make ours."""

    module: ModuleType

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        desk = Desk(lambda question: question)
        ours = type("Future", (MeshFuture,), {"__init__": lambda self: MeshFuture.__init__(self, desk, 0)})
        for holder in [self.module, importlib.import_module(self.module.create_future.__module__)]:
            patch = unittest.mock.patch.object(holder, "Future", ours)
            patch.start()
            self.addCleanup(patch.stop)  # type: ignore[attr-defined]
        log, handler = logging.getLogger("concurrent.futures"), logging.lastResort
        assert handler is not None
        log.addHandler(handler)  # as where pytest does not listen
        self.addCleanup(log.removeHandler, handler)  # type: ignore[attr-defined]


def _script_runner(run: Any) -> Any:
    def run_adapted(flag: str, script: str) -> Any:
        script = script.replace("ThreadPoolExecutor", "MeshExecutor")
        script = re.sub(r"t\.submit\((sleep_and_print.*)\)", r"t.submit(\1).add_done_callback(show)", script)
        return run(flag, _SCRIPT + script)

    return run_adapted


def _test_classes() -> Iterator[tuple[ModuleType, type]]:
    for module in python_tests():
        for value in list(vars(module).values()):
            is_generated = isinstance(value, type) and not any(name.startswith("test") for name in vars(value))
            if isinstance(value, type) and value.__module__ == module.__name__ and not is_generated:
                yield module, value


def _cases() -> Iterator[tuple[str, type]]:
    """Our own test classes with what is left of the methods of theirs."""
    for module, theirs in _test_classes():
        if theirs.__name__ in EXCLUDED:
            continue
        kept = {
            name: value
            for name, value in vars(theirs).items()
            if f"{theirs.__name__}.{name}" not in EXCLUDED and name not in ("__dict__", "__weakref__")
        }
        if any(name.startswith("test") for name in kept):
            mixin = _OfFutures if theirs.__name__ == "FutureTests" else _OnMesh
            kept |= {"module": module, "__module__": __name__}
            yield f"Mesh{theirs.__name__}", type(f"Mesh{theirs.__name__}", (mixin, unittest.TestCase), kept)


globals().update(_cases())


def test_the_tests_are_there() -> None:
    """Broken: nothing of this module is run, and nobody is told."""
    classes = {theirs.__name__ for _module, theirs in _test_classes()}
    if not classes:
        pytest.skip("runs where Python has its own tests: on Debian, apt-get install libpython3.X-testsuite")
    expected = {"ExecutorTest", "ExecutorShutdownTest", "WaitTests", "AsCompletedTests", "ExecutorDeadlockTest"}
    assert expected <= classes
    assert {f"Mesh{name}" for name in expected} <= globals().keys()


def test_negative_count_of_workers() -> None:
    """Broken: what the standard library refuses with ValueError passes, or is another error."""
    with pytest.raises(ValueError, match="max_workers=-1"):
        p2pcompute.MeshExecutor(max_workers=-1)
