"""`p2pc node`: the node of this machine is run, started, stopped and started anew."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from p2pcompute.cli.comfort_commands import idle, set_node
from p2pcompute.cli.command import CONTEXT, Command, CommandGroup
from p2pcompute.cli.connection import Connection
from p2pcompute.cli.output import (
    plural,
    say,
)
from p2pcompute.errors import NodeUnavailable, UsageError

STATUS_S_MAX: Final = 5.0
"""A node that does not answer a look within this is said to be stuck."""
STOP_S_MAX: Final = 75.0
"""Longer than a node drains (STOP_GRACE_S)."""
STOP_NOW_S_MAX: Final = 15.0

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def _node_options(command: _Decorated) -> _Decorated:
    for option in reversed(
        (
            click.option("--name", metavar="NAME", help="Name shown to others.  [default: the host name]"),
            click.option(
                "--peer", multiple=True, metavar="HOST:PORT|DOMAIN", help="First contact, or a domain that names some."
            ),
            click.option("--discover/--no-discover", default=None, help="Look for nodes on the local network."),
            click.option("--cpus", metavar="N|N%", help="Tasks at once: a number, or a share of the cores."),
            click.option(
                "--accept",
                type=click.Choice(["none", "wasm", "sandboxed", "all"]),
                help="Work of others that it takes.  [default: sandboxed]",
            ),
            click.option("--until", metavar="DURATION|TIME", help="Be gone by then: finish or hand back what runs."),
        )
    ):
        command = option(command)
    return command


def _settings(
    *,
    name: str | None = None,
    peer: tuple[str, ...] = (),
    discover: bool | None = None,
    cpus: str | None = None,
    accept: str | None = None,
    until: str | None = None,
) -> dict[str, str]:
    """Return what was given by `_node_options`, as text by key; checked, so that the error names the flag's value."""
    from p2pcompute.config import convert, parse_seed

    domains = [text for text in peer if parse_seed(text)[1] is None]
    given = {
        "node.name": name,
        "node.peers": ",".join(text for text in peer if text not in domains) or None,
        "node.seeds": ",".join(domains) or None,
        "node.discover": None if discover is None else str(discover).lower(),
        "node.slots": cpus,
        "node.accept": accept,
        "node.until": _moment(until) if until else None,
    }
    found = {key: value for key, value in given.items() if value is not None}
    for key, value in found.items():
        convert(key, value)
    return found


def _moment(text: str) -> str:
    """Return when a node leaves, as its setting has it."""
    from datetime import datetime

    from p2pcompute.cli.moments import parse_deadline

    now = datetime.now().astimezone()
    return parse_deadline(text, now, flag="--until", past="the node would stop at once").isoformat(timespec="seconds")


@click.group(
    cls=CommandGroup,
    invoke_without_command=True,
    context_settings=CONTEXT,
    subcommand_metavar="[start|stop|restart|set|idle]",
)
@_node_options
@click.pass_context
def node(context: click.Context, /, **flags: Any) -> int | None:
    """Run this machine's node in the foreground; subcommands control it."""
    settings = _settings(**flags)
    if context.invoked_subcommand is not None:
        if settings:
            raise UsageError(
                "these flags belong after the subcommand", "", f"p2pc node {context.invoked_subcommand} --help"
            )
        return None
    from p2pcompute.daemon.main import DaemonOptions, run_daemon

    def ready(running: Any) -> None:
        view = running.status()
        say(f"{view.name} is up, pid {os.getpid()}; Ctrl-C drains and stops it, a second one stops it now", level=1)

    return run_daemon(DaemonOptions(flags=settings, is_foreground=True, on_ready=ready))


@node.command(
    cls=Command,
    examples=[
        ("p2pc node start", ""),
        ("p2pc node start --cpus 50% --until 18:00", "half of the cores for tasks, and gone by six"),
    ],
)
@_node_options
def start(**flags: Any) -> int:
    """Start the node in the background."""
    return _start(_settings(**flags))


