"""What travels with a function, checked by running it in a worker process that has nothing else."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from p2pcompute.errors import TaskError, UsageError
from p2pcompute.execution import functions
from p2pcompute.execution.functions import (
    dump_args,
    key_of,
    load_exception,
    load_file_function,
    load_value,
    ship,
)
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload
from p2pcompute.host.runs import Outcome, OutcomeStatus

from .conftest import Rig


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A directory for the user's files; what is imported from it is forgotten afterwards."""
    directory = tmp_path / "project"
    directory.mkdir()
    modules, path = dict(sys.modules), list(sys.path)
    yield directory
    for name in [name for name in sys.modules if name not in modules]:
        del sys.modules[name]
    sys.path[:] = path


def write(project: Path, **files: str) -> None:
    for name, text in files.items():
        path = project / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


async def run_shipped(rig: Rig, function: Callable[..., Any], *args: Any) -> Outcome:
    shipped = ship(function)
    modules = None if shipped.modules_zip is None else await rig.blobs.put(shipped.modules_zip)
    spec = JobSpec(kind=TaskKind.FUNCTION, code=await rig.blobs.put(shipped.code), modules=modules)
    payload = TaskPayload(args=dump_args(args, zipped_names=shipped.zipped_names))
    (outcome,) = await rig.run(spec, payload)
    return outcome


async def test_a_module_beside_the_script_travels(rig: Rig, project: Path) -> None:
    """By far the commonest complaint about tools like this one."""
    write(
        project,
        helper="""
            import constants
            class Point:
                def __init__(self, x): self.x = x
            def double(n): return Point(n * constants.FACTOR)
        """,
        constants="FACTOR = 2",
        script="""
            import helper
            from helper import Point
            def work(n): return helper.double(n)
        """,
    )
    work = load_file_function(f"{project}/script.py::work")
    assert str(project) not in sys.path, "the script's directory stayed on sys.path"
    shipped = ship(work)
    assert shipped.module_names == ("constants", "helper", "script") and shipped.modules_zip is None
    assert cloudpickle.list_registry_pickle_by_value() == set(), "the user's own pickles would change"
    outcome = await run_shipped(rig, work, 21)
    assert outcome.status == OutcomeStatus.OK, outcome.error
    value = load_value(outcome.value)
    assert value.x == 42 and isinstance(value, sys.modules["helper"].Point)


async def test_a_module_imported_inside_a_function_travels_as_a_zip(rig: Rig, project: Path) -> None:
    write(
        project,
        pkg__in____init__="",
        pkg__in__late="from . import deeper\ndef value(): return deeper.VALUE",
        pkg__in__deeper="VALUE = 7",
        script="def work():\n    from pkg.late import value\n    return value()",
    )
    work = load_file_function(project / "script.py", "work")
    shipped = ship(work)
    assert shipped.module_names == ("pkg", "pkg.deeper", "pkg.late", "script") and shipped.modules_zip
    assert ship(work).modules_zip == shipped.modules_zip, "the same sources must be the same blob"
    outcome = await run_shipped(rig, work)
    assert load_value(outcome.value) == 7, outcome.error


