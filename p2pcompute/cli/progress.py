"""Progress of a job on stderr: a bar with a row for each node, plain lines, JSON Lines, or nothing.

Every display counts accepted results.  rich is imported by the bar only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from p2pcompute.cli.job_views import coordinator_text
from p2pcompute.cli.output import (
    clock_text,
    count_text,
    duration_text,
    fresh_line,
    has_color,
    is_terminal,
    node_labels,
    one_line,
    options,
    plural,
    print_json_line,
    rate_text,
    table,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

NODE_ROWS_MAX: Final = 8
DRAW_S: Final = 0.1
BAR_AFTER_S: Final = 0.5
"""A job that is over before shows no bar."""
PLAIN_STEP: Final = 0.1
PLAIN_S: Final = 30.0
RATE_S: Final = 10.0
"""Rates are means over this; the node's own are of the whole window also when the job is younger."""
STEADY_S: Final = 3.0
"""Before that there is no ETA."""
TAIL_TASKS: Final = 5


@dataclass(slots=True)
class Progress:
    """What is known of a job: the data of a `progress` event, and what only the submitter knows."""

    title: str
    """Name and alias."""
    this_node: str = ""
    """Short id of this machine's node, to mark its row."""
    total_hint: int | None = None
    """Number of tasks when it is known before all are sent."""
    started: float = field(default_factory=time.monotonic)
    data: Mapping[str, Any] = field(default_factory=dict)
    _samples: deque[tuple[float, int, dict[str, int]]] = field(default_factory=deque)
    """(time, tasks ended, results by node) of the last RATE_S, for rates."""

    def take(self, data: Mapping[str, Any]) -> None:
        """Take the data of a `progress` event or JOB."""
        now = time.monotonic()
        if not self._samples and not self.data:
            self._samples.append((now, 0, {}))
        self.data = data
        done = {str(node.get("short_id")): int(node.get("done") or 0) for node in self.nodes}
        self._samples.append((now, self.worked, done))
        while len(self._samples) > 2 and self._samples[1][0] < now - RATE_S:
            self._samples.popleft()

    def number(self, name: str) -> int:
        value = self.data.get(name)
        return value if isinstance(value, int) else 0

    @property
    def total(self) -> int | None:
        value = self.data.get("total")
        return value if isinstance(value, int) else self.total_hint

    @property
    def ended(self) -> int:
        return self.number("done") + self.number("failed") + self.number("cancelled")

    @property
    def worked(self) -> int:
        """Tasks that ran to their end: what was cancelled is no progress."""
        return self.number("done") + self.number("failed")

    @property
    def nodes(self) -> Sequence[Mapping[str, Any]]:
        return self.data.get("by_node") or ()

    @property
    def rate(self) -> float:
        """Tasks ended per second over the last RATE_S, all nodes; 0.0 while it cannot be said."""
        if not self._samples or (spent_s := time.monotonic() - self._samples[0][0]) < 0.5:
            return 0.0
        return max(0, self.worked - self._samples[0][1]) / spent_s

    def rate_of(self, node: Mapping[str, Any]) -> float:
        """Results per second of one node over the last RATE_S."""
        if not self._samples or (spent_s := time.monotonic() - self._samples[0][0]) < 0.5:
            return 0.0
        before = self._samples[0][2].get(str(node.get("short_id")), 0)
        return max(0, int(node.get("done") or 0) - before) / spent_s

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def eta_s(self) -> float | None:
        """Seconds to go; None while that cannot be said."""
        total, rate = self.total, self.rate
        if total is None or rate <= 0 or self.elapsed_s < STEADY_S:
            return None
        return max(0, total - self.ended) / rate

    @property
    def fraction(self) -> float | None:
        return self.worked / self.total if self.total else None

    def counts(self) -> str:
        """ "1 284/2 000"."""
        total = self.total
        whole = count_text(total) if total is not None else f"{count_text(self.number('added'))}+"
        return f"{count_text(self.number('done'))}/{whole}"

    def percent(self) -> str:
        return "" if self.fraction is None else f"{self.fraction:.0%}".replace("%", " %")

    def rest(self) -> str:
        """ "3 failed · 14 running · 702 waiting", with the tail of the job named."""
        parts = [
            f"{count_text(self.number(name))} {name}"
            for name in ("failed", "cancelled", "running", "waiting")
            if self.number(name)
        ]
        if self.number("checking"):
            parts.append(f"{count_text(self.number('checking'))} not believed yet")
        if self.number("retried"):
            parts.append(f"{count_text(self.number('retried'))} retried")
        parts.append(coordinator_text(self.data, time.time()))
        running = self.number("running")
        if running and running <= TAIL_TASKS and not self.number("waiting") and self.data.get("total") is not None:
            labels = node_labels(self.nodes)
            where = [
                f"{node['running']} on {label}"
                for label, node in zip(labels, self.nodes, strict=True)
                if node.get("running")
            ]
            parts.append(f"last {plural(running, 'task')}: {', '.join(where[:3])}" if where else "")
        return " · ".join(part for part in parts if part)


