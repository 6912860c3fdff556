"""This machine's node over its control socket: questions, uploads, the events of a job.  Blocking; for threads."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import NodeUnavailable, P2pcError, UsageError
from p2pcompute.limits import EVENT_KEEPALIVE_S
from p2pcompute.socket_peer import connect

REQUEST_S: Final = 60.0
_SILENT_S: Final = 3 * EVENT_KEEPALIVE_S
"""A stream of events that says nothing for so long is dead."""


def call(
    path: Path,
    method: str,
    target: str,
    body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    timeout_s: float | None = None,
) -> bytes:
    """Ask this machine's node and return its answer.

    Args:
        path: of its socket.
        body: a document; or several, which become lines.
        timeout_s: it is given up when it says nothing for so long; None: for REQUEST_S.

    Raises:
        NodeUnavailable: it does not answer.
        TrustError: another user's process listens there.
        UsageError: it refuses.
    """
    data, headers = None, {}
    if isinstance(body, Mapping):
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    elif body is not None:
        data, headers = (
            b"".join(json.dumps(line).encode() + b"\n" for line in body),
            {"Content-Type": "application/jsonl"},
        )
    with _errors(), contextlib.closing(_connected(path, timeout_s or REQUEST_S)) as connection:
        connection.request(method, target, body=data, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
    if answer.status >= 300:
        raise _refusal(answer.status, content)
    return content


def ask(path: Path, method: str, target: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
    """As `call`, with the answer read as JSON."""
    return json.loads(call(path, method, target, body, timeout_s=timeout_s))


def events(path: Path, target: str) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    """Yield (name, number or None, data) of a stream of events, until it ends.

    Raises:
        NodeUnavailable: it breaks, or says nothing for long.
        UsageError: there is no such stream.
    """
    with _errors(), contextlib.closing(_connected(path, _SILENT_S)) as connection:
        connection.request("GET", target)
        answer = connection.getresponse()
        if answer.status >= 300:
            raise _refusal(answer.status, answer.read())
        name, number = "", None
        while line := answer.readline():
            field, _, value = line.rstrip(b"\n").partition(b": ")
            match field:
                case b"event":
                    name, number = value.decode(), None
                case b"id":
                    number = int(value)
                case b"data":
                    yield name, number, json.loads(value)


def _connected(path: Path, timeout_s: float) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("p2pc", timeout=timeout_s)
    connection.sock = connect(str(path), timeout_s)
    connection.sock.settimeout(timeout_s)
    return connection


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError):
        raise NodeUnavailable("no node is running here", "", "start it: p2pc node start") from None
    except (OSError, http.client.HTTPException) as error:
        raise NodeUnavailable(
            "this machine's node does not answer", f"{type(error).__name__}: {error}", "start it: p2pc node start"
        ) from error


def _refusal(status: int, content: bytes) -> P2pcError:
    try:
        document = json.loads(content)
    except ValueError:
        document = {}
    kind: type[P2pcError] = UsageError if status < 500 else NodeUnavailable if status == 503 else P2pcError
    what = str(document.get("what") or f"the node answered {status}")
    return kind(what, str(document.get("why") or ""), str(document.get("fix") or "") or None, code=document.get("code"))
