"""Levels of trust on real daemons: who is blocked is cut off at once, and nothing of his runs."""

from __future__ import annotations

import subprocess
import sys

from tests.e2e.mesh import Daemon, Mesh, until
from tests.e2e.test_removal import may, members
from tests.e2e.test_words import invite


def levels(daemon: Daemon) -> dict[str, str]:
    items = daemon.p2pc("trust", "list", "--json").check().json()["items"]
    return {item["name"]: item["level"] for item in items}


def test_a_blocked_node_is_cut_off_and_comes_back(mesh: Mesh) -> None:
    """Within seconds neither has anything to do with the other; a restart changes nothing, `member` ends it."""
    ada, bob = members(mesh, "ada", "bob")
    assert levels(ada) == {"ada": "self", "bob": "member"}
    running = bob.begin("run", "--verify", "none", "--on", "ada", "sleep 600; echo {}", ":::", "1")
    until(lambda: ada.get("/v1/status")["slots"]["busy"] == 1, 20, "bob's task runs at ada")
    asked = ada.p2pc("trust", "set", "bob", "blocked")
    assert asked.code == 2 and "needs a yes" in asked.err and "cut off" in asked.err
    ada.p2pc("trust", "set", "bob", "blocked", "--reason", "too loud", "-y").check()
    until(lambda: ada.get("/v1/status")["slots"]["busy"] == 0, 5, "bob's task ended")
    until(lambda: not ada.peers(), 5, "ada passes bob over")
    until(lambda: "ada" not in bob.ups(), 10, "bob has lost ada")
    assert running.process.poll() is None
    ada.restart()
    assert levels(ada)["bob"] == "blocked"
    assert "too loud" in ada.p2pc("trust", "show", "bob").check().out
    ran = ada.p2pc("run", "--verify", "none", "echo $P2PC_NODE", ":::", *map(str, range(6))).check()
    assert {line.split()[0] for line in ran.lines} == {"ada"}
    bob.p2pc("cancel", "last", "--now", "-y").check()
    ada.p2pc("trust", "set", "bob", "member").check()
    until(lambda: ada.ups() == ["bob"], 30, "bob is back")
    assert ada.p2pc(
        "run", "--verify", "none", "--on", "bob", "echo $P2PC_NODE", ":::", "1", limit_s=30
    ).check().lines == ["bob 1"]


def test_a_computer_of_mine_is_trusted_by_both(mesh: Mesh) -> None:
    ada, bob = mesh.add("ada").start(), mesh.add("bob").start()
    command, code = invite(ada, "--mine")
    assert "trusted fully" in command.err
    joined = bob.p2pc("join", code, "--accept", "all").check()
    assert "trust each other fully" in joined.err, joined.err
    mesh.meet([ada, bob])
    assert levels(ada)["bob"] == levels(bob)["ada"] == "trusted"
    mine = {item["name"]: item["roles"] for item in ada.get("/v1/trust")["items"]}
    said = [one.p2pc("trust", "compare", other).check().out for one, other in ((ada, "bob"), (bob, "ada"))]
    assert said[0] == said[1] and len(said[0].split()) == 6
    assert mine["bob"] == mine["ada"] == ["submit", "work", "invite", "admin"]


def test_all_computers_of_mine_trust_each_other(mesh: Mesh) -> None:
    """Each was invited by one of them only, also by one that came later; what is said of one here counts more."""
    ada, bob, eve, kim = (mesh.add(name).start() for name in ("ada", "bob", "eve", "kim"))
    for inviter, joiner in ((ada, bob), (ada, eve), (eve, kim)):
        _, code = invite(inviter, "--mine")
        joiner.p2pc("join", code, "--accept", "all").check()
    mesh.meet([ada, bob, eve, kim])
    for one in (ada, bob, eve, kim):
        until(lambda one=one: sorted(levels(one).values()) == ["self", *["trusted"] * 3], 20, f"{one.name} trusts all")  # type: ignore[misc]
    assert "a computer of this owner, as" in bob.p2pc("trust", "show", "kim").check().out
    bob.p2pc("trust", "set", "kim", "member").check()
    for daemon in (bob, ada):
        daemon.restart()
    mesh.meet([ada, bob, eve, kim])
    _, code = invite(ada)
    zoe = mesh.add("zoe").start()
    zoe.p2pc("join", code, "--accept", "all").check()
    mesh.meet([ada, bob, eve, kim, zoe])
    assert levels(bob) == {"bob": "self", "ada": "trusted", "eve": "trusted", "kim": "member", "zoe": "member"}
    assert set(levels(zoe).values()) == {"self", "member"}


def test_a_worker_has_its_role_only(mesh: Mesh) -> None:
    ada, bob = mesh.add("ada").start(), mesh.add("bob").start()
    made = ada.p2pc("invite", "--token", "--role", "worker").check()
    bob.p2pc("join", "--accept", "all", made.out.strip()).check()
    mesh.meet([ada, bob])
    assert ada.p2pc("run", "--verify", "none", "--on", "bob", "echo $P2PC_NODE", ":::", "1").check().lines == ["bob 1"]
    refused = bob.p2pc("invite", "--token")
    assert refused.code == 6 and "may not admit" in refused.err, refused.err


