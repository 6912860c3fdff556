"""What people do with a group: plans are what was asked for, and playing them copes with whatever happens."""

from __future__ import annotations

import asyncio
import gzip
import math
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import UsageError
from p2pcompute.ids import dht_id
from p2pcompute.simulation.mesh_run import MeshRun
from p2pcompute.simulation.mesh_settings import MeshSettings
from p2pcompute.simulation.playing import Capacity, Directory, account, median_rtt_s, play
from p2pcompute.simulation.population import PopulationSettings
from p2pcompute.simulation.swf import LoggedJob, read_swf
from p2pcompute.simulation.workloads import Graph, JobPlan, Kind, WorkloadSettings, Works, graph, plan

HOUR_S = 3600.0


def rng_of(*what: object) -> random.Random:
    return random.Random(":".join(map(str, what)))


def settings_of(**fields: object) -> WorkloadSettings:
    return msgspec.convert(fields, WorkloadSettings)


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(get_args(Kind)) - {"swf"}))
def test_a_plan_is_the_same_for_the_same_seed_and_in_order_of_time(kind: str) -> None:
    chosen = settings_of(kind=kind)
    one, again, other = (plan(chosen, rng_of(seed), duration_s=100) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    times = [*(job.at_s for job in one.jobs), *(ask.at_s for ask in one.asks)]
    assert times
    assert times == sorted(times)
    assert all(chosen.start_s <= at_s < 100 for at_s in times)


@pytest.mark.parametrize("works", get_args(Works))
def test_works_have_the_mean_that_was_asked_for(works: str) -> None:
    extra = {"work_alpha": 3.0} if works == "pareto" else {}
    job = plan(settings_of(works=works, work_s=2.0, tasks=20_000, **extra), rng_of(works), duration_s=100).jobs[0]
    assert len(job.works) == 20_000
    assert min(job.works) >= 0
    assert job.work_s / 20_000 == pytest.approx(2.0, rel=0.04)
    assert job.critical_s == max(job.works)


def test_bimodal_works_are_short_or_long() -> None:
    job = plan(settings_of(works="bimodal", long_share=0.2, long_factor=50.0, tasks=5000), rng_of(1), duration_s=100)
    works = sorted(dict.fromkeys(job.jobs[0].works))
    assert len(works) == 2
    assert works[1] / works[0] == pytest.approx(50)
    assert job.jobs[0].works.count(works[1]) / 5000 == pytest.approx(0.2, abs=0.03)


def test_jobs_arrive_at_once_or_as_a_poisson_stream_and_in_turn() -> None:
    at_once = plan(settings_of(jobs=6, owners=3), rng_of(1), duration_s=100).jobs
    assert [job.at_s for job in at_once] == [10.0] * 6
    assert [job.owner for job in at_once[:3]] == [job.owner for job in at_once[3:]]
    assert [int(job.owner * 3) for job in at_once[:3]] == [0, 1, 2], (
        "three owners in a group of three are three members"
    )
    stream = plan(settings_of(jobs=100_000, jobs_per_hour=60.0, tasks=1), rng_of(1), duration_s=20 * HOUR_S).jobs
    assert len(stream) == pytest.approx(1200, rel=0.1)


def test_asks_have_their_rate_and_keys() -> None:
    asks = plan(settings_of(kind="lookups", rate_per_s=3.0, known_share=0.25), rng_of(1), duration_s=1010).asks
    assert len(asks) == pytest.approx(3000, rel=0.1)
    assert sum(not ask.key for ask in asks) / len(asks) == pytest.approx(0.25, abs=0.03)
    puts = plan(settings_of(kind="puts", reads=3), rng_of(1), duration_s=100).asks
    assert all(len(ask.reads) == 3 and [*ask.reads] == sorted(ask.reads) for ask in puts)


@settings(max_examples=80)
@given(
    shape=st.sampled_from(get_args(Graph)), tasks=st.integers(1, 60), width=st.integers(1, 7), fan_in=st.integers(2, 5)
)
def test_graphs_wait_only_for_what_comes_before(shape: str, tasks: int, width: int, fan_in: int) -> None:
    chosen = settings_of(kind="dataflow", graph=shape, tasks=tasks, width=width, fan_in=fan_in)
    needs = graph(chosen, rng_of(tasks, width))
    assert len(needs) == tasks
    for number, some in enumerate(needs):
        assert list(some) == sorted(set(some))
        assert all(0 <= need < number for need in some)
    if shape == "tree":
        taken = [need for some in needs for need in some]
        assert sorted(taken) == list(range(tasks - 1)), "every result is used once, the last is the result"
        assert max(map(len, needs)) <= fan_in
    if shape == "chain":
        assert all(needs[number] == (number - 1,) for number in range(1, tasks))
    if shape == "layered":
        assert all(bool(some) == (number >= width) for number, some in enumerate(needs))


def test_the_critical_path_is_the_longest() -> None:
    assert JobPlan(0, 0, (1.0, 2.0, 4.0)).critical_s == 4
    diamond = JobPlan(0, 0, (1.0, 2.0, 4.0, 8.0), ((), (0,), (0,), (1, 2)))
    assert diamond.critical_s == 13
    assert diamond.work_s == 15


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "bag", "rate_per_s": 2.0}, "rate_per_s"),
        ({"kind": "lookups", "tasks": 7}, "tasks"),
        ({"kind": "bag", "work_sigma": 2.0}, "work_sigma"),
        ({"kind": "bag", "fan_in": 3}, "fan_in"),
        ({"kind": "swf"}, "file"),
        ({"kind": "swf", "file": "x", "jobs_per_hour": 3.0}, "jobs_per_hour"),
        ({"kind": "bag", "jobs": 1000, "tasks": 100_000}, "more than"),
        ({"kind": "dataflow", "graph": "tree", "fan_in": 1}, "fan_in"),
        ({"kind": "mapreduce"}, "mapreduce"),
        ({"work_s": 0.0}, "work_s"),
        ({"work_s": 1e300}, "work_s"),
        ({"kind": "swf", "file": "x", "work_scale": 1e300}, "work_scale"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(wrong, WorkloadSettings)


def test_too_many_asks_are_refused() -> None:
    with pytest.raises(UsageError, match="too many"):
        plan(settings_of(kind="lookups", rate_per_s=100_000.0), rng_of(1), duration_s=1000)


# --- logs of real machines ------------------------------------------------------------------------


def line(
    number: int, submit: object, run: object, processors: object, *, requested: object = -1, user: object = 3
) -> str:
    return f"{number} {submit} 5 {run} {processors} -1 -1 {requested} 3600 -1 1 {user} 1 1 1 -1 -1 -1\n"


LOG = (
    "; Version: 2.2\n;\n"
    + line(1, 100, 60, 4)
    + line(2, 160, -1, 4)
    + line(3, 160, 30.5, -1, requested=2, user=4)
    + line(4, 400, 10, -1)
    + line(5, 5000, 20, 1)
)


@pytest.mark.parametrize("name", ["log.swf", "log.swf.gz"])
def test_a_log_becomes_jobs(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LOG.encode()) if name.endswith("gz") else LOG.encode())
    log = read_swf(str(path))
    assert log.left_out == 2
    assert log.jobs == (
        LoggedJob(100, 60, 4, 3),
        LoggedJob(160, 30.5, 2, 4),
        LoggedJob(5000, 20, 1, 3),
    )
    chosen = settings_of(
        kind="swf", file=str(path), time_scale=0.5, work_scale=0.1, processors_max=3, retries=1, start_s=2.0
    )
    jobs = plan(chosen, rng_of(1), duration_s=1000).jobs
    assert [(job.at_s, job.works, job.retries) for job in jobs] == [
        (2.0, (6.0,) * 3, 1),
        (32.0, (pytest.approx(3.05),) * 2, 1),
    ]
    assert jobs[0].owner != jobs[1].owner
    all_jobs = plan(chosen, rng_of(1), duration_s=10_000).jobs
    assert all_jobs[2].owner == all_jobs[0].owner, "a user submits at one machine"
    first = plan(msgspec.structs.replace(chosen, jobs=1), rng_of(1), duration_s=1000)
    assert len(first.jobs) == 1 and "1 of 5 jobs submitted; 2 never ran, 2 beyond the first 1" in first.note
    assert "2 of 5 jobs submitted; 2 never ran, 1 come later" in plan(chosen, rng_of(1), duration_s=1000).note


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LOG + "6 1 2\n", "line 8: 3 fields"),
        (LOG + line(6, 6000, "x", 1), "line 8"),
        (
            LOG + line(6, 6000, "nan", 1),
            r"line 8: field 4 \(run time, s\) cannot be nan \(it is a number from 0 to 315360000",
        ),
        (LOG + line(6, 6000, -7, 1), "line 8: field 4"),
        (LOG + line(6, 6000, "1e300", 1), r"line 8: field 4 \(run time, s\) cannot be 1e300"),
        (LOG + line(6, "1e300", 10, 1), r"line 8: field 2 .* from 0 to 10000000000, or -1"),
        (LOG + line(6, 6000, 10, "1e18"), r"line 8: field 5 .* whole number from 0 to 100000000, or -1"),
        (LOG + line(6, 6000, 10, -1, requested="9" * 400), "line 8: field 8"),
        (LOG + line(6, 6000, 10, 1, user="inf"), "line 8: field 12"),
        (LOG + line("1e300", 6000, 10, 1), "line 8: field 1 "),
        (LOG + line(6, -1, 10, 1), "line 8: no submit time"),
        (LOG + line(6, 6000, 10, 1.5), "line 8: field 5"),
        (LOG + line(6, 4999, 10, 1), "line 8: submitted at 4999, before"),
        (LOG + "\x00\x01 \x7fELF\n", "line 8: it is no plain text: a byte is 0x00"),
        ("; nothing\n", "no job that ran"),
    ],
)
def test_a_broken_log_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.swf"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        plan(settings_of(kind="swf", file=str(path)), rng_of(1), duration_s=1000)


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read \(No such file"):
        read_swf(str(tmp_path / "none.swf"))
    with pytest.raises(UsageError, match="not a regular file"):
        read_swf("/dev/zero")


# --- the oracle -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(count=st.integers(0, 300), seed=st.integers(0, 99), key=st.binary(min_size=20, max_size=20))
def test_the_directory_lists_members_by_distance(count: int, seed: int, key: bytes) -> None:
    ids = [dht_id(rng_of(seed, number).randbytes(32)) for number in range(count)]
    target = int.from_bytes(key, "big")
    by_distance = sorted(range(count), key=lambda number: int.from_bytes(ids[number], "big") ^ target)
    assert [*Directory(ids).nearest(key)] == by_distance


def test_a_bound_follows_the_capacity_over_time() -> None:
    capacity = Capacity()
    capacity.note(0.0, 2.0, 1.0)
    capacity.note(10.0, 4.0, 2.0)
    capacity.note(10.0, 0.0, 2.0)
    capacity.note(20.0, 5.0, 2.0)
    assert capacity.bound_s(0.0, 10.0, 0.0) == 5.0
    assert capacity.bound_s(0.0, 20.0, 0.0) == 10.0
    assert capacity.bound_s(0.0, 30.0, 0.0) == 22.0
    assert capacity.bound_s(12.0, 10.0, 0.0) == 10.0
    assert capacity.bound_s(25.0, 10.0, 0.0) == 2.0
    assert capacity.bound_s(25.0, 10.0, 50.0) == 25.0, "the critical path on the fastest core"


# --- playing --------------------------------------------------------------------------------------


def calm(nodes: int = 6, **more: Any) -> MeshSettings:
    return MeshSettings(
        nodes=nodes, hours=1.0, population=PopulationSettings(speeds="same", cores=2, mem_gib=4.0), **more
    )


def played(
    chosen: WorkloadSettings,
    *,
    seed: int = 1,
    duration_s: float = 60.0,
    failure: float = 0.0,
    trouble: Callable[[MeshRun], Coroutine[Any, Any, None]] | None = None,
) -> MeshRun:
    """Play one workload on a small mesh, with trouble beside it, to its end.

    Args:
        failure: probability that an attempt fails; then not every task has a value.
    """
    world = MeshRun(calm(), seed)
    todo = plan(chosen, world.rng("workload"), duration_s=duration_s)

    async def main() -> None:
        for number, member in enumerate(world.mesh.members):
            await world.start(number)
            member.host.set_runner(replace(member.host.runner_model, failure=failure))
        await asyncio.sleep(5)
        playing = world.spawn(play(world, todo), "play")
        if trouble is not None:
            await trouble(world)
        async with asyncio.timeout(600):
            await playing
        assert world.metrics.counted("jobs_over") == len(world.jobs)
        for job in world.jobs:
            if not failure:
                await world.mesh.check_values(world.mesh.members[job.owner], job.job_id, len(job.works))

    with world.simulation:
        world.simulation.run(main(), time_s_max=2000)
        account(world)
    assert not world.problems
    world.mesh.check_errors()
    return world


def test_a_bag_ends_near_its_bound_without_waste() -> None:
    figures = played(settings_of(tasks=120, owners=1, jobs=2)).metrics.result()
    assert figures["jobs"] == figures["jobs_over"] == 2
    assert figures["tasks_done"] == figures["accepted_work_s"] == 240
    assert figures["duplicate_runs"] == 0
    assert 0 <= figures["wasted_work"] < 0.01
    assert 1 <= figures["makespan_ratio"] < 3
    assert 1 < figures["first_result_s"] < figures["makespan_s"]


def test_what_custodians_computed_is_told_apart_from_what_an_owner_that_is_away_accepts() -> None:
    async def owner_is_away(world: MeshRun) -> None:
        await asyncio.sleep(12)
        (job,) = world.jobs
        await world.crash(job.owner)
        await asyncio.sleep(150)
        await world.start(job.owner)

    figures = played(settings_of(tasks=400, owners=1), trouble=owner_is_away).metrics.result()
    assert figures["makespan_s"] > 150
    assert 60 < figures["computed_s"] < 145, "a takeover, and about 30 s of work"
    assert 1 < figures["computed_ratio"] < figures["makespan_ratio"]


@pytest.mark.parametrize("shape", get_args(Graph))
def test_a_dataflow_graph_runs_in_its_order(shape: str) -> None:
    """A task that was added before what it waits for is done would end too early."""
    world = played(settings_of(kind="dataflow", graph=shape, tasks=20, width=4, work_s=0.5))
    figures = world.metrics.result()
    assert figures["tasks_done"] == 20
    chosen = settings_of(kind="dataflow", graph=shape, tasks=20, width=4, work_s=0.5)
    critical_s = plan(chosen, world.rng("workload"), duration_s=60).jobs[0].critical_s
    assert critical_s < figures["makespan_s"] < 3 * critical_s + 5
    assert figures["makespan_ratio"] >= 1


def test_a_task_that_fails_for_good_ends_its_graph() -> None:
    """Without the tasks behind it, and not by waiting for ever."""
    chain = settings_of(kind="dataflow", graph="chain", tasks=30, retries=0, work_s=0.1)
    figures = played(chain, failure=0.2).metrics.result()
    assert figures["jobs_over"] == 1
    assert figures["tasks_failed"] == 1
    assert figures.get("tasks_done", 0) < 29
    layered = settings_of(kind="dataflow", tasks=60, retries=0, work_s=0.1)
    figures = played(layered, failure=0.1).metrics.result()
    assert figures["jobs_over"] == 1
    assert figures["tasks_failed"] >= 1
    assert figures["tasks_done"] + figures["tasks_failed"] < 60


def test_lookups_find_the_nearest() -> None:
    figures = played(settings_of(kind="lookups", rate_per_s=2.0)).metrics.result()
    assert figures["lookups"] > 60
    assert figures["lookup_success"] == figures["lookup_recall"] == 1
    assert 2 <= figures["lookup_requests"] < 3, "two of the five others, and all when one of them is late"
    assert figures["lookup_hops"] == 1
    assert figures["lookup_s"] > 0
    assert 0.5 < figures["lookup_rtts"] < 10


def test_puts_are_read_back() -> None:
    figures = played(settings_of(kind="puts", rate_per_s=0.5, reads=2, read_after_s=5.0)).metrics.result()
    assert figures["puts"] > 10
    assert figures["put_copies"] == 6
    assert figures["read_success"] == 1
    assert figures["read_missed"] == 0


def test_queries_find_peers_that_fit() -> None:
    figures = played(settings_of(kind="queries", rate_per_s=0.5, wanted=3, slots=2)).metrics.result()
    assert figures["queries"] > 10
    assert figures["query_success"] == 1
    assert figures["query_stale"] == 0
    nobody = played(settings_of(kind="queries", rate_per_s=0.5, slots=3)).metrics.result()
    assert nobody["query_success"] == 1, "as many as there are: none"


async def crash_owners(world: MeshRun) -> None:
    """Kill whoever owns a job or might be about to, several times, and let them come back."""
    rng = world.rng("trouble")
    for _ in range(8):
        await asyncio.sleep(rng.uniform(0.5, 5))
        owners = [job.owner for job in world.jobs] or [0]
        number = rng.choice([*owners, rng.randrange(6)])
        if rng.random() < 0.3:
            await world.stop(number, drain=rng.random() < 0.5)
        else:
            await world.crash(number, is_silent=rng.random() < 0.5)
        await asyncio.sleep(rng.uniform(0.1, 8))
        await world.start(number)
    for number in range(6):
        await world.start(number)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bag", "dataflow"])
def test_jobs_survive_the_crashes_of_their_owners(kind: str, seed: int) -> None:
    """What was acknowledged ends, once, with the right values; what was not is submitted again."""
    chosen = settings_of(kind=kind, jobs=3, jobs_per_hour=400.0, tasks=60, works="uniform")
    figures = played(chosen, seed=seed, trouble=crash_owners).metrics.result()
    assert figures["jobs"] == figures["jobs_over"] > 0
    assert figures["tasks_done"] == 60 * figures["jobs"]
    assert figures["executed_work_s"] >= figures["accepted_work_s"]
    assert figures["duplicate_runs"] >= 0


def test_asks_cope_with_nodes_that_go() -> None:
    for kind in ("lookups", "puts", "queries"):
        figures = played(settings_of(kind=kind, rate_per_s=3.0), seed=5, trouble=crash_owners).metrics.result()
        assert figures[kind] > 50


def test_a_submission_that_was_lost_is_made_again() -> None:
    async def kill_on_submit(world: MeshRun) -> None:
        await asyncio.sleep(10.0002 - world.now)  # the submission waits for the disk
        numbers = [number for number, member in enumerate(world.mesh.members) if member.host._calls]
        assert len(numbers) == 1
        await world.crash(numbers[0])
        await asyncio.sleep(30)
        await world.start(numbers[0])

    figures = played(settings_of(tasks=10), trouble=kill_on_submit).metrics.result()
    assert figures["submissions_failed"] == 1
    assert figures["jobs"] == figures["jobs_over"] == 1


def test_the_median_round_trip_is_that_of_the_network() -> None:
    world = MeshRun(calm(40), 1)
    with world.simulation:
        network, machines = world.simulation.network, [member.host.machine for member in world.mesh.members]
        rtts = sorted(2 * network.base_delay_s(a, b) for a in machines for b in machines if a is not b)
        assert median_rtt_s(world) == pytest.approx(rtts[len(rtts) // 2], rel=0.15)
    assert math.isfinite(rtts[-1])
