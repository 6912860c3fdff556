"""The daemon process: one node of this installation with its control socket, from start to stop.

Stopping: SIGTERM, SIGINT, POST /v1/shutdown or the end of the lifeline.  The first request drains (running tasks finish
or go back, peers are told, at most STOP_GRACE_S), a second one stops at once.  SIGHUP means that a terminal has gone,
which is no reason to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import importlib
import json
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from filelock import FileLock, Timeout

from p2pcompute.config import Settings, load_settings
from p2pcompute.daemon.app import Api, build_app
from p2pcompute.daemon.listener import AcceptTrouble, Listener, bind_socket, handed_over_socket
from p2pcompute.daemon.log import start_log, stop_log
from p2pcompute.daemon.sink import ResultsSink
from p2pcompute.daemon.views import error_json
from p2pcompute.errors import NodeUnavailable, P2pcError, UsageError
from p2pcompute.host.paths import MachinePaths, prepare_directories, resolve_paths
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import FILES_OPEN_WANTED, STOP_GRACE_S
from p2pcompute.node.facade import NodeFacade
from p2pcompute.places import Paths, read_run_file
from p2pcompute.version import VERSION

log = logging.getLogger("p2pcompute.daemon")

GC_OBJECTS: Final = 20_000
"""So many more objects than before, and the youngest are searched for cycles: some MiB."""
EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
EXIT_NO_NODE: Final = 5
EXIT_BUG: Final = 70
_ORPHAN_LOOK_S: Final = 0.1
_PLACES_LOOK_S: Final = 2.0
"""How often the node looks whether its lock and its socket are still its own: two lstat."""
LEAVE_SLACK_S: Final = 6.0
"""From the end of the grace of running tasks until a node has stopped: they are ended, their owners told."""
_LEAVE_LOOK_S: Final = 30.0
_PRUNE_S: Final = 3600.0
"""How often finished jobs older than `store.keep` are looked for."""


class RunningNode(NodeFacade, Protocol):
    """A node with its life in our hands."""

    async def start(self) -> None: ...

    async def stop(self, *, drain: bool = True) -> None: ...


Build = Callable[[MachinePaths, Settings], Awaitable[tuple[RunningNode, Callable[[], Awaitable[None]]]]]
"""Makes a node that is not started yet, and the call that closes what it stands on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """What the starter of the process asks for."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    """Settings from the command line, by key."""
    lifeline_fd: int | None = None
    """The node stops when this descriptor reaches its end: whoever holds the other end has gone."""
    ready_fd: int | None = None
    """Where one line of JSON says {ready, pid, socket} or what went wrong."""
    is_onlooker: bool = False
    """Only show what is kept: no task runs, no peer is reached, unfinished jobs rest."""
    is_foreground: bool = False
    """Warnings go to the terminal too."""
    on_ready: Callable[[NodeFacade], None] | None = None
    """Called once the node answers on its socket."""


class StopRequests:
    """Requests to stop, from signals, the API and the lifeline."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.is_requested = False
        self.is_now = False

    def request_stop(self, *, drain: bool) -> None:
        """The first request stops the node; one without drain, or a second one, stops it at once."""
        self.is_now = self.is_now or not drain or self.is_requested
        self.is_requested = True
        self.changed.set()

    async def wait(self) -> None:
        while not self.is_requested:
            self.changed.clear()
            await self.changed.wait()


def run_daemon(options: DaemonOptions, build: Build | None = None) -> int:
    """Run a node until it is asked to stop; returns the exit code.

    Args:
        build: makes the node; None means the real one.

    Raises:
        P2pcError: it could not start, and there is no `ready_fd` to say so.
    """
    try:
        paths = resolve_paths()
        prepare_directories(paths)
        settings = load_settings(paths, os.environ, flags=options.flags)
        with _one_node(paths):
            start_log(paths.log, settings.log, to_terminal=options.is_foreground)
            allow_files()
            try:
                with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                    runner.run(_live(paths, settings, options, build or _real_build(options)))
            except P2pcError as error:
                log.error("the node did not start: %s", error)
                raise
            except Exception:  # a bug of ours: it is logged or reported, and raised again
                log.exception("the node has failed")
                raise
            finally:
                stop_log()
    except P2pcError as error:
        if options.ready_fd is None:
            raise
        _report(options.ready_fd, error_json(error))
        return EXIT_NO_NODE if isinstance(error, NodeUnavailable) else EXIT_USAGE
    except Exception as error:  # a bug of ours: whoever starts the node is told
        if options.ready_fd is None:
            raise
        bug = P2pcError(
            f"a bug in p2pc: {type(error).__name__}: {error}",
            "the node could not start",
            "see the node's log",
            code="bug",
        )
        _report(options.ready_fd, error_json(bug))
        return EXIT_BUG
    return EXIT_OK


