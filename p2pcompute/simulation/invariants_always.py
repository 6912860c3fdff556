"""What must hold at any moment, in calm times, and when a node has started; see `invariants`."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Final

from p2pcompute.dht.records import PutOutcome, Record
from p2pcompute.dht.service import Dht
from p2pcompute.errors import InvariantViolation
from p2pcompute.ids import JOB_ID_BYTES, dht_id
from p2pcompute.limits import (
    CHANNEL_WRITE_BYTES_MAX,
    CHANNELS_MAX,
    CHANNELS_PER_PEER_MAX,
    CUSTODY_JOBS_MAX,
    DHT_BUCKET_SIZES,
    DHT_DEPARTED_MAX,
    DHT_JOIN_ADDRESSES_MAX,
    DHT_K,
    DHT_LOST_MAX,
    DHT_PARTIAL_PUTS_MAX,
    DHT_REQUESTS_MAX,
    DHT_VERIFICATIONS_MAX,
    HANDSHAKES_MAX,
    NEARBY_MAX,
    PARKED_MAX,
    PEERS_MAX,
    RATE_SOURCES_MAX,
    RECORDS_MAX,
    RECORDS_PER_KEY_MAX,
    REPLAY_NONCES_MAX,
    REQUESTS_IN_FLIGHT_MAX,
    REQUESTS_SERVED_BYTES_MAX,
    SYNC_WAITING_MAX,
    THIEVES_MAX,
    UNACKED_RESULTS_BYTES_MAX,
)
from p2pcompute.node.node import Node
from p2pcompute.scheduler.books import Grant, OwnedJob
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.simulation.loop import GC_STEP_EVENTS
from p2pcompute.simulation.mesh import Member
from p2pcompute.simulation.oracle import Check, Oracle
from p2pcompute.simulation.storage import SimDisk
from p2pcompute.store.journal import FACTS, JOBS, RESULTS
from p2pcompute.wire import cbor

RECORDS_CHECKED_MAX: Final = 100_000
"""Records whose signatures the oracle remembers to have checked."""
LIVELOCK_S: Final = 10.0
"""Over which the rate of events without progress is taken."""
RECORD_TURNS: Final = 3
BUCKET_TURNS: Final = 8
"""Records and tables are looked through at one of so many samplings."""
MEMORY_TURNS: Final = 60
"""Shared memory is searched at one of so many samplings."""
OBJECTS_MAX: Final = 200_000
"""Objects of one node that the search for shared memory visits."""


# --- always: tasks --------------------------------------------------------------------------------


def _books(checks: Oracle) -> Iterator[str]:
    """The books of owners and workers agree with themselves."""
    for member in checks.sampled():
        scheduler = member.running.scheduler
        if not checks.is_due(member.host.name, sum(job.ledger.size for job in scheduler.owner.core.jobs.values())):
            continue
        try:
            scheduler.owner.core.check_invariants()
            scheduler.worker.core.check_invariants()
        except InvariantViolation as error:
            yield f"{member.host.name}: {error}"


def _conservation(checks: Oracle) -> Iterator[str]:
    """Every acknowledged task is in its owner's ledger in one state; nobody has invented one."""
    for job in checks.jobs():
        member = checks.world.mesh.members[job.owner]
        book = member.node.scheduler.owner.books.get(job.job_id) if member.node is not None else None
        if book is None:
            continue
        ledger = book.job.ledger
        if ledger.size < job.acknowledged:
            yield f"{member.host.name} has {ledger.size} of {job.acknowledged} tasks of {short(job.job_id)}"
        if ledger.size > len(job.works):
            yield f"{member.host.name} has {ledger.size} tasks of {short(job.job_id)}, submitted {len(job.works)}"
        counts, leased = ledger.counts, len(book.job.leases)
        if sum(counts) != ledger.size or leased > counts[TaskState.OPEN]:
            yield f"{member.host.name}: {counts} and {leased} leased make not {ledger.size} of {short(job.job_id)}"


