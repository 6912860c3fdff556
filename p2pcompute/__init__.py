"""p2pcompute: run work on every computer you own, without a server."""

__version__ = "0.1.0"  # as in pyproject.toml; importlib.metadata would cost every command 20 ms

# Nothing is imported here, not even `typing`: until `cli.entry` runs, Ctrl-C ends a command with a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from p2pcompute.api.async_executor import AsyncMeshExecutor
    from p2pcompute.api.completed import Completed
    from p2pcompute.api.executor import MeshExecutor
    from p2pcompute.api.explanations import Explanation, Reason
    from p2pcompute.api.futures import MeshFuture
    from p2pcompute.api.job_status import JobStatus, NodeShare
    from p2pcompute.api.jobs import Job
    from p2pcompute.api.kept_jobs import KeptJob, get_job
    from p2pcompute.api.nodes import NodeInfo
    from p2pcompute.api.options import TaskInfo, TaskOptions
    from p2pcompute.api.remote_function import RemoteFunction
    from p2pcompute.api.shortcuts import function, map, sh, wasm
    from p2pcompute.errors import (
        BadValue,
        InputFailed,
        NodeUnavailable,
        NoEligibleNode,
        P2pcError,
        ResultDisputed,
        ResultRevoked,
        TaskError,
        TrustError,
        UsageError,
        VersionMismatch,
        WorkerDied,
    )
    from p2pcompute.execution.calls import Shared, call
    from p2pcompute.execution.checkpoints import checkpoint
    from p2pcompute.execution.progress import progress
    from p2pcompute.node.facade import TaskProgress

__all__ = [
    "AsyncMeshExecutor",
    "BadValue",
    "Completed",
    "Explanation",
    "InputFailed",
    "Job",
    "JobStatus",
    "KeptJob",
    "MeshExecutor",
    "MeshFuture",
    "NoEligibleNode",
    "NodeInfo",
    "NodeShare",
    "NodeUnavailable",
    "P2pcError",
    "Reason",
    "RemoteFunction",
    "ResultDisputed",
    "ResultRevoked",
    "Shared",
    "TaskError",
    "TaskInfo",
    "TaskOptions",
    "TaskProgress",
    "TrustError",
    "UsageError",
    "VersionMismatch",
    "WorkerDied",
    "__version__",
    "call",
    "checkpoint",
    "function",
    "get_job",
    "map",
    "progress",
    "sh",
    "wasm",
]

_HOMES = {
    "p2pcompute.api.async_executor": ("AsyncMeshExecutor",),
    "p2pcompute.api.completed": ("Completed",),
    "p2pcompute.api.executor": ("MeshExecutor",),
    "p2pcompute.api.explanations": ("Explanation", "Reason"),
    "p2pcompute.api.futures": ("MeshFuture",),
    "p2pcompute.api.job_status": ("JobStatus", "NodeShare"),
    "p2pcompute.api.jobs": ("Job",),
    "p2pcompute.api.kept_jobs": ("KeptJob", "get_job"),
    "p2pcompute.api.nodes": ("NodeInfo",),
    "p2pcompute.api.options": ("TaskInfo", "TaskOptions"),
    "p2pcompute.api.remote_function": ("RemoteFunction",),
    "p2pcompute.api.shortcuts": ("function", "map", "sh", "wasm"),
    "p2pcompute.execution.calls": ("Shared", "call"),
    "p2pcompute.execution.checkpoints": ("checkpoint",),
    "p2pcompute.execution.progress": ("progress",),
    "p2pcompute.node.facade": ("TaskProgress",),
    "p2pcompute.errors": (
        "BadValue",
        "InputFailed",
        "NoEligibleNode",
        "NodeUnavailable",
        "P2pcError",
        "ResultDisputed",
        "ResultRevoked",
        "TaskError",
        "TrustError",
        "UsageError",
        "VersionMismatch",
        "WorkerDied",
    ),
}
"""Where public names are defined; a module is imported with the first use of one of its names."""


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
