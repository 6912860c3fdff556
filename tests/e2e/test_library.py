"""The library between real daemons: files, digits, calls that outlive their program, on nodes that are not trusted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh import Daemon, Mesh, until
from tests.sandboxes import need_sandbox

HEAD = """
import json, os, sys, time
from pathlib import Path
import p2pcompute
from p2pcompute import MeshExecutor, TaskOptions
def count(path):
    Path("lines.txt").write_text(str(len(Path(path).read_text().splitlines())))
    return os.getcwd()
def nearly(n):
    return [n / 3 + len(os.environ["P2PC_NODE"]) * 1e-12, {"n": n}]
def slowly(n):
    time.sleep(1)
    return n * n
"""


@pytest.fixture(scope="module")
def members() -> Iterator[list[Daemon]]:
    """ada, and two members that she does not trust."""
    need_sandbox()
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    path.chmod(0o755)
    mesh = Mesh(path)
    try:
        daemons = [
            mesh.add(name, P2PC_NODE__SLOTS="2", P2PC_NODE__ACCEPT="sandboxed") for name in ("ada", "bob", "carola")
        ]
        for daemon in daemons:
            daemon.start()
        for daemon in daemons[1:]:
            daemon.p2pc("join", "--accept", "sandboxed", mesh.token(daemons[0], is_mine=False)).check()
        mesh.meet(daemons)
        yield daemons
    except BaseException:
        mesh.close(is_failing=True)
        raise
    else:
        mesh.close()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(ada: Daemon, text: str) -> Any:
    """What a program prints, as JSON."""
    script = ada.home / "program.py"
    script.write_text(HEAD + text)
    ran = subprocess.run(
        [sys.executable, str(script)],
        env=ada.env,
        cwd=ada.home,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_files_reach_a_sandbox_and_come_back(members: list[Daemon]) -> None:
    """Broken: a function on another computer finds no file, or what it writes stays there."""
    ada = members[0]
    (ada.home / "data").mkdir()
    (ada.home / "data" / "a.txt").write_text("one\ntwo\n")
    found = run(
        ada,
        """
options = TaskOptions(on=["bob"], send=["{}"], fetch=["lines.txt"], verify="none")
with MeshExecutor("home", max_workers=0, options=options) as ex:
    future = ex.submit(count, "data/a.txt")
    place = future.result(60)
    print(json.dumps([place, future.info.node, Path(future.files["lines.txt"]).read_text()]))
""",
    )
    assert found[0].startswith("/p2pc/") and found[1:] == ["bob", "2"]


def test_results_that_nearly_agree(members: list[Daemon]) -> None:
    """Broken: machines whose last digits differ are taken for liars, or the digits are not rounded."""
    found = run(
        members[0],
        """
options = TaskOptions(on=["bob", "carola"], replicas=2, equal=6)
with MeshExecutor(max_workers=0, options=options) as ex:
    print(json.dumps([ex.submit(nearly, n).result(60) for n in (1, 2)]))
""",
    )
    assert found == [[0.333333, {"n": 1}], [0.666667, {"n": 2}]]


def test_calls_outlive_their_program(members: list[Daemon]) -> None:
    """Broken: calls that were handed in for other nodes end with the program, or cannot be had afterwards."""
    ada = members[0]
    job_id = run(
        ada,
        """
with MeshExecutor(detach=True, results="kept", options=TaskOptions(on=["bob"], verify="none")) as ex:
    job = ex.start_map(slowly, range(5), name="squares")
print(json.dumps(job.id))
""",
    )
    job = ada.job(job_id)
    assert job["name"] == "squares" and job["total"] == 5 and job["done"] < 5
    ada.wait_over(60, job_id)
    until((ada.home / "kept" / "summary.json").exists, 20, "the results are written")
    found = run(
        ada,
        """
with MeshExecutor(results="kept", resume=True, max_workers=0) as ex:
    again = ex.start_map(slowly, reversed(range(5)))
    print(json.dumps([p2pcompute.get_job("last").results(), list(again), [f.info.node for f in again.futures]]))
""",
    )
    assert found == [[0, 1, 4, 9, 16], [16, 9, 4, 1, 0], ["bob"] * 5]


def test_commands_that_are_shut_in_at_home(members: list[Daemon]) -> None:
    """Broken: what the submitter does not trust runs with the submitter's rights."""
    ada = members[0]
    (ada.home / "secret").write_text("secret")
    ran = ada.p2pc(
        "run", "--on", "ada", "--sandbox", "sandbox", f"pwd; cat {ada.home}/secret; true #{{}}", ":::", "1"
    ).check()
    assert ran.out.startswith("/p2pc/") and "secret\n" not in ran.out
