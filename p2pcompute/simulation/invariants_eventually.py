"""What must come true within a bound after everything has healed; see `invariants`.

In the order of the table: what comes later takes for granted that what comes before has been waited for.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from p2pcompute.dht.records import make_record
from p2pcompute.errors import StoreError
from p2pcompute.ids import PUBLIC_KEY_BYTES, dht_id
from p2pcompute.limits import DHT_K, POISON_NODES
from p2pcompute.node.facade import TaskView
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.simulation.host import HostDown
from p2pcompute.simulation.invariants_always import dhts, short
from p2pcompute.simulation.loop import OWNER
from p2pcompute.simulation.mesh import Member
from p2pcompute.simulation.oracle import AsyncCheck, Oracle
from p2pcompute.simulation.runner import simulated_value
from p2pcompute.simulation.world import WorldJob
from p2pcompute.store.journal import OUTBOX

PAGE: Final = 1000
"""Tasks read at once."""
PROBE_TTL_S: Final = 30
POLL_S: Final = 1.0
SHOWN_CHARS_MAX: Final = 160
"""Of what became of one task, in a problem."""
STOP_S: Final = 45.0
"""After a node has stopped, nothing of it may be left for longer: a channel's longest timer is shorter."""


async def _until(checks: Oracle, limit_s: float, wrong: Callable[[], list[str]]) -> list[str]:
    """Wait until nothing is wrong any more; what is still wrong after `limit_s`."""
    until = checks.now + limit_s
    while True:
        found = wrong()
        if not found or checks.now >= until:
            return found
        await asyncio.sleep(POLL_S)


def _open_jobs(checks: Oracle) -> list[str]:
    found = []
    for job in checks.jobs():
        member = checks.world.mesh.members[job.owner]
        if member.node is None:
            continue
        book = member.node.scheduler.owner.books.get(job.job_id)
        if book is None:
            found.append(f"{member.host.name} has lost {short(job.job_id)}")
        elif book.job.ledger.counts[TaskState.OPEN]:
            counts = book.job.ledger.counts
            found.append(f"{counts[TaskState.OPEN]} of {book.job.ledger.size} tasks of {short(job.job_id)} are open")
    return found


async def _over(checks: Oracle) -> list[str]:
    """Every job of an owner that runs comes to its end."""
    return await _until(checks, checks.settings.over_s, lambda: _open_jobs(checks))


async def _values(checks: Oracle) -> list[str]:
    """Every acknowledged task has ended, with the right value unless a hostile node returned it; none failed or was
    cancelled without a reason."""
    found: list[str] = []
    for job in checks.jobs():
        member = checks.world.mesh.members[job.owner]
        if member.node is None:
            checks.world.metrics.count("jobs_without_owner")
            continue
        try:
            found += await _job_values(checks, member, job)
        except (HostDown, StoreError):
            continue
    return found


async def _job_values(checks: Oracle, member: Member, job: WorldJob) -> list[str]:
    node, world = member.running, checks.world
    if job.job_id not in node.scheduler.owner.books:
        return [f"{member.host.name} has lost {short(job.job_id)}"]
    await member.host.call(node.scheduler.owner.committed())  # what is not in the store is not listed
    hostile = {world.mesh.members[number].identity.public_key for number in world.hostile}
    models = [one.host.runner_model for one in world.mesh.members]
    may_fail = any(model.failure for model in models)
    may_die = any(model.death for model in models) or world.fired["memory"] > 0
    may_die = may_die or world.metrics.counted("crashes") >= POISON_NODES  # three nodes that died with it
    found: list[str] = []
    after = -1
    while views := await member.host.call(node.tasks(job.job_id, after=after, limit=PAGE)):
        after = views[-1].index
        for view in views:
            if view.state == "done":
                if view.outcome is not None and view.outcome.value == simulated_value(view.index):
                    continue
                if view.node_key in hostile:
                    world.metrics.count("wrong_accepted")
                    if not checks.settings.wrong_values:
                        continue
                found.append(f"a wrong value: {_shown(view)}, expected {simulated_value(view.index).hex()}")
            elif view.state == "failed":
                text = f"{view.reason} {view.outcome.error if view.outcome else ''}"
                is_own = (may_fail and "simulated failure" in text) or (may_die and "its process died" in text)
                if not is_own and view.node_key not in hostile:
                    found.append(f"failed without a reason in the model: {_shown(view)}")
            elif view.state != "cancelled":
                found.append(f"not over: {_shown(view)}")
            elif not job.may_cancel:
                found.append(f"cancelled by nobody: {_shown(view)}")
    if after + 1 < job.acknowledged:
        found.append(f"{after + 1} of {job.acknowledged} acknowledged tasks of {short(job.job_id)} are listed")
    return found