PROGRAM = """
import sys, time
from p2pcompute import MeshExecutor

with MeshExecutor() as executor:
    print("ready", flush=True)
    sys.stdin.readline()
    time.sleep(2)
    print(sorted(node.name for node in executor.nodes), flush=True)
"""


def test_programs_go_by_the_levels_of_their_machine(mesh: Mesh) -> None:
    """Also by one that was set after they have started."""
    ada, _bob = members(mesh, "ada", "bob")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**ada.env, "P2PC_HOME": str(ada.home)},
        cwd=ada.home,
        text=True,
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        ada.p2pc("trust", "set", "bob", "blocked", "-y").check()
        program.stdin.write("\n")
        program.stdin.flush()
        assert "bob" not in program.stdout.readline()


def test_a_member_that_may_not_work_is_given_nothing_and_explain_says_so(mesh: Mesh) -> None:
    ada, bob = mesh.add("ada", P2PC_NODE__SLOTS="1").start(), mesh.add("bob").start()
    bob.p2pc(
        "join", "--accept", "all", ada.p2pc("invite", "--token", "--role", "submitter").check().out.strip()
    ).check()
    mesh.meet([ada, bob])
    ran = ada.p2pc("run", "--verify", "none", "sleep 0.2; echo $P2PC_NODE", ":::", *map(str, range(6))).check()
    assert {line.split()[0] for line in ran.lines} == {"ada"}
    assert "may not work in this group" in ada.p2pc("run", "--explain", "--on", "bob", "true").out


def test_trust_ends_with_a_removal_whoever_invites_again(mesh: Mesh) -> None:
    """Whoever stole a computer of mine needs but one careless member to be in the group again: it is nobody's own then.
    Bob learns of the removal and of the return at once; only ada's word brings the trust back, to bob too."""
    ada, bob, kim, eve = (mesh.add(name).start() for name in ("ada", "bob", "kim", "eve"))
    for joiner in (bob, kim):
        joiner.p2pc("join", "--accept", "all", mesh.token(ada)).check()
    eve.p2pc("join", "--accept", "all", mesh.token(ada, is_mine=False)).check()
    mesh.meet([ada, bob, kim, eve])
    until(lambda: levels(bob).get("kim") == "trusted", 20, "bob has heard that kim is his")
    bob.stop()
    ada.p2pc("group", "remove", "kim", "--reason", "stolen", "-y").check()
    shown = ada.p2pc("trust", "show", "kim", "--json").check().json()
    assert shown["level"] == "member" and shown["set"] is None and shown["reason"] == "stolen"
    assert "removed from the group: stolen" in ada.p2pc("trust", "show", "kim").check().out
    until(lambda: eve.get("/v1/trust")["items"] and may(eve)["kim"] is None, 10, "eve knows")
    kim.p2pc("leave", "-y").check()
    kim.p2pc("join", "--accept", "all", mesh.token(eve, is_mine=False)).check()
    mesh.meet([ada, kim, eve])
    assert levels(ada) == {"ada": "self", "bob": "trusted", "kim": "member", "eve": "member"}
    bob.start()
    mesh.meet([ada, bob, kim, eve])
    until(lambda: levels(bob).get("kim") == "member", 20, "bob trusts kim no longer")
    for daemon in (ada, bob):
        daemon.restart()
    mesh.meet([ada, bob, kim, eve])
    assert levels(ada)["kim"] == levels(bob)["kim"] == "member" and levels(bob)["ada"] == "trusted"
    kim.p2pc("leave", "-y").check()
    kim.p2pc("join", "--accept", "all", mesh.token(ada)).check()
    mesh.meet([ada, bob, kim, eve])
    until(lambda: levels(bob).get("kim") == "trusted", 20, "bob has heard that kim is his again")
    assert levels(ada)["kim"] == "trusted" and levels(kim)["bob"] == "trusted"


def test_who_was_said_to_be_a_member_is_one_though_it_is_mine_elsewhere(mesh: Mesh) -> None:
    ada, bob, kim = (mesh.add(name).start() for name in ("ada", "bob", "kim"))
    bob.p2pc("join", "--accept", "all", mesh.token(ada)).check()
    kim.p2pc("join", "--accept", "all", mesh.token(ada, is_mine=False)).check()
    mesh.meet([ada, bob, kim])
    ada.p2pc("trust", "set", "kim", "member", "-y").check()
    kim.p2pc("leave", "-y").check()
    kim.p2pc("join", "--accept", "all", mesh.token(bob)).check()
    mesh.meet([ada, bob, kim])
    until(lambda: levels(bob)["kim"] == levels(kim)["bob"] == "trusted", 20, "bob says that kim is his")
    until(lambda: levels(kim)["ada"] == "trusted", 20, "kim has heard of ada")
    ada.restart()
    mesh.meet([ada, bob, kim])
    assert levels(ada)["kim"] == "member"
