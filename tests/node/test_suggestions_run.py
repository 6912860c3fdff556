"""What is suggested for a job that no node runs is pasted, submitted, and runs: whole nodes, simulated."""

from __future__ import annotations

import asyncio
from random import Random

from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload
from p2pcompute.host.interfaces import Value
from p2pcompute.resources.explaining import flags_of
from p2pcompute.resources.matching import Needs, compile_needs
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.runner import RunnerModel
from tests.resources.test_explaining import pasted

NODES = 50
GIB = 1 << 30
JOBS = 8


def machine(rng: Random) -> RunnerModel:
    attributes: dict[str, Value] = {
        "os": rng.choice(["linux", "macos"]),
        "arch": rng.choice(["x86_64", "aarch64"]),
        "gpu.count": rng.choice([0, 0, 1, 4]),
        "label.room": rng.choice(["b12", "a3"]),
        "battery": rng.random() < 0.5,
    }
    return RunnerModel(
        slot_count=rng.choice([1, 2, 4, 8]),
        mem_bytes=rng.choice([2, 8, 32]) * GIB,
        has=frozenset(rng.sample(["ffmpeg", "blender", "wasm"], rng.randint(0, 3))),
        attributes={name: value for name, value in attributes.items() if rng.random() < 0.9},
    )


def wishes(rng: Random) -> tuple[str, ...]:
    """Five clauses; together they ask for more than most machines have."""
    return tuple(
        rng.sample(
            [
                *(
                    "has=ffmpeg",
                    "has=blender && has=wasm",
                    "os=linux",
                    "arch=aarch64",
                    "gpu>=2",
                    "cpus>=16",
                    "!battery",
                ),
                *("mem>=64GiB", "label.room=b12", "mem.free>12GiB || gpu>4", "load<0", "disk.free >= 4TiB"),
            ],
            5,
        )
    )


async def submit(member: Member, needs: Needs) -> bytes:
    node = member.running
    spec = JobSpec(
        kind=TaskKind.SIMULATED,
        cpus=needs.cpus,
        mem_bytes=needs.mem_bytes,
        gpus=needs.gpus,
        disk_bytes=needs.disk_bytes,
    )
    job_id = await node.submit_job(JobTerms(name="wish", require=needs.require, prefer=needs.prefer), spec)
    await node.add_tasks(job_id, [encode_payload(TaskPayload(work_s=0.01))])
    await node.seal_job(job_id)
    return job_id


def test_each_suggestion_makes_the_job_run() -> None:
    """People paste what is suggested, and their job waits as before."""
    rng = Random(5)
    tried = 0
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, NODES, runner=[machine(rng) for _ in range(NODES)])

        async def main() -> None:
            nonlocal tried
            await mesh.start()
            await asyncio.sleep(60)
            owner = mesh.members[0]
            for _ in range(JOBS):
                needs = Needs(require=wishes(rng), mem_bytes=rng.choice([None, GIB, 20 * GIB]))
                job_id = await owner.host.call(submit(owner, needs))
                await asyncio.sleep(5)
                view = await owner.host.call(owner.running.explain(job_id))
                is_done = owner.running.job(job_id.hex()).done == 1
                able = [account.name for account in view.report.accounts if account.verdict == "now"]
                assert bool(able) == is_done, (needs, able)
                assert is_done or view.report.suggestions, needs
                for suggestion in view.report.suggestions:
                    again = pasted(flags_of(suggestion.needs))
                    assert compile_needs(again).needs == suggestion.needs
                    found = await mesh.wait_for(owner, await owner.host.call(submit(owner, again)), limit_s=30)
                    [share] = [share for share in found.by_node if share.done]
                    assert found.state == "done" and share.node in suggestion.nodes, (needs, suggestion)
                    tried += 1

        simulation.run(main(), time_s_max=5000)
        mesh.check_errors()
    assert tried >= 2 * JOBS
