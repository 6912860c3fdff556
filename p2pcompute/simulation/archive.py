"""Where results are kept: `runs.jsonl` and files beside it in a directory of one scenario.

What was run before with the same settings, seed and code counts again; two processes never write to one directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import msgspec

import p2pcompute
from p2pcompute.errors import StoreError, UsageError
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.study import Point, Study
from p2pcompute.version import VERSION

RUN_SCHEMA: Final = "p2pc.sim-run/1"
RUNS_NAME: Final = "runs.jsonl"


@functools.cache
def code_version() -> dict[str, str]:
    """Return what the code is: `version`, `digest` (SHA-256 of all modules, first 16 digits), `python`, and in a source
    tree under git `commit`, with a + when there are changes beyond it.
    """
    root = Path(p2pcompute.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    found = {
        "version": VERSION,
        "digest": digest.hexdigest()[:16],
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    if (root.parent / ".git").exists():
        commit = _git(root.parent, "rev-parse", "--short=12", "HEAD")
        if commit:
            found["commit"] = commit + ("+" if _git(root.parent, "status", "--porcelain", "--", root.name) else "")
    return found


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class OutputError(StoreError):
    """The directory of results cannot be written.  What it holds already stays."""


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While in it, no other process writes results to this directory.  The system lets go of it when a process dies.

    Raises:
        UsageError: another process does, or the directory cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            why = "another p2pc sim run keeps its results there"
            raise UsageError(f"{folder} is in use", why, "wait for it, or name another: -o DIR") from error
        yield
    finally:
        os.close(handle)


class Archive:
    """Results in `runs.jsonl` of a directory, a line for each run.

    A line counts again for the same settings, seed, bound and code.  Lines of other code stay and are not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / RUNS_NAME
        self._found: dict[tuple[object, ...], RunResult] = {}
        self._counts: Counter[str] = Counter()
        """Lines by scenario."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            data = self._path.read_bytes() if self._path.exists() else b""
            if data and not data.endswith(b"\n"):  # cut off in the middle of a line
                data = data[: data.rfind(b"\n") + 1]
                self._path.write_bytes(data)
            self._path.open("ab").close()  # what cannot be written later is said now
        except OSError as error:
            raise _unusable(folder, error) from error
        for number, line in enumerate(data.splitlines(), 1):
            self._take(line, number)

    def _take(self, line: bytes, number: int) -> None:
        try:
            data = json.loads(line)
            if data["schema"] != RUN_SCHEMA:
                raise ValueError(f"its schema is not {RUN_SCHEMA}")
            result = msgspec.convert(data["run"], RunResult)
            key = (data["digest"], data["code"]["digest"], data["code"]["python"], data["until_s"], result.seed)
            self._found[key] = result
            self._counts[result.scenario] += 1
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(
                f"{self._path}, line {number}: not a result of a simulation",
                why,
                "remove that line, or choose another directory: -o DIR",
            ) from error

    def check(self, study: Study) -> None:
        """Raises UsageError when the directory holds results of another scenario; they are named."""
        others = {name: count for name, count in sorted(self._counts.items()) if name != study.scenario.name}
        if others:
            found = ", ".join(f"{count} of {name}" for name, count in others.items())
            raise UsageError(
                f"{self.folder} holds runs of another scenario than {study.scenario.name}",
                f"runs in {self._path.name}: {found}",
                "choose another directory: -o DIR",
            )

    def fill(self, study: Study) -> int:
        """Put what is kept into a study; returns how many results that are."""
        count = 0
        code = code_version()
        for point in study.points:
            shared = (point.scenario.digest(), code["digest"], code["python"], study.until_s)
            for seed in study.seeds:
                found = self._found.get((*shared, seed))
                if found is not None:
                    point.results[seed] = found
                    count += 1
        return count

    def keep(self, study: Study, point: Point, result: RunResult) -> None:
        """Append a result.

        Raises:
            OutputError: it cannot be written.
        """
        if any(problem.startswith("lost: ") for problem in result.problems):
            return  # the machine's failure, not the seed's
        line = {
            "schema": RUN_SCHEMA,
            "digest": point.scenario.digest(),
            "code": code_version(),
            "until_s": study.until_s,
            "set": dict(point.values),
            "run": asdict(result),
        }
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def write(self, name: str, text: str) -> Path:
        """Write a file beside the results, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.folder / name
        try:
            path.with_name(f".{name}.part").write_text(text, encoding="utf-8")
            path.with_name(f".{name}.part").replace(path)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return path

    def remove(self, name: str) -> None:
        """Remove a file beside the results, if it is there.

        Raises:
            OutputError: it cannot be removed.
        """
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error


def _unusable(folder: Path, error: OSError) -> UsageError:
    """The directory is of no use from the start."""
    return UsageError(f"no results can be kept in {folder}", *_why_and_fix(error))


def unwritable(folder: Path, error: OSError) -> OutputError:
    why, fix = _why_and_fix(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = f"make room and repeat the command: it goes on from the runs that are in {folder / RUNS_NAME}"
    return OutputError(f"{folder} cannot be used", why, fix, code="output")


def _why_and_fix(error: OSError) -> tuple[str, str]:
    why = "it is a file, or there is a file on the way to it" if isinstance(error, _NO_FOLDER) else error.strerror
    return why or str(error), "choose another directory: -o DIR"


_NO_FOLDER: Final = (FileExistsError, NotADirectoryError)
