"""`p2pcompute.function`: a decorator that leaves a function as it is and adds the mesh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2pcompute
from p2pcompute import BadValue, MeshExecutor, TaskOptions, UsageError
from p2pcompute.api import shared


@pytest.fixture(scope="module", autouse=True)
def _shared_executor(executor: MeshExecutor) -> Iterator[None]:
    """One executor for all of them, closed when they are done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "_executor", (os.getpid(), executor))
        yield


@p2pcompute.function
def square(n: int) -> int:
    """The square."""
    return n * n


@p2pcompute.function(retries=1, env={"GREETING": "hello"})
def greeting(name: str, *, directory: str = "") -> str:
    import os

    if directory:
        (Path(directory) / str(len(os.listdir(directory)))).touch()
        raise OSError("no")
    return f"{os.environ.get('GREETING')}, {name}"


def quarter(n: float) -> float:
    return square(2) * n / 16


def test_runs_here_and_there() -> None:
    """Broken: the decorated function is another one, or does not leave this process."""
    assert (square(3), square.__name__, square.__doc__) == (9, "square", "The square.")
    assert square.remote(4) == 16
    assert square.submit(5).result() == 25
    assert list(square.map(range(5))) == [0, 1, 4, 9, 16]
    assert square.start_map(range(3), name="squares").results() == [0, 1, 4]


def test_options(tmp_path: Path) -> None:
    """Broken: the options of the decorator are ignored."""
    assert greeting("you") == "None, you"
    assert greeting.remote("you") == "hello, you"
    with pytest.raises(OSError, match="no"):
        greeting.remote("you", directory=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2, "one retry"
    chosen = p2pcompute.function(options=TaskOptions(retries=3), cpus=2)(abs)
    assert (chosen._options.retries, chosen._options.cpus) == (3, 2)
    with pytest.raises(UsageError, match="no task option"):
        p2pcompute.function(retrys=1)
    with pytest.raises(BadValue):
        p2pcompute.function(retries=-1)


def test_others_may_call_it(executor: MeshExecutor) -> None:
    """Broken: a function that calls a decorated one cannot be sent."""
    assert executor.submit(quarter, 4).result() == 1.0
    assert executor.submit(square, 4).result() == 16
