"""The experiment `small`: how soon everybody in a small group knows who is there and who is not.

Nodes run the DHT alone (`dht_nodes`), all in one /24, in a private group.  They join one after the other by the address
of the first; then some lose power, one after the other, and nobody is told; before and after, nodes look up keys.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final

from msgspec import Meta, Struct

from p2pcompute.errors import P2pcError
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import DHT_K
from p2pcompute.simulation.dht_nodes import DhtNode, DhtNodes
from p2pcompute.simulation.dht_runs import play_out
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.metrics import Metrics
from p2pcompute.simulation.network import NetworkSettings
from p2pcompute.simulation.result import RunResult, Watch
from p2pcompute.simulation.scenario import Scenario

REST_S: Final = 15.0
"""Between two that come or go, so that each is seen by a group at rest."""
LOOK_S: Final = 0.01
WAIT_S_MAX: Final = 600.0


class SmallSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `small`."""

    nodes: Annotated[int, Meta(ge=2, le=200, description="nodes of the group")] = 10
    deaths: Annotated[int, Meta(ge=0, le=200, description="nodes that lose power, at most all but one")] = 3
    asks: Annotated[int, Meta(ge=1, le=100_000, description="lookups before the deaths, and as many after them")] = 20
    network: NetworkSettings = NetworkSettings()


class _Run:
    """One run under way."""

    def __init__(self, settings: SmallSettings, seed: int, watch: Watch | None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.simulation = Simulation(str(seed), model=settings.network)
        self.nodes = DhtNodes(self.simulation)
        self._rng = random.Random(f"{seed}:small")
        self._watch = watch
        self._began = time.perf_counter()

    def wall_s(self) -> float:
        return time.perf_counter() - self._began

    async def play(self) -> None:
        """Join, look up, die, look up."""
        settings = self.settings
        for _ in range(settings.nodes):
            first = self.nodes.all[:1]
            newcomer = await self.nodes.add(addresses=[node.address for node in first])
            if first:
                await self._until("known_s", partial(self._knows_all, newcomer))
            await self._rest()
        await self._look_up()
        for gone in self._rng.sample(self.nodes.all, min(settings.deaths, settings.nodes - 1)):
            self.nodes.kill([gone])
            await self._until("forgotten_s", partial(self._is_forgotten, gone))
            await self._rest()
        await self._look_up()

    def _up(self) -> list[DhtNode]:
        return [node for node in self.nodes.all if not node.is_dead]

    def _know(self, node: DhtNode) -> list[bool]:
        """Whether each of the others has a node in its table."""
        return [node.identity.public_key in other.dht for other in self._up() if other is not node]

    def _knows_all(self, node: DhtNode) -> bool:
        return all(self._know(node)) and node.dht.contact_count == len(self._up()) - 1

    def _is_forgotten(self, node: DhtNode) -> bool:
        return not any(self._know(node))

    async def _until(self, name: str, is_so: Callable[[], bool]) -> None:
        began = self.simulation.now
        while not is_so():
            if self.simulation.now - began > WAIT_S_MAX:
                raise P2pcError(f"{name}: not within {WAIT_S_MAX:.0f} s")
            await asyncio.sleep(LOOK_S)
        self.metrics.sample(name, self.simulation.now - began)

    async def _rest(self) -> None:
        await asyncio.sleep(REST_S)
        if self._watch is not None:
            self._watch.progress(self.simulation.now, self.wall_s())

    async def _look_up(self) -> None:
        """Count a lookup as complete when it names the nearest k nodes that are up, or all, in their order."""
        for _ in range(self.settings.asks):
            node, key = self._rng.choice(self._up()), self._rng.randbytes(DHT_ID_BYTES)
            counters, began = node.dht.counters, self.simulation.now
            requests = counters.requests_sent
            found = [contact.key for contact in await node.host.call(node.dht.find(key))]
            self.metrics.sample("lookup_s", self.simulation.now - began)
            self.metrics.sample("messages", counters.requests_sent - requests)
            near = self.nodes.nearest(key, DHT_K, partial(_is_other, node))
            self.metrics.share("success", found == [one.identity.public_key for one in near])


def _is_other(asker: DhtNode, node: DhtNode) -> bool:
    return node is not asker and not node.is_dead


def run_small(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    """Run one seed of a scenario about small groups.

    Args:
        until_s: stop at this virtual time.
    """
    settings = scenario.settings
    assert isinstance(settings, SmallSettings)
    return play_out(_Run(settings, seed, watch), scenario, seed, nodes=settings.nodes, until_s=until_s)
