"""Whole nodes whose owners trust nobody: if it broke, members that lie would get wrong results accepted."""

from __future__ import annotations

import pytest

from p2pcompute.simulation.scenario import load_scenario, with_values
from p2pcompute.simulation.world import RunResult, run_mesh

SMALL = {"nodes": 12, "tasks": 150, "churn": 0.2, "hours": 0.1, "warm": "false", "workload.0.work_s": 2}


def run(seed: int, **values: object) -> RunResult:
    return run_mesh(with_values(load_scenario("liars"), {key: str(v) for key, v in {**SMALL, **values}.items()}), seed)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_wrong_result_is_accepted_while_nodes_come_and_go(seed: int) -> None:
    result = run(seed, colluding=2, wrong=1)
    assert result.problems == ()
    assert result.fired["hostile.colluding"] > 0 and result.metrics["tasks_done"] == 150
    assert result.metrics.get("wrong_accepted", 0) == 0


def test_without_checks_they_would_be() -> None:
    result = run(1, colluding=2, wrong=1, trust="trusted", **{"checks.wrong_values": "false"})
    assert result.metrics["wrong_accepted"] > 0
