"""The experiment `dht`: what gets, puts and lookups find and cost among dead, hostile and crafted nodes.

Nodes run the DHT alone (`dht_nodes`) and start with the tables of nodes that have been up for long.  Then: some records
are put; `dead` of the nodes lose power in the same instant, so that this part of every table is dead and nobody knows;
within seconds, each from another node as far as there are so many, `asks` are made.  Or, with `hours`, over a longer
time, in which nodes go and newcomers come.  Hostile nodes are there from the beginning, in the tables like others: they
answer every question with the hostile nodes nearest to the key, take records and do not keep them.  Sybils are hostile
nodes whose places are around the key of a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final, Literal, Protocol

from msgspec import Meta, Struct

from p2pcompute.dht.capacity import Feature
from p2pcompute.dht.contacts import range_of
from p2pcompute.dht.puzzle import BITS_MAX
from p2pcompute.dht.records import Record, make_record
from p2pcompute.errors import P2pcError
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import DHT_K, INDEX_WANT_MAX, RECORD_TTL_S_MAX
from p2pcompute.simulation.adversaries import blind
from p2pcompute.simulation.dht_nodes import DhtNode, DhtNodes, grind
from p2pcompute.simulation.host import HostDown, Simulation
from p2pcompute.simulation.mesh import PORT
from p2pcompute.simulation.metrics import Metrics
from p2pcompute.simulation.network import UDP_HEADER_BYTES, NetworkSettings
from p2pcompute.simulation.result import EVENTS_MAX, PROBLEMS_MAX, RunResult, Watch
from p2pcompute.simulation.scenario import Scenario

RECORD_TTL_S: Final = int(RECORD_TTL_S_MAX)
VALUE_BYTES: Final = 300
RTT_PAIRS: Final = 2000
SETTLE_S: Final = 5.0
"""Between the parts of a run."""
RUN_S_MAX: Final = 24 * 3600.0
ASKS_PER_S: Final = 20.0
ADVERTISE_S: Final = 90.0
"""Until whoever has something rare has advertised it."""
_FEATURE: Final = Feature("sim", 1)
_JOIN_ADDRESSES: Final = 2
"""Members that a newcomer knows of."""
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class DhtSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `dht`."""

    nodes: Annotated[int, Meta(ge=2, le=100_000, description="nodes of the group, without Sybils")] = 1000
    ask: Annotated[
        Literal["get", "put", "find", "search"],
        Meta(
            description="what is measured; put: each record is read once afterwards, by another node; search: nodes "
            "that have something, of which the capacity index tells"
        ),
    ] = "get"
    asks: Annotated[int, Meta(ge=1, le=1_000_000, description="how many are made")] = 200
    records: Annotated[int, Meta(ge=1, le=100_000, description="records put beforehand, which gets ask for")] = 40
    share: Annotated[_Share, Meta(description="search: share of the nodes that have what is searched for")] = 0.01
    want: Annotated[int, Meta(ge=1, le=INDEX_WANT_MAX, description="search: nodes that one looks for")] = 30
    dead: Annotated[
        _Share, Meta(description="share of the nodes, and so of all contacts, that die before the asks")
    ] = 0.0
    hostile: Annotated[_Share, Meta(description="share of the nodes that are hostile and of one mind")] = 0.0
    sybils: Annotated[int, Meta(ge=0, le=1000, description="hostile nodes crafted around each record's key")] = 0
    sybil_addresses: Annotated[
        int, Meta(ge=0, le=1000, description="addresses that the Sybils of one key share; 0: each has its own")
    ] = 0
    open: Annotated[
        bool,
        Meta(description="an open group, and each machine in a /24 of its own: tables take few contacts of one range"),
    ] = False
    puzzle: Annotated[
        int,
        Meta(
            ge=0,
            le=BITS_MAX,
            description="bits of a puzzle that a key has to solve to count; Sybils come from as many tries as ever",
        ),
    ] = 0
    hours: Annotated[
        float, Meta(ge=0, le=10_000, description="the asks are spread over this time; 0: 20 of them a second")
    ] = 0.0
    session_hours: Annotated[
        float,
        Meta(
            ge=0,
            le=10_000,
            description="median session, of exponential ones, in hours: who has gone, without a word, does not come "
            "back, and a newcomer comes for him; 0: all stay",
        ),
    ] = 0.0
    kept: Annotated[
        bool,
        Meta(description="publishers stay and put their records again before these end; else each is put once"),
    ] = False
    network: NetworkSettings = NetworkSettings()

    def __post_init__(self) -> None:
        if round(self.hostile * self.nodes) >= self.nodes:
            raise ValueError("at least one node must be honest")