def _once(checks: Oracle) -> Iterator[str]:
    """A task ends at most once in each generation."""
    for job in checks.jobs():
        member = checks.world.mesh.members[job.owner]
        if member.node is None or (book := member.node.scheduler.owner.books.get(job.job_id)) is None:
            continue
        ledger = book.job.ledger
        life, seen, times = checks.ends.get((job.job_id, job.owner), (None, 0, Counter[int]()))
        if life is not member.node:
            seen, times = 0, Counter()
        for index in ledger.finished[seen:]:
            times[index] += 1
            if times[index] > ledger.generation(index) + 1:
                yield f"task {index} of {short(job.job_id)} ended {times[index]} times up to this generation"
        checks.ends[job.job_id, job.owner] = (member.node, len(ledger.finished), times)


# --- always: the DHT ------------------------------------------------------------------------------


def dhts(members: Iterable[Member]) -> Iterator[tuple[Member, Dht]]:
    for member in members:
        dht = member.running.network.dht
        if dht is not None:
            yield member, dht


def _buckets(checks: Oracle) -> Iterator[str]:
    """Every bucket holds contacts of its own prefix, each once, not the node itself, and not too many."""
    if not checks.is_turn("buckets", BUCKET_TURNS):
        return
    for member, dht in dhts(checks.sampled()):
        try:
            dht.check_invariants()
        except InvariantViolation as error:
            yield f"{member.host.name}: {error}"
        own = member.identity.public_key
        own_number = int.from_bytes(dht_id(own), "big")
        contacts = dht.contacts()
        keys = Counter(contact.key for contact in contacts)
        if own in keys or len(keys) != len(contacts):
            yield f"{member.host.name} has itself, or somebody twice, among its contacts"
        sizes = Counter(160 - (own_number ^ contact.number).bit_length() for contact in contacts)
        for shared, size in sorted(sizes.items()):
            most = DHT_BUCKET_SIZES[shared] if shared < len(DHT_BUCKET_SIZES) else DHT_K
            if size > most:
                yield f"{member.host.name} has {size} contacts that share {shared} bits, at most {most}"


def _records(checks: Oracle) -> Iterator[str]:
    """What is held was signed by its publisher, and is not shown when it has expired; see also `watch_records`."""
    if not checks.is_turn("records", RECORD_TURNS):
        return
    now = checks.now
    for member, dht in dhts(checks.sampled()):
        store = dht.records
        for key, publishers in store._keys.items():
            shown = store.get(key, now=now)
            for publisher, held in publishers.items():
                record = held.record
                if held.expires <= now and record in shown:
                    yield f"{member.host.name} shows a record that expired at {held.expires:.1f} s"
                if not _is_genuine(checks, member, record.raw, publisher):
                    yield f"{member.host.name} holds a record that {publisher.hex()[:8]} never signed"


def _is_genuine(checks: Oracle, member: Member, raw: bytes, publisher: bytes) -> bool:
    known = checks.verified.get(raw)
    if known is None:
        protected, _unprotected, body, signature = cbor.decode(raw)
        signed = cbor.encode(["Signature1", protected, b"", body])
        known = member.host.crypto.verify(publisher, signed, signature) and cbor.decode(body)[0] == publisher
        if len(checks.verified) >= RECORDS_CHECKED_MAX:
            checks.verified.clear()
        checks.verified[raw] = known
    return known


# --- always: bounds, errors, progress, memory -----------------------------------------------------


