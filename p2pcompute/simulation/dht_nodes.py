"""Nodes that run the DHT alone, on simulated hosts: the same `Dht` and `Datagrams` as in whole nodes, without the rest.

What a question about the DHT needs, at a tenth of the memory of whole nodes.  Tables begin as the oracle fills them for
nodes that have been up for long: full buckets of contacts drawn at random, with the round trips that they would have
measured.  Sybils are nodes whose keys were ground until their places were near a key.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from p2pcompute.dht.contacts import Contact, number_of
from p2pcompute.dht.puzzle import is_solved, solve
from p2pcompute.dht.service import Dht
from p2pcompute.host.interfaces import Address
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import dht_id
from p2pcompute.simulation.host import SeededBytes, SimCrypto, SimHost, Simulation
from p2pcompute.simulation.mesh import PORT, WARM_UPTIME_S, warm_table
from p2pcompute.transport.datagrams import Datagrams

_GROUND: Final = 100
"""Keys that are tried for each node of the group: 40 Sybils then crowd into a place where 0.4 honest nodes are."""


@dataclass(slots=True)
class DhtNode:
    """A node with nothing but a DHT."""

    host: SimHost
    identity: Identity
    dht: Dht
    datagrams: Datagrams
    scope: TaskScope
    is_dead: bool = False
    is_hostile: bool = False
    port: int = PORT
    class_bits: int | None = None
    """What it has, as far as others know; None: nothing was said."""

    @property
    def address(self) -> Address:
        return Address(self.host.address, self.port)

    @property
    def contact(self) -> Contact:
        return Contact(self.identity.public_key, self.address, self.host.name)


@dataclass(slots=True)
class DhtNodes:
    """A group of such nodes."""

    simulation: Simulation
    group_id: bytes = field(init=False)
    all: list[DhtNode] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Exceptions that left a background task: bugs."""
    is_open: bool = False
    """Anybody may be in the group.  Then each machine is in a range of addresses of its own."""
    puzzle_bits: int = 0
    """That a key has to solve to count."""

    def __post_init__(self) -> None:
        if self.is_open:
            self.simulation.network.address_step = 256
        self.group_id = hashlib.sha256(f"{self.simulation.seed}:group".encode()).digest()

    async def add(
        self,
        *,
        addresses: Sequence[Address] = (),
        secret: bytes | None = None,
        beside: SimHost | None = None,
        port: int = PORT,
    ) -> DhtNode:
        """Add a node.

        Args:
            addresses: of members by whom it joins; none: it knows nobody.
            secret: seed of its key; else it comes from its number.
            beside: share this host's machine and address.
            port: its UDP port.
        """
        number = len(self.all)
        host = self.simulation.add_host(f"node-{number}", beside=beside)
        seed = secret or self._solved_seed(number)
        identity = Identity(host.crypto, seed)
        scope = TaskScope(host.name, lambda name, error: self.errors.append(f"{name}: {error!r}"))
        datagrams = Datagrams(host.host, scope)
        await host.call(_bind(datagrams, port))
        name = host.name

        def receive(body: bytes, source: Address) -> None:
            dht.receive(body, source)

        bound = datagrams.bind_group(self.group_id, receive)
        dht = Dht(
            host.host, identity, bound, scope, group_id=self.group_id, name=name,
            is_open=self.is_open, puzzle_bits=self.puzzle_bits,
        )  # fmt: skip
        await host.call(dht.start((), addresses))
        node = DhtNode(host, identity, dht, datagrams, scope, port=port)
        self.all.append(node)
        return node

    def _solved_seed(self, number: int) -> bytes:
        """The first seed of a node's that solves the puzzle.  Keys that do not are not remembered."""
        first = f"{self.simulation.seed}:node {number}"
        seeds = (hashlib.sha256(f"{first}{f':{n}' if n else ''}".encode()).digest() for n in itertools.count())
        if not self.puzzle_bits:
            return next(seeds)
        found = solve(SimCrypto(SeededBytes(""), {}).public_key, seeds, self.puzzle_bits)
        assert found is not None
        return found

    def warm(self, *, uptime_s: float = WARM_UPTIME_S) -> None:
        """Fill all tables as if everybody had been up for so long."""
        known = sorted(self.all, key=lambda node: node.contact.number)
        contacts = [(node.contact, node.dht.run) for node in known]
        numbers = [contact.number for contact, _ in contacts]
        machines = [node.host.machine for node in known]
        network = self.simulation.network
        stretch = 2.0 * (1.0 + network.settings.jitter / 2)
        rng = random.Random(f"{self.simulation.seed}:warm tables")
        for node in self.all:
            own, own_machine = node.contact.number, node.host.machine
            chosen = []
            for position in warm_table(numbers, own, rng):
                contact, run = contacts[position]
                rtt_s = stretch * network.base_delay_s(own_machine, machines[position])
                class_bits = known[position].class_bits
                chosen.append((contact._replace(rtt_s=rtt_s, class_bits=class_bits), run))
            node.host.enter(partial(node.dht.adopt, chosen, uptime_s=uptime_s))

    def kill(self, nodes: Sequence[DhtNode]) -> None:
        """Cut the power of nodes; nobody is told."""
        self.simulation.crash(*(node.host for node in nodes), is_silent=True)
        for node in nodes:
            node.is_dead = True

    def nearest(self, key: bytes, count: int, among: Callable[[DhtNode], bool]) -> list[DhtNode]:
        """The nodes nearest to a key, nearest first: what the oracle knows."""
        target = int.from_bytes(key, "big")
        fit = (node for node in self.all if among(node))
        return heapq.nsmallest(count, fit, key=lambda node: number_of(node.identity.public_key) ^ target)


async def _bind(datagrams: Datagrams, port: int) -> None:
    await datagrams.start(port, loopback_only=False)


def grind(seed: str, key: bytes, count: int, *, nodes: int, puzzle_bits: int = 0) -> list[bytes]:
    """Return the seeds of `count` keys of modelled crypto whose places are nearer to `key` than those of nearly all
    of `nodes` honest nodes.

    Args:
        seed: of the simulation.
        puzzle_bits: the same number of keys is tried, and those that do not solve the puzzle are of no use.
    """
    crypto = SimCrypto(SeededBytes(""), {})  # registers what is tried, and is thrown away with it
    target = int.from_bytes(key, "big")
    prefix = hashlib.sha256(f"{seed}:sybils of ".encode() + key).digest()
    made = (hashlib.sha256(prefix + number.to_bytes(8, "big")).digest() for number in range(_GROUND * nodes))
    if puzzle_bits:
        made = (one for one in made if is_solved(crypto.public_key(one), puzzle_bits))
    return heapq.nsmallest(count, made, key=lambda one: int.from_bytes(dht_id(crypto.public_key(one)), "big") ^ target)
