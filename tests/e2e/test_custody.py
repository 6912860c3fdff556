"""The machine that submitted a job goes away: others go on with it, show it, and hand it back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2pcompute.errors import UsageError
from p2pcompute.limits import LEASE_S_MIN
from tests.e2e.mesh import Daemon, Mesh, until
from tests.e2e.test_drill import check_results, words_of_drill

WAITS = r"ada, its owner, is away for \d+\.\d s; (\w+) takes over in \d+\.\d s"
TASKS = 700
"""About a minute for six slots."""

pytestmark = pytest.mark.drill


def custodians(mesh: Mesh, owner: Daemon, ref: str) -> list[Daemon]:
    by_name = {daemon.name: daemon for daemon in mesh.daemons}
    return [by_name[name] for name in owner.job(ref)["custodians"]]


def follows(keeper: Daemon, ref: str, done: int) -> bool:
    """Whether a custodian keeps the job, and knows that so many of its tasks are done."""
    try:
        return bool(keeper.job(ref)["done"] >= done)
    except UsageError:
        return False


def test_a_job_goes_on_without_its_owner_and_comes_back_to_it(mesh: Mesh, tmp_path: Path) -> None:
    ada, bob, _eve = mesh.start("ada", "bob", "eve")
    words = words_of_drill(tmp_path, TASKS)
    words[words.index("{2}")] = "0.4"
    started = ada.p2pc(words[0], "--detach", *words[1:], cwd=tmp_path).check(0)
    job = started.lines[0]
    assert "kept by this node, " in started.err
    first, second = custodians(mesh, ada, job)
    assert {first.name, second.name} == {"bob", "eve"}
    ada.wait_done(30, 30, job)
    until(lambda: follows(first, job, 20), 20, "a custodian follows")
    assert f"{job}" not in first.p2pc("jobs", "-a").check().out, "it is not its own"
    ada.kill()
    before = first.job(job)["done"]
    said = until(lambda: re.search(WAITS, second.p2pc("show", job).check().out), 20, "the second says who takes over")
    assert said[1] == first.name
    until(lambda: first.job(job)["claimed"] > 10, 2 * LEASE_S_MIN, "the first custodian takes over")
    assert f"its owner is away: {first.name} gives out its tasks" in second.p2pc("show", job).check().out
    shown = first.p2pc("show", job).check().out
    assert "ada, which submitted it" in shown and "for it to accept" in shown
    assert "only the node that submitted" in first.p2pc("cancel", "-y", job).err
    between = first.job(job)["done"]
    assert between > before
    ada.start()
    until(lambda: ada.job(job)["done"] >= between, 30, "what was done meanwhile is ada's")
    ended = ada.p2pc("wait", job, limit_s=120).check(0)
    assert f"{TASKS}/{TASKS}" in "".join(ended.err.split()), ended.err
    until(lambda: (bob.job(job)["done"], bob.job(job)["claimed"]) == (TASKS, 0), 20, "its verdicts are told")
    until((tmp_path / "out/summary.json").exists, 20, "results are written")
    times = check_results(ada, tmp_path, TASKS)
    assert times["1"] >= TASKS - 20, times


def test_files_go_along_while_the_owner_is_away(mesh: Mesh, tmp_path: Path) -> None:
    """Inputs come from the custodian then, and what tasks made waits there for the owner."""
    ada, bob, eve = mesh.start("ada", "bob", "eve")
    count = 160
    for index in range(count):
        (tmp_path / f"{index}.in").write_bytes(f"{index} ".encode() * 30_000)
    script = "sleep 1.5; tr 0-9 a-j <{} >{.}.out"
    words = ["run", "--detach", "--send", "{}", "--fetch", "{.}.out", "--results", "out", script, ":::"]
    job = ada.p2pc(*words, *[f"{index}.in" for index in range(count)], cwd=tmp_path).check(0).lines[0]
    ada.wait_done(40, 60, job)
    first = custodians(mesh, ada, job)[0]
    until(lambda: follows(first, job, 30), 20, "a custodian follows")
    ada.kill()
    before = first.job(job)["done"]
    until(lambda: first.job(job)["done"] >= before + 30, 2 * LEASE_S_MIN + 30, "work with files goes on")
    ada.start()
    ada.p2pc("wait", job, limit_s=120).check(0)
    until((tmp_path / "out/summary.json").exists, 20, "results are written")
    letters = bytes.maketrans(b"0123456789", b"abcdefghij")
    for index in range(count):
        expected = (tmp_path / f"{index}.in").read_bytes().translate(letters)
        assert (tmp_path / f"out/tasks/000/{index:06d}/files/{index}.out").read_bytes() == expected
    shown = {share["node"]: share["done"] for share in ada.job(job)["by_node"]}
    assert sum(shown.values()) == count and shown[bob.name] + shown[eve.name] > 30, shown


def test_another_node_looks_on_with_a_ticket(mesh: Mesh, tmp_path: Path) -> None:
    ada, bob, eve = mesh.start("ada", "bob", "eve")
    ada.p2pc("config", "set", "node.custodians", "1").check(0)
    ada.restart()
    Mesh.meet([ada, bob, eve])
    words = ["run", "--detach", "--range", "1..150", "sleep 0.5; echo got {}"]
    job = ada.p2pc(*words, cwd=tmp_path).check(0).lines[0]
    (keeper,) = custodians(mesh, ada, job)
    other = eve if keeper is bob else bob
    assert other.p2pc("show", job).code == 2
    assert other.p2pc("attach", "p2pc-job-AAAA").check(2).err.startswith("error[ticket]")
    ticket = ada.p2pc("show", "--ticket", job).check(0).lines[0]
    looked = other.p2pc("attach", ticket, limit_s=60).check(0)
    assert "150/150" in "".join(looked.err.split()), looked.err
    assert looked.lines, "what ends is shown"
    kept = keeper.p2pc("attach", ticket, limit_s=60).check(0)
    assert "150/150" in "".join(kept.err.split()), "who keeps it anyway looks on as well"
    printed = other.p2pc("logs", "--raw", job).check(0)
    assert sorted(printed.lines) == sorted(f"got {number}" for number in range(1, 151))
