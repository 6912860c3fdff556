"""Where the results of a job or program go: one directory, one file, a joblog; whether they can be written there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from p2pcompute.api.result_claims import Hold, marker_of
from p2pcompute.api.result_keys import read_done_keys
from p2pcompute.errors import StoreError, UsageError
from p2pcompute.host.plain_files import check_plain, read_plain, shown

_OWN_NAMES: Final = ("job.json", "joblog", "tasks.jsonl", "summary.json", "tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsTarget:
    """Where the results of one job go.  All paths are absolute."""

    dir: Path | None = None
    file: Path | None = None
    """One file for all tasks; its suffix is .jsonl, .csv or .tsv."""
    joblog: Path | None = None
    files_dir: Path | None = None
    """Where files that come back land when there is no `dir`."""
    first: int = 0
    """Number of the job's first task in `dir` and the joblog: > 0 when a job carries on an earlier one."""
    resume: bool = False
    """Add to what is there.  Otherwise the joblog is begun anew and other results must not exist."""

    def claims(self) -> Iterator[tuple[Path, Path]]:
        """Yield (marker, what it stands for) of everything that only one job may write; see `result_claims`."""
        for path, is_directory in ((self.dir, True), (self.file, False), (self.joblog, False)):
            if path is not None:
                yield marker_of(path, is_directory=is_directory), path

    def numbered(self) -> ResultsTarget:
        """Return it with numbers that go on after those that are there; for who has it to himself.

        Raises:
            UsageError: what is there cannot be read.
        """
        return replace(self, first=max((read_done_keys(path).next_number for _, path in self.claims()), default=0))

    def to_json(self) -> dict[str, Any]:
        """Return the `results` member of `POST /v1/jobs`."""
        paths = {"dir": self.dir, "file": self.file, "joblog": self.joblog, "files_dir": self.files_dir}
        out: dict[str, Any] = {name: str(path) for name, path in paths.items() if path is not None}
        return out | {"first": self.first, "resume": self.resume}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ResultsTarget:
        """Return the target that `to_json` described.

        Raises:
            UsageError: a path is relative, a suffix is unknown, or a member has the wrong type.
        """
        paths: dict[str, Path] = {}
        for name in ("dir", "file", "joblog", "files_dir"):
            text = value.get(name)
            if text is None:
                continue
            if not isinstance(text, str) or not os.path.isabs(text):
                raise UsageError(f"results: {name} must be an absolute path", repr(text))
            paths[name] = Path(text)
        first, resume = value.get("first", 0), value.get("resume", False)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0 or not isinstance(resume, bool):
            raise UsageError("results: 'first' must be a count and 'resume' true or false")
        if "file" in paths:
            file_format(paths["file"])
        return ResultsTarget(
            dir=paths.get("dir"),
            file=paths.get("file"),
            joblog=paths.get("joblog"),
            files_dir=paths.get("files_dir"),
            first=first,
            resume=resume,
        )


def file_format(path: Path) -> Literal["jsonl", "csv", "tsv"]:
    """Return the format that the suffix of a results file names.

    Raises:
        UsageError: another suffix.
    """
    match path.suffix.lower():
        case ".jsonl":
            return "jsonl"
        case ".csv":
            return "csv"
        case ".tsv":
            return "tsv"
    raise UsageError(
        f"cannot write results to {path.name}", "a results file ends in .jsonl, .csv or .tsv", "--results out.jsonl"
    )


def is_results_file(text: str) -> bool:
    """True when `--results TEXT` names one file rather than a directory."""
    return text.lower().endswith((".jsonl", ".csv", ".tsv"))


def _is_joblog(path: Path) -> bool:
    """True for what a run may write over: a joblog, or nothing."""
    with read_plain(path) as file:
        return file.read(4) in (b"", b"Seq\t")


def check_target(target: ResultsTarget) -> None:
    """Check that results can be written there.  Nothing that stays is created.

    Raises:
        UsageError: results of another job are there and `resume` is not set, or a path cannot be written.
    """
    try:
        _check_target(target)
    except OSError as error:
        path = target.dir or target.file or target.joblog
        what = "results cannot be written" if path is None else f"{shown(path)} cannot be written"
        raise UsageError(what, error.strerror or str(error), "name another place", code="results-path") from error


def _check_target(target: ResultsTarget) -> None:
    for file in (target.file, target.joblog):
        if file is not None:
            check_plain(file)
    if target.dir is not None and not target.resume:
        present = [name for name in _OWN_NAMES if (target.dir / name).exists()]
        if present:
            raise UsageError(
                f"{target.dir} already holds results ({present[0]})",
                "they would be mixed with the new ones",
                "add --resume to carry on, or name another directory",
                code="results-exist",
            )
    if target.file is not None and not target.resume and target.file.exists() and target.file.stat().st_size:
        raise UsageError(
            f"{target.file} already holds results",
            "they would be overwritten",
            "add --resume to carry on, or name another file",
            code="results-exist",
        )
    if target.joblog is not None and target.joblog.is_file() and not _is_joblog(target.joblog):
        raise UsageError(
            f"{target.joblog} is no joblog",
            "it would be overwritten",
            "name another file: --joblog FILE",
            code="results-exist",
        )
    for path in (target.dir, target.file, target.joblog):
        if path is None:
            continue
        parent = path if path is target.dir else path.parent
        while not _is_there(parent):
            parent = parent.parent
        if not parent.is_dir():
            raise UsageError(f"{shown(parent)} is a file", "results cannot be written there", code="results-path")
        for place in (parent, path):
            if _is_there(place) and not os.access(place, os.W_OK):
                raise UsageError(f"{path} cannot be written", f"no permission in {place}", code="results-path")
        try:  # permission is not enough: not every file system takes files
            tempfile.TemporaryFile(dir=parent).close()
        except OSError as error:
            why = f"no file can be made in {parent}: {error.strerror or error}"
            raise UsageError(f"{path} cannot be written", why, code="results-path") from error


def _is_there(path: Path) -> bool:
    """Whether something has that name.

    Raises:
        OSError: nothing can have it: it is too long, or a link that leads to itself.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def hold(target: ResultsTarget) -> Hold:
    """Claim places for this program, until it has written there or hands them over to a job.

    Raises:
        UsageError: somebody else writes there.
        StoreError: the disk refuses.
    """
    with disk_errors(target, None):
        return Hold(target.claims())


@contextlib.contextmanager
def disk_errors(target: ResultsTarget, job: Mapping[str, Any] | None) -> Iterator[None]:
    """Turn OSError into StoreError with the path and the way out; `job` is None before there is one."""
    try:
        yield
    except OSError as error:
        where = target.dir or target.file or target.joblog or target.files_dir
        raise StoreError(
            f"results cannot be written to {where}",
            error.strerror or str(error),
            "make room or give permission, and begin again: nothing has run"
            if job is None
            else "make room or give permission, and they are written then; nothing is lost, elsewhere: "
            f"p2pc result {job.get('alias') or 'JOB'} -o DIR",
            code="results-disk",
        ) from error