def _start(settings: Mapping[str, str]) -> int:
    from p2pcompute.cli.daemon_start import start_background
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    connection = Connection(paths.socket, timeout_s=STATUS_S_MAX)
    if connection.is_answering():
        view = connection.request("GET", "/v1/status")["node"]
        say(f"{view['name']} is running already, pid {view['pid']}", level=1)
        if settings:
            raise UsageError(
                "the node is running already, with its own settings",
                "these flags count when it starts",
                "p2pc node restart",
                code="running",
            )
        return 0
    pid = start_background(paths, settings=[f"{key}={value}" for key, value in settings.items()])
    view = connection.request("GET", "/v1/status")
    say(
        f"{view['node']['name']} is up, pid {pid}, {plural(view['slots']['total'], 'slot')}; stop it: p2pc node stop",
        level=1,
    )
    return 0


@node.command(
    cls=Command,
    examples=[
        ("p2pc node stop", "tasks that run have node.grace (30 s) to end"),
        ("p2pc node stop --now", "they are run elsewhere, or here at the next start"),
    ],
)
@click.option("--drain/--now", default=True, help="Finish or hand back tasks first, or stop at once.")
def stop(drain: bool) -> int:
    """Drain (finish or hand back tasks, tell peers) and stop; membership stays."""
    stop_node(drain=drain)
    return 0


def stop_node(*, drain: bool) -> None:
    """Stop the node and wait until it has gone.

    Raises:
        NodeUnavailable: none runs, or it does not stop.
    """
    from p2pcompute.cli.daemon_start import is_running, running_pid, wait_stopped
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    connection = Connection(paths.socket, timeout_s=STATUS_S_MAX)
    try:
        view = connection.request("GET", "/v1/status")
        busy = view["slots"]["busy"]
        connection.request("POST", "/v1/shutdown", {"drain": drain})
        if drain and busy:
            say(f"finishing {plural(busy, 'task')} …", level=1)
    except NodeUnavailable as error:
        if not is_running(paths):
            raise NodeUnavailable("no node is running here", "", "there is nothing to stop") from error
        pid = running_pid(paths)
        if drain or pid is None:
            holder = f"another process holds {paths.lock}" if pid is None else f"pid {pid} holds {paths.lock}"
            fix = "p2pc node stop --now" if pid is not None else f"end that process; it is shown by: fuser {paths.lock}"
            raise NodeUnavailable("the node does not answer", holder, fix, code="node-silent") from error
        # Stuck or stopped: nothing is lost, its journal is on disk.
        os.kill(pid, signal.SIGKILL)
    if not wait_stopped(paths, STOP_S_MAX if drain else STOP_NOW_S_MAX):
        raise NodeUnavailable(
            "the node has not stopped yet", f"pid {running_pid(paths)}", "p2pc node stop --now", code="node-silent"
        )
    say("stopped", level=1)


@node.command(cls=Command, examples=[("p2pc node restart", "as it was started"), ("p2pc node restart --cpus 2", "")])
@click.option("--drain/--now", default=True, help="Finish or hand back tasks first, or stop at once.")
@_node_options
def restart(drain: bool, **flags: Any) -> int:
    """Stop and start, after an upgrade or with other settings.  Flags of its start that are not given here stay."""
    return restart_node(_settings(**flags), drain=drain)


def restart_node(settings: Mapping[str, str], *, drain: bool = True) -> int:
    """Stop the node and start it with the flags of its last start and these settings.

    Raises:
        P2pcError: it would not start with them, and was not stopped; or it did not stop, or start.
    """
    from p2pcompute.cli.daemon_start import how_started
    from p2pcompute.cli.setting_checks import check_start
    from p2pcompute.config import load_settings, parse_moment
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    kept = dict(how_started(paths).flags)
    if "node.until" in kept and parse_moment(kept["node.until"]) <= time.time():
        del kept["node.until"]
    kept = {key: value for key, value in kept.items() if key not in settings}
    check_start(load_settings(paths, os.environ, flags={**kept, **settings}))  # else it would stop, and not start
    try:
        stop_node(drain=drain)
    except NodeUnavailable as error:
        if error.code != "no-node":
            raise
    if kept:
        flags = " ".join(f"{key}={value}" for key, value in kept.items())
        say(f"with {flags}, as it was started", level=1)
    return _start({**kept, **settings})


node.add_command(set_node)
node.add_command(idle)
