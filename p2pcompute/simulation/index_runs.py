"""The experiment `index`: whether a search finds nodes of which few, or many, have something, and what it costs.

Pure cores without a network, so that 20,000 nodes take seconds: registrars and walks of `dht.index`, and routing tables
as the oracle fills them for nodes that have been up for long, made when somebody asks their node.  A `share` of all
nodes has the feature; each of them advertises it if it seems rare among its contacts; `dead` of all nodes die; then
others search for `want` of those that have it.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.index import LevelWalk, Outcome, Registrar, first_level, index_key, is_rare, stepping_stones
from p2pcompute.dht.size import size_by
from p2pcompute.errors import P2pcError
from p2pcompute.host.interfaces import Address
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    DHT_K,
    DHT_SOFT_S_MIN,
    INDEX_CONTACTS_MAX,
    INDEX_QUERY_PER_LEVEL,
    INDEX_REGISTER_PER_LEVEL,
    INDEX_REGISTERED_CONTACTS_MAX,
    INDEX_TAKEN_MAX,
)
from p2pcompute.simulation.mesh import warm_table
from p2pcompute.simulation.metrics import Metrics
from p2pcompute.simulation.result import PROBLEMS_MAX, RunResult, Watch
from p2pcompute.simulation.scenario import Scenario

_FEATURE: Final = 1
"""The bit of the feature."""
_LIFE_S: Final = 3600.0
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class IndexSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `index`."""

    nodes: Annotated[int, Meta(ge=50, le=100_000, description="nodes of the group")] = 20_000
    share: Annotated[_Share, Meta(description="share of the nodes that have what is searched for")] = 0.001
    want: Annotated[int, Meta(ge=1, le=256, description="nodes that a search looks for")] = 30
    asks: Annotated[int, Meta(ge=1, le=100_000, description="searches, each from another node if there are enough")] = (
        50
    )
    dead: Annotated[_Share, Meta(description="share of the nodes that die between advertising and searching")] = 0.0
    hostile: Annotated[_Share, Meta(description="share of the nodes that lie about who has it, as `lie` says")] = 0.0
    lie: Annotated[
        Literal["withhold", "junk", "boast"],
        Meta(
            description="withhold: takes ads, keeps none, names nobody; junk: names made-up nodes, as having it and to "
            "ask next; boast: says that it has it, as all of its kind, advertises it, and names only these"
        ),
    ] = "withhold"
    met: Annotated[
        _Share,
        Meta(description="share of the nodes that a searcher has given such work: it knows whether they have it"),
    ] = 0.0


class _Node:
    """A node as the index sees it; the rest of it is not there."""

    def __init__(self, run: _Run, position: int) -> None:
        self.contact = run.contacts[position]
        self.registrar = Registrar()
        self.rng = random.Random(f"{run.seed}:node {position}")
        table = warm_table(run.numbers, self.contact.number, self.rng)
        self.table = [run.contacts[other] for other in table]
        self.having = [run.contacts[other] for other in table if other in run.having]

    def size(self) -> float | None:
        """How many nodes it takes the group to have."""
        near = sorted(contact.number ^ self.contact.number for contact in self.table)
        return size_by(near[:DHT_K])

    def walk(self, key: bytes, per_level: int, want: int | None = None) -> LevelWalk:
        return LevelWalk(
            key,
            self.table,
            own_id=self.contact.id,
            per_level=per_level,
            first=first_level(self.size()),
            soft_s=DHT_SOFT_S_MIN,
            rng=self.rng,
            want=want,
        )

    def stones(self, key: bytes, count: int) -> list[Contact]:
        return stepping_stones(self.table, key, self.contact.id, count, rng=self.rng)


