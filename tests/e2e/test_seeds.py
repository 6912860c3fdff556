"""What a real daemon says of its seeds.  How nodes find each other by them: `test_bootstrap`."""

from __future__ import annotations

import json

from tests.e2e.mesh import Mesh, until
from tests.e2e.test_joining import free_port
from tests.name_server import NameServer


def test_status_says_which_seed_failed_and_why(mesh: Mesh) -> None:
    """If it broke: a lonely node does not say what is wrong with its settings."""
    ada, bob = mesh.start("ada", "bob")
    for daemon in (ada, bob):
        daemon.stop()
        daemon.env |= {"P2PC_NODE__PORT": str(free_port()), "P2PC_NODE__DISCOVER": "false"}
    with NameServer() as name_server:
        dead = free_port()
        name_server.name("dead.test", dead)
        name_server.name("others.test", dead, "127.0.0.1", '"v=p2pc1 group=00000000"')
        name_server.refused.add("_p2pcompute._udp.broken.test")
        seeds = ["gone.test", "broken.test", "others.test", "dead.test", f"127.0.0.1:{dead}"]
        unknown = f"{'x' * 64}:7"  # no host name can be that
        bob.start(f"node.seeds={','.join(seeds)}", f"node.dns={name_server.address}", f"node.peers={unknown}")
        seeds.append(unknown)  # what had no address at the start is looked up again
        until(lambda: bob.get("/v1/status")["seeds"][-1]["asked_s"], 30, "the last seed is asked")

        def notes() -> list[str]:
            found: list[str] = bob.get("/v1/status")["notes"]
            return found if len(found) == len(seeds) else []

        found = until(notes, 10, "a note for each seed")
        for note, seed, word in zip(
            found,
            seeds,
            ("no name", "SERVFAIL", "other groups", f"127.0.0.1:{dead}", "no node of this group", "no address"),
            strict=True,
        ):
            assert f"seed {seed}" in note and word in note, note
        text = bob.p2pc("status").check().out
        assert "6 things to look at" in text and "seed gone.test failed: there is no name" in text
        document = json.loads(bob.p2pc("status", "--json").check().out)
        assert [seed["seed"] for seed in document["seeds"]] == seeds
        assert "no name" in document["seeds"][0]["trouble"] and document["seeds"][3]["addresses"]
    ada.start(f"node.peers=127.0.0.1:{bob.env['P2PC_NODE__PORT']}")
    mesh.meet([ada, bob])
    assert bob.get("/v1/status")["notes"] == []