def _shown(view: TaskView) -> str:
    """Return which task that is, and what became of it, in a line."""
    what = f"task {view.index}"
    if view.node_key:
        what += f" of {view.node_name or view.node_key.hex()[:8]}"
    what += f" is {view.state}"
    if view.outcome is not None and view.state == "done":
        return f"{what}: got {view.outcome.value.hex() or 'nothing'}"[:SHOWN_CHARS_MAX]
    why = view.reason or (view.outcome.error if view.outcome is not None else "")
    return (f"{what}: {why.strip()}" if why.strip() else what)[:SHOWN_CHARS_MAX]


def _unrest(checks: Oracle) -> list[str]:
    """What is still under way anywhere."""
    found = []
    honest = checks.honest()
    reachable = {member.identity.public_key for member in honest}
    for member in honest:
        name, scheduler = member.host.name, member.running.scheduler
        owner, worker = scheduler.owner, scheduler.worker
        found += [
            f"{name}: {len(job.leases)} leases of {short(id_)}" for id_, job in owner.core.jobs.items() if job.leases
        ]
        held = [one for one in worker.core.held.values() if one.owner == LOCAL or one.owner in reachable]
        if held:
            found.append(f"{name}: holds {held[:2]}")
        if any(link.results for key, link in worker.links.items() if key in reachable):
            found.append(f"{name}: results wait")
        if owner.commits.is_waiting:
            found.append(f"{name}: commits wait")
        if scheduler.victim.given or owner.core._pending:
            found.append(f"{name}: grants wait")
        if held and member.host.runner.busy_count:
            found.append(f"{name}: the runner works")
        kept = member.host.disk.tables.get(OUTBOX)
        if kept is not None and any(key[:PUBLIC_KEY_BYTES] in reachable for key in kept.rows):
            found.append(f"{name}: results are kept on disk")
    return found


async def _rest(checks: Oracle) -> list[str]:
    """No leases, queues, results or commits are left over."""
    return await _until(checks, checks.settings.rest_s, lambda: _unrest(checks))


def _messages(members: Iterable[Member]) -> int:
    return sum(
        one.running.channels.counters.frames_sent + one.running.network.datagrams.counters.sent for one in members
    )


async def _chatter(checks: Oracle) -> list[str]:
    """Nodes that have nothing to do say little, and leave no timers."""
    members = checks.honest()
    lives = [member.node for member in members]
    before, began = _messages(members), checks.now
    await asyncio.sleep(checks.settings.watch_s)
    if [member.node for member in members] != lives:
        return []  # somebody went meanwhile
    rate = (_messages(members) - before) / (checks.now - began)
    # One without peers tries the addresses that it remembers.
    links = sum(len(one.running.scheduler.peers or range(6)) + len(one.running.channels._open) + 1 for one in members)
    checks.world.metrics.sample("rest_messages_per_node_s", rate / max(1, len(members)))
    found = []
    bound = checks.settings.chatter * links
    if rate > bound and not checks.world.hostile:
        found.append(
            f"{rate:.1f} messages/s at rest among {len(members)} nodes with {links} links: more than {bound:.1f}, "
            f"which is checks.chatter = {checks.settings.chatter:g} for each link"
        )
    timers = _timers(checks)
    for member in members:
        peers = len(member.running.scheduler.peers) + len(member.running.channels._open)
        if timers[member.host.name] > 32 + 4 * peers:
            found.append(f"{member.host.name} keeps {timers[member.host.name]} timers at rest with {peers} peers")
    return found


def _timers(checks: Oracle) -> Counter[str]:
    """Timers that wait, by host."""
    counts: Counter[str] = Counter()
    for entry in checks.world.simulation.loop._heap:
        call = entry[3]
        if entry[2] is None and not call._cancelled:
            owner: Any = call._context.get(OWNER)
            if owner is not None:
                counts[owner.name] += 1
    return counts


def _strangers(checks: Oracle) -> list[str]:
    honest = checks.honest()
    keys = {member.identity.public_key for member in honest}
    up = {member.identity.public_key for member in checks.world.up()}
    found = []
    for member in honest:
        peers = member.running.scheduler.peers
        missing = [key for key in keys if key != member.identity.public_key and key not in peers]
        gone = [key for key in peers if key not in up] if not checks.world.hostile else []
        if missing or gone:
            found.append(
                f"{member.host.name} does not know {len(missing)} of its peers, and knows {len(gone)} that are gone"
            )
    return found


async def _known(checks: Oracle) -> list[str]:
    """In a small group all know one another, and nobody who is gone."""
    if len(checks.world.mesh.members) > checks.settings.small_group:
        return []
    return await _until(checks, checks.settings.meet_s, lambda: _strangers(checks))


