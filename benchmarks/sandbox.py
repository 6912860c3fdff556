"""What a sandbox costs: CPU time and wall time of tiny tasks, of this user's and of others', on one slot.

    python benchmarks/sandbox.py

CPU time is that of all processes of a task, and says what an idle machine would take; wall time is of this machine as
it is.  Writes JSON lines.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cloudpickle
import psutil

from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.sandbox_trial import NO_OPERATION, try_sandbox
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload, encode_spec
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.real_clock import RealClock
from p2pcompute.host.runs import Outcome, TaskRun

OTHERS = b"o" * 32
COUNT = 256


def cpu_s() -> float:
    """CPU time of everything below this process that lives, and of what that has reaped."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class Bench:
    """A runner with one slot."""

    def __init__(self, directory: Path) -> None:
        self.blobs = FileBlobs(directory / "blobs")
        self.runner = ProcessRunner(self.blobs, directory / "work", 1, RealClock(), node_name="bench")
        self._serial = 0

    async def run(self, job: int, spec: JobSpec, payload: TaskPayload, count: int, submitter: bytes) -> None:
        """Run so many tasks of a job as one batch."""
        encoded = encode_spec(spec)
        runs = []
        for index in range(count):
            self._serial += 1
            args = (self._serial, job.to_bytes(32, "big"), encoded, index, encode_payload(payload), 1, submitter)
            runs.append(TaskRun(*args))
        outcomes: dict[int, Outcome] = {}
        done = asyncio.Event()

        def take(pairs: Any) -> None:
            outcomes.update(pairs)
            if len(outcomes) == count:
                done.set()

        self.runner.run(0, runs, take)
        await done.wait()
        bad = [outcome for outcome in outcomes.values() if outcome.status != "ok"]
        assert not bad, bad[0]


async def measure(directory: Path) -> None:
    bench = Bench(directory)
    await bench.runner.start()
    try:
        code = await bench.blobs.put(cloudpickle.dumps(lambda: None))
        function = JobSpec(kind=TaskKind.FUNCTION, code=code), TaskPayload(args=cloudpickle.dumps(((), {})))
        command = JobSpec(kind=TaskKind.COMMAND), TaskPayload(argv=("/bin/true",))
        module = JobSpec(kind=TaskKind.WASM, code=await bench.blobs.put(NO_OPERATION)), TaskPayload(argv=("x",))
        kinds = [
            ("function, this user's, warm process", function, b""),
            ("function, others', fork in a sandbox", function, OTHERS),
            ("command, this user's", command, b""),
            ("command, others', in a sandbox", command, OTHERS),
        ]
        if find_spec("wasmtime") is not None:
            kinds += [("WASM, this user's", module, b""), ("WASM, others', in a sandbox", module, OTHERS)]
        for job, (what, (spec, payload), submitter) in enumerate(kinds, 1):
            began, cpu = time.monotonic(), cpu_s()
            await bench.run(job, spec, payload, 1, submitter)
            first_ms, first_cpu_ms = (time.monotonic() - began) * 1e3, (cpu_s() - cpu) * 1e3
            began, cpu = time.monotonic(), cpu_s()
            for _ in range(4):
                await bench.run(job, spec, payload, COUNT, submitter)
            wall_ms, cpu_ms = (time.monotonic() - began) * 1e3, (cpu_s() - cpu) * 1e3
            print(
                json.dumps(
                    {
                        "what": what,
                        "first_wall_ms": round(first_ms, 1),
                        "first_cpu_ms": round(first_cpu_ms, 1),
                        "task_wall_ms": round(wall_ms / 4 / COUNT, 3),
                        "task_cpu_ms": round(cpu_ms / 4 / COUNT, 3),
                    }
                ),
                flush=True,
            )
    finally:
        await bench.runner.close()
        bench.blobs.shut()


def main() -> None:
    landlock = try_sandbox()
    machine = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "landlock": landlock,
    }
    print(json.dumps({**machine, "python": sys.version.split()[0]}))
    with tempfile.TemporaryDirectory(prefix="p2pc-bench-") as name:
        asyncio.run(measure(Path(name)))


if __name__ == "__main__":
    main()
