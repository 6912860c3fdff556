"""Members that are removed from a group, on real daemons: at once, for all, and until a new invitation."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from p2pcompute.trust.group_file import load_group
from tests.e2e.mesh import Daemon, Mesh, until
from tests.e2e.namespaces import two_machines, why_not
from tests.e2e.test_words import invite


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    if reason := why_not():
        pytest.skip(reason)
    with two_machines("p2pc-out") as names:
        yield names


def members(mesh: Mesh, *names: str) -> list[Daemon]:
    """Start daemons; the first one founds a group of plain members."""
    daemons = [mesh.add(name, P2PC_NODE__SLOTS="2").start() for name in names]
    token = mesh.token(daemons[0], uses=len(names) - 1, is_mine=False)
    for other in daemons[1:]:
        other.connection().request("POST", "/v1/join", {"token": token, "name": None})
    mesh.meet(daemons)
    until(lambda: all(set(may(daemon)) == set(names) for daemon in daemons), 10, "all know all")
    return daemons


def may(daemon: Daemon) -> dict[str, list[str] | None]:
    """Name → roles of those that a daemon knows; None for who is no member."""
    return {item["name"]: item["roles"] for item in daemon.get("/v1/trust")["items"]}


def key_of(daemon: Daemon) -> bytes:
    group = load_group(daemon.places.data)
    assert group is not None
    return group.network_key


def notes(daemon: Daemon) -> str:
    return " ".join(daemon.get("/v1/status")["notes"])


def test_a_removed_member_is_cut_off_by_all_and_comes_back_by_invitation(mesh: Mesh) -> None:
    ada, bob, cat = members(mesh, "ada", "bob", "cat")
    running = bob.begin("run", "--verify", "none", "--on", "cat", "sleep 600; echo {}", ":::", "1")
    until(lambda: cat.get("/v1/status")["slots"]["busy"] == 1, 20, "bob's task runs at cat")
    assert ada.p2pc("group", "remove", "bob").code == 2, "it asks"
    done = ada.p2pc("group", "remove", "bob", "--reason", "was lent out", "-y").check()
    assert "no member any more" in done.out
    until(lambda: cat.get("/v1/status")["slots"]["busy"] == 0, 5, "cat has ended bob's task")
    until(lambda: "bob" not in ada.peers() and "bob" not in cat.peers(), 5, "both pass bob over")
    until(lambda: "was lent out" in notes(bob), 5, f"bob is told: {notes(bob)}")
    assert "removed from group home by the founder" in bob.p2pc("status").out
    assert may(cat)["bob"] is None and running.process.poll() is None
    assert [item["reason"] for item in cat.get("/v1/trust")["items"] if item["name"] == "bob"] == ["was lent out"]
    bob.p2pc("cancel", "last", "--now", "-y").check()
    for daemon in (cat, bob):
        daemon.restart()
    until(lambda: cat.ups() == ["ada"], 20, "cat is back")
    assert "was lent out" in notes(bob), "a restart forgets nothing"
    token = ada.p2pc("invite", "--token").check().out.strip()
    bob.p2pc("join", "--accept", "all", token).check()
    mesh.meet([ada, bob, cat])
    assert cat.p2pc("run", "--verify", "none", "--on", "bob", "echo $P2PC_NODE", ":::", "1").check().lines == ["bob 1"]


def test_who_was_away_learns_of_a_removal_when_he_comes_back(mesh: Mesh) -> None:
    ada, bob, cat = members(mesh, "ada", "bob", "cat")
    cat.stop()
    bob.stop()
    ada.p2pc("group", "remove", "bob", "-y").check()
    cat.start()
    until(lambda: cat.ups() == ["ada"], 20, "cat sees ada")
    until(lambda: may(cat).get("bob") is None and "bob" in may(cat), 5, "cat has learned it")
    until(lambda: key_of(ada) == key_of(cat), 10, "the network key was changed, and cat has got it")
    assert key_of(bob) != key_of(ada)
    bob.start()
    until(lambda: "removed from group" in notes(bob), 30, f"bob hears it from whom he knocks at: {notes(bob)}")
    assert bob.p2pc("run", "echo $P2PC_NODE", ":::", "1").check().lines == ["bob 1"], "alone it works"


def test_roles_are_looked_at_where_the_work_runs(mesh: Mesh) -> None:
    """A member without the role submit has its work refused, also when another member would pass it on."""
    ada, bob, cat = members(mesh, "ada", "bob", "cat")
    refused = bob.p2pc("trust", "set", "cat", "member", "--may", "work", "-y")
    assert refused.code == 6 and "may not change the group" in refused.err, refused.err
    ada.p2pc("trust", "set", "bob", "member", "--may", "work", "-y").check()
    until(lambda: may(cat)["bob"] == ["work"], 5, "cat knows")
    until(lambda: "may not have work done by others" in notes(bob), 5, "bob knows")
    ran = bob.p2pc(
        "run", "--verify", "none", "sleep 0.3; echo $P2PC_NODE", ":::", *map(str, range(8)), limit_s=60
    ).check()
    assert {line.split()[0] for line in ran.lines} == {"bob"}
    assert ada.p2pc("run", "--verify", "none", "--on", "bob", "echo $P2PC_NODE", ":::", "1").check().lines == ["bob 1"]
    ada.p2pc("trust", "set", "bob", "member", "--may", "submit", "--may", "work", "--may", "invite", "-y").check()
    until(lambda: may(cat)["bob"] == ["submit", "work", "invite"], 5, "bob has his roles again")
    ran = bob.p2pc("run", "--verify", "none", "--on", "cat", "echo $P2PC_NODE", ":::", "1", limit_s=60).check()
    assert ran.lines == ["cat 1"]


def test_invited_used_and_removed_between_two_machines(mesh: Mesh, machines: tuple[str, str]) -> None:
    """Ada invites by words, Bob runs her first task, works for her, is removed, and hears why; the code is spent."""
    ada, bob = (
        mesh.add(name, prefix=("ip", "netns", "exec", netns), P2PC_NODE__INTERFACES="lan0", P2PC_NODE__SLOTS="2")
        for name, netns in zip(("ada", "bob"), machines, strict=True)
    )
    for daemon in (ada, bob):
        daemon.start()
    command, code = invite(ada)
    joined = bob.p2pc("join", code, "--accept", "all").check()
    assert 'This computer is now "bob" in group home' in joined.out
    assert command.finish().code == 0
    mesh.meet([ada, bob])
    ran = ada.p2pc("run", "--verify", "none", "--on", "bob", "echo $P2PC_NODE", ":::", "1").check()
    assert ran.lines == ["bob 1"]
    working = ada.begin("run", "--verify", "none", "sleep 600; echo {}", ":::", "1", "2", "3", "4")
    until(lambda: bob.get("/v1/status")["slots"]["busy"] == 2, 20, "bob works for ada")
    ada.p2pc("group", "remove", "bob", "--reason", "sold", "-y").check()
    until(lambda: bob.get("/v1/status")["slots"]["busy"] == 0, 5, "bob works for her no more")
    until(lambda: not ada.peers(), 5, "ada passes bob over")
    told = bob.p2pc("status").check().out
    assert "this computer was removed from group home by the founder" in told and "sold" in told, told
    assert "a new invitation brings it back: p2pc join" in told
    spent = bob.p2pc("join", code, "--accept", "all")
    assert spent.code in (5, 6) and "invite" in spent.err, spent.err
    again, code = invite(ada)
    bob.p2pc("join", code, "--accept", "all").check()
    assert again.finish().code == 0
    mesh.meet([ada, bob])
    working.process.send_signal(signal.SIGINT)
    working.process.send_signal(signal.SIGINT)
