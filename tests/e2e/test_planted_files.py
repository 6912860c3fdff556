"""A real daemon that adds files to what its tasks bring back: none of them may be written where the submitter works."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.mesh import START_S_MAX, Mesh, until

PLANTING = str(Path(__file__).with_name("planting_daemon.py"))


def test_only_what_was_asked_for_is_written(mesh: Mesh, tmp_path: Path) -> None:
    """Also from a node that is trusted: a program that it plants here would run as the submitter."""
    (ada,) = mesh.start("ada")
    eve = mesh.add("eve", P2PC_NODE__SLOTS="1")
    eve.program = (PLANTING,)
    eve.spawn()
    until(eve._is_ready, START_S_MAX, f"eve is up\n{eve.log_end()}")
    mesh.join(ada, [eve])
    (tmp_path / "prog.sh").write_text("mine")
    fetching = ("run", "--on", "eve", "--verify", "none", "--fetch", "out-{}.txt", "--retries", "0")
    ran = ada.p2pc(*fetching, "echo x > out-{}.txt", ":::", "a", cwd=tmp_path)
    assert ran.code == 1 and "files that the task was not asked for" in ran.err, ran
    assert (tmp_path / "prog.sh").read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["prog.sh"]
    ran = ada.p2pc("run", "--on", "ada", "--fetch", "out-{}.txt", "echo x > out-{}.txt", ":::", "a", cwd=tmp_path)
    assert ran.check() and (tmp_path / "out-a.txt").read_text() == "x\n"
