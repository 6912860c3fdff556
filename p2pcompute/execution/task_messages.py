"""From what the scheduler carries to what a worker process needs: jobs and tasks as tuples, blobs as paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution.spec import InputFile, JobSpec, TaskKind, decode_payload, decode_spec, fence_of, plain_args
from p2pcompute.host.interfaces import BlobRef, BlobStore
from p2pcompute.host.runs import Outcome, OutcomeStatus, TaskRun
from p2pcompute.ids import task_id
from p2pcompute.limits import RUNNER_JOBS_MAX, WASM_ENGINE_BYTES, WASM_MEM_BYTES, WASM_MEM_BYTES_MAX

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""How numeric libraries are told their share of the cores."""


_JOB_PATHS, _SHARE, _VARIABLES, _MEMORY = (3, 4), 5, 6, 7
_TASK_PATHS, _SEND = (5, 9, 14), 10
"""Positions in the tuples of jobs and tasks."""


class Unfit(Exception):
    """This run cannot start here; holds its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class KnownJob:
    """A job as worker processes know it."""

    number: int
    job_id: bytes
    spec_bytes: bytes
    spec: JobSpec
    definition: tuple[Any, ...]
    shared_names: tuple[str, ...]
    """Names of private copies of shared files."""
    is_encoded: bool
    """Its values travel in the form that anybody may read (`codec`)."""


def _is_encoded(run: TaskRun) -> bool:
    sandbox, digits = fence_of(run.spec)
    return bool(run.submitter) or run.is_compared or sandbox == "sandbox" or digits > 0


class Translator:
    """Translates runs; remembers the RUNNER_JOBS_MAX jobs used last."""

    def __init__(self, blobs: BlobStore, environment: dict[str, str], node_name: str) -> None:
        self._blobs = blobs
        self._environment = environment
        self._node_name = node_name
        self._jobs: dict[bytes, KnownJob] = {}
        self._serial = 0
        self.forgotten_names: list[str] = []
        """Private copies of shared files that no remembered job uses; whoever removes them clears the list."""

    def job(self, run: TaskRun) -> KnownJob:
        """Return the job of a run.

        Raises:
            Unfit: its spec is malformed, or a blob is missing.
        """
        known = self._jobs.pop(run.job_id, None)
        if (
            known is None
            or (known.spec_bytes is not run.spec and known.spec_bytes != run.spec)
            or known.is_encoded is not _is_encoded(run)
        ):
            known = self._learn(run)
        self._jobs[run.job_id] = known
        if len(self._jobs) > RUNNER_JOBS_MAX:
            oldest = self._jobs.pop(next(iter(self._jobs)))
            in_use = {name for job in self._jobs.values() for name in job.shared_names}
            self.forgotten_names += [name for name in oldest.shared_names if name not in in_use]
        return known

    def _learn(self, run: TaskRun) -> KnownJob:
        try:
            spec = decode_spec(run.spec)
        except RemoteProtocolError as error:
            raise Unfit(_refused(f"the job's description cannot be read by this node: {error}")) from error
        if spec.kind is TaskKind.SIMULATED:
            raise Unfit(_refused(f"this node does not run tasks of the kind {spec.kind.value!r}"))
        is_container, is_encoded = spec.kind is TaskKind.CONTAINER, _is_encoded(run)
        self._serial += 1
        threads = str(max(1, int(spec.cpus)))
        here = {**self._environment, **dict.fromkeys(THREAD_VARIABLES, threads), "P2PC_NODE": self._node_name}
        env = {
            # What differs from node to node is not for a module, and what is the node's not for a container.
            **(here if spec.kind not in (TaskKind.WASM, TaskKind.CONTAINER) else {}),
            **spec.env,
            "P2PC_JOB_ID": run.job_id.hex(),
            "P2PC_CPUS": f"{spec.cpus:g}",
        }
        share = [(*self._file(file), f"{file.blob.digest.hex()}-{file.mode & 0o555:o}") for file in spec.share]
        definition = (
            self._serial,
            run.job_id,
            spec.kind.value,
            self._optional(spec.code),
            self._optional(spec.modules),
            share,
            env,
            None if is_container else spec.mem_bytes,  # the engine sets limits, and needs more itself
            None if is_container else spec.cpu_s,
            spec.timeout_s,
            None if is_container else spec.output_bytes_max,
            (wasm_mem_bytes(spec), spec.fuel),
            is_encoded,
            (spec.image, spec.mem_bytes, spec.cpus, spec.cpu_s, spec.output_bytes_max),
            spec.digits,
        )
        return KnownJob(
            self._serial, run.job_id, run.spec, spec, definition, tuple(entry[3] for entry in share), is_encoded
        )

    def task(self, run: TaskRun, job: KnownJob) -> tuple[Any, ...]:
        """Return the tuple of a task.

        Raises:
            Unfit: its payload is malformed, or a blob is missing.
        """
        args = plain_args(run.payload)
        if args is not None:
            own_id = task_id(run.job_id, run.index)
            resume = (run.cookie, self._cookie(run))
            return (run.run_id, job.number, run.index, own_id, args, None, 0, (), b"", None, [], (), {}, *resume)
        try:
            payload = decode_payload(run.payload)
        except RemoteProtocolError as error:
            raise Unfit(_refused(f"the task's description cannot be read by this node: {error}")) from error
        return (
            run.run_id,
            job.number,
            run.index,
            task_id(run.job_id, run.index),
            payload.args,
            self._optional(payload.args_blob),
            payload.chunk,
            payload.argv,
            payload.stdin,
            self._optional(payload.stdin_blob),
            [self._file(file) for file in payload.send],
            payload.fetch,
            payload.env,
            run.cookie,
            self._cookie(run),
        )

    def _cookie(self, run: TaskRun) -> str | None:
        return None if run.cookie_blob is None else self._path(BlobRef(*run.cookie_blob))

    def _optional(self, ref: BlobRef | None) -> str | None:
        return None if ref is None else self._path(ref)

    def _path(self, ref: BlobRef) -> str:
        path = self._blobs.path(ref)
        if path is None:
            state = "was damaged on this node's disk" if self._blobs.is_damaged(ref) else "is not on this node"
            text = f"a blob that the task needs {state}: {ref.digest.hex()}"
            raise Unfit(Outcome(OutcomeStatus.NOT_RUN, error=text))
        return path

    def _file(self, file: InputFile) -> tuple[str, str, int]:
        return file.name, self._path(file.blob), file.mode


def input_bytes(definition: tuple[Any, ...], tasks: Sequence[tuple[Any, ...]]) -> int:
    """Return the room that input files take in the directory of one of these tasks, at most.

    Raises:
        OSError: one is not here any more.
    """
    shared = sum(os.path.getsize(path) for _name, path, _mode, _copy in definition[_SHARE])
    sent = [sum(os.path.getsize(path) for _name, path, _mode in task[_SEND]) for task in tasks]
    return shared + max(sent, default=0)


def placed_job(definition: tuple[Any, ...], place: Callable[[str], str]) -> tuple[Any, ...]:
    """Return a job's tuple for a sandbox: blobs under the names that `place` gives them, memory as the sandbox says."""
    fields = list(definition)
    fields[_MEMORY] = None
    for index in _JOB_PATHS:
        fields[index] = fields[index] and place(fields[index])
    fields[_SHARE] = [(name, place(path), mode, copy) for name, path, mode, copy in fields[_SHARE]]
    return tuple(fields)


