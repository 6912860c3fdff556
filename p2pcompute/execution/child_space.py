"""Where a task runs inside a worker process: directories, environment, numbered files for the node.

Functions share one directory, which is their scratch space too and is emptied after each of them (making one costs
more than a tiny task); commands have one with scratch space beside it, emptied, or made anew when one changed it.
"""

from __future__ import annotations

import os

from p2pcompute.execution.child_files import Inputs, find_outputs, move_out
from p2pcompute.execution.child_os import Libc, LifeLine, sweep_children
from p2pcompute.execution.child_tasks import Job, Settings, Stop, Task
from p2pcompute.execution.messages import Result
from p2pcompute.execution.trees import empty_directory, is_empty, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from p2pcompute.execution.child_fence import Looks


class TaskDirectory:
    """`work`, the current directory of a task, its scratch space and what it saves, under one parent."""

    def __init__(self, path: str, *, has_scratch: bool) -> None:
        self._path = path
        self.work = os.path.join(path, "work")
        self.scratch = os.path.join(path, "tmp") if has_scratch else self.work
        self.saved = os.path.join(path, "checkpoint") if has_scratch else self.work
        self.make()
        self._made = self._look()

    def make(self) -> None:
        """Make the directories that are not there."""
        for path in (self._path, self.work, self.scratch, self.saved):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                continue

    def clean(self) -> None:
        """Empty it; make it again when the task took it away.  Only for one without separate scratch space."""
        try:
            if is_empty(self.work):
                return
        except OSError:
            pass
        empty_directory(self._path)
        self.make()

    def _look(self) -> list[tuple[int, int, int]]:
        """Return what tells these directories from others, and their modes."""
        found = [os.lstat(path) for path in (self._path, self.work, self.scratch, self.saved)]
        return [(info.st_dev, info.st_ino, info.st_mode) for info in found]

    def recycle(self) -> bool:
        """Make it as new for another task, keeping the directories themselves; False when they are not what they were.

        To make and remove directories is to wait for the disk's journal: a tiny task would spend most of its time so.
        """
        try:
            if self._look() != self._made or len(os.listdir(self._path)) != 3:
                return False
            for directory in (self.work, self.scratch, self.saved):
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            remove_tree(entry.path)
                        else:
                            os.unlink(entry.path)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove everything.  What cannot be removed stays until the node removes this process's directory."""
        try:
            remove_tree(self._path)
        except OSError:
            return


def current_directory(directory: TaskDirectory, job: Job, task: Task) -> str:
    """Return where a task runs: in its own `work`, but without files of its own where `p2pc run` was called.

    The submitter names that place (P2PC_SUBMIT_DIR) and its machine (P2PC_SUBMIT_HOST): a directory of the same name on
    another machine is another directory.
    """
    place = job.env.get("P2PC_SUBMIT_DIR", "")
    if not place or job.share or task.send or task.fetch or job.env.get("P2PC_SUBMIT_HOST") != os.uname().nodename:
        return directory.work
    return place if os.path.isdir(place) and os.access(place, os.X_OK) else directory.work


class OutFiles:
    """Numbered files in `out`, through which large values, output and fetched files reach the node."""

    def __init__(self, settings: Settings) -> None:
        self._directory = os.path.join(settings.directory, "out")
        self._serial = 0
        os.mkdir(self._directory, 0o700)

    def new(self) -> tuple[int, str]:
        """Return the next number, from 1, and its path."""
        self._serial += 1
        return self._serial, os.path.join(self._directory, str(self._serial))

    def put(self, data: bytes) -> int:
        """Write a file; return its number."""
        number, path = self.new()
        with open(path, "xb") as file:
            file.write(data)
        return number

    def put_value(self, result: Result, data: bytes, inline_bytes_max: int) -> None:
        """Set the value of a result: inline, or as a file when it is large."""
        if len(data) <= inline_bytes_max:
            result.value = data
        else:
            result.value_file = self.put(data)


class Workplace:
    """What every kind of task needs here."""

    def __init__(
        self,
        settings: Settings,
        life_line: LifeLine,
        *,
        watch: Looks | None = None,
        sweep: Callable[[], None] = sweep_children,
    ) -> None:
        """Args:
        watch: looks at what a task uses, in a sandbox or a fence.
        sweep: kills and reaps what a task left behind.
        """
        self.settings = settings
        self.life_line = life_line
        self.watch = watch
        self.sweep = sweep
        self.libc = Libc()
        self.out_files = OutFiles(settings)
        self._inputs = Inputs(settings)

    def place_inputs(self, directory: TaskDirectory, job: Job, task: Task) -> None:
        """Put the task's input files into its directory.

        Raises:
            Stop: they cannot be put there.
        """
        if job.share or task.send:
            self._inputs.place(directory.work, job, task)

    def collect_outputs(self, directory: TaskDirectory, job: Job, task: Task, result: Result) -> None:
        """Move the files that a task was asked for to the numbered files, when it ended well.

        Raises:
            Stop: one is missing or no plain file, or a shared input was changed.
        """
        if job.share and (changed := self._inputs.check(job)):
            raise Stop("failed", changed)
        if result.status != "ok" or not task.fetch:
            return
        files = []
        inputs = frozenset([*(shared[0] for shared in job.share), *(sent[0] for sent in task.send)])
        found = find_outputs(directory.work, task.fetch, self.settings.files_max, inputs=inputs)
        for name, entry in found.items():
            encoded = _encoded(name)
            number, path = self.out_files.new()
            move_out(directory.work, name, entry, path)
            files.append((number, entry.st_mode & 0o777, encoded))
        result.files = files


def _encoded(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        text = f"the output {name!r} cannot be brought back (its name is not UTF-8); let the task rename it"
        raise Stop("failed", text) from error


class Environment:
    """`os.environ`, set for each task and restored whatever the task did to it."""

    def __init__(self) -> None:
        self._raw: dict[bytes, bytes] = vars(os.environ)["_data"]
        self._expected: dict[bytes, bytes] | None = None
        self._job = -1

    def enter(self, job: Job, task: Task, places: dict[str, str]) -> None:
        """Set the environment of a task: the job's, `places`, and the task's own.

        Nearly always only three variables differ from the task before; those are set without a look at the rest.
        """
        if task.env or job.number != self._job or self._raw != self._expected:
            wanted = {**job.env, **task.environment(), **places}
            for name in list(os.environ):
                if name not in wanted:
                    del os.environ[name]
            os.environ.update(wanted)
            self._job = -1 if task.env else job.number
        else:
            index = task.index
            for key, value in (
                (b"P2PC_TASK_ID", task.task_id.hex().encode()),
                (b"P2PC_INDEX", b"%d" % index),
                (b"PARALLEL_SEQ", b"%d" % (index + 1)),
            ):
                os.putenv(key, value)
                self._raw[key] = value
        self._expected = self._raw.copy()
