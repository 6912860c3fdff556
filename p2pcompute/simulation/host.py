"""Simulated hosts and the simulation that owns them.

A `SimHost` assembles a `host.interfaces.Host` from simulated parts.  Everything that runs on it (tasks, timers,
callbacks) inherits it as its owner, so that a crash can drop all of it at one stroke: nothing of a crashed host
runs again, not even a `finally`.  Its disk survives, and so do its random streams, which never repeat.

Same seed, same code: same trace.  Knows nothing of nodes; tests and scenarios put those on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import random
from asyncio import CancelledError, Future, Task
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from p2pcompute.host.interfaces import Attribute, Attributes, Crypto, Host, Timer, Value
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.limits import MIB
from p2pcompute.simulation.access import SimNet
from p2pcompute.simulation.fences import SimulationError
from p2pcompute.simulation.loop import OWNER, RunFailed, SimulationLoop, Tasks
from p2pcompute.simulation.machines import Machine
from p2pcompute.simulation.nat import NatKind
from p2pcompute.simulation.network import Network, NetworkSettings
from p2pcompute.simulation.runner import RunnerModel, SimRunner, Tally
from p2pcompute.simulation.storage import SYNC_S, SimDisk, SimStore
from p2pcompute.simulation.trace import Kind

T = TypeVar("T")

EPOCH_WALL: Final = 1_750_000_000.0
"""Unix time at which every simulation starts: 2025-06-15."""
RUN_TIME_S_MAX: Final = 86_400.0
RUN_EVENTS_MAX: Final = 100_000_000
"""Bounds of one run unless others are given."""
CLOSE_TIME_S_MAX: Final = 3600.0
CLOSE_EVENTS_MAX: Final = 10_000_000
"""Within these, all tasks must have ended after they were cancelled."""
TIMER_TICK_S: Final = 1e-9
DISK_FREE_BYTES: Final = 100 * 1024 * MIB


class HostDown(SimulationError):
    """The host is not up, or crashed while it was asked.  Whether the work was done is not known."""

    default_code = "host-down"


class SimClock:
    """The simulated `Clock`.

    Args:
        wall_skew_s: what this host's wall clock is ahead of the true time.  Adding to it makes the wall clock step.
    """

    def __init__(self, loop: SimulationLoop, wall_skew_s: float = 0.0) -> None:
        self._loop = loop
        self.wall_skew_s = wall_skew_s
        self.now: Callable[[], float] = loop.time
        self._is_bent = False
        self._rate = 1.0
        self._set_at = 0.0
        """Virtual time at which the rate was set, and what the monotonic clock showed then."""
        self._set_now = 0.0

    def wall(self) -> float:
        now = self._loop.time()
        wall = EPOCH_WALL + now + self.wall_skew_s
        return wall if self._rate in (0.0, 1.0) else wall + (now - self._set_at) * (self._rate - 1.0)

    def sleep(self, delay_s: float) -> Coroutine[Any, Any, None]:
        return asyncio.sleep(self._true_s(delay_s) if self._is_bent else delay_s)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(self._true_s(delay_s) if self._is_bent else delay_s, callback)

    def timeout(self, delay_s: float | None) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(self._true_s(delay_s) if delay_s is not None and self._is_bent else delay_s)

    def _true_s(self, delay_s: float) -> float:
        """How long a wait of `delay_s` by this clock takes.  As with every real timer a little more, or rounding could
        end it before its time, again and again."""
        return delay_s / self._rate + TIMER_TICK_S

    # --- faults -----------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """Seconds of the monotonic clock for each true one; 0 while the host is suspended."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Let both clocks run at this rate from now on; timers that are set already keep their times.  At rate 0 the
        monotonic clock stands still (as CLOCK_MONOTONIC does in a sleeping machine), and the wall clock goes on."""
        self._set_now, wall = self.now(), self.wall()
        self._set_at, self._rate = self._loop.time(), rate
        self.wall_skew_s = wall - EPOCH_WALL - self._set_at
        self._is_bent = True
        self.now = self._bent_now

    def _bent_now(self) -> float:
        return self._set_now + (self._loop.time() - self._set_at) * self._rate


_MASK_64: Final = (1 << 64) - 1
_Library: Final = random.Random


class SmallRandom:
    """A `random.Random` with a state of 8 bytes instead of 2.5 KiB: a simulation has tens of thousands of them.

    SplitMix64; what is made of its bits is the standard library's own code, which asks for nothing but `random` and
    `getrandbits`.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", section 3.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: str) -> None:
        self._state = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")

    def _next(self) -> int:
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK_64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK_64
        return state ^ state >> 31

    def random(self) -> float:
        return (self._next() >> 11) * 2.0**-53

    def getrandbits(self, count: int) -> int:
        bits = 0
        for _ in range(-(-count // 64)):
            bits = bits << 64 | self._next()
        return bits >> -count % 64

    _randbelow = _Library._randbelow_with_getrandbits  # type: ignore[attr-defined]
    randrange = _Library.randrange
    randint = _Library.randint
    randbytes = _Library.randbytes
    choice = _Library.choice
    choices = _Library.choices
    sample = _Library.sample
    shuffle = _Library.shuffle
    uniform = _Library.uniform
    expovariate = _Library.expovariate
    normalvariate = _Library.normalvariate
    lognormvariate = _Library.lognormvariate
    gauss = _Library.normalvariate
    """The library's keeps a second value for the next call."""


class SimRng:
    """The simulated `Rng`: every stream is seeded by (seed, host, name), independent of PYTHONHASHSEED."""

    __slots__ = ("_prefix", "_streams")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._streams: dict[str, random.Random] = {}

    def stream(self, name: str) -> random.Random:
        found = self._streams.get(name)
        if found is None:
            found = self._streams[name] = cast(random.Random, SmallRandom(f"{self._prefix}:{name}"))
        return found


class SeededBytes:
    """Bytes from a seed, by hashing a counter: unlike a `random.Random` it keeps 100 bytes, not 2.5 KiB."""

    __slots__ = ("_counter", "_key", "_rest")

    def __init__(self, seed: str) -> None:
        self._key = hashlib.sha256(seed.encode()).digest()
        self._counter = 0
        self._rest = b""

    def __call__(self, count: int) -> bytes:
        rest = self._rest
        while len(rest) < count:
            self._counter += 1
            rest += hashlib.blake2b(self._counter.to_bytes(8, "big"), key=self._key).digest()
        self._rest = rest[count:]
        return rest[:count]


class SimCrypto:
    """Modelled crypto: opaque bytes of the right size at the price of a hash.

    A public key is a hash of its seed; a signature is a hash of seed and message, and `verify` finds the seed in the
    simulation's registry of keys.  Nobody without the seed can make a signature that verifies.  For simulations
    only: the registry knows every secret.

    Args:
        random_bytes: the host's.
        registry: seeds by public key, shared by all hosts of a simulation.
    """

    def __init__(self, random_bytes: SeededBytes, registry: dict[bytes, bytes]) -> None:
        self._random_bytes = random_bytes
        self._registry = registry
        self._public: dict[bytes, bytes] = {}

    def __eq__(self, other: object) -> bool:
        """Those of one simulation verify alike."""
        return isinstance(other, SimCrypto) and other._registry is self._registry

    def __hash__(self) -> int:
        return id(self._registry)

    def random_bytes(self, count: int) -> bytes:
        return self._random_bytes(count)

    def public_key(self, seed: bytes) -> bytes:
        key = self._public.get(seed)
        if key is None:
            if len(seed) != 32:
                raise ValueError(f"a secret seed has 32 bytes, not {len(seed)}")
            key = self._public[seed] = hashlib.blake2b(seed, digest_size=32, person=b"p2pc public").digest()
            self._registry[key] = seed
        return key

    def sign(self, seed: bytes, message: bytes) -> bytes:
        self.public_key(seed)
        return hashlib.blake2b(seed + message).digest()  # half the time of a keyed hash

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        seed = self._registry.get(public_key)
        return seed is not None and hashlib.blake2b(seed + message).digest() == signature

    def tag(self, seed: bytes, public_key: bytes, message: bytes) -> bytes:
        self.public_key(seed)
        other = self._registry.get(public_key)
        if other is None:  # nobody's
            other = self._random_bytes(32)
        return hashlib.blake2b(b"".join((min(seed, other), max(seed, other), message))).digest()


class SeededRealCrypto(RealCrypto):
    """Real Ed25519 with randomness from the simulation's seed: slower, and exact."""

    def __init__(self, random_bytes: SeededBytes) -> None:
        super().__init__()
        self._random_bytes = random_bytes

    def random_bytes(self, count: int) -> bytes:
        return self._random_bytes(count)


class SimProbe:
    """The simulated `Probe`: what the machine's model says, under the names that real machines use."""

    def __init__(self, host: SimHost) -> None:
        self._host = host

    async def attributes(self, names: Collection[str] | None = None) -> Attributes:
        host, model = self._host, self._host.runner_model
        busy = host.runner.busy_count
        values: dict[str, tuple[Value, float | None]] = {
            "os": ("linux", None), "arch": ("x86_64", None), "cpus": (float(model.slot_count), None),
            "mem.total": (model.mem_bytes, None), "disk.total": (2 * DISK_FREE_BYTES, None),
            "python": (("3.11",), None), "gpu.count": (0, None), "load": (float(busy), 30.0),
            "mem.free": (model.mem_bytes // 2, 30.0), "disk.free": (DISK_FREE_BYTES, 120.0),
        }  # fmt: skip
        values.update((name, (value, None)) for name, value in model.attributes.items())
        wall = host.clock.wall()
        return {name: Attribute(value, wall, lifetime_s) for name, (value, lifetime_s) in values.items()}

    async def has(self, words: Sequence[str]) -> Mapping[str, bool]:
        return {word: word in self._host.runner_model.has for word in words}


class SimHost:
    """A simulated host.  Made by `Simulation.add_host`."""

    def __init__(
        self,
        simulation: Simulation,
        number: int,
        name: str,
        machine: Machine,
        *,
        runner: RunnerModel,
        wall_skew_s: float,
        sync_s: float,
    ) -> None:
        self.simulation = simulation
        self.number = number
        """From 1; also in the trace."""
        self.name = name
        self.machine = machine
        self.runner_model = runner
        self.disk = SimDisk()
        self.tally = Tally()
        self.tasks = Tasks()
        self.is_up = False
        self.is_suspended = False
        self._rate_awake = 1.0
        self._sync_s = sync_s
        self._calls: dict[Future[Any], None] = {}
        self._context = Context()
        self._context.run(OWNER.set, self)
        prefix = f"{simulation.seed}:{number}"
        self.clock = SimClock(simulation.loop, wall_skew_s)
        self.rng = SimRng(prefix)
        self._rng = SimRng(f"{prefix}:host")
        random_bytes = SeededBytes(f"{prefix}:crypto")
        self.crypto: Crypto = (
            SeededRealCrypto(random_bytes) if simulation.has_real_crypto else SimCrypto(random_bytes, simulation.keys)
        )
        self._boot()

    def _boot(self) -> None:
        loop = self.simulation.loop
        self.net = SimNet(self.simulation.network, self.machine, self.number, self._context)
        self.store = SimStore(loop, self.disk, self.number, self._rng, sync_s=self._sync_s)
        self.runner = SimRunner(
            loop,
            self.clock,
            self.number,
            rng=self._rng,
            model=self.runner_model,
            context=self._context,
            tally=self.tally,
        )
        self.host = Host(
            clock=self.clock, rng=self.rng, crypto=self.crypto, net=self.net, store=self.store, runner=self.runner,
            probe=SimProbe(self),
        )  # fmt: skip
        self.is_up = True
        self.is_suspended = False

    @property
    def address(self) -> str:
        """Where other machines reach it: 10.x.y.z, or 127.0.0.1 when they cannot."""
        return self.machine.address

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> Task[T]:
        """Start a task on this host.

        Raises:
            HostDown: it is not up.
        """
        if not self.is_up:
            coroutine.close()
            raise HostDown(f"{self.name} is down")
        task_name = f"{self.name}.{name}"
        return self.simulation.loop.create_task(coroutine, name=task_name, context=self._context.copy())

    def enter(self, function: Callable[[], T]) -> T:
        """Call a function as if it ran on this host: what it starts belongs to it."""
        return self._context.copy().run(function)

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on this host and return its result.  For tests and scenarios, outside all hosts: if who asks
        crashed, nobody would take an error.

        Raises:
            HostDown: it is not up, or crashed meanwhile.
        """
        task = self.spawn(coroutine, "call")
        outcome: Future[T] = self.simulation.loop.create_future()
        self._calls[outcome] = None
        task.add_done_callback(functools.partial(_pass_on, outcome))
        try:
            return await outcome
        except CancelledError:
            task.cancel()
            raise
        finally:
            self._calls.pop(outcome, None)

    # --- faults -----------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Put the machine to sleep: nothing of the host runs, packets to it are lost, its streams stall.  What others
        start on it (`spawn`, `call`) waits.

        Raises:
            HostDown: it is not up, or sleeps already.
        """
        if not self.is_up or self.is_suspended:
            raise HostDown(f"{self.name} is down or sleeps")
        self.is_suspended = True
        self._rate_awake = self.clock.rate
        self.clock.set_rate(0.0)
        self.runner.suspend()
        self.simulation.network.unplug(self.machine)
        self.simulation.loop.suspend(self)

    def resume(self) -> None:
        """Wake the machine: all goes on where it stood, timers included; only the wall clock has jumped."""
        if not self.is_suspended:
            return
        self.is_suspended = False
        self.clock.set_rate(self._rate_awake)
        self.simulation.network.plug(self.machine)
        self.simulation.loop.resume(self)
        self.runner.resume()

    def set_runner(self, model: RunnerModel) -> None:
        """Run tasks after another model, at once.  The count of slots changes with a restart."""
        self.runner_model = model
        self.runner.change(model)

    def _crash(self, *, is_silent: bool) -> list[Task[Any]]:
        """Stop everything but what the loop holds; returns the tasks, which must be kept, or their `finally` would
        run."""
        if self.is_suspended:
            self.clock.set_rate(self._rate_awake)
            self.simulation.network.plug(self.machine)
            self.is_suspended = False
        self.is_up = False
        self.net.kill(is_silent=is_silent)
        self.store.crash()
        self.runner.crash()
        dead = [task for task in self.tasks if not task.done()]
        self.tasks = Tasks()
        for outcome in list(self._calls):
            if not outcome.done():
                outcome.set_exception(HostDown(f"{self.name} crashed"))
        return dead


def _pass_on(outcome: Future[T], task: Task[T]) -> None:
    """Give a task's end to the future of who waits; an error that nobody waits for stays the task's own."""
    if outcome.done():
        return
    if task.cancelled():
        outcome.cancel()
        return
    error = task.exception()
    if error is None:
        outcome.set_result(task.result())
    else:
        outcome.set_exception(error)


class Simulation:
    """Loop, network and hosts of one simulated world.  Close it, or use it as a context.

    Args:
        seed: everything random comes from it; an int or a str.
        model: of the network.
        has_real_crypto: Ed25519 instead of modelled signatures.
        is_shuffled: run callbacks that are ready at the same time in a seeded random order.

    Raises:
        UsageError: the model's file of coordinates cannot be read.
    """

    def __init__(
        self,
        seed: int | str,
        *,
        model: NetworkSettings | None = None,
        has_real_crypto: bool = False,
        is_shuffled: bool = False,
    ) -> None:
        self.seed = str(seed)
        self.has_real_crypto = has_real_crypto
        shuffle = random.Random(f"{self.seed}:shuffle") if is_shuffled else None
        self.loop = SimulationLoop(shuffle=shuffle)
        try:
            self.network = Network(self.loop, self.seed, model or NetworkSettings())
        except BaseException:
            self.loop.close()
            raise
        self.hosts: list[SimHost] = []
        self.keys: dict[bytes, bytes] = {}
        """Registry of the modelled crypto."""
        self._dead: list[Task[Any]] = []

    def add_host(
        self,
        name: str | None = None,
        *,
        lan: str | None = None,
        is_loopback_only: bool = False,
        beside: SimHost | None = None,
        nat: NatKind | None = None,
        runner: RunnerModel | None = None,
        wall_skew_s: float = 0.0,
        sync_s: float = SYNC_S,
    ) -> SimHost:
        """Add a host that is up.

        Args:
            name: default "host-N".  Other hosts can resolve it.
            lan: the local network it is in.
            is_loopback_only: its machine has no other address.
            beside: share this host's machine, and so its addresses, instead of having an own one.
            nat: what its home is behind, see `Network.add_machine`.
            wall_skew_s: error of its wall clock.
            sync_s: mean time of its disk to sync.
        """
        number = len(self.hosts) + 1
        name = name or f"host-{number}"
        if name in self.network.names:
            raise ValueError(f"there is a host {name!r} already")
        if beside is not None:
            machine = beside.machine
        else:
            machine = self.network.add_machine(lan=lan, is_loopback_only=is_loopback_only, nat=nat)
        self.network.names[name] = machine
        host = SimHost(
            self, number, name, machine, runner=runner or RunnerModel(), wall_skew_s=wall_skew_s, sync_s=sync_s
        )
        self.hosts.append(host)
        self.loop.host_count = number
        return host

    def run(
        self,
        main: Coroutine[Any, Any, T],
        *,
        time_s_max: float = RUN_TIME_S_MAX,
        events_max: int = RUN_EVENTS_MAX,
    ) -> T:
        """Run until `main`, which is outside all hosts, is done.  See `SimulationLoop.run`."""
        return self.loop.run(main, time_s_max=time_s_max, events_max=events_max)

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.loop.time()

    def note(self, text: str) -> None:
        """Put a record into the trace."""
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        self.loop.trace.record(self.loop.time(), 0, Kind.NOTE, digest)

    def trace_hash(self) -> str:
        """SHA-256 of what happened so far, in hex."""
        return self.loop.trace.digest()

    def crash(self, *hosts: SimHost, is_silent: bool = False) -> None:
        """Stop hosts at once.  Only what was durable is kept.  Not to be called from their own tasks.

        Args:
            is_silent: the machine loses power and answers nothing; otherwise the process is killed, and the
                machine resets its streams and refuses new ones.
        """
        for host in hosts:
            if not host.is_up:
                raise HostDown(f"{host.name} is down already")
            if is_silent and any(net is not host.net for net in host.machine.nets):
                raise ValueError("another host is up on this machine; power is lost by all")
        for host in hosts:
            self.loop.trace.record(self.loop.time(), host.number, Kind.CRASH, int(is_silent))
            self._dead += host._crash(is_silent=is_silent)
        self.loop.discard(hosts)

    def restart(self, host: SimHost) -> None:
        """Start a host that is down, on its disk as it is.  Its `Host` is a new one."""
        if host.is_up:
            raise ValueError(f"{host.name} is up")
        self.loop.trace.record(self.loop.time(), host.number, Kind.RESTART, 0)
        host.machine.is_silent = False
        host._boot()

    def close(self) -> None:
        """Cancel what runs, see that it ends, and end the loop.  Safe to call twice.

        Raises:
            RunFailed: a task failed on the way out, or an exception was never taken.
            RunLimit, Deadlock: tasks do not end when cancelled.
        """
        if self.loop.is_closed():
            return
        try:
            self._cancel_all()
        finally:
            self._bury()
            gc.collect()
            error = self.loop.take_failure()
            self.loop.close()
        if error is not None:
            raise RunFailed("a task failed", f"{type(error).__name__}: {error}") from error

    def _cancel_all(self) -> None:
        dead = {id(task) for task in self._dead}
        tasks = [task for task in asyncio.all_tasks(self.loop) if id(task) not in dead]
        if not tasks:
            return
        tasks.sort(key=lambda task: task.get_name())

        async def end() -> list[Any]:
            for task in tasks:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        for result in self.loop.run(end(), time_s_max=CLOSE_TIME_S_MAX, events_max=CLOSE_EVENTS_MAX):
            if isinstance(result, Exception):
                raise RunFailed("a task failed when it was cancelled", repr(result)) from result

    def _bury(self) -> None:
        """End the coroutines of crashed hosts.  The world is over: what their `finally` does reaches nobody."""
        for task in [*self._dead, *asyncio.all_tasks(self.loop)]:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine = task.get_coro()
                if coroutine is not None:
                    with contextlib.suppress(BaseException):
                        coroutine.close()
        self._dead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # The error that ended the run is what matters; those of closing only follow from it.
        with contextlib.suppress(Exception):
            self.close()
