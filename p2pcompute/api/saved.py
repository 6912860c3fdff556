"""Futures that have ended, written as `MeshExecutor(results=…)` would have written them."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2pcompute.api.completed import Completed
from p2pcompute.api.futures import MeshFuture
from p2pcompute.api.pickling import dump_value
from p2pcompute.api.result_content import Content
from p2pcompute.api.result_folder import Note, ResultFolder, results_target
from p2pcompute.host.runs import Outcome, OutcomeStatus


def save_futures(name: str, futures: Sequence[MeshFuture[Any]], path: str | os.PathLike[str]) -> None:
    """Write a job's futures, those that have ended and were not cancelled, under their places in it.

    Raises:
        UsageError: other results are there, or a value cannot be pickled.
    """
    folder = ResultFolder(results_target(path, resume=False, can_resume=False), name)
    try:
        for number, future in enumerate(futures):
            if future.done() and not future.cancelled():
                _save(folder, name, number, future)
    finally:
        folder.close()


def _save(folder: ResultFolder, name: str, number: int, future: MeshFuture[Any]) -> None:
    node, attempts, outcome, _size = future._report or (None, 0, None, 0)
    is_done = future._exception is None
    if outcome is None:
        error = "" if is_done else f"{type(future._exception).__name__}: {future._exception}"
        outcome = Outcome(OutcomeStatus.OK if is_done else OutcomeStatus.FAILED, error=error)
    value = future.result() if is_done else None
    note = future._note or Note(name=name, inputs=future._words, key=b"", to=Path())
    contents: dict[str, Content] = {"stdout": outcome.stdout, "stderr": outcome.stderr}
    files = future.files
    if isinstance(value, Completed):
        contents, files = {"stdout": value.stdout, "stderr": value.stderr}, value.files
        is_done = value.returncode == 0
    elif is_done:
        contents["value"] = dump_value(value)
    folder.write(
        replace(note, number=number, generation=0),
        outcome,
        is_done=is_done,
        node=node,
        attempts=attempts,
        contents=contents,
        files=tuple(
            (file, Path(place), stat.S_IMODE(os.stat(place).st_mode))
            for file, place in files.items()
            if os.path.exists(place)
        ),
    )