def _measures(member: Member, node: Node) -> list[tuple[str, float, float]]:
    """(what, how much, limit) of everything in a node that grows with what others send."""
    channels, network, scheduler = node.channels, node.network, node.scheduler
    open_requests = [len(one._pending) for one in channels._open]
    served = channels._shared.serving.values()
    tasks = len([task for task in member.host.tasks if not task.done()])
    answering = sum([one.count for one in served])
    peers = len(scheduler.peers)
    unsent = sum([len(done.outcome) for link in scheduler.worker.links.values() for done in link.results])
    found: list[tuple[str, float, float]] = [
        ("channels", len(channels._open), CHANNELS_MAX),
        ("channels of a peer", max(map(len, channels._by_key.values()), default=0), CHANNELS_PER_PEER_MAX),
        ("unproven connections", channels._inbound_count, HANDSHAKES_MAX),
        ("preamble nonces", len(channels._gate), REPLAY_NONCES_MAX),
        ("sources of connections", len(channels._rates), RATE_SOURCES_MAX),
        ("sources of datagrams", len(network.datagrams._rates), RATE_SOURCES_MAX),
        ("open requests", max(open_requests, default=0), REQUESTS_IN_FLIGHT_MAX),
        ("unsent bytes", max([one.unsent_bytes for one in channels._open], default=0), CHANNEL_WRITE_BYTES_MAX),
        ("requests served", max([one.count for one in served], default=0), REQUESTS_IN_FLIGHT_MAX),
        ("bytes served", max([one.bytes for one in served], default=0), REQUESTS_SERVED_BYTES_MAX),
        ("nodes nearby", len(network.lan.nearby), NEARBY_MAX),
        ("names", len(network.names), PEERS_MAX),
        ("members away", len(network._away), PEERS_MAX),
        ("peers", peers, PEERS_MAX),
        ("parked requests", len(scheduler.victim.parking), PARKED_MAX),
        ("thieves", len(scheduler.owner.core.thieves), THIEVES_MAX),
        ("asked and not a peer", len(scheduler.thief.asked) - peers, 64),
        ("bytes of unsent results", unsent, UNACKED_RESULTS_BYTES_MAX + CHANNEL_WRITE_BYTES_MAX),
        ("unsent bytes that are not there", abs(unsent - scheduler.worker.sender.unsent_bytes), 0),
        ("tasks", tasks, 256 + 4 * len(channels._open) + sum(open_requests) + answering + HANDSHAKES_MAX),
    ]
    if scheduler.custody is not None:
        others = sum([not book.job.is_own for book in scheduler.owner.books.values()])
        found += [
            ("jobs of others", others, CUSTODY_JOBS_MAX),
            ("questions that wait for news", scheduler.custody.waiters.count, SYNC_WAITING_MAX),
        ]
    dht = network.dht
    if dht is not None:
        found += [
            ("records", len(dht.records), RECORDS_MAX),
            ("records of a key", max(map(len, dht.records._keys.values()), default=0), RECORDS_PER_KEY_MAX),
            ("parts of records", len(dht._keeper._partial), DHT_PARTIAL_PUTS_MAX),
            ("peers being verified", len(dht._verifying), DHT_VERIFICATIONS_MAX),
            ("addresses to join by", len(dht._joining._places), DHT_JOIN_ADDRESSES_MAX),
            ("lost contacts", len(dht._table._lost), DHT_LOST_MAX),
            ("departed contacts", len(dht._table._departed), DHT_DEPARTED_MAX),
            ("open DHT requests", 0 if dht._exchange is None else len(dht._exchange._pending), DHT_REQUESTS_MAX),
        ]
    return found


def _bounds(checks: Oracle) -> Iterator[str]:
    """Nothing in a node grows beyond its limit."""
    for member in checks.sampled():
        for what, amount, limit in _measures(member, member.running):
            if amount > limit:
                yield f"{member.host.name} has {amount:.0f} {what}, at most {limit:.0f}"


def _errors(checks: Oracle) -> Iterator[str]:
    """No exception leaves a background task, whoever sent what."""
    for number, member in enumerate(checks.world.mesh.members):
        if number in checks.world.hostile:
            continue
        seen = checks.errors_seen[member.host.name]
        if len(member.errors) > seen:
            checks.errors_seen[member.host.name] = len(member.errors)
            for text in member.errors[seen:]:
                yield f"{member.host.name}: {text}"


