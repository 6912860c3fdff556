"""`AsyncMeshExecutor`: calls that are awaited, maps that are iterated with `async for`."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from p2pcompute import AsyncMeshExecutor, BadValue
from tests.api.conftest import wait_until


def square(n: int) -> int:
    return n * n


def inverse(n: int) -> float:
    return 1 / n


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def test_calls_and_maps() -> None:
    """Broken: values differ from those of `MeshExecutor`, or come in another order."""
    async with AsyncMeshExecutor(max_workers=2, local=True) as executor:
        assert await executor.run(square, 3) == 9
        assert await asyncio.gather(*(executor.run(square, n) for n in range(20))) == [n * n for n in range(20)]
        data = bytes(1 << 20)
        assert await executor.run(len, data) == len(data)
        assert [value async for value in executor.map(square, range(500))] == [n * n for n in range(500)]
        unordered = [value async for value in executor.map(square, range(500), ordered=False)]
        assert sorted(unordered) == [n * n for n in range(500)]
        assert [value async for value in executor.map(pow, [2, 3], [3, 2], chunksize=1)] == [8, 9]
        assert [value async for value in executor.map(square, [])] == []
        with pytest.raises(ZeroDivisionError):
            await executor.run(inverse, 0)
        seen = []
        with pytest.raises(ZeroDivisionError):
            async for value in executor.map(inverse, [4, 2, 0, 1], chunksize=4):
                seen.append(value)
        assert seen == [0.25, 0.5]
        with pytest.raises(BadValue):
            executor.map(square, [], chunksize=-1)
    with pytest.raises(RuntimeError):
        await executor.run(square, 1)
    with pytest.raises(RuntimeError):
        await AsyncMeshExecutor().run(square, 1)


async def test_the_loop_goes_on() -> None:
    """Broken: waiting for a result blocks the program's loop."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    async with AsyncMeshExecutor(max_workers=1, local=True) as executor:
        ticking = asyncio.get_running_loop().create_task(tick())
        await executor.run(nap, 0.3)
        async for _ in executor.map(nap, [0.1] * 2, chunksize=1):
            pass
        ticking.cancel()
    assert ticks > 10


async def test_unordered_results_come_as_they_are_there() -> None:
    """Broken: one slow call holds back the results of all others."""
    async with AsyncMeshExecutor(max_workers=2, local=True) as executor:
        await asyncio.gather(*(executor.run(nap, 0.2) for _ in range(2)))  # both workers have started
        naps = executor.map(nap, [1.0, 0.0, 0.01], ordered=False, chunksize=1)
        assert [value async for value in naps][-1] == 1.0


async def test_endless_input_and_back_pressure() -> None:
    """Broken: an endless iterable is read to its end, or far ahead of the results."""
    counter = itertools.count()
    async with AsyncMeshExecutor(max_workers=1, local=True) as executor:
        results = executor.map(square, counter, chunksize=1, buffersize=4)
        for n in range(20):
            assert await anext(results) == n * n
        await results.aclose()  # type: ignore[attr-defined]
    assert next(counter) <= 20 + 4 + 1


async def test_cancelled_block_stops_the_calls(tmp_path: Path) -> None:
    """Broken: Ctrl-C in an asyncio program waits for calls that take an hour."""

    def work() -> None:
        (tmp_path / "started").touch()
        time.sleep(60)

    async def main() -> None:
        async with AsyncMeshExecutor(max_workers=1, local=True) as executor:
            await executor.run(work)

    before = time.monotonic()
    task = asyncio.get_running_loop().create_task(main())
    await asyncio.to_thread(wait_until, (tmp_path / "started").exists, "the call runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - before < 30


async def test_cancelled_iteration(tmp_path: Path) -> None:
    """Broken: a task that is cancelled while it waits for a map leaves the map running."""

    def touch(n: int) -> None:
        time.sleep(0.2)
        (tmp_path / str(n)).touch()

    async with AsyncMeshExecutor(max_workers=1, local=True) as executor:

        async def consume() -> None:
            async for _ in executor.map(touch, range(100), chunksize=1):
                raise LookupError

        with pytest.raises(LookupError):
            await consume()
    assert len(list(tmp_path.iterdir())) < 20
