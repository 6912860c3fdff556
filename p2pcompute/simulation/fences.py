"""Fences around a simulated run: a call that would reach the real world raises and names itself.

Both kinds hold in the thread that runs the loop: what an application does in others beside it is its own.
Sockets, threads and processes raise whoever starts them.  Clocks and randomness raise only when code of a
fenced package calls them: logging, pytest and the like may read the real time without changing what nodes do.
What cannot be replaced (`datetime.now` is a C method, `from time import monotonic` is already bound) is left
to the linter.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from p2pcompute.errors import P2pcError


class SimulationError(P2pcError):
    """A simulated run could not go on.  The simulation's state is kept for inspection; close it."""

    default_code = "simulation"


class RealWorldCall(SimulationError):
    """Code under simulation called something of the real world: a bug of that code.  Use the Host."""

    default_code = "real-world"


FENCED_PACKAGES: Final = ("p2pcompute.",)
FREE_PACKAGES: Final = ("p2pcompute.simulation.",)

_BY_CALLER: Final = (
    ("time", "time monotonic perf_counter time_ns monotonic_ns perf_counter_ns clock_gettime clock_gettime_ns sleep"),
    ("time", "process_time process_time_ns thread_time thread_time_ns"),
    ("os", "urandom getrandom"),
    (
        "random",
        "random randint randrange choice choices shuffle sample uniform getrandbits randbytes seed SystemRandom",
    ),
    ("random", "triangular gauss normalvariate lognormvariate expovariate betavariate gammavariate paretovariate"),
    ("random", "vonmisesvariate weibullvariate Random.__init__"),
    ("uuid", "uuid1 uuid4"),
    ("secrets", "token_bytes token_hex token_urlsafe randbelow randbits choice SystemRandom"),
    ("ssl", "RAND_bytes"),
)
_FOR_ALL: Final = (
    ("socket", "getaddrinfo getnameinfo gethostbyname gethostbyname_ex gethostbyaddr create_connection create_server"),
    ("socket", "socketpair socket.__init__"),
    ("threading", "Thread.start"),
    ("_thread", "start_new_thread"),
    ("subprocess", "Popen.__init__"),
    ("multiprocessing.process", "BaseProcess.start"),
    ("os", "fork forkpty posix_spawn posix_spawnp system execv execve popen"),
    ("signal", "signal"),
)


def refuse(call: str) -> RealWorldCall:
    """Return the error for a call that would leave the simulation."""
    return RealWorldCall(f"{call} was called in a simulated run", "its result would differ from run to run", "use Host")


def _fence_caller(call: str, original: Callable[..., Any]) -> Callable[..., Any]:
    thread = threading.get_ident()

    @wraps(original)
    def fenced(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "") + "."
        is_fenced = caller.startswith(FENCED_PACKAGES) and not caller.startswith(FREE_PACKAGES)
        if is_fenced and threading.get_ident() == thread:
            raise refuse(call)
        return original(*args, **kwargs)

    return fenced


def _fence_thread(call: str, original: Callable[..., Any]) -> Callable[..., Any]:
    thread = threading.get_ident()

    @wraps(original)
    def fenced(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            raise refuse(call)
        return original(*args, **kwargs)

    return fenced


@contextmanager
def fences() -> Iterator[None]:
    """Fence this thread until the context ends; then everything is as before."""
    replaced: list[tuple[Any, str, Any]] = []
    try:
        for table, fence in ((_BY_CALLER, _fence_caller), (_FOR_ALL, _fence_thread)):
            for module, names in table:
                for name in names.split():
                    owner: Any = importlib.import_module(module)
                    *path, attribute = name.split(".")
                    for part in path:
                        owner = getattr(owner, part)
                    original = getattr(owner, attribute, None)
                    if original is None:
                        continue
                    replaced.append((owner, attribute, original))
                    setattr(owner, attribute, fence(f"{module}.{name}", original))
        yield
    finally:
        for owner, attribute, original in reversed(replaced):
            setattr(owner, attribute, original)
