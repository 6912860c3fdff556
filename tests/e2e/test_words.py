"""Joining by a few words: real daemons that find one another by multicast DNS on loopback."""

from __future__ import annotations

import re
import signal

from tests.e2e.mesh import Daemon, Mesh, Running, until


def invite(daemon: Daemon, *words: str) -> tuple[Running, str]:
    """Begin `p2pc invite`; returns the command and its code."""
    command = daemon.begin("invite", *words)
    until(lambda: b"p2pc join" in command.out, 20, "the code is shown")
    until(lambda: "Ctrl-C takes the code back" in command.err, 20, "it waits")
    found = re.search(r"p2pc join (\S+)", command.out.decode())
    assert found is not None
    return command, found[1]


def test_a_code_is_all_that_is_needed(mesh: Mesh) -> None:
    """The inviter waits and says who came; the code is good for one computer."""
    ada, bob, eve = mesh.add("ada").start(), mesh.add("bob").start(), mesh.add("eve").start()
    command, code = invite(ada)
    assert re.fullmatch(r"[0-9]+(-[a-z]+){3}", code)
    joined = bob.p2pc("join", code.upper(), "--accept", "all").check()
    assert 'This computer is now "bob" in group home' in joined.out and "Found ada" in joined.err
    told = command.finish()
    assert told.code == 0 and "bob joined: " in told.err
    mesh.meet([ada, bob])
    ran = ada.p2pc("run", "--verify", "none", "--on", "bob", "echo $P2PC_NODE", ":::", "1").check()
    assert ran.lines == ["bob 1"]
    late = eve.p2pc("join", f"{code}@127.0.0.1:{ada.get('/v1/status')['node']['port']}", "--accept", "all")
    assert late.code == 6 and "used" in late.err and "p2pc invite" in late.err, late.err
    assert eve.get("/v1/status")["group"]["is_alone"]


def test_wrong_words_are_counted_seen_and_burn_the_code(mesh: Mesh) -> None:
    ada, eve = mesh.add("ada").start(), mesh.add("eve").start()
    command, code = invite(ada)
    number = code.partition("-")[0]
    at = f"@127.0.0.1:{ada.get('/v1/status')['node']['port']}"
    wrong = f"{number}-yucatan-zulu-yucatan{at}"
    for left in ("2 more wrong tries", "1 more wrong try"):
        tried = eve.p2pc("join", wrong, "--accept", "all")
        assert tried.code == 6 and left in tried.err and "read the invitation again" in tried.err, tried.err
    burnt = eve.p2pc("join", wrong, "--accept", "all")
    assert burnt.code == 6 and "void" in burnt.err and "NEW" in burnt.err, burnt.err
    told = command.finish()
    assert told.code == 6 and told.err.count("a wrong try from 127.0.0.1") == 3 and "NEW one" in told.err, told.err
    right = eve.p2pc("join", code + at, "--accept", "all")
    assert right.code in (5, 6) and eve.get("/v1/status")["group"]["is_alone"], right.err


def test_ctrl_c_takes_the_code_back(mesh: Mesh) -> None:
    ada, bob = mesh.add("ada").start(), mesh.add("bob").start()
    command, code = invite(ada)
    command.process.send_signal(signal.SIGINT)
    assert command.finish().code == 130 and "taken back" in command.err
    late = bob.p2pc("join", f"{code}@127.0.0.1:{ada.get('/v1/status')['node']['port']}", "--accept", "all")
    assert late.code == 6 and "void" in late.err, late.err


def test_nobody_announces_that_number(mesh: Mesh) -> None:
    bob = mesh.add("bob").start()
    lost = bob.p2pc("join", "77-crossover-clockwork-tobacco", "--accept", "all")
    assert lost.code == 5 and "nobody on this network" in lost.err and "tried nothing" in lost.err, lost.err


def test_without_waiting_and_for_several(mesh: Mesh) -> None:
    ada, bob, cat = mesh.add("ada").start(), mesh.add("bob").start(), mesh.add("cat").start()
    made = ada.p2pc("invite", "--uses", "2", "--words", "5", "--json").check().json()
    assert made["schema"] == "p2pc.invite/1" and made["code"].count("-") == 5 and made["token"] is None
    for daemon in (bob, cat):
        daemon.p2pc("join", made["code"], "--accept", "all").check()
    mesh.meet([ada, bob, cat])