def _livelock(checks: Oracle) -> Iterator[str]:
    """Nodes are not busy for long without any task being added, started or ended."""
    jobs = [job for one in checks.honest() for job in one.running.scheduler.owner.core.jobs.values()]
    runs = sum(one.host.runner.runs_ended for one in checks.world.up())
    done = runs + sum(len(job.ledger.finished) + job.ledger.size for job in jobs)
    loop, now = checks.world.simulation.loop, checks.now
    known, since, events, records = checks.progress
    if done != known:
        checks.progress = (done, now, loop.events, loop.trace.count)
        return
    if now - since < LIVELOCK_S:
        return
    # The loop tells its events in steps: what is sure is one step less.
    count = max(loop.events - events - GC_STEP_EVENTS, loop.trace.count - records)
    rate = count / (now - since) / max(1, len(checks.world.up()))
    if rate > checks.settings.events_per_s:
        yield f"{rate:.0f} events per second and node for {now - since:.0f} s, and no task moves"


def _memory(checks: Oracle) -> Iterator[str]:
    """No mutable object belongs to two nodes: what they know of each other came as bytes."""
    members = checks.sampled()
    if not checks.is_turn("memory", MEMORY_TURNS):
        return
    owners: dict[int, Member] = {}
    for member in members:
        for item in _mutable_parts(member.running):
            other = owners.setdefault(id(item), member)
            if other is not member:
                yield f"{member.host.name} and {other.host.name} share a {type(item).__name__}: {item!r:.100}"


_CONTAINERS: Final = (dict, list, set, deque, bytearray)


def _mutable_parts(root: Node) -> Iterator[Any]:
    """The mutable objects that a node's own code made, found from the node; not its host, nor what only refers to
    them (functions, tasks, futures)."""
    stack: list[Any] = [root]
    seen: dict[int, Any] = {}
    while stack and len(seen) < OBJECTS_MAX:
        item = stack.pop()
        kind = type(item)
        is_container = isinstance(item, _CONTAINERS)
        if not is_container and kind is not tuple:
            module = kind.__module__
            is_ours = module.startswith("p2pcompute.") and not module.startswith(
                ("p2pcompute.simulation", "p2pcompute.host", "p2pcompute.identity")
            )
            if not is_ours or isinstance(item, Enum | type):
                continue
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if kind is tuple:
            stack.extend(item)
        elif isinstance(item, dict):
            yield item
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, bytearray):
            yield item
        elif is_container:
            yield item
            stack.extend(item)
        else:
            config = getattr(kind, "__dataclass_params__", None) or getattr(kind, "__struct_config__", None)
            if not (isinstance(item, tuple) or (config is not None and config.frozen)):
                yield item
            stack.extend(_attributes(item))


def _attributes(item: Any) -> Iterator[Any]:
    if is_dataclass(item) and not isinstance(item, type):
        for field in fields(item):
            yield getattr(item, field.name, None)
        return
    yield from getattr(item, "__dict__", {}).values()
    for name in getattr(item, "__struct_fields__", ()):
        yield getattr(item, name)
    for kind in type(item).__mro__:
        for name in getattr(kind, "__slots__", ()):
            yield getattr(item, name, None)


ALWAYS: Final[dict[str, Check]] = {
    "books": _books,
    "conservation": _conservation,
    "once": _once,
    "buckets": _buckets,
    "records": _records,
    "bounds": _bounds,
    "errors": _errors,
    "livelock": _livelock,
    "memory": _memory,
}


# --- in calm times --------------------------------------------------------------------------------


