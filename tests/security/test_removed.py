"""A removed member that tries every way back but a new invitation."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.mesh import Mesh, until
from tests.security.test_joining import port_of
from tests.security.test_standing_ways import key_file


def test_only_a_new_invitation_brings_a_removed_member_back(mesh: Mesh, tmp_path: Path) -> None:
    """The one by which it came answers again whoever lost the answer, and one for many may still be open."""
    secret = key_file(tmp_path / "group.key")
    ada, bob = mesh.add("ada").start(f"admit.psk={secret}"), mesh.add("bob").start()
    token = ada.p2pc("invite", "--token", "--uses", "5").check().out.strip()
    bob.p2pc("join", token, "--accept", "all").check()
    mesh.meet([ada, bob])
    ada.p2pc("group", "remove", "bob", "-y").check()
    until(lambda: not ada.peers(), 10, "bob is cut off")
    bob.p2pc("leave", "-y")
    for words in ((token,), ("--psk", str(secret), "--via", f"127.0.0.1:{port_of(ada)}")):
        refused = bob.p2pc("join", *words, "--accept", "all")
        assert refused.code == 6 and "removed from the group" in refused.err, refused.err
        assert bob.get("/v1/status")["group"]["is_alone"]
    bob.p2pc("join", ada.p2pc("invite", "--token").check().out.strip(), "--accept", "all").check()
    mesh.meet([ada, bob])
