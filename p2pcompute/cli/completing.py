"""Names for shell completion: jobs and nodes from the node, groups, settings and scenarios from files.

All of it is silent: where nobody answers in time, or a file cannot be read, there are no names.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from p2pcompute.errors import P2pcError

_NODE_S_MAX: Final = 0.2
"""A node that does not answer within this gives no names."""
_NO_NAMES: Final = (P2pcError, OSError, ValueError, KeyError, TypeError, AttributeError)
"""No node, or one that answers with something else than a list of jobs or nodes."""


def _items(path: str, made: Callable[[list[dict[str, Any]]], list[CompletionItem]]) -> list[CompletionItem]:
    """Return what `made` makes of a list that the node has; nothing when no node answers in time, or with nonsense."""
    import http.client
    import json

    from p2pcompute.places import find_paths
    from p2pcompute.socket_peer import connect

    connection = http.client.HTTPConnection("p2pc")
    with contextlib.closing(connection), contextlib.suppress(*_NO_NAMES, http.client.HTTPException):
        connection.sock = connect(str(find_paths().socket), _NODE_S_MAX)
        connection.sock.settimeout(_NODE_S_MAX)
        connection.request("GET", path)
        return made(json.loads(connection.getresponse().read())["items"])
    return []


def complete_jobs(incomplete: str) -> list[CompletionItem]:
    """Return the jobs whose alias starts with `incomplete`."""

    def made(items: list[dict[str, Any]]) -> list[CompletionItem]:
        found = [(str(job["alias"]), f"{job['name']} {job['state']}".strip()) for job in items]
        if found:
            found.append(("last", "the newest job"))
        return [CompletionItem(alias, help=text) for alias, text in found if alias.startswith(incomplete)]

    return _items("/v1/jobs?all=1&limit=50", made)


def complete_nodes(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the nodes whose name starts with `incomplete`; by id where a name is not one's alone."""

    def made(items: list[dict[str, Any]]) -> list[CompletionItem]:
        names = [str(item["name"]) for item in items]
        found = [
            (name if names.count(name) == 1 and name.isprintable() and " " not in name else str(item["short_id"]), item)
            for name, item in zip(names, items, strict=True)
        ]
        return [CompletionItem(name, help=str(item["state"])) for name, item in found if name.startswith(incomplete)]

    return _items("/v1/peers", made)


def complete_invites(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the invitations that are open, and "all"."""

    def made(items: list[dict[str, Any]]) -> list[CompletionItem]:
        found = [*(str(item["handle"]) for item in items), *(["all"] if items else [])]
        return [CompletionItem(handle) for handle in found if handle.startswith(incomplete)]

    return _items("/v1/invites", made)


def complete_groups(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the groups of this computer."""
    from p2pcompute.places import FIRST_GROUP, find_paths, groups_here

    with contextlib.suppress(P2pcError, OSError):
        environ = {key: value for key, value in os.environ.items() if key not in ("P2PC_SOCKET", "P2PC_GROUP")}
        groups = groups_here(find_paths(environ, group=FIRST_GROUP).base)
        return [CompletionItem(name) for name in groups if name.startswith(incomplete)]
    return []


def complete_settings(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the keys of settings."""
    from p2pcompute.config import all_keys, help_of

    return [CompletionItem(key, help=help_of(key)) for key in all_keys() if key.startswith(incomplete)]


def complete_scenarios(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the scenarios that come along; the module that reads them takes too long to import here."""
    package = Path(__file__).parents[1]
    for folder in (package / "simulation/scenarios", package.parent / "simulations/scenarios"):
        if names := sorted(path.stem for path in folder.glob("*.toml")):
            return [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return []