class _Run:
    """One run under way."""

    def __init__(self, settings: IndexSettings, seed: int, watch: Watch | None) -> None:
        self.settings = settings
        self.seed = seed
        self.metrics = Metrics()
        self.trace = hashlib.sha256()
        self.events = 0
        self._watch = watch
        rng = random.Random(f"{seed}:group")
        made = (Contact(rng.randbytes(PUBLIC_KEY_BYTES), Address("10.0.0.1", 1)) for _ in range(settings.nodes))
        self.contacts = sorted(made, key=lambda contact: contact.number)
        self.numbers = [contact.number for contact in self.contacts]
        count = round(settings.share * settings.nodes)
        self.having = dict.fromkeys(sorted(rng.sample(range(settings.nodes), count)))
        """Positions of the nodes that have the feature, ascending."""
        self.positions = {contact.key: position for position, contact in enumerate(self.contacts)}
        others = [position for position in range(settings.nodes) if position not in self.having]
        liars = rng.sample(others, min(len(others), round(settings.hostile * settings.nodes)))
        self.liars = dict.fromkeys(sorted(liars))
        """Positions of the nodes that lie; those that have the feature do not."""
        self._looked_at: dict[bytes, None] = {}
        """Those that the search under way has pinged."""
        self._met: dict[int, None] = {}
        """Positions of those to whom the present searcher has given work."""
        self.gang = [self.contacts[position] for position in self.liars]
        self.dead: dict[bytes, None] = {}
        self.key = index_key(f"run {seed}")
        self._nodes: dict[int, _Node] = {}
        self._rng = rng

    def node(self, position: int) -> _Node:
        node = self._nodes.get(position)
        if node is None:
            node = self._nodes[position] = _Node(self, position)
        return node

    def play(self) -> None:
        """Advertise, die, search."""
        for position in self.having:
            node = self.node(position)
            if is_rare(len(node.having), len(node.table)):
                self._advertise(node)
        for position in self.liars if self.settings.lie == "boast" else ():
            self._advertise(self.node(position))
        dead = self._rng.sample(self.contacts, round(self.settings.dead * len(self.contacts)))
        self.dead = {contact.key: None for contact in dead}
        self._tell("crash", count=len(dead))
        live = [position for position, contact in enumerate(self.contacts) if contact.key not in self.dead]
        self._rng.shuffle(live)
        for number in range(self.settings.asks if live else 0):
            self._search(live[number % len(live)])

    def check(self) -> None:
        """Raise InvariantViolation unless all registrars are consistent."""
        for node in self._nodes.values():
            node.registrar.check_invariants()
            self.metrics.peak("ads", len(node.registrar))

    def _advertise(self, node: _Node) -> None:
        walk = node.walk(self.key, INDEX_REGISTER_PER_LEVEL)
        kept = 0
        while chosen := walk.poll(0.0):
            for contact in chosen:
                self.events += 1
                if contact.key not in self.positions:
                    walk.on_failure(contact.id)
                    continue
                asked = self.node(self.positions[contact.key])
                if self.positions[contact.key] in self.liars:
                    walk.on_answer(contact.id, self._lie(asked, INDEX_REGISTERED_CONTACTS_MAX))
                    continue
                outcome = asked.registrar.register(self.key, node.contact, _FEATURE, until=_LIFE_S, now=0.0)
                kept += outcome is Outcome.OK
                walk.on_answer(contact.id, asked.stones(self.key, INDEX_REGISTERED_CONTACTS_MAX))
        if self.positions[node.contact.key] in self.having:
            self.metrics.sample("registrations", walk.asked_count)
            self.metrics.sample("copies", kept)

    def _search(self, position: int) -> None:
        settings, node = self.settings, self.node(position)
        walk = node.walk(self.key, INDEX_QUERY_PER_LEVEL, settings.want)
        boasters = [one for one in node.table if self.positions[one.key] in self.liars]
        self._met = {}
        if settings.met:
            count = round(settings.met * settings.nodes)
            self._met = dict.fromkeys(node.rng.sample(range(settings.nodes), count))
        for contact in [*node.having, *(boasters if settings.lie == "boast" else ())]:
            walk.know(contact, standing=self._standing(contact))
        now = 0.0
        self._looked_at = {}
        while not walk.is_done:
            for contact in walk.poll(now):
                self._ask(walk, contact)
            now = walk.deadline() or now
        walk.check_invariants()
        result = walk.result()
        found = sum(self._has(contact) for contact in result)
        there = sum(other != position and self.contacts[other].key not in self.dead for other in self.having)
        self.metrics.share("success", found >= min(settings.want, there))
        self.metrics.sample("queries", walk.asked_count)
        self.metrics.sample("pings", len(self._looked_at))
        self.metrics.sample("found", found)
        self.metrics.sample("false", len(result) - found)
        self._tell("search", node=f"node-{position}", found=found, queries=walk.asked_count)

    def _ask(self, walk: LevelWalk, contact: Contact) -> None:
        self.events += 1
        if contact.key in self.dead or contact.key not in self.positions:
            return
        if self.positions[contact.key] in self.liars:
            asked = self.node(self.positions[contact.key])
            self._look_at(walk, self._lie(asked, INDEX_TAKEN_MAX))
            walk.on_answer(contact.id, self._lie(asked, INDEX_CONTACTS_MAX - INDEX_TAKEN_MAX))
            return
        asked = self.node(self.positions[contact.key])
        found = asked.registrar.find(self.key, _FEATURE, INDEX_TAKEN_MAX, now=0.0, rng=asked.rng)
        found = list(dict.fromkeys([*found, *asked.having]))[:INDEX_TAKEN_MAX]
        self._look_at(walk, found)
        walk.on_answer(contact.id, asked.stones(self.key, INDEX_CONTACTS_MAX - len(found)))

    def _look_at(self, walk: LevelWalk, named: list[Contact]) -> None:
        """Take in those of the named that answer when they are pinged, and say that they have it."""
        for contact in named[:INDEX_TAKEN_MAX]:
            if contact.key not in self._looked_at:
                self._looked_at[contact.key] = None
                position = self.positions.get(contact.key)
                is_boaster = position in self.liars and self.settings.lie == "boast"
                if is_boaster or self._has(contact):
                    walk.know(contact, standing=self._standing(contact))

    def _standing(self, contact: Contact) -> bool | None:
        """What a node has shown to the searcher."""
        position = self.positions[contact.key]
        return position in self.having if position in self._met else None

    def _has(self, contact: Contact) -> bool:
        """Whether a node that was named has the feature and is up: what it says when it is asked itself."""
        return contact.key not in self.dead and self.positions.get(contact.key) in self.having

    def _lie(self, liar: _Node, count: int) -> list[Contact]:
        """Contacts in the answer of a liar: those that are said to have the feature, or to ask next."""
        match self.settings.lie:
            case "withhold":
                return []
            case "junk":
                made = (liar.rng.randbytes(PUBLIC_KEY_BYTES) for _ in range(count))
                return [Contact(key, Address("10.0.0.2", 1)) for key in made]
            case _:
                return liar.rng.sample(self.gang, min(count, len(self.gang)))

    def _tell(self, kind: str, *, node: str = "", **fields: Any) -> None:
        record = {"t": 0.0, "kind": kind, "node": node, **fields}
        self.trace.update(json.dumps(record, sort_keys=True).encode())
        if self._watch is not None:
            self._watch.record(record)


def run_index(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    """Run one seed of a scenario about the capacity index.

    Args:
        until_s: without effect: no time passes in it.
    """
    settings = scenario.settings
    assert isinstance(settings, IndexSettings)
    began = time.perf_counter()
    run = _Run(settings, seed, watch)
    problems: list[str] = []
    try:
        run.play()
        run.check()
    except P2pcError as error:
        problems.append(str(error))
    return RunResult(
        scenario=scenario.name,
        seed=seed,
        nodes=settings.nodes,
        trace_hash=run.trace.hexdigest(),
        events=run.events,
        messages=run.events,
        wall_s=time.perf_counter() - began,
        simulated_s=0.0,
        metrics=run.metrics.result(),
        fired={},
        problems=tuple(problems[:PROBLEMS_MAX]),
    )
