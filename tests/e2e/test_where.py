"""Where jobs run: what people ask of nodes, on two real ones, and what they hear when none has it."""

from __future__ import annotations

from tests.e2e.mesh import Daemon


def nodes_of(daemon: Daemon, *words: str) -> set[str]:
    ran = daemon.p2pc("run", *words, "echo $P2PC_NODE {}", ":::", "1", "2", "3", "4").check()
    assert len(ran.lines) == 4
    return {line.split()[0] for line in ran.lines}


def test_jobs_run_where_people_say(pair: list[Daemon]) -> None:
    """A requirement that is not enforced runs a task where its program is missing."""
    ada, bob = pair
    assert nodes_of(ada, "--require", f"name={bob.name}") == {bob.name}
    assert nodes_of(ada, "--require", f"has=sh && !(name={bob.name})") == {ada.name}
    assert nodes_of(ada, "--on", bob.name) == {bob.name}
    assert nodes_of(ada, "--not-on", bob.name, "--mem", "64M", "--disk", "1M") == {ada.name}
    short = ada.p2pc("peers", "--json").json()["items"][1]["short_id"]
    assert nodes_of(ada, "--on", short.lower()) == {bob.name}


def test_preferred_node_goes_first(pair: list[Daemon]) -> None:
    ada, bob = pair
    for name in (bob.name, ada.name):
        ran = ada.p2pc("run", "--prefer", f"name={name}", "echo $P2PC_NODE {}", ":::", "1", "2").check()
        assert {line.split()[0] for line in ran.lines} == {name}


def test_what_cannot_run_is_explained(pair: list[Daemon]) -> None:
    ada, bob = pair
    words = ["--require", "has=no-such-tool", "--require", f"name={bob.name}", "--cpus", "4096", "true", ":::", "1"]
    shown = ada.p2pc("run", "--explain", *words).check(4)
    assert "0 of 2 nodes can take it now." in shown.out
    assert f"  {bob.name} " in shown.out and f"  {ada.name} (this) " in shown.out
    assert "needs has=no-such-tool; not installed there" in shown.out
    refused = ada.p2pc("run", *words).check(4)
    assert "error[no-node-fits]: no node can ever run this" in refused.err and "drop has=no-such-tool" in refused.err
    assert not [job for job in ada.p2pc("jobs", "--all", "--json").json()["items"] if job["state"] == "waiting"]

    refused = ada.p2pc("run", "--network", "full", "--not-on", ada.name, "true", ":::", "1").check(4)
    assert "it gives tasks of others no network" in refused.err, refused.err
    document = ada.p2pc("run", "--explain", "--json", *words).check(4).json()
    flags = document["would_help"][0]["flags"]
    assert ada.p2pc("run", *flags, "echo $P2PC_NODE", ":::", "1").check().lines == [f"{bob.name} 1"]


def test_bad_expressions_point_at_the_place(pair: list[Daemon]) -> None:
    refused = pair[0].p2pc("run", "--require", "has=sh && cpus > > 2", "true", ":::", "1").check(2)
    why = refused.err.splitlines()[1:4]
    assert why == [
        "  why:  column 18 of this expression:",
        "        has=sh && cpus > > 2",
        "                         ^",
    ]
    refused = pair[0].p2pc("run", "--on", "nowhere", "true", ":::", "1").check(2)
    assert "there is no node 'nowhere'" in refused.err


def test_a_job_that_waits_is_explained(pair: list[Daemon]) -> None:
    ada, bob = pair
    alias = ada.p2pc("run", "--detach", "--require", "load<0", "true", ":::", "1", "2").check().lines[0]
    ran = ada.p2pc("explain").check()
    assert ran.lines[0].startswith(f"{alias} has waited ")
    assert "0 of 2 nodes can take it now, 2 can later." in ran.out and "needs load<0, is " in ran.out
    assert "What would help" in ran.out and "--require 'load<" in ran.out
    one = ada.p2pc("explain", f"{alias}/1", "--node", bob.name, "--json").check().json()
    assert [node["name"] for node in one["nodes"]] == [bob.name] and one["task"]["index"] == 1
    ada.p2pc("cancel", "-y", alias, "--now").check()
    assert f"{alias} is over: cancelled." in ada.p2pc("explain", alias).check().out
