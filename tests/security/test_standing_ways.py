"""Joining without an invitation: by a pre-shared key, by an OpenSSH key, nearby at first sight.  Real daemons."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e.mesh import Daemon, Mesh
from tests.security.test_joining import port_of


def key_file(path: Path, text: str = "c2l4dGVlbiBieXRlcyBhdCBsZWFzdA==\n", mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def ssh_key(path: Path, *words: str) -> str:
    """Make an OpenSSH key; returns its public line."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path), *words], check=True)
    return path.with_suffix(".pub").read_text()


def is_alone(daemon: Daemon) -> bool:
    alone: bool = daemon.get("/v1/status")["group"]["is_alone"]
    return alone


def test_a_preshared_key_lets_in_who_has_it_and_nobody_else(mesh: Mesh, tmp_path: Path) -> None:
    secret = key_file(tmp_path / "group.key")
    other = key_file(tmp_path / "other.key", "another key of sixteen bytes or more")
    ada = mesh.add("ada").start(f"admit.psk={secret}")
    bob, eve = mesh.add("bob").start(), mesh.add("eve").start()
    refused = eve.p2pc("join", "--psk", str(other), "--accept", "all", "--via", f"127.0.0.1:{port_of(ada)}")
    assert refused.code == 6 and "not the pre-shared key" in refused.err and is_alone(eve), refused.err
    bob.p2pc("join", "--psk", str(secret), "--accept", "all").check()
    mesh.meet([ada, bob])
    ran = ada.p2pc("run", "--verify", "none", "--on", "bob", "echo $P2PC_NODE", ":::", "1").check()
    assert ran.lines == ["bob 1"]


def test_key_files_that_others_may_read_or_that_are_too_short_are_refused(mesh: Mesh, tmp_path: Path) -> None:
    bob = mesh.add("bob")
    wide = key_file(tmp_path / "wide.key", mode=0o644)
    joining, setting = ("join", "--psk", str(wide), "--accept", "all"), ("config", "set", "admit.psk", str(wide))
    for words, code in ((joining, 5), (setting, 2)):
        refused = bob.p2pc(*words)
        assert refused.code == code and f"chmod 600 {wide}" in refused.err, (words, refused.err)
        assert "whoever has its content can join the group" in refused.err
    elsewhere = bob.p2pc("config", "set", "admit.psk", "group.key")
    assert elsewhere.code == 2 and f"p2pc config set admit.psk {bob.home}/group.key" in elsewhere.err, elsewhere.err
    short = key_file(tmp_path / "short.key", "secret")
    refused = bob.p2pc("join", "--psk", str(short), "--accept", "all")
    assert refused.code == 2 and "16 to 1024" in refused.err and "openssl rand" in refused.err, refused.err
    assert not bob.p2pc("config", "get", "admit.psk").out.strip(), "nothing was changed"


def test_an_openssh_key_on_the_list_joins_and_is_asked_whom_it_trusts(mesh: Mesh, tmp_path: Path) -> None:
    own, strange = ssh_key(tmp_path / "own"), ssh_key(tmp_path / "strange")
    assert own != strange
    keys = key_file(tmp_path / "keys", f"# ours\n{own}", 0o644)
    ada = mesh.add("ada").start(f"admit.keys={keys}")
    bob, eve = mesh.add("bob").start(), mesh.add("eve").start()
    at = ("--via", f"127.0.0.1:{port_of(ada)}", "--accept", "all")
    unsure = bob.p2pc("join", "--ssh-key", str(tmp_path / "own"), *at)
    assert unsure.code == 2 and "never met before" in unsure.err and "--inviter" in unsure.err, unsure.err
    ada_id, bob_id = (daemon.get("/v1/status")["node"]["id"] for daemon in (ada, bob))
    wrong = bob.p2pc("join", "--ssh-key", str(tmp_path / "own"), "--inviter", bob_id, *at)
    assert wrong.code == 6 and is_alone(bob), wrong.err
    refused = eve.p2pc("join", "--ssh-key", str(tmp_path / "strange"), "--inviter", ada_id, *at)
    assert refused.code == 6 and "not on the other computer's list" in refused.err and "SHA256:" in refused.err
    assert is_alone(eve)
    bob.p2pc("join", "--ssh-key", str(tmp_path / "own"), "--inviter", ada_id, *at).check()
    mesh.meet([ada, bob])
    # Met before: nobody is asked again.  With another key, it is refused.
    bob.p2pc("leave", "--yes").check()
    bob.p2pc("join", "--ssh-key", str(tmp_path / "own"), *at).check()
    bob.p2pc("leave", "--yes").check()
    port = port_of(ada)
    ada.stop()
    mallory = mesh.add("mallory").start(f"admit.keys={keys}", f"node.port={port}")
    fooled = bob.p2pc("join", "--ssh-key", str(tmp_path / "own"), *at)
    assert fooled.code == 6 and "another key than before" in fooled.err and "known_nodes" in fooled.err, fooled.err
    mallory_id = mallory.get("/v1/status")["node"]["id"]
    fooled = bob.p2pc("join", "--ssh-key", str(tmp_path / "own"), "--inviter", mallory_id, *at)
    assert fooled.code == 6 and "another key than before" in fooled.err and is_alone(bob), fooled.err


def test_whoever_is_nearby_joins_at_first_sight(mesh: Mesh) -> None:
    ada = mesh.add("ada").start("admit.nearby=true")
    bob = mesh.add("bob").start()
    unsure = bob.p2pc("join", "--nearby", "--accept", "all")
    assert unsure.code == 2 and "never met before" in unsure.err, unsure.err
    bob.p2pc("join", "--nearby", "ada", "--inviter", ada.get("/v1/status")["node"]["id"], "--accept", "all").check()
    mesh.meet([ada, bob])
    # Somebody else who calls himself bob.
    twin = mesh.add("twin").start()
    fooled = twin.p2pc(
        "join", "--nearby", "--name", "bob", "--accept", "all", "--inviter", ada.get("/v1/status")["node"]["id"]
    )
    assert fooled.code == 6 and "another key than before" in fooled.err and is_alone(twin), fooled.err


def test_ways_that_are_closed(mesh: Mesh, tmp_path: Path) -> None:
    """A node admits in no way that its settings do not name, and says so while an invitation lets strangers ask."""
    ada, eve = mesh.add("ada").start(), mesh.add("eve").start()
    ada.p2pc("invite", "--no-wait").check()
    secret = key_file(tmp_path / "group.key")
    refused = eve.p2pc("join", "--psk", str(secret), "--accept", "all", "--via", f"127.0.0.1:{port_of(ada)}")
    assert refused.code == 6 and "lets nobody in that way" in refused.err and is_alone(eve), refused.err
