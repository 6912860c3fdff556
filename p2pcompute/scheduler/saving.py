"""What the tasks of this node have saved, on its way to their owners.

The newest cookie of each running task is kept here until the task has ended, so that it can be told again: to an owner
that was restarted, and to whoever coordinates the job next.  An owner is told at most every CHECKPOINT_S, all in one
message where they fit.

Bounds: one cookie of each running task, CHECKPOINT_BYTES_MAX each; those over INLINE_BYTES_MAX are in the blob store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from p2pcompute.errors import P2pcError, RemoteError, StoreError
from p2pcompute.host.interfaces import BlobRef, Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import CHECKPOINT_S, CHECKPOINTS_BATCH_MAX, INLINE_BYTES_MAX, RESULTS_BATCH_BYTES_MAX
from p2pcompute.scheduler.worker import Held

RETRY_S = 5.0
"""Wait before an owner that did not answer is told again; sooner when it is heard of."""


@dataclass(slots=True, eq=False)
class Cookie:
    """What one running task has saved."""

    held: Held
    data: bytes
    blob: BlobRef | None = None
    """Where the data is kept instead when it is large; pinned."""
    told: bytes = b""
    """The coordinator that has it."""


Tell = Callable[[bytes, list[Cookie]], Awaitable[None]]
"""Bring cookies to a coordinator; raises P2pcError or TimeoutError."""


class Saver:
    """Keeps and tells what running tasks have saved."""

    def __init__(self, host: Host, scope: TaskScope, tell: Tell) -> None:
        self._host = host
        self._scope = scope
        self._tell = tell
        self._cookies: dict[int, Cookie] = {}
        """By run id."""
        self._telling: dict[bytes, asyncio.Event] = {}
        """Coordinators that are being told; the event ends a wait."""
        self.lost_count = 0
        """Large cookies for which the store had no room."""

    def saved(self, held: Held, data: bytes) -> None:
        """A task has saved this."""
        self._let_go(self._cookies.pop(held.run_id, None))
        self._cookies[held.run_id] = Cookie(held, data)
        self._begin(held.owner)

    def ended(self, run_id: int) -> Cookie | None:
        """A task has ended; returns its newest cookie, whose blob is the caller's to unpin."""
        return self._cookies.pop(run_id, None)

    def coordinator_heard_of(self, key: bytes) -> None:
        """A coordinator is there again, or anew: it gets everything."""
        for cookie in self._cookies.values():
            if cookie.held.owner == key:
                cookie.told = b""
        self.tell_all()

    def tell_all(self) -> None:
        """Tell whoever coordinates now what he has not been told."""
        for cookie in self._cookies.values():
            if cookie.told != cookie.held.owner:
                self._begin(cookie.held.owner)
        for event in self._telling.values():
            event.set()

    def _begin(self, owner: bytes) -> None:
        if owner not in self._telling:
            self._telling[owner] = asyncio.Event()
            self._scope.spawn(self._tell_owner(owner), "checkpoints")

    async def _tell_owner(self, owner: bytes) -> None:
        """Tell one coordinator until there is no more to tell."""
        event = self._telling[owner]
        try:
            while batch := await self._next(owner):
                event.clear()
                if await self._try(owner, batch):
                    for cookie in batch:
                        cookie.told = owner
                    await self._host.clock.sleep(CHECKPOINT_S)
                else:
                    with contextlib.suppress(TimeoutError):
                        async with self._host.clock.timeout(RETRY_S):
                            await event.wait()
        finally:
            del self._telling[owner]

    async def _try(self, owner: bytes, batch: list[Cookie]) -> bool:
        """Tell a coordinator; False when it did not answer, and is to be told again."""
        try:
            await self._tell(owner, batch)
        except RemoteError:
            return True  # it is there and does not take them
        except (P2pcError, TimeoutError):
            return False
        return True

    async def _next(self, owner: bytes) -> list[Cookie]:
        """Return what a coordinator does not have, as much as fits one message."""
        batch: list[Cookie] = []
        size = 0
        for run_id, cookie in list(self._cookies.items()):
            if cookie.held.owner != owner or cookie.told == owner:
                continue
            if len(cookie.data) > INLINE_BYTES_MAX and not await self._put(run_id, cookie):
                continue
            size += len(cookie.data)
            if batch and (size > RESULTS_BATCH_BYTES_MAX or len(batch) >= CHECKPOINTS_BATCH_MAX):
                break
            batch.append(cookie)
        return batch

    async def _put(self, run_id: int, cookie: Cookie) -> bool:
        """Put a large cookie into the blob store; False when it cannot be, or is not the newest any more."""
        ref = await self.stored(cookie.data)
        if self._cookies.get(run_id) is not cookie or ref is None:
            self._host.store.blobs.unpin([ref] if ref is not None else [])
            if self._cookies.get(run_id) is cookie:
                del self._cookies[run_id]
            return False
        cookie.data, cookie.blob = b"", ref
        return True

    async def stored(self, data: bytes) -> BlobRef | None:
        """Put a large cookie into the blob store, pinned once; None when there is no room."""
        try:
            ref = await self._host.store.blobs.put(data)
        except StoreError:
            self.lost_count += 1
            return None
        self._host.store.blobs.pin([ref])
        return ref

    def _let_go(self, cookie: Cookie | None) -> None:
        if cookie is not None and cookie.blob is not None:
            self._host.store.blobs.unpin([cookie.blob])
