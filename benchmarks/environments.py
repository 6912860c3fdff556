"""What Python environments of jobs cost: to build one from what was fetched before, and to find one that is there.

    python benchmarks/environments.py [REQUIREMENT]      # numpy, unless another one is named

Each row is measured COUNT times with fresh directories, and the median is shown: wall time of this machine as it is,
and CPU time of this process and of what it has waited for.  The first build fetches what the package index has; it is
not counted.  Writes JSON lines.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import cloudpickle

from p2pcompute.execution.environments import OWN, Environments
from p2pcompute.execution.locking import find_requirements, make_lock
from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload, encode_spec
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.real_clock import RealClock
from p2pcompute.host.runs import Outcome, OutcomeStatus, TaskRun

COUNT = 5


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


async def measured(name: str, once: Callable[[], Awaitable[object]], before: Callable[[], Awaitable[object]]) -> None:
    walls, cpus = [], []
    for _ in range(COUNT):
        await before()
        wall, cpu = time.monotonic(), cpu_s()
        await once()
        walls.append(time.monotonic() - wall)
        cpus.append(cpu_s() - cpu)
    row = {"what": name, "wall_ms": statistics.median(walls) * 1e3, "cpu_ms": statistics.median(cpus) * 1e3}
    print(json.dumps({key: value if isinstance(value, str) else round(value, 2) for key, value in row.items()}))


async def main(requirement: str) -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        directory = Path(name)
        (directory / "requirements.txt").write_text(f"{requirement}\n")
        requirements = find_requirements(str(directory / "requirements.txt"), None, is_beside=False)
        assert requirements is not None
        lock = make_lock(requirements)
        print(json.dumps({"packages": lock.names, "python": platform.python_version(), "cpu": platform.machine()}))
        blobs = FileBlobs(directory / "blobs")
        kept = Environments(directory / "environments", bytes_max=1 << 40)
        runner = ProcessRunner(blobs, directory / "work", 1, RealClock(), node_name="bench", environments=kept)
        await runner.start()
        packages = await blobs.put(lock.text)
        path = blobs.path(packages)
        assert path is not None
        module = requirement.partition("=")[0].partition("<")[0].partition(">")[0].strip()
        code = await blobs.put(cloudpickle.dumps(_importing(module)))
        spec = encode_spec(JobSpec(kind=TaskKind.FUNCTION, code=code, packages=packages))
        serial = [0]

        async def build() -> None:
            await kept.get(packages.digest, path, OWN, may_build=True)

        async def forget() -> None:
            for task in [*kept._finishing]:
                await task
            for slot in runner._slots:
                for worker in list(slot.warm.values()):
                    worker.kill()
            while runner._alive and any(worker.environment for worker in runner._alive):
                await asyncio.sleep(0.01)
            kept._let_go(())
            for place in (directory / "environments" / OWN).glob("*/.p2pc-ready"):
                shutil.rmtree(place.parent)

        async def end_workers() -> None:
            for slot in runner._slots:
                for worker in list(slot.warm.values()):
                    worker.kill()
            while any(worker.environment for worker in runner._alive):
                await asyncio.sleep(0.01)

        async def task() -> None:
            serial[0] += 1
            done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            run = TaskRun(serial[0], serial[0].to_bytes(32, "big"), spec, 0, encode_payload(_call()), 1)
            runner.run(0, [run], lambda pairs: done.set_result(pairs[0][1]))
            outcome = await done
            assert outcome.status is OutcomeStatus.OK, outcome.error

        async def nothing() -> None:
            return

        await build()
        await forget()
        await measured("environment from what was fetched before", build, forget)
        for pending in [*kept._finishing]:
            await pending
        await measured("environment that is there", build, nothing)
        await task()
        await measured("first task of a job, environment there, no process in it", task, end_workers)
        await measured("first task of a job, environment there, warm process", task, nothing)
        await runner.close()
        blobs.shut()
        digest = hashlib.sha256(lock.text).hexdigest()[:12]
        print(json.dumps({"lock": digest, "builds": kept.built_count}))


def _importing(module: str) -> Callable[[], str]:
    def look() -> str:
        import importlib

        return importlib.import_module(module).__name__

    return look


def _call() -> TaskPayload:
    return TaskPayload(args=cloudpickle.dumps(((), {})))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "numpy"))
