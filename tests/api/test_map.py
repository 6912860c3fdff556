"""`MeshExecutor.map` is lazy, ordered and parallel."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2pcompute
from p2pcompute import MeshExecutor, UsageError
from tests.api.conftest import wait_until


def square(n: int) -> int:
    return n * n


def inverse(n: int) -> float:
    return 1 / n


@pytest.mark.parametrize("chunksize", [0, 1, 7, 1000])
def test_order(executor: MeshExecutor, chunksize: int) -> None:
    """Broken: results come in another order than their inputs, or some twice or never."""
    assert list(executor.map(square, range(500), chunksize=chunksize)) == [n * n for n in range(500)]


def test_several_iterables(executor: MeshExecutor) -> None:
    """Broken: the shortest iterable does not end the map."""
    assert list(executor.map(pow, [2, 3, 4], itertools.count(1))) == [2, 9, 64]
    assert list(executor.map(pow, [2, 3], [5], chunksize=10)) == [32]
    assert list(executor.map(square, [])) == []
    assert list(executor.map(pow, [], [])) == []


def test_starmap_and_how_many_at_once(executor: MeshExecutor) -> None:
    """Broken: rows of arguments arrive as one argument; Dask cannot tell how many calls to hand in."""
    assert list(executor.starmap(pow, zip(range(50), itertools.repeat(2)), chunksize=3)) == [n * n for n in range(50)]
    assert executor._max_workers == 2


def test_endless_input(executor: MeshExecutor) -> None:
    """Broken: an endless iterable is read to its end."""
    taken = 0

    def inputs() -> Iterator[int]:
        nonlocal taken
        for n in itertools.count():
            taken += 1
            yield n

    results = executor.map(square, inputs())
    assert list(itertools.islice(results, 1000)) == [n * n for n in range(1000)]
    assert taken < 200_000
    results.close()  # type: ignore[attr-defined]


def test_buffer_bounds_what_is_taken_ahead(executor: MeshExecutor) -> None:
    """Broken: inputs that do not fit the memory are read ahead without a bound."""
    taken = 0

    def inputs() -> Iterator[int]:
        nonlocal taken
        for n in range(100):
            taken += 1
            yield n

    results = executor.map(square, inputs(), buffersize=4, chunksize=1)
    assert taken <= 4
    for yielded, value in enumerate(results, 1):
        assert value == (yielded - 1) ** 2
        assert taken <= yielded + 4
    assert taken == 100


def test_nothing_is_read_while_nobody_asks(executor: MeshExecutor) -> None:
    """Broken: a map that is not consumed runs away with its inputs."""
    counter = itertools.count()
    results = executor.map(square, counter, chunksize=1)
    first = next(counter)
    time.sleep(0.1)
    assert next(counter) == first + 1
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("chunksize", [0, 1, 5])
def test_exception(executor: MeshExecutor, chunksize: int) -> None:
    """Broken: a failing call takes the results of those before it along, or is passed over."""
    results = executor.map(inverse, [4, 2, 1, 0, 5, 6], chunksize=chunksize)
    assert [next(results), next(results), next(results)] == [0.25, 0.5, 1.0]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "in inverse" in str(caught.value.__cause__)
    assert not [name for name in vars(caught.value) if name != "p2pc"], "what carries the results is gone"
    with pytest.raises(StopIteration):
        next(results)


def test_exception_in_the_input(executor: MeshExecutor) -> None:
    """Broken: an error of the user's own generator is swallowed."""

    def inputs() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(executor.map(square, inputs()))


def test_timeout(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: a bounded map waits for ever."""
    gate = tmp_path / "gate"

    def wait(n: int) -> int:
        while n and not gate.exists():
            time.sleep(0.01)
        return n

    results = executor.map(wait, range(2), timeout=0.5, chunksize=1)
    assert next(results) == 0
    with pytest.raises(TimeoutError):
        next(results)
    gate.touch()


def test_closing_cancels_the_rest(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: `break` in a loop over results leaves all of the work running."""

    def touch(n: int) -> int:
        time.sleep(0.05)
        Path(tmp_path, str(n)).touch()
        return n

    results = executor.map(touch, range(100), chunksize=1)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert executor.submit(square, 3).result() == 9
    count = len(list(tmp_path.iterdir()))
    assert count < 20
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) <= count + 2


