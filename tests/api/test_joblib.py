"""joblib's own tests of its backends, with ours.

Those run that are about `Parallel` with any backend.  The others that take a backend are about processes and pools of
joblib's own, as EXCLUDED says of each.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from p2pcompute import MeshExecutor, NodeUnavailable, UsageError

joblib = pytest.importorskip("joblib", reason="runs with joblib, which dev.py test installs")

from joblib import Parallel, delayed, parallel_backend, parallel_config  # noqa: E402

import p2pcompute.joblib as ours  # noqa: E402

_POOL = "about the pools, processes or memory maps of joblib's own backends"

CASES: dict[str, list[dict[str, Any]]] = {
    "test_simple_parallel": [{"n_jobs": n, "verbose": v} for n, v in ((1, 0), (2, 2), (-1, 11))],
    "test_lambda_expression": [{}],
    "test_parallel_timeout_success": [{}],
    "test_parallel_timeout_fail": [{}],
    "test_parallel_timeout_fail_with_generator": [{"return_as": r} for r in ("generator", "generator_unordered")],
    "test_error_in_task_iterator": [{}],
    "test_batching_auto_subprocesses": [{}],
    "test_invalid_njobs": [{}],
    "test_njobs_converted_to_int": [{"n_jobs": n} for n in ("2", 2.3, 2)],
    "test_nested_backend_context_manager": [{"context": c} for c in (parallel_config, parallel_backend)],
    "test_backend_batch_statistics_reset": [{}],
    "test_abort_backend": [{"n_jobs": n} for n in (2, -1)],
    "test_deadlock_with_generator": [
        {"return_as": r, "n_jobs": n} for r, n in (("generator", 2), ("generator_unordered", -1))
    ],
    "test_multiple_generator_call": [{"return_as": "generator", "n_jobs": 2}],
    "test_multiple_generator_call_managed": [{"return_as": "generator_unordered", "n_jobs": 2}],
    "test_multiple_generator_call_separated": [
        {"return_as_1": "generator", "return_as_2": "generator_unordered", "n_jobs": n} for n in (2, -1)
    ],
    "test_dispatch_one_job": [
        {
            "batch_size": 1,
            "expected_queue": [f"{verb} {n}" for n in range(6) for verb in ("Produced", "Consumed")],
        }
    ],
    "test_parallel_unordered_generator_returns_fastest_first": [{"n_jobs": 2}],
}
"""Test → arguments besides the backend."""

EXCLUDED = {
    "test_parallel_pretty_print": "the same for all backends, and slow",
    "test_main_thread_renamed_no_warning": _POOL,
    "test_background_thread_parallelism": "uses the default backend",
    "test_parallel_as_context_manager": _POOL,
    "test_error_capture": _POOL,
    "test_dispatch_multiprocessing": "the calls share a manager of multiprocessing, which needs its key",
    "test_nested_exception_dispatch": "joblib expects it to fail",
    "test_backend_context_manager": "compares with a list made before ours was there, see test_backend_by_name",
    "test_nested_backend_in_sequential": "as above",
    "test_no_blas_crash_or_freeze_with_subprocesses": _POOL,
    "test_parallel_with_interactively_defined_functions": "a script without an import of p2pcompute.joblib",
    "test_parallel_with_unpicklable_functions_in_args": _POOL,
    "test_auto_memmap_on_arrays_from_generator": _POOL,
    "test_memmapping_leaks": _POOL,
    "test_nested_parallelism_limit": _POOL,
    "test_thread_bomb_mitigation": _POOL,
    "test_parallel_thread_limit": _POOL,
    "test_multiple_generator_call_separated_gc": _POOL,
    "test_initializer_context": _POOL,
    "test_initializer_parallel": _POOL,
}
"""Tests that take a backend and do not run → why."""


def square(n: int) -> int:
    return n * n


def inverse(n: int) -> float:
    return 1 / n


def total(data: Any, *, plus: int) -> float:
    return float(data.sum()) + plus


def clear(data: Any) -> None:
    data[:] = 0


def greeting() -> str | None:
    return os.environ.get("GREETING")


@pytest.fixture(scope="module", autouse=True)
def _shared_executor(executor: MeshExecutor) -> Iterator[None]:
    """The backend finds this executor when none is named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "shared_executor", lambda: executor)
        yield


