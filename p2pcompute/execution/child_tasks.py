"""What a worker process is told: its settings, jobs and tasks, as plain objects.

The order of the fields is the order in the messages that `processes.py` packs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


CACHE = "wasm"
"""Directory, in that of a worker process, of compiled WASI modules; no task sees it."""


class Stop(Exception):
    """Ends a task before or after its run with this outcome."""

    def __init__(self, status: str, error: str, cause: str = "") -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.cause = cause


class ChannelClosed(Exception):
    """The node is gone: stop everything and exit."""


class BoxSettings:
    """Limits of a sandbox, or of the fence around a WASI module where there is none."""

    __slots__ = (
        "cores",
        "disk_bytes",
        "files_max",
        "is_fence",
        "kept_in_tmp",
        "limits",
        "mem_bytes",
        "output_bytes_max",
        "user",
    )

    def __init__(self, values: dict[str, Any]) -> None:
        self.user: int | None = values["user"]
        """User and group to become; None: the first process is who it shall be."""
        self.cores: list[int] = values["cores"]
        """Cores that its processes may use."""
        self.mem_bytes: int = values["mem_bytes"]
        """Memory of all its processes together."""
        self.disk_bytes: int = values["disk_bytes"]
        self.files_max: int = values["files_max"]
        self.output_bytes_max: int = values["output_bytes_max"]
        """Most that a task may write to its standard output or error."""
        self.limits: dict[int, int] = values["limits"]
        """RLIMIT → hard limit of each process."""
        self.kept_in_tmp: list[str] = values.get("kept_in_tmp", [])
        """Names in /tmp that hold this interpreter or its packages: seen there, read-only."""
        self.is_fence: bool = values.get("is_fence", False)
        """There is no sandbox: this worker process runs WASI modules only, and shuts their engine in."""


class Settings:
    """Limits and places, sent once."""

    __slots__ = (
        "box",
        "directory",
        "error_bytes_max",
        "files_max",
        "inline_bytes_max",
        "kill_grace_s",
        "shared_directory",
        "slot",
    )

    def __init__(self, values: dict[str, Any]) -> None:
        self.directory: str = values["directory"]
        """This process's own directory; removed by the node when the process is gone."""
        self.shared_directory: str = values["shared_directory"]
        """Read-only files that tasks of a job share, one copy for all slots."""
        self.slot: int = values["slot"]
        self.inline_bytes_max: int = values["inline_bytes_max"]
        self.files_max: int = values["files_max"]
        self.error_bytes_max: int = values["error_bytes_max"]
        self.kill_grace_s: float = values["kill_grace_s"]
        self.box: BoxSettings | None = BoxSettings(values["box"]) if "box" in values else None
        """Of a sandbox or a fence; None: the worker process runs without one."""


class Job:
    """What all tasks of a job have in common."""

    __slots__ = (
        "code_path",
        "container",
        "cpu_s",
        "digits",
        "env",
        "is_foreign",
        "job_id",
        "kind",
        "mem_bytes",
        "modules_path",
        "number",
        "output_bytes_max",
        "share",
        "timeout_s",
        "wasm",
    )

    def __init__(self, fields: Sequence[Any]) -> None:
        self.number: int
        self.job_id: bytes
        self.kind: str
        self.code_path: str | None
        self.modules_path: str | None
        self.share: list[tuple[str, str, int, str]]
        """(name, path of the blob, permission bits, name of the private copy) each."""
        self.env: dict[str, str]
        """The whole environment but what differs from task to task."""
        self.mem_bytes: int | None
        self.cpu_s: float | None
        self.timeout_s: float | None
        self.output_bytes_max: int | None
        self.wasm: tuple[int, int | None]
        """Most memory of a WASI module, most instructions of a task."""
        self.is_foreign: bool
        """It is another installation's, which may not want pickles from us."""
        self.container: tuple[str, int | None, float, float | None, int | None]
        """Of a container: name of its image, memory, cores, CPU s, largest file."""
        self.digits: int
        """Significant digits to which numbers in values are rounded; 0: they are not."""
        (
            self.number,
            self.job_id,
            self.kind,
            self.code_path,
            self.modules_path,
            self.share,
            self.env,
            self.mem_bytes,
            self.cpu_s,
            self.timeout_s,
            self.output_bytes_max,
            self.wasm,
            self.is_foreign,
            self.container,
            self.digits,
        ) = fields

    @property
    def has_limits(self) -> bool:
        """True when resource limits must be set around each run."""
        return self.mem_bytes is not None or self.cpu_s is not None or self.output_bytes_max is not None


class Task:
    """One run."""

    __slots__ = (
        "args",
        "args_path",
        "argv",
        "chunk",
        "env",
        "fetch",
        "fields",
        "index",
        "job",
        "resume",
        "resume_path",
        "run_id",
        "send",
        "stdin",
        "stdin_path",
        "task_id",
    )

    def __init__(self, fields: Sequence[Any]) -> None:
        self.fields = fields
        self.run_id: int
        self.job: int
        self.index: int
        self.task_id: bytes
        self.args: bytes
        self.args_path: str | None
        self.chunk: int
        self.argv: tuple[str, ...]
        self.stdin: bytes
        self.stdin_path: str | None
        self.send: list[tuple[str, str, int]]
        """(name, path of the blob, permission bits) each."""
        self.fetch: tuple[str, ...]
        self.env: dict[str, str]
        self.resume: bytes
        self.resume_path: str | None
        """Cookie of an earlier attempt, from which this one goes on: here, or in a file."""
        (
            self.run_id,
            self.job,
            self.index,
            self.task_id,
            self.args,
            self.args_path,
            self.chunk,
            self.argv,
            self.stdin,
            self.stdin_path,
            self.send,
            self.fetch,
            self.env,
            self.resume,
            self.resume_path,
        ) = fields

    def cookie(self) -> bytes:
        """Return what an earlier attempt has saved; b"": this one begins from scratch."""
        if self.resume_path is None:
            return self.resume
        try:
            with open(self.resume_path, "rb") as file:
                return file.read()
        except OSError:
            return b""

    def environment(self) -> dict[str, str]:
        """Return the variables that only this task has."""
        return {
            **self.env,
            "P2PC_TASK_ID": self.task_id.hex(),
            "P2PC_INDEX": str(self.index),
            "PARALLEL_SEQ": str(self.index + 1),
        }
