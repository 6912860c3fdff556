"""What a bug report needs, in one file, without what it tells about people: `p2pc doctor --bundle FILE`.

Names, addresses and keys are replaced by names that are the same throughout the file, so that it can still be seen
who did what to whom.  Commands, inputs, outputs and results of jobs are not in it at all.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Final

from p2pcompute.cli.connection import Connection
from p2pcompute.config import Settings, all_keys
from p2pcompute.errors import ConfigError, P2pcError
from p2pcompute.places import Paths

LOG_LINES: Final = 2000
"""Of the end of the node's log."""
_LOG_BYTES_MAX: Final = 1 << 20
_JOBS: Final = 20
"""Of the jobs begun last."""
_JOB_KEYS: Final = (
    "alias", "kind", "state", "total", "added", "done", "failed", "running", "waiting", "cancelled", "retried",
    "submitted", "finished", "exit_code", "halted", "checking", "revoked", "disputed",
)  # fmt: skip
_HIDDEN: Final = ("node.peers", "node.seeds", "node.dns", "node.labels", "admit.psk", "admit.keys")
"""Settings of which only the number of values is said."""
_SHORT_ID: Final = re.compile(r"\b[A-Z2-7]{4}(?:-[A-Z2-7]{4})+\b")
_HEX: Final = re.compile(r"\b[0-9a-f]{16,}\b")
_TOKEN: Final = re.compile(r"\bp2pc1?[-_:][A-Za-z0-9_\-+/=.:]{16,}")
_BASE64: Final = re.compile(r"\b(?=[A-Za-z_\-]*[0-9])[A-Za-z0-9_\-]{40,}={0,2}")
_IPV4: Final = re.compile(r"(?<![\d.])(?!127\.|0\.0\.0\.0|255\.)(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_IPV6: Final = re.compile(
    r"(?<![\w:])(?!::1?(?![\w:]))(?=[0-9a-f:]*::|(?:[0-9a-f]{1,4}:){7})[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])"
)
_PATTERNS: Final = (
    ("token", _TOKEN),
    ("id", _SHORT_ID),
    ("key", _HEX),
    ("key", _BASE64),
    ("address", _IPV4),
    ("address", _IPV6),
)


class Redactor:
    """Replaces what names people, machines and keys; the same by the same."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """`names` are texts to be replaced, and by what."""
        self._names = sorted(((old, new) for old, new in names.items() if len(old) > 1), key=lambda one: -len(one[0]))
        self._by_kind: dict[str, dict[str, str]] = {}

    def text(self, text: str) -> str:
        """Return the text without them."""
        for old, new in self._names:
            text = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new.replace("\\", r"\\"), text)
        for kind, pattern in _PATTERNS:
            text = pattern.sub(partial(self._stand_in, kind), text)
        return text

    def _stand_in(self, kind: str, match: re.Match[str]) -> str:
        value = match.group()
        known = self._by_kind.setdefault(kind, {})
        whole = value[:9] if kind == "id" else value  # a long id begins with its short one
        return known.setdefault(whole, f"{kind}-{len(known) + 1}")

    def summary(self) -> str:
        """Say what was replaced."""
        counts = [f"{len(known)} {kind}{'' if len(known) == 1 else 's'}" for kind, known in self._by_kind.items()]
        return ", ".join(["names", *counts])


def write_report(target: Path, paths: Paths, settings: Settings, checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write a bug report as a ZIP file.

    Returns:
        Names and sizes in bytes of its parts, and what was replaced.

    Raises:
        ConfigError: there is such a file already, or it cannot be written.
    """
    status, jobs = _ask(paths, "/v1/status"), _ask(paths, f"/v1/jobs?all=true&limit={_JOBS}")
    redactor = Redactor(_names(status))
    parts = {
        "about.json": _json(_about()),
        "checks.json": _json(list(checks)),
        "settings.json": _json({key: _shown(settings, key) for key in all_keys()}),
        "status.json": _json(status),
        "jobs.json": _json(_jobs(jobs)),
        "node.log": _end_of(paths.log),
    }
    texts = {name: redactor.text(text) for name, text in parts.items()}
    try:
        with target.open("xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, text in texts.items():
                bundle.writestr(name, text)
    except FileExistsError as error:
        raise ConfigError(f"{target} exists already", "it is not overwritten", "name another file") from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written", error.strerror or str(error), "name another file") from error
    return {
        "path": str(target),
        "parts": {name: len(text.encode()) for name, text in texts.items()},
        "replaced": redactor.summary(),
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _ask(paths: Paths, path: str) -> dict[str, Any]:
    """What the node answers; why not, if it does not."""
    try:
        return Connection(paths.socket, timeout_s=10.0).request("GET", path)
    except P2pcError as error:
        return {"unavailable": str(error)}


def _names(status: Mapping[str, Any]) -> dict[str, str]:
    """The names of this machine, its user, their folder and the nodes of the group."""
    host = socket.gethostname()
    names = {host: "this-host", host.split(".")[0]: "this-host", str(Path.home()): "~"}
    with suppress(OSError, KeyError):  # a user without a name has none to hide
        names[getpass.getuser()] = "this-user"
    names.pop("root", None)
    for number, peer in enumerate(status.get("peers", ()), 1):
        names.setdefault(str(peer.get("name", "")), f"node-{number}")
    return {old: new for old, new in names.items() if old and old != "/"}


def _about() -> dict[str, Any]:
    packages: dict[str, str | None] = {}
    for line in ["p2pcompute", *(requires("p2pcompute") or [])]:
        name = re.split(r"[^\w.-]", line)[0]
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "is_root": os.geteuid() == 0,
        "packages": packages,
    }


def _shown(settings: Settings, key: str) -> dict[str, Any]:
    value = settings.get(key)
    if key in _HIDDEN and value:
        value = f"hidden ({len(value) if isinstance(value, tuple) else 1})"
    origin = settings.origin(key)
    return {"value": value, "from": origin if origin.startswith(("default", "flag", "$")) else "file"}


def _jobs(answer: Mapping[str, Any]) -> object:
    items = answer.get("items")
    if not isinstance(items, list):
        return answer
    return [{key: item.get(key) for key in _JOB_KEYS} for item in items]


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES_MAX))
            lines = file.read(_LOG_BYTES_MAX).decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    except OSError as error:
        return f"no log: {error.strerror}\n"
    return "\n".join(lines) + "\n"
