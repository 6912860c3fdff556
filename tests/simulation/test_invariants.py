"""The oracle's own means; what it catches is in `test_mutants`."""

from __future__ import annotations

import pytest

from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.simulation import invariants_always
from p2pcompute.simulation.invariants import ALWAYS, AT_START, CALM, EVENTUALLY
from p2pcompute.simulation.mesh_run import MeshRun
from p2pcompute.simulation.mesh_settings import CHECKS, CheckSettings, MeshSettings
from p2pcompute.simulation.oracle import Lasting
from p2pcompute.simulation.population import PopulationSettings
from p2pcompute.simulation.storage import SimDisk
from p2pcompute.store.journal import FACTS, JOBS
from p2pcompute.wire import cbor
from tests.simulation.trial import Trial, run_trial

JOB = bytes(32)


def test_names_are_distinct_and_described() -> None:
    assert len(set(CHECKS)) == len(CHECKS)
    assert set(CHECKS) == {*ALWAYS, *CALM, *AT_START, *EVENTUALLY}, "`checks.off` knows what there is"
    for table in (ALWAYS, CALM, EVENTUALLY):
        assert all(check.__doc__ for check in table.values())


def test_a_condition_must_last_to_be_told_and_is_told_once() -> None:
    lasting = Lasting()
    told = [lasting.over(now, ["it"], 5.0) for now in (0.0, 4.0, 6.0, 7.0, 20.0)]
    assert told == [[], [], ["it"], [], []]
    assert lasting.over(21.0, [], 5.0) == []
    assert lasting.over(22.0, ["it"], 5.0) == [] and lasting.over(30.0, ["it"], 5.0) == ["it"], "it began anew"


def _disk(*facts: tuple[FactKind, list[object]]) -> SimDisk:
    disk = SimDisk()
    disk.table(JOBS).put(JOB, b"")
    for number, (kind, body) in enumerate(facts):
        payload = cbor.encode({"job": JOB, "kind": int(kind), "body": body})
        disk.table(FACTS).put(JOB + number.to_bytes(8, "big"), cbor.encode([b"", {}, payload, b""]))
    return disk


def test_the_oracle_folds_facts_by_its_own_rule() -> None:
    disk = _disk(
        (FactKind.TASKS, [0, [b"", b"", b""]]),
        (FactKind.FAIL, [[0, 0, "why"], [1, 0, "why"]]),
        (FactKind.ACCEPT, [[0, 0, b""]]),
        (FactKind.CANCEL, [[0, 0]]),
        (FactKind.RETRY, [[1, 1]]),
        (FactKind.TASKS, [3, [b""], 2]),
    )
    (books,) = invariants_always.durable_books(disk).values()
    assert books == {0: (0, TaskState.DONE), 1: (1, TaskState.OPEN), 2: (0, TaskState.OPEN), 3: (2, TaskState.OPEN)}


def test_a_large_mesh_is_looked_into_in_turn() -> None:
    settings = MeshSettings(
        nodes=7, hours=0.001, lan=True, checks=CheckSettings(nodes_max=3), population=PopulationSettings(cores=1)
    )
    world = MeshRun(settings, 1)
    seen: list[str] = []

    async def main() -> None:
        for number in range(7):
            await world.start(number)
        for _ in range(3):
            seen.extend(member.host.name for member in world.checks.sampled())
            world.checks.always()

    with world.simulation:
        world.simulation.run(main())
    assert len(seen) == 9 and len(set(seen)) == 7
    assert world.problems == []


def test_an_invariant_can_be_left_out_and_is_reported_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALWAYS, "books", lambda checks: ["broken"])
    trial = Trial(nodes=2, is_calm=True, works=(0.1,), job_count=1)
    assert len(run_trial(trial, 1).problems) == 3
    assert run_trial(Trial(nodes=2, is_calm=True, works=(0.1,), job_count=1, off=("books",)), 1).problems == []


def test_a_check_that_fails_itself_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALWAYS, "books", lambda checks: [str(1 // 0)])
    problems = run_trial(Trial(nodes=2, is_calm=True, works=(0.1,), job_count=1), 1).problems
    assert "books: ZeroDivisionError on looking" in problems[0]


def test_mutable_parts_of_two_nodes_are_theirs_alone() -> None:
    world = MeshRun(MeshSettings(nodes=2, hours=0.001, lan=True, population=PopulationSettings(cores=1)), 1)
    parts: list[set[int]] = []

    async def main() -> None:
        for number in range(2):
            await world.start(number)
        parts.extend({id(part) for part in invariants_always._mutable_parts(one.running)} for one in world.up())

    with world.simulation:
        world.simulation.run(main())
    first, second = parts
    assert not first & second and len(first) > 100, "tables, books, buckets and counters were found"