def _islands(checks: Oracle) -> list[str]:
    nodes = {member.identity.public_key: dht for member, dht in dhts(checks.honest()) if not dht.is_client}
    if len(nodes) < 2:
        return []
    forward: dict[bytes, list[bytes]] = {
        key: [one.key for one in dht.contacts() if one.key in nodes] for key, dht in nodes.items()
    }
    backward: dict[bytes, list[bytes]] = {key: [] for key in nodes}
    for key, others in forward.items():
        for other in others:
            backward[other].append(key)
    found = []
    for edges, what in ((forward, "reach"), (backward, "be reached by")):
        first = next(iter(nodes))
        seen = {first: None}
        queue = deque([first])
        while queue:
            for other in edges[queue.popleft()]:
                if other not in seen:
                    seen[other] = None
                    queue.append(other)
        if len(seen) < len(nodes):
            found.append(f"{len(nodes) - len(seen)} of {len(nodes)} nodes cannot {what} the others by contacts")
    return found


async def _connected(checks: Oracle) -> list[str]:
    """The graph of contacts is strongly connected."""
    return await _until(checks, checks.settings.meet_s, lambda: _islands(checks))


async def _lookups(checks: Oracle) -> list[str]:
    """Lookups return the true nearest live nodes; one that does not is made again, as a burst of losses may outlast it.
    With nodes that lie in their answers it is measured only."""
    right = first_right = wanted = 0
    for member in checks.some(checks.settings.lookups):
        dht = member.running.network.dht
        if dht is None:
            continue
        key = checks.key()
        asked = [one for one, other in dhts(checks.world.up()) if one is not member and not other.is_client]
        ids = [dht_id(one.identity.public_key) for one in asked]
        number = int.from_bytes(key, "big")
        nearest = set(sorted(ids, key=lambda one: int.from_bytes(one, "big") ^ number)[:DHT_K])
        try:
            found = first_found = len(nearest & {contact.id for contact in await member.host.call(dht.find(key))})
            if found < len(nearest):
                found = len(nearest & {contact.id for contact in await member.host.call(dht.find(key))})
        except HostDown:
            continue
        right += found
        first_right += first_found
        wanted += len(nearest)
    checks.world.metrics.set("lookup_share", first_right / wanted if wanted else 1.0)
    if wanted and right / wanted < checks.settings.lookup_share and not checks.world.hostile:
        return [f"lookups found {right} of {wanted} nearest nodes"]
    return []


async def _retrievable(checks: Oracle) -> list[str]:
    """A record that was put is found by others, and not any more once it has expired.  With hostile nodes it is
    measured only."""
    found: list[str] = []
    keys: list[bytes] = []
    reads = right = 0
    for number, member in enumerate(checks.some(checks.settings.probes)):
        dht = member.running.network.dht
        if dht is None:
            continue
        identity, wall = member.identity, member.host.clock.wall()
        record = make_record(
            identity.sign_envelope, identity.public_key, salt=b"probe %d" % number, seq=1, wall=wall, ttl_s=PROBE_TTL_S,
            value=b"probe",
        )  # fmt: skip
        try:
            kept = await member.host.call(dht.put(record))
            for reader in checks.some(2):
                other = reader.running.network.dht
                if other is None:
                    continue
                is_found = record in await reader.host.call(other.get(record.key))
                reads, right = reads + 1, right + is_found
                if not is_found:
                    found.append(f"{reader.host.name} does not find a record that {kept} nodes keep")
        except HostDown:
            continue
        keys.append(record.key)
    if reads:
        checks.world.metrics.set("record_share", right / reads)
    await asyncio.sleep(PROBE_TTL_S + 1)
    for key in keys:
        for reader in checks.some(2):
            dht = reader.running.network.dht
            try:
                held = await reader.host.call(dht.get(key)) if dht is not None else []
                if held:
                    found.append(f"{reader.host.name} still finds a record that has expired")
            except HostDown:
                continue
    return found if not checks.world.hostile else []


async def _stopped(checks: Oracle) -> list[str]:
    """A node that has stopped leaves no task and no timer behind."""
    found: list[str] = []
    members = checks.some(checks.settings.probes)
    for member in members:
        node = member.running
        try:
            await member.host.call(node.stop(drain=False))
        except HostDown:
            continue
        await asyncio.sleep(0)
        left = sorted(task.get_name() for task in member.host.tasks if not task.done())
        found += [f"{member.host.name} has stopped, and {name} runs" for name in left[:3]]
    await asyncio.sleep(STOP_S)
    timers = _timers(checks)
    for member in members:
        left = sorted(task.get_name() for task in member.host.tasks if not task.done())
        if timers[member.host.name] or left:
            found.append(
                f"{member.host.name} has stopped and keeps {timers[member.host.name]} timers, tasks {left[:3]}"
            )
        if member.host.is_up:
            checks.world.mesh.crash(member)
    return found


EVENTUALLY: Final[dict[str, AsyncCheck]] = {
    "over": _over,
    "values": _values,
    "rest": _rest,
    "known": _known,
    "connected": _connected,
    "chatter": _chatter,
    "lookups": _lookups,
    "retrievable": _retrievable,
    "stopped": _stopped,
}
