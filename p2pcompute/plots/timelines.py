"""What a picture of a job is made from: its attempts in lanes, results over time, tasks that ran at once.

All of it comes from records (`plots.records`), so that simulated jobs look like real ones.  Times are seconds from the
submission of the job.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A task as it ran for the last time."""

    task: int
    node: str
    start_s: float
    end_s: float
    state: str
    status: str
    attempts: int
    cpu_s: float | None = None

    @property
    def took_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def is_done(self) -> bool:
        return self.state == "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A job as far as it has come."""

    title: str
    total: int
    """Tasks that it has."""
    attempts: tuple[Attempt, ...]
    """In the order in which they ended."""
    end_s: float | None
    """When the job ended; None: it has not."""

    @property
    def last_s(self) -> float:
        """The last moment of which something is known."""
        return max([self.end_s or 0.0, *(attempt.end_s for attempt in self.attempts)])

    @property
    def nodes(self) -> list[str]:
        """By the number of tasks that ended there, most first."""
        counts: dict[str, int] = defaultdict(int)
        for attempt in self.attempts:
            counts[attempt.node] += 1
        return sorted(counts, key=lambda node: (-counts[node], node))


def timeline(records: Iterable[Mapping[str, Any]], title: str) -> Timeline:
    """Read the records of one job.

    Args:
        records: of ``p2pc.trace/1``, of one job, in the order of time.
    """
    total, end_s = 0, None
    starts: dict[int, float] = {}
    attempts = []
    for record in records:
        match record["kind"]:
            case "job.submitted":
                total = int(record.get("tasks") or 0)
            case "task.started":
                starts[record["task"]] = record["t"]
            case "task.ended" if record["task"] in starts:
                attempts.append(
                    Attempt(
                        task=record["task"],
                        node=str(record["node"]),
                        start_s=starts.pop(record["task"]),
                        end_s=record["t"],
                        state=str(record.get("state") or "done"),
                        status=str(record.get("status") or ""),
                        attempts=int(record.get("attempts") or 1),
                        cpu_s=record.get("cpu_s"),
                    )
                )
            case "job.ended":
                end_s = record["t"]
    return Timeline(title=title, total=max(total, len(attempts)), attempts=tuple(attempts), end_s=end_s)


def lanes(attempts: Iterable[Attempt]) -> dict[str, list[list[Attempt]]]:
    """Share each node's attempts out to as few lanes as possible, so that none overlap: slots of that node.

    Returns:
        Node → lanes, each in the order of time.  Nodes in the order of their first attempt.
    """
    found: dict[str, list[list[Attempt]]] = {}
    free: dict[str, list[tuple[float, int]]] = {}
    """Node → (when it is free again, lane), a heap."""
    for attempt in sorted(attempts, key=lambda attempt: (attempt.start_s, attempt.task)):
        own, ends = found.setdefault(attempt.node, []), free.setdefault(attempt.node, [])
        if ends and ends[0][0] <= attempt.start_s:
            _, lane = heapq.heappop(ends)
        else:
            lane = len(own)
            own.append([])
        own[lane].append(attempt)
        heapq.heappush(ends, (attempt.end_s, lane))
    return found


@dataclass(frozen=True, slots=True)
class Curve:
    """A staircase: from `times[i]` on it is `values[i]`."""

    times: Sequence[float]
    values: Sequence[int]


def arrival(attempts: Iterable[Attempt]) -> Curve:
    """Return how many tasks were done by when."""
    times = sorted(attempt.end_s for attempt in attempts if attempt.is_done)
    return Curve([0.0, *times], list(range(len(times) + 1)))


def busy(attempts: Iterable[Attempt]) -> Curve:
    """Return how many tasks ran at once."""
    steps: dict[float, int] = defaultdict(int)
    for attempt in attempts:
        steps[attempt.start_s] += 1
        steps[attempt.end_s] -= 1
    times, values, running = [0.0], [steps.pop(0.0, 0)], 0
    running = values[0]
    for moment, change in sorted(steps.items()):
        running += change
        times.append(moment)
        values.append(running)
    return Curve(times, values)


def arrived_s(curve: Curve, share: float) -> float | None:
    """Return when that share of what arrived was there: the field's t50, t90, t100; None when nothing was."""
    count = curve.values[-1]
    return None if count == 0 else curve.times[max(1, min(count, round(share * count)))]


def ideal_s(line: Timeline) -> float:
    """Return how long the same attempts would have taken with no lane ever idle: work over lanes."""
    count = sum(len(own) for own in lanes(line.attempts).values())
    return sum(attempt.took_s for attempt in line.attempts) / count if count else 0.0


def summary(line: Timeline) -> list[str]:
    """Return in sentences what the pictures show, for who cannot see them."""
    if not line.attempts:
        return [f"No task of {line.title} has ended yet."]
    done = arrival(line.attempts)
    said = [f"{done.values[-1]} of {line.total} tasks done, on {len(line.nodes)} node{'s' * (len(line.nodes) != 1)}."]
    marks = [(name, arrived_s(done, share)) for name, share in (("t50", 0.5), ("t90", 0.9), ("t100", 1.0))]
    t90, t100 = marks[1][1], marks[2][1]
    if done.values[-1]:
        said += [", ".join(f"{name} {moment:.3g} s" for name, moment in marks if moment is not None) + "."]
    if t90 is not None and t100 is not None:
        said[-1] += f"  The last tenth took {t100 - t90:.3g} s."
    slots = sum(len(own) for own in lanes(line.attempts).values())
    work_s = sum(attempt.took_s for attempt in line.attempts)
    if line.last_s > 0:
        share = work_s / slots / line.last_s
        said.append(f"Up to {slots} tasks ran at once; they were busy for {100 * share:.0f} % of {line.last_s:.3g} s.")
    again = sum(attempt.attempts > 1 for attempt in line.attempts)
    failed = sum(attempt.state == "failed" for attempt in line.attempts)
    if again or failed:
        said.append(f"{failed} failed, {again} ran more than once; only last attempts are drawn.")
    return said