def allow_files() -> None:
    """Let this process open as many files as its channels may need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_OPEN_WANTED if hard == resource.RLIM_INFINITY else min(FILES_OPEN_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _real_build(options: DaemonOptions) -> Build:
    """Import what a real node needs only here: it is most of the start-up time."""
    compose = importlib.import_module("p2pcompute.daemon.compose")
    build: Build = compose.build_onlooker if options.is_onlooker else compose.build_node
    return build


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's when it is installed."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory


@contextlib.contextmanager
def _one_node(paths: Paths) -> Any:
    """Hold the lock of this installation.

    Raises:
        NodeUnavailable: another node holds it, or it is not a file.
    """
    lock = FileLock(paths.lock, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = read_run_file(paths).get("pid")
        raise NodeUnavailable(
            "a node of this installation is running already",
            f"pid {pid}" if pid else f"it holds {paths.lock}",
            "see it: p2pc status",
            code="running",
        ) from None
    except OSError as error:
        raise NodeUnavailable(
            f"the lock {paths.lock} cannot be used",
            error.strerror or str(error),
            f"it must be a file of yours; move it away: mv {paths.lock} {paths.lock}.old",
            code="lock",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _report(descriptor: int, document: Mapping[str, Any]) -> None:
    """Tell the starter, who may have gone."""
    with contextlib.suppress(OSError):
        os.write(descriptor, json.dumps(document).encode() + b"\n")
        os.close(descriptor)


async def _live(paths: MachinePaths, settings: Settings, options: DaemonOptions, build: Build) -> None:
    """Start, serve until asked to stop, stop.  On the way out everything that was opened is closed."""
    requests = StopRequests()
    with _signals(requests):
        asyncio.get_running_loop().set_exception_handler(AcceptTrouble().handle)
        handed_over = handed_over_socket(paths.socket)
        listening = handed_over or bind_socket(paths.socket)
        own = _identity_of(paths.socket)
        try:
            log.info("p2pcompute %s starts, pid %d", VERSION, os.getpid())
            node, close_host = await build(paths, settings)
            # What is there now stays: to look through it again and again takes a twentieth of the time of tiny tasks.
            gc.freeze()
            gc.set_threshold(GC_OBJECTS)
            try:
                leave_at = moment_to_leave(settings, node.clock.wall())
                await _serve(node, listening, paths, options, requests, settings, leave_at=leave_at)
            finally:
                await close_host()
        finally:
            listening.close()
            if _identity_of(paths.socket) == own:  # else another node's, or gone
                if handed_over is None:  # else whoever made it starts the next node by it
                    paths.socket.unlink(missing_ok=True)
                paths.run_file.unlink(missing_ok=True)
            log.info("stopped")


async def _serve(
    node: RunningNode,
    listening: Any,
    paths: MachinePaths,
    options: DaemonOptions,
    requests: StopRequests,
    settings: Settings,
    *,
    leave_at: float | None,
) -> None:
    scope = TaskScope("daemon", _log_error)
    sink = ResultsSink(node, paths.state / "sinks", scope)
    app, api = build_app(node, requests, sink, takes_jobs=not options.is_onlooker)
    listener = Listener(app, VERSION)
    places = {path: _identity_of(path) for path in (paths.lock, paths.socket)}
    try:
        await node.start()
        if not options.is_onlooker:
            await sink.start()
        serving = scope.spawn(listener.serve(sockets=[listening]), "listener")
        serving.add_done_callback(lambda _: requests.request_stop(drain=True))
        _write_run_file(paths, options, settings)
        if options.ready_fd is not None:
            _report(options.ready_fd, {"ready": True, "pid": os.getpid(), "socket": str(paths.socket)})
        if options.on_ready is not None:
            options.on_ready(node)
        log.info("ready on %s", paths.socket)
        scope.spawn(_prune(node, settings.store.keep_s), "prune")
        if leave_at is not None:
            scope.spawn(_leave(leave_at, node, requests), "leave")
        scope.spawn(_watch_places(places, node, requests), "places")
        if options.lifeline_fd is not None:
            scope.spawn(_hold_on(options.lifeline_fd, node, api, requests), "lifeline")
        await requests.wait()
        log.info("stopping%s", " now" if requests.is_now else ": finishing what runs")
        await _stop_node(node, requests, scope)
        api.job_events.close()
        api.triggers.close()
        listener.stop()
        await serving
    finally:
        await scope.close()
        sink.close()


async def _prune(node: NodeFacade, keep_s: float) -> None:
    """Forget finished jobs that are older than `keep_s`, with what they left here; until cancelled."""
    while True:
        await node.clock.sleep(_PRUNE_S)
        try:
            report = await node.prune(older_than_s=keep_s, drop_results=True, dry_run=False)
        except P2pcError as error:
            log.warning("finished jobs could not be pruned: %s", error)
        else:
            if report.jobs:
                log.info("pruned %d finished jobs, %d bytes", report.jobs, report.freed_bytes)


def moment_to_leave(settings: Settings, wall: float) -> float | None:
    """Return when the node begins to leave, so that it is gone by `node.until`; None: it stays.

    Raises:
        UsageError: the flag leaves no time: it would leave at once.
    """
    until = settings.node.leaves_at
    if until is None:
        return None
    takes_s = settings.node.grace_s + LEAVE_SLACK_S
    if until - takes_s <= wall and settings.origin("node.until") == "flag":
        raise UsageError(
            f"--until is {max(0.0, until - wall):.0f} s from now, and leaving takes up to {takes_s:.0f} s",
            f"what runs then gets {settings.node.grace} to end (node.grace): the node would leave at once",
            "name a later moment, or p2pc config set node.grace 5s",
            code="deadline",
        )
    return until - takes_s


async def _leave(at: float, node: NodeFacade, requests: StopRequests) -> None:
    """Stop when the time for it has come, by the wall clock: a machine that slept leaves when it wakes up."""
    while (left_s := at - node.clock.wall()) > 0:
        await node.clock.sleep(min(left_s, _LEAVE_LOOK_S))
    log.info("it is time to leave (node.until)")
    requests.request_stop(drain=True)


async def _watch_places(
    watched: Mapping[Path, tuple[int, int] | None], node: NodeFacade, requests: StopRequests
) -> None:
    """Stop when the files that make this node the one of its installation are gone or are another's.

    Then no command reaches it, a second node may start, and what is written goes to files that nobody finds.
    """
    while True:
        await node.clock.sleep(_PLACES_LOOK_S)
        for path, before in watched.items():
            if _identity_of(path) != before:
                log.error("%s is gone or was replaced; this node stops", path)
                requests.request_stop(drain=False)
                return


def _identity_of(path: Path) -> tuple[int, int] | None:
    """Return (device, inode); None when there is nothing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            return None
        raise
    return status.st_dev, status.st_ino


