"""How an executor hands calls in: to its embedded node, to a folder of results, or to this machine's node.

`MeshExecutor` is a `Sender` with a face; what makes calls for it (`maps`, `shell`, `wasm`) knows this half only.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from p2pcompute.api.detached import KeptCalls
from p2pcompute.api.embedded import EmbeddedNode
from p2pcompute.api.failures import closed
from p2pcompute.api.feed import Feed, KeptFuture
from p2pcompute.api.files import Taker, digest_of_file
from p2pcompute.api.functions import Functions, Shipment
from p2pcompute.api.futures import Bound, MeshFuture, OpenJob, settle
from p2pcompute.api.job_status import Progress
from p2pcompute.api.noted import Noting
from p2pcompute.api.options import EmbeddedOptions, TaskOptions
from p2pcompute.api.result_folder import ResultFolder
from p2pcompute.errors import UsageError
from p2pcompute.execution.calls import Call, Shared
from p2pcompute.execution.spec import TaskPayload, encode_call, encode_payload
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.limits import INLINE_BYTES_MAX, TASK_PAYLOAD_BYTES_MAX

if TYPE_CHECKING:
    from p2pcompute.node.node import Node


class Unfinished(Protocol):
    """What has not handed in all that it has."""

    def finish(self) -> None: ...


class Core:
    """What an executor shares with the ones that `with_options` makes of it.

    The node does not hold it: when the last executor is dropped the node ends, after the open tasks.
    """

    def __init__(
        self,
        options: EmbeddedOptions,
        results: ResultFolder | None,
        progress: Progress,
        kept: KeptCalls | None = None,
    ) -> None:
        self.node = EmbeddedNode(options)
        self.lock = threading.Lock()
        self.is_closed = False
        self.mappings: dict[Unfinished, None] = {}
        """Maps whose inputs are of a known number and have not all been handed in."""
        self.results = results
        self.kept = kept
        """Where calls go that this machine's node keeps; None: to the embedded node."""
        self.is_noted = results is not None or kept is not None
        self.noting = Noting(self.is_noted, digest_of_file)
        self.progress: Progress = progress
        self.node.desk.results = results
        self._taker: Taker | None = None
        self._finalizer = weakref.finalize(self, self.node.close)
        self._finalizer.atexit = False

    def taker(self) -> Taker:
        """Return what takes files in; waits until the node has started."""
        if self._taker is None:
            blobs = self.node.blobs()

            def put(path: str) -> BlobRef:
                async def take(_node: Node) -> BlobRef:
                    return await blobs.put_path(path, pin=True)

                return self.node.ask(take)

            self._taker = Taker(put, lambda ref: blobs.unpin([ref]))
        return self._taker

    def close(self, *, cancel: bool, kill: bool) -> None:
        with self.lock:
            mappings, self.mappings = list(self.mappings), {}
        if not (cancel or kill):
            for mapping in mappings:
                mapping.finish()
        self.is_closed = True
        self.node.close(cancel=cancel, kill=kill)


class Sender:
    """Hands calls in, with the options of one executor."""

    def _begin(self, core: Core, options: TaskOptions) -> None:
        """Be an executor on this node, perhaps one of several."""
        self._core, self._options = core, options
        self._is_noted = core.is_noted or options.has_files
        self._node = core.node
        self._desk = self._node.desk
        self._put = self._desk.put
        self._pid = os.getpid()
        self._functions = Functions(self._options)
        self._lock = threading.Lock()

    # --- state ------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """True after `shutdown`, and while the interpreter ends."""
        return self._core.is_closed or self._node.is_closing

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            self._desk.check_process()
        if self.is_closed:
            raise closed()

    def _send(self, target: Shipment | OpenJob, data: bytes, parts: Sequence[Any]) -> MeshFuture[Any]:
        """Hand in one call whose arguments are pickled, all but these parts of them."""
        future: MeshFuture[Any] = MeshFuture(self._desk, len(data))
        if parts:
            self._desk.put(future, target, Bound(data, tuple(self._part(part) for part in parts)))
            return future
        if len(data) <= INLINE_BYTES_MAX:
            payload = encode_call(data)
        else:
            ref = self._node.blobs().put_now(data, pin=True)
            future._blobs = (ref,)
            payload = encode_payload(TaskPayload(args_blob=ref))
        self._put(future, target, payload)
        return future

    def _send_noted(
        self,
        target: Shipment | OpenJob | Feed,
        shipment: Shipment,
        beside: bytes,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> MeshFuture[Any]:
        """Hand in a call that has files, or whose result is kept; or find that it was done."""
        core = self._core
        call = core.noting.prepare(shipment, beside, fn, args, kwargs, shipment.options)
        kind: type[MeshFuture[Any]] = MeshFuture if core.kept is None else KeptFuture
        future = kind(self._desk, len(call.data))
        future._note = call.note
        keeper = core.kept or core.results
        earlier = None if keeper is None else keeper.find(call.note.key)
        if earlier is not None:
            future._files, future._report = earlier.files, (earlier.node, 0, None, 0)
            settle(future, earlier.value)
            return future
        if isinstance(future, KeptFuture):
            assert core.kept is not None and not isinstance(target, OpenJob)
            core.kept.send(future, target, call)
            return future
        assert not isinstance(target, Feed)
        if core.results is not None:
            call.note.number = core.results.next_number()
        blobs = self._node.blobs()
        files = tuple(core.taker().take(file, blobs.pin) for file in call.files) if call.files else ()
        call.note.sent_bytes = sum(file.blob.size for file in files)
        future._blobs = tuple(file.blob for file in files)
        task = TaskPayload(send=files, fetch=call.fetch, key=call.note.key)
        if call.parts:
            bound = Bound(call.data, tuple(self._part(part) for part in call.parts), task=task)
            self._desk.put(future, target, bound)
            return future
        if len(call.data) <= INLINE_BYTES_MAX:
            task = replace(task, args=call.data)
        else:
            ref = blobs.put_now(call.data, pin=True)
            future._blobs = (*future._blobs, ref)
            task = replace(task, args_blob=ref)
        self._put(future, target, encode_payload(task))
        return future

    def _part(self, part: Any) -> Any:
        """Return a part of arguments as the desk takes it.

        Raises:
            TypeError: it is a call with a future among its arguments.
            UsageError: it belongs to another executor.
            ValueError: it is a call that is among its own arguments.
        """
        if isinstance(part, Call):
            return part.packed()
        home = part.home if isinstance(part, Shared) else getattr(part, "_desk", self._desk)
        if home is not self._desk:
            raise UsageError(
                f"a {type(part).__name__} of another executor cannot be an argument",
                "its value is known to that one only",
                "give its value: future.result(), or share the object with this executor",
            )
        return part

    def _send_payload(
        self, target: OpenJob, payload: bytes, blobs: tuple[BlobRef, ...], words: tuple[str, ...]
    ) -> MeshFuture[Any]:
        """Hand in one command."""
        if len(payload) > TASK_PAYLOAD_BYTES_MAX:
            raise UsageError("a command is too long", f"its words have {len(payload)} bytes", "send a file instead")
        future: MeshFuture[Any] = MeshFuture(self._desk, len(payload))
        future._blobs, future._words = blobs, words
        self._put(future, target, payload)
        return future
