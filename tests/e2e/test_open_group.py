"""A group that is open to everybody, on real daemons: who comes in is a stranger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh, until
from tests.e2e.test_removal import may
from tests.e2e.test_wasm import ECHO

wasmtime = pytest.importorskip("wasmtime", reason="runs with wasmtime, which dev.py test installs")


def come_in(stranger: Daemon, member: Daemon, accept: str = "sandboxed") -> None:
    at = ("--via", f"127.0.0.1:{member.get('/v1/status')['node']['port']}")
    who = ("--inviter", member.get("/v1/status")["node"]["id"])
    stranger.p2pc("join", "--open", *at, *who, "--accept", accept, limit_s=120).check()


def levels(daemon: Daemon) -> dict[str, str]:
    return {item["name"]: item["level"] for item in daemon.get("/v1/trust")["items"]}


def test_who_is_alone_opens_its_group_to_everybody(mesh: Mesh) -> None:
    ada, eve = mesh.add("ada").start(), mesh.add("eve").start()
    ada.p2pc("group", "policy", "open=true", "puzzle=0").check()
    until(lambda: not ada.get("/v1/status")["group"]["is_alone"], 10, "ada listens")
    come_in(eve, ada, "all")
    mesh.meet([ada, eve], 40)
    assert levels(ada)["eve"] == "stranger"


def test_strangers_come_in_and_may_little(mesh: Mesh, tmp_path: Path) -> None:
    module = tmp_path / "echo.wasm"
    module.write_bytes(wasmtime.wat2wasm(ECHO))
    ada, bob, eve = (
        mesh.add(name, P2PC_NODE__ACCEPT="sandboxed", P2PC_NODE__SLOTS="2") for name in ("ada", "bob", "eve")
    )
    for daemon in (ada, bob, eve):
        daemon.start()
    mesh.join(ada, [bob])
    mesh.meet([ada, bob])
    at = ("--via", f"127.0.0.1:{ada.get('/v1/status')['node']['port']}")
    who = ("--inviter", ada.get("/v1/status")["node"]["id"])
    closed = eve.p2pc("join", "--open", *at, *who, "--accept", "sandboxed")
    assert closed.code != 0, "the door is shut"
    shown = ada.p2pc("group", "policy", "open=true", "puzzle=8").check().out
    assert "open    true" in shown and "puzzle  8" in shown, shown
    until(lambda: bob.get("/v1/policy")["open"], 10, "bob has heard it")
    mesh.meet([ada, bob], 40)
    come_in(eve, ada)
    mesh.meet([ada, bob, eve], 40)
    until(
        lambda: levels(bob).get("eve") == "stranger" and levels(ada).get("eve") == "stranger", 20, "she is a stranger"
    )
    assert may(bob)["eve"] == ["submit", "work"] and levels(eve)["ada"] == "member"
    assert all(eve.peers().get(name) == "up" for name in ("ada", "bob")), "nothing begins anew once she is in"
    # Her programs run nowhere, her modules do; she invites nobody.
    words = ("run", "--detach", "--verify", "none", "--on", "bob", "echo $P2PC_NODE", ":::", "1")
    until(lambda: eve.p2pc(*words).code == 0, 20, "the others are there again: their group has just been opened")
    until(lambda: "WASM modules of strangers" in eve.p2pc("explain", "last").out, 30, "it waits, and says why")
    ran = eve.p2pc("run", "--verify", "none", "--on", "bob", str(module), ":::", "hello", limit_s=60).check()
    assert "hello" in ran.out
    assert eve.p2pc("invite", "--no-wait").code == 6
    # She is given what may be done by anybody, and nothing else.
    refused = ada.p2pc("run", "--verify", "none", "--on", "eve", "echo $P2PC_NODE", ":::", "1", limit_s=60)
    assert refused.code == 4 and "a stranger" in refused.err, f"by default strangers get no work: {refused.err}"
    anybody = ("run", "--trust", "any", "--verify", "none", "--on", "eve")
    assert ada.p2pc(*anybody, "echo $P2PC_NODE", ":::", "1", limit_s=60).check().lines == ["eve 1"]
    # The door is shut again, and who came in by it is out until somebody invites him.
    shut = ada.p2pc("group", "policy", "open=false").check()
    assert "strangers are out" in shut.err.lower(), shut.err
    until(lambda: not any(one.peers().get("eve") == "up" for one in (ada, bob)), 20, "she is cut off")
    until(lambda: "open no longer" in eve.p2pc("status").out, 30, "and knows why")
    late = mesh.add("late").start()
    assert late.p2pc("join", "--open", *at, *who, "--accept", "sandboxed").code != 0
