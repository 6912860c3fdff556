"""Records of what happened, one schema for simulations and real jobs: ``p2pc.trace/1``, JSON Lines.

The first line is a header: ``schema``, ``scenario`` (or ``job``), ``seed`` (null for a real job), ``set`` (in a sweep:
key → value of this point), ``version``, and ``commit`` where that is known.  Every further line is a record: ``t``
(seconds since the start, never less than in the line before), ``kind``, ``node`` ("" where no node is meant), and what
its kind has beyond.  Fields and kinds are only added under this number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import IO, Any, Final

from p2pcompute.errors import UsageError

SCHEMA: Final = "p2pc.trace/1"
BUFFER_BYTES_MAX: Final = 64 * 1024
LINE_BYTES_MAX: Final = 1024 * 1024

Record = Mapping[str, Any]


def header(
    *,
    version: str,
    scenario: str | None = None,
    seed: int | None = None,
    job: str | None = None,
    commit: str = "",
    swept: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the first line of a trace."""
    fields = {
        "schema": SCHEMA, "scenario": scenario, "job": job, "seed": seed, "set": swept, "version": version,
        "commit": commit,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if name == "seed" or value}


class Writer:
    """Writes records to a text file; keeps at most BUFFER_BYTES_MAX.  The file stays the caller's."""

    def __init__(self, file: IO[str], head: Record) -> None:
        self._file = file
        self._lines: list[str] = []
        self._size = 0
        self.write(head)

    def write(self, record: Record) -> None:
        line = json.dumps(record, ensure_ascii=False, default=repr) + "\n"
        self._lines.append(line)
        self._size += len(line)
        if self._size >= BUFFER_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand what is buffered to the file."""
        self._file.write("".join(self._lines))
        self._lines.clear()
        self._size = 0


def read(file: IO[str], name: str) -> Iterator[dict[str, Any]]:
    """Yield the header and then the records of a trace.

    Args:
        name: of the file, for errors.

    Raises:
        UsageError: a line is no record; its number is named.
    """
    last_s = -math.inf
    number = 0
    while line := file.readline(LINE_BYTES_MAX):
        number += 1
        try:
            record = json.loads(line)
        except ValueError as error:
            raise _broken(name, number, f"it is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise _broken(name, number, "it is not an object")
        if number == 1:
            if record.get("schema") != SCHEMA:
                raise _broken(name, number, f'a trace begins with {{"schema": "{SCHEMA}"}}')
            yield record
            continue
        t = record.get("t")
        if isinstance(t, bool) or not isinstance(t, int | float) or not math.isfinite(t):
            raise _broken(name, number, '"t" is not a number of seconds')
        if t < last_s:
            raise _broken(name, number, f'"t" goes back from {last_s:g} to {t:g}')
        last_s = t
        for field in ("kind", "node"):
            if not isinstance(record.get(field), str):
                raise _broken(name, number, f'"{field}" is not text')
        yield record
    if number == 0:
        raise _broken(name, 1, "the file is empty")


def _broken(name: str, number: int, why: str) -> UsageError:
    return UsageError(f"{name}, line {number}: not a record of {SCHEMA}", why, code="trace")


def job_records(job: Record, tasks: Iterable[Record]) -> list[dict[str, Any]]:
    """Return what happened to a real job, in the order of time.

    ``job.submitted`` and ``job.ended``; of each task that ended ``task.started`` and ``task.ended``, of its last
    attempt (the node keeps no times of those before it; ``attempts`` counts them).  Times are those of the clocks of
    the nodes that ran the tasks, moved into the time of the job where they are outside of it.

    Args:
        job: a p2pc.job/1 document.
        tasks: of that job, as listed by the node.
    """
    began_s = _seconds(job.get("submitted"))
    ended_s = _seconds(job.get("finished"))
    if began_s is None:
        return []
    records: list[dict[str, Any]] = [
        {"t": 0.0, "kind": "job.submitted", "node": "", "job": job["id"], "name": job["name"], "tasks": job["added"]}
    ]
    for task in tasks:
        start_s = _seconds(task.get("started"))
        if start_s is None or task.get("runtime_s") is None:
            continue
        low, high = 0.0, math.inf if ended_s is None else ended_s - began_s
        start = min(max(low, start_s - began_s), high)
        end = min(start + float(task["runtime_s"]), high)
        shared = {"node": task.get("node") or "", "job": job["id"], "task": task["index"], "attempts": task["attempts"]}
        records.append({"t": start, "kind": "task.started", **shared})
        state = {"state": task["state"], "status": task.get("status"), "cpu_s": task.get("cpu_s")}
        records.append({"t": end, "kind": "task.ended", **shared, **state})
    if ended_s is not None:
        counts = {name: job.get(name) for name in ("state", "done", "failed", "cancelled", "retried")}
        records.append({"t": ended_s - began_s, "kind": "job.ended", "node": "", "job": job["id"], **counts})
    return sorted(records, key=lambda record: float(record["t"]))  # stable: a start stays before its end


def _seconds(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
