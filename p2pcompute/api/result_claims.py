"""Who writes where: a marker beside results that are being written, so that no two writers share them.

The marker of a job names it and the installation that keeps it.  It goes when the job's results are complete; a job
that waits for its node keeps it, because it will carry on.

The marker of a program that writes itself (`Hold`) is locked by flock(2) for as long as the program lives; one that
nobody has locked was left by a program that died, and says nothing.  On file systems without locks programs are not
told from one another.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import UsageError
from p2pcompute.host.plain_files import open_plain

_SUFFIX: Final = ".p2pc-writer"
_BYTES_MAX: Final = 64 * 1024
_LOOKED_S: Final = 0.2
"""Whoever looks whether a marker is locked locks it for a moment: a lock that is held for longer is a program's."""
_PAUSE_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Claim:
    """The job or program that writes results."""

    job: str
    """Its id in hex; empty: a program's."""
    home: str
    """State directory of the installation that keeps it."""
    host: str
    """Name of that machine."""
    marker: Path
    program: int = 0
    """Process id of a program."""

    def refusal(self, path: Path) -> UsageError:
        """Return the error for somebody else who wants to write there."""
        if not self.job:
            return UsageError(
                f"{path} is being written by another program",
                f"process {self.program} on {self.host}: two writers would mix their results",
                "wait for its end, or name another place",
                code="results-busy",
            )
        return UsageError(
            f"{path} belongs to the unfinished job {self.job[:8]}",
            f"it is kept by {self.home} on {self.host}, and goes on there",
            f"let it end or cancel it there; if it is gone for good: rm {self.marker}",
            code="results-busy",
        )


def marker_of(path: Path, *, is_directory: bool) -> Path:
    """Return the marker of a results directory, results file or joblog."""
    return path / _SUFFIX if is_directory else path.with_name(f".{path.name}{_SUFFIX}")


def read_claim(marker: Path) -> Claim | None:
    """Return what a marker says; None when there is none, it is torn, or its program has died."""
    try:
        descriptor = open_plain(marker, os.O_RDONLY)
    except (OSError, UsageError):
        return None
    try:
        claim = _read(descriptor, marker)
        if claim is not None and not claim.job:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return claim
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return claim


def _read(descriptor: int, marker: Path) -> Claim | None:
    try:
        found: Any = json.loads(os.pread(descriptor, _BYTES_MAX, 0))
        if "program" in found:
            return Claim("", "", str(found["host"]), marker, int(found["program"]))
        return Claim(str(found["job"]), str(found["home"]), str(found["host"]), marker)
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Hold:
    """Places that this program writes itself: nobody else does until `release`, or the end of `with` or the program."""

    def __init__(self, places: Iterable[tuple[Path, Path]]) -> None:
        """Make the folders, and claim the places.

        Args:
            places: (marker, what it stands for).

        Raises:
            UsageError: a job or another program writes there.
            OSError: the disk refuses.
        """
        self._held: list[tuple[Path, int]] = []
        self.release = weakref.finalize(self, _release, self._held, os.getpid())
        """Give the places free; may be called again."""
        try:
            for marker, path in places:
                marker.parent.mkdir(parents=True, exist_ok=True)
                self._held.append((marker, _lock(marker, path)))
        except BaseException:  # tidied up after, and raised again
            self.release()
            raise

    def hand_over(self, job: str, home: str) -> None:
        """Leave the places to a job: its claim is there before ours goes.

        Raises:
            OSError: the disk refuses; they are free then.
        """
        try:
            for _marker, descriptor in self._held:
                _write(descriptor, {"job": job, "home": home, "host": os.uname().nodename})
        except BaseException:  # tidied up after, and raised again
            self.release()
            raise
        for _marker, descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _lock(marker: Path, path: Path) -> int:
    """Return a descriptor of the marker that is locked, and names this process."""
    deadline = time.monotonic() + _LOOKED_S
    while True:
        descriptor = open_plain(marker, os.O_RDWR | os.O_CREAT)
        try:
            if _try_lock(descriptor):
                known = _read(descriptor, marker)
                if known is not None and known.job:
                    raise known.refusal(path)
                if _is_at(descriptor, marker):
                    _write(descriptor, {"program": os.getpid(), "host": os.uname().nodename})
                    return descriptor
            elif time.monotonic() >= deadline:
                raise (_read(descriptor, marker) or Claim("", "", os.uname().nodename, marker)).refusal(path)
        except BaseException:  # tidied up after, and raised again
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_PAUSE_S)


def _write(descriptor: int, claim: Mapping[str, Any]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(claim).encode() + b"\n", 0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def _is_at(descriptor: int, marker: Path) -> bool:
    """False when somebody has removed or replaced the file that is locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(marker))
    except FileNotFoundError:
        return False


def _release(held: list[tuple[Path, int]], owner: int) -> None:
    for marker, descriptor in held:
        with contextlib.suppress(OSError):
            if owner == os.getpid():  # not in a forked child
                marker.unlink(missing_ok=True)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def take_claim(marker: Path, path: Path, job: str, home: str) -> None:
    """Claim results for a job; again for the same job changes nothing.

    Raises:
        UsageError: another job or a program has claimed them.
        OSError: the disk refuses.
    """
    part = marker.with_name(f"{marker.name}.{os.getpid()}")
    part.write_text(json.dumps({"job": job, "home": home, "host": os.uname().nodename}) + "\n", encoding="utf-8")
    try:
        os.link(part, marker)  # all of it or nothing, and never over another one
    except FileExistsError:
        known = read_claim(marker)
        if known is not None and known.job != job:
            raise known.refusal(path) from None
        _take_over(part, marker, path)
    except OSError:
        # A file system without hard links.
        os.replace(part, marker)
    finally:
        part.unlink(missing_ok=True)


def _take_over(part: Path, marker: Path, path: Path) -> None:
    """Replace a marker that says nothing, unless a program has just locked it."""
    descriptor = open_plain(marker, os.O_RDWR | os.O_CREAT)
    try:
        if not _try_lock(descriptor):
            raise (_read(descriptor, marker) or Claim("", "", os.uname().nodename, marker)).refusal(path)
        os.replace(part, marker)
    finally:
        os.close(descriptor)


def drop_claim(marker: Path, job: str) -> None:
    """Give results free, unless another job has them by now."""
    known = read_claim(marker)
    if known is None or known.job == job:
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)


def check_claims(places: Iterator[tuple[Path, Path]], home: str) -> set[str]:
    """Return the jobs of this installation that claim one of these places.

    Args:
        places: (marker, what it stands for).
        home: state directory of this installation.

    Raises:
        UsageError: a job of another installation, or a program, claims one.
    """
    jobs = set()
    for marker, path in places:
        claim = read_claim(marker)
        if claim is None:
            continue
        if claim.home != home:
            raise claim.refusal(path)
        jobs.add(claim.job)
    return jobs
