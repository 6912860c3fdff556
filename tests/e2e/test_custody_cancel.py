"""A job is cancelled while its owner's node is away, or just back: it has one end."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.limits import LEASE_S_MIN
from tests.e2e.mesh import Mesh, until
from tests.e2e.test_custody import custodians, follows

TASKS = 400
"""More than what six slots do in the test."""

pytestmark = pytest.mark.drill


def test_a_job_that_others_keep_is_cancelled_by_a_node_only_and_what_is_done_stays(mesh: Mesh, tmp_path: Path) -> None:
    ada, _bob, _eve = mesh.start("ada", "bob", "eve")
    words = ["run", "--detach", "sleep 0.5; echo {}", ":::", *map(str, range(TASKS))]
    job = ada.p2pc(*words, cwd=tmp_path).check(0).lines[0]
    ada.wait_done(80, 60, job)
    first = custodians(mesh, ada, job)[0]
    until(lambda: follows(first, job, 70), 20, "a custodian follows")
    names = ada.job(job)["custodians"]
    ada.kill()
    can_look = {"P2PC_NO_AUTOSTART": ""}
    for words in (["cancel", "-y", "--now", job], ["cancel", "-y", f"{job}/{TASKS - 1}"]):
        refused = ada.p2pc(*words, env=can_look)
        assert refused.code == 5, refused.err
        assert "was not cancelled" in refused.err and all(name in refused.err for name in names), refused.err
    shown = ada.p2pc("show", job, env=can_look).check()
    assert "no node runs here; as of " in shown.out and "cancelled" not in shown.out, shown.out
    assert all(name in shown.out for name in names), shown.out
    assert "no node runs here" in ada.p2pc("jobs", env=can_look).check().err
    until(lambda: first.job(job)["claimed"] > 10, 2 * LEASE_S_MIN, "the first custodian takes over")
    done = first.job(job)["done"]
    ada.start()
    ada.p2pc("cancel", "-y", "--now", job).check(0)
    ended = ada.wait_over(30, job)
    assert ended["done"] >= done, "what a custodian took before is not thrown away"
    assert ended["cancelled"] > 0 and ended["done"] + ended["cancelled"] == TASKS
