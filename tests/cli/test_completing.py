"""Completion says nothing where it knows nothing: a traceback would be among what was typed."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from p2pcompute.cli.completing import complete_jobs, complete_nodes
from p2pcompute.socket_peer import connect


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the node's socket: short, as the system wants it."""
    with tempfile.TemporaryDirectory(prefix="p2pc-t") as folder:
        monkeypatch.setenv("P2PC_HOME", folder)
        monkeypatch.setenv("P2PC_SOCKET", f"{folder}/n.sock")
        yield Path(folder) / "n.sock"


@contextmanager
def node_that_says(path: Path, content: bytes) -> Iterator[None]:
    """A node that answers each of two questions so."""

    def answer() -> None:
        for _ in range(2):
            with listening.accept()[0] as link:
                link.recv(65536)
                link.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content))

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        yield
        answering.join(20)
        assert not answering.is_alive()


def names() -> tuple[list[Any], list[Any]]:
    nodes = complete_nodes(click.Context(click.Command("x")), click.Argument(["node"]), "")
    return [item.value for item in complete_jobs("")], [item.value for item in nodes]


def test_names_of_jobs_and_nodes(path: Path) -> None:
    item = {"alias": "j7k3", "name": "atlas", "state": "up", "short_id": "AAAA-BBBB"}
    with node_that_says(path, json.dumps({"items": [item]}).encode()):
        assert names() == (["j7k3", "last"], ["atlas"])


@pytest.mark.parametrize(
    "said", [{}, [], {"items": None}, {"items": [{}]}, {"items": [None]}, {"items": ["x"]}, {"items": 3}, "\0", None]
)
def test_nonsense_gives_no_names(said: Any, path: Path) -> None:
    with node_that_says(path, json.dumps(said).encode()):
        assert names() == ([], [])


def test_no_node_gives_no_names(path: Path) -> None:
    assert names() == ([], [])


def test_a_node_that_takes_no_connection_is_not_waited_for(path: Path) -> None:
    """Less than a second was for ever: the system takes 0 for that."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        with connect(str(path), 10.0):  # the queue holds one
            assert names() == ([], [])