@pytest.fixture(scope="module")
def joblib_tests(pytestconfig: pytest.Config) -> Any:
    """The module with joblib's tests."""
    for name in ("no_cover", "thread_unsafe", "timeout"):
        pytestconfig.addinivalue_line("markers", f"{name}: of joblib's tests")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("joblib.test.test_parallel", reason="runs where joblib has its tests")


@pytest.mark.filterwarnings("default")  # joblib warns of what some of its tests do
@pytest.mark.parametrize(("name", "arguments"), [(name, case) for name, cases in CASES.items() for case in cases])
def test_of_joblib(joblib_tests: Any, name: str, arguments: dict[str, Any]) -> None:
    """Broken: a program that works with joblib's backends does not work with ours."""
    test = getattr(joblib_tests, name)
    getattr(test, "__wrapped__", test)(backend="p2pc", **arguments)


def test_every_test_of_a_backend_is_considered(joblib_tests: Any) -> None:
    """Broken: joblib has new tests that nobody has looked at."""
    taking = {
        name
        for name, test in vars(joblib_tests).items()
        if name.startswith("test") and callable(test) and "backend" in inspect.signature(test).parameters
    }
    assert taking - CASES.keys() - EXCLUDED.keys() == set()


def test_backend_by_name(executor: MeshExecutor) -> None:
    """Broken: `parallel_config("p2pc")` does not reach the mesh, or its options are ignored."""
    with parallel_config("p2pc"):
        assert Parallel()(delayed(square)(n) for n in range(100)) == [n * n for n in range(100)]
        assert joblib.effective_n_jobs(-1) == 2
        assert joblib.effective_n_jobs(-2) == 1
    with parallel_config("p2pc", executor=executor, env={"GREETING": "hello"}):
        assert Parallel(n_jobs=2)(delayed(greeting)() for _ in range(2)) == ["hello"] * 2
    with pytest.raises(UsageError, match="no task option"), parallel_config("p2pc", retrys=3):
        pass
    unordered = Parallel(n_jobs=2, backend="p2pc", return_as="generator_unordered")(
        delayed(square)(n) for n in range(50)
    )
    assert sorted(unordered) == [n * n for n in range(50)]


def test_error_is_itself_with_the_remote_traceback() -> None:
    """Broken: `except ZeroDivisionError` around `Parallel` stops working."""
    with pytest.raises(ZeroDivisionError) as caught:
        Parallel(n_jobs=2, backend="p2pc")(delayed(inverse)(n) for n in (1, 0))
    assert "in inverse" in str(caught.value.__cause__)
    assert Parallel(n_jobs=2, backend="p2pc")(delayed(inverse)(n) for n in (1, 2)) == [1, 0.5]


def test_large_arrays_travel_once(executor: MeshExecutor) -> None:
    """Broken: the data of a grid search is sent with each of its calls, or a call changes what others get."""
    numpy = pytest.importorskip("numpy", reason="runs with numpy, which dev.py test installs")
    data = numpy.ones(1 << 18)
    puts = executor._node.blobs().counters.blobs_put
    sums = Parallel(n_jobs=2, backend="p2pc", batch_size=1)(delayed(total)(data, plus=n) for n in range(20))
    assert sums == [(1 << 18) + n for n in range(20)]
    assert executor._node.blobs().counters.blobs_put - puts < 5
    with pytest.raises(ValueError, match="read-only"):
        Parallel(n_jobs=2, backend="p2pc")(delayed(clear)(data) for _ in range(2))
    assert data.all()


def test_nobody_runs_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a program that only submits waits for ever, and nobody says for what."""
    monkeypatch.setattr(ours, "SLOTS_S", 0.1)
    with (
        MeshExecutor(max_workers=0) as submitting,
        parallel_config("p2pc", executor=submitting),
        pytest.raises(NodeUnavailable, match="nobody runs tasks"),
    ):
        Parallel()(delayed(square)(n) for n in range(3))
