"""What real nodes say of themselves and find out about one another."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, running_mesh, until


@pytest.fixture(scope="module")
def three() -> Iterator[list[Daemon]]:
    """Three daemons of one group, each with a label; bob has an application that the others do not have."""
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    tools = path / "tools"
    tools.mkdir()
    (tools / "frobnicate").write_text("#!/bin/sh\n")
    (tools / "frobnicate").chmod(0o755)
    try:
        with running_mesh(path) as (mesh, daemons):
            for name, labels in (("ada", "zone=a"), ("bob", "zone=b,big"), ("cy", "zone=c")):
                daemons.append(mesh.add(name, P2PC_NODE__LABELS=labels, P2PC_NODE__SLOTS="2"))
            daemons[1].env["PATH"] = f"{tools}{os.pathsep}{daemons[1].env['PATH']}"
            daemons[2].env["PATH"] = f"{path / 'more'}{os.pathsep}{daemons[2].env['PATH']}"
            for daemon in daemons:
                daemon.start()
            mesh.join(daemons[0], daemons[1:])
            yield daemons
    finally:
        shutil.rmtree(path, ignore_errors=True)


def names(ran: dict[str, list[dict[str, str]]]) -> list[str]:
    return sorted(item["name"] for item in ran["items"])


def test_all_that_a_node_says_of_itself(three: list[Daemon]) -> None:
    """People cannot see what another machine has, or see what it had."""
    ada = three[0]
    text = ada.p2pc("peers", "bob").check().out
    assert "What it says of itself" in text and "label.zone" in text and "mem.total" in text and "did not" not in text
    [bob] = ada.p2pc("peers", "bob", "--json").check().json()["items"]
    assert bob["state"] == "up" and bob["trouble"] is None and bob["age_s"] < 5
    said = bob["attributes"]
    assert said["label.zone"]["value"] == "b" and said["tag"]["value"] == ["big"] and said["slots.total"]["value"] == 2
    assert said["id"]["value"] == bob["id"] and said["cpus"]["lifetime_s"] is None
    assert 0 <= said["load"]["age_s"] < 10 and said["load"]["accuracy"] == 0.01 and said["load"]["lifetime_s"] == 30
    [own] = ada.p2pc("peers", "ada", "--json").check().json()["items"]
    assert own["state"] == "self" and own["attributes"]["label.zone"]["value"] == "a"
    assert ada.p2pc("peers", "bab").check(2).err.count("did you mean")


def test_find(three: list[Daemon]) -> None:
    """Nodes that fit are not found, or the answer hides who was not asked."""
    ada = three[0]
    everybody = ada.p2pc("find", "cpus>=1", "--json").check().json()
    assert names(everybody) == ["ada", "bob", "cy"] and everybody["schema"] == "p2pc.find/1"
    assert (everybody["candidates"], everybody["answered"], everybody["silent"], everybody["unknown"]) == (3, 3, 0, 0)
    for expression in ("label.zone=b", "tag=big", "has=frobnicate", "'frobnicate' in node.has && mem.free > 1MiB"):
        assert names(ada.p2pc("find", expression, "--json").check().json()) == ["bob"], expression
    assert names(ada.p2pc("find", "label.zone!=b", "--json").check().json()) == ["ada", "cy"]
    nothing = ada.p2pc("find", "has=no-such-program").check(4)
    assert not nothing.out and "No node matches: 3 nodes known, 3 answered" in nothing.err
    unknown = ada.p2pc("find", "bandwidth>1", "--json").check(4).json()
    assert (unknown["answered"], unknown["unknown"]) == (0, 3)
    best = ada.p2pc("find", "cpus>=1", "--rank", "label.zone=c", "--max-answers", "1", "--json").check().json()
    assert names(best) == ["cy"] and best["items"][0]["rank"] == 1.0
    text = ada.p2pc("find", "tag=big").check()
    assert "bob" in text.out and "big" in text.out and "3 nodes known, 3 answered" in text.err
    wrong = ada.p2pc("find", "cpus>=").check(2)
    assert "column" in wrong.err
    assert ada.p2pc("find", "cpus>=1", "--max-time", "soon").check(2)


def test_when(three: list[Daemon]) -> None:
    """Who waits for a busy node is told of another one, never, or cannot give up."""
    ada, bob, _cy = three
    try:
        waiting = ada.begin("when", "slots.busy>=1 && label.zone=b", "--json")
        gone = ada.begin("when", "cpus>=1000000")
        early = ada.p2pc("when", "cpus>=1000000", "--timeout", "0.3s").check(7)
        assert "no node matched within 0.3s" in early.err
        assert waiting.process.poll() is None
        bob.p2pc("run", "--detach", "sleep {}", ":::", "60", "60", "60", "60", "60", "60").check()
        found = waiting.finish(20).check().json()
        assert found["name"] == "bob" and found["attributes"]["slots.busy"]["value"] >= 1
        gone.process.send_signal(signal.SIGINT)
        assert gone.finish(10).code == 130
        assert "column" in ada.p2pc("when", "cpus>=").check(2).err
    finally:
        bob.p2pc("cancel", "last", "--now", "-y")
        ada.close_commands()


def test_a_node_that_does_not_answer(three: list[Daemon]) -> None:
    """A question hangs with a machine that sleeps; or what it said earlier is taken for what it says now."""
    ada, bob, cy = three
    ada.p2pc("find", "label.zone!=x").check()
    try:
        cy.suspend()
        some = ada.p2pc("find", "cpus>=1", "--max-age", "0s", "--max-time", "1.5s", "--json").check().json()
        assert names(some) == ["ada", "bob"] and some["silent"] == 1 and not some["is_cut_off"]
        bob.suspend()
        none = ada.p2pc("find", "label.zone!=a", "--max-age", "0s", "--max-time", "1.5s")
        assert "No other node answered" in none.check().err and none.out.count("no answer") == 2
    finally:
        bob.resume()
        cy.resume()
    until(lambda: len(ada.p2pc("find", "cpus>=1", "--max-age", "0s", "--json").json()["items"]) == 3, 20, "all answer")


def test_without_a_node_nothing_is_started(short_path: Path) -> None:
    """A question starts a daemon that nobody stops."""
    with running_mesh(short_path) as (mesh, _none):
        alone = mesh.add("alone")
        alone.home.mkdir(parents=True, exist_ok=True)
        assert "no node is running here" in alone.p2pc("find", "cpus>=1").check(5).err
        assert alone.p2pc("when", "cpus>=1").code == 5
        assert not alone.processes()


def test_a_program_that_is_installed_later(three: list[Daemon]) -> None:
    """A node that gets what a job asks for has to wait for minutes before it gets any of it."""
    ada, bob, _cy = three
    tools = ada.home.parent / "tools"
    begun, gate = ada.home / "begun", ada.home / "gate"
    (tools / "late").write_text(f"#!/bin/sh\ntouch {begun}-$P2PC_NODE; while ! test -e {gate}; do sleep 0.05; done\n")
    (tools / "late").chmod(0o755)
    running = ada.begin("run", "--require", "has=late", "late", "{}", ":::", *map(str, range(8)))
    until(lambda: begun.with_name("begun-bob").exists() or None, 20, "bob, who has it, works")
    assert not begun.with_name("begun-cy").exists()
    (ada.home.parent / "more").mkdir()
    shutil.copy2(tools / "late", ada.home.parent / "more" / "late")
    until(lambda: begun.with_name("begun-cy").exists() or None, 60, "cy has it now, too, and works")
    gate.touch()
    assert {task["node"] for task in ada.tasks()} <= {"bob", "cy", None}
    running.finish().check()
    ada.close_commands()
    (tools / "late").unlink()
    gone = until(lambda: names(ada.p2pc("find", "has=late", "--json").check().json()) == ["cy"] or None, 60, "gone")
    assert gone and bob.ups() == ["ada", "cy"]
