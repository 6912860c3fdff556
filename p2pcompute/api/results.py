"""Results of a job on disk: a directory, one file, a GNU parallel joblog, and files brought back.

Plain blocking code without dependencies: the node writes results whether or not a terminal watches, and the
library writes them without a node process.  One writer per job; not thread-safe.

A results directory holds ``job.json``, ``joblog`` (GNU parallel's nine columns, byte for byte), ``tasks.jsonl``
(append-only truth), ``summary.json`` (at the end) and ``tasks/000/000017/`` with ``args``, ``stdout``, ``stderr``,
``meta.json``, the value of a function and ``files/``.  A task's folder is written under a temporary name and renamed,
and its line in ``tasks.jsonl`` follows: a folder that exists is complete, a task that has a line has its folder.

After a crash, `ResultsWriter.reopen` drops a torn last line and says which tasks are there; writing one again has
no effect.  Nothing is synced to the disk task by task: after a power failure `reopen` finds the folders whose
content is missing and the caller writes them again from the node's store.

Source: joblog and CSV columns as GNU parallel 20221122 writes them (print_joblog, print_csv).  A job of functions has
one more, `Value`, at the end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from p2pcompute.api.result_claims import drop_claim, take_claim
from p2pcompute.api.result_content import Content, content_size, place_file, write_content
from p2pcompute.api.result_keys import (
    JOBLOG_HEADER,
    csv_rows,
    is_number,
    jsonl_records,
    split_keys,
)
from p2pcompute.api.result_rows import (
    append_to,
    append_whole,
    begin_joblog,
    csv_content,
    csv_field,
    exit_columns,
    joblog_line,
    json_content,
    wall_seconds,
)
from p2pcompute.api.result_target import ResultsTarget, check_target, disk_errors, file_format
from p2pcompute.api.shown_values import shown_value
from p2pcompute.errors import StoreError
from p2pcompute.host.plain_files import read_plain, whole_lines
from p2pcompute.limits import RESULT_LINE_BYTES_MAX

FOLDER_TASKS: Final = 1000
"""Task folders in one folder of the directory."""


def folder_name(number: int) -> str:
    """Return the folder of a task, relative to the results directory: ``tasks/000/000017``."""
    return f"tasks/{number // FOLDER_TASKS:03d}/{number:06d}"


class ResultsWriter:
    """Writes the results of one job as they are accepted.

    Make one with `create` when the job is submitted and with `reopen` when the node comes back to a job that has
    not ended.
    """

    def __init__(self, target: ResultsTarget, job: Mapping[str, Any], home: str = "") -> None:
        self.target = target
        self.job_id = str(job.get("id", ""))
        self._job = job
        self.home = home
        self._has_values = job.get("kind") == "function"
        self._written: dict[int, int] = {}
        """Index → highest generation on disk."""
        self.refused_count = 0
        """Files that came back under names that cannot be here."""
        self._numbers: dict[bytes, int] = {}
        """First key → number of a task that an earlier job left in the directory."""
        self._truth: IO[bytes] | None = None
        self._joblog: IO[bytes] | None = None
        self._file: IO[bytes] | None = None

    @classmethod
    def create(cls, target: ResultsTarget, job: Mapping[str, Any], *, home: str = "") -> ResultsWriter:
        """Begin the results of a new job.

        Args:
            target: where.
            job: what goes into job.json; `id` is the job's id in hex.
            home: state directory of the installation that keeps the job and will finish it; then no other job can
                write there before this one's end.

        Raises:
            UsageError: as `check_target`, or another job has claimed the place.
            StoreError: the disk refuses; what was created stays and can be resumed.
        """
        check_target(target)
        writer = cls(target, job, home)
        with disk_errors(target, job):
            writer._claim()
            if target.dir is not None:
                (target.dir / "tasks").mkdir(parents=True, exist_ok=True)
                _replace_json(target.dir / "job.json", {"schema": "p2pc.job/1", **job})
                (target.dir / "summary.json").unlink(missing_ok=True)
                if not target.resume:
                    begin_joblog(target.dir / "joblog")
            if target.joblog is not None and not target.resume:
                begin_joblog(target.joblog)
            writer._open()
        return writer

    @classmethod
    def reopen(cls, target: ResultsTarget, job: Mapping[str, Any], *, home: str = "") -> ResultsWriter:
        """Carry on writing the results of a job after the process that wrote them has gone.

        Raises:
            UsageError: another job has claimed the place.
            StoreError: the disk refuses.
        """
        writer = cls(target, job, home)
        with disk_errors(target, job):
            writer._claim()
            if target.dir is not None:
                (target.dir / "tasks").mkdir(parents=True, exist_ok=True)
                if not (target.dir / "job.json").exists():
                    _replace_json(target.dir / "job.json", {"schema": "p2pc.job/1", **job})
            writer._open()
        return writer

    def _claim(self) -> None:
        """Make the folders, and claim what is ours alone."""
        for marker, path in self.target.claims():
            marker.parent.mkdir(parents=True, exist_ok=True)
            if self.home:
                take_claim(marker, path, self.job_id, self.home)

    def _open(self) -> None:
        target = self.target
        try:
            if target.dir is not None:
                self._truth = append_to(target.dir / "tasks.jsonl")
                self._read_truth(target.dir / "tasks.jsonl", check_folders=True)
                self._open_joblog(target.dir / "joblog")
            if target.file is not None:
                self._open_file(target.file)
            if target.joblog is not None:
                self._open_joblog(target.joblog)
        except BaseException:  # tidied up after, and raised again
            for out in (self._truth, self._joblog, self._second_joblog, self._file):
                if out is not None:
                    out.close()
            raise

    def _open_file(self, path: Path) -> None:
        if file_format(path) == "jsonl":
            self._file = append_to(path)
            self._read_truth(path, check_folders=False)
            return
        self._file = append_to(path, quoted=True)
        if self._file.tell():
            with read_plain(path) as lines:
                self._has_values = lines.readline(RESULT_LINE_BYTES_MAX).rstrip().endswith(b"Value")
        for row in csv_rows(path):
            self._note_seq(int(row[0]))

    def _open_joblog(self, path: Path) -> None:
        """Make up for lines that a crash kept from the joblog; without a truth, learn from the joblog itself."""
        log = append_to(path)
        if log.tell() == 0:
            log.write(JOBLOG_HEADER.encode())
        seqs: set[int] = set()
        with read_plain(path) as lines:
            for line in whole_lines(lines):
                head = line.split(b"\t", 1)[0].decode("ascii", "replace")
                if is_number(head):
                    seqs.add(int(head))
        if self.target.dir is None and self.target.file is None:
            for seq in sorted(seqs):
                self._note_seq(seq)
        else:
            truth = self.target.dir / "tasks.jsonl" if self.target.dir else self.target.file
            if truth is not None and truth.suffix == ".jsonl":
                for record in jsonl_records(truth):
                    if record.get("job") == self.job_id and record["index"] + self.target.first + 1 not in seqs:
                        log.write(self._joblog_bytes(record))
                log.flush()
        if self._joblog is None:
            self._joblog = log
        else:
            self._second_joblog = log

    _second_joblog: IO[bytes] | None = None
    """`--joblog` beside a results directory, which has its own."""

    def _note_seq(self, seq: int) -> None:
        index = seq - 1 - self.target.first
        if index >= 0:
            self._written[index] = max(0, self._written.get(index, 0))

    def _read_truth(self, path: Path, *, check_folders: bool) -> None:
        for record in jsonl_records(path):
            keys = split_keys(record.get("key"))
            if record.get("job") != self.job_id:
                if keys:
                    self._numbers[keys[0]] = record["number"]
                continue
            index, generation = record.get("index"), record.get("generation", 0)
            if not isinstance(index, int) or not isinstance(generation, int):
                continue
            if check_folders and record.get("folder") and not self._is_whole(record):
                continue
            self._written[index] = max(generation, self._written.get(index, 0))

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        """False when a power failure took what the folder held."""
        assert self.target.dir is not None
        folder = self.target.dir / str(record["folder"])
        try:
            return (
                (folder / "stdout").stat().st_size == record["stdout_bytes"]
                and (folder / "stderr").stat().st_size == record["stderr_bytes"]
                and (folder / "meta.json").stat().st_size > 0
            )
        except OSError:
            return False

    def is_written(self, index: int, generation: int = 0) -> bool:
        """True when this or a later generation of the task is on disk."""
        return self._written.get(index, -1) >= generation

    def number_of(self, task: Mapping[str, Any]) -> int:
        """Return the number of a task's folder: that of the same task in an earlier job, or its own."""
        keys = split_keys(task.get("key"))
        known = self._numbers.get(keys[0]) if keys else None
        return self.target.first + int(task["index"]) if known is None else known

    def write(
        self,
        task: Mapping[str, Any],
        *,
        stdout: Content = None,
        stderr: Content = None,
        value: Content = None,
        value_name: str = "value.pickle",
        value_text: str | None = None,
        files: Sequence[tuple[str, Content, int]] = (),
    ) -> bool:
        """Write one accepted or failed task; return False when it was there already.

        Args:
            task: TASK of the daemon API; `generation`, `status` and `sent_bytes` are used when present, further
                members are kept.
            stdout: what it printed.
            stderr: what it printed there.
            value: the encoded return value of a function.
            value_name: name of the value's file in the folder.
            value_text: the value as one file of results shows it when it is no plain data, which alone is read here;
                None: its size.
            files: (name relative to the task's directory, content, permission bits) of files that came back.

        Raises:
            StoreError: the disk refuses (full, gone).  The task does not count as written.
        """
        index, generation = int(task["index"]), int(task.get("generation") or 0)
        if self.is_written(index, generation):
            return False
        number = self.number_of(task)
        record: dict[str, Any] = {"job": self.job_id, "number": number, "generation": generation, **task}
        record["stdout_bytes"], record["stderr_bytes"] = content_size(stdout), content_size(stderr)
        record["files"] = [{"name": name, "size": content_size(content)} for name, content, _ in files]
        with disk_errors(self.target, self._job):
            if task.get("state") != "cancelled":
                if self.target.dir is not None:
                    record["folder"] = folder_name(number)
                    contents = {"stdout": stdout, "stderr": stderr}
                    if value is not None:
                        contents[value_name] = value
                    self._write_folder(record, contents, files)
                elif self.target.files_dir is not None:
                    self._place_all(self.target.files_dir, record, files)
            self._append(record, stdout, stderr, value if task.get("state") == "done" else None, value_text)
        self._written[index] = generation
        return True

    def _append(
        self, record: dict[str, Any], stdout: Content, stderr: Content, value: Content, value_text: str | None
    ) -> None:
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
        is_cancelled = record.get("state") == "cancelled"
        if self._truth is not None:
            self._truth.write(line + b"\n")
            self._truth.flush()
        if self._file is not None and not is_cancelled:
            shown = (None, "") if not value else shown_value(value, is_chunk=bool(record.get("chunk")))
            if value_text is not None and shown[0] is None:
                shown = (None, value_text)
            append_whole(self._file, lambda out: self._write_row(out, line, record, stdout, stderr, shown))
        for log in (self._joblog, self._second_joblog):
            if log is not None and not is_cancelled:
                log.write(self._joblog_bytes(record))
                log.flush()

    def _joblog_bytes(self, record: Mapping[str, Any]) -> bytes:
        exit_code, signal = exit_columns(record)
        received = sum(int(file.get("size") or 0) for file in record.get("files") or ())
        return joblog_line(
            seq=self.target.first + int(record["index"]) + 1,
            host=str(record.get("node") or ":"),
            started=wall_seconds(record.get("started")),
            runtime_s=float(record.get("runtime_s") or 0.0),
            sent=int(record.get("sent_bytes") or 0),
            received=received + int(record.get("stdout_bytes") or 0),
            exit_code=exit_code,
            signal=signal,
            command=str(record.get("command") or ""),
        ).encode("utf-8", "surrogateescape")

    def _write_folder(
        self, record: dict[str, Any], contents: Mapping[str, Content], files: Sequence[tuple[str, Content, int]]
    ) -> None:
        assert self.target.dir is not None
        final = self.target.dir / str(record["folder"])
        part = final.with_name(f".{final.name}.part")
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        (part / "args").write_text(
            "".join(f"{word}\n" for word in record.get("inputs") or ()), encoding="utf-8", errors="surrogateescape"
        )
        for name, content in contents.items():
            write_content(part / name, content)
        self._place_all(part / "files", record, files)
        (part / "meta.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if final.exists():
            old = final.with_name(f".{final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            part.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(final)

    def _place_all(self, directory: Path, record: dict[str, Any], files: Sequence[tuple[str, Content, int]]) -> None:
        """Put the files of a task that came back into a directory.  Those whose names cannot be there are noted in its
        record instead: `files_refused`."""
        refused: dict[str, str] = {}
        for name, content, mode in files:
            try:
                place_file(directory, name, content, mode)
            except StoreError as error:
                refused[name] = error.what
            except OSError as error:
                if error.errno not in _NAME_ERRORS:
                    raise
                refused[name] = error.strerror or str(error)
        if refused:
            self.refused_count += len(refused)
            record["files"] = [file for file in record["files"] if file["name"] not in refused]
            record["files_refused"] = [{"name": name, "why": why} for name, why in refused.items()]

    def _write_row(
        self,
        out: IO[bytes],
        line: bytes,
        record: Mapping[str, Any],
        stdout: Content,
        stderr: Content,
        shown: tuple[str | None, str],
    ) -> None:
        value_json, value_text = shown
        assert self.target.file is not None
        kind = file_format(self.target.file)
        if kind == "jsonl":
            out.write(line[:-1])
            json_content(out, "stdout", stdout)
            json_content(out, "stderr", stderr)
            if value_json is not None:
                out.write(b',"value":' + value_json.encode("utf-8", "backslashreplace"))
            elif value_text:
                json_content(out, "value_text", value_text.encode("utf-8", "backslashreplace"))
            out.write(b"}\n")
            return
        separator = b"," if kind == "csv" else b"\t"
        inputs = [str(word) for word in record.get("inputs") or ()]
        if out.tell() == 0:
            names = ["Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command"]
            names += [f"V{position}" for position in range(1, len(inputs) + 1)]
            names += ["Stdout", "Stderr"] + ["Value"] * self._has_values
            out.write(separator.join(name.encode() for name in names) + b"\n")
        columns = self._joblog_bytes(record).rstrip(b"\n").split(b"\t", 8)
        columns[3] = columns[3].strip()
        columns += [word.encode("utf-8", "surrogateescape") for word in inputs]
        for column in columns:
            out.write(csv_field(column, separator) + separator)
        csv_content(out, stdout)
        out.write(separator)
        csv_content(out, stderr)
        if self._has_values:
            out.write(separator + csv_field(value_text.encode("utf-8", "backslashreplace"), separator))
        out.write(b"\n")

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Sync and close.  With a summary (the job has ended) summary.json is written.

        Raises:
            StoreError: the disk refuses.
        """
        with disk_errors(self.target, self._job):
            for out in (self._truth, self._joblog, self._second_joblog, self._file):
                if out is not None:
                    out.flush()
                    os.fsync(out.fileno())
                    out.close()
            self._truth = self._joblog = self._second_joblog = self._file = None
            if summary is not None and self.target.dir is not None:
                _replace_json(self.target.dir / "summary.json", {"schema": "p2pc.summary/1", **summary})
        if summary is not None and self.home:
            for marker, _ in self.target.claims():
                drop_claim(marker, self.job_id)


_NAME_ERRORS: Final = frozenset(
    (errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)
)
"""What is wrong then is the name of the file, not the disk."""


def _replace_json(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as out:
        out.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
