"""Figures of a run of whole nodes: joining, traffic, use of the slots, recovery.

Nothing here polls every node often.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass, replace
from typing import Final

from p2pcompute.limits import DHT_K
from p2pcompute.node.node import Node
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.simulation.host import SimHost
from p2pcompute.simulation.world import World

SAMPLES: Final = 400
SAMPLE_S_MIN: Final = 0.5
SAMPLED_NODES_MAX: Final = 400_000
"""How often in one run, and at most, all nodes are looked at for figures: less often when there are many."""
JOIN_LOOK_S: Final = 0.1
JOIN_S_MAX: Final = 600.0
"""How closely the nodes that have just started are watched, and for how long."""
RECOVERY_LOOK_S: Final = 0.5
RECOVERY_S_MAX: Final = 600.0
IDLE_SHARE_RECOVERED: Final = 0.1


class Figures:
    """What is measured of one world, into its `metrics`.  The run tells it who has started, and who has gone."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._metrics = world.metrics
        self._up_since: dict[int, float] = {}
        self._up_most = 0
        self._joining: dict[int, float] = {}
        """Since when: nodes that have just started."""
        self._has_joiner = asyncio.Event()
        self._past = _Sums()
        """Lives that have ended."""

    def started(self, number: int) -> None:
        """A node has started."""
        self._up_since[number] = self._world.now
        self._up_most = max(self._up_most, len(self._up_since))
        if len(self._up_since) > 1:  # else there is nobody to meet
            self._joining[number] = self._world.now
            self._has_joiner.set()

    def gone(self, number: int, node: Node) -> None:
        """A node has gone, or is about to be killed."""
        self._joining.pop(number, None)
        now = self._world.now
        self._past.add(node, self._world.mesh.members[number].host, now - self._up_since.pop(number, now))

    async def watch_joining(self) -> None:
        """Measure how long a node takes from its start to its first peer, and to a table that is full."""
        met: dict[int, float] = {}
        while True:
            if not self._joining:
                self._has_joiner.clear()
                await self._has_joiner.wait()
            await asyncio.sleep(JOIN_LOOK_S)
            enough = 0
            for number, since in list(self._joining.items()):
                node = self._world.mesh.members[number].node
                dht = node.network.dht if node is not None else None
                if node is None or dht is None:
                    continue
                if met.get(number) != since and dht.first_contact_s is not None:
                    met[number] = since
                    self._metrics.sample("join_s", dht.first_contact_s)
                enough = enough or min(DHT_K, len(self._world.up()) - 1)
                is_full = dht.contact_count >= enough
                if is_full and met.get(number) == since and dht.last_contact_s is not None:
                    self._metrics.sample("join_table_s", dht.last_contact_s)
                if (is_full and met.get(number) == since) or self._world.now - since > JOIN_S_MAX:
                    del self._joining[number]
                    met.pop(number, None)

    async def sample(self) -> None:
        """Look at all nodes now and then."""
        world = self._world
        looks = min(SAMPLES, SAMPLED_NODES_MAX / world.settings.nodes)
        while True:
            await asyncio.sleep(max(SAMPLE_S_MIN, world.duration_s / looks))
            slots, busy, ready, is_open = self.look()
            if not slots:
                continue
            if ready:
                self._metrics.sample("idle_while_work_share", min(ready, slots - busy) / slots)
            if is_open:
                self._metrics.sample("utilisation", busy / slots)
            self._metrics.sample("up_share", len(self._up_since) / world.settings.nodes)
            if world.watch is not None:
                look = {"up": len(self._up_since), "slots": slots, "busy": busy, "ready": ready}
                datagrams = world.simulation.network.counters.datagrams_sent
                world.watch.record({"t": world.now, "kind": "sample", "node": "", **look, "datagrams": datagrams})

    def look(self) -> tuple[int, int, int, bool]:
        """Slots of the nodes that run, those at work, tasks that nobody has taken, and whether any job is open."""
        slots = busy = 0
        for member in self._world.mesh.members:
            if member.node is not None:
                slots += member.host.runner.slot_count
                busy += member.host.runner.busy_count
        ready, is_open = 0, False
        for number in sorted({job.owner for job in self._world.jobs}):
            node = self._world.mesh.members[number].node
            for job in node.scheduler.owner.core.jobs.values() if node is not None else ():
                ready += job.ready_count
                is_open = is_open or job.ready_count > 0 or bool(job.leases)
        return slots, busy, ready, is_open

    async def measure_recovery(self, since: float) -> None:
        """From a mass exit until no task is leased to a node that is down, and few idle beside work."""
        world = self._world
        numbers = {member.identity.public_key: number for number, member in enumerate(world.mesh.members)}
        while world.now - since < RECOVERY_S_MAX and not world.is_healing:
            await asyncio.sleep(RECOVERY_LOOK_S)
            slots, busy, ready, is_open = self.look()
            if not is_open:
                return  # nothing to carry on with
            if min(ready, slots - busy) > IDLE_SHARE_RECOVERED * slots:
                continue
            owners = sorted({job.owner for job in world.jobs})
            if not any(self._leased_to_nobody(number, numbers) for number in owners):
                self._metrics.sample("recovery_s", world.now - since)
                return

    def _leased_to_nobody(self, number: int, numbers: dict[bytes, int]) -> bool:
        node = self._world.mesh.members[number].node
        if node is None:
            return False
        return any(
            lease.thief != LOCAL and self._world.mesh.members[numbers[lease.thief]].node is None
            for job in node.scheduler.owner.core.jobs.values()
            for lease in job.leases.values()
            if lease.thief in numbers
        )

    def _sums(self) -> _Sums:
        """Of all lives of all nodes so far."""
        sums = self._past.copy()
        for number, member in enumerate(self._world.mesh.members):
            if member.node is not None:
                sums.add(member.node, member.host, self._world.now - self._up_since.get(number, self._world.now))
        return sums

    def note_what_was_missing(self) -> None:
        """Say so when hardly anything was simulated."""
        settings, notes = self._world.settings, self._world.notes
        if self._up_most < 2 <= settings.nodes:
            notes.append("at most one node was up at any time: nothing that takes a group was seen")
        asked = ("jobs", "lookups", "puts", "queries", "asks_interrupted", "submissions_failed")
        if settings.workload and not any(self._metrics.counted(name) for name in asked):
            notes.append("nothing was submitted: the workloads begin too late, or no node was there to submit it")

    def traffic(self) -> None:
        """Figures of the time before everything heals."""
        metrics, sums, network = self._metrics, self._sums(), self._world.simulation.network.counters
        node_s = max(sums.up_s, 1e-9)
        metrics.set("messages_per_node_s", (network.datagrams_sent + sums.frames) / node_s)
        metrics.set("bytes_per_node_s", network.bytes_sent / node_s)
        metrics.set("datagrams_per_node_s", network.datagrams_sent / node_s)
        metrics.set("frames_per_node_s", sums.frames / node_s)
        self._own_lookups()
        for member in self._world.mesh.members:
            if member.node is not None:
                metrics.peak("peers_max", len(member.node.scheduler.peers))
                if member.node.network.dht is not None:
                    metrics.peak("contacts_max", member.node.network.dht.contact_count)
        if self._world.simulation.network.has_homes:
            self._reach()

    def _reach(self) -> None:
        """Figures of who can be reached from outside, and who takes whom for it."""
        up = self._world.up()
        nats = {member.identity.public_key: member.host.machine.nat for member in up}
        closed = {key for key, nat in nats.items() if nat is not None and not nat.lets_all_in}
        self._metrics.set("closed_tabled", 0)
        for member in up:
            dht = member.running.network.dht
            if dht is not None:
                self._metrics.count("clients", dht.is_client)
                self._metrics.share("role_right", dht.is_client == (member.identity.public_key in closed))
                elsewhere = [one for one in dht.contacts() if one.key in closed]
                self._metrics.count("closed_tabled", len(elsewhere))

    def _own_lookups(self) -> None:
        """Figures of all lookups that nodes make, those of their upkeep included, by their own counters."""
        dhts = [member.node.network.dht for member in self._world.mesh.members if member.node is not None]
        counters = [dht.counters for dht in dhts if dht is not None]
        lookups = sum(one.lookups for one in counters)
        if lookups:
            self._metrics.set("own_lookups_per_node", lookups / len(counters))
            self._metrics.set("own_lookup_requests", sum(one.lookup_requests for one in counters) / lookups)
            self._metrics.set("own_lookup_hops", sum(one.lookup_hops for one in counters) / lookups)
        rtts = [dht.rtt_s for dht in dhts if dht is not None and dht.rtt_s is not None]
        if rtts:
            self._metrics.set("own_rtt_s", statistics.median(rtts))

    def work(self) -> None:
        """Figures of the work done in the whole run."""
        tasks = sum(job.acknowledged for job in self._world.jobs)
        if tasks:
            self._metrics.set("tasks", tasks)
            self._metrics.set("runs", self._sums().runs)

    def messages(self) -> int:
        """Datagrams and frames sent so far."""
        return self._world.simulation.network.counters.datagrams_sent + self._sums().frames


@dataclass(slots=True)
class _Sums:
    """What nodes did in their lives, summed up."""

    up_s: float = 0.0
    frames: int = 0
    runs: int = 0

    def copy(self) -> _Sums:
        return replace(self)

    def add(self, node: Node, host: SimHost, up_s: float) -> None:
        self.up_s += up_s
        self.frames += node.channels.counters.frames_sent
        self.runs += host.runner.runs_ended
