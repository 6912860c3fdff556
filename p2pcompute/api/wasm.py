"""WASI modules as jobs of the library: `wasm`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.api.functions import Shipment
from p2pcompute.api.jobs import Job
from p2pcompute.api.options import TaskOptions
from p2pcompute.errors import BadValue, UsageError
from p2pcompute.execution.spec import TaskKind, TaskPayload, encode_payload
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import INLINE_BYTES_MAX, WASM_MODULE_BYTES_MAX

if TYPE_CHECKING:
    from p2pcompute.api.futures import MeshFuture
    from p2pcompute.api.sending import Sender

_HEAD: Final = b"\0asm"
ENTRY: Final = "_start"
"""What a WASI program exports to be run by."""


def start_modules(
    executor: Sender,
    module: str | os.PathLike[str] | bytes,
    inputs: Iterable[bytes],
    *,
    args: Sequence[str],
    entry: str,
    fuel: int | None,
    options: TaskOptions,
    name: str | None,
) -> Job[bytes]:
    """Start a module for each input.  See `p2pcompute.wasm`."""
    label, code = _read(module)
    if entry != ENTRY:
        why = f"a program for WASI begins at {ENTRY}; other functions have no input and output of their own"
        raise BadValue(f"entry={entry!r} cannot be used", why, "build it as a program (a command, not a reactor)")
    if fuel is not None and (type(fuel) is not int or fuel < 1):
        raise BadValue(f"fuel={fuel!r} cannot be used", "it is a count of instructions from 1", "change it")
    if options.sandbox != "auto" or options.network != "none" or options.has_files or options.digits:
        why = "it sees its arguments and its standard input, and is always shut in"
        raise UsageError("a module takes no sandbox, network, files or digits", why, "leave them out")
    label = name or label
    job: Job[bytes] = Job(
        executor._desk,
        Shipment(label, code, None, (), options, b""),
        label,
        TaskKind.WASM,
        _read_output,
        executor._core.progress,
    )
    job.open_job.fuel = fuel
    blobs = executor._node.blobs()
    with job.being_filled():
        for data in inputs:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise BadValue(f"an input of type {type(data).__name__}", "a module reads bytes", "text.encode()")
            data = bytes(data)
            kept: tuple[BlobRef, ...] = ()
            task = TaskPayload(argv=(label, *args), stdin=data)
            if len(data) > INLINE_BYTES_MAX:
                kept = (blobs.put_now(data, pin=True),)
                task = TaskPayload(argv=(label, *args), stdin_blob=kept[0])
            job.add(executor._send_payload(job.open_job, encode_payload(task), kept, (label, *args)))
    return job


def _read(module: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """Return (name, content) of a module.

    Raises:
        UsageError: it cannot be read, is none, or is too large.
    """
    if isinstance(module, bytes):
        label, code = "module.wasm", module
    else:
        label = os.path.basename(os.fspath(module))
        try:
            code = Path(module).read_bytes()
        except OSError as error:
            raise UsageError(f"{os.fspath(module)} cannot be read", error.strerror or str(error)) from error
    if not code.startswith(_HEAD):
        raise UsageError(f"{label} is no WebAssembly module", "it does not begin like one", code="wasm")
    if len(code) > WASM_MODULE_BYTES_MAX:
        raise UsageError(f"{label} is too large", f"a module has up to {WASM_MODULE_BYTES_MAX >> 20} MiB", "strip it")
    return label, code


def _read_output(_future: MeshFuture[Any], outcome: Outcome, contents: Mapping[bytes, bytes]) -> Any:
    """Return what a module has printed; NotImplemented when it did not end well."""
    if outcome.status is not OutcomeStatus.OK:
        return NotImplemented
    return contents[outcome.stdout_blob[0]] if outcome.stdout_blob is not None else outcome.stdout
