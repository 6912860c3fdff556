"""Bugs that somebody might put into node code, one or more for each invariant: small changes, made for one test.

A mutant names the invariant that must catch it, the trial in which it shows, and within how many seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest

from p2pcompute.dht import exchange, joining, keeper, records
from p2pcompute.dht.lookup import Lookup
from p2pcompute.dht.records import PutOutcome, Record, RecordStore
from p2pcompute.dht.routing_table import Change, RoutingTable
from p2pcompute.host.tasks import TaskScope
from p2pcompute.scheduler.ledger import JobLedger, TaskState
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.owner_service import OwnerService
from p2pcompute.scheduler.result_sender import ResultSender
from p2pcompute.scheduler.stealing import Parking
from p2pcompute.scheduler.thief_service import ThiefService
from p2pcompute.scheduler.worker import WorkerCore
from p2pcompute.scheduler.worker_service import WorkerService
from p2pcompute.store.journal import Journal
from p2pcompute.transport.channel import Channel
from p2pcompute.transport.channels import Channels
from p2pcompute.wire import cbor
from tests.simulation.trial import Trial

Patch = pytest.MonkeyPatch

PLAIN: Final = Trial()
CALM: Final = Trial(is_calm=True)
LONG: Final = Trial(is_calm=True, job_count=1, works=(40.0,) * 30)
FEW: Final = Trial(nodes=3, is_calm=True, job_count=1, works=(40.0,) * 12)
STAIRS: Final = Trial(is_calm=True, job_count=1, works=(0.01,) * 100 + (30.0,) * 40)
AT_ACK: Final = Trial(crash_at_ack=True, crashes=False)
DOWN: Final = Trial(stays_down=True)
LATE: Final = Trial(hostile={"late": 1}, job_count=1)
LIARS: Final = Trial(hostile={"equivocation": 1}, records=True, job_count=1, crashes=False)
MALFORMED: Final = Trial(hostile={"malformed": 1}, job_count=1, crashes=False)
LORIS: Final = Trial(hostile={"slow_loris": 1}, job_count=1, crashes=False)


@dataclass(frozen=True)
class Mutant:
    """A bug."""

    name: str
    invariant: str
    trial: Trial
    mutate: Callable[[Patch], None]
    seeds: int = 1
    """Within so many seeds it must be caught."""


MUTANTS: Final[list[Mutant]] = []


def _mutant(
    invariant: str, trial: Trial, seeds: int = 1
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def register(mutate: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS.append(Mutant(mutate.__name__, invariant, trial, mutate, seeds))
        return mutate

    return register


def _wrap(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by `around(original, self, *arguments)`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    patch.setattr(owner, name, changed)


# --- tasks ----------------------------------------------------------------------------------------


@_mutant("books", PLAIN)
def a_lost_lease_is_not_put_back(patch: Patch) -> None:
    patch.setattr(OwnerCore, "_requeue", lambda *_args, **_options: None)


@_mutant("conservation", AT_ACK)
def tasks_are_acknowledged_before_they_are_durable(patch: Patch) -> None:
    async def at_once(_self: OwnerService) -> None:
        return

    patch.setattr(OwnerService, "committed", at_once)


@_mutant("once", LATE, seeds=3)
def a_result_counts_without_a_look_at_the_generation(patch: Patch) -> None:
    def enter(original: Any, ledger: JobLedger, index: int, generation: int, state: TaskState, reason: str) -> Any:
        if index < ledger.size and state is TaskState.DONE and ledger.state(index) is TaskState.DONE:
            ledger.finished.append(index)
        return original(ledger, index, generation, state, reason)

    patch.setattr(JobLedger, "is_open", lambda self, index, _generation: index < self.size)
    _wrap(patch, JobLedger, "_enter", enter)


@_mutant("leases", CALM)
def a_lease_is_granted_twice(patch: Patch) -> None:
    def pick(original: Any, core: OwnerCore, now: float, job: Any, thief: Any, count: int) -> list[int]:
        chosen: list[int] = original(core, now, job, thief, count)
        return list(dict.fromkeys([*chosen, *list(job.leases)[:1]])) if len(chosen) > 1 else chosen

    _wrap(patch, OwnerCore, "_pick", pick)


@_mutant("held", CALM)
def a_result_is_forgotten(patch: Patch) -> None:
    def finish(original: Any, worker: WorkerService, held: Any, outcome: Any) -> None:
        if held.task.index % 10 != 3:
            original(worker, held, outcome)

    _wrap(patch, WorkerService, "_finish", finish)


@_mutant("doubles", STAIRS, seeds=3)
def tasks_that_are_given_away_are_kept_too(patch: Patch) -> None:
    def give(original: Any, core: WorkerCore, *args: Any) -> Any:
        remove = core._remove
        core._remove = lambda _held: None  # type: ignore[method-assign]
        try:
            return original(core, *args)
        finally:
            core._remove = remove  # type: ignore[method-assign]

    _wrap(patch, WorkerCore, "give", give)


@_mutant("idle", LONG)
def a_parked_request_is_lost(patch: Patch) -> None:
    patch.setattr(Parking, "park", lambda *_args: True)


@_mutant("recovered", PLAIN)
def recovery_stops_before_the_last_fact(patch: Patch) -> None:
    original = Journal.facts

    async def facts(self: Journal, job_id: bytes, first: int = 0) -> Any:
        former = None
        async for raw in original(self, job_id, first):
            if former is not None:
                yield former
            former = raw

    patch.setattr(Journal, "facts", facts)


@_mutant("over", PLAIN)
def leases_of_the_lost_never_end(patch: Patch) -> None:
    patch.setattr(OwnerCore, "peer_lost", lambda *_args, **_options: 0)
    patch.setattr(OwnerCore, "tick", lambda *_args: None)


@_mutant("values", CALM)
def outcomes_are_mixed_up(patch: Patch) -> None:
    former: list[Any] = []

    def finish(original: Any, worker: WorkerService, held: Any, outcome: Any) -> None:
        former.append(outcome)
        original(worker, held, former[max(0, len(former) - 1 - len(former) % 2)])

    _wrap(patch, WorkerService, "_finish", finish)


@_mutant("rest", PLAIN, seeds=3)
def kept_results_stay_on_disk(patch: Patch) -> None:
    async def forget(_self: ResultSender) -> None:
        return

    patch.setattr(ResultSender, "forget", forget)


@_mutant("livelock", FEW)
def a_thief_declines_and_asks_again(patch: Patch) -> None:
    def declined(original: Any, thief: ThiefService, channel: Any, body: Any) -> None:
        core = thief._worker.core
        core.is_paused = True
        original(thief, channel, body)
        core.is_paused = False
        thief._host.clock.call_later(0.005, thief._wake)

    _wrap(patch, ThiefService, "_on_grant", declined)


# --- the DHT --------------------------------------------------------------------------------------


@_mutant("buckets", CALM)
def a_contact_is_put_into_the_wrong_bucket(patch: Patch) -> None:
    _wrap(patch, RoutingTable, "_index", lambda original, table, contact_id: max(1, original(table, contact_id)))


@_mutant("records", LIARS)
def an_older_record_replaces_a_newer_one(patch: Patch) -> None:
    def put(original: Any, store: RecordStore, record: Record, *, now: float, wall: float) -> PutOutcome:
        if record.publisher in store._keys.get(record.key, {}):
            store._drop(record.key, record.publisher)
        return original(store, record, now=now, wall=wall)  # type: ignore[no-any-return]

    _wrap(patch, RecordStore, "put", put)


@_mutant("records", LIARS)
def a_forged_record_is_kept(patch: Patch) -> None:
    def unchecked(_crypto: Any, raw: bytes, *, wall: float) -> Record:
        outer = cbor.decode(raw)
        fields = cbor.decode(outer[2])
        del wall
        return records._record(records._kind_of(raw), fields[0], fields, raw)

    patch.setattr(keeper, "open_record", unchecked)


@_mutant("records", LIARS)
def an_expired_record_is_shown(patch: Patch) -> None:
    def get(self: RecordStore, key: bytes, *, now: float) -> list[Record]:
        del now
        return [held.record for held in self._keys.get(key, {}).values()]

    patch.setattr(RecordStore, "get", get)


@_mutant("known", DOWN)
def who_is_silent_is_never_evicted(patch: Patch) -> None:
    patch.setattr(RoutingTable, "on_failure", lambda *_args, **_options: Change())


@_mutant("connected", CALM)
def only_one_half_of_the_key_space_is_seen(patch: Patch) -> None:
    def on_reply(original: Any, table: RoutingTable, key: bytes, *args: Any, **options: Any) -> Change:
        is_far = (records.hashlib.sha256(key).digest()[0] ^ table.own_id[0]) & 0x80
        return Change() if is_far else original(table, key, *args, **options)  # type: ignore[no-any-return]

    _wrap(patch, RoutingTable, "on_reply", on_reply)


@_mutant("lookups", CALM)
def a_lookup_stops_at_the_first_answer(patch: Patch) -> None:
    def is_done(self: Lookup) -> bool:
        return self._is_finished or bool(self.result()) or not self.unasked()

    patch.setattr(Lookup, "is_done", property(is_done))


@_mutant("retrievable", CALM)
def a_record_is_not_kept(patch: Patch) -> None:
    patch.setattr(RecordStore, "put", lambda *_args, **_options: PutOutcome.STORED)


@_mutant("retrievable", CALM)
def a_record_never_expires(patch: Patch) -> None:
    patch.setattr(Record, "remaining_s", lambda self, _wall: float(max(60, self.ttl_s)))


# --- bounds and endings ---------------------------------------------------------------------------


@_mutant("bounds", CALM)
def bytes_of_sent_results_are_not_given_back(patch: Patch) -> None:
    patch.setattr(ResultSender, "let_go", lambda *_args: None)


@_mutant("bounds", LORIS)
def channels_of_one_peer_are_not_counted(patch: Patch) -> None:
    patch.setattr(Channels, "_has_room", lambda *_args: True)


@_mutant("errors", MALFORMED)
def a_body_is_unpacked_without_a_look(patch: Patch) -> None:
    original = exchange.decode_body

    def trusting(kind: Any, body: Any) -> Any:
        if kind is exchange.MessageType.FIND:
            (key,) = body
            return type(original(kind, [bytes(20)]))(key)
        return original(kind, body)

    patch.setattr(exchange, "decode_body", trusting)


@_mutant("memory", CALM)
def tables_share_a_dictionary(patch: Patch) -> None:
    shared: dict[bytes, Any] = {}

    def init(original: Any, table: RoutingTable, *args: Any, **options: Any) -> None:
        original(table, *args, **options)
        table._lost = shared

    _wrap(patch, RoutingTable, "__init__", init)


@_mutant("chatter", CALM)
def tables_are_refreshed_all_the_time(patch: Patch) -> None:
    patch.setattr(joining, "DHT_REFRESH_SMALL_S", 0.5)


@_mutant("chatter", CALM)
def a_timer_is_never_cancelled(patch: Patch) -> None:
    def flush(original: Any, channel: Channel) -> None:
        channel._shared.clock.call_later(600.0, lambda: None)
        original(channel)

    _wrap(patch, Channel, "_flush", flush)


@_mutant("stopped", CALM)
def a_scope_leaves_a_task_running(patch: Patch) -> None:
    async def close(self: TaskScope) -> None:
        self._closed = True
        for task in list(self._tasks):
            if not task.get_name().endswith(".upkeep"):
                task.cancel()

    patch.setattr(TaskScope, "close", close)
