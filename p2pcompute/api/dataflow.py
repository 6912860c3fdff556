"""Calls that wait for others: futures as arguments, calls that tasks return, objects that calls share.

All of it happens in the node's thread, which owns the jobs.  A call whose arguments hold futures is held here until
these have ended, and is then made a task like any other, with the values of its inputs beside its arguments: small ones
as they came, large ones as the blobs that they are.  Nothing is unpickled here on its way from task to task.

Invariant: what is held is in `held` of its job and counts as open until it is a task or has failed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import hashlib
import pickle
import weakref
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from p2pcompute.api.functions import CHANGES_MAX, CODE_BESIDE_ARGUMENTS_BYTES_MAX, KNOWN_MAX, Shipment
from p2pcompute.api.futures import Bound, FutureDesk, MeshFuture, OpenJob, Waiting
from p2pcompute.api.pickling import dump_value
from p2pcompute.errors import InputFailed, P2pcError
from p2pcompute.execution.calls import (
    INPUT_PREFIX,
    SHARED_PREFIX,
    BoundCall,
    PackedCall,
    Shared,
    call_shipped,
)
from p2pcompute.execution.spec import InputFile, encode_payload
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.limits import INLINE_BYTES_MAX

CALL_MARK: Final = PackedCall.__name__.encode()
CALL_MARK_WITHIN_BYTES: Final = 128
"""The pickle of a `PackedCall` names its class within so many bytes."""

CHAIN_NAMES_MAX: Final = 20
"""Names of calls that an error lists: the first ones and the last."""

_CALL_SHIPPED: Final = pickle.dumps(call_shipped, 5)


class HoldingDesk(FutureDesk, Protocol):
    """What else is needed of it where calls are held."""

    def wake(self) -> None: ...

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str, /) -> None: ...

    def put(self, future: MeshFuture[Any], target: Shipment, payload: Bound, /) -> None: ...

    def put_held(self, waiting: Waiting, payload: bytes, /) -> None: ...

    def drop_held(self, waiting: Waiting, error: BaseException | None, /) -> None: ...


class Dataflow:
    """What a desk holds back.  Called by the loop's thread, except where it says otherwise."""

    def __init__(self, desk: HoldingDesk) -> None:
        self._desk = desk
        self._arrivals: deque[Waiting] = deque()
        self._dropped: deque[BlobRef] = deque()
        """Blobs whose holders are gone."""
        self._codes: dict[str, list[bytes]] = {}
        """Digests of what was sent for the calls that tasks returned, by the name of the function."""
        self._unread: weakref.WeakSet[MeshFuture[Any]] = weakref.WeakSet()

    # --- holding ----------------------------------------------------------------------------------

    def hold(self, job: OpenJob, future: MeshFuture[Any], bound: Bound) -> None:
        """Take a call in; its future counts as open already."""
        parts = [self._made(job, part) if isinstance(part, PackedCall) else part for part in bound.parts]
        waiting = Waiting(job, future, bound, parts)
        job.held[waiting] = None
        future._job = job
        for part in parts:
            if isinstance(part, MeshFuture) and not part.done():
                waiting.left += 1
                part.add_done_callback(partial(self._arrived, waiting))
        if not waiting.left:
            self._resolve(waiting)

    def _made(self, job: OpenJob, call: PackedCall) -> MeshFuture[Any]:
        future: MeshFuture[Any] = MeshFuture(self._desk, len(call.data))
        future.is_input = True
        self.follow(job, future, call)
        return future

    def _arrived(self, waiting: Waiting, _future: object) -> None:
        """An input has ended; by any thread."""
        self._arrivals.append(waiting)
        self._desk.wake()

    @property
    def is_idle(self) -> bool:
        return not self._arrivals

    def look(self) -> None:
        """Go on with the calls whose inputs have ended."""
        while self._arrivals:
            waiting = self._arrivals.popleft()
            waiting.left -= 1
            if not waiting.left:
                self._resolve(waiting)
        while self._dropped:
            ref = self._dropped.popleft()
            self._desk.blobs.unpin([ref])
            self._desk.spawn(self._desk.blobs.delete([ref]), "delete")

    def _resolve(self, waiting: Waiting) -> None:
        """Make a task of a call: its inputs are there, or one has failed."""
        if waiting not in waiting.job.held:  # it was cancelled
            return
        for part in waiting.parts:
            if isinstance(part, MeshFuture) and (part.cancelled() or part._exception is not None):
                self._desk.drop_held(waiting, _input_failed(waiting, part))
                return
        contents: list[bytes | BlobRef | None] = [_content(part) for part in waiting.parts]
        inline = [content for content in contents if isinstance(content, bytes)]
        if None in contents or sum(map(len, inline)) + len(waiting.bound.data) > INLINE_BYTES_MAX:
            self._desk.spawn(self._resolve_slowly(waiting, contents), "inputs")
        else:
            self._put(waiting, contents, None)

    async def _resolve_slowly(self, waiting: Waiting, contents: list[bytes | BlobRef | None]) -> None:
        """The same, where values must be pickled again (nobody had said in time that they are inputs) or are many."""
        blobs = self._desk.blobs
        pinned: list[BlobRef] = []
        try:
            for number, (part, content) in enumerate(zip(waiting.parts, contents, strict=True)):
                if content is None and isinstance(part, MeshFuture):
                    content = await asyncio.to_thread(dump_value, part.result())
                if isinstance(content, bytes) and len(content) > INLINE_BYTES_MAX // 8:
                    content = await blobs.put(content)
                    blobs.pin([content])
                    pinned.append(content)
                contents[number] = content
            if waiting not in waiting.job.held:  # it was cancelled, and has let its inputs go
                return
            args = _bound(waiting, contents)
            ref = await blobs.put(args) if len(args) > INLINE_BYTES_MAX else None
            if waiting in waiting.job.held:
                self._put(waiting, contents, ref)
        except P2pcError as error:
            if waiting in waiting.job.held:
                self._desk.drop_held(waiting, error)
        finally:
            blobs.unpin(pinned)

    def _put(self, waiting: Waiting, contents: list[bytes | BlobRef | None], args_blob: BlobRef | None) -> None:
        files = {
            _name(part, content): content
            for part, content in zip(waiting.parts, contents, strict=True)
            if isinstance(content, BlobRef)
        }
        refs = (*files.values(), *([args_blob] if args_blob is not None else ()))
        self._desk.blobs.pin(refs)
        waiting.future._blobs = (*waiting.future._blobs, *refs)
        task = waiting.bound.task
        payload = replace(
            task,
            args=b"" if args_blob is not None else _bound(waiting, contents),
            args_blob=args_blob,
            send=(*task.send, *(InputFile(name, ref, 0o444) for name, ref in files.items())),
        )
        self._desk.put_held(waiting, encode_payload(payload))

    # --- values -----------------------------------------------------------------------------------

    def keep(self, future: MeshFuture[Any], ref: BlobRef) -> None:
        """Leave the large value of an input where it is, until somebody asks for it here."""
        self._desk.blobs.pin([ref])
        future._content = ref
        self._unread.add(future)
        self.drop_with(future, ref)

    def drop_with(self, holder: object, ref: BlobRef) -> None:
        """Give a pinned blob up when its holder is gone; by any thread."""
        weakref.finalize(holder, self._dropped.append, ref).atexit = False

    def read_all(self) -> None:
        """Read the values that nobody has asked for yet: the blobs go with the node.  In a thread."""
        for future in list(self._unread):
            with contextlib.suppress(Exception):  # of the user's code, and raised again to who asks for it
                future._read_value()

    # --- calls that follow ------------------------------------------------------------------------

    def follow(self, job: OpenJob, future: MeshFuture[Any], call: PackedCall) -> None:
        """Let a future have the value of a call that a task of `job` has returned."""
        shipment = self._shipment(job.shipment, call)
        inputs = [self._made(job, inner) for inner in call.inputs]
        future._job, future._index, future._report = None, -1, None
        self._desk.put(
            future, shipment, Bound(call.data, tuple(inputs), call.code if shipment.code == _CALL_SHIPPED else b"")
        )

    def _shipment(self, above: Shipment, call: PackedCall) -> Shipment:
        """Return what is sent for a call: its function, or, of one that captures something new each time, what calls a
        function that comes with its arguments."""
        code = call.code
        known = self._codes.setdefault(call.name, [])
        digest = hashlib.blake2b(code, digest_size=16).digest()
        if digest not in known:
            if len(known) >= CHANGES_MAX and len(code) <= CODE_BESIDE_ARGUMENTS_BYTES_MAX and not above.modules_zip:
                code = _CALL_SHIPPED
            elif len(known) < KNOWN_MAX:
                known.append(digest)
        if len(self._codes) > KNOWN_MAX:
            del self._codes[next(iter(self._codes))]
        key = hashlib.blake2b(digest_size=32)
        for part in (code, above.modules_zip or b"", above.options.identity().encode(), call.name.encode()):
            key.update(len(part).to_bytes(8, "big"))
            key.update(part)
        return Shipment(call.name, code, above.modules_zip, above.zipped_names, above.options, key.digest())