def _held(checks: Oracle) -> Iterator[str]:
    """Every lease has somebody who works on it, or its result is on the way."""
    nodes = {member.identity.public_key: member.running for member in checks.honest()}
    hostile = {checks.world.mesh.members[number].identity.public_key for number in checks.world.hostile}
    missing: dict[tuple[bytes, int, bytes], None] = {}
    for owner_key, owner in nodes.items():
        for job_id, job in owner.scheduler.owner.core.jobs.items():
            for index, lease in job.leases.items():
                holder = nodes.get(owner_key if lease.thief == LOCAL else lease.thief)
                is_held = holder is not None and holder.scheduler.worker.core.holds(job_id, index)
                if not is_held and lease.thief not in hostile:
                    missing[job_id, index, lease.thief] = None
    for job_id, index, thief in checks.orphans.over(checks.now, missing, checks.settings.stall_s):
        yield f"nobody has task {index} of {short(job_id)}, which is leased to {thief.hex()[:8]}"


def _doubles(checks: Oracle) -> Iterator[str]:
    """No two nodes keep the same attempt of a task waiting."""
    holders: dict[tuple[bytes, int, int, int], Member] = {}
    double: dict[tuple[bytes, int, int, int], None] = {}
    for member in checks.honest():
        for held in member.running.scheduler.worker.core.held.values():
            if held.is_dropped or held.slot >= 0:
                continue
            key = (held.job_id, held.task.index, held.task.generation, held.task.attempt)
            if key in holders:
                double[key] = None
            holders[key] = member
    for job_id, index, _generation, attempt in checks.doubles.over(checks.now, double, 2 * checks.settings.stall_s):
        yield f"two nodes hold attempt {attempt} of task {index} of {short(job_id)}"


def _idle(checks: Oracle) -> Iterator[str]:
    """No node idles while a task could run on it."""
    idle = [
        member
        for member in checks.sampled()
        if not member.host.runner.busy_count and member.running.scheduler.worker.core.want() >= 1
    ]
    found: dict[tuple[bytes, str], None] = {}
    for owner in checks.honest() if idle else ():
        for job_id, job in owner.running.scheduler.owner.core.jobs.items():
            terms = job.envelope.terms
            is_limited = terms.slots_max is not None and len(job.leases) >= terms.slots_max
            if job.ready_count <= len(job.avoid) or is_limited:
                continue
            for member in idle:
                if member is owner or not terms.local_only:
                    found[job_id, member.host.name] = None
    for job_id, name in checks.idle.over(checks.now, found, checks.settings.idle_s):
        yield f"{name} idles while tasks of {short(job_id)} are ready"


CALM: Final[dict[str, Check]] = {"held": _held, "doubles": _doubles, "idle": _idle}


# --- from a start on ------------------------------------------------------------------------------


def watch_leases(member: Member, broken: Callable[[str], None]) -> None:
    """See every grant of a node's tasks as it is made: none of them may have a lease that has not ended."""
    core = member.running.scheduler.owner.core
    make_grant = core._grant

    def seen(now: float, job: OwnedJob, thief: Thief, chosen: list[int]) -> Grant:
        for index in chosen:
            lease = job.leases.get(index)
            if (lease is not None and lease.expires > now) or chosen.count(index) > 1:
                broken(f"{member.host.name} grants task {index} of {short(job.envelope.job_id)} twice")
        return make_grant(now, job, thief, chosen)

    core._grant = seen  # type: ignore[method-assign]


def watch_records(member: Member, broken: Callable[[str], None]) -> None:
    """See every record that a node takes: none of them may be older than the live one in whose place it comes."""
    if (dht := member.running.network.dht) is None:
        return
    store = dht.records
    put = store.put

    def seen(record: Record, *, now: float, wall: float) -> PutOutcome:
        held = store._keys.get(record.key, {}).get(record.publisher)
        outcome = put(record, now=now, wall=wall)
        if outcome is PutOutcome.STORED and held and held.expires > now and held.record.version > record.version:
            who = f"{member.host.name} went back from seq {held.record.seq} to {record.seq}"
            broken(f"{who} of {record.publisher.hex()[:8]}")
        return outcome

    store.put = seen  # type: ignore[method-assign]


