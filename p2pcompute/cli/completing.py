"""Names for shell completion: jobs and nodes from the node, groups, settings and scenarios from files.

All of it is silent: where nobody answers in time, or a file cannot be read, there are no names.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from p2pcompute.errors import P2pcError

_NODE_S_MAX: Final = 0.2
"""A node that does not answer within this gives no names."""


def _items(path: str) -> list[dict[str, Any]]:
    """Return the items of a list that the node has; none when no node answers in time."""
    import http.client
    import json
    import socket

    from p2pcompute.places import find_paths
    from p2pcompute.socket_peer import check_peer_is_ours

    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(_NODE_S_MAX)
            stream.connect(str(find_paths().socket))
            check_peer_is_ours(stream, "")
            connection = http.client.HTTPConnection("localhost", timeout=_NODE_S_MAX)
            connection.sock = stream
            connection.request("GET", path)
            items: list[dict[str, Any]] = json.loads(connection.getresponse().read())["items"]
            return items
    except (P2pcError, OSError, http.client.HTTPException, ValueError, KeyError, TypeError):  # or it answers nonsense
        return []


def complete_jobs(incomplete: str) -> list[CompletionItem]:
    """Return the jobs whose alias starts with `incomplete`."""
    items = _items("/v1/jobs?all=1&limit=50")
    found = [(str(job["alias"]), f"{job['name']} {job['state']}".strip()) for job in items]
    if found:
        found.append(("last", "the newest job"))
    return [CompletionItem(alias, help=text) for alias, text in found if alias.startswith(incomplete)]


def complete_nodes(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the nodes whose name starts with `incomplete`; by id where a name is not one's alone."""
    items = _items("/v1/peers")
    names = [str(item["name"]) for item in items]
    found = [
        (name if names.count(name) == 1 and name.isprintable() and " " not in name else str(item["short_id"]), item)
        for name, item in zip(names, items, strict=True)
    ]
    return [CompletionItem(name, help=str(item["state"])) for name, item in found if name.startswith(incomplete)]


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
