"""The command's side of the control API: HTTP over the node's unix socket, with the standard library only.

Every call opens a connection of its own (0.1 ms on a unix socket), so nothing has to be kept alive or repaired.  Errors
of the node are raised as the class that fits; a socket that nobody answers is `NodeUnavailable`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from p2pcompute.errors import NodeUnavailable, P2pcError, StoreError, TrustError, UsageError, VersionMismatch
from p2pcompute.limits import PROTOCOL_MAX, PROTOCOL_MIN
from p2pcompute.socket_peer import connect

REQUEST_S_MAX: Final = 60.0
"""A node that says nothing for this long is taken for dead; quiet event streams are never quiet so long."""
CONNECT_S_MAX: Final = 10.0
"""Wait for a node to take a connection while many connect."""
_SEND_BYTES: Final = 64 * 1024
_UNSENT_BYTES_MAX: Final = 1024 * 1024
"""Lines gathered ahead of the socket; the source of the lines is not read further."""

_is_version_noted = False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("p2pc", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path, CONNECT_S_MAX)
        self.sock.settimeout(self.timeout)


class Closing(Protocol):
    def close(self) -> None: ...


class Connection:
    """The way to the node of this installation."""

    def __init__(self, path: Path | str, *, timeout_s: float = REQUEST_S_MAX) -> None:
        self.path = str(path)
        self.node_version = ""
        """Of the node that answered last."""
        self.embedded: Closing | None = None
        """A node that was started inside this command and ends with it."""
        self._timeout_s = timeout_s

    def is_answering(self) -> bool:
        """True when something accepts connections there; nothing is sent."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(CONNECT_S_MAX)
            try:
                probe.connect(self.path)
            except OSError as error:
                return isinstance(error, BlockingIOError)  # so many connect that it has not taken them all
        return True

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return the JSON answer of a call.

        Raises:
            NodeUnavailable: no node answers.
            P2pcError: the node refused; the class fits the reason.
            UsageError: something in the body, as typed, is not text.
        """
        data = None if body is None else _body_bytes(body)
        headers = {} if data is None else {"Content-Type": "application/json"}
        with self._open(timeout_s) as link:
            with contextlib.suppress(BrokenPipeError):  # refused before the body was read: the answer says why
                link.request(method, path, body=data, headers=headers)
            return _json_of(self._answer(link))

    def stream_events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Yield (event, data) until the node ends the stream.

        Raises:
            NodeUnavailable: no node answers, or it went away in the middle.
            P2pcError: the node refused.
        """
        with self._open(None) as link:
            link.request("GET", path, headers={"Accept": "text/event-stream"})
            answer = self._answer(link)
            name, data = "message", ""
            while line := answer.readline():
                text = line.decode().rstrip("\r\n")
                if not text:
                    if data:
                        yield name, json.loads(data)
                    name, data = "message", ""
                elif text.startswith("event: "):
                    name = text[7:]
                elif text.startswith("data: "):
                    data = text[6:]
            if answer.chunked and not answer.isclosed():
                raise _gone()

    stream_lines = stream_events

    def upload_lines(self, path: str, lines: Iterable[bytes | str | Mapping[str, Any]]) -> dict[str, Any]:
        """Send lines as they come and return the answer.

        `lines` is read here, in the calling thread, no further ahead than _UNSENT_BYTES_MAX; another thread sends what
        there is.  So the first task of a slow source starts at once, and a node that stores slowly slows the source.

        Raises:
            NodeUnavailable: no node answers, or it went away; what was sent may be stored in part.
            P2pcError: the node refused a line.
        """
        with self._open(None) as link:
            link.putrequest("POST", path)
            link.putheader("Content-Type", "application/jsonl")
            link.putheader("Transfer-Encoding", "chunked")
            link.endheaders()
            sender = _Sender(link)
            trouble: BaseException | None = None
            try:
                for line in lines:
                    if not sender.put(_line_bytes(line)):
                        break
                sender.finish()
            except BaseException as error:  # noqa: BLE001 - raised again below: an OSError of the source is not the node's
                trouble = error
                sender.cut()
            if trouble is None:
                return _json_of(self._answer(link))
        raise trouble

    def download(self, path: str) -> Download:
        """Return raw content to read from; a context manager that must be closed.

        Raises:
            NodeUnavailable: no node answers.
            P2pcError: the node refused.
        """
        link = self._new(None)
        try:
            link.request("GET", path)
            return Download(link, self._answer(link))
        except (OSError, http.client.HTTPException) as error:
            link.close()
            raise self._unreachable(error) from error
        except BaseException:  # tidied up after, and raised again
            link.close()
            raise

    def close(self) -> None:
        """End an embedded node now rather than with the command."""
        if self.embedded is not None:
            self.embedded.close()

    # --- inside -----------------------------------------------------------------------------------

    def _new(self, timeout_s: float | None) -> _UnixConnection:
        return _UnixConnection(self.path, self._timeout_s if timeout_s is None else timeout_s)

    @contextlib.contextmanager
    def _open(self, timeout_s: float | None) -> Iterator[_UnixConnection]:
        link = self._new(timeout_s)
        try:
            yield link
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            link.close()

    def _unreachable(self, error: Exception) -> P2pcError:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            from p2pcompute.places import FIRST_GROUP, find_paths

            why = f"nobody answers on {self.path}" if os.environ.get("P2PC_SOCKET") else ""
            group = find_paths(os.environ).group
            where = "here" if group == FIRST_GROUP else f"here for the group {group}"
            return NodeUnavailable(f"no node is running {where}", why, "start one: p2pc node start")
        if isinstance(error, PermissionError):
            return NodeUnavailable(
                "the node here belongs to another user", f"{self.path} is not yours", "set P2PC_HOME to your own"
            )
        if isinstance(error, TimeoutError | BlockingIOError):  # the latter: it takes no connection
            return NodeUnavailable(
                "the node does not answer",
                f"nothing for {CONNECT_S_MAX if isinstance(error, BlockingIOError) else self._timeout_s:g} s",
                "restart it: p2pc node restart --now",
                code="node-silent",
            )
        if isinstance(error, ConnectionError | http.client.HTTPException):
            return _gone()
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            return NodeUnavailable("the node cannot be reached", error.strerror or str(error), "see: p2pc status")
        return UsageError(str(error)) if not isinstance(error, P2pcError) else error

    def _answer(self, link: _UnixConnection) -> http.client.HTTPResponse:
        """Return a successful answer; raise the error in any other."""
        response = link.getresponse()
        self._compare(response)
        if response.status < 300:
            return response
        try:
            document = json.loads(response.read())
        except ValueError:
            document = {}
        raise error_of(response.status, document if isinstance(document, dict) else {})

    def _compare(self, response: http.client.HTTPResponse) -> None:
        """Say once when node and command are of different builds; refuse when they cannot work together."""
        global _is_version_noted
        self.node_version = response.getheader("p2pc-version", "")
        low, _, high = response.getheader("p2pc-protocol", "").partition("-")
        from p2pcompute.version import VERSION

        if low.isdigit() and high.isdigit() and (int(low) > PROTOCOL_MAX or int(high) < PROTOCOL_MIN):
            raise VersionMismatch(
                f"the node runs {self.node_version}, this is {VERSION}: they do not understand each other",
                f"protocol {low}-{high} there, {PROTOCOL_MIN}-{PROTOCOL_MAX} here",
                "p2pc node restart",
            )
        if self.node_version and self.node_version != VERSION and not _is_version_noted:
            _is_version_noted = True
            from p2pcompute.cli.output import say

            say(
                f"note: node runs {self.node_version}, this is {VERSION}; restart it when idle: p2pc node restart",
                level=1,
            )


