"""Commands as jobs of the library: `sh`, and what it returns."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.api.functions import Shipment
from p2pcompute.api.jobs import Job
from p2pcompute.api.options import TaskOptions
from p2pcompute.errors import RemoteProtocolError, UsageError
from p2pcompute.execution.spec import InputFile, TaskKind, TaskPayload, encode_payload, is_safe_name
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile

if TYPE_CHECKING:
    from p2pcompute.api.executor import MeshExecutor
    from p2pcompute.api.futures import MeshFuture
    from p2pcompute.host.real_blobs import FileBlobs

PLACE: Final = "{}"
"""Stands for the input."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended, whatever its exit code was."""

    args: Sequence[str]
    """The words; a single one when the shell ran it."""
    returncode: int
    """Negative: it was ended by that signal."""
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    files: Mapping[str, str] = field(default_factory=dict)
    """Where the fetched files are, by the name that they had in the task's directory."""


def start_commands(
    executor: MeshExecutor,
    command: str | Sequence[str],
    inputs: Iterable[Any] | None,
    *,
    send: Sequence[str | os.PathLike[str]],
    fetch: Sequence[str],
    to: str | os.PathLike[str],
    options: TaskOptions,
    name: str | None,
) -> Job[Completed]:
    """Start one command per input.  See `p2pcompute.sh`."""
    is_shell = isinstance(command, str)
    words = (command,) if isinstance(command, str) else tuple(os.fspath(word) for word in command)
    if not words or not all(words[:1]):
        raise UsageError("there is no command", "its first word is empty", "name a program")
    label = name or (shlex.split(words[0])[0] if is_shell else os.path.basename(words[0]))
    commands = _Commands(
        words,
        executor._node.blobs(),
        is_shell=is_shell,
        send=[os.fspath(path) for path in send],
        fetch=tuple(fetch),
        to=Path(to),
    )
    kind = TaskKind.SHELL if is_shell else TaskKind.COMMAND
    shipment = Shipment(label, b"", None, (), options, b"")
    job: Job[Completed] = Job(executor._desk, shipment, label, kind, commands.read)
    try:
        for value in (None,) if inputs is None else inputs:
            text = None if value is None else os.fspath(value) if isinstance(value, os.PathLike) else str(value)
            job.add(executor._send_payload(job.open_job, *commands.payload(text)))
    except BaseException:
        job.cancel(now=True)
        raise
    finally:
        job.seal()
    return job


class _Commands:
    """The commands of one job."""

    def __init__(
        self,
        words: tuple[str, ...],
        blobs: FileBlobs,
        *,
        is_shell: bool,
        send: list[str],
        fetch: tuple[str, ...],
        to: Path,
    ) -> None:
        self._is_shell = is_shell
        self._words = words
        self._send = send
        self._fetch = fetch
        self._to = to.absolute()
        self._blobs = blobs

    def payload(self, value: str | None) -> tuple[bytes, tuple[BlobRef, ...], tuple[str, ...]]:
        """Return (payload, blobs that it names, words) of the command for one input."""
        if value is None:
            value, words = "", self._words
        else:
            words = self._filled(value)
        files = tuple(self._input_file(path.replace(PLACE, value)) for path in self._send)
        payload = TaskPayload(
            argv=words,
            send=files,
            fetch=tuple(pattern.replace(PLACE, value) for pattern in self._fetch),
            inputs=(value,),
        )
        return encode_payload(payload), tuple(file.blob for file in files), words

    def _filled(self, value: str) -> tuple[str, ...]:
        """Return the words with an input put in, or put behind when none says where it goes."""
        has_place = any(PLACE in word for word in self._words)
        if self._is_shell:
            value = shlex.quote(value)
            words = self._words if has_place else (f"{self._words[0]} {PLACE}",)
        else:
            words = self._words if has_place else (*self._words, PLACE)
        return tuple(word.replace(PLACE, value) for word in words)

    def _input_file(self, path: str) -> InputFile:
        """Take a file in; the task finds it under the same relative name, or its last part."""
        name = os.path.normpath(path)
        if os.path.isabs(name) or name.startswith(".."):
            name = os.path.basename(name)
        try:
            content = Path(path).read_bytes()
            mode = os.stat(path).st_mode & 0o777
        except OSError as error:
            what = f"the file {path} cannot be sent"
            raise UsageError(what, error.strerror or str(error), "check its name") from error
        return InputFile(name, self._blobs.put_now(content, pin=True), mode)

    def read(self, future: MeshFuture[Any], outcome: Outcome, contents: Mapping[bytes, bytes]) -> Any:
        """Return the command as it ended; NotImplemented when it did not run to its end."""
        if outcome.status not in (OutcomeStatus.OK, OutcomeStatus.FAILED) or (
            outcome.exit_code is None and outcome.signal is None
        ):
            return NotImplemented
        files = {file.name: self._place(file, contents[file.digest]) for file in outcome.files}
        returncode = outcome.exit_code if outcome.exit_code is not None else -(outcome.signal or 0)
        stderr = contents[outcome.stderr_blob[0]] if outcome.stderr_blob is not None else outcome.stderr
        if returncode and outcome.error and not stderr:
            stderr = outcome.error.encode("utf-8", "replace")
        stdout = contents[outcome.stdout_blob[0]] if outcome.stdout_blob is not None else outcome.stdout
        return Completed(future._words, returncode, stdout, stderr, files)

    def _place(self, file: OutputFile, content: bytes) -> str:
        """Write a fetched file below the chosen directory."""
        if not is_safe_name(file.name):
            raise RemoteProtocolError("a file name that leaves the directory", file.name)
        path = self._to / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(file.mode & 0o777)
        return str(path)