async def test_large_modules_travel_as_a_zip(rig: Rig, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = "def answer(): return 42\nclass Thing: pass"
    write(project, big=big, script="import big\ndef work(x): return big.answer(), x")
    work = load_file_function(f"{project}/script.py::work")
    monkeypatch.setattr(functions, "MODULES_BY_VALUE_BYTES_MAX", 10)
    assert ship(work).zipped_names == ("big", "script")
    outcome = await run_shipped(rig, work, sys.modules["big"].Thing())
    assert outcome.status == OutcomeStatus.OK, outcome.error


async def test_a_module_with_a_lock_travels_as_a_zip(rig: Rig, project: Path) -> None:
    write(
        project,
        guarded="import threading\nLOCK = threading.Lock()\ndef value():\n    with LOCK:\n        return 5",
        script="import guarded\ndef work(): return guarded.value()",
    )
    outcome = await run_shipped(rig, load_file_function(f"{project}/script.py::work"))
    assert load_value(outcome.value) == 5


async def test_two_jobs_with_modules_of_the_same_name(rig: Rig, tmp_path: Path, project: Path) -> None:
    """The second job would silently run the first one's code in a warm process."""
    values = []
    for number in (1, 2):
        directory = project / str(number)
        write(directory, same=f"VALUE = {number}", script="def work():\n    import same\n    return same.VALUE")
        work = load_file_function(f"{directory}/script.py::work")
        values.append(load_value((await run_shipped(rig, work)).value))
        sys.modules.pop("same", None)
    assert values == [1, 2]


async def test_numpy_is_seeded_even_when_a_task_imports_it(
    rig: Rig, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that differ from run to run would make results of equal tasks differ."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "numpy"]:
        monkeypatch.delitem(sys.modules, name)
    write(
        project,
        numpy__in____init__="",
        numpy__in__random="SEEDS = []\ndef seed(n): SEEDS.append(n)",
        script="def work():\n    import numpy.random\n    return numpy.random.SEEDS",
    )
    work = load_file_function(f"{project}/script.py::work")
    first = load_value((await run_shipped(rig, work)).value)
    assert len(first) == 1 and 0 < first[0] < 1 << 32


async def test_functions_under_lru_cache_travel(rig: Rig, project: Path) -> None:
    """They are pickled by their name, which no node finds in a script: AttributeError, from deep inside of ours."""
    text = """
        import functools
        @functools.cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        def use(n): return fib(n), fib.cache_info().maxsize
    """
    write(project, memo=text, other=text.replace("n < 2", "n < 3"))
    use, fib = (load_file_function(f"{project}/memo.py::{name}") for name in ("use", "fib"))
    assert load_value((await run_shipped(rig, use, 30)).value) == (832040, None)
    assert load_value((await run_shipped(rig, fib, 30)).value) == 832040
    assert load_value((await run_shipped(rig, lru_cache(lambda n: -n), 3)).value) == -3
    assert pickle.loads(ship(lru_cache(textwrap.dedent)).code)(" x") == "x"
    assert key_of(fib) != key_of(load_file_function(f"{project}/other.py::fib")), "it would not be computed again"


async def test_arguments_of_own_classes_travel(rig: Rig, project: Path) -> None:
    write(project, shapes="class Square:\n    side = 3\n    def area(self): return self.side ** 2")
    sys.path.insert(0, str(project))
    import shapes  # type: ignore[import-not-found]

    outcome = await run_shipped(rig, lambda shape: shape.area(), shapes.Square())
    assert load_value(outcome.value) == 9, outcome.error


def test_libraries_stay_behind() -> None:
    def uses_libraries() -> Any:
        return random.random(), cloudpickle.dumps

    assert [name for name in ship(uses_libraries).module_names if not name.startswith("tests")] == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: _with(open(os.devnull, "w")), ("an open file", "open it inside")),  # noqa: SIM115
        (lambda: _with({"deep": [threading.Lock()]}), ("['deep'][0]", "a lock")),
        (lambda: partial(print, threading.Lock()), ("a lock",)),
        (lambda: _with(n for n in range(3)), ("a generator", "pass a list")),
    ],
)
def test_what_cannot_travel_is_named(make: Callable[[], Any], words: tuple[str, ...]) -> None:
    """ "cannot pickle '_thread.lock' object" does not tell a person which of their variables that is."""
    function = make()
    with pytest.raises(UsageError) as caught:
        ship(function)
    error = caught.value
    text = str(error)
    assert error.code == "unpicklable" and error.fix and all(word in text for word in words), text
    if hasattr(function, "close_it"):
        function.close_it()


def _with(held: Any) -> Any:
    def work() -> Any:
        return held

    work.close_it = getattr(held, "close", lambda: None)  # type: ignore[attr-defined]
    return work


