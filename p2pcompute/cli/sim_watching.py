"""What is seen of p2pc sim run while it runs: progress, events, and whether it is to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from time import monotonic  # bound here: the simulator's fences refuse what is looked up while it runs
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.cli.output import count_text, duration_text, is_terminal, one_line, options, print_json_line

if TYPE_CHECKING:
    from p2pcompute.plots.records import Writer
    from p2pcompute.simulation.result import RunResult
    from p2pcompute.simulation.running import Meter
    from p2pcompute.simulation.study import Study

EVENT_COLUMNS_MAX: Final = 300
LINE_S: Final = 10.0
"""Between two lines of progress where there is no terminal."""
DRAW_S: Final = 0.2


class Stop:
    """While in it, Ctrl-C and SIGTERM stop the runs; what is done is kept.

    Python drops what a signal raises in a finaliser or a callback of a weak reference, and would print it; so it is
    noted too, and `check` is called again and again.
    """

    def __init__(self) -> None:
        self.by: int | None = None
        """The signal that came."""
        self.is_polled = False
        """Nothing takes longer than until the next `check`, so the signal need not break in."""
        self.is_waiting = False
        """What is under way may end: the signal that came is known, only another one breaks in."""

    def __enter__(self) -> Stop:
        numbers = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.by = number
        if not self.is_polled:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While in it, a signal does not break in: it waits for the next `check`."""
        before, self.is_polled = self.is_polled, True
        try:
            yield
        finally:
            self.is_polled = before

    def _on_unraisable(self, dropped: Any) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            self._hook(dropped)

    def check(self) -> None:
        """Raises KeyboardInterrupt when a signal came."""
        if self.by is not None and not self.is_waiting:
            raise KeyboardInterrupt


class Progress:
    """One line on stderr: seeds done, simulated and wall time."""

    def __init__(self, study: Study, stop: Stop) -> None:
        self._stop = stop
        self.meter: Meter | None = None
        """Simulated seconds that the processes of a pool have gone; None: `simulated_s` is set instead."""
        self._title = study.scenario.name
        self._total = len(study.seeds) * len(study.points)
        self._done = study.done_count
        self._failed = len(study.failed())
        self._began = self._at = monotonic()
        self._ended_s = 0.0
        """Of the runs that are over."""
        self._running_s = 0.0
        """Of the one that is watched."""
        mode = os.environ.get("P2PC_PROGRESS", "auto")
        is_plain = not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb" or "P2PC_ACCESSIBLE" in os.environ
        if mode == "auto":
            mode = "plain" if is_plain else "bar"
        self._mode = "none" if options().quiet else mode

    def take(self, result: RunResult) -> None:
        """A run is over."""
        self._done += 1
        self._failed += bool(result.problems)
        self._ended_s += result.simulated_s
        self._running_s = 0.0
        self.tick()

    def moved(self, simulated_s: float) -> None:
        """The run that is watched has come so far."""
        self._running_s = simulated_s
        self.tick()

    def tick(self) -> None:
        """Show where it stands, when it is time to.

        Raises:
            KeyboardInterrupt: a signal said so.
        """
        self._stop.check()
        now = monotonic()
        if self._mode == "none" or now - self._at < (DRAW_S if self._mode == "bar" else LINE_S):
            return
        self._at = now
        simulated_s = max(self.meter.value if self.meter is not None else 0.0, self._ended_s) + self._running_s
        wall_s = now - self._began
        if self._mode == "json":
            facts = {"done": self._done, "total": self._total, "failed": self._failed}
            times = {"simulated_s": round(simulated_s, 3), "elapsed_s": round(wall_s, 3)}
            print_json_line({"schema": "p2pc.sim-progress/1", **facts, **times}, sys.stderr)
            return
        parts = [f"{count_text(self._done)}/{count_text(self._total)} runs"] if self._total > 1 else []
        parts += [f"{count_text(self._failed)} failed"] if self._failed else []
        parts.append(f"{duration_text(simulated_s)} simulated in {duration_text(wall_s)}")
        text = f"{self._title}  {' · '.join(parts)}"
        if self._mode == "bar":
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away, for another one."""
        if self._mode == "bar":
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.clear()
        if self._mode == "bar":
            self._mode = "none"


class Onlooker:
    """Looks on at runs in this process: progress, and events when somebody wants them."""

    def __init__(self, progress: Progress | None, writer: Writer | None = None, node: str | None = None) -> None:
        self._progress = progress
        self._writer = writer
        self._node = node
        self.faults: dict[int, None] = {}
        """Numbers of the faults that began."""

    def progress(self, simulated_s: float, wall_s: float) -> None:
        if self._progress is not None:
            self._progress.moved(simulated_s)

    def record(self, record: dict[str, Any]) -> None:
        if isinstance(number := record.get("fault"), int):
            self.faults[number] = None
        if self._writer is not None and self._node in (None, record["node"]):
            self._writer.write(record)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.flush()


class _Readable:
    """A file of JSON lines that prints them for people."""

    def write(self, lines: str) -> None:
        for line in lines.splitlines():
            record = json.loads(line)
            if "schema" in record:
                continue
            t, kind, node = (record.pop(name) for name in ("t", "kind", "node"))
            rest = " ".join(f"{name}={_event_value(value)}" for name, value in record.items())
            print(f"{t:14.6f}  {kind:<14} {node:<10} {one_line(rest, EVENT_COLUMNS_MAX)}".rstrip())


def _event_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def event_sink(study: Study) -> Writer:
    from p2pcompute.plots.records import Writer
    from p2pcompute.simulation.running import trace_header

    head = trace_header(study.scenario, study.seeds[0], study.points[0].swept())
    file: Any = sys.stdout if options().json else _Readable()
    return Writer(file, head)
