"""The first process of a sandbox: ``python -m p2pcompute.execution.box CHANNEL_FD ENVIRONMENT``.

It shuts itself in (`box_setup`) and then runs the tasks of one job as a worker process does, with these differences:
functions run in processes of their own (`box_functions`); nothing that a task has started is alive when its result is
told, but the process that holds the job's function; files leave as descriptors, which the node copies; whatever a task
has left in the writable place is removed before the next one.

ENVIRONMENT is that of the job's packages, or "": this process has nothing of it, and only those that it has shut in do.

It is process 1 of its namespace: no signal from inside ends or stops it, and with it everything ends.
"""

from __future__ import annotations

import _socket
import os
import stat
import struct
import sys
from time import sleep

from p2pcompute.execution import box_places, box_setup, messages
from p2pcompute.execution.box_functions import BoxedFunctions
from p2pcompute.execution.box_watch import Watch, processes
from p2pcompute.execution.child import Worker
from p2pcompute.execution.child_channel import Channel
from p2pcompute.execution.child_os import LifeLine
from p2pcompute.execution.child_space import Workplace
from p2pcompute.execution.child_tasks import CACHE, BoxSettings, ChannelClosed, Settings
from p2pcompute.execution.messages import Result
from p2pcompute.execution.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from p2pcompute.execution.child import RunsFunctions

SIGKILL, SIGSTOP, SIGCONT = 9, 19, 18
_SWEEP_TRIES = 5000
_KEPT = ("out", "shared", CACHE, *(name for name, _ in box_places.BOUND))


class _NoLifeLine(LifeLine):
    """Stands for the life line of a worker process: here everything dies with process 1, and that with bubblewrap."""

    def __init__(self) -> None:
        self._works = False


class Box(Worker):
    """Runs what the channel brings, one task after the other, and cleans up behind each."""

    def __init__(self, channel: Channel, settings: Settings, box: BoxSettings, environment: str) -> None:
        super().__init__(channel, _NoLifeLine(), settings)
        self._watch = Watch(box.mem_bytes, box.output_bytes_max)
        self._socket = _socket.socket(fileno=channel.fd)
        self._boxed: BoxedFunctions | None = None
        self._directory = settings.directory
        self._kept_in_tmp = box.kept_in_tmp
        self._environment = environment

    def _make_workplace(self) -> Workplace:
        return Workplace(self._settings, _NoLifeLine(), watch=self._watch, sweep=self._sweep)

    def _make_functions(self, workplace: Workplace) -> RunsFunctions:
        self._boxed = BoxedFunctions(workplace, self._channel, self._environment)
        return self._boxed

    def _sweep(self) -> None:
        """Kill and reap everything but the process that holds the job's function."""
        spared = self._boxed.zygote_pid if self._boxed is not None else 0
        others = [pid for pid in processes() if pid != spared]
        if not others:
            return
        if spared:
            os.kill(-1, SIGSTOP)  # all at once: nothing is forked from here on
        for _ in range(_SWEEP_TRIES):
            for pid in others:
                try:
                    os.kill(pid, SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
                except (ProcessLookupError, ChildProcessError):
                    continue
            others = [pid for pid in processes() if pid != spared]
            if not others:
                break
            sleep(0.001)
        else:
            os._exit(messages.EXIT_CHANNEL_CLOSED)  # what cannot be killed ends with us
        if spared:
            os.kill(spared, SIGCONT)

    # --- results --------------------------------------------------------------------------------------

    def _report(self, result: Result) -> None:
        numbers = [number for number in (result.value_file, result.stdout_file, result.stderr_file) if number]
        numbers += [number for number, _mode, _name in result.files]
        error, is_nodes = "", False
        for start in range(0, len(numbers), messages.OUTPUTS_MAX):
            if not error:
                error, is_nodes = self._offer(numbers[start : start + messages.OUTPUTS_MAX])
        if error:
            result.value_file = result.stdout_file = result.stderr_file = 0
            result.files = ()
            result.value = b""
            if result.status == "ok":
                result.status = "not-run" if is_nodes else "failed"
            result.error = f"{result.error}; {error}" if result.error else error
        super()._report(result)
        self._wipe()

    def _offer(self, numbers: list[int]) -> tuple[str, bool]:
        """Let the node copy files; return why that failed, and whether the node is to blame and not the task."""
        descriptors: list[int] = []
        try:
            for number in numbers:
                path = os.path.join(self._directory, "out", str(number))
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                descriptors.append(descriptor)
                entry = os.fstat(descriptor)
                if not stat.S_ISREG(entry.st_mode) or entry.st_nlink != 1:
                    return "a file of the result is no plain file", False
            frame = messages.pack_outputs(numbers)
            rights = struct.pack(f"={len(descriptors)}i", *descriptors)
            sent = self._socket.sendmsg([frame], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
            if sent < len(frame):
                self._channel.send(frame[sent:])
        except FileNotFoundError:
            return "a file of the result is gone", False
        except OSError as error:
            raise ChannelClosed from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        _, why, is_nodes = self._channel.wait_for(messages.TAKEN)
        return str(why), bool(is_nodes)

    def _wipe(self) -> None:
        """Remove what the task has left; a directory of ours that is not what it was goes, too."""
        places = [os.path.join(self._directory, name) for name, _ in box_places.BOUND]
        places.append(os.path.join(self._directory, "out"))
        try:
            for place in places:
                os.chmod(place, 0o1777)
                for name in os.listdir(place):
                    if not (name in self._kept_in_tmp and place == places[0]):
                        _remove(os.path.join(place, name))
            for name in os.listdir(self._directory):
                if name not in _KEPT and not name.startswith("command-"):
                    _remove(os.path.join(self._directory, name))
        except OSError as error:
            os.write(2, f"what a task left cannot be removed: {error}\n".encode())
            os._exit(messages.EXIT_CHANNEL_CLOSED)  # the next task gets a new sandbox


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(path)
    else:
        os.unlink(path)


def main() -> None:
    """Shut this process in, say hello, then run tasks until the node's end of the socket closes."""
    channel_fd, environment = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(channel_fd, False)
    channel = Channel(channel_fd)
    try:
        channel.wait()
        settings = Settings(channel.inbox.pop(0)[1])
        box = settings.box
        if box is None:
            raise box_setup.Broken("no limits were given")
        os.sched_setaffinity(0, box.cores)
        version = box_setup.enter(
            disk_bytes=box.disk_bytes,
            files_max=box.files_max,
            user=box.user,
            limits=box.limits,
            kept_in_tmp=box.kept_in_tmp,
        )
        os.mkdir(settings.shared_directory)
        os.chdir("/tmp")
        sys.argv[:] = ["p2pc-task"]
        channel.send(messages.pack_hello(min(version, 255)))
        Box(channel, settings, box, environment).serve()
    except ChannelClosed:
        os._exit(messages.EXIT_CHANNEL_CLOSED)
    except (box_setup.Broken, OSError) as error:
        os.write(2, f"{error}\n".encode())
        os._exit(1)


if __name__ == "__main__":
    main()
