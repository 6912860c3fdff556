"""The daemon's life as a process: one per installation, its socket, its signals, its lifeline, its end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.cli.connection import Connection
from p2pcompute.cli.daemon_start import is_running, running_pid, wait_stopped
from p2pcompute.daemon.listener import bind_socket
from p2pcompute.errors import NodeUnavailable, UsageError
from p2pcompute.places import Paths, find_paths
from p2pcompute.socket_peer import peer_uid

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Process:
    """A daemon in a process of its own, in one home."""

    def __init__(self, home: Path, *, fake: str = "", lifeline: int | None = None) -> None:
        self.paths: Paths = find_paths({"P2PC_HOME": str(home)})
        ready, report = os.pipe()
        command = [sys.executable, str(HERE / "fake_daemon.py"), "--ready-fd", str(report)]
        descriptors = [report]
        if lifeline is not None:
            command += ["--lifeline", str(lifeline)]
            descriptors.append(lifeline)
        environment = {
            **os.environ,
            "P2PC_HOME": str(home),
            "PYTHONPATH": f"{ROOT}:{HERE}",
            "FAKE": fake or "nova",
        }
        self.process = subprocess.Popen(command, env=environment, pass_fds=descriptors, stderr=subprocess.PIPE)
        os.close(report)
        with open(ready, "rb") as answers:
            assert select.select([answers], [], [], 20)[0], "the daemon says nothing"
            self.report: dict[str, Any] = json.loads(answers.readline() or b"{}")
        self.connection = Connection(self.paths.socket)

    def ended(self, limit_s: float = 10) -> int:
        _, errors = self.process.communicate(timeout=limit_s)
        assert b"Traceback" not in errors, errors.decode()
        return self.process.returncode

    def until(self, condition: Callable[[], object], limit_s: float = 10) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    found: list[Process] = []

    def begin(**options: Any) -> Process:
        found.append(Process(tmp_path, **options))
        return found[-1]

    yield begin
    for process in found:
        if process.process.poll() is None:
            process.process.kill()
        process.process.communicate(timeout=10)


def test_life(tmp_path: Path, start: Start) -> None:
    """Ready is reported once it answers; one node per home; SIGTERM ends it with 0 and leaves nothing behind."""
    (tmp_path / "config.toml").write_text('[log]\nformat = "json"\n')
    daemon = start()
    assert daemon.report == {"ready": True, "pid": daemon.process.pid, "socket": str(daemon.paths.socket)}
    assert stat.S_IMODE(daemon.paths.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.paths.socket.parent.stat().st_mode) == 0o700
    assert is_running(daemon.paths) and running_pid(daemon.paths) == daemon.process.pid
    # A terminal that closes is no reason to stop, and tasks must not inherit that SIGHUP is ignored.
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: "the node stays" in daemon.paths.log.read_text())
    ignored = next(
        line for line in Path(f"/proc/{daemon.process.pid}/status").read_text().split("\n") if "SigIgn" in line
    )
    assert not int(ignored.split()[1], 16) & (1 << (signal.SIGHUP - 1))
    # Two nodes with one identity would look like one to everybody else.
    second = start()
    assert second.report["code"] == "running" and str(daemon.process.pid) in second.report["why"]
    assert second.ended() == 5
    assert daemon.connection.request("GET", "/v1/status")["node"]["pid"] == daemon.process.pid
    daemon.process.terminate()
    assert daemon.ended() == 0
    assert not daemon.paths.socket.exists() and not daemon.paths.run_file.exists()
    assert not is_running(daemon.paths) and wait_stopped(daemon.paths, 0.1)
    entries = [json.loads(line) for line in daemon.paths.log.read_text().splitlines()]
    assert entries[0]["level"] == "info" and entries[0]["part"] == "daemon" and entries[-1]["text"] == "stopped"


def test_killed_and_failed_starts_keep_nobody_out(tmp_path: Path, start: Start) -> None:
    """kill -9 leaves a socket and a lock file; a failed start says why and leaves nothing; the next node starts."""
    first = start()
    first.process.kill()
    first.ended()
    assert first.paths.socket.exists()
    for fake, code, exit_code in (("moved", "identity", 2), ("bug", "bug", 70)):
        failed = start(fake=fake)
        assert failed.report["schema"] == "p2pc.error/1" and failed.report["code"] == code
        assert failed.ended() == exit_code
        assert not failed.paths.socket.exists() and not is_running(failed.paths)
    (tmp_path / "config.toml").write_text("[node]\nslotz = 3\n")
    failed = start()
    assert failed.report["code"] == "unknown-setting" and "config.toml" in failed.report["why"]
    assert failed.ended() == 2
    (tmp_path / "config.toml").unlink()
    last = start()
    assert last.report.get("ready"), last.report
    assert last.connection.request("GET", "/v1/status")["node"]["pid"] == last.process.pid


def test_second_request_stops_a_drain(start: Start) -> None:
    """Ctrl-C once drains, the node still answers and followers stay; twice stops, and the streams end."""
    daemon = start(fake="busy")
    daemon.connection.request("POST", "/v1/jobs", {"kind": "command"})
    follower = daemon.connection.stream_events("/v1/jobs/last/events")
    assert next(follower)[0] == "progress"
    daemon.process.send_signal(signal.SIGINT)
    daemon.until(lambda: "finishing what runs" in daemon.paths.log.read_text())
    assert daemon.connection.request("GET", "/v1/status")
    daemon.connection.request("POST", "/v1/shutdown", {"drain": True})
    assert [name for name, _ in follower] == []
    assert daemon.ended() == 0


def test_embedded_node_ends_with_its_holder(start: Start) -> None:
    """Whatever happens to the command, kill -9 included, its pipe closes and the node ends; but not while another
    command follows a job there: two `p2pc run` of one CI job share a node."""
    inner, lifeline = os.pipe()
    daemon = start(lifeline=inner, fake="busy")
    os.close(inner)
    os.write(lifeline, b"still here")
    daemon.connection.request("POST", "/v1/jobs", {"kind": "command"})
    follower = daemon.connection.stream_events("/v1/jobs/last/events")
    next(follower)
    os.close(lifeline)
    time.sleep(0.3)
    assert daemon.process.poll() is None
    follower.close()  # type: ignore[attr-defined]
    assert daemon.ended() == 0


# --- the socket -----------------------------------------------------------------------------------


def test_socket_is_private_from_the_first_moment(tmp_path: Path) -> None:
    """Bound with the umask set: there is no moment at which others could connect."""
    path = tmp_path / "node.sock"
    before = os.umask(0o022)
    try:
        with bind_socket(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(0o022) == 0o022, "the umask of the process is as it was"
    finally:
        os.umask(before)


def test_what_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    """P2PC_SOCKET set to somebody's file must not delete it."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(NodeUnavailable, match="not a socket"):
        bind_socket(path)
    assert path.read_text() == "data"


