"""A node inside the user's process: a thread with an event loop of its own.

It works alone (nothing listens, everything is in memory and a private temporary directory), or as a delegate of this
machine's installation when its node runs: then tasks also run there and on all members of its group.

The process is never forked and no `__main__` is imported again.  The thread is a daemon thread that ends by `close`,
when the last executor on it is dropped, or at the interpreter's exit.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import importlib
import json
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from p2pcompute.api.control import ask
from p2pcompute.api.futures import SIGNAL_S
from p2pcompute.errors import NodeUnavailable, P2pcError, UsageError

if TYPE_CHECKING:
    from p2pcompute.api.desk import Desk
    from p2pcompute.api.options import EmbeddedOptions
    from p2pcompute.config import Settings
    from p2pcompute.host.paths import MachinePaths
    from p2pcompute.host.real_blobs import FileBlobs
    from p2pcompute.host.tasks import TaskScope
    from p2pcompute.node.node import Node

T = TypeVar("T")

log = logging.getLogger("p2pcompute.embedded")

ASK_S: Final = 2.0
"""Wait for this machine's node to say where it listens."""
MET_S: Final = 2.0
"""Longest that a question about nodes waits, after the start, for the members that this machine's node knows."""
STOP_S: Final = 10.0
"""Wait at the interpreter's exit for the thread, once nothing runs any more."""


