"""Whole nodes on simulated hosts: the node code that runs everywhere, in virtual time.

A `Mesh` makes a group whose members have admitted one another beforehand (joining is a matter of its own) and keeps
what a real installation keeps on disk: identity and group of each host survive its crash, so that `restart` brings the
same member back.
"""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pcompute.dht.contacts import Contact, number_of
from p2pcompute.dht.service import Dht
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload
from p2pcompute.host.interfaces import Address
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import CUSTODIANS, DHT_BUCKET_SIZES, DHT_K
from p2pcompute.node.facade import JobView
from p2pcompute.node.node import Node
from p2pcompute.node.options import NodeOptions
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.simulation.nat import NatKind
from p2pcompute.simulation.runner import RunnerModel, simulated_value
from p2pcompute.simulation.storage import SYNC_S
from p2pcompute.trust.groups import MEMBER_ROLES, Group, admit, found_group
from p2pcompute.trust.levels import Level, Levels
from p2pcompute.trust.log_file import MemoryLogs

LAN = "lan"
PORT = 7878
WARM_UPTIME_S: Final = 6 * 3600.0


@dataclass(slots=True)
class Member:
    """One installation of the mesh."""

    host: SimHost
    identity: Identity
    group: Group
    logs: MemoryLogs = field(default_factory=MemoryLogs)
    """The log and the roster of the group, as they are on disk."""
    node: Node | None = None
    errors: list[str] = field(default_factory=list)
    """Exceptions that left a background task of the node: bugs."""

    def keep_group(self, group: Group) -> None:
        self.group = group

    @property
    def running(self) -> Node:
        """The node.  Raises RuntimeError when it is down."""
        if self.node is None:
            raise RuntimeError(f"{self.host.name} is down")
        return self.node


