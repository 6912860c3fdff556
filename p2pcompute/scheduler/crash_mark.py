"""Which tasks run on this node, noted on disk: if its process dies, one of them may be why.

Only tasks that have run for a tick are noted, so that tiny ones do not pass through the disk.  The next life of the
node tells their owners, unless the machine went down with the process: then it was hardly a task.

Bound: MARKED_MAX tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from p2pcompute.errors import StoreError
from p2pcompute.host.interfaces import Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.store.journal import Journal

MARK_META: Final = "running"
MARKED_MAX: Final = 256
"""Tasks that are noted to run."""
SAME_BOOT_S: Final = 60.0
"""A machine has not been restarted when its clocks differ by as much as before, give or take this."""
Entry = list[Any]
"""[owner (b"": this node), job, index, generation, attempt]"""


class CrashMark:
    """The note of one node; of one without a journal there is none."""

    __slots__ = ("_host", "_journal", "_marked", "_ran", "_scope")

    def __init__(self, host: Host, journal: Journal | None, scope: TaskScope) -> None:
        self._host = host
        self._journal = journal
        self._scope = scope
        self._ran: dict[int, None] = {}
        """Run ids that ran at the last tick."""
        self._marked: list[Entry] = []
        """What is on disk."""

    @property
    def is_set(self) -> bool:
        return bool(self._marked)

    def note(self, running: Mapping[int, Entry]) -> None:
        """Note what runs now, by run id; called with each tick."""
        entries = [entry for run_id, entry in running.items() if run_id in self._ran][:MARKED_MAX]
        self._ran = dict.fromkeys(running)
        if self._journal is not None and entries != self._marked:
            self._marked = entries
            self._scope.spawn(self._write(self._journal), "mark")

    async def clear(self) -> None:
        """The node ends on purpose, or owners were told of what an earlier life has left."""
        self._marked = []
        if self._journal is not None:
            await self._write(self._journal)

    async def left(self) -> list[Entry] | None:
        """Return what ran when an earlier life of this node ended and its machine went on; None: nothing is noted."""
        mark = None if self._journal is None else await self._journal.meta(MARK_META)
        if mark is None:
            return None
        started, entries = mark
        is_same_boot = abs(self._host.clock.wall() - self._host.clock.now() - started) < SAME_BOOT_S
        return list(entries) if is_same_boot else []

    async def _write(self, journal: Journal) -> None:
        value = [int(self._host.clock.wall() - self._host.clock.now()), self._marked] if self._marked else None
        try:
            await self._host.store.commit([journal.meta_write(MARK_META, value)])
        except StoreError:
            self._marked = []  # tried again by the next tick