def in_environment(definition: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    """Return a job's tuple for tasks that run in the Python environment at `place`."""
    fields = list(definition)
    variables = fields[_VARIABLES]
    path = os.pathsep.join(filter(None, (f"{place}/bin", variables.get("PATH", ""))))
    fields[_VARIABLES] = {**variables, "PATH": path, "VIRTUAL_ENV": place}
    return tuple(fields)


def placed_task(task: tuple[Any, ...], place: Callable[[str], str]) -> tuple[Any, ...]:
    """Return a task's tuple with its blobs under the names that `place` gives them."""
    fields = list(task)
    for index in _TASK_PATHS:
        fields[index] = fields[index] and place(fields[index])
    fields[_SEND] = [(name, place(path), mode) for name, path, mode in fields[_SEND]]
    return tuple(fields)


def wasm_mem_bytes(spec: JobSpec) -> int:
    """Return how much memory a module of this job may have: as much on every node."""
    return min(spec.mem_bytes or WASM_MEM_BYTES, WASM_MEM_BYTES_MAX)


def process_mem_bytes(spec: JobSpec) -> int | None:
    """Return how much memory the processes of a task may have, all together; None where its job does not say."""
    if spec.kind is not TaskKind.WASM:
        return spec.mem_bytes
    return wasm_mem_bytes(spec) + WASM_ENGINE_BYTES


def _refused(error: str) -> Outcome:
    return Outcome(OutcomeStatus.REFUSED, error=error)
