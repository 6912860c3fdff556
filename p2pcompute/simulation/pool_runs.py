"""The experiment `pool`: how well pool policies spread requests over servers of different capacity.

Users have requests of random size at random times, and work them off one after the other.  Each is sent to the element
that a policy selects by the loads that are known: reports take the delay of their element.  An element works on its
requests side by side, each with an equal part of its capacity, and refuses one beyond `requests_max`; then the next in
the policy's order is tried.  With `steal`, which is no policy, nothing is sent: requests wait, and an element fetches
the oldest one when it is idle, as nodes do here.

Elements differ: a share of them is faster than the rest, and the sum of all capacities stays the same.

Source: Dreibholz & Rathgeb, "On the Performance of Reliable Server Pooling Systems" (2005) for model, settings and both
figures.  Deviation: nothing fails.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from p2pcompute.scheduler.policies import POLICIES, Element, Policy
from p2pcompute.simulation.metrics import Metrics
from p2pcompute.simulation.result import RunResult, Watch
from p2pcompute.simulation.scenario import Scenario

Choice: TypeAlias = Literal[
    "round-robin", "weighted-round-robin", "random", "weighted-random", "priority", "least-used",
    "least-used-with-degradation", "priority-least-used", "randomized-least-used", "least-used-delay-penalised",
    "steal",
]  # fmt: skip
STEAL: Final = "steal"
HOUR_S: Final = 3600.0
ENOUGH: Final = 1e-9
"""Work that counts as done."""


class PoolSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `pool`."""

    policy: Annotated[Choice, Meta(description="who gets a request; steal: whoever is idle fetches one")] = "least-used"
    elements: Annotated[int, Meta(ge=1, le=10_000, description="servers")] = 10
    utilisation: Annotated[
        float, Meta(gt=0, lt=1, description="requests that come, over what all servers can do together")
    ] = 0.6
    users: Annotated[int, Meta(ge=1, le=1000, description="users for each server")] = 10
    size_s: Annotated[
        float, Meta(gt=0, le=1e6, description="mean size of a request (exponential), seconds of a mean server")
    ] = 10.0
    requests_max: Annotated[int, Meta(ge=1, le=10_000, description="requests at once that a server takes")] = 20
    fast_share: Annotated[float, Meta(ge=0, le=1, description="share of the servers that are faster")] = 0.2
    fast_factor: Annotated[float, Meta(ge=1, le=1000, description="how much faster they are")] = 5.0
    delay_s: Annotated[float, Meta(ge=0, le=60, description="median of the delays from and to a server, one way")] = 0.1
    delay_sigma: Annotated[float, Meta(ge=0, le=3, description="spread of the delays (log-normal)")] = 1.0
    hours: Annotated[float, Meta(gt=0, le=10_000, description="for how long requests come, hours")] = 1.0

    @property
    def nodes(self) -> int:
        return self.elements


@dataclass(slots=True)
class _Request:
    user: int
    came_s: float
    size: float
    left: float


@dataclass(slots=True)
class _Server:
    """A pool element as it is, and as it is known."""

    key: bytes
    capacity: float
    delay_s: float
    requests: list[_Request] = field(default_factory=list)
    looked_s: float = 0.0
    version: int = 0
    """Of its next end: an older one is void."""
    done: float = 0.0
    """Work done while requests came."""
    known: int = 0
    """Requests by the last report that has arrived."""
    reports: int = 0
    is_fetching: bool = False


