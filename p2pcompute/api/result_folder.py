"""What `MeshExecutor(results=…)` writes as its calls end, and with `resume=True` finds of earlier programs.

The calls of an executor share one folder (or file) whatever their functions are: each has a number there, from 0 in the
order in which they were handed in.  The format is that of `p2pc run --results` (`results`).

A disk that refuses stops no call: it is said once, and what is missing is computed again by the next `resume`.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from p2pcompute.api.options import moment
from p2pcompute.api.result_claims import Hold, check_claims
from p2pcompute.api.result_content import Content
from p2pcompute.api.result_keys import content_key, jsonl_records, split_keys
from p2pcompute.api.result_target import ResultsTarget, check_target, hold, is_results_file
from p2pcompute.api.results import ResultsWriter, folder_name
from p2pcompute.errors import StoreError, UsageError
from p2pcompute.execution.functions import load_value
from p2pcompute.host.runs import Outcome

VALUE_NAME: Final = "value.pickle"


@dataclass(slots=True, kw_only=True)
class Note:
    """What is known of a call beside its function and arguments."""

    name: str
    inputs: tuple[str, ...]
    """Its arguments, as people read them."""
    key: bytes
    """By which it is known in another run; b"": it is not."""
    to: Path
    """Where files that come back go when they have no folder of their own."""
    number: int = 0
    """In the folder of results, from 0 in this program."""
    generation: int = 0
    """How often it was tried again after it had failed."""
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Earlier:
    """A call that an earlier program has had done."""

    folder: Path
    node: str | None
    files: Mapping[str, str]
    """Where the files are that came back."""

    def value(self) -> Any:
        """Return its value.

        Raises:
            TaskError: it cannot be rebuilt here.
        """
        return load_value((self.folder / VALUE_NAME).read_bytes())


def results_target(path: str | os.PathLike[str], *, resume: bool, can_resume: bool = True) -> ResultsTarget:
    """Return where results go.

    Args:
        can_resume: who is told that other results are there may ask for it.

    Raises:
        UsageError: other results are there, or somebody else writes them.
    """
    from p2pcompute.places import find_paths

    text = os.path.abspath(path)
    is_file = is_results_file(text)
    if resume and is_file:
        why = "values that a program can go on with are kept in a folder"
        raise UsageError(f"resume cannot read {text}", why, "give results= the name of a folder")
    target = ResultsTarget(dir=None if is_file else Path(text), file=Path(text) if is_file else None, resume=resume)
    try:
        check_target(target)
    except UsageError as error:
        if error.code == "results-exist":
            error.fix = "name another place" if not can_resume or is_file else "resume=True carries on; or another name"
        raise
    jobs = check_claims(target.claims(), str(find_paths(os.environ).state))
    if jobs:
        job = sorted(jobs)[0][:8]
        raise UsageError(
            f"{text} is being written by the unfinished job {job}",
            "two writers would mix their results",
            f"p2pc attach {job} to see it, or p2pc cancel {job}; then again",
            code="results-busy",
        )
    return target


def earlier_calls(target: ResultsTarget) -> dict[bytes, Earlier]:
    """Return what is done in a folder of results, by key; the last record of a key counts."""
    found: dict[bytes, Earlier] = {}
    directory = target.dir
    if directory is None:
        return found
    for record in jsonl_records(directory / "tasks.jsonl"):
        keys = split_keys(record.get("key"))
        if len(keys) != 1 or not record.get("folder"):
            continue
        found.pop(keys[0], None)
        folder = directory / str(record["folder"])
        if record.get("state") == "done" and (folder / VALUE_NAME).is_file():
            names = [str(file["name"]) for file in record.get("files") or ()]
            files = {name: str(folder / "files" / name) for name in names}
            found[keys[0]] = Earlier(folder, record.get("node"), files)
    return found


def numbers_of(target: ResultsTarget) -> dict[bytes, int]:
    """Return the numbers that calls have in a folder of results, by key."""
    found: dict[bytes, int] = {}
    if target.dir is not None:
        for record in jsonl_records(target.dir / "tasks.jsonl"):
            for key in split_keys(record.get("key"))[:1]:
                found.setdefault(key, record["number"])
    return found


def call_key(code: bytes, *parts: bytes | str) -> bytes:
    """Return the key of a call, from that of its code and what else makes it the same call."""
    return content_key("call", code, *parts)


@dataclass(slots=True, eq=False)
class ResultFolder:
    """Where the calls of one executor are written.  Every method may be called by any thread."""

    target: ResultsTarget
    """Claimed until `close`: `Hold`."""
    name: str
    _hold: Hold = field(init=False)
    _earlier: dict[bytes, Earlier] = field(init=False)
    _writer: ResultsWriter = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _counts: dict[str, int] = field(default_factory=lambda: {"done": 0, "failed": 0, "resumed": 0})
    _began: float = field(default_factory=time.time)
    _is_refused: bool = False
    """The disk has refused, and that was said."""

    def __post_init__(self) -> None:
        self._hold = hold(self.target)
        try:
            self._open()
        except BaseException:  # tidied up after, and raised again
            self._hold.release()
            raise

    def _open(self) -> None:
        if self.target.resume:
            self.target = self.target.numbered()
            self._earlier = earlier_calls(self.target)
        else:
            self._earlier = {}
        record = {
            "id": secrets.token_hex(32),
            "name": self.name,
            "kind": "function",
            "submitted": _time_text(self._began),
        }
        self._writer = ResultsWriter.create(self.target, record)

    def next_number(self) -> int:
        """Return the number of the next call."""
        return next(self._numbers)

    def find(self, key: bytes) -> Earlier | None:
        """Return what an earlier program has had done under this key."""
        found = self._earlier.get(key) if key else None
        if found is not None:
            with self._lock:
                self._counts["resumed"] += 1
        return found

    def write(
        self,
        note: Note,
        outcome: Outcome,
        *,
        is_done: bool,
        node: str | None,
        attempts: int,
        contents: Mapping[str, Content],
        files: tuple[tuple[str, Content, int], ...],
    ) -> dict[str, str] | None:
        """Write a call that has ended; return where its files are now, or None when they were not written.

        Args:
            contents: its "stdout", "stderr" and "value".
            files: (name, content, permission bits) of what came back.
        """
        state = "done" if is_done else "failed"
        task: dict[str, Any] = {
            "index": note.number,
            "generation": note.generation,
            "inputs": list(note.inputs),
            "command": f"{note.name}({', '.join(note.inputs)})",
            "state": state,
            "node": node,
            "attempts": attempts,
            "status": str(outcome.status),
            "exit_code": outcome.exit_code,
            "signal": outcome.signal,
            "runtime_s": outcome.runtime_s,
            "cpu_s": outcome.cpu_s,
            "peak_rss_bytes": outcome.peak_rss_bytes,
            "started": _time_text(outcome.started_wall),
            "error": outcome.error or None,
            "key": note.key.hex() or None,
            "sent_bytes": note.sent_bytes,
        }
        with self._lock:
            try:
                self._writer.write(
                    task,
                    stdout=contents.get("stdout"),
                    stderr=contents.get("stderr"),
                    value=contents.get("value"),
                    value_name=VALUE_NAME,
                    files=files,
                )
                self._counts[state] += 1
                if self.target.dir is None:
                    return None
                folder = self.target.dir / self._folder(task)
                paths = {name: str(folder / "files" / name) for name, _content, _mode in files}
                return {name: path for name, path in paths.items() if os.path.isfile(path)}
            except StoreError as error:
                if not self._is_refused:
                    self._is_refused = True
                    warnings.warn(f"{error}", RuntimeWarning, stacklevel=2)
                return None

    def _folder(self, task: Mapping[str, Any]) -> str:
        return folder_name(self._writer.number_of(task))

    def close(self) -> None:
        """Write the summary and close the files."""
        summary = {**self._counts, "submitted": _time_text(self._began), "finished": _time_text(time.time())}
        with self._lock:
            try:
                self._writer.close(summary)
            except StoreError as error:
                warnings.warn(f"{error}", RuntimeWarning, stacklevel=2)
            finally:
                self._hold.release()


def _time_text(unix_s: float) -> str | None:
    known = moment(unix_s)
    return None if known is None else known.isoformat().replace("+00:00", "Z")