def test_chunks_grow_with_tiny_calls(executor: MeshExecutor) -> None:
    """Broken: a million tiny calls are a million tasks."""
    futures: list[object] = []
    send = executor._send

    def counting(*args: object) -> object:
        futures.append(args)
        return send(*args)  # type: ignore[arg-type]

    executor._send = counting  # type: ignore[method-assign, assignment]
    try:
        assert sum(executor.map(square, range(50_000))) == sum(n * n for n in range(50_000))
    finally:
        del executor._send
    assert len(futures) < 1000


def test_long_calls_are_not_bundled(executor: MeshExecutor) -> None:
    """Broken: two long calls wait for each other on one worker while the other idles."""
    before = time.monotonic()
    list(executor.map(time.sleep, [0.3] * 4))
    assert time.monotonic() - before < 1.1


def test_bad_arguments(executor: MeshExecutor) -> None:
    """Broken: a mistake shows up at the first result."""
    with pytest.raises(UsageError):
        executor.map(square)
    with pytest.raises(UsageError):
        executor.map(square, [1], chunksize=-1)
    with pytest.raises(UsageError):
        executor.map(square, [1], buffersize=0)
    with pytest.raises(TypeError):
        executor.map(square, 7)  # type: ignore[arg-type]


def test_module_level_map() -> None:
    """Broken: the shortest program does not work, or each call starts workers of its own."""
    assert list(p2pcompute.map(square, range(5))) == [0, 1, 4, 9, 16]
    from p2pcompute.api import shared

    first = shared.shared_executor()
    assert list(p2pcompute.map(pow, [2], [3], chunksize=1)) == [8]
    assert list(p2pcompute.map(os.getenv, ["COLOUR"], env={"COLOUR": "red"}, timeout=30)) == ["red"]
    with pytest.raises(UsageError, match="no task option 'colour'"):
        p2pcompute.map(pow, [2], [3], colour="red")
    assert shared.shared_executor() is first
    first.shutdown()
    assert list(p2pcompute.map(square, [3])) == [9], "made anew after somebody shut it down"
    shared.shared_executor().shutdown()
    wait_until(lambda: shared._executor is not None and shared._executor[1].is_closed, "closed")


@pytest.mark.parametrize("chunksize", [0, 1])
def test_results_after_the_block(chunksize: int) -> None:
    """Broken: `with … as ex: results = ex.map(…)` and reading behind it, which the standard library allows, fails."""
    with MeshExecutor(max_workers=1, local=True) as executor:
        results = executor.map(square, range(200), chunksize=chunksize)
        started = executor.map(square, list(range(50)), chunksize=chunksize)
        assert next(started) == 0
    assert list(results) == [n * n for n in range(200)]
    assert list(started) == [n * n for n in range(1, 50)]


def test_calls_without_reading_results(tmp_path: Path) -> None:
    """Broken: a map for its effects stops half way at the end of the block."""

    def touch(n: int) -> None:
        (tmp_path / str(n)).touch()

    with MeshExecutor(max_workers=1, local=True) as executor:
        executor.map(touch, range(100))
        executor.map(touch, range(100, 200)).close()  # type: ignore[attr-defined]
    assert {int(path.name) for path in tmp_path.iterdir()} == set(range(200))


def test_endless_input_after_the_block() -> None:
    """Broken: the end of the block reads an endless iterable, or the reader never learns why no more comes."""
    with MeshExecutor(max_workers=1, local=True) as executor:
        endless = executor.map(square, itertools.count(), chunksize=1)
        bounded = executor.map(square, range(50), chunksize=1, buffersize=2)
    for results in (endless, bounded):
        with pytest.raises(RuntimeError, match="after shutdown"):
            for expected, value in enumerate(results):
                assert value == expected * expected
        assert expected > 0


def test_input_that_fails_at_the_end() -> None:
    """Broken: an item that cannot be sent at the end of the block ends the program there, or is lost."""
    items = [*range(100), threading.Lock()]
    with MeshExecutor(max_workers=1, local=True) as executor:
        results = executor.map(str, items, chunksize=10)
    with pytest.raises(UsageError, match="lock"):
        for n, value in enumerate(results):
            assert value == str(n)
    assert n == 99