class Display(Protocol):
    """Shows progress on stderr."""

    def update(self, progress: Progress) -> None:
        """Show the state; call it often, it limits itself."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """While in it, others may write to the terminal."""

    def close(self, progress: Progress) -> None:
        """Show nothing from now on."""


class Silent:
    """Shows nothing."""

    def update(self, progress: Progress) -> None:
        return

    def aside(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self, progress: Progress) -> None:
        return


class Plain(Silent):
    """A line every 10 % (at most one a second) or 30 s; none while nothing has changed."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._at = time.monotonic()
        self._step = 0
        self._said = ""

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        fraction = progress.fraction
        step = int(fraction / PLAIN_STEP) if fraction is not None else self._step
        if not (now - self._at >= PLAIN_S or (step > self._step and now - self._at >= 1.0)):
            return
        self._at, self._step = now, max(step, self._step)
        news = f"{progress.counts()} {progress.rest()}"
        if news == self._said:
            return
        self._said = news
        parts = [progress.title, progress.counts(), progress.percent(), rate_text(progress.rate)]
        parts += [f"ETA {clock_text(progress.eta_s)}", progress.rest()]
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)


class JsonLines(Silent):
    """One p2pc.progress/1 document a line, at most two a second."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._shown: Mapping[str, Any] | None = None
        self._at = 0.0

    def update(self, progress: Progress) -> None:
        if progress.data is self._shown or not progress.data or time.monotonic() - self._at < 0.5:
            return
        self._write(progress)

    def _write(self, progress: Progress) -> None:
        self._shown, self._at = progress.data, time.monotonic()
        print_json_line(
            {
                "schema": "p2pc.progress/1",
                **progress.data,
                "total": progress.total,
                "rate": progress.rate,
                "eta_s": progress.eta_s,
                "elapsed_s": round(progress.elapsed_s, 3),
            },
            self._stream,
        )

    def close(self, progress: Progress) -> None:
        if progress.data is not self._shown and progress.data:
            self._write(progress)


class Bar:
    """A bar and a row for each node, redrawn in place.

    Output of tasks on the same terminal goes above it: it is erased before and drawn again afterwards.
    """

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console

        self._stream = stream
        self._console: Console = Console(
            file=stream, force_terminal=True, no_color=not has_color(stream), highlight=False, emoji=False, markup=False
        )
        self._lines = 0
        """Drawn lines above the cursor."""
        self._at = 0.0

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._at < DRAW_S or progress.elapsed_s < BAR_AFTER_S or not progress.data:
            return
        self._at = now
        with self._console.capture() as captured:
            self._console.print(self._render(progress))
        text = captured.get()
        if not self._lines:
            fresh_line()  # drawing over an open line would erase it
        self._write(self._erasure() + text)
        self._lines = text.count("\n")

    def _erasure(self) -> str:
        return f"\r\x1b[{self._lines}A\x1b[J" if self._lines else ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        if self._lines:
            self._write(self._erasure())
            self._lines, self._at = 0, 0.0
        yield

    def close(self, progress: Progress) -> None:
        if self._lines:
            self._write(self._erasure())
            self._lines = 0

    def _render(self, progress: Progress) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width = self._console.width
        rate, eta = rate_text(progress.rate), f"ETA {clock_text(progress.eta_s)}"
        tail = "  ".join(part for part in (progress.counts(), progress.percent(), rate, eta) if part)
        title = one_line(progress.title, 24)
        head = Table.grid(padding=(0, 2), expand=True)
        for _ in range(3):
            head.add_column(no_wrap=True)
        head.columns[1].ratio = 1
        bar = ProgressBar(total=progress.total, completed=progress.worked, pulse=progress.total is None)
        room = width - len(title) - len(tail) - 4
        head.add_row(Text(title, style="bold"), bar if room >= 5 else Text(""), Text(tail))
        body = [Text(line[:width], no_wrap=True) for line in self.node_lines(progress)]
        return Group(head, *body, *([Text(progress.rest()[:width], no_wrap=True)] if progress.rest() else []))

    @staticmethod
    def node_lines(progress: Progress) -> list[str]:
        """Rows of the nodes, at most NODE_ROWS_MAX, the busiest first."""
        nodes = sorted(progress.nodes, key=lambda node: (-int(node.get("done") or 0), str(node.get("node"))))
        if not nodes:
            return []
        rows = [
            [
                one_line(label, 20) + (" (this)" if node.get("short_id") == progress.this_node else ""),
                count_text(node.get("running") or 0),
                count_text(node.get("done") or 0),
                count_text(node.get("failed") or 0),
                rate_text(progress.rate_of(node)),
                one_line(str(node.get("note") or "")),
            ]
            for label, node in zip(node_labels(nodes)[:NODE_ROWS_MAX], nodes, strict=False)
        ]
        lines = table(
            ["NODE", "RUN", "DONE", "FAIL", "RATE", "NOTE"], rows, right=["RUN", "DONE", "FAIL", "RATE"]
        ).split("\n")
        if len(nodes) > NODE_ROWS_MAX:
            lines.append(f"  +{len(nodes) - NODE_ROWS_MAX} more")
        return lines


def choose_display(mode: str) -> Display:
    """Return the display for --progress auto|bar|plain|json|none.

    auto: a bar on a terminal, plain lines elsewhere and for screen readers, nothing with -q.
    """
    stream = sys.stderr
    if mode == "auto":
        is_simple = os.environ.get("TERM") == "dumb" or bool(os.environ.get("P2PC_ACCESSIBLE"))
        mode = "none" if options().quiet else "bar" if is_terminal(stream) and not is_simple else "plain"
    match mode:
        case "bar":
            return Bar(stream)
        case "plain":
            return Plain(stream)
        case "json":
            return JsonLines(stream)
    return Silent()


def summary_text(
    job: Mapping[str, Any], elapsed_s: float, *, done_before: int = 0, failed_before: int = 0, where: Sequence[str] = ()
) -> str:
    """Return the last line of a job: "done 2 000/2 000 in 49.3 s · nova 912, atlas 1 088 · 3 retried · results in out".

    Args:
        job: JOB.
        elapsed_s: as the user saw it.
        done_before, failed_before: tasks of an earlier run that were not run again.
        where: paths of results.
    """
    total = job.get("total") if job.get("total") is not None else job.get("added")
    head = f"done {count_text(int(job.get('done') or 0))}/{count_text(int(total or 0))} in {duration_text(elapsed_s)}"
    parts = [head]
    shares = [node for node in job.get("by_node") or () if node.get("done")]
    shares.sort(key=lambda node: -int(node["done"]))
    if shares:
        labels = node_labels(shares)[:NODE_ROWS_MAX]
        text = ", ".join(f"{label} {count_text(node['done'])}" for label, node in zip(labels, shares, strict=False))
        more = len(shares) - NODE_ROWS_MAX
        parts.append(text + (f" and {more} more" if more > 0 else ""))
    for name in ("failed", "cancelled", "retried", "revoked", "disputed"):
        if job.get(name):
            parts.append(f"{count_text(int(job[name]))} {name}")
    if done_before:
        parts.append(f"{count_text(done_before)} done before")
    if failed_before:
        parts.append(f"{count_text(failed_before)} failed before")
    if job.get("halted"):
        parts.append(f"stopped early: {job['halted']}")
    if where:
        parts.append("results in " + ", ".join(where))
    return " · ".join(parts)