class EmbeddedNode:
    """A node in a thread.  Starts at once; calls may be handed in before it is ready."""

    def __init__(self, options: EmbeddedOptions) -> None:
        from p2pcompute.api.desk import Desk

        self.options = options
        self.desk: Desk = Desk(self.ask)
        self.node: Node | None = None
        self.is_joined = False
        self.slots_told = 0
        """Slots that this machine's node knew of when it was joined: they are met one after the other."""
        self._told: frozenset[str] = frozenset()
        """Ids of the members that it knew of then."""
        self._met_until_s = 0.0
        self._blobs: FileBlobs | None = None
        self._pid = os.getpid()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scope: TaskScope | None = None
        self._lock = threading.Lock()
        self.is_closing = False
        """True once it takes no more calls."""
        self._is_cancelling = False
        self._is_killing = False
        self._orders: asyncio.Event | None = None
        _register(self)
        self._thread = threading.Thread(target=self._run, name="p2pc-node", daemon=True)
        self._thread.start()

    # --- any thread -------------------------------------------------------------------------------

    def wait_ready(self) -> Node:
        """Wait until the node has started.

        Raises:
            P2pcError: it could not start, or this process is a fork of the one that made it.
        """
        self.desk.check_process()
        self._ready.wait()
        if self.node is None:
            raise self._error or NodeUnavailable("the embedded node has ended", code="node-ended")
        return self.node

    def blobs(self) -> FileBlobs:
        """Wait until the store is there and return it.

        Raises:
            P2pcError: the node could not start.
        """
        self.wait_ready()
        assert self._blobs is not None
        return self._blobs

    def ask(self, question: Callable[[Node], Coroutine[Any, Any, T]]) -> T:
        """Wait until the node has started, ask it in its thread and return the answer.  Interrupted: the question ends.

        Raises:
            P2pcError: the node could not start, or has ended.
        """
        node = self.wait_ready()
        answer: cf.Future[T] = cf.Future()
        tasks: list[asyncio.Task[None]] = []
        ended = NodeUnavailable("the embedded node has ended", "the executor was shut down", code="node-ended")

        async def ask() -> None:
            try:
                answer.set_result(await question(node))
            except asyncio.CancelledError:
                answer.set_exception(ended)
                raise
            except Exception as error:  # noqa: BLE001 - it is raised where the question was asked
                answer.set_exception(error)

        def start() -> None:
            assert self._scope is not None
            tasks.append(self._scope.spawn(ask(), "question"))

        loop = self._loop
        if loop is None:
            raise ended
        try:
            loop.call_soon_threadsafe(start)
        except RuntimeError:  # it is closed
            raise ended from None
        try:
            while not cf.wait([answer], SIGNAL_S).done:
                if not self._thread.is_alive():
                    raise ended
        except KeyboardInterrupt:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
            raise
        return answer.result()

    def ask_of_members(self, question: Callable[[Node], Coroutine[Any, Any, T]]) -> T:
        """As `ask`, once the node has met the members of its group; a moment at most."""

        async def when_met(node: Node) -> T:
            await self._meet_members(node)
            return await question(node)

        return self.ask(when_met)

    def slot_count(self) -> int:
        """Return the slots that are known: our own and those of the peers; at least 1."""
        if self.node is None:
            return self.options.worker_count or os.cpu_count() or 1
        return max(1, self.known_slots())

    def known_slots(self) -> int:
        """Return the slots of the node, once it is ready, and of its peers; 0 while nobody is known who has any."""
        node = self.wait_ready()
        own = node.scheduler.worker.core.slot_count
        return own + sum(node.scheduler.victim.slots_of(key) for key in list(node.scheduler.peers))

    def close(self, *, cancel: bool = False, kill: bool = False) -> None:
        """Ask the node to end once nothing is open any more.  Returns at once; safe to repeat.

        Args:
            cancel: cancel what has not started.
            kill: and stop what runs.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            self.is_closing = True
            self._is_cancelling = self._is_cancelling or cancel or kill
            self._is_killing = self._is_killing or kill
            loop, orders = self._loop, self._orders
        if loop is not None and orders is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(orders.set)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread; False when it is still there."""
        if self._pid != os.getpid() or threading.current_thread() is self._thread:
            return True
        if timeout_s is not None:
            self._thread.join(timeout_s)
        while timeout_s is None and self._thread.is_alive():
            self._thread.join(SIGNAL_S)
        return not self._thread.is_alive()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._live())
        except BaseException as error:  # the thread ends with it: whoever waits for the node is told
            self._error = error
            if not isinstance(error, P2pcError):
                log.error("the embedded node has failed", exc_info=error)
        finally:
            self._ready.set()
            self.desk.fail(self._error)
            _nodes.discard(self)

    async def _live(self) -> None:
        with self._lock:
            self._loop, self._orders = asyncio.get_running_loop(), asyncio.Event()
        from p2pcompute.api.assembly import report_bug
        from p2pcompute.host.tasks import TaskScope

        async with AsyncExitStack() as undo:
            node, blobs = await self._start(undo)
            self.node, self._blobs = node, blobs
            scope = TaskScope("desk", report_bug)
            self._scope = scope
            undo.push_async_callback(scope.close)
            self.desk.open(node, blobs, scope)
            self._ready.set()
            await self._serve(scope)

    async def _start(self, undo: AsyncExitStack) -> tuple[Node, FileBlobs]:
        from p2pcompute.api.assembly import build_alone, build_delegate

        if not self.options.is_local:
            places = _running_installation(self.options.group)
            if places is None and self.options.group is not None:
                group = self.options.group
                what, fix = f"no node of the group {group} runs here", f"start it: p2pc -g {group} node start"
                raise NodeUnavailable(what, "a group that is named is not left out", fix)
            if places is not None:
                try:
                    async with AsyncExitStack() as trial:
                        found = await self._join(trial, places, build_delegate)
                        undo.push_async_exit(trial.pop_all())
                        self.is_joined = True
                        return found
                except (P2pcError, OSError, TimeoutError) as error:
                    if self.options.group is not None:
                        raise
                    warnings.warn(
                        f"p2pcompute: working on this machine alone, because its node could not be joined: {error}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
        node, blobs = await build_alone(undo, self.options)
        return node, blobs

    async def _join(
        self,
        undo: AsyncExitStack,
        places: tuple[MachinePaths, Settings],
        build: Callable[..., Awaitable[tuple[Node, FileBlobs]]],
    ) -> tuple[Node, FileBlobs]:
        paths, settings = places
        status = await asyncio.to_thread(_ask_status, paths.socket)
        self.slots_told = sum(peer["slots"] or 0 for peer in status["peers"] if peer["state"] in ("self", "up"))
        # Programs like this one come and go, and take no work.
        known = [peer for peer in status["peers"] if peer["state"] in ("self", "up") and peer["slots"] != 0]
        self._told = frozenset(peer["id"] for peer in known)
        node, blobs = await build(undo, self.options, paths, settings, status)
        self._met_until_s = node.clock.now() + MET_S
        return node, blobs

    async def _meet_members(self, node: Node) -> None:
        """Wait a moment, once, for the members whom an answer about nodes would leave out."""
        from p2pcompute.api.nodes import wait_for_members

        await wait_for_members(node, self._told, self._met_until_s)
        self._met_until_s = 0.0

    async def _serve(self, scope: TaskScope) -> None:
        """Work until asked to end and nothing is open, or asked to kill."""
        assert self._orders is not None
        idle: asyncio.Task[None] | None = None
        while True:
            if self.is_closing:
                if self._is_cancelling:
                    self.desk.cancel_all(kill=self._is_killing)
                if idle is None:
                    idle = scope.spawn(self.desk.wait_idle(), "idle")
                    idle.add_done_callback(lambda _: self._orders.set() if self._orders is not None else None)
                if idle.done():
                    break
            self._orders.clear()
            await self._orders.wait()
        await self.desk.close()


# --- finding this machine's node ----------------------------------------------------------------------


def check_group(options: EmbeddedOptions) -> None:
    """Refuse a group that is not one of this machine's.

    Raises:
        UsageError: it is not.
    """
    from p2pcompute.places import find_paths, groups_here

    group = options.group
    if group is None:
        return
    if options.is_local:
        raise UsageError("an executor that stays local is in no group", f"group={group!r}", "leave one of both out")
    known = groups_here(find_paths().base)
    if group not in known:
        raise UsageError(f"there is no group {group!r} here", f"there are: {', '.join(known)}", "p2pc group list")


def _running_installation(group: str | None) -> tuple[MachinePaths, Settings] | None:
    """Return where this machine's installation is, when its node runs.

    Args:
        group: whose node; None: of the one in use.
    """
    from p2pcompute.config import load_settings
    from p2pcompute.host.paths import resolve_paths

    try:
        environ = os.environ if group is None else {**os.environ, "P2PC_GROUP": group}
        paths = resolve_paths(environ)
        document = json.loads(paths.run_file.read_text(encoding="utf-8"))
        os.kill(int(document["pid"]), 0)
    except (P2pcError, OSError, ValueError, KeyError, TypeError):
        return None
    return paths, load_settings(paths, os.environ)


def _ask_status(path: Path) -> dict[str, Any]:
    """Ask this machine's node about itself.

    Raises:
        NodeUnavailable: it does not answer, or in an unknown way.
        TrustError: another user's process listens there.
    """
    try:
        document: dict[str, Any] = ask(path, "GET", "/v1/status", timeout_s=ASK_S)
        if not isinstance(document["node"]["port"], int) or "peers" not in document:
            raise ValueError("it is not what a node says")
    except (ValueError, KeyError, TypeError) as error:
        raise NodeUnavailable(
            "this machine's node does not answer", f"{type(error).__name__}: {error}", "look at it: p2pc status"
        ) from error
    return document


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's when it is installed."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return factory


# --- exit and fork ------------------------------------------------------------------------------------

_nodes: weakref.WeakSet[EmbeddedNode] = weakref.WeakSet()
_is_registered = False


def _register(node: EmbeddedNode) -> None:
    """Have `node` closed before the interpreter stops its threads."""
    global _is_registered
    if not _is_registered:
        _is_registered = True
        # Before the threads of `concurrent.futures` are told to end, as its own executors do it.
        threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # it has no public name
    _nodes.add(node)


def _close_all() -> None:
    """Wait for what is open, as `concurrent.futures` does, then end."""
    nodes = [node for node in _nodes if node._pid == os.getpid()]
    for node in nodes:
        node.close()
    for node in nodes:
        try:
            node.join()
        except KeyboardInterrupt:
            node.close(kill=True)
            node.join(STOP_S)
