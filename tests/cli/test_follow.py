"""The view of a job and signals.  If these fail, `timeout 60 p2pc run` does not end what it runs."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from p2pcompute.cli import follow
from p2pcompute.cli.follow import Signals, Source, Submission, View
from p2pcompute.cli.progress import Plain, Progress
from p2pcompute.errors import NodeUnavailable


class Silent:
    """A node that hears everything and does not answer: its store takes nothing."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, float | None]] = []
        self.over = threading.Event()

    def request(self, _method: str, path: str, _body: Any = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        self.heard.append((path.rsplit("/", 1)[1], timeout_s))
        raise NodeUnavailable("the node does not answer")

    def upload_lines(self, _path: str, lines: list[Any]) -> None:
        pass

    def stream_lines(self, _path: str) -> Iterator[tuple[str, Any]]:
        self.over.wait(5)
        yield from ()


class Quiet:
    live = None
    has_live_lines = False


def test_sigterm_kills_at_once_though_the_node_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "KILL_S_MAX", 0.0)
    node = Silent()
    source = Source(cast("Any", node), "j", iter([]))  # not started: there is more to send
    signals = Signals(is_terminated=True)
    view = View(
        cast("Any", node),
        "j",
        "j7k3",
        cast("Any", Quiet()),
        Plain(io.StringIO()),
        Progress("t"),
        signals,
        source=source,
    )
    outcome = view.follow()
    node.over.set()
    assert outcome.exit_code == 143
    assert [call for call, _ in node.heard] == ["seal", "cancel"], "no task comes after the end"
    assert all(limit_s is not None and limit_s <= 2.0 for _, limit_s in node.heard)


class Losing:
    """A node that makes a job and goes away before it has said so, the first time."""

    embedded = None

    def __init__(self) -> None:
        self.names: list[str] = []
        self.over = threading.Event()

    def request(self, _method: str, _path: str, body: Any = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        self.names.append(body["request"])
        if len(self.names) == 1:
            raise NodeUnavailable("the node went away")
        return {"id": "00", "alias": "j7k3"}


class Hanging(Losing):
    def request(self, _method: str, _path: str, _body: Any = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        self.over.wait(10)
        raise NodeUnavailable("the node went away")


def test_a_submission_is_repeated_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: the answer is lost, and the job with it; or there are two."""
    monkeypatch.setattr(follow, "RECONNECT_S", 0.01)
    node = Losing()
    submission = Submission(cast("Any", node), {"kind": "command"})
    assert submission.answer(Signals()) == {"id": "00", "alias": "j7k3"}
    first, second = node.names
    assert first == second and len(first) == 32


def test_a_signal_ends_the_wait_for_a_node_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: `timeout 60 p2pc run` goes on for a minute, and Ctrl-C does nothing."""
    monkeypatch.setattr(follow, "ASK_S_MAX", 0.05)
    node = Hanging()
    submission = Submission(cast("Any", node), {})
    assert submission.answer(Signals(is_terminated=True)) is None
    assert Submission(cast("Any", node), {}).answer(Signals(interrupts=1)) is None
    node.over.set()
