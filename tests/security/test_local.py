"""The control socket: for commands of this user, and for nobody else who can reach it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh

NOBODY = 65534


def answer(daemon: Daemon, *headers: str, path: str = "/v1/status") -> str:
    """What the socket says to a request with these headers."""
    lines = [f"GET {path} HTTP/1.1", *headers, "connection: close", "", ""]
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(daemon.places.socket))
        link.sendall("\r\n".join(lines).encode())
        data = b""
        while part := link.recv(65536):
            data += part
    return data.decode()


@pytest.mark.parametrize(
    "headers",
    [
        ("host: evil.example",),
        ("host: evil.example:80",),
        ("host: localhost.evil.example",),
        ("host: localhost", "origin: http://evil.example"),
        ("host: localhost", "origin: null"),
        ("host: localhost", "sec-fetch-mode: no-cors"),
    ],
)
def test_a_web_page_gets_nothing(pages: Daemon, headers: tuple[str, ...]) -> None:
    """DNS rebinding: a page whose name leads to this machine asks whatever proxy leads to the socket."""
    refused = answer(pages, *headers)
    assert refused.startswith("HTTP/1.1 403") and "not for web pages" in refused, refused
    assert '"peers"' not in refused


def test_commands_are_served(pages: Daemon) -> None:
    for host in ("localhost", "p2pc", "localhost:80", "127.0.0.1", "[::1]:8080"):
        assert answer(pages, f"host: {host}").startswith("HTTP/1.1 200"), host


@pytest.fixture
def pages(mesh: Mesh) -> Daemon:
    return mesh.add("ada").start()


PROBE = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
link = socket.socket(socket.AF_UNIX)
try:
    link.connect(sys.argv[1])
    link.sendall(b"GET /v1/status HTTP/1.1\\r\\nhost: p2pc\\r\\nconnection: close\\r\\n\\r\\n")
    data = b""
    while part := link.recv(65536):
        data += part
    print(data.decode())
except OSError as error:
    print("errno", error.errno)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_other_users_of_this_machine_get_nothing(mesh: Mesh) -> None:
    """Whoever can use the socket can run programs as this user."""
    ada = mesh.add("ada").start()
    path = Path(ada.places.socket)

    def ask() -> str:
        done = subprocess.run([sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=True)
        return done.stdout

    assert ask().startswith("errno 13"), "the directory is closed"
    directory = path.parent
    while directory != Path("/tmp"):
        directory.chmod(0o755)
        directory = directory.parent
    assert ask().startswith("errno 13"), "so is the socket"
    path.chmod(0o666)
    refused = ask()
    assert refused.startswith(("HTTP/1.1 403", "errno 104", "errno 32")), "and the node looks who asks"
    assert ada.p2pc("status").code == 0
