"""What people see of attributes and of the answers of many nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pcompute.cli import find_commands
from p2pcompute.cli.find_commands import attributes_table, size_text, value_text
from p2pcompute.cli.main import run_command


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (2**33, "8 GiB"),
        (2**33 + 2**32, "12 GiB"),
        (2**50 * 2000, "2000 PiB"),
    ],
)
def test_sizes_are_as_expressions_take_them(size: int, text: str) -> None:
    """People copy "8.6 GB" into an expression that counts in powers of 1,024."""
    assert size_text(size) == text


def test_values() -> None:
    assert value_text("cpus", 2.0) == "2" and value_text("load", 0.125) == "0.12"
    assert value_text("mem.free", 2**30) == "1 GiB" and value_text("slots.total", 2**30) == str(2**30)
    assert value_text("bandwidth", 29133223.7) == "27.8 MiB/s"
    assert value_text("battery", True) == "yes" and value_text("has", ["a", "b"]) == "a, b"
    assert value_text("gpu.count", None) == "–", "unknown is not 0"


def test_a_peers_words_cannot_write_on_the_terminal() -> None:
    """A plugin of a hostile node clears the screen, or fakes lines."""
    said = {"value": "x\x1b[2J\nfake", "age_s": 1.0, "lifetime_s": None, "accuracy": None}
    shown = attributes_table({"site.rack": said})
    assert "\x1b" not in shown and len(shown.splitlines()) == 2


def item(name: str, **more: Any) -> dict[str, Any]:
    attributes = {"cpus": {"value": 4.0, "age_s": 0.1, "lifetime_s": None, "accuracy": None}}
    return {
        "name": name, "id": "K7QD", "short_id": "K7QD-3MZF", "state": "up", "path": "direct 4 ms", "rank": None,
        "age_s": 0.5, "is_silent": False, "attributes": attributes, **more,
    }  # fmt: skip


class Node:
    """Answers as a daemon would."""

    def __init__(self, document: dict[str, Any], events: list[tuple[str, Any]]) -> None:
        self.document = document
        self.events = events
        self.paths: list[str] = []

    def request(self, _method: str, path: str) -> dict[str, Any]:
        self.paths.append(path)
        return self.document

    def stream_events(self, path: str) -> list[tuple[str, Any]]:
        self.paths.append(path)
        return self.events


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    counts = {"candidates": 5, "answered": 2, "unknown": 1, "silent": 1, "too_old": 1, "not_asked": 0}
    found = Node(
        {"schema": "p2pc.find/1", "items": [item("atlas")], "names": ["cpus", "gpu.count"], "oldest_s": 0.5,
         "took_s": 0.25, "is_cut_off": False, "asked": 2, "unheard": [], **counts}, [],
    )  # fmt: skip
    monkeypatch.setattr(find_commands, "open_connection", lambda **_: found)
    return found


def test_the_answer_says_how_far_it_goes(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """People take nodes that could not be asked for nodes that do not fit."""
    assert run_command(["find", "cpus>=4", "--max-age", "30s", "--max-time", "20s", "--max-answers", "3"]) == 0
    shown = capsys.readouterr()
    assert "atlas" in shown.out and "direct 4 ms" in shown.out and "gpu.count" in shown.out and "RANK" not in shown.out
    assert shown.err.strip() == (
        "5 nodes known, 2 answered, 1 did not answer, 1 cannot say, "
        "1 of a version that does not know the question, in 0.2 s; the oldest answer is 0.5 s old"
    )
    assert node.paths == ["/v1/find?expr=cpus%3E%3D4&max_answers=3&max_time_s=20.0&max_age_s=30.0"]
    assert run_command(["find", "cpus>=4", "--max-time", "31s"]) == 2
    assert "wait: p2pc when 'cpus>=4'" in capsys.readouterr().err
    assert run_command(["find", "cpus>=4", "--max-cost", "0"]) == 0
    assert node.paths[-1].endswith("&max_asked=0")
    capsys.readouterr()
    node.document["items"] = [item("atlas", is_silent=True, rank=1.5)]
    node.document["is_cut_off"] = True
    assert run_command(["find", "cpus>=4", "--rank", "cpus"]) == 0
    shown = capsys.readouterr()
    assert "no answer" in shown.out and "1.5" in shown.out and "No other node answered" in shown.err
    node.document["items"] = [item("atlas", is_silent=True, state="not seen")]
    assert run_command(["find", "cpus>=4"]) == 4, "scripts would go on with a node that has gone"
    shown = capsys.readouterr()
    assert "not seen" in shown.out and "No node that is up matches." in shown.err
    node.document["items"] = []
    assert run_command(["find", "cpus>=4", "-q"]) == 4
    assert "No node matches" in capsys.readouterr().err
    node.document["unheard"] = [{"name": "ram", "near": "mem.total"}, {"name": "foo", "near": None}]
    assert run_command(["find", "ram>=4"]) == 4
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "note: no node that answers has ram; did you mean mem.total?",
        "note: no node that answers has foo",
    ]
    assert run_command(["find", "cpus>=4", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["items"] == []


def test_when_ends_as_it_is_told(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts go on as if a node were there."""
    node.events = [("found", {**item("atlas"), "names": ["cpus"]})]
    assert run_command(["when", "cpus>=4"]) == 0
    assert "atlas" in capsys.readouterr().out
    assert run_command(["when", "cpus>=4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "p2pc.when/1"
    node.events = [("unheard", {"items": [{"name": "ram", "near": "mem.total"}]}), ("timeout", {})]
    assert run_command(["when", "ram>=4", "--timeout", "5s"]) == 7
    assert "did you mean mem.total?" in capsys.readouterr().err
    node.events = [("timeout", {})]
    assert run_command(["when", "cpus>=4", "--timeout", "5s"]) == 7
    assert "no node matched within 5s" in capsys.readouterr().err
    assert node.paths[-1] == "/v1/when?expr=cpus%3E%3D4&timeout_s=5.0"
    node.events = []
    assert run_command(["when", "cpus>=4"]) == 5
    assert run_command(["when", "cpus>=4", "--timeout", "soon"]) == 2


@pytest.mark.parametrize("words", [["find", ""], ["find", "os=linux", "--rank", " "], ["when", ""]])
def test_an_empty_expression_is_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As from an unset variable: it is not missing, and ranks nothing."""
    assert run_command(words) == 2
    assert "an expression is empty" in capsys.readouterr().err
