"""Who writes where: a marker beside results that are being written, so that no two jobs write the same ones.

The marker names the unfinished job and the installation that keeps it.  It goes when the job's results are complete; a
job that waits for its node keeps it, because it will carry on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pcompute.errors import UsageError

_SUFFIX: Final = ".p2pc-writer"
_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Claim:
    """The job that writes results."""

    job: str
    """Its id in hex."""
    home: str
    """State directory of the installation that keeps it."""
    host: str
    """Name of that machine."""
    marker: Path

    def refusal(self, path: Path) -> UsageError:
        """Return the error for somebody else who wants to write there."""
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
    """Return what a marker says; None when there is none, or it is torn."""
    try:
        with marker.open("rb") as source:
            found = json.loads(source.read(_BYTES_MAX))
        return Claim(str(found["job"]), str(found["home"]), str(found["host"]), marker)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def take_claim(marker: Path, path: Path, job: str, home: str) -> None:
    """Claim results for a job; again for the same job changes nothing.

    Raises:
        UsageError: another job has claimed them.
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
        os.replace(part, marker)
    except OSError:
        # A file system without hard links.
        os.replace(part, marker)
    finally:
        part.unlink(missing_ok=True)


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
        UsageError: a job of another installation claims one.
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
