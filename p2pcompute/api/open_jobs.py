"""A job as the desk keeps it while calls may be added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p2pcompute.api.functions import Shipment
from p2pcompute.api.futures import MeshFuture
from p2pcompute.errors import P2pcError
from p2pcompute.execution.spec import TaskKind
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome

if TYPE_CHECKING:
    from p2pcompute.api.dataflow import Waiting
    from p2pcompute.scheduler.job_book import JobBook

Read = Callable[[MeshFuture[Any], Outcome, Mapping[bytes, bytes]], Any]
"""(future, outcome, content of its blobs by digest) → value, or NotImplemented when it has none."""


@dataclass(slots=True, eq=False)
class OpenJob:
    """A job that takes tasks."""

    shipment: Shipment
    kind: TaskKind = TaskKind.FUNCTION
    read: Read | None = None
    """Makes the value of an outcome; None unpickles it."""
    fuel: int | None = None
    """Of WASI modules: instructions that a task may execute."""
    is_single: bool = False
    """Of one `start_map` or `sh`: sealed when its inputs are in, cancelled as a whole."""
    job_id: bytes = b""
    book: JobBook | None = None
    is_opening: bool = False
    error: P2pcError | None = None
    """Why it could not be opened: what comes later is refused as well."""
    waiting: list[tuple[MeshFuture[Any], bytes]] = field(default_factory=list)
    """Items that came before the job was there."""
    is_sealing: bool = False
    """No more items come."""
    is_cancelled: bool = False
    revoked_count: int = 0
    """Results of it that were revoked, as far as the application was told."""
    held: dict[Waiting, None] = field(default_factory=dict)
    """Calls that wait for their inputs."""
    is_seal_due: bool = False
    """Sealed as soon as nothing is held any more."""
    futures: dict[int, MeshFuture[Any]] = field(default_factory=dict)
    code_refs: list[BlobRef] = field(default_factory=list)