def _content(part: MeshFuture[Any] | Shared[Any]) -> bytes | BlobRef | None:
    """Return the pickle of a part, or where it is; None when it has to be made."""
    if isinstance(part, Shared):
        ref: BlobRef = part.ref
        return ref
    return part._content


def _name(part: MeshFuture[Any] | Shared[Any], ref: BlobRef) -> str:
    return (SHARED_PREFIX if isinstance(part, Shared) else INPUT_PREFIX) + ref.digest.hex()


def _bound(waiting: Waiting, contents: list[bytes | BlobRef | None]) -> bytes:
    parts = [
        _name(part, content) if isinstance(content, BlobRef) else content or b""
        for part, content in zip(waiting.parts, contents, strict=True)
    ]
    return pickle.dumps(BoundCall(parts, waiting.bound.data, waiting.bound.code), 5)


def _input_failed(waiting: Waiting, part: MeshFuture[Any]) -> InputFailed:
    """Return the error of a call that was not made; its cause is the error of the call that failed."""
    cause: BaseException | None = cf.CancelledError() if part.cancelled() else part._exception
    name = waiting.job.shipment.name
    if isinstance(cause, InputFailed):
        chain, why, cause = cause.chain, cause.why, cause.__cause__
    else:
        input_name = "its input" if part._job is None else part._job.shipment.name
        text = "was cancelled" if part.cancelled() else f"failed: {type(cause).__name__}: {cause}"
        chain, why = (input_name,), f"{input_name} {text}"
    error = InputFailed(f"{name} was not called", why)
    error.chain = (*chain, name) if len(chain) < CHAIN_NAMES_MAX else (*chain[:-1], name)
    error.__cause__ = cause
    return error


def is_call(head: bytes) -> bool:
    """True when a pickle that begins so may be of a call that follows."""
    return CALL_MARK in head
