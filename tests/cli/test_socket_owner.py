"""A socket that is not ours is not talked to."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from p2pcompute import socket_peer
from p2pcompute.cli.main import exit_code_of, run_command
from p2pcompute.errors import TrustError


def test_a_socket_of_another_user_gets_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever puts a socket where ours belongs is sent our files and commands, and answers as he likes."""
    listening = socket.socket(socket.AF_UNIX)
    monkeypatch.setenv("P2PC_HOME", str(tmp_path / "home"))
    path = Path(tempfile.mkdtemp(prefix="p2pc-t")) / "n.sock"
    monkeypatch.setenv("P2PC_SOCKET", str(path))
    with listening:
        listening.bind(str(path))
        listening.listen()
        monkeypatch.setattr(socket_peer, "peer_uid", lambda connection: 12345 if os.geteuid() != 12345 else 1)
        code, err = run_command(["jobs"]), capsys.readouterr().err
        listening.setblocking(False)
        got = []
        for _ in range(2):  # the probe, and the call
            with listening.accept()[0] as link:
                got.append(link.recv(1000))
    path.unlink()
    path.parent.rmdir()
    assert got == [b"", b""] and code == exit_code_of(TrustError("")), err
    assert "is not your node" in err and "12345" in err and str(path) in err
