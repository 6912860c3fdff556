"""What a function captures travels, is sent once, and is sent again when it has changed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from p2pcompute import MeshExecutor
from p2pcompute.api.functions import CHANGES_MAX, KNOWN_MAX, Functions, name_of
from p2pcompute.api.options import TaskOptions
from tests.api.conftest import run_script

FACTOR = 2


def helper(n: int) -> int:
    return n * FACTOR


def outer(n: int) -> int:
    return helper(n) + 1


@pytest.fixture
def functions() -> Functions:
    return Functions(TaskOptions())


def test_sent_once(functions: Functions) -> None:
    """Broken: every call pickles its function again."""
    first, _ = functions.find(outer)
    assert functions.find(outer)[0] is first
    assert functions.find(outer, chunked=True)[0] is not first


def test_global_rebound(functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: calls after a change of a global still see the old one."""
    first, _ = functions.find(outer)
    monkeypatch.setitem(outer.__globals__, "FACTOR", 3)
    second, _ = functions.find(outer)
    assert second.key != first.key, "two functions below, in a function of the user's own"
    monkeypatch.undo()
    assert functions.find(outer)[0].key == first.key, "the same content is the same job"


def test_function_below_redefined(functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: in a notebook, a helper that was edited still runs in its old form."""
    first, _ = functions.find(outer)
    monkeypatch.setitem(outer.__globals__, "helper", lambda n: -n)
    assert functions.find(outer)[0].key != first.key


def test_closures(functions: Functions) -> None:
    """Broken: the second closure of a loop runs with what the first captured."""

    def make(factor: int) -> Any:
        return lambda n: n * factor

    first, second = functions.find(make(2))[0], functions.find(make(3))[0]
    assert first.key != second.key
    assert functions.find(make(3))[0] is second, "a twin with the same content needs no pickling"

    def counter() -> Any:
        count = 0

        def add() -> int:
            nonlocal count
            count += 1
            return count

        return add

    changing = counter()
    before = functions.find(changing)[0]
    changing()
    assert functions.find(changing)[0].key != before.key


def test_defaults(functions: Functions) -> None:
    """Broken: `lambda n, k=k: …` in a loop runs with the first k."""
    keys = {functions.find(lambda n, k=k: n + k)[0].key for k in range(3)}
    assert len(keys) == 3


def test_new_captures_at_each_call_make_no_jobs(executor: MeshExecutor) -> None:
    """Broken: a thousand closures are a thousand jobs, and the node has a limit of those."""

    def make(k: int) -> Any:
        return lambda n: n + k

    futures = [executor.submit(make(k), 1) for k in range(200)]
    assert [future.result() for future in futures] == [k + 1 for k in range(200)]
    assert len({future._job for future in futures}) <= CHANGES_MAX + 1
    partials = [executor.submit(functools.partial(pow, 2), k) for k in range(50)]
    assert [future.result() for future in partials] == [2**k for k in range(50)]
    assert len({future._job for future in partials}) == 1


def test_memory_is_bounded(functions: Functions) -> None:
    """Broken: a program that makes functions for ever keeps them all."""
    for n in range(KNOWN_MAX + 20):
        space: dict[str, Any] = {}
        exec(f"def f(): return {n}", space)
        functions.find(space["f"])
    assert len(functions._known) == KNOWN_MAX


def test_options_make_another_job() -> None:
    """Broken: calls with other limits run under those of the first."""
    plain, limited = Functions(TaskOptions()), Functions(TaskOptions(mem="1G"))
    assert plain.find(outer)[0].key != limited.find(outer)[0].key
    assert plain.find(outer)[0].key == Functions(TaskOptions()).find(outer)[0].key


def test_names() -> None:
    """Broken: people cannot tell jobs apart."""

    def inner() -> None:
        return None

    assert name_of(outer) == "outer"
    assert name_of(inner) == "inner"
    assert name_of(functools.partial(outer, 1)) == "outer"
    assert name_of(Path.touch) == "Path.touch"


SCRIPT = """
import sys
from p2pcompute import MeshExecutor
import beside
from package.inner import deep

SCALE = 10

class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return type(other) is Point and other.x == self.x

def scaled(point):
    return Point(point.x * SCALE)

def late(n):
    from package import other
    return other.triple(n)

print("script runs")
with MeshExecutor(max_workers=2) as ex:
    assert ex.submit(scaled, Point(2)).result() == Point(20)
    assert list(ex.map(beside.double, [1, 2])) == [2, 4]
    assert ex.submit(deep, beside.Thing(3)).result().n == 4
    assert ex.submit(late, 5).result() == 15
    SCALE = 100
    assert ex.submit(scaled, Point(2)).result() == Point(200)
print("done")
"""


def test_script_without_guard_and_modules_beside_it(tmp_path: Path) -> None:
    """Broken: a plain script needs `if __name__ == "__main__"`, runs twice, or its own modules are not found."""
    (tmp_path / "beside.py").write_text(
        "class Thing:\n    def __init__(self, n):\n        self.n = n\n\ndef double(n):\n    return 2 * n\n"
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text(
        "from beside import Thing\n\ndef deep(thing):\n    return Thing(thing.n + 1)\n"
    )
    (tmp_path / "package" / "other.py").write_text("def triple(n):\n    return 3 * n\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ran = run_script(script)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["script runs", "done"]
    assert not ran.stderr
