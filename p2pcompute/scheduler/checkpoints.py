"""What tasks have saved: the owner's books, pure, and the entries of a CHECKPOINT message.

A cookie is bytes that only the next attempt of its task reads (`execution.checkpoints`).  The owner takes it from who
holds the lease, keeps the newest, and gives it along with the next grant.  Custodians keep copies, so that whoever
coordinates next goes on from them, also where the worker went away with the owner: each change has a number, and who
follows a job asks for those after the last one that it has.  Workers that are there tell theirs anew.

A checkpoint that is poisoned, so that every attempt that goes on from it fails, is defined away: an attempt that went
on from one and failed does not count as the task's failure, and from then on the task begins from scratch.

Invariants: at most one cookie of a task, of its present generation; never more than CHECKPOINTS_BYTES_MAX inline and
CHECKPOINT_BLOBS_BYTES_MAX in blobs, copies never more than CHECKPOINT_COPIES_SHARE of either: beyond it new ones are
refused, and the task keeps what it had.

Source: RFC 5352, section 3.4 (state cookies).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.limits import CHECKPOINT_BLOBS_BYTES_MAX, CHECKPOINT_COPIES_SHARE, CHECKPOINTS_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a task has reached."""

    cookie: bytes = b""
    blob: BlobRef | None = None
    """One of them: a large cookie is a blob."""
    generation: int = 0
    attempt: int = 0
    """In which it was saved."""
    by: tuple[bytes, ...] = ()
    """Installations that had a part in it: together one signer, when results are compared."""

    @property
    def size(self) -> int:
        return len(self.cookie) if self.blob is None else self.blob.size


@dataclass(frozen=True, slots=True)
class Change:
    """For the store: what is kept of a task now, and the blob that need not be kept any more."""

    job_id: bytes
    index: int
    saved: Saved | None
    freed: BlobRef | None


