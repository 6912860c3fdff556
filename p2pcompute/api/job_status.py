"""A job as it stands: counts, rate, who does what; as a line, as HTML for notebooks, and as it goes on."""

from __future__ import annotations

import html
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from p2pcompute.api.futures import MeshFuture

Progress = bool | Literal["auto", "bar", "plain", "none"] | Callable[["JobStatus"], object]
"""How `Job.wait` shows where it is: lines on standard error (True, or "plain"; "bar": one that is written over), on a
terminal only ("auto"), a function that is told twice a second, or not at all (False, "none")."""
PROGRESS_S: Final = 0.5
LINE_S: Final = 5.0
"""Between two lines where standard error is no terminal."""


@dataclass(slots=True, kw_only=True)
class NodeShare:
    """What one node does of a job."""

    running: int = 0
    done: int = 0
    failed: int = 0
    rate: float = 0.0
    """Tasks that it has ended per second since the first of the job was submitted; of a job that this machine's node
    keeps, lately."""
    note: str = ""
    """Why it does less than it could, as far as that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job as it stands."""

    name: str
    total: int
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    running: int = 0
    waiting: int = 0
    id: str = ""
    """In hexadecimal; empty until the node has it."""
    rate: float = 0.0
    """Tasks that ended per second since the first was submitted."""
    eta: float | None = None
    """Seconds until the last ends, when the rest takes as long as what has ended; None: nothing to go by."""
    by_node: Mapping[str, NodeShare] = field(default_factory=dict)
    note: str = ""
    """Why this is not the latest: the node that keeps the job does not answer."""

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.cancelled

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.done}/{self.total} done"]
        parts += [f"{count} {word}" for word in ("failed", "cancelled", "running") if (count := getattr(self, word))]
        if self.rate:
            parts.append(f"{self.rate:.3g}/s")
        if self.eta:
            parts.append(f"ETA {self.eta:.0f} s")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


def status_of(name: str, job_id: str, futures: Iterable[MeshFuture[Any]], now: float) -> JobStatus:
    """Count.

    Args:
        now: Unix time.
    """
    counts: Counter[str] = Counter()
    shares: dict[str, NodeShare] = {}
    began, last = now, 0.0
    for future in futures:
        began = min(began, future._submitted)
        state, node, ended = future.standing()
        counts[state] += 1
        last = max(last, min(ended, now))
        if node is not None and state in ("running", "done", "failed"):
            share = shares.setdefault(node, NodeShare())
            setattr(share, state, getattr(share, state) + 1)
    left, ran = counts["running"] + counts["waiting"], counts["done"] + counts["failed"]
    lasted_s = (now if left or last <= began else last) - began
    rate = ran / lasted_s if lasted_s > 0 else 0.0
    for share in shares.values():
        share.rate = (share.done + share.failed) / lasted_s if lasted_s > 0 else 0.0
    shares = dict(sorted(shares.items(), key=lambda item: (-item[1].done, item[0])))
    eta = left / rate if rate and left else None
    return JobStatus(
        name=name,
        id=job_id,
        total=counts.total(),
        done=counts["done"],
        failed=counts["failed"],
        cancelled=counts["cancelled"],
        running=counts["running"],
        waiting=counts["waiting"],
        rate=rate,
        eta=eta,
        by_node=shares,
    )


def as_html(status: JobStatus, errors: Iterable[str]) -> str:
    """Return the status as a notebook shows it: a bar, a row for each node, the first failures.

    Args:
        errors: of tasks that failed.
    """
    rows = "".join(
        f"<tr><td>{html.escape(node)}</td><td>{share.done}</td><td>{share.running}</td><td>{share.failed}</td></tr>"
        for node, share in status.by_node.items()
    )
    table = f"<table><tr><th>node<th>done<th>running<th>failed</tr>{rows}</table>" if rows else ""
    failures = "".join(f"<li>{html.escape(text)}</li>" for text in errors)
    return (
        f"<div><b>{html.escape(str(status))}</b><br>"
        f'<progress max="{max(1, status.total)}" value="{status.ended}"></progress>{table}'
        f"{f'<ul>{failures}</ul>' if failures else ''}</div>"
    )


class Shown:
    """Shows how a job goes on, until it has ended."""

    def __init__(self, progress: Progress) -> None:
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._tell = progress if callable(progress) else None
        self._has_lines = progress in (True, "bar", "plain") or (progress == "auto" and is_terminal)
        is_terminal = progress == "bar" or (is_terminal and progress != "plain")
        self._is_terminal = is_terminal
        self._line_at = time.monotonic() + (0.0 if is_terminal else LINE_S)
        self._width = 0

    @property
    def is_wanted(self) -> bool:
        return self._tell is not None or self._has_lines

    def show(self, status: JobStatus, *, is_last: bool) -> None:
        """Show the status of this moment."""
        if self._tell is not None:
            self._tell(status)
        now = time.monotonic()
        if not self._has_lines or not (is_last or now >= self._line_at):
            return
        self._line_at = now + (0.0 if self._is_terminal else LINE_S)
        line = str(status)
        if self._is_terminal:
            print(f"\r{line.ljust(self._width)}", end="\n" if is_last else "", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)