class _Run:
    """One run under way."""

    def __init__(self, settings: DhtSettings, seed: int, watch: Watch | None) -> None:
        self._began = time.perf_counter()
        self.settings = settings
        self.seed = str(seed)
        self.watch = watch
        self.metrics = Metrics()
        for name in ("asks_interrupted", "newcomers"):
            self.metrics.count(name, 0)  # a seed in which it has not happened counts in the mean
        self.fired: Counter[str] = Counter()
        self.simulation = Simulation(self.seed, model=settings.network)
        self.nodes = DhtNodes(self.simulation, is_open=settings.open, puzzle_bits=settings.puzzle)
        self.records: list[Record] = []
        self._askers: list[DhtNode] = []
        self._publishers: dict[bytes, None] = {}
        self._having: dict[bytes, None] = {}
        self._median_rtt_s = 1.0

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}:{purpose}")

    def wall_s(self) -> float:
        return time.perf_counter() - self._began

    # --- the group --------------------------------------------------------------------------------

    async def build(self) -> None:
        """Make the nodes, honest and hostile, and fill their tables."""
        settings, nodes = self.settings, self.nodes
        for _ in range(settings.nodes):
            await nodes.add()
        for node in self.rng("hostile").sample(nodes.all, round(settings.hostile * settings.nodes)):
            node.is_hostile = True
        if settings.ask == "get":
            publishers = self.rng("publishers").choices(self._honest(), k=settings.records)
            self.records = [self._record(node, number) for number, node in enumerate(publishers)]
            for record in self.records:
                await self._craft(record.key)
        if settings.ask == "search":
            self._describe()
        gang = [node.contact for node in nodes.all if node.is_hostile]
        for node in nodes.all:
            if node.is_hostile:
                blind(node.dht, lambda: gang, self._fire)
        nodes.warm()
        rng, network = self.rng("median rtt"), self.simulation.network
        pairs = [rng.sample(nodes.all, 2) for _ in range(RTT_PAIRS)]
        rtts = [2 * network.base_delay_s(one.host.machine, other.host.machine) for one, other in pairs]
        self._median_rtt_s = statistics.median(rtts)

    def _describe(self) -> None:
        """Have each node say what it has."""
        having = self.rng("having").sample(self.nodes.all, round(self.settings.share * self.settings.nodes))
        self._having = dict.fromkeys(node.identity.public_key for node in having)
        for node in self.nodes.all:
            features = [_FEATURE] if node.identity.public_key in self._having else []
            node.class_bits = sum(feature.bits for feature in features)
            node.host.enter(partial(node.dht.describe_capacity, node.class_bits, features))

    async def _craft(self, key: bytes) -> None:
        """Add Sybils around a key."""
        first = len(self.nodes.all)
        shared = self.settings.sybil_addresses or self.settings.sybils
        settings = self.settings
        made = grind(self.seed, key, settings.sybils, nodes=settings.nodes, puzzle_bits=settings.puzzle)
        for number, secret in enumerate(made):
            beside = self.nodes.all[first + number % shared].host if number >= shared else None
            node = await self.nodes.add(secret=secret, beside=beside, port=PORT + number // shared)
            node.is_hostile = True

    def _look_for_crowds(self) -> None:
        """Find the most contacts of one address range in a bucket of an honest node."""
        for node in self._honest():
            own = node.contact.number
            crowds = Counter(
                ((contact.number ^ own).bit_length(), range_of(contact.address.host)) for contact in node.dht.contacts()
            )
            self.metrics.peak("crowd", max(crowds.values(), default=0))

    def _record(self, node: DhtNode, number: int) -> Record:
        value = self.rng(f"value {number}").randbytes(VALUE_BYTES)
        wall, salt = node.host.clock.wall(), number.to_bytes(4, "big")
        sign, key = node.identity.sign_envelope, node.identity.public_key
        return make_record(sign, key, salt=salt, seq=1, wall=wall, ttl_s=RECORD_TTL_S, value=value)

    def _honest(self) -> list[DhtNode]:
        return [node for node in self.nodes.all if not (node.is_hostile or node.is_dead)]

    def _fire(self) -> None:
        self.fired["hostile"] += 1

    # --- the parts of a run -----------------------------------------------------------------------

    async def play(self) -> None:
        """Build, put, kill, ask."""
        await self.build()
        if self.settings.ask == "get":
            by_key = {node.identity.public_key: node for node in self.nodes.all}
            self._publishers = {record.publisher: None for record in self.records}
            put = self._publish if self.settings.kept else self._put
            await self._each([partial(put, by_key[record.publisher], record) for record in self.records])
            await asyncio.sleep(SETTLE_S)
        if self.settings.ask == "search":
            await asyncio.sleep(ADVERTISE_S)
        self._kill()
        self._count_holders()
        if self.settings.open:
            self._look_for_crowds()
        churn = asyncio.create_task(self._churn(), name="dht.churn")
        every_s = self.settings.hours * 3600 / self.settings.asks or 1 / ASKS_PER_S
        bytes_sent, began = self._bytes_sent(), self.simulation.now
        try:
            await self._each([partial(self._ask, number) for number in range(self.settings.asks)], every_s)
            node_s = (self.simulation.now - began) * sum(not node.is_dead for node in self.nodes.all)
            self.metrics.set("upkeep_bytes_s", (self._bytes_sent() - bytes_sent) / node_s)
            if self.settings.ask == "put":
                await asyncio.sleep(SETTLE_S)
                await self._each([partial(self._read_again, record) for record in self.records])
        finally:
            churn.cancel()

    def _bytes_sent(self) -> int:
        counters = self.simulation.network.counters
        return counters.bytes_sent + UDP_HEADER_BYTES * counters.datagrams_sent

    def _kill(self) -> None:
        honest = self._honest()
        self.nodes.kill(self.rng("dead").sample(honest, round(self.settings.dead * len(honest))))
        self._tell("crash", count=len(honest) - len(self._honest()))

    def _count_holders(self) -> None:
        """How many nodes that are up and honest have each record."""
        now, honest = self.simulation.now, self._honest()
        for record in self.records:
            self.metrics.sample("holders", sum(bool(node.dht.records.get(record.key, now=now)) for node in honest))

    async def _churn(self) -> None:
        """Let nodes go, and others come for them, until the end."""
        if not self.settings.session_hours:
            return
        rng = self.rng("churn")
        rate = math.log(2) / (self.settings.session_hours * 3600)
        while True:
            await asyncio.sleep(rng.expovariate(rate * self.settings.nodes))
            staying = self._publishers if self.settings.kept else {}
            honest = [node for node in self._honest() if node.identity.public_key not in staying]
            gone, *members = rng.sample(honest, 1 + _JOIN_ADDRESSES)
            self.nodes.kill([gone])
            self._tell("crash", node=gone.host.name)
            await self.nodes.add(addresses=[member.address for member in members])
            self.metrics.count("newcomers")

    async def _each(
        self, asks: Sequence[Callable[[], Coroutine[Any, Any, None]]], every_s: float = 1 / ASKS_PER_S
    ) -> None:
        """Begin one after the other, and wait for all."""
        async with asyncio.TaskGroup() as group:
            for number, ask in enumerate(asks):
                group.create_task(ask(), name=f"dht.ask-{number}")
                await asyncio.sleep(every_s)
                if self.watch is not None:
                    self.watch.progress(self.simulation.now, self.wall_s())

    def _asker(self) -> DhtNode:
        """A node of those who have been asked to ask least often."""
        if not self._askers:
            self._askers = self._honest()
            self.rng(f"askers {self.simulation.now}").shuffle(self._askers)
        while (node := self._askers.pop()).is_dead:
            if not self._askers:
                return self._asker()
        return node

    async def _ask(self, number: int) -> None:
        node = self._asker()
        try:
            match self.settings.ask:
                case "get":
                    await self._get(node, self.records[number % len(self.records)])
                case "find":
                    await self._find(node, self.rng(f"key {number}").randbytes(DHT_ID_BYTES))
                case "put":
                    record = self._record(node, number)
                    self.records.append(record)
                    await self._measured(node, self._put(node, record))
                case "search":
                    await self._search(node)
        except HostDown:
            self.metrics.count("asks_interrupted")

    async def _read_again(self, record: Record) -> None:
        await self._read(self._asker(), record)

    async def _publish(self, node: DhtNode, record: Record) -> None:
        node.host.enter(partial(node.dht.publish, record.salt, record.value, ttl_s=record.ttl_s))

    async def _put(self, node: DhtNode, record: Record) -> None:
        self.metrics.sample("copies", await node.host.call(node.dht.put(record)))

    async def _get(self, node: DhtNode, record: Record) -> None:
        await self._measured(node, self._read(node, record))
        self.metrics.sample("hops", node.dht.last_lookup[1])

    async def _read(self, node: DhtNode, record: Record) -> None:
        found = await node.host.call(node.dht.get(record.key))
        is_found = any((one.publisher, one.value) == (record.publisher, record.value) for one in found)
        self.metrics.share("success", is_found)
        self._tell("get", node=node.host.name, found=is_found)

    async def _find(self, node: DhtNode, key: bytes) -> None:
        found: list[bytes] = []

        async def find() -> None:
            found.extend(contact.key for contact in await node.host.call(node.dht.find(key)))

        await self._measured(node, find())
        live = self.nodes.nearest(key, DHT_K, lambda one: not one.is_dead and one is not node)
        nearest = [one.identity.public_key for one in live]
        self.metrics.sample("hops", node.dht.last_lookup[1])
        self.metrics.sample("recall", sum(one in found for one in nearest) / len(nearest))
        self.metrics.share("success", found[:1] == nearest[:1])

    async def _search(self, node: DhtNode) -> None:
        found: list[bytes] = []

        async def search() -> None:
            told = await node.host.call(node.dht.index.search([_FEATURE], self.settings.want))
            found.extend(contact.key for contact in told)

        await self._measured(node, search())
        up = {one.identity.public_key for one in self.nodes.all if not (one.is_dead or one is node)}
        there = sum(key in up for key in self._having)
        count = sum(key in up and key in self._having for key in found)
        self.metrics.sample("found", count)
        self.metrics.share("success", count >= min(self.settings.want, there))

    async def _measured(self, node: DhtNode, ask: Coroutine[Any, Any, None]) -> None:
        counters, began = node.dht.counters, self.simulation.now
        requests, resent = counters.requests_sent, counters.requests_resent
        await ask
        self.metrics.sample("latency_rtt", (self.simulation.now - began) / self._median_rtt_s)
        self.metrics.sample("messages", counters.requests_sent - requests)
        self.metrics.sample("resent", counters.requests_resent - resent)

    def _tell(self, kind: str, *, node: str = "", **fields: Any) -> None:
        record = {"t": self.simulation.now, "kind": kind, "node": node, **fields}
        self.simulation.note(json.dumps(record, sort_keys=True))
        if self.watch is not None:
            self.watch.record(record)


class DhtRun(Protocol):
    """One run under way, of nodes that have nothing but a DHT."""

    simulation: Simulation
    nodes: DhtNodes
    metrics: Metrics

    def wall_s(self) -> float: ...

    async def play(self) -> None: ...


def play_out(run: DhtRun, scenario: Scenario, seed: int, *, nodes: int, until_s: float | None) -> RunResult:
    """Play a run to its end, or to this virtual time, and see that every table is sound.

    Args:
        nodes: how many the settings say.
    """
    problems: list[str] = []

    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until_s):
                await run.play()

    try:
        with run.simulation as simulation:
            simulation.run(main(), time_s_max=RUN_S_MAX, events_max=EVENTS_MAX)
            for node in run.nodes.all:
                node.dht.check_invariants()
    except P2pcError as error:
        problems.append(f"{run.simulation.now:.3f} s: {error}")
    return RunResult(
        scenario=scenario.name,
        seed=seed,
        nodes=nodes,
        trace_hash=run.simulation.trace_hash(),
        events=run.simulation.loop.events,
        messages=run.simulation.network.counters.datagrams_sent,
        wall_s=run.wall_s(),
        simulated_s=run.simulation.now,
        metrics=run.metrics.result(),
        fired={},
        problems=(*problems, *run.nodes.errors[:PROBLEMS_MAX]),
    )


def run_dht(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    """Run one seed of a scenario about the DHT.

    Args:
        until_s: stop at this virtual time.
    """
    settings = scenario.settings
    assert isinstance(settings, DhtSettings)
    run = _Run(settings, seed, watch)
    result = play_out(run, scenario, seed, nodes=settings.nodes, until_s=until_s)
    return replace(result, fired=dict(sorted(run.fired.items())))
