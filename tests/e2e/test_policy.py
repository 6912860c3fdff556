"""What a group lets its members run, and who goes on with it when its founder is gone, on real daemons."""

from __future__ import annotations

import pytest

from tests.e2e.mesh import Daemon, Mesh, until
from tests.e2e.test_removal import may, members


def accept(daemon: Daemon) -> str | None:
    found: str | None = daemon.get("/v1/policy")["accept"]
    return found


def test_the_policy_of_a_group_holds_at_the_node_that_is_to_run_a_job(mesh: Mesh) -> None:
    """Bob's program may say what it likes: cat looks herself, and goes on looking after a restart."""
    ada, bob, cat = members(mesh, "ada", "bob", "cat")
    refused = bob.p2pc("group", "policy", "accept=job.cpus<1")
    assert refused.code == 6 and "may not change the group" in refused.err, refused.err
    nonsense = ada.p2pc("group", "policy", "accept=job.cpu<1")
    assert nonsense.code == 2 and "job.cpus" in nonsense.err, nonsense.err
    shown = ada.p2pc("group", "policy", 'accept=job.name!="secret"').check().out
    assert 'job.name!="secret"' in shown and "set by ada" in shown
    until(lambda: accept(cat) == 'job.name!="secret"', 5, "cat has heard it")
    runs = ("run", "--verify", "none", "--on", "cat")
    assert bob.p2pc(*runs, "echo $P2PC_NODE", ":::", "1").check().lines == ["cat 1"]
    refused = bob.p2pc(*runs, "--name", "secret", "true {}", ":::", "1")
    assert refused.code == 4 and "the group takes only jobs with job.name" in refused.err, refused.err
    ada.p2pc("group", "policy", "accept=").check()
    until(lambda: accept(bob) is None and accept(cat) is None, 5, "nothing holds any more")
    waiting = bob.begin(*runs, "--name", "secret", "sleep 1; echo $P2PC_NODE", ":::", *map(str, range(12)))
    until(lambda: (job := bob.job())["name"] == "secret" and job["done"] >= 1, 30, "it runs at cat")
    ada.p2pc("group", "policy", 'accept=job.name!="secret"').check()
    until(lambda: cat.get("/v1/status")["slots"]["busy"] == 0, 30, "cat takes no more of it")
    until(lambda: "only jobs with" in bob.p2pc("explain", "last").out, 30, "it waits, and says why")
    cat.restart()
    mesh.meet([ada, bob, cat])
    assert cat.get("/v1/policy")["set_by"] == ["ada"], "a restart forgets nothing"
    assert waiting.process.poll() is None and cat.get("/v1/status")["slots"]["busy"] == 0
    assert cat.p2pc("run", "--name", "secret", "--local", "echo $P2PC_NODE", ":::", "1").check().lines == ["cat 1"]
    ada.p2pc("group", "policy", "accept=").check()
    assert waiting.finish(90).code == 0


def test_a_node_takes_what_both_it_and_its_group_accept(mesh: Mesh) -> None:
    ada, bob = (mesh.add("ada").start(), mesh.add("bob", P2PC_NODE__ACCEPT_IF='job.name!="b"').start())
    mesh.join(ada, [bob])
    mesh.meet([ada, bob])
    ada.p2pc("group", "policy", 'accept=job.name!="a"').check()
    until(lambda: accept(bob) is not None, 5, "bob has heard it")
    for name in ("a", "b"):
        ran = ada.p2pc("run", "--on", "bob", "--name", name, "true {}", ":::", "1")
        assert ran.code == 4, ran.err
    assert ada.p2pc("run", "--on", "bob", "--name", "c", "echo $P2PC_NODE", ":::", "1").check().lines == ["bob 1"]
    shown = bob.p2pc("group", "policy").check()
    assert 'job.name!="a"' in shown.out and 'job.name!="b"' in shown.err


def test_what_the_owner_of_a_machine_says_ends_what_runs_there(mesh: Mesh) -> None:
    """Breaks when a machine goes on for hours with what its owner has just forbidden."""
    ada, bob = members(mesh, "ada", "bob")
    for number, setting in enumerate(('accept_if=job.name!="job-0"', "accept=none")):
        command = ("run", "--verify", "none", "--name", f"job-{number}", "--prefer", "node.name=='bob'")
        job = ada.begin(*command, "[ $P2PC_NODE = ada ] && sleep 3 || sleep 600", ":::", *"123456")
        until(lambda: bob.get("/v1/status")["slots"]["busy"] > 0, 30, "it runs at bob")
        said = {"P2PC_NODE__ACCEPT": "none"} if setting == "accept=none" else {}
        ran = bob.p2pc("node", "set", setting, env=said).check()
        assert "next start" not in ran.err, ran.err
        assert bob.get("/v1/policy")["own_accept"] == ("false" if said else 'job.name!="job-0"')
        until(lambda: bob.get("/v1/status")["slots"]["busy"] == 0, 20, "bob has ended it")
        assert job.finish(60).code == 0, "elsewhere"
    assert "next start" in bob.p2pc("node", "set", "accept=sandboxed").check().err
    assert bob.p2pc("node", "set", "accept_if=job.nme==1").code == 2


@pytest.mark.parametrize("is_heir", [True, False])
def test_an_heir_removes_administrators_when_the_founder_is_gone(mesh: Mesh, is_heir: bool) -> None:
    ada, bob, cat = members(mesh, "ada", "bob", "cat")
    roles = [word for role in ("submit", "work", "invite", "admin") for word in ("--may", role)]
    ada.p2pc("trust", "set", "cat", "member", *roles, "-y").check()
    if is_heir:
        assert ada.p2pc("group", "heir", "bob").code == 2, "it asks"
        ada.p2pc("group", "heir", "bob", "-y").check()
    else:
        ada.p2pc("trust", "set", "bob", "member", *roles, "-y").check()
    until(lambda: all("admin" in (may(one)[two] or ()) for one in (bob, cat) for two in ("bob", "cat")), 10, "told")
    ada.kill()
    tried = cat.p2pc("group", "remove", "bob", "-y")
    assert tried.code == 6 and "heirs" in tried.err, tried.err
    removed = bob.p2pc("group", "remove", "cat", "-y")
    assert (removed.code == 0) is is_heir, removed.err
    if is_heir:
        until(lambda: "cat" not in bob.peers(), 10, "cat is cut off")
        bob.restart()
        assert may(bob)["cat"] is None and "admin" in (may(bob)["bob"] or ())


def test_a_condition_on_what_no_job_has_is_refused_wherever_it_is_set(mesh: Mesh) -> None:
    """One with `job.submiter` would be false, or unknown, of every job: the node would take nothing and not say why."""
    ada = mesh.add("ada").start()
    wrong = 'job.cpus<9 && job.submiter=="x"'
    said = ("no node could have job.submiter", "column 15 of this expression:", "did you mean job.submitter?")
    for words in (
        ("config", "set", "node.accept_if", wrong),
        ("node", "set", f"accept_if={wrong}"),
        ("group", "policy", f"accept={wrong}"),
    ):
        refused = ada.p2pc(*words).check(2)
        assert all(text in refused.err for text in said), (words, refused.err)
    assert ada.p2pc("config", "get", "node.accept_if").check().out.strip() in ("", "–")
    policy = ada.get("/v1/policy")
    assert policy["accept"] is None and policy["own_accept"] is None
    ada.stop()
    ada.expected_errors.append("the node did not start: node.accept_if")
    refused = ada.p2pc("node", "start", env={"P2PC_NODE__ACCEPT_IF": wrong}).check(2)
    assert all(text in refused.err for text in said), refused.err
