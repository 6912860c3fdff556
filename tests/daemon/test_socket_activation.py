"""A node that is started by the first command that wants it: systemd's sockets, and inetd's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pcompute.cli.connection import Connection
from p2pcompute.places import Paths, find_paths

NODE = [sys.executable, "-P", "-m", "p2pcompute", "node"]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("P2PC_HOME", str(tmp_path))
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    found = find_paths()
    found.socket.parent.mkdir(mode=0o700)
    return found


def status_of(paths: Paths) -> str:
    return str(Connection(paths.socket, timeout_s=30.0).request("GET", "/v1/status")["node"]["state"])


def end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="runs where systemd is installed")
def test_the_first_command_starts_the_node(paths: Paths) -> None:
    keep = [word for name in ("P2PC_HOME", "P2PC_NODE__INTERFACES") for word in ("-E", name)]
    activate = ["systemd-socket-activate", "-l", str(paths.socket), *keep, *NODE]
    process = subprocess.Popen(activate, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not paths.socket.exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        assert not paths.run_file.exists(), "nothing runs before it is wanted"
        assert status_of(paths) == "idle"
    finally:
        code = end(process)
    assert code in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    assert paths.socket.exists() and not paths.run_file.exists(), "the socket is not the node's to remove"


def test_inetd_hands_the_socket_over_as_standard_input(paths: Paths) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(paths.socket))
        listening.listen()
        process = subprocess.Popen(NODE, stdin=listening.fileno(), stderr=subprocess.DEVNULL)
        try:
            assert status_of(paths) == "idle"
        finally:
            end(process)
    assert paths.socket.exists()


def test_a_socket_that_no_command_would_find_is_refused(paths: Paths, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "other.sock"))
        listening.listen()
        done = subprocess.run(NODE, stdin=listening.fileno(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5, done.stderr
    assert "another one" in done.stderr and str(paths.socket) in done.stderr and "P2PC_SOCKET" in done.stderr


def test_variables_of_another_process_mean_nothing(paths: Paths) -> None:
    """A shell that was itself started by a socket unit hands its variables on to everything that it runs."""
    environ = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    process = subprocess.Popen(NODE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    try:
        deadline = time.monotonic() + 30
        while not paths.run_file.exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        assert status_of(paths) == "idle"
    finally:
        end(process)
    assert not paths.socket.exists()