class Download:
    """Content of a task, to be read like a file.  Content that is cut short is an error, never a short read."""

    def __init__(self, link: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        self._link = link
        self._answer = answer
        self.size = int(answer.getheader("content-length", "0"))
        """In bytes."""
        self.mode = int(answer.getheader("p2pc-mode", "644"), 8)
        """Permission bits of a file."""
        self._left = self.size

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, or all that is left; b"" at the end.

        Raises:
            NodeUnavailable: the node went away before the end.
        """
        try:
            data = self._answer.read(self._left if size < 0 else min(size, self._left))
        except (OSError, http.client.HTTPException) as error:
            raise _gone() from error
        self._left -= len(data)
        if self._left and (size < 0 or (size > 0 and not data)):
            raise _gone()
        return data

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(_SEND_BYTES):
            yield data

    def close(self) -> None:
        self._answer.close()
        self._link.close()

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Sender:
    """Sends chunks of a request from a thread of its own."""

    def __init__(self, link: http.client.HTTPConnection) -> None:
        self._link = link
        self._unsent = bytearray()
        self._news = threading.Condition()
        self._is_finished = False
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="p2pc-upload", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> bool:
        """Take a line; waits while too much is unsent.  False when the node takes no more."""
        with self._news:
            while len(self._unsent) > _UNSENT_BYTES_MAX and not self._is_over:
                self._news.wait()
            self._unsent += line
            self._news.notify_all()
            return not self._is_over

    def finish(self) -> None:
        """Wait until all is sent, or the node has stopped reading; its answer says why."""
        with self._news:
            self._is_finished = True
            self._news.notify_all()
        self._thread.join()

    def cut(self) -> None:
        """Break off: the node sees a cut upload."""
        sock = self._link.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._news:
            self._is_over = self._is_finished = True
            self._news.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                with self._news:
                    while not self._unsent and not self._is_finished:
                        self._news.wait()
                    part = bytes(self._unsent[:_SEND_BYTES])
                    del self._unsent[:_SEND_BYTES]
                    self._news.notify_all()
                    is_last = self._is_finished and not part
                self._link.send(b"%X\r\n%s\r\n" % (len(part), part))
                if is_last:
                    return
        except OSError:
            with self._news:
                self._is_over = True
                self._unsent.clear()
                self._news.notify_all()


def _line_bytes(line: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(line, Mapping):
        line = json.dumps(line, ensure_ascii=False)
    data = line.encode() if isinstance(line, str) else line
    return data if data.endswith(b"\n") else data + b"\n"


def _body_bytes(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON.

    Raises:
        UsageError: a word in it is not UTF-8, as the shell handed it over.
    """
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        text: str = error.object
        word = text[: error.start].rpartition('"')[2] + text[error.start :].partition('"')[0]
        shown = word.encode("utf-8", "backslashreplace").decode()
        why = "p2pc takes names and values as text"
        raise UsageError(f'"{shown}" is not UTF-8', why, "write it in UTF-8", code="encoding") from None


def _json_of(response: http.client.HTTPResponse) -> dict[str, Any]:
    document = json.loads(response.read() or b"{}")
    assert isinstance(document, dict)
    return document


def _gone() -> NodeUnavailable:
    return NodeUnavailable(
        "the node went away",
        "the connection broke in the middle",
        "accepted jobs are kept; start it: p2pc node start",
        code="node-gone",
    )


def error_of(status: int, document: Mapping[str, Any]) -> P2pcError:
    """Return the error that a ``p2pc.error/1`` document describes.

    Further members of the document (`line`, `count`, `first` of an upload) are attributes of the error.
    """
    code = str(document.get("code") or "error")
    kind: type[P2pcError] = UsageError if status < 500 else P2pcError
    if code == "version":
        kind = VersionMismatch
    elif status in (403, 503, 507):
        kind = {403: TrustError, 503: NodeUnavailable, 507: StoreError}[status]
    error = kind(
        str(document.get("what") or f"the node answered {status}"),
        str(document.get("why") or ""),
        str(document.get("fix") or "") or None,
        code=code,
    )
    for name in ("line", "count", "first"):
        if name in document:
            setattr(error, name, document[name])
    return error


def open_connection(*, timeout_s: float = REQUEST_S_MAX) -> Connection:
    """Return the connection of a command that only looks: it never starts a node.

    Raises:
        NodeUnavailable: at the first call, when none is running.
    """
    from p2pcompute.places import find_paths

    return Connection(find_paths(os.environ).socket, timeout_s=timeout_s)
