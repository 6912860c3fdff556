"""The simulated runner: time, values, batches, kills, failures, deaths."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from p2pcompute.errors import LocalProtocolError
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload, encode_spec
from p2pcompute.host.runs import Outcome, OutcomeStatus, TaskRun
from p2pcompute.simulation.host import EPOCH_WALL, SimHost, Simulation
from p2pcompute.simulation.runner import RunnerModel, simulated_value

SPEC = encode_spec(JobSpec(kind=TaskKind.SIMULATED))
Log = list[tuple[float, int, Outcome]]


def task(index: int, work_s: float, *, spec: bytes = SPEC, payload: bytes | None = None) -> TaskRun:
    payload = encode_payload(TaskPayload(work_s=work_s)) if payload is None else payload
    return TaskRun(run_id=100 + index, job_id=bytes(32), spec=spec, index=index, payload=payload, attempt=1)


def run(host: SimHost, slot: int, runs: Sequence[TaskRun], log: Log) -> None:
    def on_outcomes(outcomes: Sequence[tuple[int, Outcome]]) -> None:
        log.extend((host.simulation.now, run_id, outcome) for run_id, outcome in outcomes)

    host.host.runner.run(slot, runs, on_outcomes)


def statuses(log: Log) -> list[tuple[int, str]]:
    return [(run_id - 100, str(outcome.status)) for _, run_id, outcome in log]


def test_a_slot_runs_its_batch_in_order_at_its_speed() -> None:
    """If it broke: makespans of simulated jobs mean nothing."""
    with Simulation(1) as simulation:
        host = simulation.add_host(runner=RunnerModel(slot_count=2, speed=2.0, overhead_s=0.0))
        log: Log = []

        async def main() -> None:
            await host.host.runner.start()
            run(host, 0, [task(0, 4), task(1, 2)], log)
            run(host, 1, [task(2, 1)], log)
            for slot in (0, 2, -1):
                with pytest.raises(LocalProtocolError):
                    run(host, slot, [task(3, 1)], log)
            await asyncio.sleep(10)

        simulation.run(main())
        assert [(at, run_id) for at, run_id, _ in log] == [(0.5, 102), (2.0, 100), (3.0, 101)]
        for _, run_id, outcome in log:
            assert outcome.status is OutcomeStatus.OK and outcome.exit_code == 0
            assert outcome.value == simulated_value(run_id - 100)
        assert (log[2][2].runtime_s, log[2][2].started_wall) == (1.0, EPOCH_WALL + 2.0)
        assert len({simulated_value(index) for index in range(1000)}) == 1000


def test_a_slot_is_free_when_its_last_outcome_is_reported() -> None:
    """If it broke: a node cannot start the next batch when it hears of the end of the last."""
    with Simulation(1) as simulation:
        host = simulation.add_host(runner=RunnerModel(slot_count=1, overhead_s=0.0))
        ended: list[float] = []

        def again(_: object) -> None:
            ended.append(simulation.now)
            if len(ended) < 5:
                host.host.runner.run(0, [task(len(ended), 1)], again)

        async def main() -> None:
            host.host.runner.run(0, [task(0, 1)], again)
            await asyncio.sleep(100)

        simulation.run(main())
        assert ended == [1, 2, 3, 4, 5]


def test_kill_reports_every_run_once() -> None:
    """If it broke: tasks that were cancelled stay "running" for ever, or come back twice."""
    with Simulation(1) as simulation:
        host = simulation.add_host(runner=RunnerModel(slot_count=3, overhead_s=0.0))
        log: Log = []

        async def main() -> None:
            run(host, 0, [task(0, 10), task(1, 10), task(2, 10)], log)
            run(host, 1, [task(3, 10), task(4, 10), task(5, 10)], log)
            run(host, 2, [task(6, 10)], log)
            await asyncio.sleep(1)
            host.host.runner.kill([100, 102, 104, 999])
            await asyncio.sleep(1)
            assert sorted(statuses(log)) == [
                (0, "killed"),
                (1, "not-run"),
                (2, "killed"),
                (4, "killed"),
                (5, "not-run"),
            ]
            await asyncio.sleep(10)
            assert sorted(statuses(log))[3:] == [(3, "ok"), (4, "killed"), (5, "not-run"), (6, "ok")]
            run(host, 0, [task(7, 10), task(8, 10)], log)
            del log[:]
            await host.host.runner.close()
            assert sorted(statuses(log)) == [(7, "killed"), (8, "killed")]
            with pytest.raises(LocalProtocolError):
                run(host, 0, [task(9, 1)], log)
            await host.host.runner.close()

        simulation.run(main())


def test_failures_deaths_and_timeouts() -> None:
    """If it broke: retries and the poison limit are never exercised, or at another rate than stated."""
    timed = encode_spec(JobSpec(kind=TaskKind.SIMULATED, timeout_s=2.0))
    with Simulation(1) as simulation:
        host = simulation.add_host(runner=RunnerModel(slot_count=1, failure=0.2, death=0.1))
        calm = simulation.add_host(runner=RunnerModel(slot_count=1))
        log: Log = []

        async def main() -> None:
            for index in range(2000):
                run(host, 0, [task(index, 0.1)], log)
                await asyncio.sleep(0.2)
            counts = Counter(outcome.status for _, _, outcome in log)
            assert abs(counts[OutcomeStatus.DIED] - 200) < 70 and abs(counts[OutcomeStatus.FAILED] - 360) < 90
            died = next(outcome for _, _, outcome in log if outcome.status is OutcomeStatus.DIED)
            assert (died.signal, died.cause) == (9, "signal") and died.runtime_s < 0.1
            del log[:]
            host.runner.model = RunnerModel(slot_count=1, death=1.0)
            run(host, 0, [task(0, 1), task(1, 1)], log)
            run(calm, 0, [task(2, 5, spec=timed), task(3, 1, spec=timed)], log)
            await asyncio.sleep(10)
            assert sorted(statuses(log)) == [(0, "died"), (1, "not-run"), (2, "timeout"), (3, "ok")]
            assert calm.host.runner.slot_count == 1

        simulation.run(main())


def test_what_cannot_be_simulated_is_refused() -> None:
    """If it broke: a hostile or real task crashes a simulated node."""
    with Simulation(1) as simulation:
        host = simulation.add_host()
        log: Log = []

        async def main() -> None:
            command = encode_spec(JobSpec(kind=TaskKind.COMMAND))
            bad = [task(0, 1, spec=command), task(1, 1, spec=b"junk"), task(2, 1, payload=b"\xff"), task(3, 0)]
            run(host, 0, bad, log)
            await asyncio.sleep(10)

        simulation.run(main())
        assert statuses(log) == [(0, "refused"), (1, "refused"), (2, "refused"), (3, "ok")]
        assert all(outcome.error for _, _, outcome in log[:3])


def test_a_crash_ends_runs_without_a_word() -> None:
    """If it broke: dead nodes report results."""
    with Simulation(1) as simulation:
        host = simulation.add_host()
        log: Log = []

        async def main() -> None:
            run(host, 0, [task(0, 5)], log)
            await asyncio.sleep(1)
            simulation.crash(host)
            await asyncio.sleep(1)
            simulation.restart(host)
            run(host, 0, [task(1, 5)], log)
            await asyncio.sleep(10)

        simulation.run(main())
        assert statuses(log) == [(1, "ok")]


def test_a_change_of_speed_counts_at_once() -> None:
    """If it broke: a task begun on a machine that was slow for a moment would run for hours after it."""
    with Simulation(1) as simulation:
        host = simulation.add_host(runner=RunnerModel(slot_count=1, speed=0.01, overhead_s=0.0))
        log: Log = []

        async def main() -> None:
            run(host, 0, [task(0, 10.0), task(1, 2.0)], log)
            await asyncio.sleep(100.0)  # one second of work
            host.set_runner(RunnerModel(slot_count=1, speed=1.0, overhead_s=0.0))
            await asyncio.sleep(20.0)

        simulation.run(main())
        assert [(round(at, 6), run_id) for at, run_id, _ in log] == [(109.0, 100), (111.0, 101)]
        assert round(host.tally.work_s, 6) == 12.0


def test_what_has_not_started_can_be_taken_back() -> None:
    """If it broke: tasks that went elsewhere run here too, or the slot never ends its batch."""
    with Simulation(1) as simulation:
        host = simulation.add_host(runner=RunnerModel(slot_count=1, overhead_s=0.0))
        log: Log = []

        async def main() -> None:
            run(host, 0, [task(0, 10), task(1, 1), task(2, 1), task(3, 1)], log)
            await asyncio.sleep(1)
            assert host.host.runner.recall([100, 101, 103, 999]) == [101, 103]
            await asyncio.sleep(20)
            assert statuses(log) == [(0, "ok"), (2, "ok")]
            run(host, 0, [task(4, 1)], log)
            await asyncio.sleep(2)
            assert len(log) == 3

        simulation.run(main())
