"""The worker process: ``python -m p2pcompute.execution.child CHANNEL_FD LIFE_LINE_FD``.

Blocking and single-threaded.  It runs one task at a time, in the order given, and writes each result to the
socket at once: results that were written before a task kills the process are not lost, and the first task without
a result is the one that did it.  The node, not this process, decides how often it wakes up to read them.

It starts in the time that Python itself takes: cloudpickle, ctypes, signal and the like are imported with the
first task that needs them.
"""

from __future__ import annotations

import os
import sys

from p2pcompute.execution import messages
from p2pcompute.execution.child_channel import Channel
from p2pcompute.execution.child_os import LifeLine, forbid_core_files, sweep_children
from p2pcompute.execution.child_space import Workplace
from p2pcompute.execution.child_tasks import ChannelClosed, Job, Settings, Task
from p2pcompute.execution.messages import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from p2pcompute.execution.child_commands import Commands
    from p2pcompute.execution.child_containers import Containers
    from p2pcompute.execution.child_wasm import WasmTasks

    class RunsFunctions(Protocol):
        """Runs function tasks, in this process or in others."""

        def run(self, job: Job, task: Task) -> Result: ...

        def forget(self, number: int) -> None: ...


class Worker:
    """Runs what the channel brings."""

    def __init__(self, channel: Channel, life_line: LifeLine, settings: Settings) -> None:
        self._channel = channel
        self._life_line = life_line
        self._settings = settings
        self._workplace: Workplace | None = None
        self._jobs: dict[int, Job] = {}
        self._functions: RunsFunctions | None = None
        self._commands: Commands | None = None
        self._containers: Containers | None = None
        self._wasm: WasmTasks | None = None

    def serve(self) -> None:
        """Run tasks until the node goes.

        Raises:
            ChannelClosed: it went.
        """
        channel = self._channel
        while True:
            channel.wait()
            _, jobs, forgotten, tasks = channel.inbox.pop(0)
            for number in forgotten:
                self._jobs.pop(number, None)
                if self._functions is not None:
                    self._functions.forget(number)
                if self._wasm is not None:
                    self._wasm.forget(number)
            for fields in jobs:
                job = self._jobs[fields[0]] = Job(fields)
                job.env["PARALLEL_JOBSLOT"] = str(self._settings.slot + 1)
            for fields in tasks:
                channel.receive_now()
                task = Task(fields)
                if task.run_id in channel.killed:
                    result = Result(task.run_id, "killed", "stopped before it started")
                else:
                    result = self._run(self._jobs[task.job], task)
                channel.killed.pop(task.run_id, None)
                self._report(result)
            if not channel.inbox:
                channel.killed.clear()  # of runs that had ended before the node knew

    def _report(self, result: Result) -> None:
        """Tell the node how a run ended."""
        self._channel.send(messages.pack_result(result, self._settings.error_bytes_max))

    def _make_workplace(self) -> Workplace:
        box = self._settings.box
        if box is None:
            return Workplace(self._settings, self._life_line)
        from p2pcompute.execution.child_fence import FenceWatch

        watch = FenceWatch(self._settings.directory, box.disk_bytes, box.files_max, box.output_bytes_max)
        return Workplace(self._settings, self._life_line, watch=watch)

    def _make_functions(self, workplace: Workplace) -> RunsFunctions:
        from p2pcompute.execution.child_functions import Functions

        return Functions(workplace, self._channel.send)

    def _run(self, job: Job, task: Task) -> Result:
        try:
            if self._workplace is None:
                self._workplace = self._make_workplace()
            if job.kind == "wasm":
                if self._wasm is None:
                    from p2pcompute.execution.child_wasm import WasmTasks

                    self._wasm = WasmTasks(self._workplace, self._channel)
                return self._wasm.run(job, task)
            if self._settings.box is not None and self._settings.box.is_fence:
                return Result(task.run_id, "refused", "this node runs WASI modules of others, and nothing else")
            if self._wasm is not None:
                self._wasm.end()
            if job.kind == "container":
                if self._containers is None:
                    from p2pcompute.execution.child_containers import Containers

                    self._containers = Containers(self._workplace, self._channel)
                return self._containers.run(job, task)
            if job.kind == "function":
                if self._functions is None:
                    self._functions = self._make_functions(self._workplace)
                return self._functions.run(job, task)
            if self._commands is None:
                from p2pcompute.execution.child_commands import Commands

                self._commands = Commands(self._workplace, self._channel)
            return self._commands.run(job, task)
        except OSError as error:  # our own part: disk full, no file descriptors, no processes
            return Result(task.run_id, "not-run", f"the worker process could not run the task here: {error}")
        except ChannelClosed:
            raise
        except Exception as error:
            import traceback

            text = "".join(traceback.format_exception(error))
            return Result(task.run_id, "failed", f"the worker process failed around the task, a bug of ours:\n{text}")


def main() -> None:
    """Say hello, then run tasks until the node's end of the socket closes."""
    channel_fd, life_line_fd = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(channel_fd, False)
    os.set_inheritable(life_line_fd, False)
    forbid_core_files()
    life_line = LifeLine(life_line_fd)
    channel = Channel(channel_fd)
    try:
        channel.wait()
        settings = Settings(channel.inbox.pop(0)[1])
        sys.argv[:] = ["p2pc-task"]
        worker = Worker(channel, life_line, settings)
        channel.send(messages.pack_hello())
        worker.serve()
    except ChannelClosed:
        try:
            sweep_children()  # what the last function started goes with us
        finally:
            os._exit(messages.EXIT_CHANNEL_CLOSED)


if __name__ == "__main__":
    main()
