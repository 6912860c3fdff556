"""Why a job is not done sooner: each reason with what was measured, and none without."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from p2pcompute.node.slowness import Course, NodeCourse, why_slow
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel
from tests.node.test_placement import PLAIN, explained, name, play, submit

NOVA = NodeCourse(name="nova", slots=8, busy=8, running=8, ended=100, took_s=90.0, load=8.5, cpus=8.0)
PI4 = NodeCourse(name="pi4", slots=4, busy=4, running=4, ended=12, took_s=49.2, load=4.1, cpus=4.0)
GOING = Course(nodes=(NOVA, PI4), ended=112, running=12, waiting=50, retried=0, is_sealed=True)
EVEN = replace(GOING, nodes=(NOVA, replace(PI4, took_s=12.0)))


def told(course: Course) -> list[tuple[str, str]]:
    return [(one.code, one.what) for one in why_slow(course)]


def test_nothing_is_said_without_evidence() -> None:
    assert told(EVEN) == []
    assert told(replace(EVEN, ended=0, running=0)) == []
    once = replace(PI4, ended=1, took_s=50.0)
    assert told(replace(GOING, nodes=(NOVA, once))) == [], "one task says nothing of a node"
    assert told(replace(GOING, nodes=(PI4,))) == [], "there is nothing to compare it with"


@pytest.mark.parametrize(
    ("changes", "code", "what"),
    [
        ({"nodes": GOING.nodes}, "slow-node", "a task takes 4.1 s on pi4 (12 ended), 0.9 s elsewhere"),
        (
            {"unchecked": 5, "ended": 0, "running": 0},
            "checks",
            "5 results of members are not believed yet, until another one finds the same",
        ),
        (
            {"unchecked": 5, "agreed": 3, "checks": 2},
            "checks",
            "5 results of members are not believed yet, until another one finds the same; 3 of them several found, who"
            " have passed too few checks; 2 of them are computed again now",
        ),
        (
            {"unconfirmed": 1, "alone_in_s": 42.0, "ended": 0, "running": 0},
            "unconfirmed",
            "a task has failed with members: a trusted node that fits has to find that too, before it is said to fail;"
            " if none asks for work within 42.0 s, members say it alone",
        ),
        (
            {"disputed": 1, "nodes": (replace(NOVA, is_trusted=True),)},
            "disputed",
            "of 1 task members found different results; a trusted node has to find which is right",
        ),
        (
            {"disputed": 2},
            "disputed",
            "of 2 tasks members found different results; no trusted node can run it, to find which is right",
        ),
        (
            {"ended": 0, "running": 0, "nodes": (NodeCourse(name="pi4", refused=1, refused_why="no network"),)},
            "refusing",
            "pi4 has not begun a task: no network",
        ),
        (
            {"nodes": (replace(PI4, took_s=12.0, refused=7, refused_why="no network", refused_rests_s=8.0),)},
            "refusing",
            "pi4 has not begun 7 tasks in a row: no network; it gets none for 8.0 s",
        ),
        ({"slots_max": 12}, "limit", "-j 12: so many tasks run, and no more at once"),
        ({"nodes": (NOVA, NodeCourse(name="mac", can_run=False))}, "nodes", "1 of 2 nodes can run it"),
        (
            {"nodes": (replace(NOVA, staging=3, bandwidth=2.3e6),)},
            *("files", "on nova 3 tasks wait for their files; it got 2.2 MiB/s lately"),
        ),
        ({"nodes": (replace(NOVA, running=5),)}, "busy", "3 of 8 slots of nova work for other jobs"),
        ({"nodes": (replace(NOVA, running=3, slots_each=2),)}, "busy", "2 of 8 slots of nova work for other jobs"),
        ({"nodes": (replace(NOVA, load=19.0),)}, "load", "nova is busy with more than its tasks: load 19.0 on 8 cores"),
        (
            {"nodes": (replace(NOVA, copied=2),)},
            *("copies", "2 tasks take too long on nova and run a second time elsewhere"),
        ),
        (
            {"nodes": (replace(NOVA, rests_s=30.0),)},
            *("failing", "nova failed what others did well, and gets nothing for 30.0 s"),
        ),
        ({"retried": 14}, "retries", "14 of 126 attempts were made again"),
        (
            {"nodes": (replace(NOVA, running=0), replace(PI4, running=3, took_s=12.0)), "running": 3, "waiting": 0},
            *("tail", "only the last 3 run: 3 on pi4"),
        ),
        (
            {"nodes": (replace(NOVA, took_s=0.2),)},
            "small",
            "a task takes 2 ms: sending and starting it may take as long",
        ),
        ({"waiting": 0, "is_sealed": False}, "inputs", "all tasks that were sent are under way; more may come"),
    ],
)
def test_each_reason_has_its_evidence(changes: dict[str, Any], code: str, what: str) -> None:
    assert told(replace(EVEN, **changes)) == [(code, what)]


def test_what_is_to_be_typed_names_the_job() -> None:
    """Or the line is copied, and nothing is called JOB."""
    [reason] = why_slow(replace(EVEN, retried=14, alias="j7k3"))
    assert reason.fix == "why: p2pc show j7k3/TASK"


def test_a_busy_node_says_when_it_has_room_and_a_slow_one_is_named() -> None:
    """People are told "later", and not when; or the estimate is far from what happens."""
    slow = RunnerModel(slot_count=2, speed=0.25)

    async def scene(mesh: Mesh) -> None:
        clock, wall = mesh.members[0].host.clock, mesh.members[0].host.clock
        job_id = await submit(mesh.members[0], [4.0] * 40)
        await asyncio.sleep(37.5)
        view = await explained(mesh, job_id)
        for account, peer in zip(view.report.accounts, view.peers, strict=True):
            [busy] = [one for one in account.findings if one.code == "busy"]
            assert busy.passes_s is not None, peer.name
            assert 0 <= busy.passes_s - wall.wall() < (17 if peer.name == name(mesh, 1) else 5), peer.name
        [one] = [one for one in view.slow if one.code == "slow-node"]
        assert one.what.startswith(f"a task takes 16.0 s on {name(mesh, 1)}") and "4.0 s elsewhere" in one.what
        began = clock.now()
        passes_s = view.report.accounts[0].findings[0].passes_s
        ended = mesh.members[0].running.job(job_id.hex()).done
        while mesh.members[0].running.job(job_id.hex()).done == ended:
            await asyncio.sleep(0.05)
        assert passes_s is not None and abs(passes_s - wall.wall()) < 1, clock.now() - began

    play([PLAIN, slow], scene)


def test_a_copy_of_a_task_that_takes_too_long_is_told() -> None:
    """The last task hangs on a slow node, and nobody says that it runs elsewhere too."""
    stuck = RunnerModel(slot_count=1, speed=0.001)

    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [1.0] * 12)
        seen: list[tuple[str, str]] = []
        for _ in range(600):
            await asyncio.sleep(0.1)
            if mesh.members[0].running.job(job_id.hex()).done == 12:
                break
            if mesh.members[0].running.job(job_id.hex()).done >= 10:
                seen += [(one.code, one.what) for one in (await explained(mesh, job_id)).slow]
        what = f"1 task takes too long on {name(mesh, 1)} and runs a second time elsewhere"
        assert ("copies", what) in seen, seen

    play([PLAIN, stuck], scene)
