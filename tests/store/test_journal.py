"""The journal's rows: what is written is read back, in order, and a deleted job leaves nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import StoreError
from p2pcompute.host.interfaces import Address, Write
from p2pcompute.host.real_store import SqliteStore
from p2pcompute.store import journal as layout
from p2pcompute.store.journal import JobRecord, Journal, OutboxEntry, ResultRecord

JOB, OTHER, OWNER = b"\x01" * 32, b"\x01" * 31 + b"\x02", b"\xff" * 32


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path)
    yield store
    await store.close()


def job(job_id: bytes = JOB) -> JobRecord:
    return JobRecord(job_id=job_id, envelope=b"envelope", alias="abcd", note="note", submitted=1.5, serial=7)


def result(outcome: bytes = b"outcome") -> ResultRecord:
    return ResultRecord(state=3, node_key=b"k" * 32, node_name="näme", attempts=2, outcome=outcome)


async def test_records_come_back_as_they_were(store: SqliteStore) -> None:
    """Otherwise a restarted owner knows another job than was submitted."""
    journal = Journal(store)
    entry = OutboxEntry(
        OWNER, JOB, 7, 2, [7, 0, 2, "ok", b"d" * 32], b"out", [Address("127.0.0.1", 4), Address("::1", 5)]
    )
    finished = job(OTHER).with_finished(17.25)
    await store.commit(
        [
            journal.job_write(job()),
            journal.job_write(finished),
            journal.result_write(JOB, 5, 1, result()),
            journal.outbox_write(entry),
            journal.meta_write("port", 4711),
            journal.meta_write("contacts", [[b"key", "127.0.0.1", 1]]),
        ]
    )
    assert await journal.load_jobs() == [job(), finished]
    assert await journal.result(JOB, 5, 1) == result()
    assert await journal.result(JOB, 5, 0) is None
    assert [kept async for kept in journal.outbox()] == [entry]
    assert await journal.meta("port") == 4711 and await journal.meta("contacts") == [[b"key", "127.0.0.1", 1]]
    await store.commit([journal.outbox_delete(OWNER, JOB, 7, 2), journal.meta_write("port", None)])
    assert [kept async for kept in journal.outbox()] == [] and await journal.meta("port") is None


async def test_facts_and_results_come_in_order_over_many_pages(store: SqliteStore) -> None:
    """Otherwise folding the facts gives another state, or a page is skipped."""
    journal = Journal(store)
    numbers = [*range(3000), 1 << 40]
    await store.commit([journal.fact_write(JOB, number, b"%d" % number) for number in reversed(numbers)])
    await store.commit([journal.fact_write(OTHER, 0, b"other")])
    assert [int(fact) async for fact in journal.facts(JOB)] == numbers
    pairs = [(index, generation) for index in range(300) for generation in range(2)]
    await store.commit([journal.result_write(JOB, *pair, result(bytes(200 * pair[0]))) for pair in pairs])
    await store.commit([journal.result_write(OTHER, 0, 0, result())])
    assert [(index, generation) async for index, generation, _ in journal.results(JOB)] == pairs
    assert [(index, generation) async for index, generation, _ in journal.results(JOB, 250)] == pairs[500:]


async def test_a_deleted_job_leaves_nothing_and_its_neighbour_everything(store: SqliteStore) -> None:
    """Otherwise `prune` frees nothing, or removes another job's results."""
    journal = Journal(store)
    for job_id in (JOB, OTHER):
        await store.commit(
            [journal.job_write(job(job_id)), journal.fact_write(job_id, 0, b"f")]
            + [journal.result_write(job_id, index, 0, result()) for index in range(50)]
        )
    await journal.delete_job(JOB)
    assert await journal.load_jobs() == [job(OTHER)]
    for table in (layout.FACTS, layout.RESULTS, layout.DELETING):
        assert await store.scan(table, JOB) == []
    assert len(await store.scan(layout.RESULTS, OTHER)) == 50 and [f async for f in journal.facts(OTHER)] == [b"f"]


async def test_a_deletion_cut_short_is_finished_at_the_next_start(store: SqliteStore) -> None:
    """Otherwise a crash during `prune` leaves rows that nothing refers to."""
    journal = Journal(store)
    await store.commit([journal.fact_write(JOB, 0, b"f"), Write(layout.DELETING, JOB, b"")])
    assert await journal.load_jobs() == []
    assert await store.scan(layout.FACTS) == [] and await store.scan(layout.DELETING) == []


@pytest.mark.parametrize("value", [b"", b"\xff", b"\x80", b"\x81\x01"])
async def test_a_row_that_cannot_be_read_is_a_clear_error(store: SqliteStore, value: bytes) -> None:
    """Otherwise damage shows as a traceback at the start of the node."""
    journal = Journal(store)
    await store.commit([Write(layout.JOBS, JOB, value), Write(layout.RESULTS, JOB + bytes(12), value)])
    for reading in (journal.load_jobs(), journal.result(JOB, 0, 0)):
        with pytest.raises(StoreError) as damaged:
            await reading
        assert damaged.value.code == "store-damaged" and damaged.value.fix


_place = st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 31))


@given(a=_place, b=_place)
def test_keys_sort_as_their_numbers(a: tuple[int, int], b: tuple[int, int]) -> None:
    """Otherwise a scan from an index on starts at another one."""
    assert (layout._result_key(JOB, *a) < layout._result_key(JOB, *b)) == (a < b)


def test_keys_of_a_wrong_length_are_refused() -> None:
    """Otherwise a short id makes a key that parses as another job's."""
    with pytest.raises(ValueError, match="job id"):
        layout._result_key(b"short", 0, 0)
    with pytest.raises(ValueError, match="key"):
        layout._outbox_key(b"short", JOB, 0, 0)