def test_arguments_that_cannot_travel_are_named() -> None:
    with pytest.raises(UsageError, match=r"the arguments cannot be sent .* a lock"):
        dump_args((1, {"x": threading.Lock()}))


def test_targets_that_name_no_function(project: Path) -> None:
    write(project, script="def work(): pass\nvalue = 3", broken="raise ValueError('at import')")
    write(project, leaves="raise SystemExit")
    cases = {
        f"{project}/script.py": "does not name a function",
        f"{project}/absent.py::work": "there is no file",
        f"{project}/script.py::wrok": "did you mean 'work'",
        f"{project}/script.py::value": "no function 'value'",
        f"{project}/broken.py::work": "ValueError: at import",
        f"{project}/leaves.py::work": "SystemExit",
        "no_such_package.mod::work": "there is no module",
        "os::nothing_like_this": "no function",
    }
    for target, text in cases.items():
        with pytest.raises(UsageError, match=text.replace("'", ".")):
            load_file_function(target)
    assert load_file_function("os.path::join") is os.path.join
    assert "broken" not in sys.modules


def test_results_that_cannot_be_rebuilt_are_task_errors() -> None:
    with pytest.raises(TaskError, match="cannot be rebuilt"):
        load_value(b"junk")
    assert isinstance(load_exception(b"junk"), TaskError)


# --- content keys -----------------------------------------------------------------------------------------

KEYED = """
import math
LIMIT = 3
NAMES = {"b", "a", "c"}
class Config:
    size = 4
    def grow(self): return self.size * LIMIT
def helper(n): return n + LIMIT
def work(n, by=2.5, *, names=frozenset({"x", "y", "z"})):
    inner = lambda m: m in {"p", "q", "r"} or m in NAMES
    return [helper(n) * by, math.pi, Config().grow(), inner("p")]
"""


def key_in_new_process(directory: Path, text: str) -> str:
    """The key of `work`, from a process with another hash seed, another file name and no bytecode cache."""
    directory.mkdir()
    (directory / "keyed.py").write_text(text)
    code = (
        "import sys; from p2pcompute.execution.functions import *;"
        f"print(key_of(load_file_function('{directory}/keyed.py::work')).hex())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "random", "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_key_is_the_same_in_every_process_and_changes_with_the_code(tmp_path: Path, project: Path) -> None:
    """A key that moves makes resume do everything again; one that stays hides a changed program."""
    (project / "keyed.py").write_text(KEYED)
    key = key_of(load_file_function(f"{project}/keyed.py::work")).hex()
    assert key_in_new_process(tmp_path / "same", "# moved by a comment\n\n" + KEYED) == key
    changes = [
        ("LIMIT = 3", "LIMIT = 4"),
        ("n + LIMIT", "n - LIMIT"),
        ("by=2.5", "by=2.6"),
        ('"r"', '"s"'),
        ("size = 4", "size = 5"),
    ]
    changed = {key}
    for old, new in changes:
        assert old in KEYED
        directory = project / f"changed{len(changed)}"
        directory.mkdir()
        (directory / "keyed.py").write_text(KEYED.replace(old, new))
        changed.add(key_of(load_file_function(f"{directory}/keyed.py::work")).hex())
    assert len(changed) == len(changes) + 1


def test_key_of_a_shipped_function_and_of_recursion() -> None:
    def walk(n: int) -> int:
        return 0 if n == 0 else walk(n - 1)

    loop: list[Any] = []
    loop.append(loop)

    def holds() -> Any:
        return loop

    assert key_of(walk) != key_of(holds)
    assert key_of(partial(walk, 1)) != key_of(partial(walk, 2))


def test_key_of_data_that_is_reached_on_many_ways() -> None:
    """Broken: a function that names an object of many shared parts takes for ever to send."""
    data: list[object] = [1]
    for _ in range(60):
        data = [data, data]

    def reads() -> object:
        return data

    before = key_of(reads)
    assert key_of(reads) == before
    data = [data, 2]
    assert key_of(reads) != before
