"""Clock and randomness of the real host: the only places where a node reads the operating system's."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from p2pcompute.host.interfaces import Timer


class RealClock:
    """Monotonic and wall time of this machine; timers of the running event loop."""

    def now(self) -> float:
        """Monotonic seconds; never steps back, means nothing on another machine."""
        return time.monotonic()

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay_s, callback)

    def timeout(self, delay_s: float | None) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(delay_s)


class SystemRng:
    """Named streams seeded from the operating system's entropy.  Not for secrets: those come from `Crypto`."""

    def __init__(self) -> None:
        self._streams: dict[str, random.Random] = {}

    def stream(self, name: str) -> random.Random:
        """Return the stream of `name`; the same object every time."""
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = random.Random(int.from_bytes(os.urandom(32), "big"))
        return stream
