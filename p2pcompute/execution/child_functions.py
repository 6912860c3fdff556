"""Python functions in a worker process: load, call, capture, put everything back."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what `signal` wraps: no enums, a tenth of the time
import io
import os
import resource
import sys
from _pickle import PicklingError
from time import perf_counter, process_time, time

from p2pcompute.execution.calls import CallCycle
from p2pcompute.execution.checkpoints import MOVED, Moved, Saving, use
from p2pcompute.execution.child_os import Capture, restore_limits, set_limits, sweep_children
from p2pcompute.execution.child_space import Environment, TaskDirectory, Workplace, current_directory
from p2pcompute.execution.child_tasks import Job, Stop, Task
from p2pcompute.execution.messages import Result, pack_saved
from p2pcompute.execution.progress import FILE, Telling
from p2pcompute.execution.progress import use as use_telling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""Types whose pickle cannot refer to anything: these need no cloudpickle."""


_RESTORED_SIGNALS = (
    _signal.SIGHUP,
    _signal.SIGINT,
    _signal.SIGTERM,
    _signal.SIGALRM,
    _signal.SIGCHLD,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
)


class _SeedNumpy:
    """Import hook that seeds numpy.random when a task is the first to import it."""

    def __init__(self, seed: Callable[[], None]) -> None:
        self._seed = seed

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "numpy.random":
            return None
        sys.meta_path.remove(self)
        spec = None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._seed()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class Functions:
    """Runs function tasks one after the other in this process."""

    def __init__(self, workplace: Workplace, send: Callable[[bytes], None]) -> None:
        """Args:
        send: brings a frame to the node while a task runs.
        """
        import _random
        import faulthandler
        import pickle
        import random

        import cloudpickle

        self._workplace = workplace
        self._out_files = workplace.out_files
        self._inline_bytes_max = workplace.settings.inline_bytes_max
        self._environment = Environment()
        directory = workplace.settings.directory
        self._directory = TaskDirectory(os.path.join(directory, "function"), has_scratch=False)
        self._places = {"TMPDIR": self._directory.work, "P2PC_SCRATCH": self._directory.work}
        self._loads = pickle.loads
        self._dumps_plain = pickle.dumps
        self._dumps_any: Callable[[Any], bytes] = cloudpickle.dumps
        self._run_id = 0
        self._saving = Saving(lambda cookie: send(pack_saved(self._run_id, cookie)), self._loads, self._dumps_any)
        use(self._saving)
        self._telling = Telling(os.path.join(directory, FILE))
        use_telling(self._telling)
        self._random = random.seed.__self__  # type: ignore[attr-defined]
        self._seed_generator = _random.Random.seed
        self._loaded: dict[int, Callable[..., Any]] = {}
        self._path = list(sys.path)
        self._modules_path: str | None = None
        self._seed_value = 0
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._children_cpu_s = before.ru_utime + before.ru_stime
        self._dispositions = [(number, _signal.getsignal(number)) for number in _RESTORED_SIGNALS]
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._stdout = Capture(1, os.path.join(directory, "stdout"))
        self._stderr = Capture(2, os.path.join(directory, "stderr"))
        self._streams: list[io.TextIOWrapper] = []
        self._open_streams()
        faulthandler.enable(2)
        sys.meta_path.insert(0, _SeedNumpy(self._seed_numpy))

    def _open_streams(self) -> None:
        """(Re)open sys.stdin, stdout and stderr so that closing them never closes the descriptors."""
        self._streams = [
            io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
            if fd == 2
            else io.TextIOWrapper(
                io.BufferedWriter(io.FileIO(fd, "w", closefd=False)), "utf-8", "backslashreplace", line_buffering=True
            )
            for fd in (1, 2)
        ]

    def forget(self, number: int) -> None:
        """Drop the function of a job."""
        self._loaded.pop(number, None)

    def preload(self, job: Job) -> None:
        """Load the function of a job before its tasks are forked; what is wrong with it each of them says itself."""
        import gc

        none = Task((0, job.number, 0, b"", b"", None, 0, (), b"", None, [], (), {}, b"", None))
        self._environment.enter(job, none, self._places)
        try:
            if job.digits:
                import p2pcompute.execution.rounding
            if job.is_foreign:
                import p2pcompute.execution.codec  # noqa: F401  # else each fork would, which takes as long as the fork
            self._load(job)
        except BaseException:
            return
        finally:
            gc.freeze()  # a collection in a fork would copy what it looks at

    def begin_fork(self) -> None:
        """Make directory and output files anew, in a fork of the process that has loaded the function."""
        self._directory.make()
        self._stdout.reopen()
        self._stderr.reopen()

    def run(self, job: Job, task: Task) -> Result:
        """Run one task; whatever the function does short of ending the process becomes a result."""
        result = Result(task.run_id)
        result.started_wall = time()
        before = perf_counter()
        cpu_before = process_time()
        try:
            self._enter(job, task)
            self._call(job, task, result)
            self._workplace.collect_outputs(self._directory, job, task, result)
        except Stop as stop:
            result.status, result.error, result.cause = stop.status, stop.error, stop.cause
            result.value, result.value_file = b"", 0
        finally:
            self._restore()
        self._take_output(result)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        result.runtime_s = perf_counter() - before
        children_cpu_s = children.ru_utime + children.ru_stime
        result.cpu_s = process_time() - cpu_before + children_cpu_s - self._children_cpu_s
        self._children_cpu_s = children_cpu_s
        unit = 1 if sys.platform == "darwin" else 1024
        result.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self._directory.clean()
        return result

    # --- around the call ------------------------------------------------------------------------------

    def _enter(self, job: Job, task: Task) -> None:
        directory = self._directory
        self._environment.enter(job, task, self._places)
        os.chdir(current_directory(directory, job, task))
        sys.stdout, sys.stderr = self._streams
        self._seed_value = int.from_bytes(task.task_id[:8], "big")
        self._seed_random(self._seed_value)
        if "numpy.random" in sys.modules:
            self._seed_numpy()
        self._workplace.place_inputs(directory, job, task)
        self._run_id = task.run_id
        self._saving.begin(task.cookie())
        self._telling.begin()

    def _restore(self) -> None:
        """Undo what the function did to the process."""
        sweep_children()
        for stream in (sys.stdout, sys.stderr, *self._streams):
            try:
                stream.flush()
            except Exception:
                continue
        self._workplace.libc.flush()
        if any(stream.closed for stream in self._streams):
            self._open_streams()
        sys.stdout, sys.stderr = self._streams
        _signal.setitimer(_signal.ITIMER_REAL, 0.0)  # an alarm would strike the next task
        for number, disposition in self._dispositions:
            if _signal.getsignal(number) is not disposition:
                _signal.signal(number, disposition)
        os.umask(self._umask)

    def _take_output(self, result: Result) -> None:
        if size := self._stdout.size():
            number, path = self._out_files.new()
            result.stdout, is_moved = self._stdout.take(size, self._inline_bytes_max, path)
            result.stdout_file = number if is_moved else 0
        if size := self._stderr.size():
            number, path = self._out_files.new()
            result.stderr, is_moved = self._stderr.take(size, self._inline_bytes_max, path)
            result.stderr_file = number if is_moved else 0

    def _seed_random(self, value: int) -> None:
        """The same as random.seed(value), in half the time."""
        self._seed_generator(self._random, value)
        self._random.gauss_next = None

    def _seed_numpy(self) -> None:
        try:
            sys.modules["numpy.random"].seed(self._seed_value & 0xFFFFFFFF)
        except (KeyError, AttributeError):
            return

    # --- the call -------------------------------------------------------------------------------------

    def _call(self, job: Job, task: Task, result: Result) -> None:
        before = set_limits(job) if job.has_limits else []
        try:
            function = self._loaded.get(job.number) or self._load(job)
            arguments = self._loads(task.args if task.args_path is None else _read(task.args_path))
            if task.chunk:
                value: Any = [self._one_of(number, function, *call) for number, call in enumerate(arguments)]
            else:
                args, kwargs = arguments
                value = function(*args, **kwargs)
        except Stop:
            raise
        except Moved:
            result.status, result.cause, result.error = "killed", MOVED, "it has saved its state, to go on elsewhere"
            return
        except BaseException as error:
            if before:
                restore_limits(before)
                before = []
            self._fail(result, error)
            return
        finally:
            if before:
                restore_limits(before)
        try:
            if job.digits:
                from p2pcompute.execution.rounding import rounded

                value = rounded(value, job.digits)
            data = self._encoded(value, result) if job.is_foreign else b""
            if not data:
                data = self._dumps_plain(value, 5) if type(value) in _PLAIN else self._dumps_any(value)
        except Exception as error:
            self._fail(result, _unsendable(value, error))
            return
        except BaseException as error:  # its own code ends the process
            self._fail(result, error)
            return
        self._out_files.put_value(result, data, self._inline_bytes_max)

    def _encoded(self, value: Any, result: Result) -> bytes:
        """Return a value in the form that anybody may read; b"" and a note when it has to be a pickle."""
        from p2pcompute.execution.codec import CannotEncode, encode

        try:
            return encode(value)
        except CannotEncode as reason:
            result.error = str(reason)
            return b""

    def _one_of(self, number: int, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a task that has several."""
        self._saving.begin_call(number)
        return function(*args, **kwargs)

    def _load(self, job: Job) -> Callable[..., Any]:
        """Load the function of a job; its modules are importable from then on."""
        if job.modules_path != self._modules_path:
            self._forget_modules()
            if job.modules_path is not None:
                sys.path.insert(0, job.modules_path)
                self._modules_path = job.modules_path
        if job.code_path is None:
            raise Stop("refused", "the job has no function")
        function: Callable[..., Any] = self._loads(_read(job.code_path))
        self._loaded[job.number] = function
        return function

    def _forget_modules(self) -> None:
        """Unload the modules of another job's zip, and the functions that may use them."""
        if self._modules_path is not None:
            inside = self._modules_path + "/"
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None) or "").startswith(inside):
                    del sys.modules[name]
            self._loaded.clear()
        sys.path[:] = self._path
        self._modules_path = None

    def _fail(self, result: Result, error: BaseException) -> None:
        """Make `error` the outcome: (exception, traceback text) pickled, or the text alone when it cannot be."""
        import traceback

        result.status = "failed"
        trace = error.__traceback__
        here = os.path.dirname(__file__)  # what calls the function is no part of its story
        while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == here:
            trace = trace.tb_next
        try:
            text = "".join(traceback.format_exception(type(error), error, trace))
        except BaseException as second:
            text = f"{type(error).__qualname__}: its text cannot be made ({type(second).__name__})\n"
        result.error = text
        try:
            data = self._dumps_any((error, text))
            self._loads(data)
        except BaseException:
            data = self._dumps_any((None, text))
        self._out_files.put_value(result, data, self._inline_bytes_max)


def _unsendable(value: Any, error: Exception) -> Exception:
    """Return what to raise for a result that could not be pickled because of `error`."""
    if isinstance(error, CallCycle):
        return TypeError("the call that was returned waits for its own value: it is among its own arguments")
    kind = PicklingError if isinstance(error, PicklingError) else TypeError
    return kind(
        f"the result, of type {type(value).__qualname__}, cannot be pickled "
        f"({type(error).__name__}: {error}); return plain data such as numbers, text, lists or arrays"
    )


def _read(path: str) -> bytes:
    """Return a blob's content.

    Raises:
        Stop: NOT_RUN when it is not here any more.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Stop("not-run", f"the task's code or arguments are not on this node any more: {path}") from error
