"""The executor for programs that run in an event loop of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from p2pcompute.api.executor import MeshExecutor
from p2pcompute.api.maps import Mapping

P = ParamSpec("P")
R = TypeVar("R")


class AsyncMeshExecutor:
    """`MeshExecutor` with calls that are awaited, for one `async with` block.

    What is sent is pickled, and iterables are read, in the thread of the loop; nothing else happens there.

    Args:
        options: as for `MeshExecutor`.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._made: MeshExecutor | None = None

    async def __aenter__(self) -> AsyncMeshExecutor:
        self._made = MeshExecutor(**self._options)
        try:
            await asyncio.to_thread(self._made._node.wait_ready)
        except BaseException:  # tidied up after, and raised again
            self._made.shutdown(wait=False, cancel_futures=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all calls; when the block was cancelled (Ctrl-C does that), stop them."""
        executor = self.executor
        is_interrupted = kind is not None and issubclass(kind, asyncio.CancelledError | KeyboardInterrupt)
        end = executor._interrupt if is_interrupted else executor.shutdown
        try:
            await asyncio.to_thread(end)
        except asyncio.CancelledError:
            await asyncio.to_thread(executor._interrupt)
            raise

    @property
    def executor(self) -> MeshExecutor:
        """The executor behind it, for everything that has no awaited form.

        Raises:
            RuntimeError: outside its `async with` block.
        """
        if self._made is None:
            raise RuntimeError("this executor works inside its 'async with' block")
        return self._made

    async def run(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn` on the mesh and return its value.  When the task that waits is cancelled, so is a call that has
        not started; one that runs goes on, as in `loop.run_in_executor`, and the end of the block waits for it.

        Raises:
            Exception: what the call raised.
            RuntimeError: outside the block.
            UsageError: the function or an argument cannot be sent.
        """
        return await self.executor.submit(fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        ordered: bool = True,
        chunksize: int = 0,
        buffersize: int | None = None,
    ) -> AsyncIterator[R]:
        """Call `fn` for the items of the iterables; yield the results as `MeshExecutor.map` does, lazily.

        Args:
            ordered: in the order of the items; else each as soon as it is there.
            chunksize: calls in one task; 0: chosen from how long the calls take.
            buffersize: at most so many items are taken ahead of the results; None: chosen as above.

        Raises:
            BadValue: a number is out of its range.
            Exception: (while iterating) what a call raised.
            RuntimeError: outside the block.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(news.set)

        mapping: Mapping[R] = self.executor._mapping(
            fn, iterables, chunk_count=chunksize, buffer_count=buffersize, is_ordered=ordered, on_ended=wake
        )
        return _results(mapping, news)


async def _results(mapping: Mapping[R], news: asyncio.Event) -> AsyncIterator[R]:
    try:
        while not mapping.is_over:
            news.clear()
            values = mapping.poll()
            if values is None:
                await news.wait()
                continue
            while values:
                yield values.pop()
    finally:
        mapping.close()
