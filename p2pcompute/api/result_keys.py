"""What earlier runs did, by content: resume keys, and where they are found again.

A key is a hash of everything that makes a task the same task in another run, so that inputs may be added, removed and
put in another order in between.  tasks.jsonl and .jsonl files hold keys; a joblog and a CSV file know a task by its
command line only.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

from p2pcompute.errors import UsageError
from p2pcompute.host.plain_files import read_plain, shown, whole_lines
from p2pcompute.limits import NUMBER_DIGITS_MAX, RESULT_LINE_BYTES_MAX

KEY_BYTES: Final = 16
"""A resume key.  A task of N calls carries N of them, joined."""
JOBLOG_HEADER: Final = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"


def content_key(*parts: bytes | str | Sequence[str]) -> bytes:
    """Return the resume key of a task: a hash of everything that makes it the same task in another run.

    Parts are hashed with their lengths and their kinds, so that no two lists of parts run together.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"p2pc task")

    def add(kind: bytes, data: bytes) -> None:
        digest.update(kind + len(data).to_bytes(8, "big") + data)

    for part in parts:
        match part:
            case bytes():
                add(b"b", part)
            case str():
                add(b"s", part.encode("utf-8", "surrogateescape"))
            case _:
                add(b"l", len(part).to_bytes(8, "big"))
                for word in part:
                    add(b"s", word.encode("utf-8", "surrogateescape"))
    return digest.digest()


def command_key(command: str) -> bytes:
    """Return the key of a task in a joblog, which knows only the command line."""
    return content_key("joblog", command.replace("\n", "\0"))


@dataclass(slots=True)
class DoneKeys:
    """What earlier runs did, by key.  The last record of a key counts."""

    by: Literal["content", "command"] = "content"
    """What the keys are made from: `content_key` of the task, or `command_key` (a joblog or CSV has no more)."""
    done: set[bytes] = field(default_factory=set)
    failed: set[bytes] = field(default_factory=set)
    next_number: int = 0
    """First task number that is free."""

    def _record(self, keys: Iterable[bytes], is_done: bool) -> None:
        into, out_of = (self.done, self.failed) if is_done else (self.failed, self.done)
        for key in keys:
            out_of.discard(key)
            into.add(key)


def split_keys(text: object) -> list[bytes]:
    """Return the keys of a task from its hex form: one for each call; none when there is no key."""
    if not isinstance(text, str) or not text:
        return []
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return []
    if len(raw) % KEY_BYTES:
        return [raw]
    return [raw[i : i + KEY_BYTES] for i in range(0, len(raw), KEY_BYTES)]


def read_done_keys(path: Path) -> DoneKeys:
    """Return what the results directory, results file or joblog at `path` says is done.

    Nothing there yet is nothing done.  A torn last line is passed over.

    Raises:
        UsageError: the file is none of these, or cannot be read.
    """
    try:
        return _read_keys(path)
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read", error.strerror or str(error), code="results-path") from error


def _read_keys(path: Path) -> DoneKeys:
    if path.is_dir():
        found = _read_jsonl_keys(path / "tasks.jsonl")
        if (path / "joblog").exists():
            # A task that was tried again keeps its folder's number and has a new one in the joblog.
            found.next_number = max(found.next_number, _read_joblog_keys(path / "joblog").next_number)
        return found
    if not path.exists():
        return DoneKeys(by="content" if path.suffix.lower() not in (".csv", ".tsv") else "command")
    match path.suffix.lower():
        case ".jsonl":
            return _read_jsonl_keys(path)
        case ".csv" | ".tsv":
            return _read_csv_keys(path)
    return _read_joblog_keys(path)


def jsonl_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a tasks.jsonl or a .jsonl results file: whole, well-formed ones only."""
    try:
        with read_plain(path) as source:
            for line in whole_lines(source):
                try:
                    record = json.loads(line if line.endswith(b"\n") else _without_content(line))
                except ValueError:
                    continue
                if isinstance(record, dict) and isinstance(record.get("number"), int):
                    yield record
    except FileNotFoundError:
        return


def _without_content(head: bytes) -> bytes:
    """Return the record at the beginning of a long line: what the task printed comes last."""
    return re.split(rb',"stdout(?:_b64)?":"', head, maxsplit=1)[0] + b"}"


def _read_jsonl_keys(path: Path) -> DoneKeys:
    found = DoneKeys()
    for record in jsonl_records(path):
        found.next_number = max(found.next_number, record["number"] + 1)
        if record.get("state") in ("done", "failed"):
            found._record(split_keys(record.get("key")), record["state"] == "done")
    return found


def _read_joblog_keys(path: Path) -> DoneKeys:
    found = DoneKeys(by="command")
    with read_plain(path) as source:
        header = source.readline(len(JOBLOG_HEADER))
        if header and header != JOBLOG_HEADER.encode():
            raise UsageError(f"{path} is not a joblog", "its first line is not GNU parallel's header")
        for line in whole_lines(source):
            columns = line.decode("utf-8", "surrogateescape").rstrip("\n").split("\t", 8)
            if not line.endswith(b"\n") or len(columns) != 9 or not is_number(columns[0]):
                continue
            found.next_number = max(found.next_number, int(columns[0]))
            found._record([command_key(columns[8])], columns[6] == "0" and columns[7] == "0")
    return found


def _read_csv_keys(path: Path) -> DoneKeys:
    found = DoneKeys(by="command")
    for row in csv_rows(path):
        found.next_number = max(found.next_number, int(row[0]))
        found._record([command_key(row[8])], row[6] == "0" and row[7] == "0")
    return found


def csv_rows(path: Path) -> Iterator[list[str]]:
    """Yield the whole rows of a CSV or TSV file of results: GNU parallel's nine columns of each."""
    import csv

    csv.field_size_limit(RESULT_LINE_BYTES_MAX)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with read_plain(path) as source:
        for head in _row_heads(source):
            lines = io.StringIO(head.decode("utf-8", "surrogateescape"), newline="")
            row = next(csv.reader(lines, delimiter=separator), [])
            if len(row) >= 10 and is_number(row[0]):
                yield row[:9]


def _row_heads(source: IO[bytes]) -> Iterator[bytes]:
    """Yield rows, each up to a newline outside quotes; of a long one the first RESULT_LINE_BYTES_MAX bytes."""
    head = bytearray()
    is_open = False
    while piece := source.readline(RESULT_LINE_BYTES_MAX):
        is_open ^= bool(piece.count(b'"') % 2)
        head += piece[: RESULT_LINE_BYTES_MAX - len(head)]
        if piece.endswith(b"\n") and not is_open:
            yield bytes(head)
            head.clear()


def is_number(text: str) -> bool:
    """True for what `int` takes and a number of a task may be."""
    return text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX
