"""Room for the inputs of tasks that a worker holds: pure books.

Each task that has begun to fetch its inputs, waits for its slot with them or runs has its share of a part of the blob
store; a blob that several tasks need counts once.  Who finds no room waits, first come, first served: so one with large
inputs is not passed for ever by those with small ones.  A task whose inputs alone are larger goes when no other has
any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pcompute.host.interfaces import BlobRef


class InputRoom:
    """Who has room for its inputs, and who waits."""

    def __init__(self, bytes_max: Callable[[], int]) -> None:
        """Args:
        bytes_max: how much room there is now.
        """
        self._bytes_max = bytes_max
        self._held: dict[int, Sequence[BlobRef]] = {}
        """Run id → inputs that have room."""
        self._tasks: dict[BlobRef, int] = {}
        """How many of these need a blob."""
        self._waiting: dict[int, Sequence[BlobRef]] = {}
        """Run id → inputs that wait for room, the first first."""
        self.bytes = 0

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def is_used(self) -> bool:
        return bool(self._held or self._waiting)

    def run_ids(self) -> list[int]:
        """Return the runs that have room, or wait for it."""
        return [*self._held, *self._waiting]

    def refs(self, run_id: int) -> Sequence[BlobRef]:
        """Return the inputs of a task that has room."""
        return self._held[run_id]

    def ask(self, run_id: int, refs: Sequence[BlobRef]) -> bool:
        """Give a task room, or let it wait; True when it has room."""
        is_first = not self._waiting
        self._waiting[run_id] = refs
        return is_first and bool(self.admit())

    def take(self, run_id: int, refs: Sequence[BlobRef]) -> None:
        """Give a task room whether there is any or not: it has had it before."""
        self._held[run_id] = refs
        for ref in dict.fromkeys(refs):
            count = self._tasks[ref] = self._tasks.get(ref, 0) + 1
            self.bytes += ref.size if count == 1 else 0

    def admit(self) -> list[int]:
        """Give room to those that wait, in their order; returns who has it now and had not."""
        admitted: list[int] = []
        for run_id, refs in list(self._waiting.items()):
            more = sum(ref.size for ref in dict.fromkeys(refs) if ref not in self._tasks)
            if self._held and self.bytes + more > self._bytes_max():
                break
            del self._waiting[run_id]
            self.take(run_id, refs)
            admitted.append(run_id)
        return admitted

    def leave(self, run_id: int) -> Sequence[BlobRef]:
        """A task needs its inputs no longer, or does not wait any more; returns those that had room."""
        self._waiting.pop(run_id, None)
        refs = self._held.pop(run_id, ())
        for ref in dict.fromkeys(refs):
            self._tasks[ref] -= 1
            if not self._tasks[ref]:
                del self._tasks[ref]
                self.bytes -= ref.size
        return refs