def test_living_socket_is_not_taken_over(tmp_path: Path) -> None:
    """Two homes with one P2PC_SOCKET."""
    with bind_socket(tmp_path / "node.sock"), pytest.raises(NodeUnavailable) as caught:
        bind_socket(tmp_path / "node.sock")
    assert caught.value.code == "running"
    with bind_socket(tmp_path / "node.sock") as again:
        assert again.fileno() > 0, "the stale one is replaced"


def test_path_that_is_too_long_is_explained(tmp_path: Path) -> None:
    """sockaddr_un holds about 100 bytes; the bare error says nothing of that."""
    with pytest.raises(NodeUnavailable) as caught:
        bind_socket(tmp_path / ("x" * 120))
    assert "100 bytes" in (caught.value.fix or "")


def test_uid_of_the_other_end() -> None:
    """The check stands on what the kernel says."""
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_uid(one) == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_other_users_are_refused(start: Start) -> None:
    """Even when the file mode lets them in: SO_PEERCRED decides, before a byte of theirs is read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as open_directory:
        os.chmod(open_directory, 0o755)
        daemon = start()
        link = Path(open_directory) / "node.sock"
        daemon.paths.socket.rename(link)
        link.chmod(0o666)
        script = (
            "import os, socket\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "link = socket.socket(socket.AF_UNIX)\n"
            f"link.connect({str(link)!r})\n"
            "try:\n"
            "    link.sendall(b'GET /v1/status HTTP/1.1\\r\\nhost: p2pc\\r\\n\\r\\n')\n"
            "except BrokenPipeError:\n"
            "    pass\n"
            "print(link.recv(65536).decode())\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
        assert "403 Forbidden" in done.stdout and '"code":"refused"' in done.stdout, done
        assert "nova" not in done.stdout
        assert Connection(link).request("GET", "/v1/status")["node"]["name"] == "nova"
        link.rename(daemon.paths.socket)


# --- the command's side ---------------------------------------------------------------------------


def answer_once(listening: socket.socket, answer: bytes) -> threading.Thread:
    """Serve one connection with these bytes, then close it."""

    def serve() -> None:
        link, _ = listening.accept()
        with link:
            link.recv(65536)
            link.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_no_node_is_said_in_one_sentence(tmp_path: Path) -> None:
    """Not a raw socket error."""
    with pytest.raises(NodeUnavailable) as caught:
        Connection(tmp_path / "none.sock").request("GET", "/v1/status")
    assert caught.value.what == "no node is running here" and caught.value.fix == "start one: p2pc node start"


def test_node_that_hangs_and_node_that_breaks_off(tmp_path: Path) -> None:
    """A stopped process and a killed one: a clear error within the limit, never an endless wait or half a result."""
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(NodeUnavailable) as caught:
            Connection(path, timeout_s=0.2).request("GET", "/v1/status")
        assert caught.value.code == "node-silent"
    answers = {
        "status": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        "events": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n20\r\nevent: progress\ndata: {}\n\nevent",
        "content": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npartial",
    }
    path.unlink()
    with bind_socket(path) as listening:
        listening.setblocking(True)
        for name, answer in answers.items():
            once = answer_once(listening, answer)
            connection = Connection(path, timeout_s=10)
            with pytest.raises(NodeUnavailable) as caught:
                if name == "status":
                    connection.request("GET", "/v1/status")
                elif name == "events":
                    list(connection.stream_events("/v1/jobs/last/events"))
                else:
                    with connection.download("/v1/jobs/last/tasks/0/stdout") as content:
                        b"".join(content)
            once.join()
            assert caught.value.code == "node-gone", name


def test_other_builds_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older node that still fits: one line.  One that does not: refused, with the command that helps."""
    from p2pcompute.cli import connection as module
    from p2pcompute.errors import VersionMismatch

    monkeypatch.setattr(module, "_is_version_noted", False)
    path = tmp_path / "node.sock"
    with bind_socket(path) as listening:
        listening.setblocking(True)
        for protocol in (b"1-1", b"1-1", b"7-9"):
            head = b"HTTP/1.1 200 OK\r\np2pc-version: 0.0.1\r\np2pc-protocol: %s\r\n" % protocol
            once = answer_once(listening, head + b"content-length: 2\r\n\r\n{}")
            if protocol == b"1-1":
                assert Connection(path).request("GET", "/v1/status") == {}
            else:
                with pytest.raises(VersionMismatch) as caught:
                    Connection(path).request("GET", "/v1/status")
                assert caught.value.fix == "p2pc node restart"
            once.join()
    assert capsys.readouterr().err.count("note: node runs 0.0.1") == 1


def test_error_classes_survive_the_way() -> None:
    """Exit codes are chosen by class."""
    from p2pcompute.cli.connection import error_of
    from p2pcompute.errors import StoreError, TrustError

    assert isinstance(error_of(400, {"what": "no"}), UsageError)
    assert isinstance(error_of(403, {}), TrustError)
    assert isinstance(error_of(507, {}), StoreError)
    assert isinstance(error_of(503, {}), NodeUnavailable)
    assert type(error_of(500, {})).__name__ == "P2pcError"
