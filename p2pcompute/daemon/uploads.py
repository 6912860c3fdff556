"""What submitters send: jobs and tasks in JSON, made into specs and payloads; named files taken into the blob store.

Nothing of a line is stored unless all of it can be: its files are read first, its payload is checked, then the batch
that it is in is added in one transaction.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn, TypeVar

import msgspec

from p2pcompute.api.files import Mark, is_settled, mark_of
from p2pcompute.config import SIZE_MAX
from p2pcompute.daemon.views import Note
from p2pcompute.errors import P2pcError, RemoteProtocolError, UsageError
from p2pcompute.execution.locks import check_lock
from p2pcompute.execution.spec import (
    IMAGE_NAME,
    InputFile,
    JobSpec,
    TaskKind,
    TaskPayload,
    encode_payload,
    is_safe_name,
)
from p2pcompute.host.interfaces import BlobRef, BlobStore
from p2pcompute.limits import (
    INLINE_BYTES_MAX,
    JOB_NAME_CHARS_MAX,
    MOMENT_S_MAX,
    NODES_CHOSEN_MAX,
    PRIORITY_MAX,
    REQUEST_NAME_CHARS_MAX,
    TASK_PAYLOAD_BYTES_MAX,
    UPLOAD_BATCH_BYTES_MAX,
    UPLOAD_BATCH_MAX,
    UPLOAD_FILES_MAX,
    UPLOAD_FILES_REMEMBERED,
    UPLOAD_LINE_BYTES_MAX,
    UPLOAD_LINES_AT_ONCE,
)
from p2pcompute.node.facade import NodeFacade, PeerView, TrustView
from p2pcompute.node.views import find_nodes
from p2pcompute.resources.matching import Needs, check_needs
from p2pcompute.scheduler.terms import JobTerms, check_demands, parse_halt


class FileLine(msgspec.Struct, forbid_unknown_fields=True):
    """A file or folder of this machine, and its name in the task's directory."""

    path: str
    name: str


class TermsBody(msgspec.Struct, forbid_unknown_fields=True):
    retries: int = 2
    timeout_s: float | None = None
    slots_max: int | None = None
    halt: str = ""
    local_only: bool = False
    priority: int = 0
    deadline_ms: int | None = None
    trust: str = ""
    verify: str = ""
    error_ppb: int | None = None
    replicas: int | None = None
    python: tuple[int, int] | None = None
    require: list[str] = []
    prefer: list[str] = []
    on: list[str] = []
    not_on: list[str] = []


class SpecBody(msgspec.Struct, forbid_unknown_fields=True):
    env: dict[str, str] = {}
    cpus: float = 1.0
    mem_bytes: int | None = None
    gpus: float = 0.0
    disk_bytes: int | None = None
    cpu_s: float | None = None
    output_bytes_max: int | None = None
    network: bool = False
    sandbox: Literal["", "process", "sandbox"] = ""
    digits: int = 0
    fuel: int | None = None
    share: list[FileLine] = []
    code_b64: bytes | None = None
    image: str = ""
    image_path: str | None = None
    modules_b64: bytes | None = None
    packages_b64: bytes | None = None
    platforms: list[str] = []
    is_built: bool = False


class JobBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/jobs."""

    kind: str
    name: str = ""
    terms: TermsBody = msgspec.field(default_factory=TermsBody)
    spec: SpecBody = msgspec.field(default_factory=SpecBody)
    results: dict[str, Any] | None = None
    note: dict[str, Any] = {}
    request: str = ""
    """Made up at random by who submits: the same again gets the answer of the first, and makes no second job."""


class TaskLine(msgspec.Struct, forbid_unknown_fields=True):
    """One line of POST /v1/jobs/ID/tasks."""

    argv: list[str] = []
    inputs: list[str] = []
    stdin_path: str | None = None
    stdin_b64: bytes | None = None
    send: list[FileLine] = []
    fetch: list[str] = []
    env: dict[str, str] = {}
    key: str = ""
    args_b64: bytes | None = None
    chunk: int = 0


Body = TypeVar("Body", bound=msgspec.Struct)


def decode_body(data: bytes, kind: type[Body]) -> Body:
    """Return the JSON in `data`; an empty body is an empty object.

    Raises:
        UsageError: it is not JSON, or not of this shape.
    """
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            "the request is not understood",
            str(error),
            "see the API's description: GET /v1/openapi.json",
            code="bad-request",
        ) from error


def _bad(what: str, why: str = "", fix: str = "", code: str = "bad-request") -> NoReturn:
    raise UsageError(what, why, fix, code=code)


class FileTaker:
    """Takes files of this machine into the blob store, each content once per upload.

    A file is known by its mark, so one that is written to meanwhile is read again.  One that was changed just now is
    read each time: it may change again and bear the same mark.
    """

    def __init__(self, blobs: BlobStore, wall: Callable[[], float]) -> None:
        """Args:
        wall: what time it is, in Unix seconds.
        """
        self._blobs = blobs
        self._wall = wall
        self._known: dict[Mark, BlobRef] = {}

    async def take(self, path: str) -> tuple[BlobRef, int]:
        """Return the blob and the permission bits of a file.

        Raises:
            UsageError: no such file, not a plain file, or unreadable.
        """
        info = self._look(path)
        if not stat.S_ISREG(info.st_mode):
            _bad(f'"{path}" is not a file', "only plain files can be sent", code="not-a-file")
        mark = mark_of(info)
        ref = self._known.get(mark)
        if ref is None:
            has_settled = is_settled(info, self._wall())
            try:
                ref = await self._blobs.put_path(path)
            except OSError as error:
                _bad(f'"{path}" cannot be read', error.strerror or str(error), code="missing-file")
            if has_settled:
                if len(self._known) >= UPLOAD_FILES_REMEMBERED:
                    self._known.pop(next(iter(self._known)))
                self._known[mark] = ref
        return ref, stat.S_IMODE(info.st_mode) & 0o777

    @staticmethod
    def _look(path: str) -> os.stat_result:
        if not os.path.isabs(path):
            _bad(f'"{path}" is not a whole path', "the node may have another working directory", code="bad-request")
        try:
            return os.stat(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            _bad(f'there is no file "{path}"', reason or str(error), "check the name", "missing-file")

    async def take_all(self, files: Sequence[FileLine]) -> tuple[InputFile, ...]:
        """Return what is sent, folders with everything in them, in the order of the names.

        Raises:
            UsageError: a file is missing, there are too many, or two have the same name.
        """
        taken: dict[str, InputFile] = {}
        for file in files:
            for path, name in self._expand(file):
                if not is_safe_name(name):
                    _bad(f'"{name}" leaves the task\'s folder', "names are relative, without ..", code="bad-name")
                if name in taken:
                    _bad(f'two files would have the name "{name}"', f"one of them is {path}", code="bad-name")
                if len(taken) >= UPLOAD_FILES_MAX:
                    _bad(f"more than {UPLOAD_FILES_MAX} files", "", "send an archive of them", "too-many-files")
                ref, mode = await self.take(path)
                taken[name] = InputFile(name, ref, mode)
        return tuple(taken.values())

    def _expand(self, file: FileLine) -> list[tuple[str, str]]:
        if not stat.S_ISDIR(self._look(file.path).st_mode):
            return [(file.path, file.name)]
        found: list[tuple[str, str]] = []
        top = file.path.rstrip("/") or "/"
        for folder, folders, names in os.walk(top):
            folders.sort()
            inner = os.path.relpath(folder, top)
            prefix = file.name if inner == "." else f"{file.name}/{inner}"
            for name in sorted(names):
                path = os.path.join(folder, name)
                if os.path.isfile(path):
                    found.append((path, f"{prefix}/{name}"))
            if len(found) > UPLOAD_FILES_MAX:
                break
        return found


def build_terms(
    body: JobBody, wall: float, peers: Sequence[PeerView] = (), known: Sequence[TrustView] = ()
) -> tuple[JobTerms, JobSpec]:
    """Return what a job request asks for, without its files.

    Args:
        peers: nodes that it may name.
        known: all that were ever met.

    Raises:
        UsageError: it cannot mean anything.
    """
    try:
        kind = TaskKind(body.kind)
    except ValueError:
        _bad(f'"{body.kind}" is not a kind of task', "it is function, command, shell, wasm or container", code="kind")
    if kind is TaskKind.SIMULATED:
        _bad("simulated tasks run in the simulator only", code="kind")
    terms, spec = body.terms, body.spec
    if len(body.name) > JOB_NAME_CHARS_MAX:
        _bad(f"a job's name of {len(body.name)} characters", f"it may have {JOB_NAME_CHARS_MAX}")
    parse_halt(terms.halt)
    if abs(terms.priority) > PRIORITY_MAX:
        _bad(f"a priority of {terms.priority}", f"it is from -{PRIORITY_MAX} to {PRIORITY_MAX}", code="priority")
    for name, value, least in (
        ("retries", terms.retries, 0),
        ("slots_max", terms.slots_max, 1),
        ("deadline_ms", terms.deadline_ms, 1),
        ("error_ppb", terms.error_ppb, 1),
        ("replicas", terms.replicas, 1),
        ("timeout_s", terms.timeout_s, 0),
        ("cpus", spec.cpus, 0),
        ("mem_bytes", spec.mem_bytes, 1),
        ("gpus", spec.gpus, 0),
        ("disk_bytes", spec.disk_bytes, 1),
        ("cpu_s", spec.cpu_s, 0),
        ("output_bytes_max", spec.output_bytes_max, 0),
        ("fuel", spec.fuel, 1),
        ("digits", spec.digits, 0),
    ):
        most = SIZE_MAX if name in ("mem_bytes", "disk_bytes") else 1e15
        if name == "deadline_ms":
            most = MOMENT_S_MAX * 1000
        if value is not None and not least <= value <= most:
            _bad(f"{name} cannot be {value:g}", f"it is from {least} to {most:g}")
    check_demands(terms.trust, terms.verify, terms.error_ppb, terms.replicas)
    _check_environment(spec.env)
    needs = Needs(
        require=tuple(terms.require),
        prefer=tuple(terms.prefer),
        cpus=spec.cpus,
        mem_bytes=spec.mem_bytes,
        gpus=spec.gpus,
        disk_bytes=spec.disk_bytes,
        has_packages=spec.packages_b64 is not None,
        platforms=tuple(spec.platforms),
    )
    if not needs.is_plain:
        check_needs(needs)
    on = find_nodes(peers, terms.on, known)
    not_on = find_nodes(peers, terms.not_on, known, is_to_avoid=True)
    if len(on) + len(not_on) > NODES_CHOSEN_MAX:
        _bad(f"{len(on) + len(not_on)} nodes are too many to name", f"up to {NODES_CHOSEN_MAX}")
    python = terms.python
    if python is None and (kind is TaskKind.FUNCTION or spec.packages_b64 is not None):
        python = (sys.version_info.major, sys.version_info.minor)
    job_terms = JobTerms(
        name=body.name,
        retries=terms.retries,
        python=python,
        local_only=terms.local_only,
        slots_max=terms.slots_max,
        halt=terms.halt,
        priority=terms.priority,
        deadline_ms=terms.deadline_ms or 0,
        trust=terms.trust,
        verify=terms.verify,
        error_ppb=terms.error_ppb,
        replicas=terms.replicas,
        require=needs.require,
        prefer=needs.prefer,
        on=on,
        not_on=not_on,
        created_ms=int(wall * 1000),
    )
    job_spec = JobSpec(
        kind=kind,
        env=dict(spec.env),
        cpus=spec.cpus,
        mem_bytes=spec.mem_bytes,
        gpus=spec.gpus,
        disk_bytes=spec.disk_bytes,
        cpu_s=spec.cpu_s,
        timeout_s=terms.timeout_s,
        output_bytes_max=spec.output_bytes_max,
        network=spec.network,
        sandbox=spec.sandbox,
        digits=spec.digits,
        fuel=spec.fuel,
        packages=None
        if spec.packages_b64 is None
        else BlobRef(bytes(32), len(spec.packages_b64)),  # put by `build_job`
        platforms=tuple(spec.platforms),
        is_built=spec.is_built,
    )
    return job_terms, job_spec


async def build_job(
    body: JobBody,
    blobs: BlobStore,
    wall: float,
    peers: Sequence[PeerView] = (),
    known: Sequence[TrustView] = (),
) -> tuple[JobTerms, JobSpec, Note]:
    """Return what a job request asks for, its files taken into the blob store.

    Raises:
        UsageError: it cannot mean anything, or a shared file is missing.
    """
    terms, plain = build_terms(body, wall, peers, known)
    spec = body.spec
    if len(body.request) > REQUEST_NAME_CHARS_MAX:
        _bad(f"a request's name of {len(body.request)} characters", f"it may have {REQUEST_NAME_CHARS_MAX}")
    if plain.kind is TaskKind.FUNCTION and spec.code_b64 is None:
        _bad("a function job without code", "", "give spec.code_b64")
    if plain.kind is TaskKind.WASM and not spec.code_b64:
        _bad("a wasm job without a module", "", "give spec.code_b64")
    if spec.fuel is not None and plain.kind is not TaskKind.WASM:
        _bad("fuel is for wasm", "instructions of other programs are not counted", "use a timeout", "fuel")
    if (plain.kind is TaskKind.CONTAINER) != bool(spec.image or spec.image_path):
        _bad("a container job has an image, and no other job has one", "", "give spec.image or spec.image_path")
    if spec.image and not IMAGE_NAME.fullmatch(spec.image):
        _bad(f'"{spec.image}" is not the name of an image', "it is like docker.io/library/debian:12", code="image")
    code = await blobs.put(spec.code_b64) if spec.code_b64 is not None else None
    modules = await blobs.put(spec.modules_b64) if spec.modules_b64 is not None else None
    if spec.image_path is not None:
        code, _mode = await FileTaker(blobs, lambda: wall).take(spec.image_path)
    packages = await _packages(spec.packages_b64, plain.kind, blobs)
    share = await FileTaker(blobs, lambda: wall).take_all(spec.share)
    note = Note(kind=str(plain.kind), results=body.results, note=body.note, request=body.request)
    return terms, replace(plain, code=code, image=spec.image, modules=modules, packages=packages, share=share), note


async def _packages(lock: bytes | None, kind: TaskKind, blobs: BlobStore) -> BlobRef | None:
    if lock is None:
        return None
    if kind in (TaskKind.WASM, TaskKind.CONTAINER):
        _bad("packages are for Python", f"a {kind.value} has everything in it", "leave them out: --deps none", "deps")
    try:
        check_lock(lock)
    except RemoteProtocolError as error:
        _bad("these packages are not listed as they must be", str(error), "let p2pc run list them: --deps", "deps")
    return await blobs.put(lock)


def _check_environment(env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            _bad(f"there can be no environment variable {name!r}", "a name is not empty, and neither part has a NUL")


async def build_task(line: TaskLine, kind: str, files: FileTaker, blobs: BlobStore) -> bytes:
    """Return the encoded payload of one task of a job of this kind.

    Raises:
        UsageError: it cannot mean anything, is too large, or a file is missing.
    """
    if kind in (TaskKind.COMMAND, TaskKind.SHELL, TaskKind.WASM) and not line.argv:
        _bad("a task without a command", "argv is empty")
    if kind == TaskKind.SHELL and len(line.argv) != 1:
        _bad("a shell task is one string", f"argv has {len(line.argv)} words")
    if kind == TaskKind.FUNCTION and line.args_b64 is None:
        _bad("a function task without arguments", "", "give args_b64")
    if not 0 <= line.chunk < 1 << 31:
        _bad("chunk is a number of calls", f"it cannot be {line.chunk}")
    if line.stdin_path is not None and line.stdin_b64 is not None:
        _bad("a task has one standard input", "both stdin_path and stdin_b64 are given")
    try:
        key = bytes.fromhex(line.key)
    except ValueError:
        _bad("key is not hexadecimal")
    for word in (*line.argv, *line.inputs):
        if "\0" in word:
            _bad("a word of the command or an input contains a NUL", "no program can be given one")
    _check_environment(line.env)
    for pattern in line.fetch:
        if not is_safe_name(pattern):
            _bad(f'"{pattern}" leaves the task\'s folder', "names are relative, without ..", code="bad-name")
    args, args_blob = await _inline(line.args_b64 or b"", blobs)
    stdin, stdin_blob = await _inline(line.stdin_b64 or b"", blobs)
    if line.stdin_path is not None:
        stdin_blob, _mode = await files.take(line.stdin_path)
    payload = encode_payload(
        TaskPayload(
            args=args,
            args_blob=args_blob,
            chunk=line.chunk,
            argv=tuple(line.argv),
            stdin=stdin,
            stdin_blob=stdin_blob,
            send=await files.take_all(line.send),
            fetch=tuple(line.fetch),
            env=dict(line.env),
            inputs=tuple(line.inputs),
            key=key,
        )
    )
    if len(payload) > TASK_PAYLOAD_BYTES_MAX:
        _bad(
            f"a task of {len(payload)} bytes is too large",
            f"its words and names may take {TASK_PAYLOAD_BYTES_MAX} bytes",
            "send long text as a file or on standard input",
            "too-large",
        )
    return payload


async def _inline(content: bytes, blobs: BlobStore) -> tuple[bytes, BlobRef | None]:
    if len(content) <= INLINE_BYTES_MAX:
        return content, None
    return b"", await blobs.put(content)


class UploadError(UsageError):
    """A line could not be taken.  The lines before it are stored: `count` tasks from `first` on."""

    default_code = "bad-line"

    def __init__(self, cause: P2pcError, *, line: int, first: int | None, count: int) -> None:
        super().__init__(f"line {line}: {cause.what}", cause.why, cause.fix, code=cause.code)
        self.line = line
        self.first = first
        self.count = count


class Upload:
    """One upload of tasks to one job."""

    def __init__(self, node: NodeFacade, job_id: bytes, kind: str, *, at: int | None) -> None:
        self._node = node
        self._job_id = job_id
        self._kind = kind
        self._at = at
        self._files = FileTaker(node.blobs, node.clock.wall)
        self._decoder = msgspec.json.Decoder(TaskLine)
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._line = 0
        self.first: int | None = None
        self.count = 0

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        """Add the tasks of a JSON Lines body; on return all are durable.

        The body is read only as fast as the node stores tasks.  When it is cut short, whole lines up to some line are
        stored; the job's `added` says how many, and `at` lets the rest be sent without repeating any.

        Raises:
            UploadError: a line is wrong.
            UsageError: the job takes no tasks, or is not where `at` says.
            StoreError: tasks could not be stored.
        """
        rest = bytearray()
        async for chunk in chunks:
            searched = len(rest)
            rest += chunk
            start = 0
            lines = []
            while (end := rest.find(b"\n", max(start, searched))) >= 0:
                lines.append(bytes(rest[start:end]))
                start = end + 1
                if len(lines) >= UPLOAD_LINES_AT_ONCE:
                    await self._take_lines(lines)
                    lines = []
            await self._take_lines(lines)
            del rest[:start]
            # What has come meanwhile is the next chunk: a slow sender's tasks start at once, a fast one's gather.
            await self._flush()
            if len(rest) > UPLOAD_LINE_BYTES_MAX:
                await self._flush()
                raise self._error(UsageError(f"longer than {UPLOAD_LINE_BYTES_MAX} bytes", code="too-large"), 1)
        await self._take_lines([bytes(rest)])
        await self._flush()

    def _error(self, cause: P2pcError, ahead: int = 0) -> UploadError:
        return UploadError(cause, line=self._line + ahead, first=self.first, count=self.count)

    async def _take_lines(self, lines: Sequence[bytes]) -> None:
        """Take the files of some lines at once, since each waits for the disk; then add them in order."""
        built = await asyncio.gather(*[self._build(line) for line in lines], return_exceptions=True)
        for payload in built:
            self._line += 1
            if isinstance(payload, UsageError):
                await self._flush()
                raise self._error(payload) from payload
            if isinstance(payload, BaseException):
                raise payload
            if payload is not None:
                await self._add(payload)

    async def _build(self, line: bytes) -> bytes | None:
        """Return the payload of a line's task; None for an empty line."""
        if not line.strip():
            return None
        try:
            task = self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _bad("not a task", str(error))
        return await build_task(task, self._kind, self._files, self._node.blobs)

    async def _add(self, payload: bytes) -> None:
        if self._batch and self._batch_bytes + len(payload) > UPLOAD_BATCH_BYTES_MAX:
            await self._flush()
        self._batch.append(payload)
        self._batch_bytes += len(payload)
        if len(self._batch) >= UPLOAD_BATCH_MAX:
            await self._flush()

    async def _flush(self) -> None:
        if not self._batch:
            return
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if self._at is not None:
            added = self._node.job(self._job_id.hex()).added
            if added != self._at + self.count:
                _bad(
                    f"the job has {added} tasks, not {self._at + self.count}",
                    "another upload added to it",
                    "ask the job how many it has, and continue there",
                    "moved",
                )
        first = await self._node.add_tasks(self._job_id, batch)
        if self.first is None:
            self.first = first
        self.count += len(batch)