async def _stop_node(node: RunningNode, requests: StopRequests, scope: TaskScope) -> None:
    """Drain until done, until it has lasted too long or until a second request; then stop at once."""
    if not requests.is_now:
        draining = scope.spawn(node.stop(drain=True), "drain")
        draining.add_done_callback(lambda _: requests.changed.set())
        limit = node.clock.call_later(STOP_GRACE_S, lambda: requests.request_stop(drain=False))
        while not draining.done() and not requests.is_now:
            requests.changed.clear()
            await requests.changed.wait()
        limit.cancel()
        if draining.done() and not draining.cancelled() and draining.exception() is None:
            return
        draining.cancel()
        with contextlib.suppress(asyncio.CancelledError, P2pcError):
            await draining
    await node.stop(drain=False)


def _write_run_file(paths: MachinePaths, options: DaemonOptions, settings: Settings) -> None:
    """Say who runs, and how it was started, for `p2pc node restart`."""
    document: dict[str, Any] = {"pid": os.getpid(), "version": VERSION, "socket": str(paths.socket)}
    if options.lifeline_fd is None:
        document["flags"] = {key: str(value) for key, value in options.flags.items()}
    document |= {"foreground": options.is_foreground, "accept": settings.node.accept}
    temporary = paths.run_file.with_name(f".{paths.run_file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
    temporary.replace(paths.run_file)


def _log_error(name: str, error: BaseException) -> None:
    log.error("%s failed", name, exc_info=error)


@contextlib.contextmanager
def _signals(requests: StopRequests) -> Any:
    """Handlers rather than SIG_IGN for SIGHUP: an ignored signal would stay ignored in the tasks' processes."""
    loop = asyncio.get_running_loop()
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in handled[:2]:
        loop.add_signal_handler(number, lambda: requests.request_stop(drain=True))
    loop.add_signal_handler(signal.SIGHUP, lambda: log.info("the terminal has gone; the node stays"))
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def _hold_on(descriptor: int, node: NodeFacade, api: Api, requests: StopRequests) -> None:
    """Stop at the end of the lifeline, once no other command follows a job here any more."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    os.set_blocking(descriptor, False)

    def readable() -> None:
        try:
            is_over = not os.read(descriptor, 4096)
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over:
            loop.remove_reader(descriptor)
            ended.set()

    loop.add_reader(descriptor, readable)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    while api.job_events.follower_count or api.triggers.follower_count:
        await node.clock.sleep(_ORPHAN_LOOK_S)
    log.info("the process that this node belongs to has gone")
    requests.request_stop(drain=False)