class _Run:
    """One run under way."""

    def __init__(self, settings: PoolSettings, seed: int) -> None:
        self.settings = settings
        self.rng = random.Random(f"pool/{seed}")
        self.policy_rng = random.Random(f"pool/policy/{seed}")
        self.policy: Policy | None = None if settings.policy == STEAL else POLICIES[settings.policy]()
        self.metrics = Metrics()
        self.trace = hashlib.sha256()
        self.now = 0.0
        self.events = 0
        self.refused = 0
        self.waiting: deque[_Request] = deque()
        """Requests that nobody has fetched."""
        self.behind: dict[int, deque[_Request]] = {}
        """User with a request under way → further ones."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        fast = round(settings.fast_share * settings.elements)
        slow = settings.elements / (settings.elements - fast + fast * settings.fast_factor)
        self.servers = [
            _Server(
                number.to_bytes(4),
                slow * (settings.fast_factor if number < fast else 1.0),
                settings.delay_s * math.exp(self.rng.gauss(0.0, settings.delay_sigma)),
            )
            for number in range(settings.elements)
        ]

    def at(self, at_s: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (at_s, self._count, call))

    def play(self) -> None:
        """Let requests come for `hours`, and all of them end."""
        self.at(self._gap_s(), self._come)
        while self._queue:
            self.now, _count, call = heapq.heappop(self._queue)
            self.events += 1
            call()

    def _gap_s(self) -> float:
        settings = self.settings
        return self.rng.expovariate(settings.utilisation * settings.elements / settings.size_s)

    def _come(self) -> None:
        user = self.rng.randrange(self.settings.users * self.settings.elements)
        request = _Request(user, self.now, size := self.rng.expovariate(1 / self.settings.size_s), size)
        if user in self.behind:
            self.behind[user].append(request)
        else:
            self.behind[user] = deque()
            self._start(request)
        if (following_s := self.now + self._gap_s()) < self.settings.hours * HOUR_S:
            self.at(following_s, self._come)

    def _start(self, request: _Request) -> None:
        if self.policy is not None:
            self._send(request, self._ordered(self.policy))
            return
        self.waiting.append(request)
        for server in sorted(self.servers, key=lambda one: one.delay_s):
            if not server.requests and not server.is_fetching:
                self._fetch(server)
                break

    def _over(self, request: _Request) -> None:
        """A user has the answer, and sends the next request."""
        took_s = self.now - request.came_s
        self.metrics.sample("handling_s", took_s)
        self.metrics.sample("handling_speed", request.size / took_s)
        self.trace.update(f"{took_s:.9f}".encode())
        if self.behind[request.user]:
            self._start(self.behind[request.user].popleft())
        else:
            del self.behind[request.user]

    # --- pushing ----------------------------------------------------------------------------------

    def _ordered(self, policy: Policy) -> deque[_Server]:
        most = self.settings.requests_max
        elements = [
            Element(
                server.key,
                weight=server.capacity,
                priority=round(1000 * server.capacity),
                load=min(1.0, server.known / most),
                degradation=1 / most / server.capacity if self.settings.policy == "priority-least-used" else 1 / most,
                delay_s=2 * server.delay_s,
                report=server.reports,
            )
            for server in self.servers
        ]
        ordered = policy.order(elements, self.policy_rng)
        policy.selected(ordered[0])
        return deque(self.servers[int.from_bytes(element.key)] for element in ordered)

    def _send(self, request: _Request, servers: deque[_Server]) -> None:
        """Send a request to the first of these, which may refuse it."""
        server = servers.popleft()
        servers.append(server)

        def arrive() -> None:
            if len(server.requests) < self.settings.requests_max:
                self._begin(server, request)
                return
            self.refused += 1
            self.at(self.now + server.delay_s, lambda: self._send(request, servers))

        self.at(self.now + server.delay_s, arrive)

    def _report(self, server: _Server) -> None:
        count = len(server.requests)

        def arrive() -> None:
            server.known, server.reports = count, server.reports + 1

        self.at(self.now + server.delay_s, arrive)

    # --- pulling ----------------------------------------------------------------------------------

    def _fetch(self, server: _Server) -> None:
        """An idle server asks for a request and gets the oldest one, if there is any when the question arrives."""
        server.is_fetching = True

        def asked() -> None:
            if not self.waiting:
                server.is_fetching = False
                return
            request = self.waiting.popleft()
            self.at(self.now + server.delay_s, lambda: got(request))

        def got(request: _Request) -> None:
            server.is_fetching = False
            self._begin(server, request)

        self.at(self.now + server.delay_s, asked)

    # --- working ----------------------------------------------------------------------------------

    def _begin(self, server: _Server, request: _Request) -> None:
        self._work(server)
        server.requests.append(request)
        self._changed(server)

    def _work(self, server: _Server) -> None:
        """Bring what a server has done up to now."""
        if server.requests:
            passed_s = self.now - server.looked_s
            done_s = min(self.now, self.settings.hours * HOUR_S) - server.looked_s
            server.done += max(0.0, done_s) * server.capacity
            for request in server.requests:
                request.left -= passed_s * server.capacity / len(server.requests)
        server.looked_s = self.now

    def _changed(self, server: _Server) -> None:
        self._report(server)
        server.version += 1
        if not server.requests:
            return
        version = server.version
        least = min(request.left for request in server.requests)

        def look() -> None:
            if version == server.version:
                self._end(server)

        self.at(self.now + max(0.0, least) * len(server.requests) / server.capacity, look)

    def _end(self, server: _Server) -> None:
        self._work(server)
        over = [request for request in server.requests if request.left <= ENOUGH]
        server.requests = [request for request in server.requests if request.left > ENOUGH]
        for request in over:
            self.at(self.now + server.delay_s, partial(self._over, request))
        self._changed(server)
        if self.policy is None and not server.requests:
            self._fetch(server)


def run_pool(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    """Run one seed of a scenario about pool policies.

    Args:
        until_s: without effect: requests come for `hours`, and all of them end.
    """
    settings = scenario.settings
    assert isinstance(settings, PoolSettings)
    began = time.perf_counter()
    run = _Run(settings, seed)
    run.play()
    capacity = settings.hours * HOUR_S * settings.elements
    run.metrics.set("pool_utilisation", sum(one.done for one in run.servers) / capacity)
    run.metrics.set("refused", run.refused)
    problems = ("requests are left over",) if run.behind else ()
    return RunResult(
        scenario=scenario.name,
        seed=seed,
        nodes=settings.elements,
        trace_hash=run.trace.hexdigest(),
        events=run.events,
        messages=0,
        wall_s=time.perf_counter() - began,
        simulated_s=run.now,
        metrics=run.metrics.result(),
        fired={},
        problems=problems,
    )
