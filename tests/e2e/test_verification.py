"""Real daemons of which some lie: no wrong result may reach the person who asked, and liars get no more work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.mesh import START_S_MAX, Daemon, Mesh, until

LIAR = str(Path(__file__).with_name("lying_daemon.py"))
NAMES = ("nova", "ada", "bob", "cyd", "dan", "eve", "liam", "lyra")
LIARS = ("liam", "lyra")


def start(mesh: Mesh, names: Sequence[str], liars: Sequence[str]) -> list[Daemon]:
    """Start daemons of one group whose members do not trust one another."""
    daemons = [mesh.add(name, P2PC_NODE__SLOTS="1") for name in names]
    for daemon in daemons:
        if daemon.name in liars:
            daemon.program = (LIAR,)
        daemon.spawn()
    for daemon in daemons:
        until(daemon._is_ready, START_S_MAX, f"{daemon.name} is up\n{daemon.log_end()}")
    token = mesh.token(daemons[0], uses=len(daemons) - 1, is_mine=False)
    for daemon in daemons[1:]:
        daemon.connection().request("POST", "/v1/join", {"token": token, "name": None})
    mesh.meet(daemons)
    return daemons


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    mesh = Mesh(tmp_path_factory.mktemp("mesh"))
    try:
        yield start(mesh, NAMES, LIARS)
    except BaseException:
        mesh.close(is_failing=True)
        raise
    mesh.close()


def test_no_wrong_result_is_accepted_though_two_of_eight_lie(mesh: list[Daemon], tmp_path: Path) -> None:
    nova = mesh[0]
    ran = nova.p2pc("run", "--range", "1..200", "-k", "echo", "{}", limit_s=120).check()
    assert ran.lines == [str(number) for number in range(1, 201)]
    banned = {
        name: nova.p2pc("trust", "show", name, "--json").check().json()["evidence"]["banned"] for name in NAMES[1:]
    }
    assert {name for name, why in banned.items() if why} == set(LIARS), banned
    assert "banned since" in nova.p2pc("trust", "show", "liam").check().out
    shown = [nova.p2pc("show", f"last/{index}").check().out for index in range(0, 200, 40)]
    assert all("\n  believed   " in text and "\n  waits" not in text for text in shown), shown
    assert nova.p2pc("show", "last/0", "--json").check().json()["belief"]["believed"] is True

    bundle = tmp_path / "job.bundle"
    nova.p2pc("result", "--bundle", str(bundle)).check()
    report = nova.p2pc("trust", "verify", str(bundle), "--json").check().json()
    assert report["accepted"] == report["tasks"] == 200
    assert {worker["id"]: worker for worker in report["workers"]} and not report["equivocations"]
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    refused = nova.p2pc("trust", "verify", str(bundle)).check(6)
    assert "proves nothing" in refused.err


def test_a_restart_of_the_owner_forgets_no_ban_and_accepts_no_lie(short_path: Path) -> None:
    mesh = Mesh(short_path)
    try:
        _restart(start(mesh, ("nova", "ada", "bob", *LIARS), LIARS)[0])
    except BaseException:
        mesh.close(is_failing=True)
        raise
    mesh.close()


def _restart(nova: Daemon) -> None:
    nova.p2pc("run", "--detach", "--name", "cut", "--range", "1..100", "sleep 0.05; echo {}").check()
    nova.wait_done(20, 60)
    nova.kill()
    nova.start()
    nova.wait_over(120)
    ran = nova.p2pc("result").check()
    assert sorted(map(int, ran.lines)) == list(range(1, 101))
    shown = [nova.p2pc("trust", "show", name, "--json").check().json()["evidence"] for name in LIARS]
    assert all(evidence["banned"] and evidence["events"] for evidence in shown)


def test_only_trusted_nodes_compute_what_asks_for_them(mesh: list[Daemon]) -> None:
    nova = mesh[0]
    nova.p2pc("run", "--trust", "trusted", "--range", "1..20", "echo", "{}").check()
    assert {task["node"] for task in nova.tasks()} == {"nova"}


def test_a_job_whose_results_nobody_could_check_is_refused(mesh: list[Daemon]) -> None:
    nova = mesh[0]
    refused = nova.p2pc("run", "--on", "ada", "echo", "{}", ":::", "1").check(6)
    assert "p2pc trust set ada trusted" in refused.err
    nova.p2pc("run", "--on", "ada", "--verify", "none", "echo", "{}", ":::", "1").check()


@pytest.mark.parametrize("retries", [1, 2])
def test_a_task_that_fails_is_tried_as_often_as_was_asked_for(short_path: Path, retries: int) -> None:
    """Of two nodes that are not believed alone and the owner's: "retried" counts what was begun again, no more."""
    mesh = Mesh(short_path)
    try:
        nova = start(mesh, ("nova", "ada", "bob"), ())[0]
        attempts = short_path / "attempts"
        for _ in range(3):
            attempts.write_text("")
            script = f"sleep 0.1; test {{}} != 3 || {{ echo $P2PC_NODE >>{attempts}; exit 1; }}"
            ran = nova.p2pc("run", "--retries", str(retries), script, ":::", *"1234").check(1)
            assert ran.err.splitlines()[-1].endswith(f" · 1 failed · {retries} retried"), ran.err
            job, began = nova.job(), attempts.read_text().splitlines()
            assert (job["done"], job["failed"], job["retried"]) == (3, 1, retries)
            assert len(began) == 1 + retries and began[-1] == "nova", began
    except BaseException:
        mesh.close(is_failing=True)
        raise
    mesh.close()