Books = dict[int, tuple[int, int]]
"""A job's tasks: index → (generation, `TaskState`)."""
_STATES: Final = {
    FactKind.ACCEPT: TaskState.DONE, FactKind.FAIL: TaskState.FAILED, FactKind.CANCEL: TaskState.CANCELLED,
    FactKind.RETRY: TaskState.OPEN,
}  # fmt: skip
_CLAIMS: Final = (TaskState.CLAIMED, TaskState.CLAIMED_FAILED)


def durable_books(disk: SimDisk) -> dict[bytes, Books]:
    """What the facts on a disk say, folded by the oracle's own rule: the highest (generation, state) counts.

    Raises:
        RemoteProtocolError: a row is damaged.
    """
    jobs = disk.tables.get(JOBS)
    facts = disk.tables.get(FACTS)
    books: dict[bytes, Books] = {job_id: {} for job_id in sorted(jobs.rows)} if jobs is not None else {}
    for key in sorted(facts.rows) if facts is not None else ():
        tasks = books.get(key[:JOB_ID_BYTES])
        if tasks is None:
            continue
        payload = cbor.decode(cbor.decode(facts.rows[key])[2])  # type: ignore[union-attr]
        if "claims" in payload:
            continue
        kind, body = FactKind(payload["kind"]), payload["body"]
        if kind is FactKind.TASKS:
            generation = body[2] if len(body) > 2 else 0
            for index in range(body[0], body[0] + len(body[1])):
                tasks.setdefault(index, (generation, TaskState.OPEN))
        elif kind in _STATES:
            for index, generation, *_rest in body:
                tasks[index] = max(tasks.get(index, (0, 0)), (generation, _STATES[kind]))
    results = disk.tables.get(RESULTS)
    for key in sorted(results.rows) if results is not None else ():
        # A claim about a task of another node's job: it counts where nothing was judged.
        state = cbor.decode(results.rows[key], allow_float=True)[0]  # type: ignore[union-attr]
        index, generation = int.from_bytes(key[JOB_ID_BYTES:-4], "big"), int.from_bytes(key[-4:], "big")
        known = books.get(key[:JOB_ID_BYTES], {}).get(index)
        if known is not None and known <= (generation, TaskState.OPEN) and state in _CLAIMS:
            books[key[:JOB_ID_BYTES]][index] = (generation, state)
    return books


def recovered(member: Member, books: dict[bytes, Books]) -> Iterator[str]:
    """What a node knows after its start is what was durable: no less, no more."""
    owner = member.running.scheduler.owner
    known = {job_id: book.job for job_id, book in owner.books.items()}
    # A start takes its time: results that come meanwhile are judged, and so are tasks that took this node down.
    judged: dict[int, int] = {
        TaskState.DONE: owner.counters.accepted_count,
        TaskState.FAILED: owner.counters.failed_count,
    }
    if sorted(known) != sorted(books):
        yield f"{member.host.name} has {len(known)} jobs, its disk {len(books)}"
    for job_id, tasks in books.items():
        job = known.get(job_id)
        if job is None:
            continue
        if job.ledger.size != len(tasks):
            yield f"{member.host.name} has {job.ledger.size} tasks of {short(job_id)}, its disk {len(tasks)}"
        may_cancel = job.is_cancelled or bool(job.halted)
        for index in range(min(job.ledger.size, len(tasks))):
            found = (job.ledger.generation(index), int(job.ledger.state(index)))
            is_given_up = may_cancel and found[1] == TaskState.CANCELLED and tasks[index][1] == TaskState.OPEN
            if found != tasks[index] and found[1] in judged and tasks[index][1] == TaskState.OPEN:
                judged[found[1]] -= 1
                if judged[found[1]] >= 0:
                    continue
            if found != tasks[index] and not is_given_up:
                yield f"{member.host.name} has task {index} of {short(job_id)} as {found}, its disk as {tasks[index]}"
                break


def short(job_id: bytes) -> str:
    """A job's id as it is shown in a problem."""
    return job_id.hex()[:6]
