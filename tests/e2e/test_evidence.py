"""Who signs two results for one task is proven a liar to everybody, on real daemons, and by a file to anybody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.mesh import START_S_MAX, Daemon, Mesh, until

TWO_FACED = str(Path(__file__).with_name("two_faced_daemon.py"))


def evidence(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = daemon.p2pc("trust", "show", name, "--json").check().json()["evidence"]
    return found


def test_what_one_submitter_can_prove_the_others_believe(mesh: Mesh, tmp_path: Path) -> None:
    """Bob has never given the liar a task, cat was away; both have heard it, and neither believes hearsay."""
    ada, bob, cat, liam = (mesh.add(name, P2PC_NODE__SLOTS="1") for name in ("ada", "bob", "cat", "liam"))
    liam.program = (TWO_FACED,)
    for daemon in (ada, bob, cat, liam):
        daemon.spawn()
    for daemon in (ada, bob, cat, liam):
        until(daemon._is_ready, START_S_MAX, f"{daemon.name} is up\n{daemon.log_end()}")
    token = mesh.token(ada, uses=3, is_mine=False)
    for daemon in (bob, cat, liam):
        daemon.connection().request("POST", "/v1/join", {"token": token, "name": None})
    mesh.meet([ada, bob, cat, liam])
    cat.stop()
    ran = ada.p2pc("run", "--range", "1..40", "-k", "sleep 0.1; echo {}", limit_s=120).check()
    assert ran.lines == [str(number) for number in range(1, 41)]
    until(lambda: evidence(ada, "liam")["banned"], 20, "ada has found him out")
    until(lambda: evidence(bob, "liam")["banned"], 20, "bob has heard the proof")
    cat.start()
    until(lambda: "liam" in {item["name"] for item in cat.get("/v1/trust")["items"]}, 20, "cat knows liam")
    until(lambda: evidence(cat, "liam")["banned"], 30, "cat asks when she is back")
    bob.restart()
    assert evidence(bob, "liam")["banned"] and evidence(bob, "liam")["proof_b64"]
    assert not evidence(bob, "ada")["banned"]

    file = tmp_path / "liam.proof"
    bob.p2pc("trust", "show", "liam", "--proof", str(file)).check()
    shown = cat.p2pc("trust", "verify", str(file)).check().out
    assert "signed two different results" in shown
    none = bob.p2pc("trust", "show", "ada", "--proof", str(tmp_path / "none"))
    assert none.code == 2 and "no proof" in none.err and not (tmp_path / "none").exists()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "proves nothing" in cat.p2pc("trust", "verify", str(file)).check(6).err
