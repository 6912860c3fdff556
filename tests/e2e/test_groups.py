"""Several groups on one computer: each with a node of its own, all under one key."""

from __future__ import annotations

from typing import Any

from tests.e2e.mesh import Daemon, Mesh, Ran, until


def here(daemon: Daemon) -> dict[str, dict[str, Any]]:
    items = daemon.p2pc("group", "list", "--json").check().json()["items"]
    return {item["name"]: item for item in items}


def lab(daemon: Daemon, *words: str, **more: Any) -> Ran:
    return daemon.p2pc("-g", "lab", *words, **more)


def test_a_computer_is_in_two_groups_at_once(mesh: Mesh) -> None:
    """Ada's first group is hers and Bob's, her second is hers and Cat's; neither sees the other, nor its jobs."""
    ada, bob, cat = (mesh.add(name, P2PC_NODE__SLOTS="2", P2PC_NO_AUTOSTART="") for name in ("ada", "bob", "cat"))
    for daemon in (ada, bob, cat):
        daemon.start()
    bob.p2pc("join", "--accept", "all", ada.p2pc("invite", "--mine", "--token").check().out.strip()).check()
    mesh.meet([ada, bob])
    unknown = lab(ada, "status")
    assert unknown.code == 2 and "group create lab" in unknown.err, unknown.err
    ada.p2pc("group", "create", "lab").check()
    try:
        lab(ada, "node", "start").check()
        token = lab(ada, "invite", "--mine", "--token").check().out.strip()
        cat.p2pc("join", "--accept", "all", token).check()
        until(lambda: cat.ups() == ["ada"], 20, "cat sees ada")
        assert cat.get("/v1/status")["group"]["name"] == "lab" and ada.ups() == ["bob"]
        assert {name: (item["running"], item["members"]) for name, item in here(ada).items()} == {
            "home": (True, 2),
            "lab": (True, 2),
        }
        first, second = (ada.p2pc(*words, "status", "--json").check().json() for words in ((), ("-g", "lab")))
        assert first["node"]["id"] == second["node"]["id"], "one key"
        ran = lab(ada, "run", "--on", "cat", "echo $P2PC_NODE", ":::", "1").check()
        assert ran.lines == ["cat 1"]
        assert ada.p2pc("jobs", "--all", "--json").check().json()["items"] == []
        ada.p2pc("group", "use", "lab").check()
        assert len(ada.p2pc("jobs", "--all", "--json").check().json()["items"]) == 1
        assert here(ada)["lab"]["default"]
        left = ada.p2pc("leave", "-y").check()
        assert "left lab" in left.out and list(here(ada)) == ["home"]
        until(lambda: cat.ups() == [], 20, "ada has left cat's group")
        assert ada.p2pc("run", "--on", "bob", "echo $P2PC_NODE", ":::", "1").check().lines == ["bob 1"]
    finally:
        if "lab" in here(ada):
            lab(ada, "node", "stop", "--now")


def test_a_further_group_has_settings_of_its_own_and_another_name(mesh: Mesh) -> None:
    ada = mesh.add("ada")
    ada.p2pc("group", "create", "lab").check()
    assert ada.p2pc("group", "create", "lab").code == 2
    assert ada.p2pc("group", "create", "../x").code == 2
    ada.p2pc("config", "set", "node.labels", "shared").check()
    lab(ada, "config", "set", "node.weight", "3").check()
    assert lab(ada, "config", "get", "node.weight").check().out.strip() == "3"
    assert ada.p2pc("config", "get", "node.weight").check().out.strip() == "1"
    assert "shared" in lab(ada, "config", "get", "node.labels").check().out
    ada.p2pc("group", "rename", "lab", "club").check()
    assert list(here(ada)) == ["home", "club"]
    assert ada.p2pc("group", "rename", "home", "x").code == 2
    assert ada.p2pc("group", "use", "nowhere").code == 2


def test_nothing_is_left_behind(mesh: Mesh) -> None:
    ada = mesh.add("ada").start()
    ada.p2pc("run", "echo {}", ":::", "1").check()
    asked = ada.p2pc("leave", "--forget-keys")
    assert asked.code == 2 and "key" in asked.err
    ada.p2pc("leave", "--forget-keys", "-y").check()
    assert ada.process is not None
    assert ada.process.wait(10) == 0
    ada.process = None
    assert {path.name for path in ada.home.iterdir()} <= {"config.toml"}
