"""Commands as jobs of the library: `sh`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pcompute.api.completed import Completed
from p2pcompute.api.files import PLACE, Taker, filled, sent_files
from p2pcompute.api.functions import Shipment
from p2pcompute.api.jobs import Job
from p2pcompute.api.options import TaskOptions
from p2pcompute.api.result_content import place_file
from p2pcompute.errors import UsageError
from p2pcompute.execution.spec import TaskKind, TaskPayload, encode_payload
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome, OutcomeStatus

if TYPE_CHECKING:
    from p2pcompute.api.futures import MeshFuture
    from p2pcompute.api.sending import Sender
    from p2pcompute.host.real_blobs import FileBlobs


def start_commands(
    executor: Sender,
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
    if options.digits:
        raise UsageError("equal= is for functions", "what a command prints is compared as it is", "leave it out")
    label = name or (shlex.split(words[0])[0] if is_shell else os.path.basename(words[0]))
    commands = _Commands(
        words,
        executor._node.blobs(),
        executor._core.taker(),
        is_shell=is_shell,
        send=[os.fspath(path) for path in send],
        fetch=tuple(fetch),
        to=Path(to),
    )
    kind = TaskKind.SHELL if is_shell else TaskKind.COMMAND
    shipment = Shipment(label, b"", None, (), options, b"")
    job: Job[Completed] = Job(executor._desk, shipment, label, kind, commands.read)
    with job.being_filled():
        for value in (None,) if inputs is None else inputs:
            text = None if value is None else os.fspath(value) if isinstance(value, os.PathLike) else str(value)
            job.add(executor._send_payload(job.open_job, *commands.payload(text)))
    return job


class _Commands:
    """The commands of one job."""

    def __init__(
        self,
        words: tuple[str, ...],
        blobs: FileBlobs,
        taker: Taker,
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
        self._taker = taker

    def payload(self, value: str | None) -> tuple[bytes, tuple[BlobRef, ...], tuple[str, ...]]:
        """Return (payload, blobs that it names, words) of the command for one input."""
        sent = sent_files(filled(self._send, value or ""))
        files = tuple(self._taker.take(file, self._blobs.pin) for file in sent)
        names = {file.path: file.name for file in sent}
        name = "" if value is None else names.get(value, value)
        words = self._words if value is None else self._filled(name)
        payload = TaskPayload(argv=words, send=files, fetch=filled(self._fetch, name), inputs=(value or "",))
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

    def read(self, future: MeshFuture[Any], outcome: Outcome, contents: Mapping[bytes, bytes]) -> Any:
        """Return the command as it ended; NotImplemented when it did not run to its end."""
        if outcome.status not in (OutcomeStatus.OK, OutcomeStatus.FAILED) or (
            outcome.exit_code is None and outcome.signal is None
        ):
            return NotImplemented
        files = {
            file.name: str(place_file(self._to, file.name, contents[file.digest], file.mode)) for file in outcome.files
        }
        returncode = outcome.exit_code if outcome.exit_code is not None else -(outcome.signal or 0)
        stderr = contents[outcome.stderr_blob[0]] if outcome.stderr_blob is not None else outcome.stderr
        if returncode and outcome.error and not stderr:
            stderr = outcome.error.encode("utf-8", "replace")
        stdout = contents[outcome.stdout_blob[0]] if outcome.stdout_blob is not None else outcome.stdout
        return Completed(future._words, returncode, stdout, stderr, files)