class Mesh:
    """A group of `count` installations on one simulated LAN (or spread over the simulated WAN)."""

    def __init__(
        self,
        simulation: Simulation,
        count: int,
        *,
        runner: RunnerModel | Sequence[RunnerModel] | None = None,
        is_lan: bool = True,
        sync_s: float = SYNC_S,
        custodians: int = CUSTODIANS,
        level: Level = Level.TRUSTED,
    ) -> None:
        """Args:
        runner: one model for all, or one for each.
        sync_s: mean time of a disk to sync.
        custodians: nodes that keep a job beside its owner.
        level: how far the members trust one another.
        """
        self.simulation = simulation
        self.level = level
        self.members: list[Member] = []
        self._custodians = custodians
        models = runner if isinstance(runner, Sequence) else [runner] * count
        for number, model in zip(range(count), models, strict=True):
            # The founder is everybody's first contact, so no Nat may keep it in.
            nat = NatKind.NONE if number == 0 else None
            lan = LAN if is_lan else None
            host = simulation.add_host(f"node-{number}", lan=lan, nat=nat, runner=model, sync_s=sync_s)
            identity = create_identity(host.crypto)
            if number == 0:
                group = found_group(identity, host.crypto, "simulated", host.clock.wall()).opened()
            else:
                group = self._admitted(identity)
            self.members.append(Member(host, identity, group))

    def _admitted(self, identity: Identity) -> Group:
        founder = self.members[0]
        crypto, wall = founder.host.crypto, founder.host.clock.wall()
        entry = admit(founder.identity, founder.group, crypto, identity.public_key, roles=MEMBER_ROLES, wall=wall)
        return founder.group.with_chain([*founder.group.chain, entry])

    async def start(self, members: Sequence[Member] | None = None) -> None:
        """Start nodes; the founder's address is everybody's first contact."""
        for member in self.members if members is None else members:
            await self.start_one(member)

    async def start_warm(self, members: Sequence[Member] | None = None, *, uptime_s: float = WARM_UPTIME_S) -> None:
        """Start nodes, or all, with the routing tables that they would have after `uptime_s`, filled by the oracle."""
        members = self.members if members is None else members
        for member in members:
            await self.start_one(member, contacts=())
        known: list[tuple[int, tuple[Contact, bytes]]] = []
        for member in members:
            if member.host.machine.nat is not None:
                continue  # whoever is behind a Nat is known only to those whom it calls itself
            dht = _dht_of(member)
            contact = Contact(member.identity.public_key, Address(member.host.address, PORT), member.host.name)
            known.append((contact.number, (contact, dht.run)))
        known.sort(key=lambda entry: entry[0])
        numbers = [number for number, _ in known]
        rng = random.Random(f"{self.simulation.seed}:warm tables")
        for member in members:
            dht = _dht_of(member)
            own = number_of(member.identity.public_key)
            chosen = [known[position][1] for position in warm_table(numbers, own, rng)]
            is_reachable = member.host.machine.nat is None
            member.host.enter(functools.partial(dht.adopt, chosen, uptime_s=uptime_s, is_reachable=is_reachable))

    async def start_one(
        self, member: Member, *, contacts: tuple[Address, ...] | None = None, seeds: Sequence[str] = ()
    ) -> Node:
        founder = self.members[0].host
        if contacts is None:
            contacts = () if member.host is founder else (Address(founder.address, PORT),)
        node = Node(
            member.host.host,
            member.identity,
            member.group,
            NodeOptions(
                name=member.host.name,
                port=PORT,
                first_contacts=contacts,
                seeds=tuple((domain, None) for domain in seeds),
                custodians=self._custodians,
            ),
            keep_group=member.keep_group,
            on_error=lambda name, error: member.errors.append(f"{name}: {error!r}"),
            levels=Levels(member.identity.installation, default=self.level),
            logs=member.logs,
        )
        await member.host.call(node.start())
        member.node = node
        return node

    def crash(self, *members: Member, is_silent: bool = False) -> None:
        """Kill nodes at once; only what they had committed is kept."""
        self.simulation.crash(*(member.host for member in members), is_silent=is_silent)
        for member in members:
            member.node = None

    async def stop(self, member: Member, *, drain: bool = True) -> None:
        """Stop a node gracefully and end its process; its machine stays on the network.

        Raises:
            HostDown: it crashed meanwhile.
        """
        node, host = member.running, member.host

        async def go() -> None:
            await node.stop(drain=drain)
            await host.store.close()

        await host.call(go())
        self.crash(member)

    async def restart(self, member: Member) -> Node:
        """Start an installation that is down again, on what its disk kept."""
        self.simulation.restart(member.host)
        return await self.start_one(member)

    async def submit(self, member: Member, works_s: Sequence[float], *, retries: int = 2) -> bytes:
        """Submit a sealed job of simulated tasks at a member; returns its id."""
        node = member.running

        async def go() -> bytes:
            terms, spec = JobTerms(name="simulated", retries=retries), JobSpec(kind=TaskKind.SIMULATED)
            job_id = await node.submit_job(terms, spec)
            batch = 500
            for start in range(0, len(works_s), batch):
                payloads = [encode_payload(TaskPayload(work_s=work)) for work in works_s[start : start + batch]]
                await node.add_tasks(job_id, payloads)
            await node.seal_job(job_id)
            return job_id

        return await member.host.call(go())

    async def wait_for(self, member: Member, job_id: bytes, *, limit_s: float) -> JobView:
        """Wait until a job is over.

        Raises:
            TimeoutError: it is not within `limit_s` of virtual time.
        """
        clock = member.host.clock
        until = clock.now() + limit_s
        while True:
            view = member.running.job(job_id.hex())
            if view.is_over:
                return view
            if clock.now() > until:
                raise TimeoutError(f"{view.done} of {view.total} done after {limit_s} s: {view}")
            await clock.sleep(0.1)

    async def check_values(self, member: Member, job_id: bytes, count: int) -> None:
        """Every task has ended once, with the value that it must have.

        Raises:
            AssertionError: not so.
        """
        await member.host.call(member.running.scheduler.owner.committed())  # what is not in the store is not listed
        views = await member.host.call(member.running.finished(job_id, after=0, limit=count + 1))
        seen = sorted(view.index for view in views)
        assert seen == list(range(count)), f"{len(seen)} ends of {count} tasks"
        for view in views:
            assert view.outcome is not None and view.outcome.value == simulated_value(view.index), view

    def check_errors(self) -> None:
        """Raises AssertionError when a background task of any node has failed."""
        errors = [f"{member.host.name}: {error}" for member in self.members for error in member.errors]
        assert not errors, errors


def _dht_of(member: Member) -> Dht:
    dht = member.running.network.dht
    assert dht is not None
    return dht


def warm_table(numbers: Sequence[int], own: int, rng: random.Random) -> list[int]:
    """Return the positions in `numbers`, which ascend, of the contacts that a full table of `own` has: each bucket as
    full as it can be, with contacts chosen at random, in a random order."""
    chosen: list[int] = []
    bits = DHT_ID_BYTES * 8
    low, high = 0, len(numbers)
    for index in range(bits):
        # low..high share `index` leading bits with `own`; those that differ in the next bit are bucket `index`.
        middle = bisect.bisect_left(numbers, (own >> (bits - index - 1) | 1) << (bits - index - 1), low, high)
        is_one = own >> (bits - index - 1) & 1
        bucket = range(low, middle) if is_one else range(middle, high)
        low, high = (middle, high) if is_one else (low, middle)
        size = DHT_BUCKET_SIZES[index] if index < len(DHT_BUCKET_SIZES) else DHT_K
        chosen += rng.sample(bucket, min(size, len(bucket)))
        if high - low <= 1:
            break
    rng.shuffle(chosen)
    return chosen