class Checkpoints:
    """The cookies of the tasks that one node coordinates."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, dict[int, Saved]] = {}
        self._scratch: dict[bytes, dict[int, int]] = {}
        """Tasks that begin from scratch from now on, with their generation."""
        self._numbers: dict[bytes, dict[int, int]] = {}
        """Number of the last change of each task that has not ended, lowest first; also of those that were dropped."""
        self._number = 0
        self._inline_bytes = 0
        self._blob_bytes = 0
        self.changes: list[Change] = []
        """Since they were taken last."""
        self.refused_count = 0
        """Cookies for which there was no room."""

    def get(self, job_id: bytes, index: int, generation: int) -> Saved | None:
        """Return what the next attempt goes on from."""
        saved = self._jobs.get(job_id, {}).get(index)
        return saved if saved is not None and saved.generation == generation else None

    def attempt(self, job_id: bytes, index: int) -> int:
        """Return the last attempt in which a task has got on; 0: none."""
        saved = self._jobs.get(job_id, {}).get(index)
        return 0 if saved is None else saved.attempt

    def size_of(self, job_id: bytes) -> int:
        """Return the bytes of all that is kept of a job."""
        return sum(saved.size for saved in self._jobs.get(job_id, {}).values())

    def tasks(self, job_id: bytes) -> list[int]:
        """Return the tasks of a job that have something kept."""
        return list(self._jobs.get(job_id, ()))

    def since(self, job_id: bytes, number: int) -> list[tuple[int, int, Saved | None]]:
        """Return (number, index, what is kept now) of all changes after one number, in their order."""
        numbers, kept = self._numbers.get(job_id, {}), self._jobs.get(job_id, {})
        later = takewhile(lambda entry: entry[1] > number, reversed(numbers.items()))
        return [(changed, index, kept.get(index)) for index, changed in later][::-1]

    def keep(
        self, job_id: bytes, index: int, saved: Saved, *, is_restored: bool = False, is_copy: bool = False
    ) -> bool:
        """Keep a cookie instead of the one before; False when there is no room, or it begins from scratch.

        Args:
            is_restored: the store has it already.
            is_copy: of a job that another node coordinates.
        """
        if self._scratch.get(job_id, {}).get(index) == saved.generation:
            return False
        before = self._jobs.get(job_id, {}).get(index)
        inline, blobs = self._inline_bytes + _inline(saved), self._blob_bytes + _in_blob(saved)
        if before is not None:
            inline, blobs = inline - _inline(before), blobs - _in_blob(before)
        share = CHECKPOINT_COPIES_SHARE if is_copy else 1.0
        if inline > CHECKPOINTS_BYTES_MAX * share or blobs > CHECKPOINT_BLOBS_BYTES_MAX * share:
            self.refused_count += 1
            return False
        self._inline_bytes, self._blob_bytes = inline, blobs
        self._jobs.setdefault(job_id, {})[index] = saved
        self._changed(job_id, index)
        if not is_restored:
            self.changes.append(Change(job_id, index, saved, None if before is None else before.blob))
        return True

    def drop(self, job_id: bytes, index: int) -> None:
        """Forget a task's cookie: it has ended, or what it says has led to a failure."""
        saved = self._jobs.get(job_id, {}).pop(index, None)
        if saved is None:
            return
        self._inline_bytes -= _inline(saved)
        self._blob_bytes -= _in_blob(saved)
        if not self._jobs[job_id]:
            del self._jobs[job_id]
        self._changed(job_id, index)
        self.changes.append(Change(job_id, index, None, saved.blob))

    def _changed(self, job_id: bytes, index: int) -> None:
        self._number += 1
        numbers = self._numbers.setdefault(job_id, {})
        numbers.pop(index, None)
        numbers[index] = self._number

    def begin_from_scratch(self, job_id: bytes, index: int, generation: int) -> None:
        """Whatever this task saves at its present generation is not used."""
        self._scratch.setdefault(job_id, {})[index] = generation
        self.drop(job_id, index)

    def ended(self, job_id: bytes, index: int) -> None:
        """A task has ended, which is told by other means."""
        self.drop(job_id, index)
        numbers = self._numbers.get(job_id)
        if numbers is not None and numbers.pop(index, None) is not None and not numbers:
            del self._numbers[job_id]
        scratch = self._scratch.get(job_id)
        if scratch is not None and scratch.pop(index, None) is not None and not scratch:
            del self._scratch[job_id]

    def forget_job(self, job_id: bytes) -> None:
        """Forget all cookies of a job."""
        for index in list(self._jobs.get(job_id, ())):
            self.drop(job_id, index)
        self._numbers.pop(job_id, None)
        self._scratch.pop(job_id, None)

    def take_changes(self) -> list[Change]:
        """Return what has to be stored since the last call."""
        changes, self.changes = self.changes, []
        return changes


def _inline(saved: Saved) -> int:
    return len(saved.cookie)


def _in_blob(saved: Saved) -> int:
    return 0 if saved.blob is None else saved.blob.size


# --- on the wire and in the store -----------------------------------------------------------------


def cookie_body(cookie: bytes, blob: BlobRef | None) -> bytes | list[Any]:
    """Return how a cookie travels: itself, or [digest, size] of its blob."""
    return cookie if blob is None else [blob.digest, blob.size]


def parse_cookie(value: Any, *, inline_bytes_max: int, blob_bytes_max: int) -> tuple[bytes, BlobRef | None]:
    """Return cookie and blob.

    Raises:
        RemoteProtocolError: it is neither, or too large.
    """
    if isinstance(value, bytes) and len(value) <= inline_bytes_max:
        return value, None
    if isinstance(value, list) and len(value) == 2:
        digest, size = value
        if isinstance(digest, bytes) and len(digest) == 32 and type(size) is int and 0 < size <= blob_bytes_max:
            return b"", BlobRef(digest, size)
    raise RemoteProtocolError("malformed message: cookie")
